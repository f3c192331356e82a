"""The blocking client on a real broker: whole paths, windows, losses of connections, threads."""

from __future__ import annotations

import os
import random
import socket
import sys
import threading
from collections.abc import Iterator
from itertools import islice

import pytest
from leaks import Run
from proxy import Proxy
from waiting import wait_until

import fastmq
from fastmq.client.url import parse_url


@pytest.fixture(scope="module")
def broker() -> Iterator[fastmq.Broker]:
    """One broker for all tests of this file; each uses queues of its own."""
    run = Run()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTMQ_RUN_ID", run.id)
        made = fastmq.Broker(workers=2)
    with made:
        yield made
    left = run.finish()
    assert not left, left


@pytest.fixture
def mq(request: pytest.FixtureRequest, broker: fastmq.Broker) -> Iterator[fastmq.Client]:
    """Over tcp, unless the test is marked with `transports`."""
    with fastmq.connect(url_of(broker, getattr(request, "param", "tcp"))) as mq:
        yield mq


def url_of(broker: fastmq.Broker, transport: str) -> str:
    url = broker.url if transport == "tcp" else broker.unix_url
    assert url
    return url


transports = pytest.mark.parametrize("mq", ["tcp", "unix"], indirect=True)


@pytest.fixture
def queue(request: pytest.FixtureRequest, mq: fastmq.Client) -> Iterator[str]:
    """A queue of the test's name, deleted behind it."""
    name = request.node.name[:200]
    mq.declare_queue(name)
    yield name
    mq.delete_queue(name)


def counts(mq: fastmq.Client, queue: str) -> tuple[int, int]:
    """Messages that are ready, and outstanding."""
    (found,) = [each for each in mq.status()["queues"] if each["name"] == queue]
    return found["messages_ready"], found["messages_unacknowledged"]


def proxied(broker: fastmq.Broker, transport: str = "tcp") -> tuple[Proxy, str]:
    address = parse_url(url_of(broker, transport))
    proxy = Proxy(address.path or (address.host, address.port))
    return proxy, proxy.url


@transports
def test_messages_go_through_a_topic_exchange_with_all_they_carry(mq: fastmq.Client, queue: str) -> None:
    mq.declare_exchange("client-logs", "topic")
    mq.bind_queue(queue, "client-logs", "*.error")
    mq.publish(
        "app.error", b"\0body\xff", exchange="client-logs", headers={"k": [1, {"x": None}]}, persistent=False, priority=9, message_id="m",
        correlation_id="c", reply_to="r", content_type="text/plain",
    )  # fmt: skip
    mq.publish("app.info", b"goes nowhere", exchange="client-logs")
    mq.flush()
    messages = mq.consume(queue, timeout=10)
    message = next(messages)
    assert counts(mq, queue) == (0, 1), "what nothing was bound for went nowhere"
    assert (message.body, message.routing_key, message.exchange) == (b"\0body\xff", "app.error", "client-logs")
    assert (message.headers, message.persistent, message.priority) == ({"k": [1, {"x": None}]}, False, 9)
    assert (message.message_id, message.correlation_id, message.reply_to, message.content_type) == ("m", "c", "r", "text/plain")
    assert (message.redelivered, message.delivery_count) == (False, 1)
    assert 1.6e9 < message.timestamp < 1e10
    message.ack()
    messages.close()
    mq.delete_exchange("client-logs")


@transports
@pytest.mark.parametrize("size", [0, 1, 255, 256, 65_535, 65_536, 1_000_000, 20_000_000])
def test_bodies_of_every_size(mq: fastmq.Client, queue: str, size: int) -> None:
    body = random.Random(size).randbytes(size)
    mq.publish(queue, body)
    mq.publish(queue, b"behind")
    mq.flush()
    first, second = mq.get(queue, timeout=5), mq.get(queue, timeout=5)
    assert first is not None
    assert second is not None
    assert first.body == body
    assert second.body == b"behind"
    first.ack()
    second.ack()


def test_nacked_messages_return_to_their_old_place(mq: fastmq.Client, queue: str) -> None:
    for i in range(10):
        mq.publish(queue, b"%d" % i)
    mq.flush()
    with mq.consume(queue, prefetch=10) as messages:
        held = [next(messages) for _ in range(10)]
        for message in (held[7], held[2]):
            message.nack()
        held[3].reject()
        again = [next(messages), next(messages)]
        assert sorted(message.body for message in again) == [b"2", b"7"]
        assert all(message.redelivered and message.delivery_count == 2 for message in again)
    wait_until(lambda: counts(mq, queue) == (0, 9))


