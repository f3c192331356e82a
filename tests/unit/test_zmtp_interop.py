"""The client's cores against the ZeroMQ library itself: DEALER to ROUTER, SUB to XPUB, heartbeats."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import msgpack
import pytest
import zmq
from waiting import wait_until

from fastmq.client.core import ClientCore
from fastmq.client.events import EventsCore
from fastmq.client.peer import Peer
from fastmq.wire.verbs import Verb

SESSION = b"publicx!" + b"proof..."


class Wire:
    """A core on a socket, pumped by hand."""

    def __init__(self, core: Peer, port: int) -> None:
        self.core = core
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.settimeout(0.002)
        self.now = 1
        core.connected(self.now)

    def pump(self) -> None:
        self.now += 1
        out = self.core.take_output(self.now) if isinstance(self.core, ClientCore) else self.core.take_unsent()
        if out:
            self.socket.sendall(out)
        try:
            data = self.socket.recv(65536)
        except TimeoutError:
            return
        self.core.feed(data, self.now)


@pytest.fixture
def context() -> Iterator[zmq.Context]:
    context = zmq.Context()
    yield context
    context.destroy(0)


def receive(wire: Wire, sock: zmq.Socket) -> list[bytes]:
    def arrived() -> bool:
        wire.pump()
        return bool(sock.poll(0))

    wait_until(arrived)
    return sock.recv_multipart()


def test_client_core_and_router_talk(context: zmq.Context) -> None:
    router = context.socket(zmq.ROUTER)
    wire = Wire(core := ClientCore("/", "me"), router.bind_to_random_port("tcp://127.0.0.1"))
    address, header = receive(wire, router)
    assert msgpack.unpackb(header) == [Verb.HELLO, b"", 0, 1, "/", "me", 0, {}]
    welcome = [Verb.WELCOME, SESSION[:8], 1, SESSION, 1, {}, 100, 2**20, "tcp://127.0.0.1:1"]
    router.send_multipart([address, msgpack.packb(welcome)])
    wait_until(lambda: wire.pump() or core.session_id)
    big = bytes(300_000)
    assert core.publish("key", big) == 1
    _, header, records = receive(wire, router)
    assert msgpack.unpackb(header) == [Verb.PUBLISH, SESSION, 1, 1, 1, 1, "", 0]
    assert msgpack.unpackb(records) == ["key", None, big]
    confirm = [Verb.CONFIRM, SESSION[:8], 1, 1, [], [], 101, 2**21]
    router.send_multipart([address, msgpack.packb(confirm)])
    wait_until(lambda: wire.pump() or core.open_count == 0)
    wire.socket.close()


def test_client_core_answers_the_library_s_heartbeats(context: zmq.Context) -> None:
    router = context.socket(zmq.ROUTER)
    router.heartbeat_ivl = 20
    router.heartbeat_timeout = 200
    monitor = router.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    wire = Wire(ClientCore(), router.bind_to_random_port("tcp://127.0.0.1"))
    receive(wire, router)
    for _ in range(250):  # well beyond the timeout: each pump waits 2 ms
        wire.pump()
    assert monitor.poll(0) == 0
    assert wire.core.why_broken is None
    router.disable_monitor()
    monitor.close(0)
    wire.socket.close()


def test_events_core_subscribes_and_receives(context: zmq.Context) -> None:
    xpub = context.socket(zmq.XPUB)
    xpub.xpub_verboser = True
    core = EventsCore()
    number = core.subscribe(b"/\0logs\0t\0a.*\0")
    wire = Wire(core, xpub.bind_to_random_port("tcp://127.0.0.1"))
    assert receive(wire, xpub) == [b"\x01/\0logs\0t\0a.*\0"]
    record = msgpack.packb(["a.b", None, b"body"])
    topic = b"/\0logs\0t\0a.*\0"
    xpub.send_multipart([topic, msgpack.packb([5, 1, 0]), b""])
    xpub.send_multipart([topic, msgpack.packb([5, 1, 2]), record * 2])
    found: list[tuple[str, bytes, bytes]] = []

    def both() -> bool:
        wire.pump()
        found.extend(core.take_events(number))
        return len(found) == 2

    wait_until(both)
    assert found == [("a.b", b"", b"body")] * 2
    assert core.status(number) == (True, 0, 0)
    assert core.unsubscribe(number)
    assert receive(wire, xpub) == [b"\x00/\0logs\0t\0a.*\0"]
    wire.socket.close()


@pytest.mark.parametrize(("kind", "code"), [(zmq.PULL, "not-fastmq"), (zmq.XPUB, "not-fastmq"), (zmq.REP, "not-fastmq")])
def test_other_socket_types_are_recognised(context: zmq.Context, kind: int, code: str) -> None:
    sock = context.socket(kind)
    wire = Wire(ClientCore(), sock.bind_to_random_port("tcp://127.0.0.1"))
    wait_until(lambda: wire.pump() or wire.core.why_broken)
    assert wire.core.why_broken is not None
    assert wire.core.why_broken[0] == code
    wire.socket.close()
