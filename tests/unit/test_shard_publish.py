"""Publishing into a shard: decisions, what was decided before, fan-out, publishers that are forgotten."""
from __future__ import annotations

import pytest
from shard_driver import SHARD, Driver, Entry, publish_message, record

from fastmq.wire.link import LinkKind
from fastmq.wire.verbs import Code

SID = 11


def bodies(first: int, count: int) -> list[bytes]:
    return [record(b"%d" % n) for n in range(first, first + count)]


def ready(driver: Driver, queue: int) -> list[bytes]:
    return [message[4] for message in driver.shard.dump()["queues"][queue]["ready"]]


@pytest.fixture
def driver() -> Driver:
    made = Driver()
    made.declare(1, 2)
    return made


def test_published_records_are_held_in_order_as_they_came(driver: Driver) -> None:
    records = [record(b"x" * n, key="k" * n, properties={"headers": {"a": [1, "b"]}} if n % 2 else None) for n in range(200)]
    driver.publish(SID, 1, [1], records, exchange=b"logs")
    told = driver.told()
    assert (told.held, told.refused) == ([(0, SID, 1, 200)], [])
    assert ready(driver, 1) == records
    assert {message[2:4] for message in driver.shard.dump()["queues"][1]["ready"]} == {(b"logs", driver.now_ms)}


def test_publish_to_a_queue_that_is_not_there_is_refused_in_all_its_queues(driver: Driver) -> None:
    driver.publish(SID, 1, [1, 99], bodies(1, 3))
    told = driver.told()
    assert (told.held, told.refused) == ([], [(0, SID, 1, 3, Code.NO_QUEUE)])
    assert driver.counts(1) == (0, 0, 0)


def test_publish_sent_again_is_confirmed_and_not_doubled(driver: Driver) -> None:
    driver.publish(SID, 1, [1], bodies(1, 5))
    driver.publish(SID, 3, [1], bodies(3, 5))
    told = driver.told()
    assert (told.held, told.refused) == ([(0, SID, 1, 5), (0, SID, 3, 7)], [])
    assert ready(driver, 1) == bodies(1, 7)


def test_refused_publish_sent_again_is_late_even_where_the_queue_now_exists(driver: Driver) -> None:
    driver.publish(SID, 1, [99], bodies(1, 2))
    driver.publish(SID, 3, [1], bodies(3, 1))
    driver.declare(99)
    driver.publish(SID, 1, [99], bodies(1, 2))
    told = driver.told()
    assert (told.held, told.refused) == ([], [(0, SID, 1, 2, Code.LATE)])
    assert driver.counts(99) == (0, 0, 0)


def test_publish_that_overlaps_what_was_decided_is_answered_part_by_part(driver: Driver) -> None:
    driver.publish(SID, 2, [1], bodies(2, 2))           # taken 2, 3
    driver.publish(SID, 4, [99], bodies(4, 1))          # refused 4
    driver.publish(SID, 6, [1], bodies(6, 1))           # 5 went elsewhere; taken 6
    driver.told()
    driver.publish(SID, 1, [1], bodies(1, 8))
    told = driver.told()
    assert told.held == [(0, SID, 2, 3), (0, SID, 6, 8)]
    assert told.refused == [(0, SID, 1, 1, Code.LATE), (0, SID, 4, 5, Code.LATE)]
    assert ready(driver, 1) == [*bodies(2, 2), *bodies(6, 3)]


def test_fan_out_of_one_publish_is_one_decision_with_one_outcome(driver: Driver) -> None:
    driver.publish(SID, 1, [1, 2], bodies(1, 4))
    assert driver.told().held == [(0, SID, 1, 4)]
    assert ready(driver, 1) == ready(driver, 2) == bodies(1, 4)


def test_entries_of_other_shards_are_passed_over(driver: Driver) -> None:
    driver.send(LinkKind.L_PUBLISH, publish_message(SID, 1, [Entry(1, [1], bodies(1, 1)), Entry(2, [1], bodies(2, 1), SHARD + 1),
                                                             Entry(3, [1], bodies(3, 1))]))
    assert driver.told().held == [(0, SID, 1, 1), (0, SID, 3, 3)]
    assert ready(driver, 1) == [*bodies(1, 1), *bodies(3, 1)]


