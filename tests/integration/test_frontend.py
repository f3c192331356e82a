"""A front-end's process: clients that do not read, connections that end, and the farewell."""

import contextlib
import socket
import struct
import time

import msgpack
import pytest
import zmq
from waiting import wait_until

import fastmq
from fastmq.wire.verbs import Verb

BODY = bytes(100_000)


class Bare:
    """A client on a bare DEALER."""

    def __init__(self, broker, **options):
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        for name, value in options.items():
            self.socket.setsockopt(getattr(zmq, name.upper()), value)
        self.socket.connect("tcp://" + broker.url.removeprefix("fastmq://").rstrip("/"))
        self.session, self.incarnation, self.sequence = b"", 0, 0
        self.send(Verb.HELLO, 1, "/", "bare", 5, {})
        welcome = self.take()
        assert welcome[0] == Verb.WELCOME, welcome
        self.incarnation, self.session = welcome[2:4]

    def send(self, verb, *fields, records=None):
        header = msgpack.packb([int(verb), self.session, self.incarnation, *fields])
        self.socket.send_multipart([header] if records is None else [header, records])

    def take(self, timeout=5.0):
        """The next frame that came; None when none comes in time."""
        if not self.socket.poll(int(timeout * 1000)):
            return None
        header, *records = self.socket.recv_multipart()
        return [*msgpack.unpackb(header), *records]

    def close(self):
        self.context.destroy(linger=0)


@pytest.fixture
def broker(run):
    with fastmq.Broker(workers=1, frontend_memory_max=2**29) as broker:
        yield broker


@pytest.fixture
def bare(broker):
    clients = []

    def connect(**options):
        clients.append(Bare(broker, **options))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


def frontend_memory(mq):
    pid = next(item["pid"] for item in mq.status()["processes"] if item["role"] == "frontend")
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS:"))


def counters(bare):
    """The front-end's own counters, over a connection of their own."""
    asking = bare()
    asking.send(Verb.STATUS, 1, {})
    return asking.take()[4]["counters"]


def test_consumer_that_does_not_read_is_ended_before_it_fills_the_memory(broker, bare):
    """2,000 messages of 100 KB for a window of 64 MiB in each of three consumers; a quarter of 512 MiB may wait."""
    with fastmq.connect(broker.url, timeout=30) as mq:
        mq.declare_queue("heap")
        for _ in range(2000):
            mq.publish("heap", BODY)
        mq.flush()
        before = frontend_memory(mq)
        sleeper = bare(rcvhwm=1, rcvbuf=65536)
        for number in range(1, 4):
            sleeper.send(Verb.CONSUME, number, number, "heap", 65535, 0, {})
        wait_until(lambda: counters(bare)["clients_too_slow"] >= 1, 20, "the session is ended")
        assert frontend_memory(mq) - before < 250 * 2**20
        started = time.monotonic()
        assert mq.get("heap", timeout=5).body == BODY, "others go on"
        assert time.monotonic() - started < 2
        seen = sum(1 for _ in zip(range(1999), mq.consume("heap", auto_ack=True, timeout=5), strict=False))
        assert seen == 1999, "what it had goes back"


def test_client_that_reads_late_gets_everything_in_order(broker, bare):
    with fastmq.connect(broker.url, timeout=30) as mq:
        mq.declare_queue("late")
        late = bare(rcvhwm=1, rcvbuf=65536)
        late.send(Verb.CONSUME, 1, 1, "late", 65535, 0, {})
        for i in range(600):
            mq.publish("late", b"%04d" % i + BODY)
        mq.flush()
        found = []
        while len(found) < 600:
            frame = late.take()
            assert frame is not None, len(found)
            if frame[0] == Verb.DELIVER:
                unpacker = msgpack.Unpacker(max_buffer_size=0)
                unpacker.feed(frame[4])
                found += [int(record[2][:4]) for record in unpacker]
        assert found == list(range(600))


def test_dead_connection_of_a_descriptor_does_not_end_the_next_one(broker, bare):
    """Connections that come and go reuse descriptors; a session lives on its own only."""
    host, port = broker.url.removeprefix("fastmq://").rstrip("/").split(":")
    survivor = bare()
    for _ in range(200):
        socket.create_connection((host, int(port))).close()
        short = bare()
        short.send(Verb.STATUS, 1, {})
        assert short.take()[0] == Verb.REPLY
        short.close()
    survivor.send(Verb.SETTLE, [])
    survivor.send(Verb.STATUS, 1, {})
    assert survivor.take()[0] == Verb.REPLY


def test_clients_are_told_when_the_broker_stops(run):
    with fastmq.Broker(workers=1) as broker:
        client = Bare(broker)
        started = time.monotonic()
        broker.stop()
        assert time.monotonic() - started < 2
        frame = client.take()
        client.close()
        assert frame[0] == Verb.CLOSING
        assert frame[3] == "closing-down"


GREETING = b"\xff" + bytes(7) + b"\x01\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
READY = b"\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06DEALER"


def test_frames_that_are_announced_and_never_sent_take_no_process_down(broker):
    """400 strangers announce 50 GB and send 3 MB."""
    host, _, port = broker.url.removeprefix("fastmq://").rstrip("/").partition(":")
    strangers = []
    try:
        for size in [130 << 20] * 390 + [1 << 14] * 10:
            strangers.append(socket.create_connection((host, int(port))))
            strangers[-1].sendall(GREETING + READY + struct.pack("!BQ", 2, size) + bytes(8200))
        with fastmq.connect(broker.url) as mq:
            mq.declare_queue("calm")
            for _ in range(100):
                mq.publish("calm", bytes(1000))
                mq.flush()
                mq.get("calm", timeout=5).ack()
            assert all(row["restarts"] == 0 for row in mq.status()["processes"])
    finally:
        for stranger in strangers:
            stranger.close()


def test_large_frames_that_never_end_take_no_process_down(broker):
    """720 MB come, of which the 512 MiB that the front-end may have are not used up; who sends something whole goes on."""
    host, _, port = broker.url.removeprefix("fastmq://").rstrip("/").partition(":")
    strangers = []
    try:
        with fastmq.connect(broker.url) as mq:
            mq.declare_queue("calm")
            for _ in range(6):
                strangers.append(socket.create_connection((host, int(port)), timeout=5))
                with contextlib.suppress(OSError):              # it was closed for want of memory
                    strangers[-1].sendall(GREETING + READY + struct.pack("!BQ", 2, 130 << 20))
                    for _ in range(120):
                        strangers[-1].sendall(bytes(1_000_000))
                mq.publish("calm", bytes(2_000_000))
                mq.flush()
                mq.get("calm", timeout=5).ack()
            status = mq.status()
            assert all(row["restarts"] == 0 for row in status["processes"])
            assert status["counters"]["connections_shed"] > 0
    finally:
        for stranger in strangers:
            stranger.close()
