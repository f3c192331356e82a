"""Drives a Shard from tests: link messages out of plain values, and effects back into them."""
from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgpack

from fastmq.model.shard import Shard
from fastmq.wire.link import LinkKind

EPOCH = 7
SHARD = 3
TINY: dict[str, Any] = {          # limits so small that growth, wrap-around and compaction happen in every run
    "chunk_size_max": 512, "ring_block_shift": 2, "span_free": 4, "delivery_size_max": 300, "pump_count_max": 7,
    "compact_slack_bytes": 0,
}
ACK, NACK, REJECT, RELEASE = 0, 1, 2, 3


class Delivered(NamedTuple):
    """One message as a front-end is told of it."""

    frontend: int
    sid: int
    hello: int
    consumer: int
    epoch: int
    tag: int
    deliveries: int
    exchange: bytes
    timestamp_ms: int
    record: bytes


class Counts(NamedTuple):
    queue: int
    ready: int
    unacknowledged: int
    consumers: int
    affected: int


@dataclass
class Told:
    """All effects of some steps, decoded."""

    held: list[tuple[int, int, int, int]] = field(default_factory=list)             # frontend, sid, first, last
    refused: list[tuple[int, int, int, int, int]] = field(default_factory=list)     # frontend, sid, first, last, code
    delivered: list[Delivered] = field(default_factory=list)
    deliveries: list[tuple[int, int]] = field(default_factory=list)                 # records of each L_DELIVER, bytes of them
    runs: int = 0
    replies: list[tuple[int, int, int, Any]] = field(default_factory=list)          # frontend, token, code, Counts or messages
    cancelled: list[tuple[int, int, int, int]] = field(default_factory=list)        # frontend, sid, consumer, code
    unused: list[tuple[int, int, int]] = field(default_factory=list)                # frontend, sid, queue


def pad8(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)


def record(body: bytes, key: str = "k", properties: dict[str, Any] | None = None) -> bytes:
    return msgpack.packb([key, properties, body])


def split_records(data: bytes, count: int) -> list[bytes]:
    unpacker = msgpack.Unpacker(max_buffer_size=len(data) + 1)
    unpacker.feed(data)
    found, at = [], 0
    for _ in range(count):
        unpacker.skip()
        found.append(data[at:unpacker.tell()])
        at = unpacker.tell()
    assert at == len(data)
    return found


class Entry(NamedTuple):
    """Part of a publish: these records, with sequences from `first`, to these queues."""

    first: int
    queues: Sequence[int]
    records: Sequence[bytes]
    shard: int = SHARD


def publish_message(sid: int, floor: int, entries: Iterable[Entry], exchange: bytes = b"") -> bytes:
    table, records, rows = b"", b"", 0
    for entry in entries:
        data = b"".join(entry.records)
        for queue in entry.queues:
            table += struct.pack("=QQIIIHH", entry.first, queue, len(entry.records), len(records), len(data), entry.shard, 0)
            rows += 1
        records += data
    return struct.pack("=QQIIIIQ", sid, floor, rows, len(exchange), len(records), 0, 0) + pad8(exchange) + table + records


def settle_message(sid: int, epoch: int, up_to: int, ranges: Sequence[tuple[int, int]],
                   exceptions: Sequence[tuple[int, int, int]]) -> bytes:
    return (struct.pack("=QQQII", sid, epoch, up_to, len(ranges), len(exceptions))
            + b"".join(struct.pack("=QQ", *pair) for pair in ranges)
            + b"".join(struct.pack("=QQII", *row, 0) for row in exceptions))


def decode_delivery(frontend: int, payload: bytes, told: Told) -> list[Delivered]:
    sid, hello, runs, names_size, records_size, _, _ = struct.unpack_from("=QIIIIQQ", payload)
    names_at = 40 + 48 * runs
    at = names_at + names_size
    assert len(payload) == at + records_size
    found: list[Delivered] = []
    for i in range(runs):
        epoch, tag, timestamp_ms, consumer, count, deliveries, size, name_at, name_size, shard = struct.unpack_from(
            "=QQQIIIIIHH", payload, 40 + 48 * i)
        assert shard == SHARD
        assert count > 0
        exchange = payload[names_at + name_at:names_at + name_at + name_size]
        for n, data in enumerate(split_records(payload[at:at + size], count)):
            found.append(Delivered(frontend, sid, hello, consumer, epoch, tag + n, deliveries, exchange, timestamp_ms, data))
        at += size
    assert at == len(payload)
    told.runs += runs
    return found


