"""From queues to consumers: windows, turns, runs, GET, cancel, exclusive, sessions that end."""
from __future__ import annotations

from collections import Counter

import pytest
from shard_driver import NACK, RELEASE, Driver, record

from fastmq.wire.link import LinkKind, QueueFlag
from fastmq.wire.verbs import Code

PUBLISHER, A, B = 11, 12, 13


def bodies(count: int, first: int = 1) -> list[bytes]:
    return [record(b"%d" % n) for n in range(first, first + count)]


@pytest.fixture
def driver() -> Driver:
    made = Driver()
    made.declare(1, 2)
    return made


@pytest.mark.parametrize("count", [100, 10_000])
@pytest.mark.parametrize("batch", [1, 3, 7, 10_000])
def test_two_equal_consumers_get_equal_shares(driver: Driver, count: int, batch: int) -> None:
    driver.consume(A, 1, 1, messages=65535)
    driver.consume(B, 1, 1, messages=65535)
    got = {A: 0, B: 0}
    for first in range(1, count + 1, batch):
        driver.publish(PUBLISHER, first, [1], bodies(min(batch, count - first + 1), first))
        for message in driver.pump().delivered:
            got[message.sid] += 1
    assert sum(got.values()) == count
    assert abs(got[A] - got[B]) <= count // 10


def test_consecutive_equal_messages_are_one_run(driver: Driver) -> None:
    driver.consume(A, 5, 1)
    driver.publish(PUBLISHER, 1, [1], bodies(400), exchange=b"logs")
    told = driver.pump()
    assert (len(told.delivered), told.runs, len(told.deliveries)) == (400, 1, 1)
    assert {(m.consumer, m.deliveries, m.exchange, m.hello) for m in told.delivered} == {(5, 1, b"logs", 1)}
    assert [m.tag for m in told.delivered] == list(range(1, 401))


def test_run_ends_where_exchange_timestamp_or_deliveries_change(driver: Driver) -> None:
    driver.publish(PUBLISHER, 1, [1], bodies(2), exchange=b"a")
    driver.publish(PUBLISHER, 3, [1], bodies(2, 3), exchange=b"b")
    driver.now_ms += 1
    driver.publish(PUBLISHER, 5, [1], bodies(2, 5), exchange=b"b")
    driver.consume(A, 1, 1, messages=1)
    driver.pump()
    driver.settle(A, exceptions=[(1, 1, NACK)])
    driver.cancel(A, 1)
    driver.consume(A, 2, 1)
    told = driver.pump()
    assert [(m.exchange, m.deliveries) for m in told.delivered] == [(b"a", 2), (b"a", 1), *[(b"b", 1)] * 4]
    assert told.runs == 4


def test_delivery_carries_at_most_its_size_unless_one_record_is_larger() -> None:
    driver = Driver(delivery_size_max=1000)
    driver.declare(1)
    driver.consume(A, 1, 1)
    driver.publish(PUBLISHER, 1, [1], [record(b"x" * size) for size in [300] * 7 + [5000] + [300] * 7])
    deliveries = driver.pump().deliveries
    assert sum(count for count, _ in deliveries) == 15
    assert [count for count, size in deliveries if size > 1000] == [1]


def test_window_of_messages_closes_and_a_settlement_reopens_it(driver: Driver) -> None:
    driver.consume(A, 1, 1, messages=3)
    driver.publish(PUBLISHER, 1, [1], bodies(10))
    assert [m.tag for m in driver.pump().delivered] == [1, 2, 3]
    driver.settle(A, ranges=[(2, 2)])
    assert [m.tag for m in driver.pump().delivered] == [4]


def test_window_of_bytes_closes_and_one_message_is_always_allowed(driver: Driver) -> None:
    driver.consume(A, 1, 1, size=50)
    driver.publish(PUBLISHER, 1, [1], [record(b"x" * size) for size in (500, 10, 10, 500)])
    assert len(driver.pump().delivered) == 1
    driver.settle(A, up_to=1)
    assert len(driver.pump().delivered) == 2
    driver.settle(A, ranges=[(2, 2)])
    assert driver.pump().delivered == []                # 500 bytes do not fit beside the third
    driver.settle(A, ranges=[(3, 3)])
    assert len(driver.pump().delivered) == 1


def test_message_too_large_for_one_consumer_goes_to_another(driver: Driver) -> None:
    driver.consume(A, 1, 1, size=60)
    driver.consume(B, 1, 1)
    driver.publish(PUBLISHER, 1, [1], bodies(2))
    driver.pump()
    driver.publish(PUBLISHER, 3, [1], [record(b"x" * 500)])
    assert [m.sid for m in driver.pump().delivered] == [B]


