"""The blocking client against a broker in Python: connecting, closing, requests."""

from __future__ import annotations

import gc
import socket
import threading

import pytest
import zmq
from fake_broker import FakeBroker
from leaks import own_sockets
from waiting import wait_until

import fastmq
from fastmq.wire.verbs import Verb

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
