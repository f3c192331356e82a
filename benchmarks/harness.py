"""What the lines of the table are made of: loads, their lines, the broker under test, CPU time and memory of processes, medians."""

import importlib.metadata
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import fastmq
from fastmq.cli.sides import Side, Void, together, wait

Figures = dict[str, float]
Run = Callable[[], Figures]


class Missing(Exception):
    """Something that a load needs is not installed, or not there yet; the text says what to do."""


# --- loads and their lines -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """A line of the table: a figure of `ours`, alone or against the best of `against`, and the bound it must keep, if it has one."""

    title: str
    figure: str
    ours: str = "fastmq"
    against: tuple[str, ...] = ()
    bound: float | None = None
    at_least: bool = True

    def kept(self, value: float) -> bool:
        return self.bound is None or (value >= self.bound if self.at_least else value <= self.bound)


@dataclass(frozen=True)
class Load:
    """What is run: `prepare` starts brokers and peers on a stage and returns the runs, by name, that are made in turn."""

    name: str
    title: str
    prepare: Callable[["Stage"], dict[str, Run]]
    lines: tuple[Line, ...]


@dataclass
class Result:
    """What came of a load: each run's figures, by name; or why there are none."""

    runs: dict[str, list[Figures]] = field(default_factory=dict)
    void: str = ""
    missing: str = ""

    def median(self, name: str, figure: str) -> float:
        return statistics.median(run[figure] for run in self.runs[name])

    def spread(self, name: str, figure: str) -> tuple[float, float]:
        values = [run[figure] for run in self.runs[name]]
        return min(values), max(values)

    def best(self, line: Line) -> str:
        """The name against which a line is measured: where there are several, the best of them."""
        pick = max if line.at_least else min
        return pick(line.against, key=lambda name: self.median(name, line.figure))

    def value(self, line: Line) -> float:
        """What is compared with the bound: the figure, or its ratio."""
        ours = self.median(line.ours, line.figure)
        return ours / self.median(self.best(line), line.figure) if line.against else ours


def in_turn(rounds: int, runs: dict[str, Run], result: Result) -> None:
    """Run A B A B ...; each run's figures go into `result`. Raises Void."""
    result.runs = {name: [] for name in runs}
    for number in range(rounds):
        for name, run in runs.items():
            try:
                figures = run()
            except Void as reason:
                raise Void(f"{name}: {reason}") from None
            result.runs[name].append(figures)
            told = ", ".join(f"{key} {value:,.4g}" for key, value in figures.items())
            print(f"  round {number + 1}, {name}: {told}", file=sys.stderr, flush=True)


# --- the stage -------------------------------------------------------------------------------------------------------


class FastMQ:
    """The broker under test, and an eye on it."""

    name = "fastmq"

    def __init__(self, workers: int = 1, **settings: Any) -> None:
        self.broker = fastmq.Broker(workers=workers, **settings)
        self.url = self.broker.url
        self.client = fastmq.connect(self.url)
        self.pids = [process["pid"] for process in self.client.status()["processes"]]
        self.made = 0

    def queues(self, count: int) -> list[str]:
        """New queues."""
        names = [f"bench.{self.made + number}" for number in range(count)]
        self.made += count
        for name in names:
            self.client.declare_queue(name)
        return names

    def delete(self, queues: Iterable[str]) -> None:
        for name in queues:
            self.client.delete_queue(name)

    def messages(self) -> int:
        """How many are ready or outstanding."""
        status = self.client.status()
        if len(status["queues"]) < status["queues_total"]:
            raise Void("the broker does not show all of its queues")
        return sum(queue["messages_ready"] + queue["messages_unacknowledged"] for queue in status["queues"])

    def all_settled(self) -> bool:
        return self.messages() == 0

    def close(self) -> None:
        self.client.close()
        self.broker.stop()


