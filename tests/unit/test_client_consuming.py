"""The blocking client against a broker in Python: consumers, threads, signals, `get`."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections import deque
from itertools import islice
from typing import Any

import pytest
from fake_broker import FakeBroker, fill
from waiting import wait_until

import fastmq
from fastmq.wire.verbs import SettleAction, Verb


def test_consume_acknowledges_in_ranges(broker: FakeBroker, mq: fastmq.Client) -> None:
    fill(broker, 1000)
    got = []
    for message in islice(mq.consume("q", prefetch=100, timeout=10), 1000):
        with message:
            got.append(int(message.body))
    assert got == list(range(1000))
    wait_until(lambda: sum(last - first + 1 for ranges, _ in broker.settled for first, last in ranges) == 1000)
    assert len(broker.settled) < 60


def test_settling_says_what_became_of_each_message(broker: FakeBroker, mq: fastmq.Client) -> None:
    fill(broker, 6)
    messages = mq.consume("q")
    first, second, third, fourth, fifth, sixth = (messages.next(timeout=5) for _ in range(6))
    broker.queues.clear()
    assert None not in (first, second, third, fourth, fifth, sixth)
    first.ack()
    first.nack()  # the second settlement does nothing
    second.nack()
    third.nack(requeue=False)
    fourth.reject()
    with pytest.raises(ZeroDivisionError), fifth:
        raise ZeroDivisionError
    with sixth:
        sixth.reject()
    wait_until(lambda: sum(b - a + 1 for ranges, others in broker.settled for a, b, *_ in [*ranges, *others]) == 6)
    found = {n: 0 for ranges, _ in broker.settled for a, b in ranges for n in range(a, b + 1)}
    found |= {n: action for _, others in broker.settled for a, b, action in others for n in range(a, b + 1)}
    nack, reject = SettleAction.NACK, SettleAction.REJECT
    assert [found[n] for n in sorted(found)] == [0, nack, reject, reject, nack, reject]


def test_no_more_than_the_prefetch_is_out(broker: FakeBroker, mq: fastmq.Client) -> None:
    fill(broker, 10)
    messages = mq.consume("q", prefetch=3)
    held = [messages.next(timeout=5) for _ in range(3)]
    assert messages.next(timeout=0.1) is None
    assert held[0] is not None
    held[0].ack()
    assert messages.next(timeout=5) is not None


def test_auto_ack_settles_before_the_application_sees_the_message(broker: FakeBroker, mq: fastmq.Client) -> None:
    fill(broker, 5)
    messages = mq.consume("q", auto_ack=True)
    wait_until(lambda: broker.settled == [([[1, 5]], [])])
    message = messages.next()
    assert message is not None
    message.nack()
    assert messages.next(timeout=5) is not None
    assert len(broker.settled) == 1


def test_closing_a_consumer_returns_what_was_not_handed_out(broker: FakeBroker, mq: fastmq.Client) -> None:
    fill(broker, 10)
    with mq.consume("q") as messages:
        message = next(messages)
    assert list(messages) == []
    message.ack()
    wait_until(lambda: len(broker.settled) == 2)
    assert broker.settled == [([], [[2, 10, SettleAction.RELEASE]]), ([[1, 1]], [])]
    del messages
    dropped = mq.consume("q")
    assert dropped.next(timeout=5) is not None
    del dropped  # as good as closing it
    wait_until(lambda: broker.verbs().count(Verb.CANCEL) == 2)


def test_a_deleted_queue_ends_its_consumer_with_an_error(broker: FakeBroker, mq: fastmq.Client) -> None:
    messages = mq.consume("q")
    assert mq.delete_queue("q") == 0
    with pytest.raises(fastmq.NotFound) as caught:
        next(messages)
    assert caught.value.code == "queue-deleted"


def test_threads_share_a_consumer_and_get_each_message_once(broker: FakeBroker, mq: fastmq.Client) -> None:
    fill(broker, 3000)
    messages = mq.consume("q", prefetch=50, timeout=0.1)
    got: list[int] = []

    def work() -> None:
        while len(got) < 3000:
            for message in messages:
                with message:
                    got.append(int(message.body))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == list(range(3000))


def test_closing_wakes_threads_that_wait(broker: FakeBroker) -> None:
    mq = fastmq.connect(broker.url)
    messages = [mq.consume("q"), mq.consume("q")]
    ended: list[str] = []

    def work(consumer: Any) -> None:
        try:
            next(consumer)
        except (StopIteration, fastmq.Closed) as error:
            ended.append(type(error).__name__)

    threads = [threading.Thread(target=work, args=(consumer,)) for consumer in messages]
    for thread in threads:
        thread.start()
    messages[0].close()
    wait_until(lambda: ended == ["StopIteration"])
    mq.close()
    for thread in threads:
        thread.join(5)
    assert ended == ["StopIteration", "Closed"]


def test_get_waits_for_its_timeout(broker: FakeBroker, mq: fastmq.Client) -> None:
    begun = time.monotonic()
    assert mq.get("q") is None
    assert mq.get("q", timeout=0.1) is None
    assert time.monotonic() - begun >= 0.1
    timer = threading.Timer(0.05, lambda: broker.call(lambda: fill(broker, 1)))
    timer.start()
    message = mq.get("q", timeout=5)
    assert message is not None
    message.ack()
    timer.join()


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("blocked", ["next", "publish", "request", "second thread"])
def test_signals_interrupt_waiting_calls(blocked: str) -> None:
    def interrupt(*_: object) -> None:
        raise Interrupted

    with FakeBroker(window=(1, 2**20)) as broker:
        broker.queues["q"] = deque()
        mq = fastmq.connect(broker.url)
        messages = mq.consume("q")
        broker.held_confirms = True
        broker.mute = {Verb.STATUS}
        other = threading.Thread(target=lambda: messages.next(timeout=2))
        if blocked == "publish":
            mq.publish("x", b"")
        elif blocked == "second thread":
            other.start()  # it reads; the main thread waits for it
        before = signal.signal(signal.SIGALRM, interrupt)
        begun = time.monotonic()
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(Interrupted):
                mq.publish("x", b"") if blocked == "publish" else mq.status() if blocked == "request" else next(messages)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert time.monotonic() - begun < 1.5
        broker.held_confirms = False
        broker.call(broker.confirm_all)
        if blocked == "second thread":
            other.join()
        if blocked == "publish":
            with pytest.raises(fastmq.PublishError):
                mq.close()
        mq.close()


ENDS = ["", "mq.close()", "del mq", "sys.exit(0)", "threading.Thread(target=lambda: next(messages), daemon=True).start()"]


@pytest.mark.parametrize("end", ENDS)
def test_a_program_that_ends_with_an_open_client_ends_well(broker: FakeBroker, end: str) -> None:
    program = f"""
import sys, threading, fastmq
mq = fastmq.connect({broker.url!r})
messages = mq.consume("q")
mq.publish("q", b"1")
mq.flush()
message = next(messages)
{end}
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")
