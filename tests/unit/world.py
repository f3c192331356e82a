"""A whole broker and its clients without sockets, processes and clocks: the real protocol cores, driven step by step from one seed.

Front-end (`Sessions`), workers (`Workshop` with shards and a journal in memory), links (`Link.pair`) and clients (`ClientCore`, ZMTP included)
are the code that runs in production; what stands here is only the network and death. Faults: a worker dies (its journal is kept, what it
had not synced and its rings are gone), the front-end dies, a connection is cut and its frames arrive late, among those of the next one, a
client says the HELLO of its connection once more.
"""

import os
import random
from collections import Counter, defaultdict, deque

import msgpack

from fastmq.client.core import ClientCore
from fastmq.config import Config
from fastmq.net.arena import ArenaMemory, ArenaView, make_arena_fd
from fastmq.net.ring import Link
from fastmq.server.sessions import Sessions
from fastmq.server.workshop import Workshop
from fastmq.storage.log import Log, RecordLevel
from fastmq.wire.link import LinkKind
from fastmq.wire.shards import shard_of
from fastmq.wire.verbs import Code, Verb

MS = 1_000_000
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL".ljust(54, b"\0") + b"\0"
GREETING = GREETING[:64].ljust(64, b"\0")
READY = b"\x05READY" + b"\x0bSocket-Type" + (6).to_bytes(4, "big") + b"ROUTER"


class Journal(Log):
    """A log that wants every record; the world takes them from the shards after each turn, as if synced before anything is answered."""

    def __init__(self) -> None:
        super().__init__(RecordLevel.RECORDS_ALL)


class Wire:
    """One connection: the broker's half of ZMTP, in plain Python."""

    def __init__(self, fd: int, number: int) -> None:
        self.address = fd, number
        self.received = b""
        self.greeted = False
        self.pinged = 0
        self.frames: list[bytes] = []
        self.hello: bytes | None = None                                # the last one of a session that the client knew
        self.requests: deque[tuple[bytes, bytes | None]] = deque()     # on their way to the front-end
        self.answers: deque[bytes] = deque()                           # on their way to the client

    def feed(self, data: bytes) -> None:
        """What the client has sent."""
        self.received += data
        if not self.greeted and len(self.received) >= 64:
            self.received = self.received[64:]
            self.greeted = True
            self.answers.append(GREETING + b"\x04" + bytes([len(READY)]) + READY)
        while self.greeted and len(self.received) >= 2:
            flags = self.received[0]
            head = 9 if flags & 2 else 2
            size = int.from_bytes(self.received[1:head], "big")
            if len(self.received) < head or len(self.received) < head + size:
                return
            body, self.received = self.received[head : head + size], self.received[head + size :]
            if flags & 4:
                continue                                               # READY, PONG
            self.frames.append(body)
            if not flags & 1:
                assert len(self.frames) <= 2
                self.requests.append((self.frames[0], self.frames[1] if len(self.frames) == 2 else None))
                verb, sid, *_ = msgpack.unpackb(self.frames[0])
                if verb == Verb.HELLO and sid:
                    self.hello = self.frames[0]
                self.frames = []

    def answer(self, *frames: bytes) -> None:
        data = b""
        for i, body in enumerate(frames):
            more = i + 1 < len(frames)
            data += bytes([more | 2]) + len(body).to_bytes(8, "big") + body if len(body) > 255 else bytes([more, len(body)]) + body
        self.answers.append(data)


class Worker:
    def __init__(self, index: int) -> None:
        self.index = index
        self.workshop: Workshop | None = None
        self.link: Link | None = None                                  # the front-end's end
        self.arena: ArenaMemory | None = None
        self.journal: dict[int, list[bytes]] = defaultdict(list)       # shard -> records


