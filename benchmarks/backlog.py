"""A backlog many times the broker's memory, filled and drained in order, and what short queues beside it feel of that."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median
from threading import Event, Thread
from time import monotonic

from harness import FastMQ, Figures, Line, Load, Run, Stage, disk_bytes, pss_bytes, trips

from fastmq.cli.sides import LOADS, Side, Void, together

SIZE = 128
BACKLOG, BACKLOG_LONG = 8 * 10**6, 8 * 10**7  # messages: 1 GB, and 10 GB
MEMORY_MAX = 512e6  # bytes of all processes of the broker
MEMORY_MARK = 2**27  # bytes of messages in the worker's memory; the rest of MEMORY_MAX is for what is on its way
PREFETCH = 5000
KINDS = ("transient", "durable")  # of short queues
TRIPS = 2000
SAMPLE_S = 0.2
TIMEOUT_S = 3000.0


class Memory:
    """The most memory that the broker's processes had together."""

    def __init__(self, pids: list[int]) -> None:
        self.pids, self.most = pids, 0
        self._end = Event()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Raises Void at its end if a process of the broker has died meanwhile."""
        died: list[Void] = []

        def sample() -> None:
            while not self._end.wait(SAMPLE_S):
                try:
                    self.most = max(self.most, pss_bytes(self.pids))
                except Void as error:
                    died.append(error)
                    return

        thread = Thread(target=sample)
        thread.start()
        try:
            yield
        finally:
            self._end.set()
            thread.join()
        if died:
            raise died[0]


def short(broker: FastMQ, count: int) -> Figures:
    """Ping-pong through two transient queues, then through two durable ones: the names of its figures say which."""
    found = {}
    for kind in KINDS:
        ping, pong = f"{kind}.ping", f"{kind}.pong"
        for queue in (ping, pong):
            broker.client.declare_queue(queue, durable=kind == "durable")
        figures = trips(
            Side(LOADS, "ping", url=broker.url, ping=ping, pong=pong, trips=count, size=SIZE),
            Side(LOADS, "pong", url=broker.url, ping=ping, pong=pong),
        )
        found |= {f"{kind}_{figure}": value for figure, value in figures.items()}
    return found


def beside(broker: FastMQ, trips_each: int, worker: Side) -> tuple[float, list[Figures]]:
    """Ping-pong again and again until `worker` has ended: how long that took, and the figures of each."""
    found = []
    with together(worker, timeout=TIMEOUT_S) as started:
        while not found or worker.process.poll() is None:
            found.append(short(broker, trips_each))
        seconds = monotonic() - started
        result = worker.report()
        if result.get("disordered"):
            raise Void(f"{result['disordered']} messages came out of order")
    return seconds, found


def backlog(count: int, trips_each: int) -> Figures:
    with Stage() as own:
        folder = own.disk_folder()
        broker = own.fastmq(data_dir=folder, memory_mark=MEMORY_MARK)
        (deep,) = broker.queues(1)
        arguments = {"url": broker.url, "queue": deep, "count": count, "size": SIZE}
        alone = [short(broker, trips_each) for _ in range(3)]
        memory = Memory(broker.pids)
        with memory.watched():
            fill_s, filling = beside(broker, trips_each, Side(LOADS, "filler", **arguments))
            if broker.messages() != count:
                raise Void(f"the queue holds {broker.messages()} messages, not {count}")
            disk = disk_bytes(folder)
            drain_s, draining = beside(broker, trips_each, Side(LOADS, "drainer", prefetch=PREFETCH, **arguments))
            if broker.messages():
                raise Void("messages are left")
    figures = {"memory_mb": memory.most / 1e6, "disk_gb": disk / 1e9, "fill_s": count / fill_s, "drain_s": count / drain_s}
    for name, runs in (("alone", alone), ("filling", filling), ("draining", draining)):
        for figure in runs[0]:
            figures[f"{name}_{figure}"] = median(run[figure] for run in runs)
    return figures


def prepare(stage: Stage) -> dict[str, Run]:
    return {"fastmq": partial(backlog, BACKLOG_LONG if stage.long else stage.count(BACKLOG), stage.count(TRIPS, 200))}


LOADS_OF_BACKLOG = (
    Load(
        "backlog", "8 million durable messages of 128 B, short queues beside them", prepare,
        (
            Line("most memory, MB", "memory_mb", bound=MEMORY_MAX / 1e6, at_least=False),
            Line("messages/s in", "fill_s"), Line("messages/s out", "drain_s"),
            *(Line(f"short {kind} queue {name}, {figure[:3]} us", f"{name}_{kind}_{figure}", at_least=False)
              for kind in KINDS for name in ("alone", "filling", "draining") for figure in ("p50_us", "p99_us")),
        ),
    ),
)  # fmt: skip
