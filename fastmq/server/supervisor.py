"""The supervisor: starts the front-end and the workers, joins them by rings, watches them, restarts what dies, stops all of them.

Owns: the settings, the children, the epoch counter, the key of the sessions' proofs, the ports. It never sees a message. Rules: it is
one thread and never blocks but in poll; a child is a new program that inherits its control socket and nothing else; a link lives as long
as both its ends; what dies is restarted at once, and after growing pauses when it dies again soon; a death before the broker was ready
once ends it. A process of its own: `fastmq serve`, or started by fastmq.Broker. Standard output gets one line, `ready ...`.

    STARTING --all ready--> SERVING --signal, parent gone, asked--> DRAINING (front-ends, then workers, then stop) --> ENDED
        ^                      +--asked to restore--> DRAINING, in the same way --the data directory is another--+
        +--------------------------------------------------------------------------------------------------------+
        |                                                               |
        +--a death: exit 1 --> ENDED                                    +--second signal, or STOP_S over: SIGKILL --> ENDED
"""
from __future__ import annotations

import contextlib
import enum
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from fastmq.config import Config
from fastmq.errors import BadArgument, BrokerFailed
from fastmq.net.arena import make_arena_fd
from fastmq.net.ring import make_link_fds
from fastmq.server import programs
from fastmq.server.control import Control, Message
from fastmq.server.data_directory import RESTORE, SOCKET, DataDirectory, is_locked
from fastmq.server.log import Log
from fastmq.server.restore_port import RestorePort

PAUSE_MIN_S = 0.01          # before the second restart of what dies soon; doubled each time
PAUSE_MAX_S = 2.0
CALM_S = 0.15               # life after `ready` that makes good for one death
DRAIN_FRONTENDS_S = 1.1     # from the first signal: the front-ends' time,
DRAIN_WORKERS_S = 1.4       # the workers',
STOP_S = 1.7                # and when what still lives is killed
BIND_RETRY_S = 10.0         # how long a restarted front-end tries its old ports
EXIT_S = 1.0                # how long a child that has closed its control socket may take to exit

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
log = Log("supervisor")
MODULES = {"frontend": "fastmq.server.frontend", "worker": "fastmq.server.worker"}


class State(enum.Enum):
    STARTING = enum.auto()
    SERVING = enum.auto()
    DRAINING_FRONTENDS = enum.auto()
    DRAINING_WORKERS = enum.auto()
    STOPPING = enum.auto()
    ENDED = enum.auto()


class Child:
    """One front-end or worker: its process while it lives, and what is remembered of those before it."""

    def __init__(self, role: str, index: int) -> None:
        self.role = role
        self.index = index
        self.restarts = -1                          # -1: never started
        self.epoch = 0
        self.process: subprocess.Popen[bytes] | None = None     # None: down
        self.pidfd = -1
        self.control: Control | None = None         # None: down, or it closed its end
        self.arena = -1                             # of a worker that is up
        self.ready_at: float | None = None          # monotonic
        self.drained = False
        self.failure = ""                           # why it could not start, in its own words
        self.soon = 0                               # deaths that it has not made good for by living
        self.restart_at = 0.0                       # monotonic, while down
        self.kill_at = 0.0                          # monotonic, while up without control

    @property
    def name(self) -> str:
        return f"{self.role} {self.index}"

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process else None

    def start(self, epoch: int) -> None:
        """A new process. SIGINT and SIGTERM are blocked in it: terminals and service managers send them to everybody."""
        ours, theirs = Control.pair()
        with theirs:
            before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            try:
                self.process = subprocess.Popen(
                    programs.command(MODULES[self.role], str(theirs.fileno())),
                    env=programs.environment(), pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL, stdout=2,
                )
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self.pidfd = os.pidfd_open(self.process.pid)
        self.control = ours
        self.epoch = epoch
        self.restarts += 1
        self.ready_at = None
        self.drained = False

    def send(self, message: Message, descriptors: tuple[int, ...] = ()) -> None:
        """Send, or kill a child that cannot be told any more: its end is noticed as that of any other."""
        if self.control is None:
            for fd in descriptors:
                os.close(fd)
            return
        try:
            self.control.send(message, descriptors)
        except OSError:
            self.kill()

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()

    def ended(self, now: float) -> str:
        """Bury the process that has ended; how it ended. Sets the time of its restart."""
        assert self.process is not None
        status = self.process.wait()
        self.process = None
        os.close(self.pidfd)
        self.pidfd = -1
        if self.arena >= 0:
            os.close(self.arena)
            self.arena = -1
        if self.control is not None:
            self.control.close()
            self.control = None
        lived_s = now - self.ready_at if self.ready_at is not None else 0.0
        self.soon = max(1, self.soon + 1 - int(lived_s / CALM_S))
        self.restart_at = now + (min(PAUSE_MAX_S, PAUSE_MIN_S * 2 ** (self.soon - 2)) if self.soon > 1 else 0)
        return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"