class Client:
    """One client program: it publishes, or consumes and settles."""

    def __init__(self, world: "World", name: str) -> None:
        self.world = world
        self.core = ClientCore(name=name)
        self.wire: Wire | None = None
        self.sent: dict[int, tuple[str, bytes]] = {}                   # sequence -> (destination, body)
        self.refused: dict[int, str] = {}

    def connect(self) -> None:
        self.wire = self.world.accept(self)
        self.core.connected(self.world.now)

    def cut(self) -> None:
        """The connection breaks; some of what was sent on it arrives late."""
        wire, self.wire = self.wire, None
        self.core.disconnected(self.world.now)
        if wire is not None:
            self.world.lost(wire)

    def act(self) -> None:
        """Write what is to be written, read what has come."""
        world = self.world
        if self.wire is None:
            self.connect()
        self.core.run(world.now)
        if self.wire.greeted and world.now - self.wire.pinged > 5000 * MS:
            self.wire.pinged = world.now
            self.wire.answers.append(PING)
        self.wire.feed(self.core.take_output(world.now))
        if self.wire.answers:
            data = self.wire.answers.popleft()
            at = world.rnd.randint(0, len(data))                       # TCP keeps no boundaries
            self.core.feed(data[:at], world.now)
            self.core.feed(data[at:], world.now)
        for sequence, code, *_ in self.core.take_failures():
            assert sequence not in self.refused, f"the outcome of {sequence} came twice"
            self.refused[sequence] = code
        if (why := self.core.why_broken) is not None:
            world.counts["broken: " + why[0]] += 1
            self.cut()


