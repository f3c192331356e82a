"""What a shard writes for its log rebuilds what is durable in it, and nothing leaves or is delivered before the log has it."""
from __future__ import annotations

import time
from itertools import pairwise

import pytest
from durable_driver import DURABLE, EXCLUSIVE, TRANSIENT, DurableDriver, Run, assert_survived, each_seed
from shard_driver import EPOCH, SHARD, record

from fastmq.model.shard import BadRecord, Shard


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
    each_seed(part, random_run, reached)


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


def recovery_s(idle: int) -> float:
    """The least time of three that 1,000 entries for one queue take, where so many others are idle."""
    driver = DurableDriver()
    for queue in range(1, idle + 2):
        driver.declare(queue, flags=DURABLE)
    ends = [driver.log()]
    for sequence in range(1, 1001):
        driver.publish(101, sequence, [1], [record(b"x")])
        ends.append(driver.log())
    entries = [driver.records[start:end] for start, end in pairwise(ends)]
    assert all(entries)
    times = []
    for _ in range(3):
        other = Shard(SHARD, EPOCH + 1, **driver.settings)
        other.apply(driver.records[: ends[0]])
        started = time.perf_counter()
        for entry in entries:
            other.apply(entry)
        times.append(time.perf_counter() - started)
        assert other.dump()["queues"][1]["ready"][-1][0] == 1000
    return min(times)


def test_recovery_takes_no_longer_beside_many_idle_queues() -> None:
    assert recovery_s(20_000) < 10 * recovery_s(20)                 # it was a hundred times as long