class Supervisor:
    """One broker. `run` returns the exit status."""

    def __init__(self, config: Config, parent_fd: int = -1, asked_fd: int = -1) -> None:
        """`parent_fd`: a pidfd; the broker drains when its process has ended. `asked_fd`: it drains when this can be read, or ends.

        Raises BadArgument and BrokerFailed where its data directory cannot be had.
        """
        self.config = self._given = config.replace(workers=config.worker_count)
        self.data = DataDirectory(config.data_dir, self.config) if config.data_dir else None
        self.children = [Child("worker", index) for index in range(self.config.workers)] + [Child("frontend", 0)]
        self.state = State.STARTING
        self.status = 0
        self.key = os.urandom(16)
        self._take_facts()
        self.port, self.events_port = config.port, config.events_port
        self._epoch = 0
        self._asked_times = 0
        self._was_ready = False
        self._restoring = False                     # until the data directory is another
        self._drain_began = 0.0
        self._poll = select.poll()
        self._watched: dict[int, Callable[[], None]] = {}
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._watch(self._wake_read, self._woken)
        self._restore_port = self._open_restore_port()
        if parent_fd >= 0:
            self._watch(parent_fd, lambda: self._end(parent_fd, "the parent process has ended"))
        if asked_fd >= 0:
            self._watch(asked_fd, lambda: self._asked(asked_fd))

    def run(self) -> int:
        """Start everything, serve until asked to stop, stop everything. In the main thread of the process."""
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:      # nohup
                signal.signal(number, lambda number, frame: None)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        try:
            for child in self.children:
                if child.role == "worker" or not self._is_moving():
                    self._start(child)
            while self.state is not State.ENDED:
                self._turn()
        except BrokerFailed as error:
            log.say(str(error))
            self.status = 1
        finally:
            for child in self.children:
                child.kill()
            for child in self.children:
                if child.process is not None:
                    child.process.wait()
            if self._restore_port is not None:
                self._restore_port.close()
            if self.data is not None:
                self.data.close()
        return self.status

    # ---- one turn

    def _turn(self) -> None:
        for child in self.children:
            if child.control is not None:
                self._poll.modify(child.control.fileno(), select.POLLIN | (select.POLLOUT if child.control.waiting else 0))
        for fd, _ in self._poll.poll(self._timeout_ms()):
            handler = self._watched.get(fd)
            if handler is not None:                 # else it was closed by an event before this one
                handler()
        now = time.monotonic()
        for child in self.children:
            if child.process is not None and child.control is None and child.kill_at <= now:
                child.kill()
        if self.state in (State.STARTING, State.SERVING):
            for child in self.children:
                if child.process is None and child.restart_at <= now and (child.role == "worker" or not self._is_moving()):
                    self._start(child)
        else:
            self._go_on_draining(now)

    def _timeout_ms(self) -> int | None:
        times = [child.restart_at for child in self.children if child.process is None and self.state is State.SERVING]
        times += [child.kill_at for child in self.children if child.process is not None and child.control is None]
        if self.state is State.DRAINING_FRONTENDS:
            times.append(self._drain_began + DRAIN_FRONTENDS_S)
        elif self.state is State.DRAINING_WORKERS:
            times.append(self._drain_began + DRAIN_WORKERS_S)
        elif self.state is State.STOPPING:
            times.append(self._drain_began + STOP_S)
        return max(0, int((min(times) - time.monotonic()) * 1000) + 1) if times else None

    def _watch(self, fd: int, handler: Callable[[], None]) -> None:
        self._watched[fd] = handler
        self._poll.register(fd, select.POLLIN)

    def _unwatch(self, fd: int) -> None:
        if self._watched.pop(fd, None) is not None:
            self._poll.unregister(fd)

    # ---- children

    def _start(self, child: Child) -> None:
        try:
            child.start(self._next_epoch())
        except OSError as error:
            log.say(f"{child.name} cannot be started: {error}")
            child.soon += 1
            child.restart_at = time.monotonic() + PAUSE_MAX_S
            if self.state is State.STARTING:
                self._fail()
            return
        assert child.control is not None
        self._watch(child.control.fileno(), lambda: self._heard(child))
        self._watch(child.pidfd, lambda: self._ended(child))
        start: Message = {
            "op": "start", "index": child.index, "epoch": child.epoch, "supervisor": os.getpid(), "workers": self.config.workers,
            "shards": self.config.shards, "map": self.map, "settings": self.config.to_map(),
        }
        if child.role == "frontend":
            start |= {"key": self.key, "host": self.config.host, "port": self.port, "events_port": self.events_port,
                      "bind_retry_s": BIND_RETRY_S if child.restarts else 0.0}
        else:
            start["frontends"] = [other.index for other in self.children if other.role == "frontend" and other.process is not None]
            start |= {"log": self.data.log_path(child.index) if self.data is not None else "",
                      "old_logs": self.data.old_log_paths() if self.data is not None else []}
            child.arena = make_arena_fd(self.config.arena_size)
        child.send(start, (os.dup(child.arena),) if child.role == "worker" else ())
        for other in self.children:
            if other.role != child.role and other.process is not None:
                self._join(*((child, other) if child.role == "frontend" else (other, child)))
        self._tell_processes()

    def _next_epoch(self) -> int:
        if self.data is not None:
            return self.data.next_epoch()
        self._epoch += 1
        return self._epoch

    def _is_moving(self) -> bool:
        """Whether workers still take over the logs of another number of workers: until all have, nothing new is taken."""
        return self.data is not None and self.data.moved_from is not None

    def _moved(self) -> None:
        """All workers have what is theirs."""
        assert self.data is not None
        self.data.moved()
        for child in self.children:
            if child.role == "frontend":
                self._start(child)

    def _join(self, frontend: Child, worker: Child) -> None:
        """A fresh link between two that live; the one before, if any, is forgotten by both."""
        memory, frontend_bell, worker_bell = make_link_fds(self.config.ring_size)
        copies = (os.dup(memory), os.dup(worker_bell), os.dup(frontend_bell))
        frontend.send({"op": "link", "worker": worker.index, "epoch": worker.epoch},
                      (memory, frontend_bell, worker_bell, os.dup(worker.arena)))
        worker.send({"op": "link", "frontend": frontend.index, "epoch": frontend.epoch}, copies)

    def _heard(self, child: Child) -> None:
        """Read what a child says; the end of its control socket is the end of the child."""
        if child.control is None:
            return
        try:
            with contextlib.suppress(ConnectionError):      # what it said before it went is still to be heard
                child.control.flush()
            while (found := child.control.receive()) is not None:
                self._message(child, found[0])
        except (EOFError, OSError):
            self._unwatch(child.control.fileno())
            child.control.close()
            child.control = None
            child.kill_at = time.monotonic() + EXIT_S

    def _message(self, child: Child, message: Message) -> None:
        if message["op"] == "ready":
            child.ready_at = time.monotonic()
            if child.role == "frontend":
                self.port, self.events_port = message["port"], message["events_port"]
            if self._is_moving() and all(child.ready_at is not None for child in self.children if child.role == "worker"):
                self._moved()
            if self.state is State.STARTING and all(child.ready_at is not None for child in self.children):
                self.state = State.SERVING
                self._say_ready()
        elif message["op"] == "failed":
            child.failure = message["text"]
            log.say(f"{child.name} cannot start: {child.failure}")
        elif message["op"] == "drained":
            child.drained = True

    def _say_ready(self) -> None:
        host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
        if self.data is not None:
            self.data.listening(f"fastmq://{host}:{self.port}")
        if self._restore_port is not None:
            self._restore_port.answer(state="serving", url=f"fastmq://{host}:{self.port}")
        if self._was_ready:
            log.say("ready again")
            return
        self._was_ready = True
        try:
            os.write(1, f"ready fastmq://{host}:{self.port} events={self.events_port}\n".encode())
        except OSError:
            log.say("nobody reads standard output")
        if self.config.unix:
            log.say(f"ready also at {self.config.unix_url}")

    def _ended(self, child: Child) -> None:
        """A child's process has ended: what it said last is heard, the other ends are told, and it is started again in its time."""
        self._heard(child)
        pid = child.pid
        if child.control is not None:
            self._unwatch(child.control.fileno())
        self._unwatch(child.pidfd)
        how = child.ended(time.monotonic())
        if self.state is State.STARTING:
            if not child.failure:
                log.say(f"{child.name} (pid {pid}) {how} before the broker was ready")
            self._fail()
            return
        for other in self.children:
            if other.role != child.role:
                other.send({"op": "unlink", child.role: child.index})
        if self.state is State.SERVING:
            pause_s = max(0.0, child.restart_at - time.monotonic())
            log.say(f"{child.name} (pid {pid}) {how}; restarting it in {pause_s:.2f} s")
            self._tell_processes()

    def _tell_processes(self) -> None:
        rows: list[dict[str, Any]] = [{"role": "supervisor", "index": 0, "pid": os.getpid(), "restarts": 0}]
        rows += [
            {"role": child.role, "index": child.index, "pid": child.pid, "restarts": max(0, child.restarts)}
            for child in self.children
        ]
        for child in self.children:
            if child.role == "frontend":
                child.send({"op": "processes", "list": rows})

    # ---- the end

    def _woken(self) -> None:
        for number in os.read(self._wake_read, 64):
            if number in SIGNALS:
                self._stop(signal.Signals(number).name)

    def _asked(self, fd: int) -> None:
        self._end(fd, "asked to stop")

    def _end(self, fd: int, reason: str) -> None:
        self._unwatch(fd)
        self._stop(reason)

    def _fail(self) -> None:
        self.status = 1
        self.state = State.ENDED

    def _stop(self, reason: str) -> None:
        """The first time: drain. The second time, or before the broker was ready: end at once."""
        self._asked_times += 1
        if self._restoring:
            self._restoring = False
            self._answer(failed=f"the broker stops ({reason}) before the backup was in place; it keeps its data")
        if self.state is State.STARTING or self._asked_times > 1:
            log.say(f"{reason}: ending at once")
            self.state = State.ENDED
            return
        log.say(f"{reason}: draining")
        self._drain_began = time.monotonic()
        self._tell("frontend", "drain", State.DRAINING_FRONTENDS)

    def _tell(self, role: str, op: str, state: State) -> None:
        self.state = state
        for child in self.children:
            if child.role == role or not role:
                child.send({"op": op})

    def _go_on_draining(self, now: float) -> None:
        spent = now - self._drain_began
        if self.state is State.DRAINING_FRONTENDS and (self._drained("frontend") or spent >= DRAIN_FRONTENDS_S):
            self._tell("worker", "drain", State.DRAINING_WORKERS)
        if self.state is State.DRAINING_WORKERS and (self._drained("worker") or spent >= DRAIN_WORKERS_S):
            self._tell("", "stop", State.STOPPING)
        if self.state is State.STOPPING and (spent >= STOP_S or all(child.process is None for child in self.children)):
            for child in self.children:
                if child.process is not None:
                    log.say(f"{child.name} (pid {child.pid}) did not stop in time: killed")
                    child.kill()
            if not self._restoring:
                self.state = State.ENDED
            elif all(child.process is None for child in self.children):
                self._restore()
            else:
                self._drain_began = time.monotonic()        # until those have ended, too

    # ---- a restore

    def _open_restore_port(self) -> RestorePort | None:
        if self.data is None:
            return None
        try:
            port = RestorePort(self.data.path / SOCKET)
        except OSError as error:
            log.say(f"no socket can be made in {self.data.path}, so nothing can be restored while the broker runs: {error.strerror}")
            return None
        self._watch(port.fileno(), self._restore_asked)
        return port

    def _answer(self, **what: str) -> None:
        if self._restore_port is not None:
            self._restore_port.answer(**what)

    def _restore_asked(self) -> None:
        """What lies in restore/ is to become the data: it is taken, and all children stop first."""
        assert self._restore_port is not None and self.data is not None
        if not self._restore_port.accept():
            return
        if self.state is not State.SERVING:
            self._answer(failed="the broker is not ready, or is stopping")
            return
        if not is_locked(self.data.path / RESTORE):
            self._answer(failed=f"nobody brings anything to {self.data.path / RESTORE}")     # what is left there of another time is not meant
            return
        try:
            self.data.take(self._given)
        except Exception as error:
            self._answer(failed=str(error))
            return
        log.say("restoring: draining")
        self._answer(state="stopping")
        self._restoring = True
        self._drain_began = time.monotonic()
        self._tell("frontend", "drain", State.DRAINING_FRONTENDS)

    def _restore(self) -> None:
        """No child lives: the data directory becomes what was taken, or stays what it is, and everything is started on it."""
        assert self.data is not None
        self._restoring = False
        try:
            self.data.replace(self._given)
        except BrokerFailed:
            raise                                   # which data counts is in doubt
        except Exception as error:                  # whatever a backup from anywhere holds, the broker goes on
            log.say(f"nothing is restored, the broker goes on with the data it had: {error}")
            self._answer(failed=f"the broker goes on with the data it had: {error}")
        else:
            log.say("restored")
            self._answer(state="restored")
        self._take_facts()
        self.state = State.STARTING
        for child in self.children:
            child.ready_at = None
            child.restart_at = child.soon = 0
            child.failure = ""
        for child in self.children:
            if child.role == "worker" or not self._is_moving():
                self._start(child)

    def _take_facts(self) -> None:
        """What the data directory decides."""
        if self.data is not None:
            self.config = self._given.replace(shards=self.data.shards)
            self.key = self.data.key
        self.map = [shard % self.config.workers for shard in range(self.config.shards)]

    def _drained(self, role: str) -> bool:
        return all(child.drained or child.process is None for child in self.children if child.role == role)


def main(arguments: list[str] | None = None) -> int:
    """`python -m fastmq.server.supervisor [--parent-fd N] [--asked-fd N] [SETTING=VALUE...]`, over the environment's settings."""
    parent_fd = asked_fd = -1
    values: dict[str, Any] = {}
    rest = list(sys.argv[1:] if arguments is None else arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--parent-fd":
            parent_fd = int(rest.pop(0))
        elif argument == "--asked-fd":
            asked_fd = int(rest.pop(0))
        else:
            name, _, value = argument.partition("=")
            values[name] = value
    try:
        config = Config.from_map({**Config.load().to_map(), **values}, where="the command line")
        supervisor = Supervisor(config, parent_fd, asked_fd)
    except BadArgument as error:
        log.say(str(error))
        return 2
    except BrokerFailed as error:
        log.say(str(error))
        return 1
    return supervisor.run()


if __name__ == "__main__":
    sys.exit(main())
