"""Messages that lie in extents: cold, read back, not written, snapshots of them, and GETs that wait for them."""
from __future__ import annotations

import pytest
from durable_driver import DURABLE, TRANSIENT, assert_survived, each_seed
from extent_driver import AGE_DONE, AGE_MORE, AGE_SPOILED, ExtentDriver, ExtentRun
from shard_driver import NACK, Delivered, record

from fastmq.model.shard import BadRecord
from fastmq.wire.link import LinkKind


def bodies(messages: list[Delivered]) -> list[bytes]:
    return [message.record for message in messages]


def random_run(seed: int, reached: dict[str, int]) -> None:
    run = ExtentRun(seed)
    run.reached = reached
    driver = run.driver
    for _ in range(400):
        run.step()
        if run.rnd.random() < 0.02:
            other = assert_survived(driver, reached)
            if run.rnd.random() < 0.3:
                run.count("recovered from a checkpoint" if driver.blob else "recovered without")
                driver.crash(other)
    driver.crash(assert_survived(driver, reached))
    drain(driver)


def drain(driver: ExtentDriver) -> None:
    """All messages are delivered, in order, and then nothing is left."""
    driver.sync()
    queues = driver.shard.dump()["queues"]
    for queue in queues:
        assert driver.consume(900, queue, queue, messages=3) == 0
    idle = 0
    while idle < 3:
        driver.sync()                                           # marks
        told = driver.pump()
        driver.settle(900, ranges=[(message.tag, message.tag) for message in told.delivered], epoch=driver.shard.dump()["epoch"])
        driver.answer_reads()
        idle = 0 if told.delivered else idle + 1
    assert all(driver.counts(queue)[:2] == (0, 0) for queue in queues)
    driver.shard.begin_snapshot()                               # what is being filled is closed
    while driver.shard.step_snapshot()[0] != AGE_DONE:
        pass
    driver.wishes()
    stats = driver.shard.stats()
    assert (stats["live_bytes"], stats["extents"], stats["gets"], stats["outstanding"]) == (0, 0, 0, 0)
    assert driver.written.keys() <= set(driver.checkpointed)    # freed, but for those that died before they were known


@pytest.mark.parametrize("part", range(4))
def test_what_is_kept_survives_ageing_failures_and_checkpoints_in_order(part: int) -> None:
    reached = dict.fromkeys([
        "recovered from a checkpoint", "recovered without", "counts above 1", "never delivered", "failed", "waiting GET",
        "age 0", "age 1", "snapshot 0", "snapshot 1", "snapshot 2", "snapshot 3",
    ], 0)
    each_seed(part, random_run, reached)


def filled(count: int, *, size: int = 100, **settings: int) -> ExtentDriver:
    """A queue with so many messages that the log has for good."""
    driver = ExtentDriver(**{"age_leave_bytes": 0, "age_least_bytes": 0, **settings})
    driver.declare(1, flags=DURABLE)
    for first in range(1, count + 1, 500):
        last = min(first + 500, count + 1)
        driver.publish(101, first, [1], [record(b"%06d" % n + bytes(size)) for n in range(first, last)], exchange=b"logs")
    driver.sync()
    return driver


def aged(count: int, **settings: int) -> ExtentDriver:
    """The same, all of it cold."""
    driver = filled(count, **settings)
    while driver.age() == AGE_MORE:
        pass
    return driver


def numbers(messages: list[Delivered]) -> list[int]:
    return [int(message.record.split(bytes(9))[0][-6:]) for message in messages]


def test_memory_is_given_back_when_a_queue_ages_and_the_queue_drains_in_order() -> None:
    driver = filled(20_000)
    before = driver.shard.stats()
    assert before["live_bytes"] > 2_000_000
    while driver.age() == AGE_MORE:
        pass
    stats = driver.shard.stats()
    assert (stats["live_bytes"], stats["extents"]) == (0, len(driver.written))
    assert stats["chunk_bytes"] <= before["chunk_bytes"] // 50
    assert driver.counts(1) == (20_000, 0, 0)                   # what is cold is counted
    assert all(len(payload) <= 260_096 for payload in driver.written.values())
    assert sum(map(len, driver.written.values())) < before["live_bytes"] * 1.05
    driver.consume(102, 1, 1, messages=300)
    came: list[int] = []
    most = 0
    while len(came) < 20_000:
        told = driver.pump()
        came += numbers(told.delivered)
        assert {message.exchange for message in told.delivered} <= {b"logs"}
        assert all(message.deliveries == 1 for message in told.delivered)
        driver.settle(102, up_to=1 << 40)
        driver.answer_reads()
        most = max(most, driver.shard.stats()["live_bytes"])
    assert came == list(range(1, 20_001))
    assert most < 3 * 260_096                                   # the one being delivered, and the one behind it
    assert driver.written == {}
    stats = driver.shard.stats()
    assert (stats["live_bytes"], stats["extents"]) == (0, 0)