def test_leaving_a_message_s_block_settles_it(mq: fastmq.Client, queue: str) -> None:
    mq.publish(queue, b"x")
    message = mq.get(queue, timeout=5)
    assert message is not None
    with pytest.raises(ZeroDivisionError), message:
        raise ZeroDivisionError
    message = mq.get(queue, timeout=5)
    assert message is not None
    assert message.redelivered
    with message:
        pass
    wait_until(lambda: counts(mq, queue) == (0, 0))


def test_the_prefetch_bounds_what_is_out(mq: fastmq.Client, queue: str) -> None:
    for i in range(100):
        mq.publish(queue, b"%d" % i)
    mq.flush()
    with mq.consume(queue, prefetch=7) as messages:
        held = [next(messages) for _ in range(7)]
        assert messages.next(timeout=0.1) is None
        assert counts(mq, queue) == (93, 7)
        held[0].ack()
        assert next(messages).body == b"7"


def test_closing_a_consumer_gives_back_what_was_not_seen(mq: fastmq.Client, queue: str) -> None:
    for i in range(50):
        mq.publish(queue, b"%d" % i)
    mq.flush()
    messages = mq.consume(queue)
    first = next(messages)
    messages.close()
    wait_until(lambda: counts(mq, queue) == (49, 1))
    first.ack()
    again = mq.consume(queue, auto_ack=True, timeout=10)
    assert [(message.body, message.redelivered) for message in islice(again, 49)] == [(b"%d" % i, False) for i in range(1, 50)]
    wait_until(lambda: counts(mq, queue) == (0, 0))


def test_exclusive_queues_end_with_their_client(broker: fastmq.Broker, mq: fastmq.Client) -> None:
    with fastmq.connect(broker.url) as other:
        info = other.declare_queue(exclusive=True)
        assert info.name.startswith("amq.gen-")
        with pytest.raises(fastmq.Refused) as caught:
            mq.consume(info.name)
        assert caught.value.code == "resource-locked"
    wait_until(lambda: info.name not in [each["name"] for each in mq.status()["queues"]])


def test_refusals_are_raised_with_their_codes(mq: fastmq.Client, queue: str) -> None:
    for code, kind, call in (
        ("no-queue", fastmq.NotFound, lambda: mq.declare_queue("missing", passive=True)),
        ("no-queue", fastmq.NotFound, lambda: mq.consume("missing")),
        ("no-queue", fastmq.NotFound, lambda: mq.get("missing")),
        ("no-exchange", fastmq.NotFound, lambda: mq.bind_queue(queue, "missing")),
        ("precondition-failed", fastmq.Refused, lambda: mq.declare_queue(queue, durable=False)),
        ("access-refused", fastmq.Refused, lambda: mq.declare_queue("amq.mine")),
    ):
        with pytest.raises(kind) as caught:
            call()
        assert caught.value.code == code
    mq.publish("missing", b"", message_id="m")
    mq.publish("nobody", b"", exchange="amq.topic", mandatory=True)
    mq.publish("nobody", b"", exchange="amq.topic")
    mq.publish("x", b"", exchange="missing")
    with pytest.raises(fastmq.PublishError) as refused:
        mq.flush()
    assert [(each.code, each.exchange, each.routing_key, each.message_id) for each in refused.value.failures] == [
        ("no-queue", "", "missing", "m"), ("unroutable", "amq.topic", "nobody", None), ("no-exchange", "missing", "x", None),
    ]  # fmt: skip


def test_deleting_a_queue_ends_its_consumers(mq: fastmq.Client) -> None:
    mq.declare_queue("client-doomed")
    messages = mq.consume("client-doomed")
    assert mq.delete_queue("client-doomed") == 0
    with pytest.raises(fastmq.NotFound):
        next(messages)


@transports
def test_live_events_exact_and_topic(mq: fastmq.Client, queue: str) -> None:
    exact, topic = mq.subscribe(queue, timeout=5), mq.subscribe("a.*", exchange="amq.topic", kind="topic", timeout=5)
    for i in range(500):
        mq.publish(queue, b"%d" % i)
        mq.publish("a.b", b"%d" % i, exchange="amq.topic", headers={"i": i})
        mq.publish("b.a", b"", exchange="amq.topic")
    assert [next(exact).body for _ in range(500)] == [b"%d" % i for i in range(500)]
    assert [next(topic).headers["i"] for _ in range(500)] == list(range(500))
    assert (exact.lost, topic.lost) == (0, 0)
    exact.close()
    topic.close()


