"""The helper thread of a client: makes connections, and again after a loss; all else it does without the GIL (connection.pyx)."""

from __future__ import annotations

import random
import socket
import struct
import threading
import weakref
from typing import TYPE_CHECKING

from fastmq.client.connection import Connection, Helper, HelperCall
from fastmq.client.url import Address, parse_endpoint
from fastmq.errors import FastMQError

if TYPE_CHECKING:
    from fastmq.client.client import Client

PAUSE_MIN_S = 0.01
PAUSE_MAX_S = 1.0
CONNECT_S = 5.0


def open_socket(address: Address, timeout: float) -> socket.socket:
    """A connected socket, non-blocking; raises OSError."""
    if address.path:
        return open_unix_socket(address.path, timeout)
    sock = socket.create_connection((address.host, address.port), timeout)
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return sock


def open_unix_socket(path: str, timeout: float) -> socket.socket:
    """A non-blocking connect would fail where many wait to be accepted, and settimeout() makes it one: the kernel's own limit waits."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        whole = int(timeout)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", whole, max(1, int((timeout - whole) * 1e6))))
        sock.connect("\0" + path[1:] if path.startswith("@") else path)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def reason(error: OSError) -> str:
    """What an OSError of connecting means, as a sentence's end."""
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there; start a broker with `fastmq serve`"
    if isinstance(error, FileNotFoundError):
        return "there is no such socket; start a broker with `fastmq serve --unix`"
    if isinstance(error, PermissionError):
        return "the permissions of the socket, or of a folder above it, do not let this user in"
    if isinstance(error, TimeoutError | BlockingIOError):
        return "nothing answers there"
    return error.strerror or str(error)


class Link:
    """Both connections of one client, kept by one thread. Holds the client weakly, so that a forgotten client is closed."""

    def __init__(self, client: Client, address: Address, commands: Connection, events: Connection) -> None:
        self._client = weakref.ref(client)
        self._address = address
        self._commands = commands
        self._events = events
        self._helper = Helper(commands, events)
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._failures = {id(commands): 0, id(events): 0}
        self._events_session = 0  # the session (by number) in which the events connection was made
        commands.address = events.address = str(address)

    def connect(self, timeout: float) -> None:
        """Make the first command connection, in the calling thread, in place of one that failed; raises OSError."""
        self._close_socket(self._commands)
        self._attach(self._commands, self._address, timeout)

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="fastmq-client", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End both connections and the thread."""
        self._closed.set()
        self._commands.close()
        self._events.close()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(CONNECT_S + 1)
        for connection in (self._commands, self._events):
            self._close_socket(connection)

    def _run(self) -> None:
        self._helper.block_signals()
        while True:
            call = self._helper.run()
            if call == HelperCall.HELPER_CLOSE:
                return
            if call == HelperCall.HELPER_COMMANDS:
                self._again(self._commands)
            elif call == HelperCall.HELPER_EVENTS:
                self._again(self._events)
            else:
                self._failures[id(self._commands)] = 0
                self._subscribe_again()

    def _again(self, connection: Connection) -> None:
        """Try to make a lost connection again; before the next try there is a pause that grows with the failures in a row."""
        self._close_socket(connection)
        why = connection.why_broken
        connection.problem = why[1] if why else connection.problem
        failures = self._failures[id(connection)]
        self._failures[id(connection)] = failures + 1
        connection.pause(min(PAUSE_MAX_S, PAUSE_MIN_S * 2 ** min(failures, 10)) * random.uniform(0.5, 1.0))
        try:
            if connection is self._commands:
                self._attach(connection, self._address, CONNECT_S)
            else:
                self._attach_events()
        except OSError as error:
            connection.problem = reason(error)
        except FastMQError as error:
            connection.problem = str(error)

    def _attach_events(self) -> None:
        """SUBSCRIBE for what this session has not asked for yet, then the connection, which subscribes to all."""
        client = self._client()
        if client is None:
            return
        self._events_session = client._ask_for_topics()
        endpoint = client._events_endpoint
        del client
        self._attach(self._events, parse_endpoint(endpoint, self._address), CONNECT_S)
        self._failures[id(self._events)] = 0

    def _subscribe_again(self) -> None:
        """After a new session: its live subscriptions begin anew, on a new connection, because the front-end may be another one."""
        client = self._client()
        if client is not None and not self._events.is_dormant and self._events_session != client._welcomes:
            self._events.cut_off()

    def _attach(self, connection: Connection, address: Address, timeout: float) -> None:
        sock = open_socket(address, timeout)
        if self._closed.is_set():
            sock.close()
            return
        connection.attach(sock.detach())

    @staticmethod
    def _close_socket(connection: Connection) -> None:
        descriptor = connection.detach()
        if descriptor >= 0:
            socket.socket(fileno=descriptor).close()


