"""Settling: up_to, ranges and exceptions, what is stale, and work that hostile numbers cannot raise."""
from __future__ import annotations

import time

import pytest
from shard_driver import EPOCH, NACK, REJECT, RELEASE, Driver, record

from fastmq.wire.link import LinkKind

PUBLISHER, A, B = 11, 12, 13
MANY = 2**64 - 1


def outstanding(count: int, *, sessions: tuple[int, ...] = (A,), **settings: int) -> Driver:
    """A driver with `count` messages outstanding at the sessions in turn."""
    driver = Driver(**settings)
    driver.declare(1)
    for sid in sessions:
        driver.consume(sid, 1, 1, messages=65535)
    for seq in range(1, count + 1):
        driver.publish(PUBLISHER, seq, [1], [record(b"%d" % seq)])
        if len(sessions) > 1:
            driver.pump()
    driver.pump()
    return driver


def tags(driver: Driver, sid: int = A) -> list[int]:
    return driver.shard.dump()["sessions"].get(sid, {"outstanding": []})["outstanding"]


@pytest.mark.parametrize(("settled", "left", "stale"), [
    ({"up_to": 4}, [5, 6, 7, 8], 0),
    ({"ranges": [(2, 3), (6, 6)]}, [1, 4, 5, 7, 8], 0),
    ({"up_to": 3, "ranges": [(5, 6)]}, [4, 7, 8], 0),
    ({"ranges": [(7, 12)]}, [1, 2, 3, 4, 5, 6], 4),
    ({"ranges": [(3, 2)]}, [1, 2, 3, 4, 5, 6, 7, 8], 1),
    ({"ranges": [(0, 0)]}, [1, 2, 3, 4, 5, 6, 7, 8], 1),
    ({"ranges": [(2, 2), (2, 2)]}, [1, 3, 4, 5, 6, 7, 8], 1),
    ({"up_to": MANY}, [], 0),
    ({"ranges": [(1, 2**63)]}, [], 65536),
    ({"ranges": [(0, MANY)]}, [], 65536),
    ({"up_to": 4, "epoch": EPOCH - 1}, [1, 2, 3, 4, 5, 6, 7, 8], 1),
    ({"ranges": [(1, 4)], "epoch": EPOCH + 1}, [1, 2, 3, 4, 5, 6, 7, 8], 4),
])
def test_settlement_touches_what_it_names(settled: dict, left: list[int], stale: int) -> None:
    driver = outstanding(8)
    driver.settle(A, **settled)
    assert tags(driver) == left
    assert driver.counts(1)[:2] == (0, len(left))
    assert driver.shard.stats()["stale_settles"] == stale


def test_exception_below_up_to_is_heeded() -> None:
    driver = outstanding(6)
    driver.settle(A, up_to=6, exceptions=[(2, 3, NACK), (5, 5, REJECT), (6, 6, RELEASE)])
    assert driver.counts(1) == (3, 0, 1)
    assert [(m.record, m.deliveries) for m in driver.pump().delivered] == [(record(b"2"), 2), (record(b"3"), 2), (record(b"6"), 1)]


def test_requeued_message_returns_to_its_old_place() -> None:
    driver = Driver()
    driver.declare(1)
    driver.consume(A, 1, 1, messages=5)
    driver.publish(PUBLISHER, 1, [1], [record(b"%d" % n) for n in range(10)])
    driver.pump()
    driver.settle(A, exceptions=[(4, 4, NACK), (2, 2, NACK)])
    driver.cancel(A, 1)
    driver.consume(B, 1, 1)
    assert [m.record for m in driver.pump().delivered] == [record(b"%d" % n) for n in (1, 3, 5, 6, 7, 8, 9)]


def test_session_settles_nothing_of_another_session() -> None:
    driver = outstanding(10, sessions=(A, B))
    theirs = tags(driver, B)
    driver.settle(A, up_to=MANY, ranges=[(1, 100)])
    assert (tags(driver), tags(driver, B)) == ([], theirs)


def test_unknown_action_is_counted_and_settles_nothing() -> None:
    driver = outstanding(2)
    driver.settle(A, exceptions=[(1, 2, 9)])
    assert (tags(driver), driver.shard.stats()["stale_settles"]) == ([1, 2], 2)


def test_settlement_after_the_session_ended_is_stale() -> None:
    driver = outstanding(3)
    driver.end(A)
    driver.settle(A, ranges=[(1, 3)])
    assert (driver.shard.stats()["stale_settles"], driver.counts(1)) == (3, (3, 0, 0))


def test_ranges_whose_first_tag_is_gone_find_the_rest_in_any_order() -> None:
    driver = outstanding(1000)
    driver.settle(A, ranges=[(1, 1), (300, 300), (600, 600)])
    driver.settle(A, ranges=[(600, 800), (1, 200), (300, 500)])
    assert tags(driver) == [*range(201, 300), *range(501, 600), *range(801, 1001)]


@pytest.mark.parametrize("row", [(1, 2**63), (2, MANY - 1), (150_000, 10**9)])
def test_hostile_ranges_cost_no_more_than_they_are_many(row: tuple[int, int]) -> None:
    driver = outstanding(2000, sessions=(A, B))
    driver.settle(B, up_to=1998)                        # a wide gap before B's last
    started = time.process_time()
    driver.settle(B, ranges=[row] * 50_000)
    driver.settle(A, ranges=[(2 * n % 1999 + 2, MANY) for n in range(50_000)])
    assert time.process_time() - started < 1.0


def test_one_message_held_for_long_keeps_no_long_ring() -> None:
    driver = outstanding(1)
    for round_ in range(200):
        driver.publish(PUBLISHER, 2 + 100 * round_, [1], [record(b"x")] * 100)
        driver.pump()
        driver.settle(A, ranges=[(2 + 100 * round_, 101 + 100 * round_)])
    stats = driver.shard.stats()
    assert (tags(driver), stats["stragglers"], stats["outstanding"]) == ([1], 1, 1)
    assert stats["span"] <= 4 * 101
    driver.settle(A, ranges=[(1, 1)])
    assert driver.shard.stats()["stragglers"] == 0


def test_counts_add_up_after_everything_came_back() -> None:
    driver = outstanding(50, sessions=(A, B))
    driver.end(A)
    driver.end(B)
    assert driver.request(LinkKind.L_QUEUE_COUNTS, 0, 1)[1][1:4] == (50, 0, 0)
