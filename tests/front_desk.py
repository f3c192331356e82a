"""A front-end's sessions without sockets: clients by hand, workers that do as the test says, time that the test moves."""

import mmap
import os
import random
import struct
from collections import defaultdict, deque

import msgpack

from fastmq.config import Config
from fastmq.model.topology_shard import TopologyShard
from fastmq.net.arena import ArenaView, make_arena_fd
from fastmq.net.ring import Link
from fastmq.server.sessions import Sessions
from fastmq.wire.link import LinkKind
from fastmq.wire.shards import shard_of
from fastmq.wire.verbs import Code, Verb

MS = 1_000_000
PUBLISH_HEAD = struct.Struct("<QQIIIIQ")        # LinkPublish: sid, floor, entries, exchange_size, records_size, is_shared, shared_at
PUBLISH_ENTRY = struct.Struct("<QQIIIHH")       # LinkPublishEntry: first_seq, queue, count, offset, size, shard, padding
OUTCOME = struct.Struct("<QII")                 # LinkOutcome: sid, ranges, refusals
DELIVER = struct.Struct("<QIIIIQQ")             # LinkDeliver: sid, hello, runs, names_size, records_size, loan, shared_at
RUN = struct.Struct("<QQQIIIIIHH")              # LinkRun
REQUEST = struct.Struct("<QQQII")               # LinkQueueRequest: token, sid, queue, hello, flags
CONSUME = struct.Struct("<QQQQIIII")            # LinkConsume
COUNTS = struct.Struct("<QQQII")                # LinkCounts: queue, ready, unacknowledged, consumers, affected
REGION = struct.Struct("<QQII")                 # LinkRegion: offset, size, is_warm, padding


def record(key: str = "q", body: bytes = b"x", properties=None) -> bytes:
    return msgpack.packb([key, properties, body])


def sid_of(session: bytes) -> int:
    return int.from_bytes(session[:8], "big")


class Peer:
    """One connection of a client."""

    def __init__(self, desk: "Desk", fd: int = 7, number: int = 1) -> None:
        self.desk, self.address = desk, (fd, number)
        self.session, self.incarnation, self.sequence, self.numbers = b"", 0, 0, 0

    @property
    def sid(self) -> int:
        return sid_of(self.session)

    def send(self, verb, *fields, records=None, session=None, incarnation=None, frames=0) -> None:
        session = self.session if session is None else session
        incarnation = self.incarnation if incarnation is None else incarnation
        header = msgpack.packb([int(verb), session, incarnation, *fields])
        self.desk.sessions.receive(*self.address, header, records, frames)

    def take(self) -> list:
        """What has come: [verb, public half, incarnation, fields...], with records as the last where there are any."""
        self.desk.turn()
        return self.desk.frames.pop(self.address, [])

    def hello(self, session=None, incarnation=None, vhost="/", version=1) -> list:
        """Say HELLO; the answer. After WELCOME this connection is the session's."""
        if session is None:
            session = self.session
        if incarnation is None:
            incarnation = self.incarnation + 1 if session else 0
        self.send(Verb.HELLO, version, vhost, "test", 5, {}, session=session, incarnation=incarnation)
        answers = self.take()
        assert len(answers) == 1, answers
        if answers[0][0] == Verb.WELCOME:
            self.session, self.incarnation = answers[0][3], answers[0][2]
        return answers[0]

    def publish(self, *records: bytes, exchange="", floor=None, first=None, mandatory=False, count=None, incarnation=None) -> None:
        """Publish under the next sequences."""
        first = self.sequence + 1 if first is None else first
        count = len(records) if count is None else count
        floor = first if floor is None else floor
        self.send(Verb.PUBLISH, floor, first, count, exchange, int(mandatory), records=b"".join(records), incarnation=incarnation)
        self.sequence = max(self.sequence, first + count - 1)

    def ask(self, verb, *fields) -> list:
        """Send a request with a number of its own; its answer, with what came before it left for `take`."""
        self.numbers += 1
        number = self.numbers
        self.send(verb, number, *fields)
        for _ in range(6):
            self.desk.turn()
        kept, found = [], None
        for frame in self.desk.frames.pop(self.address, []):
            if frame[0] in (Verb.REPLY, Verb.ERROR) and frame[3] == number:
                assert found is None
                found = frame
            else:
                kept.append(frame)
        self.desk.frames[self.address] = kept
        assert found is not None, f"no answer to {verb!r}; {kept}"
        return found

    def ok(self, verb, *fields):
        """The result of a request that succeeds."""
        answer = self.ask(verb, *fields)
        assert answer[0] == Verb.REPLY, answer
        return answer[4]

    def refused(self, verb, *fields) -> str:
        """The code of a request that is refused."""
        answer = self.ask(verb, *fields)
        assert answer[0] == Verb.ERROR, answer
        assert answer[5]
        return answer[4]