def test_message_behind_one_too_large_is_delivered_when_a_get_took_that(driver: Driver) -> None:
    driver.consume(A, 1, 1, size=60)
    driver.publish(PUBLISHER, 1, [1], [record(b"a"), record(b"x" * 500), record(b"b")])
    assert len(driver.pump().delivered) == 1
    driver.get(B, 1)
    assert [m.record for m in driver.pump().delivered] == [record(b"b")]


def test_pump_does_bounded_work_and_says_there_is_more() -> None:
    driver = Driver(pump_count_max=10)
    driver.declare(1)
    driver.consume(A, 1, 1)
    driver.publish(PUBLISHER, 1, [1], bodies(25))
    steps = []
    while driver.shard.pump(driver.now_ns) or not steps:
        steps.append(len(driver.told().delivered))
    steps.append(len(driver.told().delivered))
    assert steps == [10, 10, 5]


@pytest.mark.parametrize("size", [10, 400, 900, 990, 5000])
def test_pump_does_bounded_work_in_bytes_too_and_shares_stay_equal(size: int) -> None:
    """What is ready at once for both is four times what one pump delivers, or little more than that."""
    driver = Driver(pump_count_max=1000, delivery_size_max=1000)
    driver.declare(1)
    driver.consume(A, 1, 1)
    driver.consume(B, 1, 1)
    count = 2 * (4000 // size + 1)
    driver.publish(PUBLISHER, 1, [1], [record(bytes(size))] * count)
    got = Counter({A: 0, B: 0})
    more, pumps = True, 0
    while more:
        more = driver.shard.pump(driver.now_ns)
        told = driver.told()
        assert sum(bytes_ for _, bytes_ in told.deliveries) <= 4000 + 2 * (size + 20), "four full deliveries, and one message more for each"
        got.update(message.sid for message in told.delivered)
        pumps += 1
    assert got == {A: count // 2, B: count // 2}
    assert pumps > 1


def test_consumer_of_a_missing_queue_or_of_a_number_in_use_is_refused(driver: Driver) -> None:
    assert driver.consume(A, 1, 99) == Code.NO_QUEUE
    assert driver.shard.stats()["sessions"] == 0
    assert driver.consume(A, 1, 1) == Code.OK
    assert driver.consume(A, 1, 2) == Code.CONSUMER_EXISTS
    assert driver.cancel(A, 2) == Code.NO_CONSUMER
    assert driver.cancel(B, 1) == Code.NO_CONSUMER


def test_exclusive_consumer_stays_alone_until_it_is_cancelled(driver: Driver) -> None:
    assert driver.consume(A, 1, 1, exclusive=True) == Code.OK
    assert driver.consume(B, 1, 1) == Code.CONSUMER_EXISTS
    assert driver.get(B, 1) == (Code.CONSUMER_EXISTS, None)
    assert driver.cancel(A, 1) == Code.OK
    assert driver.consume(B, 1, 1) == Code.OK
    assert driver.consume(A, 1, 1, exclusive=True) == Code.CONSUMER_EXISTS


def test_cancelled_consumer_keeps_what_is_outstanding_until_it_is_settled(driver: Driver) -> None:
    driver.consume(A, 1, 1)
    driver.publish(PUBLISHER, 1, [1], bodies(3))
    driver.pump()
    assert driver.cancel(A, 1) == Code.OK
    assert driver.counts(1) == (0, 3, 0)
    driver.settle(A, ranges=[(1, 1)], exceptions=[(2, 3, RELEASE)])
    assert driver.counts(1) == (2, 0, 0)
    driver.consume(B, 1, 1)
    assert [m.deliveries for m in driver.pump().delivered] == [1, 1]        # never seen: counted as the first
    assert driver.shard.stats()["sessions"] == 1


def test_get_takes_the_next_message_and_answers_none_where_there_is_none(driver: Driver) -> None:
    driver.publish(PUBLISHER, 1, [1], bodies(1), exchange=b"logs")
    code, (message,) = driver.get(A, 1)
    assert (code, message.consumer, message.deliveries, message.exchange, message.record) == (0, 0, 1, b"logs", bodies(1)[0])
    assert driver.counts(1) == (0, 1, 0)
    assert driver.get(A, 1) == (0, [])
    assert driver.get(A, 99) == (Code.NO_QUEUE, None)
    driver.settle(A, exceptions=[(message.tag, message.tag, NACK)])
    assert driver.get(A, 1)[1][0].deliveries == 2


def test_messages_of_an_ended_session_go_back_at_once_to_their_old_place_and_are_counted(driver: Driver) -> None:
    driver.consume(A, 1, 1, messages=4)
    driver.publish(PUBLISHER, 1, [1], bodies(8))
    driver.pump()
    driver.end(A)
    driver.consume(B, 1, 1)
    told = driver.pump()
    assert [m.record for m in told.delivered] == bodies(8)
    assert [m.deliveries for m in told.delivered] == [2] * 4 + [1] * 4


def test_dead_frontend_ends_its_sessions_and_no_others(driver: Driver) -> None:
    driver.consume(A, 1, 1, messages=2, frontend=0)
    driver.consume(B, 1, 1, messages=2, frontend=1)
    driver.publish(PUBLISHER, 1, [1], bodies(4))
    driver.pump()
    driver.shard.frontend_gone(0, driver.now_ns)
    assert driver.counts(1) == (2, 2, 1)
    driver.end(B, frontend=0)                           # from where it does not live
    assert driver.counts(1) == (2, 2, 1)


def test_later_hello_ends_what_the_earlier_one_left(driver: Driver) -> None:
    driver.consume(A, 1, 1, hello=3)
    driver.publish(PUBLISHER, 1, [1], bodies(2))
    driver.pump()
    assert driver.consume(A, 1, 1, hello=4) == Code.OK
    assert [(m.hello, m.deliveries) for m in driver.pump().delivered] == [(4, 2), (4, 2)]


def test_deleted_queue_tells_its_consumers_and_makes_their_tags_stale(driver: Driver) -> None:
    driver.consume(A, 1, 1, messages=2)
    driver.consume(B, 7, 1, messages=1)
    driver.publish(PUBLISHER, 1, [1], bodies(5))
    driver.pump()
    code, counts = driver.request(LinkKind.L_QUEUE_DELETE, 0, 1)
    assert (code, counts.ready, counts.unacknowledged, counts.consumers, counts.affected) == (0, 2, 3, 2, 2)
    assert sorted(driver.last.cancelled) == [(0, A, 1, Code.QUEUE_DELETED), (0, B, 7, Code.QUEUE_DELETED)]
    driver.settle(A, up_to=10)
    driver.pump()
    stats = driver.shard.stats()
    assert (stats["sessions"], stats["live_bytes"], stats["chunk_bytes"], stats["stale_settles"]) == (0, 0, 0, 1)


def test_purge_drops_what_is_ready_and_leaves_what_is_outstanding(driver: Driver) -> None:
    driver.consume(A, 1, 1, messages=2)
    driver.publish(PUBLISHER, 1, [1], bodies(5))
    driver.pump()
    code, counts = driver.request(LinkKind.L_QUEUE_PURGE, 0, 1)
    assert (code, counts.ready, counts.unacknowledged, counts.affected) == (0, 0, 2, 3)
    driver.settle(A, exceptions=[(1, 2, NACK)])
    assert [m.record for m in driver.pump().delivered] == bodies(2)


def test_attachment_drops_what_is_not_listed_makes_what_is_missing_and_keeps_the_rest(driver: Driver) -> None:
    driver.consume(A, 1, 1, messages=1)
    driver.publish(PUBLISHER, 1, [1, 2], bodies(3))
    driver.pump()
    driver.attach({2: 0, 3: QueueFlag.QUEUE_DURABLE})
    assert driver.told().cancelled == [(0, A, 1, Code.QUEUE_DELETED)]
    assert driver.shard.take_counts() == {2: (3, 0, 0), 3: (0, 0, 0)}


@pytest.mark.parametrize("leave", ["cancel", "bye"])
def test_auto_delete_queue_is_reported_at_once_when_its_last_consumer_leaves(leave: str) -> None:
    driver = Driver()
    driver.declare(1, flags=QueueFlag.QUEUE_AUTO_DELETE)
    driver.consume(A, 1, 1)
    driver.consume(B, 1, 1)
    driver.cancel(B, 1)
    assert driver.last.unused == []
    driver.cancel(A, 1) if leave == "cancel" else driver.end(A, bye=True)
    assert (driver.last.unused or driver.told().unused) == [(0, A, 1)]


def test_auto_delete_queue_waits_for_consumers_that_vanished() -> None:
    driver = Driver(resume_ns=100)
    driver.declare(1, 2, flags=QueueFlag.QUEUE_AUTO_DELETE)
    driver.consume(A, 1, 1)
    driver.consume(A, 2, 2)
    driver.shard.frontend_gone(0, driver.now_ns)
    driver.now_ns += 99
    driver.shard.tick(driver.now_ns)
    driver.consume(A, 1, 2, frontend=1)                 # the second one's came back
    driver.now_ns += 1
    driver.shard.tick(driver.now_ns)
    assert driver.told().unused == [(0, A, 1)]
    driver.shard.tick(driver.now_ns + 1000)
    assert driver.told().unused == []
