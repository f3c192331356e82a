"""The blocking client against a broker in Python: what applications see, threads, windows, losses."""

from __future__ import annotations

import gc
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
import zmq
from fake_broker import FakeBroker
from leaks import own_sockets
from proxy import Proxy
from waiting import wait_until

import fastmq
from fastmq.wire.verbs import SettleAction, Verb


@pytest.fixture
def broker() -> Iterator[FakeBroker]:
    with FakeBroker() as broker:
        broker.queues["q"] = deque()
        yield broker


@pytest.fixture
def mq(broker: FakeBroker) -> Iterator[fastmq.Client]:
    with fastmq.connect(broker.url, timeout=5) as mq:
        yield mq


def fill(broker: FakeBroker, count: int, queue: str = "q") -> None:
    broker.queues[queue].extend(msgpack.packb([queue, None, b"%d" % i]) for i in range(count))


# ---- connecting


def test_nothing_listening_is_said_with_the_command_that_helps() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(fastmq.ConnectionFailed) as caught:
        fastmq.connect(f"fastmq://127.0.0.1:{port}")
    assert f"127.0.0.1:{port}" in str(caught.value)
    assert "fastmq serve" in str(caught.value)
    assert caught.value.code == "unreachable"


@pytest.mark.parametrize(
    ("answer", "words"),
    [(b"HTTP/1.1 400 Bad Request\r\n\r\n", "ZeroMQ"), (b"-ERR unknown command\r\n", "ZeroMQ"), (b"", "handshake"), (None, "0.2 s")],
)
def test_what_is_no_broker_is_said(answer: bytes | None, words: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for _ in range(5 if answer == b"" else 1):
                connection, _ = server.accept()
                with connection:
                    connection.recv(1000)
                    if answer is None:
                        connection.recv(1000)
                    else:
                        connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(fastmq.ConnectionFailed) as caught:
            fastmq.connect(f"fastmq://127.0.0.1:{server.getsockname()[1]}", timeout=5 if answer is not None else 0.2)
        thread.join()
    assert words in str(caught.value)


@pytest.mark.parametrize("mechanism", ["curve", "plain"])
def test_a_secured_broker_is_said(mechanism: str) -> None:
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    if mechanism == "curve":
        router.curve_server = True
        router.curve_secretkey = zmq.curve_keypair()[1]
    else:
        router.plain_server = True
    port = router.bind_to_random_port("tcp://127.0.0.1")
    with pytest.raises(fastmq.ConnectionFailed) as caught:
        fastmq.connect(f"fastmq://127.0.0.1:{port}", timeout=5)
    assert "mechanism" in str(caught.value)
    context.destroy(0)


def test_refused_hello_is_raised_as_what_it_is(broker: FakeBroker) -> None:
    def refuse(address: bytes, sid: bytes, incarnation: int) -> None:
        stranger = {"address": address, "id": sid, "incarnation": incarnation}
        broker.say(stranger, Verb.ERROR, None, "no-vhost", "there is no virtual host 'x'")

    broker._hello = refuse  # type: ignore[method-assign]
    with pytest.raises(fastmq.NotFound) as caught:
        fastmq.connect(broker.url)
    assert (caught.value.code, str(caught.value)) == ("no-vhost", "there is no virtual host 'x'")


def test_closing_leaves_no_thread_and_no_socket(broker: FakeBroker) -> None:
    sockets, threads = own_sockets(), threading.active_count()
    mq = fastmq.connect(broker.url)
    mq.declare_queue("q")
    subscription = mq.subscribe("k")
    assert threading.active_count() == threads + 1
    subscription.close()
    mq.close()
    mq.close()
    assert threading.active_count() == threads
    wait_until(lambda: own_sockets() <= sockets, what="sockets closed")
    for call in (lambda: mq.publish("q", b""), mq.flush, mq.status, lambda: mq.consume("q"), lambda: mq.get("q"), lambda: mq.subscribe("k")):
        with pytest.raises(fastmq.Closed):
            call()


def test_a_forgotten_client_closes_itself(broker: FakeBroker) -> None:
    sockets, threads = own_sockets(), threading.active_count()
    mq = fastmq.connect(broker.url)
    messages = mq.consume("q")
    del mq
    gc.collect()
    assert messages.next(timeout=0) is None  # the consumer keeps its client
    del messages
    gc.collect()
    wait_until(lambda: threading.active_count() == threads and own_sockets() <= sockets)


# ---- publishing


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


def test_failures_nobody_asks_for_stop_publishing_in_the_end(broker: FakeBroker, mq: fastmq.Client) -> None:
    def publish_on() -> None:
        for _ in range(100_000):
            mq.publish("nope", b"")

    with pytest.raises(fastmq.PublishError) as caught:
        publish_on()
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


# ---- consuming


def test_consume_acknowledges_in_ranges(broker: FakeBroker, mq: fastmq.Client) -> None:
    fill(broker, 1000)
    got = []
    for message in mq.consume("q", prefetch=100, timeout=0.2):
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
    assert messages.next(timeout=0.05) is not None
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
    messages = mq.consume("q", prefetch=50, timeout=0.5)
    got: list[int] = []

    def work() -> None:
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


# ---- requests


def test_requests_and_their_results(broker: FakeBroker, mq: fastmq.Client) -> None:
    assert mq.declare_queue() == fastmq.QueueInfo("amq.gen-1", 0, 0)
    mq.declare_queue("work", durable=False, exclusive=True, auto_delete=True, passive=True)
    mq.declare_exchange("logs", "topic", durable=False, internal=True)
    mq.bind_queue("work", "logs", "#")
    mq.unbind_queue("work", "logs", "#")
    mq.bind_exchange("logs", "amq.topic")
    mq.unbind_exchange("logs", "amq.topic", "k")
    mq.delete_exchange("logs")
    mq.publish("work", b"")
    assert mq.purge_queue("work") == 1
    assert mq.status()["queues"][-1] == {"name": "work", "messages_ready": 0}
    fields = [header[4:] for header in broker.seen if header[0] not in (Verb.HELLO, Verb.PUBLISH, Verb.STATUS)]
    assert fields == [
        ["", {}],
        ["work", {"durable": False, "exclusive": True, "auto_delete": True, "passive": True}],
        ["logs", "topic", {"durable": False, "internal": True}],
        ["queue", "work", "logs", "#", {}],
        ["queue", "work", "logs", "#", {}],
        ["exchange", "logs", "amq.topic", "", {}],
        ["exchange", "logs", "amq.topic", "k", {}],
        ["logs", {}],
        ["work"],
    ]


def test_unknown_declare_arguments_are_refused_by_name(mq: fastmq.Client) -> None:
    with pytest.raises(fastmq.BadArgument) as caught:
        mq.declare_queue("q", max_length=5)
    assert "'max_length'" in str(caught.value)


def test_unavailable_is_retried_and_other_errors_are_raised(broker: FakeBroker, mq: fastmq.Client) -> None:
    broker.refuse[Verb.DECLARE_QUEUE] = ("unavailable", "restarting")
    timer = threading.Timer(0.1, broker.refuse.clear)
    timer.start()
    mq.declare_queue("new")
    assert broker.verbs().count(Verb.DECLARE_QUEUE) > 1
    timer.join()
    for verb, code, kind, call in (
        (Verb.DECLARE_QUEUE, "precondition-failed", fastmq.Refused, lambda: mq.declare_queue("q")),
        (Verb.PURGE_QUEUE, "unknown", fastmq.UnknownOutcome, lambda: mq.purge_queue("q")),
        (Verb.CONSUME, "resource-locked", fastmq.Refused, lambda: mq.consume("q")),
        (Verb.GET, "no-queue", fastmq.NotFound, lambda: mq.get("q")),
        (Verb.BIND, "novelty", fastmq.Refused, lambda: mq.bind_queue("q", "x")),
    ):
        broker.refuse = {verb: (code, "because")}
        with pytest.raises(kind) as caught:
            call()
        assert caught.value.code == code


def test_no_answer_is_a_time_out(broker: FakeBroker) -> None:
    with fastmq.connect(broker.url, timeout=0.2) as mq:
        broker.mute = {Verb.STATUS, Verb.CONSUME}
        with pytest.raises(fastmq.TimedOut):
            mq.status()
        with pytest.raises(fastmq.TimedOut):
            mq.consume("q")
        assert mq.declare_queue("q").name == "q"


# ---- losses


def test_a_broker_that_is_gone_is_waited_for_as_long_as_the_client_s_timeout(broker: FakeBroker) -> None:
    with Proxy(("127.0.0.1", broker.port)) as proxy:
        mq = fastmq.connect(f"fastmq://127.0.0.1:{proxy.port}", timeout=0.3)
        messages = mq.consume("q")
        proxy.refuse = True
        proxy.cut()
        mq.publish("q", b"kept")
        for call in (mq.status, lambda: next(messages), lambda: mq.flush(0.2)):
            with pytest.raises(fastmq.ConnectionFailed) as caught:
                call()
            assert f"127.0.0.1:{proxy.port}" in str(caught.value)
        proxy.refuse = False
        mq.flush(5)
        assert next(messages).body == b"kept"
        mq.close()


def test_purge_has_an_unknown_outcome_when_the_connection_goes(broker: FakeBroker) -> None:
    with Proxy(("127.0.0.1", broker.port)) as proxy, fastmq.connect(f"fastmq://127.0.0.1:{proxy.port}") as mq:
        broker.mute = {Verb.PURGE_QUEUE, Verb.DECLARE_QUEUE}
        timer = threading.Timer(0.05, proxy.cut)
        timer.start()
        with pytest.raises(fastmq.UnknownOutcome):
            mq.purge_queue("q")
        timer.join()
        timer = threading.Timer(0.05, lambda: (broker.mute.clear(), proxy.cut()))
        timer.start()
        assert mq.declare_queue("q").name == "q"
        timer.join()


def test_a_session_the_broker_has_forgotten_begins_anew_and_loses_nothing(broker: FakeBroker, mq: fastmq.Client) -> None:
    mq.publish("q", b"1")
    mq.flush()
    messages = mq.consume("q")
    message = messages.next(timeout=5)
    assert message is not None
    session = mq.session_id
    broker.call(broker.forget_sessions)
    assert mq.publish("q", b"2") == 2
    mq.flush()
    assert mq.session_id != session
    message.ack()
    assert mq.stale_settlements == 1
    again = messages.next(timeout=5)
    assert again is not None
    assert again.body == b"2"


def test_resend_is_answered_with_all_that_is_open(broker: FakeBroker, mq: fastmq.Client) -> None:
    broker.held_confirms = True
    for i in range(100):
        mq.publish("q", b"%d" % i)
    wait_until(lambda: len(broker.queues["q"]) == 100)
    broker.held_confirms = False
    broker.call(broker.resend)
    mq.flush()
    assert len(broker.queues["q"]) == 100
    mq.publish("q", b"behind")
    mq.flush()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_cut_connections_lose_and_double_nothing(broker: FakeBroker, seed: int) -> None:
    """Both ends behind a proxy that cuts at random while 20,000 messages go through."""
    import random

    rnd, count, got = random.Random(seed), 20_000, []
    stop = threading.Event()
    with Proxy(("127.0.0.1", broker.port)) as proxy, Proxy(("127.0.0.1", broker.port)) as other:

        def cut() -> None:
            while not stop.wait(rnd.uniform(0.005, 0.08)):
                rnd.choice([proxy, other]).cut()

        def consume() -> None:
            with fastmq.connect(f"fastmq://127.0.0.1:{other.port}") as mq:
                for message in mq.consume("q", prefetch=200, timeout=5):
                    got.append(int(message.body))
                    message.ack()
                    if len(set(got)) == count:
                        return

        threads = [threading.Thread(target=cut), threading.Thread(target=consume)]
        for thread in threads:
            thread.start()
        with fastmq.connect(f"fastmq://127.0.0.1:{proxy.port}") as mq:
            for i in range(count):
                mq.publish("q", b"%d" % i)
            mq.flush(30)
            stop.set()
        threads[0].join()
        threads[1].join(30)
    taken = [msgpack.unpackb(record)[2] for session in broker.taken.values() for _, record in sorted(session.items())]
    assert taken == [b"%d" % i for i in range(count)]
    assert set(got) == set(range(count))


# ---- live subscriptions


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