def test_a_full_window_blocks_publish_and_memory_stays_bounded(run: Run) -> None:
    with fastmq.Broker(workers=1, publish_window_messages=50) as broker:
        proxy, url = proxied(broker)
        with proxy, fastmq.connect(broker.url) as direct, fastmq.connect(url) as mq:
            direct.declare_queue("q")
            proxy.stall = True
            for _ in range(50):
                mq.publish("q", b"x" * 1000)
            for _ in range(3):
                with pytest.raises(fastmq.TimedOut):
                    mq.publish("q", b"not published", timeout=0.02)
            proxy.stall = False
            mq.flush()
            assert direct.purge_queue("q") == 50


def test_threads_share_a_client(broker: fastmq.Broker, mq: fastmq.Client, queue: str) -> None:
    count, producers, consumers = 3000, 3, 3
    got: list[bytes] = []

    def produce(name: int) -> None:
        for i in range(count):
            mq.publish(queue, b"%d:%d" % (name, i))
        mq.flush()

    def consume() -> None:
        messages = mq.consume(queue, prefetch=100, timeout=0.1)
        while len(got) < count * producers:
            for message in messages:
                with message:
                    got.append(message.body)
        messages.close()

    threads = [threading.Thread(target=produce, args=(name,)) for name in range(producers)]
    threads += [threading.Thread(target=consume) for _ in range(consumers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == sorted(b"%d:%d" % (name, i) for name in range(producers) for i in range(count))
    wait_until(lambda: counts(mq, queue) == (0, 0))


@transports
def test_requests_come_behind_large_bodies_that_were_published_before_them(mq: fastmq.Client, queue: str) -> None:
    for _ in range(5):
        for _ in range(12):
            mq.publish(queue, b"x" * 1_000_000)
        assert mq.purge_queue(queue) == 12
        mq.flush()
        assert mq.purge_queue(queue) == 0


@pytest.mark.parametrize(("padding", "ahead"), [(0, 20_000), (150_000, 200)])  # small ones, and those that go through the arena
@pytest.mark.parametrize(("transport", "seed"), [("tcp", 1), ("tcp", 2), ("unix", 1), ("unix", 2)])
def test_cut_connections_lose_and_double_nothing(
    broker: fastmq.Broker, mq: fastmq.Client, queue: str, transport: str, seed: int, padding: int, ahead: int
) -> None:
    """Both ends are cut at random, ten times each; every message comes, in order, and is in the queue once."""
    rnd, published, cuts = random.Random(seed), 0, 10
    firsts: list[int] = []
    doubled: list[bytes] = []
    ended, stop = threading.Event(), threading.Event()
    (front, front_url), (back, back_url) = proxied(broker, transport), proxied(broker, transport)

    def cut() -> None:
        while not stop.wait(rnd.uniform(0.001, 0.03)):
            rnd.choice([front, back]).cut()

    def consume() -> None:
        with fastmq.connect(back_url, timeout=20) as client:
            messages = client.consume(queue, prefetch=300, timeout=0.2)
            while not (ended.is_set() and len(firsts) == published):
                for message in messages:
                    if message.body == body_of(len(firsts)):
                        firsts.append(len(firsts))
                    elif not message.redelivered:
                        doubled.append(message.body[:10])  # again, or before its turn
                    message.ack()

    def keeps_up() -> bool:
        return len(firsts) > published - ahead

    def body_of(number: int) -> bytes:
        return b"%d" % number + bytes([number % 256]) * padding

    with front, back:
        threads = [threading.Thread(target=cut), threading.Thread(target=consume)]
        for thread in threads:
            thread.start()
        with fastmq.connect(front_url, timeout=20) as client:
            while min(front.accepted, back.accepted) <= cuts:
                client.publish(queue, body_of(published))
                published += 1
                if published % (ahead // 20) == 0:
                    wait_until(keeps_up)
            stop.set()
            client.flush(20)
            ended.set()
        for thread in threads:
            thread.join()
    assert firsts == list(range(published))
    assert doubled == []
    mq.purge_queue(queue)  # what the last cut gave back


def two_free_ports() -> int:
    """The first of two neighbours that nobody has: commands and events. The kernel gives none of these to a connection meanwhile."""
    for port in range(20000 + os.getpid() % 5000 * 2, 32000, 2):
        with socket.socket() as one, socket.socket() as two:
            try:
                one.bind(("127.0.0.1", port))
                two.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port
    raise AssertionError("no two free ports")


def test_a_client_goes_on_with_another_broker_at_the_same_address(run: Run) -> None:
    """The first one keeps nothing: the client begins a new session, and what had no outcome is published there."""
    port = two_free_ports()
    with fastmq.Broker(workers=1, port=port) as first:
        mq = fastmq.connect(first.url, timeout=10)
        mq.declare_queue("q")
        messages = mq.consume("q", timeout=10)
        events = mq.subscribe("q", timeout=10)
        mq.publish("q", b"1")
        held = next(messages)
        assert next(events).body == b"1"
        session = mq.session_id
    assert mq.publish("q", b"2") == 2
    with fastmq.Broker(workers=1, port=port) as second, fastmq.connect(second.url) as other:
        with pytest.raises(fastmq.NotFound):  # its queue is gone
            next(messages)
        with pytest.raises(fastmq.PublishError) as caught:
            mq.flush()
        assert [failure.code for failure in caught.value.failures] == ["no-queue"]
        assert mq.session_id != session
        held.ack()
        assert mq.stale_settlements == 1
        mq.declare_queue("q")
        mq.publish("q", b"3")

        def heard() -> bool:
            other.publish("q", b"again")
            return events.next(timeout=0.1) is not None

        wait_until(heard)
        assert events.lost > 0
        assert mq.consume("q", timeout=5).next().body == b"3"
        mq.close()


def test_what_was_acknowledged_on_arrival_outlives_a_cut_connection(broker: fastmq.Broker, mq: fastmq.Client, queue: str) -> None:
    """Nobody else will get it: it comes out of the local buffer, each once, and what is published later behind it."""
    front, url = proxied(broker)
    with front, fastmq.connect(url, timeout=10) as client, client.consume(queue, prefetch=100, auto_ack=True, timeout=5) as messages:
        for n in range(50):
            mq.publish(queue, b"%d" % n)
        mq.flush()
        wait_until(lambda: mq.status()["queues"] and mq.get(queue) is None and not unacknowledged(mq, queue), what="all is acknowledged")
        first = next(messages)
        front.cut()
        mq.publish(queue, b"50")
        bodies = [first.body, *(next(messages).body for _ in range(50))]
        assert bodies == [b"%d" % n for n in range(51)]


def test_client_is_closed_in_the_child_of_a_fork_and_goes_on_in_the_parent(mq: fastmq.Client, broker: fastmq.Broker, queue: str) -> None:
    mq.publish(queue, b"parent")
    mq.flush()
    child = os.fork()
    if not child:
        try:
            for call in (lambda: mq.publish(queue, b"lost"), mq.flush, lambda: mq.get(queue), lambda: next(mq.consume(queue))):
                with pytest.raises(fastmq.Closed):
                    call()
            mq.close()
            with fastmq.connect(broker.url) as own:
                own.publish(queue, b"child")
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    mq.publish(queue, b"parent again")
    mq.flush(timeout=None)
    bodies: list[bytes] = []
    with mq.consume(queue, timeout=-1) as messages:  # none left to wait: what has come

        def all_came() -> bool:
            bodies.extend(message.body for message in messages)
            return len(bodies) >= 3

        wait_until(all_came)
    assert bodies == [b"parent", b"child", b"parent again"]



@transports
def test_large_bodies_are_kept_until_their_outcomes_and_no_longer(mq: fastmq.Client, queue: str) -> None:
    body = os.urandom(300_000)
    before = sys.getrefcount(body)
    for _ in range(20):
        mq.publish(queue, body)
    mq.flush()
    assert sys.getrefcount(body) == before, "they are confirmed"
    for _ in range(5):
        mq.publish("nobody's", body)
    with pytest.raises(fastmq.PublishError):
        mq.flush()
    assert sys.getrefcount(body) == before, "they are refused"
    assert [message.body == body for message in mq.consume(queue, timeout=0.3, auto_ack=True)] == [True] * 20


def unacknowledged(mq: fastmq.Client, queue: str) -> int:
    return next(row["messages_unacknowledged"] for row in mq.status()["queues"] if row["name"] == queue)
