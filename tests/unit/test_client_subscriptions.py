"""The blocking client against a broker in Python: live subscriptions."""

from __future__ import annotations

import pytest
from fake_broker import FakeBroker
from waiting import wait_until

import fastmq
from fastmq.wire.verbs import Verb


def test_events_come_with_their_gaps_counted(broker: FakeBroker, mq: fastmq.Client) -> None:
    with mq.subscribe("k", timeout=5) as events:
        assert events.topic == b"/\0\0e\0k\0"
        broker.call(lambda: broker.emit(events.topic, ("k", b"1"), ("k", b"2")))
        broker.call(lambda: broker.emit(events.topic, ("k", b"5"), skip=2))
        assert [(next(events).routing_key, events.lost)[0] for _ in range(3)] == ["k"] * 3
        assert events.lost == 2
    assert list(events) == []
    wait_until(lambda: broker.verbs()[-1] == Verb.UNSUBSCRIBE)
    assert events.lost == 2


def test_subscriptions_of_one_topic_share_it_and_each_gets_every_event(broker: FakeBroker, mq: fastmq.Client) -> None:
    first = mq.subscribe("*.error", exchange="logs", kind="topic")
    second = mq.subscribe("*.error", exchange="logs", kind="topic")
    assert first.topic == second.topic == b"/\0logs\0t\0*.error\0"
    broker.call(lambda: broker.emit(first.topic, ("a.error", b"1")))
    for events in (first, second):
        event = events.next(timeout=5)
        assert event is not None
        assert (event.body, event.exchange, event.headers) == (b"1", "logs", {})
    first.close()
    broker.call(lambda: broker.emit(second.topic, ("a.error", b"2")))
    event = second.next(timeout=5)
    assert event is not None
    assert broker.verbs().count(Verb.UNSUBSCRIBE) == 0


def test_subscriptions_live_on_after_a_lost_session(broker: FakeBroker, mq: fastmq.Client) -> None:
    events = mq.subscribe("k")
    broker.call(lambda: broker.emit(events.topic, ("k", b"1")))
    assert events.next(timeout=5) is not None
    broker.call(broker.forget_sessions)
    mq.publish("q", b"")
    mq.flush()

    def heard() -> bool:
        broker.call(lambda: broker.emit(events.topic, ("k", b"2"), skip=1))
        event = events.next(timeout=0.05)
        return event is not None

    wait_until(heard)
    assert events.lost > 0
    assert broker.verbs().count(Verb.SUBSCRIBE) == 2


def test_a_refused_subscription_is_raised(broker: FakeBroker, mq: fastmq.Client) -> None:
    broker.refuse[Verb.SUBSCRIBE] = ("no-exchange", "there is none")
    with pytest.raises(fastmq.NotFound):
        mq.subscribe("k", exchange="x")
    with pytest.raises(fastmq.BadArgument):
        mq.subscribe("k", kind="glob")


def test_a_slow_subscriber_keeps_a_bounded_buffer_and_goes_on(broker: FakeBroker, mq: fastmq.Client) -> None:
    events = mq.subscribe("k")
    body = bytes(60_000)

    def emit() -> None:
        for _ in range(100):
            broker.emit(events.topic, ("k", body))

    for _ in range(8):  # 48 MB, of which the subscriber holds 16 MiB, sockets some, and the rest is lost
        broker.call(emit)
    count = 0
    while events.next(timeout=0.3) is not None:
        count += 1
    assert 0 < count <= 800
    broker.call(lambda: broker.emit(events.topic, ("k", b"last")))
    event = events.next(timeout=5)
    assert event is not None
    assert (event.body, count + 1 + events.lost) == (b"last", 801)
