"""A small tcp proxy that can cut, stall and count, to stand between a client and a broker."""

from __future__ import annotations

import select
import socket
import threading


class Proxy:
    """Forwards 127.0.0.1:port to a target. `cut()` ends all connections now; `stall` stops forwarding; `refuse` closes new ones at once."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
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
        self.accepted += 1
        if self.refuse:
            client.close()
            return
        try:
            server = socket.create_connection(self.target, 5)
        except OSError:
            client.close()
            return
        for sock in (client, server):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._pairs[client] = server
            self._pairs[server] = client

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