class Desk:
    """Sessions, workers, and what they say to each other. `auto`: shards answer requests at once, as if their queues were empty.

    `region_size`: each worker has an arena, and lends of it a fresh region of this size for each that is handed back; 0: none has.
    """

    ARENA_SIZE = 2**30                          # of which only what is written takes memory
    REGIONS_LENT = 3

    def __init__(self, workers: int = 2, shards: int = 8, attach: bool = True, settings=None, region_size: int = 0, ring_size=2**16) -> None:
        self.config = Config(workers=workers, shards=shards, **(settings or {}))
        self.map = [shard % workers for shard in range(shards)]
        self.now = 1_000_000 * MS
        self.auto = True
        self.epoch = 10
        self.frames: dict[bytes, list] = defaultdict(list)              # by routing id
        self.refuse: set[bytes] = set()                                 # routing ids whose clients do not read
        self.inbox: list[deque] = [deque() for _ in range(workers)]     # (kind, shard, payload) that a worker was sent
        self.ends: list[Link | None] = [None] * workers
        self.region_size, self.ring_size = region_size, ring_size
        self.arenas: list[mmap.mmap | None] = [None] * workers
        self.lent_up_to = [0] * workers                                 # bytes of its arena that a worker has lent so far
        self.t = TopologyShard(1, self.config)
        self.t.begin_handback([])
        events, self.events = Link.pair(2**16)
        self.rnd = random.Random(1)
        self.sessions = Sessions(
            self.config, epoch=3, key=b"k" * 16, workers=workers, map=self.map, events_link=events, random=self.rnd.randbytes
        )
        self.sessions.tick(self.now)
        if attach:
            for worker in range(workers):
                self.attach(worker)
            self.turn()
            self.clear()

    def clear(self) -> None:
        for inbox in self.inbox:
            inbox.clear()

    def attach(self, worker: int) -> None:
        """A new worker."""
        ours, self.ends[worker] = Link.pair(self.ring_size)
        self.inbox[worker].clear()
        if worker == 0:
            self.ends[0].send(LinkKind.L_SNAPSHOT, 0, msgpack.packb(self.t.snapshot()))
        if not self.region_size:
            self.sessions.attach(worker, ours)
            return
        memfd = make_arena_fd(self.ARENA_SIZE)
        self.arenas[worker], self.lent_up_to[worker] = mmap.mmap(memfd, self.ARENA_SIZE), 0
        self.sessions.attach(worker, ours, ArenaView(memfd))
        os.close(memfd)
        for _ in range(self.REGIONS_LENT):
            self.lend_region(worker)

    def lend_region(self, worker: int) -> None:
        self.ends[worker].send(LinkKind.L_REGION, 0, REGION.pack(self.lent_up_to[worker], self.region_size, 0, 0))
        self.lent_up_to[worker] += self.region_size
        assert self.lent_up_to[worker] <= self.ARENA_SIZE // 2, "the other half is for deliveries"

    def kill(self, worker: int) -> None:
        self.ends[worker] = self.arenas[worker] = None
        self.inbox[worker].clear()
        self.sessions.detach(worker)

    def move(self, ms: float) -> None:
        """Some time passes."""
        self.now += int(ms * MS)
        self.sessions.tick(self.now)

    def turn(self) -> None:
        """Everything that is under way arrives, and what answers it by itself is on its way."""
        for _ in range(3):
            self._collect()
            self.work()
            self.sessions.pump_all()
        self._collect()

    def work(self) -> None:
        """The workers' part of that."""
        for worker, end in enumerate(self.ends):
            if end is not None:
                end.flush_waiting()
                while (message := end.receive_message()) is not None:
                    self._work(worker, end, *message)

    def _collect(self) -> None:
        for address, header, records in self.sessions.take_output(self.refuse):
            self.frames[address].append([*msgpack.unpackb(header), *([] if records is None else [records])])

    def _work(self, worker: int, end: Link, kind: int, shard: int, payload: bytes) -> None:
        self.inbox[worker].append((kind, shard, payload))
        if kind == LinkKind.L_TOPOLOGY:
            self._decide(end, payload)
        elif kind == LinkKind.L_REGION_DONE:
            self.lend_region(worker)
        elif kind == LinkKind.L_HANDBACK:
            self.t.handback(0, msgpack.unpackb(payload))
        elif not self.auto:
            return
        elif kind in (LinkKind.L_QUEUE_DECLARE, LinkKind.L_QUEUE_DELETE, LinkKind.L_QUEUE_PURGE, LinkKind.L_GET):
            token, _, queue, _, _ = REQUEST.unpack_from(payload)
            self.reply(worker, token, COUNTS.pack(queue, 0, 0, 0, 0) if kind != LinkKind.L_GET else b"")
        elif kind in (LinkKind.L_CONSUME, LinkKind.L_CANCEL, LinkKind.L_SHARD_COUNTS):
            self.reply(worker, int.from_bytes(payload[:8], "little"))

    def _decide(self, end: Link, payload: bytes) -> None:
        token, request = int.from_bytes(payload[:8], "little"), msgpack.unpackb(payload[8:])
        if isinstance(request[0], str):
            what, subject = request
            records = self.t.forget(subject) if what == "forget" else self.t.unused(subject) if what == "unused" else []
            if what == "claim":
                self.t.claim(subject, 0)
            elif what == "release":
                self.t.release(subject, self.now, 0)
        else:
            records, code, result = self.t.request(0, request[1], request[0], request[2], request[3:], self.now)
        for item in records:
            end.send(LinkKind.L_RECORD, 0, msgpack.packb(item))
        if token:
            self._reply(end, token, msgpack.packb(result), code)

    def _reply(self, end: Link, token: int, payload: bytes, code: int) -> None:
        if token:
            end.send(LinkKind.L_REPLY, 0, struct.pack("<QII", token, code, len(payload)) + payload)

    # ---- what workers say

    def reply(self, worker: int, token: int, payload: bytes = b"", code: int = Code.OK) -> None:
        self._reply(self.ends[worker], token, payload, code)

    def outcome(self, worker: int, sid: int, held=(), refused=()) -> None:
        payload = OUTCOME.pack(sid, len(held), len(refused))
        payload += b"".join(struct.pack("<QQ", *item) for item in held) + b"".join(struct.pack("<QQII", *item, 0) for item in refused)
        self.ends[worker].send(LinkKind.L_OUTCOME, 0, payload)

    def deliver(self, worker: int, sid: int, hello: int, *runs) -> None:
        """Runs are (consumer, first_n, [record...], deliveries, exchange)."""
        names, packed, data = b"", b"", b""
        for consumer, first_n, records, deliveries, exchange in runs:
            joined = b"".join(records)
            packed += RUN.pack(
                self.epoch, first_n, 1700, consumer, len(records), deliveries, len(joined), len(names), len(exchange), worker
            )
            names += exchange.encode()
            data += joined
        padded = names + bytes(-len(names) % 8)
        payload = DELIVER.pack(sid, hello, len(runs), len(names), len(data), 0, 0) + packed + padded + data
        self.ends[worker].send(LinkKind.L_DELIVER, 0, payload)

    def deliver_lent(self, worker: int, sid: int, hello: int, first_n: int, record: bytes, loan: int, at: int) -> None:
        """Deliver one record to consumer 1, from byte `at` of the second half of the worker's arena."""
        at += self.ARENA_SIZE // 2
        self.arenas[worker][at : at + len(record)] = record
        run = RUN.pack(self.epoch, first_n, 1700, 1, 1, 1, len(record), 0, 0, worker)
        self.ends[worker].send(LinkKind.L_DELIVER, 0, DELIVER.pack(sid, hello, 1, 0, len(record), loan, at) + run)

    # ---- what workers were sent

    def sent(self, worker: int, *kinds) -> list[tuple[int, bytes]]:
        """(shard, payload) of the messages of these kinds, which are taken away."""
        found = [(shard, payload) for kind, shard, payload in self.inbox[worker] if kind in kinds]
        self.inbox[worker] = deque(item for item in self.inbox[worker] if item[0] not in kinds)
        return found

    def published(self, worker: int) -> list:
        """The L_PUBLISH messages of a worker: (sid, floor, exchange, [(first_seq, queue, count, shard, records)...])."""
        found = []
        for _, payload in self.sent(worker, LinkKind.L_PUBLISH):
            sid, floor, count, exchange_size, records_size, is_shared, shared_at = PUBLISH_HEAD.unpack_from(payload)
            at = PUBLISH_HEAD.size
            exchange = payload[at : at + exchange_size].decode()
            at += -(-exchange_size // 8) * 8
            records = payload[at + count * PUBLISH_ENTRY.size :]
            assert len(records) == records_size
            if is_shared:
                records_size = PUBLISH_ENTRY.unpack_from(payload, at)[4]
                records = self.arenas[worker][shared_at : shared_at + records_size]
            entries = []
            for i in range(count):
                first, queue, number, offset, size, shard, _ = PUBLISH_ENTRY.unpack_from(payload, at + i * PUBLISH_ENTRY.size)
                assert offset + size <= records_size
                entries.append((first, queue, number, shard, records[offset : offset + size]))
            assert [(entry[0], entry[3]) for entry in entries] == sorted((entry[0], entry[3]) for entry in entries)
            found.append((sid, floor, exchange, entries))
        return found

    # ---- set-ups

    def peer(self, fd: int = 7, hello: bool = True) -> Peer:
        """A client, with a session unless it is not to say HELLO."""
        peer = Peer(self, fd)
        if hello:
            assert peer.hello()[0] == Verb.WELCOME
        return peer

    def queue_on(self, worker: int, peer: Peer, name: str = "q", **options) -> str:
        """Declare a queue that this worker holds; its name."""
        chosen = next(f"{name}{i}" for i in range(1000) if self.map[shard_of("/", f"{name}{i}", len(self.map))] == worker)
        peer.ok(Verb.DECLARE_QUEUE, chosen, options)
        self.clear()
        return chosen

    def queue_id(self, name: str) -> int:
        return self.sessions.requests.view.topology.queue("/", name).id
