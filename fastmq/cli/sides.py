"""The sides of a load: programs that prepare themselves, start together, work, and report.

A side is a function `name(gate, **arguments)` of a program that ends with `run_side(globals())`. It runs in a process of its own: it
prepares, calls `gate.ready()`, which returns when all sides are told to go, works, and calls `gate.report(...)` as often as it likes. A
report with `progress` only says which share of the work has been done since the one before.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from fastmq.errors import Closed, ConnectionFailed, FastMQError, TimedOut

LOADS = ("-m", "fastmq.cli.loads")  # the program with fastmq's own sides
REPORT_TIMEOUT_S = 120.0  # sides that have not reported for so long have failed

Progress = Callable[[float], None]


class Void(Exception):
    """The run does not count: a message was lost or came twice, or a side failed."""

    def __init__(self, text: str, broker_gone: bool = False) -> None:
        super().__init__(text)
        self.broker_gone = broker_gone


class Gate:
    """A side's end of the two pipes to who started it."""

    def __init__(self) -> None:
        _end_with_parent()

    def ready(self) -> None:
        """Say that everything is prepared; return when all are told to go."""
        self.report(ready=True)
        if not sys.stdin.readline():
            raise SystemExit(0)

    def report(self, **values: Any) -> None:
        sys.stdout.write(json.dumps(values) + "\n")
        sys.stdout.flush()

    def steps(self, count: int, steps: int) -> Iterator[int]:
        """Parts of a work of `count` things, to be done one after the other; the progress is reported behind each."""
        share = max(1, -(-count // steps))
        for start in range(0, count, share):
            part = min(share, count - start)
            yield part
            if steps > 1:
                self.report(progress=part / count)

    @property
    def ended(self) -> bool:
        """Whether the side was asked to come to its end."""
        return bool(select.select([sys.stdin], [], [], 0)[0])

    def wait_end(self) -> None:
        """Return when the side is asked to come to its end."""
        sys.stdin.read()


def _end_with_parent() -> None:
    """No side outlives, by more than a moment, who started it, however that one died."""
    parent_fd = os.pidfd_open(os.getppid())

    def watch() -> None:
        poll = select.poll()
        poll.register(parent_fd, select.POLLIN)
        poll.poll()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run_side(functions: Mapping[str, Any]) -> None:
    """Be the side that the command line names: NAME and its arguments as JSON."""
    name, arguments = sys.argv[1:]
    gate = Gate()
    try:
        functions[name](gate, **json.loads(arguments))
    except (FastMQError, Void) as error:
        gone = isinstance(error, (Closed, ConnectionFailed, TimedOut))
        code = f" ({error.code})" if isinstance(error, FastMQError) else ""
        gate.report(failed=f"{error}{code}", broker_gone=gone)
        raise SystemExit(1) from None


class Side:
    """A side as who started it sees it. Ctrl-C does not reach it: who started it ends it."""

    def __init__(self, program: Sequence[str], name: str, fds: Sequence[int] = (), **arguments: Any) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, *program, name, json.dumps(arguments)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=fds, process_group=0,
        )  # fmt: skip

    def report(self, progress: Progress | None = None) -> dict[str, Any]:
        """The side's next report that is more than progress. Raises Void if it fails or ends without one."""
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            values = self._checked(line)
            if "progress" not in values:
                return values
            if progress:
                progress(values["progress"])
        raise Void(f"{self.name} ended without a report (exit status {self.process.wait()})")

    def _checked(self, line: bytes) -> dict[str, Any]:
        values: dict[str, Any] = json.loads(line)
        if "failed" in values:
            raise Void(f"{self.name}: {values['failed']}", values["broker_gone"])
        return values

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"go\n")
        self.process.stdin.flush()

    def end(self) -> None:
        """Ask the side to come to its end."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def finish(self) -> dict[str, Any]:
        """Let the side come to its end; its last report, empty if all have been read."""
        assert self.process.stdout is not None
        self.end()
        values: dict[str, Any] = {}
        for line in self.process.stdout:
            values = self._checked(line)
        if self.process.wait() != 0:
            raise Void(f"{self.name} failed (exit status {self.process.returncode})")
        return values

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                try:
                    pipe.close()
                except BrokenPipeError:
                    pass


@contextmanager
def together(*sides: Side, timeout: float = REPORT_TIMEOUT_S) -> Iterator[float]:
    """Wait until all are ready, start them together, give the time; at the end kill what has not finished."""

    def too_late(number: int, frame: object) -> None:
        raise Void(f"no result within {timeout:.0f} s")

    before = signal.signal(signal.SIGALRM, too_late)
    signal.setitimer(signal.ITIMER_REAL, timeout)
    try:
        for side in sides:
            side.report()
        started = time.monotonic()
        for side in sides:
            side.go()
        yield started
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        for side in sides:
            side.kill()


def wait(condition: Callable[[], Any], what: str, timeout: float = 10.0, interval: float = 0.0005) -> None:
    """Return when `condition()` is true; Void if it is not within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise Void(f"waited {timeout} s for {what}")
        time.sleep(interval)
