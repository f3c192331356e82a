"""A front-end on real sockets in the test's own process: the front desk behind `Connections` and its loop, and clients that speak ZMTP."""

from __future__ import annotations

import contextlib
import gc
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
from client_script import GREETING, frame
from front_desk import MS, Desk, sid_of
from leaks import own_sockets
from waiting import wait_until

from fastmq.server.connections import Connections
from fastmq.server.frontend_loop import FrontendLoop
from fastmq.wire.link import LinkKind
from fastmq.wire.verbs import Verb
from fastmq.wire.zmtp import ZmtpPeer, ZmtpRole

MB = 2**20
BULK_MIN = 294912                       # what is smaller the main thread sends, unless it lies in an arena: see server/gathered.pxd
READY = b"\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06DEALER"
BUFFER_SIZE = 65536                     # of each socket: so small that who does not read soon takes no more
SENT_AT_ONCE = 2**18


def body(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def mappings() -> int:
    """How many mappings of arenas this process has."""
    return Path("/proc/self/maps").read_text().count("memfd:fastmq-arena")


def ping(ttl_ms: int = 0, context: bytes = b"") -> bytes:
    body = b"\x04PING" + struct.pack("!H", ttl_ms // 100) + context
    return b"\x04" + bytes([len(body)]) + body


def pong(context: bytes = b"") -> bytes:
    return b"\x04" + bytes([5 + len(context)]) + b"\x04PONG" + context


class Client:
    """One connection, and its session after `hello`. It reads whenever time passes, unless `reads` is false."""

    def __init__(self, end: End, handshake: bool = True, source: str = "") -> None:
        self.end = end
        self.socket = socket.socket(end.listener.family)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_SIZE)
        if source:
            self.socket.bind((source, 0))
        self.socket.connect(end.address)
        self.socket.setblocking(False)
        self.zmtp = ZmtpPeer(ZmtpRole.ZMTP_DEALER, 2**28)
        self.zmtp.take_output()
        self.reads, self.ended = True, False
        self.unsent = bytearray(GREETING + READY if handshake else b"")
        self.heard = b""                                                # the last bytes that came
        self.answers: list[list[Any]] = []                              # [verb, public half, incarnation, fields..., records]
        self.session, self.incarnation, self.sequence, self.numbers = b"", 0, 0, 0
        self.told_bytes = self.sent_bytes = 0                           # of its window, as a test has counted
        end.clients.append(self)

    @property
    def sid(self) -> int:
        return sid_of(self.session)

    # ---- bytes

    def send_some(self, size: int = SENT_AT_ONCE) -> None:
        """Send what the front-end takes of what is to be sent, and no more than `size` bytes."""
        try:
            if self.unsent and not self.ended:
                del self.unsent[: self.socket.send(memoryview(self.unsent)[:size].tobytes())]
        except BlockingIOError:
            pass
        except (BrokenPipeError, ConnectionResetError):
            self.ended = True

    def read_some(self, size: int = 2**20) -> int:
        """Read at most so many bytes of what is there; how many it was. The stream must be good ZMTP."""
        done = 0
        while done < size and not self.ended:
            try:
                data = self.socket.recv(min(size - done, 65536))
            except BlockingIOError:
                break
            except ConnectionResetError:
                data = b""
            self.ended = not data
            done += len(data)
            self.heard = (self.heard + data)[-65536:]
            for header, *records in self.zmtp.feed(data):
                self.answers.append([*msgpack.unpackb(header, strict_map_key=False), *records])
            assert self.zmtp.error == 0, f"the stream is torn: {self.heard[-100:]!r}"
            if (output := self.zmtp.take_output()) and not self.ended:
                self.unsent += b"" if output.startswith(b"\x04\x29\x05READY") else output
        return done

    def wait_for_bytes(self) -> None:
        """Until there is something to read."""

        def come() -> bool:
            with contextlib.suppress(BlockingIOError):
                return bool(self.socket.recv(1, socket.MSG_PEEK))
            return False

        self.end.until(come)

    def step(self) -> None:
        self.send_some()
        if self.reads:
            self.read_some()

    def close(self) -> None:
        """Close the connection once all was sent that is to be."""
        wait_until(lambda: not self.unsent or self.ended or self.end.pump(), interval=0)
        self.socket.close()
        self.end.clients.remove(self)

    # ---- requests

    def request(self, verb: int, *fields: Any, records: bytes | None = None, incarnation: int | None = None) -> bytes:
        """The bytes of a request."""
        header = msgpack.packb([int(verb), self.session, self.incarnation if incarnation is None else incarnation, *fields])
        return frame(header, records is not None) + (frame(records) if records is not None else b"")

    def say(self, verb: int, *fields: Any, records: bytes | None = None, incarnation: int | None = None) -> None:
        self.unsent += self.request(verb, *fields, records=records, incarnation=incarnation)

    def say_hello(self) -> None:
        self.say(Verb.HELLO, 1, "/", "test", 5, {}, incarnation=self.incarnation + 1 if self.session else 0)

    def hello(self) -> None:
        self.say_hello()
        welcome = self.take(Verb.WELCOME)
        self.incarnation, self.session, self.sequence = welcome[2], welcome[3], 0

    def publish(self, *records: bytes) -> int:
        """The sequence of the last one."""
        self.say(Verb.PUBLISH, self.sequence + 1, self.sequence + 1, len(records), "", 0, records=b"".join(records))
        self.sequence += len(records)
        return self.sequence

    def take(self, verb: int, number: int | None = None) -> list[Any]:
        """Wait for an answer of this verb, and number, and take it."""

        def come() -> list[Any] | None:
            return next((a for a in self.answers if a[0] == verb and (number is None or a[3] == number)), None)

        self.end.until(lambda: come() is not None, f"{verb!r} {number or ''}; there are {[a[:4] for a in self.answers]}")
        found = come()
        assert found is not None
        self.answers.remove(found)
        return found

    def ask(self, verb: int, *fields: Any) -> Any:
        """The result of a request."""
        self.numbers += 1
        self.say(verb, self.numbers, *fields)
        return self.take(Verb.REPLY, self.numbers)[4]

    def is_served(self) -> bool:
        """Whether a request is answered."""
        return self.ask(Verb.GET, self.end.queue) is None


class End:
    """The front-end's end. Nothing happens but in `pump`. A queue is on worker 1."""

    def __init__(
        self, room_max: int = 100, attach: bool = True, region_size: int = 2**22, unix: bool = False, window_bytes: int = 2**30,
        narrow_bytes: int = 2 * MB,
    ) -> None:
        settings = {"publish_window_bytes": window_bytes, "publish_window_narrow_bytes": narrow_bytes}
        self.desk = Desk(attach=attach, settings=settings, region_size=region_size, ring_size=2**20)
        self.sessions = self.desk.sessions
        self.listener = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
        self.listener.bind("" if unix else ("127.0.0.1", 0))            # "": an abstract name that is free
        self.listener.listen(100)
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_SIZE)
        self.address = self.listener.getsockname()
        self.connections = Connections(self.sessions, [(self.listener, unix)], room_max)
        self.loop = FrontendLoop(self.sessions, self.connections)
        self.connections.start()
        self.clients: list[Client] = []
        self.loans: list[int] = []
        self.lent_to = 0                                                # bytes of the arena's half for deliveries
        self.ticked_ns = 0                                              # see grow_old in test_connections.py
        self.queue = ""
        if attach:
            peer = self.desk.peer(2**20)                                # a number that is no descriptor's
            self.queue = self.desk.queue_on(1, peer)
            self.sessions.connection_lost(*peer.address)
            self.desk.turn()
            self.desk.clear()

    def client(self, hello: bool = True, source: str = "") -> Client:
        client = Client(self, source=source)
        if hello:
            client.hello()
        return client

    def pump(self) -> None:
        """Some turns of the front-end, then all workers and clients do what there is to do."""
        self.loop.work(time.monotonic_ns() + MS)
        self.desk.work()
        for client in self.clients:
            client.step()

    def until(self, condition: Callable[[], object], what: str = "", timeout: float = 5.0) -> None:
        wait_until(lambda: condition() or self.pump() or condition(), timeout=timeout, what=what, interval=0)

    def several(self) -> None:
        """What can happen without anybody's doing has happened afterwards."""
        for _ in range(4):
            self.pump()

    def later(self, seconds: float) -> None:
        """So much time passes in which nobody says anything; then everybody has turns."""
        self.connections.age(int(seconds * 1e9))
        self.several()

    def taken(self, count: int) -> list[tuple[int, bytes]]:
        """Wait for so many publishes; (sequence, record) of each, as worker 1 got them."""
        found: list[tuple[int, bytes]] = []

        def come() -> bool:
            for _, _, _, entries in self.desk.published(1):
                for first, _, number, _, records in entries:
                    at = 0
                    unpacker = msgpack.Unpacker(max_buffer_size=2**28)
                    unpacker.feed(records)
                    for i in range(number):
                        unpacker.skip()
                        found.append((first + i, records[at : unpacker.tell()]))
                        at = unpacker.tell()
            return len(found) >= count

        self.until(come, f"{count} publishes")
        return found

    def deliver(self, client: Client, n: int, record: bytes) -> None:
        """Deliver a record to a client as its nth: from the arena where it is large, which is loan n."""
        if len(record) < BULK_MIN:
            self.desk.deliver(1, client.sid, 1, (1, n, [record], 1, ""))
        else:
            self.desk.deliver_lent(1, client.sid, 1, n, record, n, self.lent_to)
            self.lent_to += len(record)
            self.loans.append(n)

    def loans_come_back(self) -> None:
        """Wait for that of all loans, each once."""
        returned: list[int] = []

        def come() -> bool:
            for _, payload in self.desk.sent(1, LinkKind.L_LOANS_BACK):
                returned.extend(loan for (loan,) in struct.iter_unpack("<Q", payload))
            return len(returned) >= len(self.loans)

        self.until(come, "the loans")
        assert sorted(returned) == sorted(self.loans)

    def regions_done(self) -> int:
        """How many regions the front-end has handed back since this was asked last."""
        return len(self.desk.sent(1, LinkKind.L_REGION_DONE))

    def close(self) -> None:
        for client in self.clients:
            client.socket.close()
        self.connections.stop()
        del self.loop, self.connections
        for worker in range(len(self.desk.ends)):
            self.desk.kill(worker)


@contextlib.contextmanager
def opened(**options: Any) -> Iterator[End]:
    """A front-end, which leaves no socket, thread and mapping behind."""
    gc.collect()
    sockets, threads, mapped = own_sockets(), set(threading.enumerate()), mappings()
    end = End(**options)
    try:
        yield end
    finally:
        end.close()
    gc.collect()
    assert own_sockets() <= sockets
    assert set(threading.enumerate()) <= threads
    assert mappings() <= mapped
