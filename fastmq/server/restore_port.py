"""How a running broker is asked to take what lies complete in restore/ of its data directory, and what it answers.

Owns: the unix socket `socket` in the data directory, mode 0600. Rules: a connection is the request while whoever brought restore/ has it
locked; nothing is read from it. The answers are lines of JSON: {"state": "stopping"}: it is taken; {"state": "restored"}, then {"state":
"serving", "url": ...}; or {"failed": "why"}. The end of the connection without either of the last two is the broker's end. One at a time. The
supervisor never waits for who asked. Path lengths do not matter: the socket is named through a descriptor of its folder. Process: supervisor,
and the command line.
"""
from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from fastmq.errors import BrokerFailed

ANSWER_SIZE_MAX = 65536
STATES = {"stopping": "the broker stops its processes", "restored": "the backup is in place; the broker starts"}


class NotTaken(BrokerFailed):
    """The broker was not reached, or refused: it did not take what lies in restore/."""


class RestorePort:
    """The supervisor's end. OSError where the file system has no sockets."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._asker: socket.socket | None = None
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            path.unlink(missing_ok=True)            # of a broker that was killed: this one has the directory's lock
            before = os.umask(0o177)
            try:
                _at(path, self._socket.bind)
            finally:
                os.umask(before)
            self._socket.listen(1)
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """To be watched for somebody who asks."""
        return self._socket.fileno()

    def accept(self) -> bool:
        """Whether somebody asks; a second one meanwhile is turned away."""
        try:
            asker, _ = self._socket.accept()
        except OSError:
            return False
        asker.setblocking(False)
        if self._asker is not None:
            _send(asker, {"failed": "the broker is restoring already"})
            asker.close()
            return False
        self._asker = asker
        return True

    def answer(self, **what: str) -> None:
        """Tell who asked, if he is still there; `failed` and the state serving are the last that he hears."""
        if self._asker is None:
            return
        _send(self._asker, what)
        if "failed" in what or what.get("state") == "serving":
            self._asker.close()
            self._asker = None

    def close(self) -> None:
        """No more is asked."""
        if self._asker is not None:
            self._asker.close()
        self._socket.close()
        with contextlib.suppress(OSError):
            self._path.unlink()


def ask(path: Path, say: Callable[[str], None]) -> bool:
    """Ask the broker whose socket this is, and wait until it serves again. False: no broker is there.

    Raises NotTaken, and BrokerFailed when it did not serve again: what it was to take is its own then.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as asking:
        try:
            _at(path, asking.connect)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError as error:
            raise NotTaken(f"the broker cannot be asked: {error.strerror}") from None
        taken = False
        with asking.makefile("rb") as answers:
            while (answer := _answer_of(answers)) is not None:
                if "failed" in answer:
                    raise (BrokerFailed if taken else NotTaken)(str(answer["failed"]))
                taken = True
                if answer.get("state") == "serving":
                    say(f"the broker serves again at {answer.get('url')}")
                    return True
                say(STATES.get(str(answer.get("state")), f"the broker says {answer}"))
    raise BrokerFailed("the broker ended before it was ready again; what it said tells why, and the next start goes on from what is there")


def _answer_of(answers: BinaryIO) -> dict[str, Any] | None:
    """The next one; None at their end."""
    try:
        line = answers.readline(ANSWER_SIZE_MAX)
        answer = json.loads(line) if line else None
    except ConnectionError:
        return None
    except ValueError:
        answer = line
    if answer is not None and not isinstance(answer, dict):
        raise BrokerFailed(f"the broker answers {answer!r}, which this fastmq does not understand")
    return answer


def _send(to: socket.socket, what: dict[str, str]) -> None:
    with contextlib.suppress(OSError):
        to.send(json.dumps(what).encode() + b"\n", socket.MSG_NOSIGNAL)


def _at(path: Path, call: Callable[[str], object]) -> None:
    """Bind or connect at a path that may be longer than a socket's address."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        call(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)
