"""Drives a Shard that has a log: what it writes, what survives, and random runs of it."""
from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable
from typing import Any

import msgpack
from shard_driver import EPOCH, SHARD, TINY, Driver, pad8, record, split_records

from fastmq.model.shard import Shard
from fastmq.wire.link import LinkKind

DURABLE, EXCLUSIVE = 1, 2
TRANSIENT = {"persistent": False}


class DurableDriver(Driver):
    """A shard with a log, whose content is `records` and whose positions are bytes."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(record_level=2, **settings)

    def log(self) -> int:
        """Give the log what there is; its position."""
        self.records += self.shard.take_records()
        self.shard.stamp(len(self.records))
        return len(self.records)

    def sync(self) -> None:
        self.shard.durable_up_to(self.log())

    def kept(self) -> dict[int, dict[int, tuple[Any, ...]]]:
        return kept(self.shard)

    def surviving(self) -> dict[int, bytes]:
        """The payloads of the extents that survive."""
        return {}

    def recovered(self) -> Shard:
        self.log()
        other = Shard(SHARD, EPOCH + 1, **self.settings)
        other.apply(self.records, self.now_ns)
        other.recovered()
        while other.pump(self.now_ns):                          # what deleted queues held is given back
            pass
        return other


def is_kept(data: bytes) -> bool:
    properties = msgpack.unpackb(data)[1]
    return properties is None or properties.get("persistent", True)


def extent_messages(number: int, payload: bytes) -> dict[tuple[int, int], tuple[bytes, int, bytes]]:
    """{(queue, sequence): (exchange, timestamp, record)} of an extent (model/extents.pxd)."""
    assert struct.unpack_from("=IIQ", payload) == (1, 0, number)
    found, at = {}, 16
    while at < len(payload):
        queue, seq, timestamp_ms, count, exchange_size, size, zero = struct.unpack_from("=QQQIIII", payload, at)
        assert zero == 0
        at += 40
        exchange = payload[at:at + exchange_size]
        at += len(pad8(exchange))
        for i, data in enumerate(split_records(payload[at:at + size], count)):
            found[queue, seq + i] = exchange, timestamp_ms, data
        at += (size + 7) & ~7
    return found


def kept(shard: Shard, payloads: dict[int, bytes] | None = None) -> dict[int, dict[int, tuple[Any, ...]]]:
    """{queue: {sequence: (exchange, timestamp, record, deliveries, outstanding)}} of what is to survive; `payloads`: of the extents."""
    state = shard.dump()
    found: dict[int, dict[int, tuple[Any, ...]]] = {}
    for number, queue in state["queues"].items():
        if queue["flags"] & (DURABLE | EXCLUSIVE) == DURABLE:
            found[number] = {seq: (*message, deliveries, False) for seq, deliveries, *message in queue["ready"] if is_kept(message[2])}
    for queue, _, _, _, seq, deliveries, *message in state["outstanding"].values():
        if queue in found and is_kept(message[2]):
            found[queue][seq] = (*message, deliveries, True)
    extents = {number: extent_messages(number, payload) for number, payload in (payloads or {}).items()}
    for number, queue in state["queues"].items():
        for first, last, extent, cold in queue["pieces"]:
            for seq in range(first, last + 1):
                if not cold:
                    assert extents[extent][number, seq] == found[number][seq][:3]
                    continue
                assert seq not in found[number], "it is in memory too"
                deliveries = queue["counts"].get(seq, int(seq <= queue["recovered_mark"]))
                found[number][seq] = (*extents[extent][number, seq], deliveries, False)
    return found


def assert_survived(driver: DurableDriver, reached: dict[str, int]) -> Shard:
    other = driver.recovered()
    before, after = driver.kept(), kept(other, driver.surviving())
    assert before.keys() == after.keys()
    for queue, messages in before.items():
        assert messages.keys() == after[queue].keys(), queue
        for seq, (*message, deliveries, outstanding) in messages.items():
            *found, counted, _ = after[queue][seq]
            assert found == message
            if deliveries or outstanding:
                assert counted == deliveries
                reached["counts above 1"] += deliveries > 1
            else:
                assert counted <= 1                             # it may have been delivered
                reached["never delivered"] += counted == 0
        numbers = [state["queues"][queue]["next_seq"] for state in (driver.shard.dump(), other.dump())]
        assert not messages or numbers[1] > max(messages)
        assert numbers[1] <= numbers[0]
    assert {row[0]: row for row in driver.shard.dump()["publishers"]} == {row[0]: row for row in other.dump()["publishers"]}
    cold = sum(queue["cold"] for queue in other.dump()["queues"].values())
    assert cold or other.stats()["live_bytes"] == sum(len(message[2]) for queue in after.values() for message in queue.values())
    return other


def each_seed(part: int, run: Callable[[int, dict[str, int]], None], reached: dict[str, int]) -> None:
    """Random runs of one of the parts into which a test is cut; each thing in `reached` must come about in one of them."""
    seeds = int(os.environ.get("FASTMQ_SEEDS", "40"))
    for seed in range(part * seeds, (part + 1) * seeds):
        try:
            run(seed, reached)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}") from error
    assert all(reached.values()), reached


class Run:
    """One random run, from a seed."""

    def __init__(self, seed: int, driver: DurableDriver | None = None) -> None:
        self.rnd = random.Random(seed)
        self.driver = driver or DurableDriver(**TINY, publishers_max=3)
        self.highest: dict[int, int] = {}
        self.body = 0
        for queue, flags in ((1, DURABLE), (2, DURABLE), (3, 0), (4, DURABLE | EXCLUSIVE)):
            self.driver.declare(queue, flags=flags)

    def publish(self, sid: int) -> None:
        records = []
        for _ in range(self.rnd.randint(1, 8)):
            self.body += 1
            body = b"%05d" % self.body + b"x" * self.rnd.choice([0, 20, 130, 500])
            records.append(record(body, properties=self.rnd.choice([None, None, TRANSIENT, {"n": 1}])))
        first = self.highest.get(sid, 0) + 1
        self.highest[sid] = first + len(records) - 1
        queues = self.rnd.sample([1, 2, 3, 4, 9], self.rnd.choice([1, 1, 2]))
        self.driver.publish(sid, first, queues, records, floor=max(0, first - 20))

    def settle(self) -> None:
        outstanding = self.driver.shard.dump()["outstanding"]
        if outstanding:
            tag = self.rnd.choice(sorted(outstanding))
            how = self.rnd.choice([0, 0, 0, 1, 2, 3])
            self.driver.settle(outstanding[tag][1], ranges=[] if how else [(tag, tag + 3)], exceptions=[(tag, tag, how)] if how else [],
                               epoch=self.driver.shard.dump()["epoch"])

    def event(self, sid: int) -> None:
        queue = self.rnd.randint(1, 4)
        event = self.rnd.randrange(4)
        if event == 0:
            self.driver.end(sid, bye=self.rnd.random() < 0.3)
        elif event == 1:
            self.driver.request(LinkKind.L_QUEUE_PURGE, 0, queue)
        elif event == 2:
            self.driver.request(LinkKind.L_QUEUE_DELETE, 0, queue)
        else:
            self.driver.declare(1, 2, flags=DURABLE)

    def step(self) -> None:
        sid = self.rnd.randint(101, 104)
        action = self.rnd.randrange(12)
        if action < 3:
            self.publish(sid)
        elif action == 3:
            self.driver.consume(sid, self.rnd.randint(1, 2), self.rnd.randint(1, 4), messages=self.rnd.randint(1, 9))
        elif action == 4:
            self.driver.get(sid, self.rnd.randint(1, 4))
        elif action < 8:
            self.settle()
        elif action == 8:
            self.event(sid)
        else:
            if action > 9:
                self.driver.sync()
            self.driver.pump()
        self.driver.told()
        self.driver.log()