def decode(effects: list[tuple[int, int, int, bytes]]) -> Told:
    told = Told()
    for frontend, kind, shard, payload in effects:
        assert shard == SHARD
        if kind == LinkKind.L_OUTCOME:
            sid, ranges, refusals = struct.unpack_from("=QII", payload)
            assert len(payload) == 16 + 16 * ranges + 24 * refusals
            told.held += [(frontend, sid, *struct.unpack_from("=QQ", payload, 16 + 16 * i)) for i in range(ranges)]
            told.refused += [(frontend, sid, *struct.unpack_from("=QQI", payload, 16 + 16 * ranges + 24 * i))
                             for i in range(refusals)]
        elif kind == LinkKind.L_DELIVER:
            messages = decode_delivery(frontend, payload, told)
            told.delivered += messages
            told.deliveries.append((len(messages), sum(len(message.record) for message in messages)))
        elif kind == LinkKind.L_REPLY:
            token, code, size = struct.unpack_from("=QII", payload)
            assert len(payload) == 16 + size
            value: Any = None
            if size == 32:
                value = Counts(*struct.unpack_from("=QQQII", payload, 16))
            elif size:
                value = decode_delivery(frontend, payload[16:], told)
            told.replies.append((frontend, token, code, value))
        elif kind == LinkKind.L_CANCELLED:
            told.cancelled.append((frontend, *struct.unpack("=QII", payload)))
        elif kind == LinkKind.L_UNUSED:
            _, sid, queue, _, _ = struct.unpack("=QQQII", payload)
            told.unused.append((frontend, sid, queue))
        else:
            raise AssertionError(f"kind {kind}")
    return told


class Driver:
    """One shard, its clock, and the records of everything that happened to it."""

    def __init__(self, **settings: Any) -> None:
        self.settings = {"record_level": 1, **settings}
        self.shard = Shard(SHARD, EPOCH, **self.settings)
        self.now_ms = 1_000_000
        self.now_ns = 5_000_000_000
        self.records = b""
        self.token = 0

    def send(self, kind: LinkKind, payload: bytes, frontend: int = 0) -> None:
        self.shard.handle(frontend, kind, payload, self.now_ms, self.now_ns)

    def told(self) -> Told:
        """Everything said since the last call, without a pump."""
        self.records += self.shard.take_records()
        return decode(self.shard.take_effects())

    def pump(self) -> Told:
        """Everything said since the last call, and pumps until there is nothing more to do."""
        effects = self.shard.take_effects()
        for _ in range(100_000):
            more = self.shard.pump(self.now_ns)
            effects += self.shard.take_effects()
            if not more:
                break
        else:
            raise AssertionError("pump finds no end")
        self.records += self.shard.take_records()
        return decode(effects)

    def request(self, kind: LinkKind, sid: int, queue: int, *, hello: int = 1, flags: int = 0, frontend: int = 0) -> Any:
        """(code, value) of a queue's request."""
        self.token += 1
        self.send(kind, struct.pack("=QQQII", self.token, sid, queue, hello, flags), frontend)
        return self.answer(frontend)

    def answer(self, frontend: int) -> Any:
        """The reply to the request just sent; what else was said is kept in `last`."""
        self.last = self.told()
        ((where, token, code, value),) = self.last.replies
        assert (where, token) == (frontend, self.token)
        return code, value

    def declare(self, *queues: int, flags: int = 0) -> None:
        for queue in queues:
            assert self.request(LinkKind.L_QUEUE_DECLARE, 0, queue, flags=flags)[0] == 0

    def publish(self, sid: int, first: int, queues: Sequence[int], records: Sequence[bytes], *, floor: int = 0,
                exchange: bytes = b"", frontend: int = 0) -> None:
        self.send(LinkKind.L_PUBLISH, publish_message(sid, floor, [Entry(first, queues, records)], exchange), frontend)

    def consume(self, sid: int, consumer: int, queue: int, *, messages: int = 1000, size: int = 10**6, hello: int = 1,
                exclusive: bool = False, frontend: int = 0) -> int:
        self.token += 1
        self.send(LinkKind.L_CONSUME, struct.pack("=QQQQIIII", self.token, sid, queue, size, hello, consumer, messages, exclusive),
                  frontend)
        code, _ = self.answer(frontend)
        assert isinstance(code, int)
        return code

    def cancel(self, sid: int, consumer: int, *, frontend: int = 0) -> int:
        self.token += 1
        self.send(LinkKind.L_CANCEL, struct.pack("=QQII", self.token, sid, consumer, 0), frontend)
        code, _ = self.answer(frontend)
        assert isinstance(code, int)
        return code

    def get(self, sid: int, queue: int, *, hello: int = 1, frontend: int = 0) -> Any:
        return self.request(LinkKind.L_GET, sid, queue, hello=hello, frontend=frontend)

    def settle(self, sid: int, *, up_to: int = 0, ranges: Sequence[tuple[int, int]] = (),
               exceptions: Sequence[tuple[int, int, int]] = (), epoch: int = EPOCH, frontend: int = 0) -> None:
        self.send(LinkKind.L_SETTLE, settle_message(sid, epoch, up_to, ranges, exceptions), frontend)

    def end(self, sid: int, *, bye: bool = False, frontend: int = 0) -> None:
        self.send(LinkKind.L_SESSION_END, struct.pack("=QII", sid, bye, 0), frontend)

    def attach(self, queues: dict[int, int]) -> None:
        self.send(LinkKind.L_ATTACH_SHARD, struct.pack("=II", len(queues), 0)
                  + b"".join(struct.pack("=QIHH", queue, flags, SHARD, 0) for queue, flags in queues.items()))

    def counts(self, queue: int) -> tuple[int, int, int]:
        """(ready, unacknowledged, consumers)."""
        return self.shard.take_counts()[queue]

    def rebuilt(self) -> Shard:
        """A second shard, made from the records."""
        self.records += self.shard.take_records()
        other = Shard(SHARD, EPOCH, **self.settings)
        other.apply(self.records, self.now_ns)
        return other
