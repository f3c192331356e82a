"""A small proxy that can cut, stall and count, to stand between a client and a broker."""

from __future__ import annotations

import os
import select
import socket
import threading


class Proxy:
    """Forwards `url` to a target: a host and port over tcp, or the name of an abstract unix socket over another one.

    `cut()` ends all connections now; `stall` stops forwarding; `refuse` closes new ones at once.
    """

    def __init__(self, target: tuple[str, int] | str) -> None:
        self.target = target
        if isinstance(target, str):
            self.listener = socket.socket(socket.AF_UNIX)
            name = f"fastmq-proxy-{os.urandom(8).hex()}"
            self.listener.bind("\0" + name)
            self.listener.listen()
            self.port, self.url = 0, f"fastmq+unix://@{name}"
        else:
            self.listener = socket.create_server(("127.0.0.1", 0))
            self.port = self.listener.getsockname()[1]
            self.url = f"fastmq://127.0.0.1:{self.port}"
        self.stall = False
        self.refuse = False
        self.accepted = 0
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(5)
        self.cut()
        self.listener.close()

    def cut(self, after_bytes: int | None = None) -> None:
        """End all connections, with a reset, in the middle of whatever is on its way."""
        with self._lock:
            sockets, self._pairs = list(self._pairs), {}
            for sock in sockets:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                sock.close()

    def _run(self) -> None:
        while not self._ended.is_set():
            with self._lock:
                sources = [] if self.stall else [sock for sock in self._pairs if sock.fileno() >= 0]
            try:
                ready, _, _ = select.select([self.listener, *sources], [], [], 0.01)
            except (OSError, ValueError):
                continue  # cut meanwhile
            for sock in ready:
                if sock is self.listener:
                    self._accept()
                else:
                    self._forward(sock)

    def _accept(self) -> None:
        client, _ = self.listener.accept()
        if not isinstance(self.target, str):
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.accepted += 1
        if self.refuse:
            client.close()
            return
        try:
            server = self._connect()
        except OSError:
            client.close()
            return
        with self._lock:
            self._pairs[client] = server
            self._pairs[server] = client

    def _connect(self) -> socket.socket:
        if isinstance(self.target, str):
            server = socket.socket(socket.AF_UNIX)
            server.connect("\0" + self.target.removeprefix("@"))
            return server
        server = socket.create_connection(self.target, 5)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return server

    def _forward(self, sock: socket.socket) -> None:
        with self._lock:
            other = self._pairs.get(sock)
            if other is None:
                return
            try:
                data = sock.recv(65536, socket.MSG_DONTWAIT)
                if data:
                    other.settimeout(5)
                    other.sendall(data)
                    return
            except BlockingIOError:
                return
            except OSError:
                pass
            for each in (sock, other):
                self._pairs.pop(each, None)
                each.close()
