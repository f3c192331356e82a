"""The blocking client against a broker in Python: publishing, its window and its failures."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any

import msgpack
import pytest
from fake_broker import FakeBroker
from waiting import wait_until

import fastmq
from fastmq.wire.verbs import Verb


def test_publish_returns_sequences_and_flush_waits_for_outcomes(broker: FakeBroker, mq: fastmq.Client) -> None:
    assert [mq.publish("q", b"%d" % i) for i in range(3000)] == list(range(1, 3001))
    mq.flush()
    assert [msgpack.unpackb(record)[2] for record in broker.queues["q"]] == [b"%d" % i for i in range(3000)]


def test_all_properties_travel(broker: FakeBroker, mq: fastmq.Client) -> None:
    properties: dict[str, Any] = {
        "headers": {"k": [1, None, {"x": b"y"}]}, "priority": 7, "message_id": "m", "correlation_id": "c", "reply_to": "r", "content_type": "t",
    }  # fmt: skip
    mq.publish("q", bytearray(b"body"), persistent=False, **properties)
    mq.publish("q", memoryview(b"body"))
    message = mq.get("q")
    assert message is not None
    assert {name: getattr(message, name) for name in properties} == properties
    assert (message.body, message.routing_key, message.exchange, message.persistent) == (b"body", "q", "", False)
    assert (message.redelivered, message.delivery_count, message.timestamp) == (False, 1, 5.0)
    plain = mq.get("q")
    assert plain is not None
    assert (plain.headers, plain.priority, plain.message_id, plain.reply_to, plain.persistent) == ({}, 0, None, None, True)
    message.ack()
    plain.ack()


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (("k", "text"), {}), (("k", 5), {}), (("k" * 256, b""), {}), (("k\0", b""), {}), (("k\ud800", b""), {}), (("k", b"", "x" * 256), {}),
        (("k", b""), {"headers": [1]}), (("k", b""), {"headers": {"x": object()}}), (("k", b""), {"headers": {"x": 2**70}}),
        (("k", b""), {"priority": 256}), (("k", b""), {"priority": -1}), (("k", b""), {"message_id": 5}), (("k", b""), {"reply_to": "\ud800"}),
        (("k", b""), {"content_type": "x" * 200_000}), (("k", b""), {"headers": {"x": b"x" * 200_000}}), (("k", bytes(2**27)), {}),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused_before_anything_is_sent(mq: fastmq.Client, arguments: Any, options: Any) -> None:
    with pytest.raises(fastmq.BadArgument):
        mq.publish(*arguments, **options)
    assert mq.publish("q", b"good") == 1


def test_headers_nested_deeper_than_the_broker_reads_are_refused(mq: fastmq.Client) -> None:
    headers: dict[str, Any] = {}
    for _ in range(20):
        headers = {"x": headers}
    with pytest.raises(fastmq.BadArgument):
        mq.publish("q", b"", headers=headers)


def test_flush_raises_every_failure_once(mq: fastmq.Client) -> None:
    for i in range(3):
        mq.publish("q", b"")
        mq.publish("nope", b"", message_id=f"m{i}")
    with pytest.raises(fastmq.PublishError) as caught:
        mq.flush()
    failures = caught.value.failures
    assert [(each.sequence, each.code, each.routing_key, each.message_id) for each in failures] == [
        (2, "no-queue", "nope", "m0"), (4, "no-queue", "nope", "m1"), (6, "no-queue", "nope", "m2"),
    ]  # fmt: skip
    mq.flush()
    mq.publish("nope", b"")
    with pytest.raises(fastmq.PublishError):
        mq.close()


def test_failures_nobody_asks_for_stop_publishing_in_the_end() -> None:
    """The window is smaller than what stops it: those that are still on their way do not stop it again at once."""

    def publish_on(mq: fastmq.Client) -> None:
        for _ in range(100_000):
            mq.publish("nope", b"")

    with FakeBroker(window=(5000, 2**20)) as broker, fastmq.connect(broker.url) as mq:
        with pytest.raises(fastmq.PublishError) as caught:
            publish_on(mq)
        assert len(caught.value.failures) >= 10_000
        mq.publish("nope", b"")
        with pytest.raises(fastmq.PublishError):
            mq.flush()


def test_a_full_window_blocks_publish_until_its_timeout_and_publishes_nothing() -> None:
    with FakeBroker(window=(10, 2**20)) as broker:
        broker.queues["q"] = deque()
        broker.held_confirms = True
        with fastmq.connect(broker.url) as mq:
            for _ in range(10):
                mq.publish("q", b"x")
            begun = time.monotonic()
            with pytest.raises(fastmq.TimedOut):
                mq.publish("q", b"y", timeout=0.1)
            assert 0.09 < time.monotonic() - begun < 3
            with pytest.raises(fastmq.TimedOut):
                mq.flush(timeout=0.05)
            done = threading.Event()
            thread = threading.Thread(target=lambda: (mq.publish("q", b"z"), done.set()))
            thread.start()
            assert not done.wait(0.1)
            broker.held_confirms = False
            broker.call(broker.confirm_all)
            assert done.wait(5)
            thread.join()
            mq.flush()
        assert [msgpack.unpackb(record)[2] for record in broker.queues["q"]] == [b"x"] * 10 + [b"z"]


def test_a_lone_message_goes_at_once_and_the_rest_after_a_linger(broker: FakeBroker, mq: fastmq.Client) -> None:
    broker.held_confirms = True
    mq.publish("q", b"1")
    wait_until(lambda: len(broker.queues["q"]) == 1)
    mq.publish("q", b"2")  # the first has no outcome: this one lingers, and the helper sends it
    mq.publish("q", b"3")
    wait_until(lambda: len(broker.queues["q"]) == 3)
    assert broker.verbs().count(Verb.PUBLISH) == 2
    broker.held_confirms = False
    broker.call(broker.confirm_all)


def test_many_threads_publish_and_each_keeps_its_order(broker: FakeBroker, mq: fastmq.Client) -> None:
    def work(name: int) -> None:
        for i in range(2000):
            mq.publish("q", b"%d:%d" % (name, i), headers={"n": i} if i % 100 == 0 else None)
            if i % 500 == 0:
                mq.flush()

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    mq.flush()
    bodies = [msgpack.unpackb(record)[2].split(b":") for record in broker.queues["q"]]
    for name in range(4):
        assert [int(i) for who, i in bodies if int(who) == name] == list(range(2000))
