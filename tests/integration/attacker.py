"""What attacks a broker: a bare client that sends any frames, a connection that speaks any ZMTP, and a watch over the broker's processes."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from pathlib import Path

import msgpack
import zmq
from waiting import wait_until

import fastmq
from fastmq.errors import CODE_OF_NUMBER
from fastmq.wire.verbs import Verb

CODES = set(CODE_OF_NUMBER.values()) - {"internal"}
MB = 2**20


def record(key="q", body=b"x", properties=None):
    return msgpack.packb([key, properties, body])


def packed(*values):
    return msgpack.packb(list(values))


def command_port(broker):
    return int(broker.url.rstrip("/").rpartition(":")[2])


class Bare:
    """One DEALER connection, and the session it has after `hello`."""

    def __init__(self, broker, hello=True, receive_mark=0, identity=b""):
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.sndhwm = 0
        self.socket.rcvhwm = receive_mark
        self.socket.reconnect_ivl = -1
        self.socket.setsockopt(zmq.RCVTIMEO, 10_000)
        if identity:
            self.socket.routing_id = identity
        self.socket.connect(f"tcp://127.0.0.1:{command_port(broker)}")
        self.session, self.incarnation, self.sequence, self.numbers = b"", 0, 0, 0
        if hello:
            self.hello()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.context.destroy(linger=0)

    def raw(self, *frames):
        self.socket.send_multipart(frames)

    def send(self, verb, *fields, records=None, session=None, incarnation=None):
        session = self.session if session is None else session
        incarnation = self.incarnation if incarnation is None else incarnation
        header = msgpack.packb([int(verb), session, incarnation, *fields])
        self.raw(header, *([] if records is None else [records]))

    def receive(self):
        """The next answer: [verb, public half, incarnation, fields...]."""
        return msgpack.unpackb(self.socket.recv_multipart()[0], strict_map_key=False)

    def error(self):
        """The next answer, which has to be an ERROR with a known code and a sentence; its code."""
        answer = self.receive()
        assert answer[0] == Verb.ERROR, answer
        assert answer[4] in CODES, answer
        assert len(answer[5]) > 10, answer
        return answer[4]

    def hello(self, session=None, incarnation=0):
        self.send(Verb.HELLO, 1, "/", "attacker", 0, {}, session=session or b"", incarnation=incarnation)
        answer = self.receive()
        assert answer[0] == Verb.WELCOME, answer
        self.session, self.incarnation, self.window = answer[3], answer[2], answer[6:8]
        self.events_endpoint = answer[8]
        return answer

    def ask(self, verb, *fields):
        """A request with a number of its own; its REPLY or ERROR."""
        self.numbers += 1
        self.send(verb, self.numbers, *fields)
        while True:
            answer = self.receive()
            if answer[0] in (Verb.REPLY, Verb.ERROR) and answer[3] == self.numbers:
                return answer

    def ok(self, verb, *fields):
        answer = self.ask(verb, *fields)
        assert answer[0] == Verb.REPLY, answer
        return answer[4]

    def refused(self, verb, *fields):
        answer = self.ask(verb, *fields)
        assert answer[0] == Verb.ERROR, answer
        assert answer[4] in CODES and len(answer[5]) > 10, answer
        return answer[4]

    def publish(self, *records, exchange="", floor=None, first=None, count=None, flags=0):
        first = self.sequence + 1 if first is None else first
        count = len(records) if count is None else count
        self.send(Verb.PUBLISH, first if floor is None else floor, first, count, exchange, flags, records=b"".join(records))
        self.sequence = max(self.sequence, first + count - 1)

    def outcome(self):
        """The next CONFIRM: (up to, ranges, [(first, last, code)...])."""
        answer = self.receive()
        assert answer[0] == Verb.CONFIRM, answer
        assert all(code in CODES and text for _, _, code, text in answer[5]), answer
        return answer[3], answer[4], [tuple(item[:3]) for item in answer[5]]

    def alive(self):
        """The session lives: a request is answered."""
        assert self.ask(Verb.SUBSCRIBE, "amq.topic", "t", "alive.#")[0] == Verb.REPLY

    def drain(self, quiet_ms=100):
        """All answers until none comes for a while."""
        answers = []
        while self.socket.poll(quiet_ms):
            answers.append(self.receive())
        return answers


def row_of(bare, queue):
    return next(row for row in bare.ok(Verb.STATUS, {})["queues"] if row["name"] == queue)


# ---- ZMTP by hand

GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" + bytes(31)


def frame(data, flags=0):
    """One ZMTP frame; flags 1: more follow, 4: a command."""
    if len(data) < 256:
        return struct.pack(">BB", flags, len(data)) + data
    return struct.pack(">BQ", flags | 2, len(data)) + data


def command(name, data=b""):
    return frame(bytes([len(name)]) + name + data, 4)


def ready(kind=b"DEALER", identity=b""):
    properties = b""
    for key, value in ((b"Socket-Type", kind), (b"Identity", identity)):
        properties += bytes([len(key)]) + key + struct.pack(">I", len(value)) + value
    return command(b"READY", properties)


class Wire:
    """A TCP connection to one of the broker's ports."""

    def __init__(self, port, handshake=b"", timeout=10.0):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.heard = b""
        if handshake:
            self.send(GREETING + ready(handshake))
            wait_until(lambda: self.read() and b"READY" in self.heard, what="the broker's READY")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, data):
        """Send what the broker takes; False when it has closed the connection."""
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def read(self):
        """Read a little; b"" at the end, else what was read (`heard` has all)."""
        try:
            data = self.socket.recv(65536)
        except ConnectionResetError:
            return b""
        self.heard += data
        return data

    def closed_within(self, seconds):
        """Wait for the broker to close the connection, or to fail after so many seconds; how long it took."""
        began = time.monotonic()
        while True:
            self.socket.settimeout(max(0.01, began + seconds - time.monotonic()))
            try:
                if not self.read():
                    return time.monotonic() - began
            except TimeoutError:
                raise AssertionError(f"still open after {seconds} s; heard {self.heard[-100:]!r}") from None


