"""A front-end for tests of a Workshop: it writes link messages (wire/link.pxd) into a Link in private memory and reads what comes back."""

import struct
from typing import Any, NamedTuple

import msgpack

from fastmq.config import Config
from fastmq.net.ring import Link
from fastmq.server.workshop import Workshop
from fastmq.storage.log import Log
from fastmq.wire.link import LinkKind, QueueFlag
from fastmq.wire.verbs import Verb

RING_SIZE = 65536
EPOCH = 7


class Outcome(NamedTuple):
    sid: int
    held: list[tuple[int, int]]
    refused: list[tuple[int, int, int]]         # first, last, code


class Run(NamedTuple):
    epoch: int
    first_n: int
    timestamp_ms: int
    consumer: int
    count: int
    deliveries: int
    size: int
    shard: int
    exchange: bytes


class Delivery(NamedTuple):
    sid: int
    hello: int
    runs: list[Run]
    records: list[Any]                          # [routing key, properties, body]


class Reply(NamedTuple):
    token: int
    code: int
    payload: bytes


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)


def record(key: str, body: bytes) -> bytes:
    return msgpack.packb([key, None, body])


def unpacked(records: bytes) -> list[Any]:
    unpacker = msgpack.Unpacker()
    unpacker.feed(records)
    return list(unpacker)


def parse(kind: int, payload: bytes) -> Any:
    """A message from a worker; of kinds without a shape of their own here the bytes."""
    if kind == LinkKind.L_OUTCOME:
        sid, ranges, refusals = struct.unpack_from("=QII", payload)
        held = [struct.unpack_from("=QQ", payload, 16 + 16 * i) for i in range(ranges)]
        refused = [struct.unpack_from("=QQII", payload, 16 + 16 * ranges + 24 * i)[:3] for i in range(refusals)]
        assert len(payload) == 16 + 16 * ranges + 24 * refusals
        return Outcome(sid, held, refused)
    if kind == LinkKind.L_DELIVER:
        sid, hello, count, names_size, records_size, _, _ = struct.unpack_from("=QIIIIQQ", payload)
        names_at = 40 + 48 * count
        assert len(payload) == names_at + names_size + records_size
        runs = []
        for i in range(count):
            *fields, offset, size, shard = struct.unpack_from("=QQQIIIIIHH", payload, 40 + 48 * i)
            runs.append(Run(*fields, shard, payload[names_at + offset : names_at + offset + size]))
        assert sum(run.size for run in runs) == records_size
        return Delivery(sid, hello, runs, unpacked(payload[names_at + names_size :]))
    if kind == LinkKind.L_REPLY:
        token, code, size = struct.unpack_from("=QII", payload)
        assert len(payload) == 16 + size
        return Reply(token, code, payload[16:])
    return payload


class StandIn:
    """One front-end of a workshop. Every method sends one message; `turn` lets the workshop work and returns what it says."""

    def __init__(self, workshop: Workshop, index: int = 0, ring_size: int = RING_SIZE) -> None:
        self.workshop = workshop
        self.index = index
        self.now_ms = 1_000
        self.link, worker_end = Link.pair(ring_size)
        workshop.attach(index, worker_end)

    def turn(self) -> list[tuple[LinkKind, Any]]:
        """Let the workshop work until nothing is left to do; what came, as (kind, value)."""
        found = []
        quiet = 0
        while quiet < 2:                        # a large message comes and goes in pieces
            self.link.flush_waiting()
            busy = self.workshop.turn_once(self.now_ms * 1_000_000, self.now_ms)
            came = self.read()
            found += came
            quiet = 0 if busy or came or self.link.waiting_bytes or self.workshop.waiting_bytes else quiet + 1
        return found

    def read(self) -> list[tuple[LinkKind, Any]]:
        found = []
        while (message := self.link.receive_message()) is not None:
            found.append((LinkKind(message[0]), parse(message[0], message[2])))
        return found

    def all_of(self, kind: LinkKind) -> list[Any]:
        return [value for found, value in self.turn() if found == kind]

    def publish(self, sid: int, floor: int, entries: list[tuple[int, list[int], int, list[bytes]]], exchange: bytes = b"") -> None:
        """`entries`: (first_seq, queues, shard, records); several queues: one decision."""
        packed, records = b"", b""
        count = 0
        for first_seq, queues, shard, items in entries:
            body = b"".join(items)
            for queue in queues:
                packed += struct.pack("=QQIIIHH", first_seq, queue, len(items), len(records), len(body), shard, 0)
                count += 1
            records += body
        head = struct.pack("=QQIIIIQ", sid, floor, count, len(exchange), len(records), 0, 0)
        self.link.send(LinkKind.L_PUBLISH, 0, head + padded(exchange) + packed + records)

    def declare(self, shard: int, queue: int, flags: int = QueueFlag.QUEUE_DURABLE, token: int = 0) -> None:
        self.request(LinkKind.L_QUEUE_DECLARE, shard, queue, token=token, flags=flags)

    def request(self, kind: LinkKind, shard: int, queue: int = 0, sid: int = 0, token: int = 0, hello: int = 1, flags: int = 0) -> None:
        self.link.send(kind, shard, struct.pack("=QQQII", token, sid, queue, hello, flags))

    def consume(
        self, shard: int, queue: int, sid: int, consumer: int = 1, window: int = 1000, window_bytes: int = 2**26, token: int = 0, hello: int = 1
    ) -> None:
        head = struct.pack("=QQQQIIII", token, sid, queue, window_bytes, hello, consumer, window, 0)
        self.link.send(LinkKind.L_CONSUME, shard, head)

    def cancel(self, shard: int, sid: int, consumer: int = 1, token: int = 0) -> None:
        self.link.send(LinkKind.L_CANCEL, shard, struct.pack("=QQII", token, sid, consumer, 0))

    def settle(self, shard: int, sid: int, ranges: list[tuple[int, int]], epoch: int = EPOCH) -> None:
        body = b"".join(struct.pack("=QQ", *item) for item in ranges)
        self.link.send(LinkKind.L_SETTLE, shard, struct.pack("=QQQII", sid, epoch, 0, len(ranges), 0) + body)

    def end(self, sid: int, forget: bool = False) -> None:
        self.link.send(LinkKind.L_SESSION_END, 0, struct.pack("=QII", sid, forget, 0))

    def topology(self, verb: Verb, sid: int, *fields: Any, token: int = 1) -> None:
        self.tell(verb, sid, "/", *fields, token=token)

    def tell(self, *body: Any, token: int = 0) -> None:
        self.link.send(LinkKind.L_TOPOLOGY, 0, struct.pack("=Q", token) + msgpack.packb(body))

    def hand_back(self, snapshot: list[Any]) -> None:
        self.link.send(LinkKind.L_HANDBACK, 0, msgpack.packb(snapshot))


def make_workshop(
    shards: int = 4, log: Log | None = None, epoch: int = EPOCH, settings: dict[str, Any] | None = None, **options: Any
) -> Workshop:
    return Workshop(epoch, list(range(shards)), Config().to_map() | (settings or {}), log=log or Log(), **options)
