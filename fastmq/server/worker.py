"""A worker's process: `python -m fastmq.server.worker FD`.

Owns: the Workshop, its links' bells and its control socket. Rules: what the control socket says is documented in server/control.py; between
two of its messages WorkerLoop works without the GIL. Ends when told, and when the supervisor has gone.
"""
from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from typing import Any

from fastmq.errors import FastMQError
from fastmq.net.arena import ArenaMemory
from fastmq.net.ring import Link
from fastmq.server.child import begin, give_back_memory
from fastmq.server.control import Control
from fastmq.server.log import Log as Sayings
from fastmq.server.worker_loop import WorkerLoop
from fastmq.server.workshop import Workshop
from fastmq.storage import failpoints
from fastmq.storage.file_log import FileLog
from fastmq.storage.log import Log

TICK_NS = 250_000_000           # between two ticks under load
IDLE_TICK_NS = 1_000_000_000    # and without
LATE_NS = 100_000_000           # a tick that comes so much too late: the process stood still, with its disk or its machine
PROGRESS_S = 1.0                # between two lines about a recovery


class Worker:
    """One worker."""

    def __init__(self, control: Control, start: dict[str, Any], arena: int) -> None:
        index = start["index"]
        self._say = say = Sayings(f"worker {index}").say
        self._full = False                          # what was said of the disk
        self._control = control
        self._workshop = Workshop(
            start["epoch"],
            [shard for shard, worker in enumerate(start["map"]) if worker == index],
            start["settings"],
            log=_open_log(start, say),
            now_ns=time.monotonic_ns(),
            progress=Progress(say).applied,
            old_logs=start["old_logs"],
            topology=index == 0,
            frontends=start["frontends"],
            salt=os.urandom(16),
            arena=ArenaMemory(arena),
        )
        os.close(arena)
        self._loop = WorkerLoop(self._workshop)
        self._bells: dict[int, list[int]] = {}      # of each front-end's link: own, its
        self._draining = self._drained = self._stopped = self._rested = False
        self._done = 0                              # messages handled at the last tick

    def run(self) -> None:
        """Until told to stop. EOFError and OSError: the supervisor has gone."""
        self._look_at_bells()
        failpoints.hit("before_ready")
        self._control.send({"op": "ready"})
        soon_ns = tick_at_ns = 0
        while not self._stopped:
            idle = self._loop.work(tick_at_ns, until_idle=self._draining, soon_ns=soon_ns)
            if idle and self._draining:
                if self._drained:                               # and what was written since is durable
                    self._draining = False
                    self._control.send({"op": "drained"})
                else:
                    self._drained = True
                    self._workshop.rest()
            self._hear()
            now_ns = time.monotonic_ns()
            if tick_at_ns and now_ns > tick_at_ns + LATE_NS:    # what has come meanwhile is handled before anybody counts as gone
                soon_ns = tick_at_ns = now_ns + TICK_NS
            elif now_ns >= soon_ns:
                self._workshop.tick(now_ns)
                self._rest()
                self._tell_full()
                soon_ns, tick_at_ns = now_ns + TICK_NS, now_ns + IDLE_TICK_NS

    def _rest(self) -> None:
        """Give memory back once, when nothing has happened since the last tick."""
        done = self._workshop.handled
        if done == self._done and not self._rested:
            give_back_memory()
        self._rested, self._done = done == self._done, done

    def _tell_full(self) -> None:
        """Say when the disk has become full, and when it is not any more."""
        if self._workshop.log.full != self._full:
            self._full = not self._full
            self._say("the disk has no room for the log: what is to be durable is refused until there is" if self._full
                      else "the disk has room for the log again")

    def _hear(self) -> None:
        """Do what the supervisor says."""
        self._control.flush()
        while (found := self._control.receive()) is not None:
            message, descriptors = found
            match message["op"]:
                case "link":
                    if message["frontend"] in self._bells:      # else T would take one that it waits for as gone
                        self._unlink(message["frontend"])
                    self._link(message["frontend"], *descriptors)
                case "unlink":
                    self._unlink(message["frontend"])
                case "drain":
                    self._draining = True
                case "stop":
                    self._stopped = True

    def _link(self, frontend: int, memory: int, own_bell: int, other_bell: int) -> None:
        self._bells[frontend] = [own_bell, other_bell]
        self._workshop.attach(frontend, Link.open(memory, own_bell, other_bell, True))
        os.close(memory)
        self._look_at_bells()

    def _unlink(self, frontend: int) -> None:
        """The front-end has died (T waits for it no more, even if it was never linked), or gets a fresh link."""
        self._workshop.detach(frontend, time.monotonic_ns())
        for bell in self._bells.pop(frontend, ()):
            os.close(bell)
        self._look_at_bells()

    def _look_at_bells(self) -> None:
        bells = [own for own, _ in self._bells.values()]
        if (bell := self._workshop.log.fileno()) >= 0:
            bells.append(bell)
        self._loop.look_at(self._control.fileno(), bells)


class Progress:
    """Says how far a long recovery has come, once a second."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._began = self._told = time.monotonic()

    def applied(self, count: int) -> None:
        """So many entries of the log have been applied."""
        now = time.monotonic()
        if now - self._told >= PROGRESS_S:
            self._told = now
            self._say(f"recovering: {count} entries of the log applied in {now - self._began:.0f} s")


def _open_log(start: dict[str, Any], say: Callable[[str], None]) -> Log:
    """The log that `start` names; one that keeps nothing where it names none.

    Waits until the worker that had it before has ended: after the supervisor's death it may live for a moment yet.
    """
    if not start["log"]:
        return Log()
    os.makedirs(start["log"], mode=0o700, exist_ok=True)
    lock = os.open(os.path.join(start["log"], "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)                # kept open: it goes with this process
    return FileLog(start["log"], say=say)


def main() -> int:
    """Be the worker that the `start` message describes. The exit status."""
    control, start, (arena,) = begin("worker")
    try:
        worker = Worker(control, start, arena)
    except (FastMQError, OSError) as error:         # what an operator can understand: damage, no permission, a full disk
        control.send({"op": "failed", "text": str(error)})
        return 1
    try:
        worker.run()
    except (EOFError, ConnectionError):
        return 1
    except OSError as error:
        Sayings(f"worker {start['index']}").say(f"the log failed, and is recovered from what is on disk: {error}")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