def test_what_was_read_back_and_is_not_wanted_soon_is_cold_again_when_memory_is_short() -> None:
    driver = aged(5000)
    driver.wishes()
    driver.consume(102, 1, 1, messages=3)
    driver.pump()
    driver.answer_reads()
    driver.pump()
    driver.answer_reads()
    driver.settle(102, exceptions=[(2, 2, NACK)])
    driver.pump()
    driver.cancel(102, 1)
    driver.settle(102, exceptions=[(4, 4, NACK)])               # the second one: delivered twice, and in the heap
    before, written = driver.shard.stats()["live_bytes"], dict(driver.written)
    assert before > 200_000
    while driver.age() == AGE_MORE:
        pass
    assert driver.shard.stats()["live_bytes"] < 2 * 120         # what is outstanding
    assert driver.written == written                            # nothing had to be written for that
    assert driver.counts(1) == (4998, 2, 0)
    assert_survived(driver, {"counts above 1": 0, "never delivered": 0})
    driver.consume(103, 1, 1, messages=10_000, size=10**9)
    came: list[Delivered] = []
    for _ in range(10):
        came += driver.pump().delivered
        driver.answer_reads()
    assert numbers(came) == [2, *range(4, 5001)]
    assert [message.deliveries for message in came[:3]] == [3, 1, 1]


def test_what_is_published_after_a_queue_aged_waits_for_what_is_cold() -> None:
    driver = aged(3)
    driver.publish(101, 4, [1], [record(b"%06d" % 4 + bytes(100))])
    driver.sync()
    driver.consume(102, 1, 1)
    assert driver.pump().delivered == []
    driver.answer_reads()
    assert numbers(driver.pump().delivered) == [1, 2, 3, 4]


def test_message_that_is_not_persistent_keeps_its_place_among_cold_ones() -> None:
    driver = filled(2)
    driver.publish(101, 3, [1], [record(b"%06d" % 3 + bytes(100), properties=TRANSIENT)])
    driver.publish(101, 4, [1], [record(b"%06d" % 4 + bytes(100))])
    driver.sync()
    while driver.age() == AGE_MORE:
        pass
    assert [row[0] for row in driver.shard.dump()["queues"][1]["ready"]] == [3]
    driver.consume(102, 1, 1, messages=2)
    assert driver.pump().delivered == []
    driver.answer_reads()
    came = driver.pump().delivered
    driver.settle(102, up_to=1 << 40)
    assert numbers(came + driver.pump().delivered) == [1, 2, 3, 4]


def test_hidden_message_does_not_age() -> None:
    driver = filled(2)
    driver.publish(101, 3, [1], [record(b"%06d" % 3)])
    while driver.age() == AGE_MORE:
        pass
    queue = driver.shard.dump()["queues"][1]
    assert ([row[0] for row in queue["ready"]], queue["cold"]) == ([3], 2)
    driver.begin()
    assert driver.step() == 2                                   # AGE_WAITS
    driver.sync()
    while driver.begun is not None:
        driver.step()
    assert driver.shard.dump()["queues"][1]["cold"] == 3


def test_get_waits_for_a_cold_message_and_is_answered_when_it_has_come() -> None:
    driver = aged(3)
    assert [driver.get(sid, 1) for sid in (102, 103, 102, 102)] == [None] * 4
    assert driver.shard.stats()["gets"] == 4
    driver.answer_reads()
    assert [code for code, _ in driver.answered.values()] == [0] * 4
    assert [numbers(messages) for _, messages in driver.answered.values()] == [[1], [2], [3], []]
    stats = driver.shard.stats()
    assert (stats["gets"], stats["sessions"]) == (0, 2)


def test_waiting_get_goes_with_its_session_and_is_answered_when_its_queue_goes() -> None:
    driver = aged(3)
    assert driver.get(102, 1) is None
    assert driver.get(103, 1) is None
    driver.end(102)
    assert driver.shard.stats()["sessions"] == 1
    code, counts = driver.request(LinkKind.L_QUEUE_DELETE, 0, 1)
    assert (code, counts.affected) == (0, 3)
    assert [code for code, _ in driver.answered.values()] == [10]       # NO_QUEUE
    stats = driver.shard.stats()
    assert (stats["gets"], stats["sessions"]) == (0, 0)


def test_waiting_get_is_answered_with_nothing_when_the_queue_is_purged() -> None:
    driver = aged(3)
    assert driver.get(102, 1) is None
    assert driver.request(LinkKind.L_QUEUE_PURGE, 0, 1)[1].affected == 3
    assert list(driver.answered.values()) == [(0, [])]
    driver.pump()
    driver.answer_reads()                                       # what was asked for is not needed any more
    assert (driver.shard.stats()["extents"], driver.written) == (0, {})
    assert driver.recovered().take_counts() == {1: (0, 0, 0)}


def test_too_many_waiting_gets_are_refused() -> None:
    driver = aged(3)
    for _ in range(4096):
        assert driver.get(102, 1) is None
    assert driver.get(102, 1) == (19, None)                     # LIMIT


