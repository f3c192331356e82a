"""The blocking client against a broker in Python: lost connections and sessions."""

from __future__ import annotations

import random
import threading

import msgpack
import pytest
from fake_broker import FakeBroker
from proxy import Proxy
from waiting import wait_until

import fastmq
from fastmq.wire.verbs import Verb


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
    """Both ends behind proxies that cut at random, until each was cut five times."""
    rnd, published = random.Random(seed), 0
    got: set[int] = set()
    stop, ended = threading.Event(), threading.Event()
    with Proxy(("127.0.0.1", broker.port)) as proxy, Proxy(("127.0.0.1", broker.port)) as other:

        def cut() -> None:
            while not stop.wait(rnd.uniform(0.001, 0.03)):
                rnd.choice([proxy, other]).cut()

        def consume() -> None:
            with fastmq.connect(f"fastmq://127.0.0.1:{other.port}") as mq:
                messages = mq.consume("q", prefetch=200, timeout=0.2)
                while not (ended.is_set() and len(got) == published):
                    for message in messages:
                        got.add(int(message.body))
                        message.ack()

        threads = [threading.Thread(target=cut), threading.Thread(target=consume)]
        for thread in threads:
            thread.start()
        with fastmq.connect(f"fastmq://127.0.0.1:{proxy.port}") as mq:
            while min(proxy.accepted, other.accepted) <= 5:
                mq.publish("q", b"%d" % published)
                published += 1
                if published % 1000 == 0:
                    mq.flush(20)
            stop.set()
            mq.flush(20)
            ended.set()
        for thread in threads:
            thread.join(30)
    taken = [msgpack.unpackb(record)[2] for session in broker.taken.values() for _, record in sorted(session.items())]
    assert taken == [b"%d" % i for i in range(published)]
    assert got == set(range(published))