class World:
    """`rule`: one of RULES; all but `designed` break a rule on purpose."""

    RULES = ("designed", "mark", "equal passed over", "equal accepted", "unrecorded")
    WORKERS, SHARDS = 3, 8
    WINDOW = 12
    REGION_SIZE, ARENA_SIZE = 65536, 5 * 65536                         # so small that it is full now and then

    def __init__(self, seed: int, rule: str = "designed") -> None:
        self.rnd = random.Random(seed)
        self.rule = rule
        self.now = 1_000_000 * MS
        self.epoch = 0
        self.accepts: Counter[int] = Counter()
        self.wires: dict[bytes, Wire] = {}                             # by routing id, of the living front-end
        self.late: deque[tuple[Wire, tuple[bytes, bytes | None]]] = deque()
        self.incarnations: dict[bytes, int] = {}                      # as the front-end has told them
        self.raised: Counter[bytes] = Counter()                        # how far the front-end's own are above these, where equal is above
        self.counts: Counter[str] = Counter()
        self.map = [shard % self.WORKERS for shard in range(self.SHARDS)]
        self.config = Config(
            workers=self.WORKERS, shards=self.SHARDS, publish_window_messages=self.WINDOW, publish_window_bytes=1500, ring_size=4096
        )
        self.key = self.rnd.randbytes(16)
        self.workers = [Worker(index) for index in range(self.WORKERS)]
        self.sessions: Sessions | None = None
        self.clients: list[Client] = []
        for worker in self.workers:
            self.start_worker(worker)
        self.start_frontend()

    # ---- names whose shards lie where a test wants them

    def queue_on(self, worker: int, name: str) -> str:
        return next(f"{name}{i}" for i in range(1000) if self.map[shard_of("/", f"{name}{i}", self.SHARDS)] == worker)

    # ---- processes

    def next_epoch(self) -> int:
        self.epoch += 1
        return self.epoch

    def start_worker(self, worker: Worker) -> None:
        own = [shard for shard, owner in enumerate(self.map) if owner == worker.index]
        memfd = make_arena_fd(self.ARENA_SIZE)
        worker.arena = ArenaMemory(memfd)
        os.close(memfd)
        worker.workshop = Workshop(
            self.next_epoch(), own, self.config.to_map(), log=Journal(), topology=worker.index == 0,
            frontends=[0] if self.sessions is not None else [], salt=b"salt",
            arena=worker.arena, region_size=self.REGION_SIZE,
        )
        for shard in own:
            state = worker.workshop.shards[shard]
            state.apply(b"".join(worker.journal[shard]), self.now)
            if self.rule == "unrecorded":                              # the messages are there, but not who sent them
                for sid, *_ in state.dump()["publishers"]:
                    state.handle(0, LinkKind.L_SESSION_END, sid.to_bytes(8, "little") + b"\1" + bytes(7), 0, self.now)
            state.take_effects()
            state.frontend_gone(0, self.now)                           # nobody's session lives through a worker's death
            self.keep(worker, shard)
        if self.sessions is not None:
            self.join(worker)

    def start_frontend(self) -> None:
        self.wires.clear()
        self.late.clear()
        self.incarnations.clear()
        self.raised.clear()
        self.sessions = Sessions(
            self.config, epoch=self.next_epoch(), key=self.key, workers=self.WORKERS, map=self.map, random=self.rnd.randbytes
        )
        self.sessions.tick(self.now)
        for worker in self.workers:
            if worker.workshop is not None:
                self.join(worker)

    def join(self, worker: Worker) -> None:
        frontend_end, worker_end = Link.pair(self.config.ring_size)
        worker.link = frontend_end
        worker.workshop.attach(0, worker_end)
        self.sessions.attach(worker.index, frontend_end, ArenaView(worker.arena.fileno()))

    def kill_worker(self, worker: Worker) -> None:
        worker.workshop = worker.link = None
        self.sessions.detach(worker.index)

    def kill_frontend(self) -> None:
        self.sessions = None
        for worker in self.workers:
            if worker.workshop is not None:
                worker.workshop.detach(0, self.now)
                worker.link = None
                for shard in range(self.SHARDS):
                    if worker.workshop.shards[shard] is not None:
                        self.keep(worker, shard)
        for client in self.clients:
            if client.wire is not None:
                client.wire = None
                client.core.disconnected(self.now)
        self.start_frontend()

    def keep(self, worker: Worker, shard: int) -> None:
        """What a shard recorded is synced."""
        records = worker.workshop.shards[shard].take_records()
        if records:
            worker.journal[shard].append(records)

    # ---- the network

    def accept(self, client: Client) -> Wire:
        fd = 10 + self.rnd.randrange(4) * 10 + self.clients.index(client)
        self.accepts[fd] += 1
        wire = Wire(fd, self.accepts[fd])
        self.wires[wire.address] = wire
        return wire

    def lost(self, wire: Wire) -> None:
        """A prefix of what was on its way arrives late; the front-end hears of the end before or after that."""
        wire.answers.clear()
        requests = list(wire.requests)[: self.rnd.randint(0, len(wire.requests))]
        self.late.extend((wire, request) for request in requests)
        if wire.address in self.wires:
            del self.wires[wire.address]
            self.sessions.connection_lost(*wire.address)

    # ---- steps

    def frontend_reads(self) -> None:
        if not self.sessions.serving:
            return                                                     # it reads nothing before it knows what exists
        if self.late and self.rnd.random() < 0.5:
            self.receive(*self.late.popleft())
            return
        waiting = [wire for wire in self.wires.values() if wire.requests]
        if waiting:
            wire = self.rnd.choice(waiting)
            self.receive(wire, wire.requests.popleft())

    def receive(self, wire: Wire, request: tuple[bytes, bytes | None]) -> None:
        header, records = request
        if self.rule.startswith("equal"):
            self.frontend_writes()                                     # so that `incarnations` is what the front-end has
            verb, sid, incarnation, *fields = msgpack.unpackb(header)
            public = sid[:8]
            if verb == Verb.HELLO and sid and self.incarnations.get(public) == incarnation:
                if self.rule == "equal passed over":
                    return
                self.raised[public] += 1                               # now the front-end takes it to be above
            header = msgpack.packb([verb, sid, incarnation + self.raised[public], *fields])
        self.sessions.receive(*wire.address, header, records)

    def frontend_writes(self) -> None:
        for address, header, records in self.sessions.take_output():
            verb, sid, incarnation, *fields = msgpack.unpackb(header)
            if self.raised[sid]:
                incarnation -= self.raised[sid]
                header = msgpack.packb([verb, sid, incarnation, *fields])
            if verb in (Verb.WELCOME, Verb.RESEND):
                self.incarnations[sid] = incarnation
            wire = self.wires.get(address)
            if wire is not None:
                wire.answer(header, *([] if records is None else [records]))

    def frontend_hears(self, worker: Worker) -> None:
        """One message of a worker."""
        if worker.link is None:
            return
        message = worker.link.receive_message()
        if message is None:
            return
        kind, shard, payload = message
        if self.rule == "mark" and kind == LinkKind.L_OUTCOME:
            payload = late_is_held(payload)
        self.sessions.from_worker(worker.index, kind, shard, payload)

    def worker_turns(self, worker: Worker) -> None:
        """One turn, synced before it is answered; or the worker dies in it."""
        if worker.workshop is None:
            return
        worker.link.flush_waiting()
        worker.workshop.turn_once(self.now, self.now // MS)
        for shard in range(self.SHARDS):
            if worker.workshop.shards[shard] is not None:
                self.keep(worker, shard)

    def settled(self) -> bool:
        """Whether worker 0 and the front-end agree on the topology: only then may one of them die, or both would have forgotten it."""
        first = self.workers[0]
        return first.workshop is not None and first.workshop.topology.ready and self.sessions.requests.view.ready

    def fault(self) -> None:
        kind = self.rnd.choices(("frontend", "cut", "worker", "hello"), (0.02, 0.02, 0.03, 0.02))[0]
        if kind == "hello":
            client = self.rnd.choice(self.clients)
            if client.wire is not None and client.wire.hello is not None:
                self.counts["hello"] += 1
                client.wire.requests.append((client.wire.hello, None))
        elif kind == "cut":
            client = self.rnd.choice(self.clients)
            if client.wire is not None:
                self.counts["cut"] += 1
                client.cut()
        elif kind == "worker":
            worker = self.rnd.choice(self.workers)
            if worker.workshop is not None and (worker.index or self.settled()):
                self.counts["worker"] += 1
                self.kill_worker(worker)
        elif self.settled():
            self.counts["front-end"] += 1
            self.kill_frontend()

    def step(self, faults: bool) -> None:
        self.now += self.rnd.choice((1000, MS // 10, 5 * MS))
        if faults and self.rnd.random() < 0.09:
            self.fault()
            return
        actor = self.rnd.randrange(8)
        if actor < 2:
            self.rnd.choice(self.clients).act()
        elif actor == 2:
            self.frontend_reads()
        elif actor == 3:
            self.frontend_writes()
        elif actor == 4:
            self.worker_turns(self.rnd.choice(self.workers))
        elif actor == 5:
            self.frontend_hears(self.rnd.choice(self.workers))
        elif actor == 6:
            self.sessions.tick(self.now)
            for worker in self.workers:
                if worker.link is not None:
                    worker.link.flush_waiting()
        else:
            worker = self.rnd.choice(self.workers)
            if worker.workshop is None and self.rnd.random() < 0.3:
                self.start_worker(worker)

    def rest(self, until, steps: int = 20000) -> bool:
        """Step without faults until the condition holds; whether it did."""
        for _ in range(steps):
            if until():
                return True
            self.step(False)
        return until()


LATE = Code.LATE
PING = b"\x04\x07\x04PING\0\0"         # a ZMTP command of 7 bytes, no time to live, no context


def late_is_held(payload: bytes) -> bytes:
    """An L_OUTCOME whose LATE refusals are turned into successes: confirm by mark."""
    sid, ranges, refusals = payload[:8], int.from_bytes(payload[8:12], "little"), int.from_bytes(payload[12:16], "little")
    held = payload[16 : 16 + 16 * ranges]
    rest = payload[16 + 16 * ranges :]
    kept = b""
    for i in range(refusals):
        refusal = rest[24 * i : 24 * i + 24]
        if int.from_bytes(refusal[16:20], "little") == LATE:
            held += refusal[:16]
        else:
            kept += refusal
    return sid + (len(held) // 16).to_bytes(4, "little") + (len(kept) // 24).to_bytes(4, "little") + held + kept

