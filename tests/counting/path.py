"""The path of one message, without sockets, step by step: what `instructions.py` runs under callgrind. Arguments: the extension, the messages
of a batch, the rounds that are counted.

Client, front-end and worker are the code that runs in production. Each round publishes a batch of 128-byte messages to one queue, delivers,
acknowledges and confirms it. All that is random elsewhere is fixed here, so that two runs execute the same instructions.
"""

import gc
import os
import random
import sys
from functools import partial
from pathlib import Path

seeded = random.Random(1)
os.urandom = seeded.randbytes

sys.path[:0] = [str(Path(__file__).parents[1] / "unit"), str(Path(__file__).parents[1])]

from world import MS, Client, World  # noqa: E402

from counting import load  # noqa: E402
from fastmq.storage.log import Log  # noqa: E402
from fastmq.wire.verbs import Verb  # noqa: E402

WARM_UP_ROUNDS = 3
PREFETCH = 5000
BODY = b"x" * 128


class MessagePath:
    """One client with a consumer, one front-end, one worker."""

    def __init__(self) -> None:
        import world

        world.Journal = Log
        World.WORKERS, World.WINDOW = 1, 16384
        self.world = World(1)
        self.world.config = self.world.config.replace(publish_window_bytes=1 << 24, ring_size=1 << 20)
        self.world.kill_frontend()
        self.client = Client(self.world, "client")
        self.world.clients.append(self.client)
        self.sessions, self.workshop, self.core = self.world.sessions, self.world.workers[0].workshop, self.client.core
        self.client.connect()
        self.wire = self.client.wire
        self.several()
        declared = self.core.request(Verb.DECLARE_QUEUE, ["q", {}], self.world.now)
        self.several()
        assert self.core.answer(declared)[0] is not None
        self.consumer = self.core.begin_consumer("q", PREFETCH, 1 << 26, False, self.world.now)
        self.several()

    def several(self) -> None:
        for _ in range(5):
            self.everything()

    def everything(self) -> None:
        """Let happen what is due, uncounted."""
        self.core.run(self.world.now)
        self.to_broker(self.core.take_output(self.world.now), self.sessions.receive)
        self.turn()
        self.sessions.pump_all()
        self.to_client(self.core.feed)

    def to_broker(self, data: bytes, receive) -> None:
        self.wire.feed(data)
        while self.wire.requests:
            receive(*self.wire.address, *self.wire.requests.popleft())

    def turn(self) -> None:
        self.workshop.turn_once(self.world.now, self.world.now // MS)

    def to_client(self, feed) -> None:
        self.world.frontend_writes()
        while self.wire.answers:
            feed(self.wire.answers.popleft(), self.world.now)

    def publish(self, count: int) -> bytes:
        for _ in range(count):
            self.core.publish("q", BODY)
        return self.core.take_output(self.world.now)

    def settle(self, deliveries) -> bytes:
        for shard, epoch, n, generation, *_ in deliveries:
            self.core.settle_tag(shard, epoch, n, 0, generation)
        return self.core.take_output(self.world.now)

    def round(self, count: int, step) -> None:
        """One batch, all the way; step(name, action) does each step that counts."""

        def call(name, function, *arguments):
            return step(name, partial(function, *arguments))

        data = call("client publish", self.publish, count)
        self.to_broker(data, partial(call, "front-end publish", self.sessions.receive))
        call("worker publish", self.turn)
        call("front-end deliver", self.sessions.pump_all)
        self.to_client(partial(call, "client deliver", self.core.feed))
        taken = self.core.take_deliveries(self.consumer)
        assert len(taken) == count, len(taken)
        data = call("client settle", self.settle, taken)
        self.to_broker(data, partial(call, "front-end settle", self.sessions.receive))
        call("worker settle", self.turn)
        call("front-end settle", self.sessions.pump_all)
        self.to_client(self.core.feed)
        self.several()
        assert self.core.open_count == 0


def main(extension: str, count: int, rounds: int) -> None:
    callgrind = load("callgrind", Path(extension))
    path = MessagePath()
    for _ in range(WARM_UP_ROUNDS):
        path.round(count, lambda name, action: action())
    gc.collect()
    gc.disable()
    callgrind.begin()
    for _ in range(rounds):
        path.round(count, lambda name, action: callgrind.count(name.encode(), action))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
