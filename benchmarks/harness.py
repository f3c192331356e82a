"""What every benchmark needs: processes that start together, a Redis of its own, CPU time of processes, medians.

A benchmark's side (a producer, a consumer) is a function `name(gate, **arguments)` in the benchmark's own file. It runs
in a process of its own: it prepares, calls `gate.ready()`, which returns when the benchmark says go, works, and calls
`gate.report(...)` as often as it likes.
"""

import importlib.util
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

REPORT_TIMEOUT_S = 120.0  # a side that says nothing for so long has failed
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Void(Exception):
    """The run does not count: a message was lost or came twice, or a side failed."""


# --- sides -----------------------------------------------------------------------------------------------------------


class Gate:
    """A side's end of the two pipes to the benchmark."""

    def ready(self) -> None:
        """Say that everything is prepared; return when the benchmark says go."""
        self.report(ready=True)
        if not sys.stdin.readline():
            raise SystemExit(0)

    def report(self, **values: Any) -> None:
        sys.stdout.write(json.dumps(values) + "\n")
        sys.stdout.flush()

    def wait_end(self) -> None:
        """Return when the benchmark closes its end."""
        sys.stdin.read()


class Side:
    """The benchmark's view of a function of `file` that runs in a process of its own."""

    def __init__(self, file: str, name: str, **arguments: Any) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, __file__, file, name, json.dumps(arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def report(self) -> dict[str, Any]:
        """The side's next report. Raises Void if it ends without one; the time limit of `sides` ends one that hangs."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise Void(f"{self.name} ended without a report (exit status {self.process.wait()})")
        values: dict[str, Any] = json.loads(line)
        return values

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"go\n")
        self.process.stdin.flush()

    def finish(self) -> dict[str, Any]:
        """Let the side end by itself; return its last report, empty if all have been read."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        lines = self.process.stdout.read().splitlines()
        if self.process.wait() != 0:
            raise Void(f"{self.name} failed (exit status {self.process.returncode})")
        values: dict[str, Any] = json.loads(lines[-1]) if lines else {}
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
def sides(*made: Side) -> Iterator[float]:
    """Wait until all are ready, start them together, give the time; at the end kill what has not finished."""

    def too_late(number: int, frame: object) -> None:
        raise Void(f"no result within {REPORT_TIMEOUT_S:.0f} s")

    before = signal.signal(signal.SIGALRM, too_late)
    signal.alarm(int(REPORT_TIMEOUT_S))
    try:
        for side in made:
            side.report()
        started = time.monotonic()
        for side in made:
            side.go()
        yield started
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        for side in made:
            side.kill()


# --- messages --------------------------------------------------------------------------------------------------------


def payloads(count: int, size: int) -> list[bytes]:
    """`count` different bodies of `size` bytes: the number in ten digits, then filling."""
    filling = b"." * (size - 10)
    return [b"%010d" % number + filling for number in range(count)]


def check_exactly_once(received: Sequence[bytes], count: int, size: int) -> dict[str, int]:
    """Raise Void unless `received` holds each body of `payloads(count, size)` once; count what came out of order."""
    filling = b"." * (size - 10)
    seen = bytearray(count)
    last, disordered = -1, 0
    for body in received:
        number = int(body[:10])
        if body[10:] != filling:
            raise Void(f"message {number} came with another body")
        if seen[number]:
            raise Void(f"message {number} came twice")
        seen[number] = 1
        if number < last:
            disordered += 1
        last = number
    if len(received) != count:
        raise Void(f"{count - len(received)} of {count} messages were lost")
    return {"disordered": disordered}


# --- what runs on this machine ---------------------------------------------------------------------------------------


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time that these processes have used so far. Raises Void if one of them is gone."""
    ticks = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            raise Void(f"process {pid} of the broker has died") from None
        ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS_PER_S


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def missing(text: str) -> NoReturn:
    """End because something is not installed."""
    print(text, file=sys.stderr)
    raise SystemExit(2)


def need(program: str, package: str) -> str:
    """The path of a program, or the end with the name of the package that has it."""
    path = shutil.which(program)
    if path is None:
        missing(f"{program} is not installed: apt-get install {package}")
    return path


class RedisServer:
    """A redis-server on a free port that keeps nothing. Without it or its client: what to install, and the end."""

    def __init__(self) -> None:
        program = need("redis-server", "redis-server")
        for module, package in (("redis", "redis"), ("hiredis", "hiredis")):
            if importlib.util.find_spec(module) is None:
                missing(
                    f"the Python package {package} is not installed, without which Redis is not at its best: "
                    f"{sys.executable} -m pip install {package}"
                )
        import redis

        told = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
        self.version = told.split("v=")[1].split()[0]
        self.port = free_port()
        self.folder = tempfile.mkdtemp(prefix="fastmq-bench-")
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self.process = subprocess.Popen([program, *options, "--dir", self.folder], stdout=subprocess.DEVNULL)
        self.client = redis.Redis(port=self.port)
        wait(self._answers, "redis-server to answer")

    def _answers(self) -> bool:
        import redis

        try:
            return bool(self.client.ping())
        except redis.ConnectionError:
            return False

    @property
    def pids(self) -> list[int]:
        return [self.process.pid]

    def close(self) -> None:
        self.client.close()
        self.process.terminate()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> "RedisServer":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def wait(condition: Callable[[], Any], what: str, timeout: float = 10.0, interval: float = 0.0005) -> None:
    """Return when `condition()` is true; Void if it is not within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise Void(f"waited {timeout} s for {what}")
        time.sleep(interval)


def machine() -> str:
    """What a figure must say about where it was made."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "processor unknown"
    )
    return f"{len(os.sched_getaffinity(0))} cores, {model}, Python {sys.version.split()[0]}"


# --- figures ---------------------------------------------------------------------------------------------------------


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def in_turn(rounds: int, *runs: Callable[[], dict[str, float]]) -> list[list[dict[str, float]]]:
    """Run A B A B ...; each run's results, in order."""
    results: list[list[dict[str, float]]] = [[] for _ in runs]
    for number in range(rounds):
        for run, found in zip(runs, results, strict=True):
            found.append(run())
            figures = ", ".join(f"{key} {value:,.4g}" for key, value in found[-1].items())
            print(f"  round {number + 1}: {figures}", file=sys.stderr)
    return results


def median(results: list[dict[str, float]], key: str) -> float:
    return statistics.median(result[key] for result in results)


def spread(results: list[dict[str, float]], key: str) -> str:
    """From the smallest to the largest, in the way of figures.md."""
    values = [result[key] for result in results]
    return f"{min(values):,.4g}-{max(values):,.4g}"


def run_side(file: str, name: str, arguments: str) -> None:
    spec = importlib.util.spec_from_file_location("benchmark", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    getattr(module, name)(Gate(), **json.loads(arguments))


if __name__ == "__main__":
    run_side(*sys.argv[1:])