def test_outcomes_of_single_messages_merge_to_one_range_while_nobody_else_publishes(driver: Driver) -> None:
    for seq in range(1, 101):
        driver.publish(SID, seq, [1 + seq % 2], bodies(seq, 1))
    assert driver.told().held == [(0, SID, 1, 100)]


def test_taken_ranges_are_adjacent_merged_and_trimmed_by_the_floor(driver: Driver) -> None:
    for seq in (1, 2, 3, 5, 7, 8, 11):
        driver.publish(SID, seq, [1], bodies(seq, 1))
    assert driver.shard.dump()["publishers"] == [(SID, 0, 11, [(1, 3), (5, 5), (7, 8), (11, 11)])]
    driver.publish(SID, 12, [1], bodies(12, 1), floor=8)
    assert driver.shard.dump()["publishers"] == [(SID, 8, 12, [(8, 8), (11, 12)])]


def test_every_second_sequence_here_costs_one_range_each_and_all_are_found_again(driver: Driver) -> None:
    for seq in range(1, 4000, 2):
        driver.publish(SID, seq, [1], bodies(seq, 1), floor=max(1, seq - 1000))
    ranges = driver.shard.dump()["publishers"][0][3]
    assert ranges == [(seq, seq) for seq in range(2999, 4000, 2)]
    driver.told()
    driver.publish(SID, 3000, [1], bodies(3000, 999), floor=2999)
    told = driver.told()
    assert sum(last - first + 1 for _, _, first, last in told.held) == 499 + 0
    assert {row[4] for row in told.refused} == {Code.LATE}


def test_idle_publisher_is_forgotten_after_its_time_and_a_busy_one_is_not(driver: Driver) -> None:
    driver = Driver(publisher_keep_ns=100)
    driver.declare(1)
    driver.publish(11, 1, [1], bodies(1, 1))
    driver.now_ns += 60
    driver.publish(12, 1, [1], bodies(1, 1))
    driver.now_ns += 60
    driver.shard.tick(driver.now_ns)
    assert [row[0] for row in driver.shard.dump()["publishers"]] == [12]


def test_longest_idle_publisher_makes_room_for_a_new_one() -> None:
    driver = Driver(publishers_max=2)
    driver.declare(1)
    for sid, seq in ((11, 1), (12, 1), (11, 2), (13, 1)):
        driver.publish(sid, seq, [1], bodies(seq, 1))
    assert [row[0] for row in driver.shard.dump()["publishers"]] == [11, 13]


def test_bye_forgets_the_publisher_and_an_ended_session_does_not(driver: Driver) -> None:
    driver.publish(SID, 1, [1], bodies(1, 1))
    driver.end(SID)
    driver.shard.frontend_gone(0, driver.now_ns)
    assert [row[0] for row in driver.shard.dump()["publishers"]] == [SID]
    driver.end(SID, bye=True)
    assert driver.shard.dump()["publishers"] == []


@pytest.mark.parametrize("size", [0, 1, 255, 256, 65535, 65536, 200_000])
def test_body_of_any_size_comes_back_as_it_was(driver: Driver, size: int) -> None:
    records = [record(b"a"), record(b"x" * size), record(b"b")]
    driver.publish(SID, 1, [1, 2], records)
    driver.consume(SID, 1, 2)
    told = driver.pump()
    assert [message.record for message in told.delivered] == ready(driver, 1) == records


@pytest.mark.parametrize("damage", [b"", b"\x93", b"\xc1", b"\x93\xa1k\xc0\xc4\xff", b"\x93\xa1k\xc0\xc6\xff\xff\xff\xff", b"\x92\xa0\xc0"])
def test_records_that_are_none_are_refused_and_nothing_is_taken(driver: Driver, damage: bytes) -> None:
    driver.publish(SID, 1, [1], [record(b"good"), damage])
    told = driver.told()
    assert (told.held, told.refused) == ([], [(0, SID, 1, 2, Code.BAD_REQUEST)])
    assert driver.counts(1) == (0, 0, 0)
