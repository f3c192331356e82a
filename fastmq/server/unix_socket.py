"""Binding a front-end's sockets to unix sockets as well, and taking away what a dead broker has left at their paths.

Owns: the files of the sockets; nobody else removes them. Rules: nothing is removed but a socket that nobody listens on, and the own ones at the
end; two brokers that start at the same path at the same time do not remove each other's. Runs in front-ends, before they are ready and when
they stop.
"""
from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

LOCK_S = 2.0                # how long another that starts in the same folder is waited for
RETRY_S = 0.01              # between two looks whether it is done


class CannotListen(Exception):
    """An address cannot be bound, for a reason that an operator can understand."""


class SocketFile(NamedTuple):
    """The file of a socket; who has put another one in its place is not bothered."""

    path: str
    device: int
    inode: int

    @classmethod
    def at(cls, path: str) -> SocketFile:
        found = os.lstat(path)
        return cls(path, found.st_dev, found.st_ino)

    def remove(self) -> None:
        with contextlib.suppress(OSError):
            if self == SocketFile.at(self.path):
                os.unlink(self.path)


def bind_unix(bind: Callable[[str], None], path: str, mode: int) -> list[SocketFile]:
    """Let `bind` make the unix socket at `path` (`@name`: an abstract one), with permissions `mode`; the files made. Raises CannotListen."""
    try:
        if path.startswith("@"):
            bind(path)
            return []
        with alone_in(os.path.dirname(path)):
            remove_stale(path)
            umask = os.umask(0o777 & ~mode)
            try:
                bind(path)
            finally:
                os.umask(umask)
            return [SocketFile.at(path)]
    except OSError as error:                    # zmq.ZMQError is one
        raise CannotListen(f"cannot listen on {path} (unix): {os.strerror(error.errno or 0)}") from None


@contextlib.contextmanager
def alone_in(folder: str) -> Iterator[None]:
    """Keep other brokers from looking at the sockets of a folder and binding there meanwhile; who keeps its lock for long is passed over."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + LOCK_S
        while time.monotonic() < deadline:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(RETRY_S)
        yield
    finally:
        os.close(descriptor)


def remove_stale(path: str) -> None:
    """Remove a socket that nobody listens on any more. Raises CannotListen where there is anything else, OSError where it cannot."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise CannotListen(f"cannot listen on {path} (unix): there is a file of that name, which is not a socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass                                # so many wait there that no more fit
    raise CannotListen(f"cannot listen on {path} (unix): another program listens there")