def test_extent_that_was_not_written_gives_its_messages_back() -> None:
    driver = aged(20, extent_size_max=1000)
    driver.wishes()
    extents = sorted(driver.written)
    assert len(extents) > 2
    lost = extents[1]
    driver.shard.refuse_extent(lost, driver.written.pop(lost))
    queue = driver.shard.dump()["queues"][1]
    back = [row[0] for row in queue["ready"]]
    assert len(back) == 20 - queue["cold"] > 0
    driver.consume(102, 1, 1)
    came: list[int] = []
    for _ in range(10):
        came += numbers(driver.pump().delivered)
        driver.answer_reads()
    assert came == list(range(1, 21))


def test_snapshot_is_spoiled_by_an_extent_that_was_not_written() -> None:
    driver = filled(20)
    driver.begin()
    while not driver.written:
        driver.step()
    ((number, payload),) = driver.written.items()
    driver.shard.refuse_extent(number, payload)
    assert driver.step() == AGE_SPOILED
    driver.checkpoint()
    assert len(driver.recovered().dump()["queues"][1]["ready"]) == 0
    assert driver.recovered().take_counts()[1][0] == 20


def test_snapshot_leaves_in_memory_what_consumers_want_next() -> None:
    driver = filled(20, age_leave_bytes=500)
    driver.consume(102, 1, 1, messages=2)
    driver.pump()
    driver.checkpoint()
    queue = driver.shard.dump()["queues"][1]
    assert [row[0] for row in queue["ready"]] == [3, 4, 5, 6]
    assert queue["cold"] == 14
    assert driver.recovered().dump()["queues"][1]["cold"] == 20
    driver.settle(102, ranges=[(1, 2)])
    assert numbers(driver.pump().delivered) == [3, 4]           # nothing had to be read for them


def test_checkpoint_makes_the_log_before_it_needless() -> None:
    driver = filled(1000)
    driver.consume(102, 1, 1, messages=10)
    driver.pump()
    driver.settle(102, ranges=[(1, 2), (5, 5)], exceptions=[(8, 8, NACK)])
    driver.pump()
    driver.checkpoint()
    assert len(driver.blob) < 1000
    reached = {"counts above 1": 0, "never delivered": 0}
    assert_survived(driver, reached)
    driver.settle(102, ranges=[(3, 4), (9, 9)])
    driver.end(102)
    driver.publish(101, 1001, [1], [record(b"behind")])
    other = assert_survived(driver, reached)
    assert other.take_counts()[1][0] == 1000 - 6 + 1
    assert reached["counts above 1"]


def test_large_record_has_an_extent_of_its_own() -> None:
    driver = ExtentDriver(age_leave_bytes=0, age_least_bytes=0)
    driver.declare(1, flags=DURABLE)
    data = [record(bytes([n]) * size) for n, size in enumerate([10, 1_000_000, 10])]
    driver.publish(101, 1, [1], data)
    driver.sync()
    while driver.age() == AGE_MORE:
        pass
    assert [len(payload) > 260_096 for payload in driver.written.values()] == [False, True, False]
    driver.consume(102, 1, 1, size=10**9)
    came = []
    for _ in range(5):
        came += bodies(driver.pump().delivered)
        driver.answer_reads()
    assert came == data


@pytest.mark.parametrize("damage", ["shorter", "another version", "record"])
def test_extent_that_does_not_hold_what_it_has_to_is_refused(damage: str) -> None:
    driver = aged(20, extent_size_max=1000)
    driver.consume(102, 1, 1)
    driver.pump()
    driver.wishes()
    number = driver.reads.popleft()
    payload = bytearray(driver.written[number])
    if damage == "shorter":
        del payload[-8:]
    elif damage == "another version":
        payload[0] = 2
    else:
        payload[16 + 40 + 8] = 0xc1
    with pytest.raises(BadRecord):
        driver.shard.give_extent(number, bytes(payload))


def test_queues_that_share_an_extent_are_read_back_each_for_itself() -> None:
    driver = ExtentDriver(age_leave_bytes=0, age_least_bytes=0)
    driver.declare(1, 2, flags=DURABLE)
    driver.publish(101, 1, [1, 2], [record(b"shared")] * 3)
    driver.sync()
    while driver.age() == AGE_MORE:
        pass
    assert len(driver.written) == 1
    driver.consume(102, 1, 1)
    driver.pump()
    driver.answer_reads()
    assert bodies(driver.pump().delivered) == [record(b"shared")] * 3
    assert driver.shard.dump()["queues"][2]["cold"] == 3
    driver.settle(102, up_to=1 << 40)
    driver.wishes()
    assert len(driver.written) == 1                             # the other queue's are in it
    driver.request(LinkKind.L_QUEUE_PURGE, 0, 2)
    driver.pump()
    driver.wishes()
    assert driver.written == {}