# ---- the broker's processes, and somebody who uses it meanwhile

def memory_of(pid):
    """Bytes of memory that are the process's own."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024


class Watch:
    """The processes of a broker, and a client whose messages go round and round until `stop`."""

    def __init__(self, broker):
        self.broker = broker
        self.client = fastmq.connect(broker.url)
        self.pids = self.processes()
        self.client.declare_queue("watch")
        self.times = []
        self.error = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        wait_until(lambda: len(self.times) >= 20 or self.error)
        self.calm = self.percentile()

    def processes(self):
        return {(row["role"], row["index"]): row["pid"] for row in self.client.status()["processes"]}

    def _run(self):
        try:
            with fastmq.connect(self.broker.url) as mq, mq.consume("watch", prefetch=10) as consumer:
                number = 0
                while not self._ended.wait(0.002):
                    began = time.monotonic()
                    mq.publish("watch", b"%d" % number)
                    message = next(consumer)
                    assert (message.body, message.redelivered) == (b"%d" % number, False)
                    message.ack()
                    self.times.append(time.monotonic() - began)
                    number += 1
        except BaseException as error:
            self.error = error

    def percentile(self, part=0.99, since=0):
        times = sorted(self.times[since:])
        return times[int(len(times) * part)] if times else 0.0

    def stop(self):
        self._ended.set()
        self._thread.join(20)
        assert not self._thread.is_alive(), "the well-behaved client hangs"
        self.client.close()

    def memory(self):
        return {name: memory_of(pid) for name, pid in self.pids.items()}

    def check(self):
        """No process has died, nobody's messages hang."""
        assert self.error is None, self.error
        before = len(self.times)
        wait_until(lambda: self.error or len(self.times) >= before + 3, what="the well-behaved client's messages go round")
        assert self.error is None, self.error
        assert self.processes() == self.pids, "a process died"
        assert all(os.path.exists(f"/proc/{pid}") for pid in self.pids.values())
        log = self.broker.log_tail(100_000)
        assert "Traceback" not in log, log


class Growth:
    """Memory that the processes have taken since this was made."""

    def __init__(self, watch):
        self.watch = watch
        self.before = watch.memory()

    def now(self):
        return {name: size - self.before[name] for name, size in self.watch.memory().items()}

    def stays_below(self, limit, timeout=0.0):
        """Fail if a process has grown more than `limit` bytes, after a while in which it may give back."""
        def small():
            grown = self.now()
            assert max(grown.values()) < limit, {name: f"{size / MB:.1f} MB" for name, size in grown.items()}
            return True
        wait_until(small, timeout=timeout)
