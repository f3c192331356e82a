"""What a shard writes for its log rebuilds what is durable in it, and nothing leaves or is delivered before the log has it."""
from __future__ import annotations

import os
import random
from typing import Any

import msgpack
import pytest
from shard_driver import EPOCH, SHARD, TINY, Driver, record

from fastmq.model.shard import BadRecord, Shard
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


def kept(shard: Shard) -> dict[int, dict[int, tuple[Any, ...]]]:
    """{queue: {sequence: (exchange, timestamp, record, deliveries, outstanding)}} of what is to survive."""
    state = shard.dump()
    found: dict[int, dict[int, tuple[Any, ...]]] = {}
    for number, queue in state["queues"].items():
        if queue["flags"] & (DURABLE | EXCLUSIVE) == DURABLE:
            found[number] = {seq: (*message, deliveries, False) for seq, deliveries, *message in queue["ready"] if is_kept(message[2])}
    for queue, _, _, _, seq, deliveries, *message in state["outstanding"].values():
        if queue in found and is_kept(message[2]):
            found[queue][seq] = (*message, deliveries, True)
    return found


def assert_survived(driver: DurableDriver, reached: dict[str, int]) -> Shard:
    other = driver.recovered()
    before, after = kept(driver.shard), kept(other)
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
    assert other.stats()["live_bytes"] == sum(len(message[2]) for queue in after.values() for message in queue.values())
    return other


class Run:
    """One random run, from a seed."""

    def __init__(self, seed: int) -> None:
        self.rnd = random.Random(seed)
        self.driver = DurableDriver(**TINY, publishers_max=3)
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
            self.driver.settle(outstanding[tag][1], ranges=[] if how else [(tag, tag + 3)], exceptions=[(tag, tag, how)] if how else [])

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


def random_run(seed: int, reached: dict[str, int]) -> None:
    run = Run(seed)
    for _ in range(300):
        run.step()
        if run.rnd.random() < 0.03:
            reached["recovered"] += 1
            run.driver.shard = assert_survived(run.driver, reached)     # and on with the recovered one, whose log goes on
    assert_survived(run.driver, reached)


@pytest.mark.parametrize("part", range(4))
def test_what_is_durable_survives_whatever_happened(part: int) -> None:
    reached = dict.fromkeys(["recovered", "counts above 1", "never delivered"], 0)
    seeds = int(os.environ.get("FASTMQ_SEEDS", "40"))
    for seed in range(part * seeds, (part + 1) * seeds):
        try:
            random_run(seed, reached)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}") from error
    assert all(reached.values()), reached


def test_persistent_message_of_a_durable_queue_is_delivered_and_confirmed_when_the_log_has_it() -> None:
    driver = DurableDriver()
    driver.declare(1, flags=DURABLE)
    driver.declare(2)
    driver.consume(101, 1, 1)
    driver.consume(101, 2, 2)
    driver.publish(102, 1, [1], [record(b"kept")])
    driver.publish(102, 2, [1], [record(b"behind it", properties=TRANSIENT)])
    driver.publish(102, 3, [2], [record(b"elsewhere")])
    effects = driver.shard.take_effects()
    assert len(effects) == 2                                        # one outcome waits for the log, the others do not
    assert [message.record for message in driver.pump().delivered] == [record(b"elsewhere")]
    assert driver.get(103, 1) == (0, [])
    position = driver.log()
    assert not driver.shard.durable_up_to(position - 1)
    assert driver.shard.durable_up_to(position)
    assert [message.record for message in driver.pump().delivered] == [record(b"kept"), record(b"behind it", properties=TRANSIENT)]
    driver.publish(102, 4, [1], [record(b"at once", properties=TRANSIENT)])
    assert [message.record for message in driver.pump().delivered] == [record(b"at once", properties=TRANSIENT)]


def test_records_of_the_log_are_few_where_nothing_is_durable() -> None:
    driver = DurableDriver()
    driver.declare(1)
    driver.declare(2, flags=DURABLE | EXCLUSIVE)
    driver.consume(101, 1, 1)
    driver.consume(101, 2, 2)
    assert driver.records == b""
    driver.publish(102, 1, [1, 2], [record(b"x" * 100)] * 100)
    driver.pump()
    driver.settle(101, up_to=200)
    driver.sync()
    assert len(driver.records) == 40                                # one C_TAKEN


def test_damaged_record_is_refused() -> None:
    driver = DurableDriver()
    driver.declare(1, flags=DURABLE)
    driver.publish(102, 1, [1], [record(b"a"), record(b"b")])
    driver.log()
    whole = driver.records
    for size in range(8, len(whole), 8):
        shard = Shard(SHARD, EPOCH + 1, record_level=2)
        if size != 24:                                              # where the first record ends
            with pytest.raises(BadRecord):
                shard.apply(whole[:size])