class Stage:
    """Where a load is run: what it starts here ends with it. `scale` makes every run shorter, to try the load and not to measure; `long`
    is the long form of those loads that have one."""

    def __init__(self, scale: float = 1.0, long: bool = False) -> None:
        self.scale, self.long = scale, long
        self._stack = ExitStack()
        self.versions: dict[str, str] = {}

    def count(self, full: int, least: int = 2000) -> int:
        """How many messages, patterns or round trips to take instead of `full`."""
        return full if self.scale >= 1 else max(min(full, least), int(full * self.scale))

    def fastmq(self, workers: int = 1, **settings: Any) -> FastMQ:
        return self.enter(FastMQ(workers, **settings))

    def enter(self, opened: Any) -> Any:
        """Have `opened` closed at the end of the load; a peer tells its version."""
        self._stack.callback(opened.close)
        self.versions.update(getattr(opened, "versions", {}))
        return opened

    def folder(self) -> str:
        made = tempfile.mkdtemp(prefix="fastmq-bench-")
        self._stack.callback(shutil.rmtree, made, ignore_errors=True)
        return made

    def disk_folder(self) -> str:
        """A folder whose disk is measured: the table says on what file system it lies (TMPDIR moves it)."""
        made = self.folder()
        self.versions["files on"] = file_system(made)
        return made

    def __enter__(self) -> "Stage":
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()


# --- runs ------------------------------------------------------------------------------------------------------------


def flow(
    senders: Sequence[Side], receivers: Sequence[Side], count: int, pids: Sequence[int], settled: Callable[[], bool], size: int = 0
) -> Figures:
    """Messages/s from the start until everything is settled, and the broker's CPU time for each message; with `size` also MB/s."""
    with together(*senders, *receivers) as started:
        before = cpu_seconds(pids)
        for side in (*senders, *receivers):
            side.report()
        wait(settled, "nothing to be ready or outstanding")
        seconds = monotonic() - started
        cpu = cpu_seconds(pids) - before
        for side in senders:
            side.finish()
        disordered = sum(side.finish()["disordered"] for side in receivers)
    figures = {"messages_s": count / seconds, "cpu_us": cpu / count * 1e6, "disordered": float(disordered)}
    return figures | ({"mb_s": count * size / seconds / 1e6} if size else {})


def trips(ping: Side, *others: Side) -> Figures:
    """The times of single messages there and back."""
    with together(ping, *others):
        return ping.report()


# --- processes -------------------------------------------------------------------------------------------------------


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time that the threads of these processes have used so far, as the scheduler counts it: in nanoseconds, where
    /proc/PID/stat has ticks of 10 ms. Raises Void if a process is gone."""
    return sum(seconds for pid in pids for _, seconds in cpu_by_thread(pid))


def cpu_by_thread(pid: int) -> list[tuple[str, float]]:
    """(name, seconds) of each thread of a process."""
    return [
        (_read(pid, f"task/{task}/comm").strip(), int(_read(pid, f"task/{task}/schedstat").split()[0]) / 1e9) for task in _tasks(pid)
    ]


def _tasks(pid: int) -> list[str]:
    try:
        return os.listdir(f"/proc/{pid}/task")
    except OSError:
        raise Void(f"process {pid} of the broker has died") from None


def pss_bytes(pids: Iterable[int]) -> int:
    """Memory of these processes, each shared page counted once between those that have mapped it."""
    total = 0
    for pid in pids:
        line = next(line for line in _read(pid, "smaps_rollup").splitlines() if line.startswith("Pss:"))
        total += int(line.split()[1]) * 1024
    return total


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except OSError:
        raise Void(f"process {pid} of the broker has died") from None


# --- where it was measured -------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """What a figure must say about where it was made."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
    }


def file_system(path: str) -> str:
    """What kind of file system `path` lies on, "unknown" where the kernel does not say."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if line.split()[2] == wanted:
            return line.partition(" - ")[2].split()[0]
    return "unknown"


def disk_bytes(folder: str) -> int:
    """What the files in `folder` take on the disk; files come and go meanwhile."""
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(where, name)).st_blocks * 512
    return total


def versions() -> dict[str, str]:
    import zmq

    found = {name: importlib.metadata.version(name) for name in ("fastmq", "pyzmq")}
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return {**found, "libzmq": zmq.zmq_version(), "python": platform.python_version(), "commit": commit.stdout.strip()}
