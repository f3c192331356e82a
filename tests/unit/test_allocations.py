"""No Python object is made for a message in a front-end or a worker: a batch of 1,000 allocates what a batch of 1 does."""

import msgpack
import pytest
from counting import build_allocations
from world import MS, World

from fastmq.storage.log import Log
from fastmq.wire.verbs import Verb

FD, COUNT = 5, 1


@pytest.fixture(scope="module")
def allocations(tmp_path_factory):
    return build_allocations(tmp_path_factory.mktemp("counting"))


class Direct:
    """One session, one worker, and requests without a client library."""

    def __init__(self, monkeypatch, queues: int) -> None:
        monkeypatch.setattr("world.Journal", Log)
        monkeypatch.setattr(World, "WORKERS", 1)
        monkeypatch.setattr(World, "WINDOW", 16384)
        self.world = World(1)
        self.world.config = self.world.config.replace(publish_window_bytes=1 << 24, ring_size=1 << 20)
        self.world.kill_frontend()
        self.workshop, self.sessions = self.world.workers[0].workshop, self.world.sessions
        self.quiet()
        self.sid, self.seq, self.tag = b"", 1, {}
        (_, welcome, _), *_ = self.ask(Verb.HELLO, 1, "/", "test", 5, {}, incarnation=0)
        self.sid = msgpack.unpackb(welcome)[3]
        for i in range(queues):
            self.ask(Verb.DECLARE_QUEUE, 2 * i + 1, f"q{i}", {})
            (_, answer, _), *_ = self.ask(Verb.CONSUME, 2 * i + 2, i + 1, f"q{i}", 60000, 1 << 30, {})
            assert msgpack.unpackb(answer)[0] == Verb.REPLY, answer
        self.queues = queues

    def ask(self, verb, *fields, incarnation=1, records=None):
        incarnation = 0 if verb == Verb.HELLO else msgpack.unpackb(self.header_incarnation)
        self.sessions.receive(FD, COUNT, msgpack.packb([verb, self.sid, incarnation, *fields]), records)
        found = self.quiet()
        for _, header, _ in found:
            decoded = msgpack.unpackb(header)
            self.header_incarnation = msgpack.packb(decoded[2])
        return found

    header_incarnation = msgpack.packb(0)

    def quiet(self):
        """Let everything happen that is due; what was sent to the client."""
        found = []
        for _ in range(6):
            self.sessions.pump_all()
            found += self.sessions.take_output()
            self.workshop.turn_once(self.world.now, self.world.now // MS)
        return found

    def batch(self, count: int) -> tuple[bytes, bytes]:
        """The two frames of a PUBLISH of that many messages, spread over the queues."""
        records = b"".join(msgpack.packb([f"q{i % self.queues}", None, b"x" * 128]) for i in range(count))
        header = [Verb.PUBLISH, self.sid, msgpack.unpackb(self.header_incarnation), self.seq, self.seq, count, "", 0]
        self.seq += count
        return msgpack.packb(header), records

    def settle_frame(self, header: bytes) -> bytes:
        """The SETTLE that acknowledges all of one DELIVER."""
        ranges: dict[tuple[int, int], list[list[int]]] = {}
        for _, shard, epoch, first, count, *_ in msgpack.unpackb(header)[3]:
            ranges.setdefault((shard, epoch), []).append([first, first + count - 1])
        groups = [[shard, epoch, 0, found, []] for (shard, epoch), found in ranges.items()]
        return msgpack.packb([Verb.SETTLE, self.sid, msgpack.unpackb(self.header_incarnation), groups])


@pytest.mark.parametrize("queues", [1, 40])
def test_batch_of_a_thousand_allocates_as_many_objects_as_a_batch_of_one(allocations, monkeypatch, queues):
    direct = Direct(monkeypatch, queues)

    def measured(count: int) -> list[int]:
        """Allocations of: publishing a batch, the worker's turn, deliveries and confirms, and settling."""
        publish = direct.batch(count)
        numbers = []

        def step(action):
            allocations.start()
            result = action()
            numbers.append(allocations.stop())
            return result

        step(lambda: direct.sessions.receive(FD, COUNT, *publish))
        step(lambda: direct.workshop.turn_once(direct.world.now, direct.world.now // MS))
        step(lambda: direct.sessions.pump_all())
        frames = direct.sessions.take_output()
        while (more := direct.quiet()):
            frames += more
        delivered = [header for _, header, _ in frames if msgpack.unpackb(header)[0] == Verb.DELIVER]
        confirmed = [msgpack.unpackb(header) for _, header, _ in frames if msgpack.unpackb(header)[0] == Verb.CONFIRM]
        assert sum(run[4] for header in delivered for run in msgpack.unpackb(header)[3]) == count
        assert confirmed[-1][3] == direct.seq - 1
        settles = [direct.settle_frame(header) for header in delivered]
        step(lambda: direct.sessions.receive(FD, COUNT, settles[0]))
        for settle in settles[1:]:
            direct.sessions.receive(FD, COUNT, settle)
        direct.sessions.take_output()
        step(lambda: direct.workshop.turn_once(direct.world.now, direct.world.now // MS))
        direct.quiet()
        return numbers

    for count in (queues, 1000, queues):
        measured(count)                                 # routes are cached, blocks are there
    assert measured(1) == measured(1000)


def test_allocations_are_counted(allocations):
    allocations.start()
    kept = [bytes(100) for _ in range(1000)]
    assert 1000 <= allocations.stop() < 2100 and len(kept) == 1000
