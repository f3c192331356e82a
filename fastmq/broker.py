"""The embedded broker: the real processes, started and stopped by a program that uses them."""
from __future__ import annotations

import os
import select
import subprocess
import sys
import time
import weakref
from types import TracebackType
from typing import Any

from fastmq.config import Config
from fastmq.errors import BrokerFailed, Closed
from fastmq.server import programs

READY_S = 30.0              # how long a broker may take to become ready,
RECOVERY_READY_S = 600.0    # and one with a data directory, which may have much to read
STOP_S = 3.0                # how long a stopping broker may take; its own limit is below 2 s
LOG_TAIL_SIZE = 4096        # bytes of its log that an error shows


class Broker:
    """A broker of this program: it is ready when the constructor returns, and ends with `stop`, with `with`, or with this process.

    `workers`: worker processes (None: the number of cores less one). `data_dir`: where it keeps what is durable (docs/durability.md);
    None keeps nothing after it stops. `port` 0: a free one.
    `unix`: the path of a unix socket (None: an abstract one, which needs no file; empty: none). `settings`: any other setting of
    fastmq.config.Config. `url` is where it listens over tcp, `unix_url` over the unix socket, which is faster and for this user's programs.
    Usable from any thread, and outlives the thread that made it.
    Raises BadArgument for a setting that does not exist or has a bad value, BrokerFailed when the processes do not become ready.
    """

    def __init__(
        self, workers: int | None = None, data_dir: str | os.PathLike[str] | None = None, host: str = "127.0.0.1", port: int = 0,
        unix: str | os.PathLike[str] | None = None, **settings: Any,
    ) -> None:
        kept = None if data_dir is None else os.fspath(data_dir)
        path = f"@fastmq-{os.urandom(12).hex()}" if unix is None else os.fspath(unix)
        events_port = 0 if port == 0 else None
        given = {"workers": workers, "data_dir": kept, "host": host, "port": port, "events_port": events_port, "unix": path, **settings}
        values = {name: value for name, value in given.items() if value is not None}
        if data_dir is None:
            values["data_dir"] = ""                         # whatever the environment says
        config = Config.from_map({**Config.load().to_map(), **values}, where="Broker()")
        self.unix_url = config.unix_url
        self._ready_s = RECOVERY_READY_S if config.data_dir else READY_S
        self._owner = os.getpid()
        self._log_fd = -1
        self._process = self._start(values)
        self._stopped = weakref.finalize(self, _stop, self._owner, self._process, self._log_fd)
        try:
            self.url, self.events_port = self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def _start(self, values: dict[str, Any]) -> subprocess.Popen[bytes]:
        """The supervisor, in a session of its own (Ctrl-C is for this program), its log in memory."""
        self._log_fd = os.memfd_create("fastmq-log", os.MFD_CLOEXEC)
        arguments = [f"{name}={value}" for name, value in values.items()]
        kept = []
        try:
            parent_fd = os.pidfd_open(os.getpid())  # not PR_SET_PDEATHSIG, which would follow the thread that runs this
            kept.append(parent_fd)
            log = os.open(f"/proc/self/fd/{self._log_fd}", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            kept.append(log)
            return subprocess.Popen(
                programs.command("fastmq.server.supervisor", "--parent-fd", str(parent_fd), *arguments),
                env=programs.environment(), pass_fds=(parent_fd,), start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
            )
        except OSError as error:
            os.close(self._log_fd)
            raise BrokerFailed(f"the broker's supervisor cannot be started: {error}") from None
        finally:
            for fd in kept:
                os.close(fd)

    def _wait_until_ready(self) -> tuple[str, int]:
        """The address and the events port from the line that the supervisor prints."""
        assert self._process.stdout is not None
        line = b""
        deadline = time.monotonic() + self._ready_s
        poll = select.poll()        # not select(), which knows the first 1,024 descriptors only
        with self._process.stdout as output:
            poll.register(output, select.POLLIN)
            while not line.endswith(b"\n"):
                ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
                part = os.read(output.fileno(), 4096) if ready else b""
                if not part:
                    why = "ended before it was ready" if ready else f"was not ready after {self._ready_s:.0f} s"
                    raise BrokerFailed(f"the broker {why}; its log ends:\n{self.log_tail() or '(empty)'}")
                line += part
        _, url, *ports = line.decode().split()
        return url, next(int(value) for name, _, value in (port.partition("=") for port in ports) if name == "events")

    @property
    def pid(self) -> int:
        """The supervisor's process."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has neither been stopped nor ended by itself."""
        return self._stopped.alive and self._process.poll() is None

    def log_tail(self, size: int = LOG_TAIL_SIZE) -> str:
        """The last `size` bytes of what the broker's processes have logged."""
        if not self._stopped.alive:
            raise Closed("the broker was stopped, its log is gone")
        length = os.fstat(self._log_fd).st_size
        return os.pread(self._log_fd, size, max(0, length - size)).decode(errors="replace").strip()

    def stop(self) -> None:
        """Stop: it takes nothing new, handles what it has, answers, tells its clients, and is gone on return. Harmless when repeated."""
        self._stopped()

    def __enter__(self) -> Broker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<fastmq.Broker {getattr(self, 'url', 'not ready')} pid={self.pid}{'' if self.running else ' stopped'}>"


def _stop(owner: int, process: subprocess.Popen[bytes], log_fd: int) -> None:
    """Once for each broker: by stop(), when it is forgotten, or when the interpreter ends. A forked copy of the program leaves it alone."""
    os.close(log_fd)
    if os.getpid() != owner:
        return
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        print(f"fastmq: the broker (pid {process.pid}) did not stop within {STOP_S:.0f} s and was killed", file=sys.stderr)
