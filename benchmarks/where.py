"""Where the time of a message goes: CPU of each process in the work queue's run."""

import os
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from harness import FastMQ, Figures, Line, Load, Run, Stage, cpu_by_thread
from queues import PREFETCH, SIZE

from fastmq.cli.sides import LOADS, Side, together, wait

THREADS = {"fastmq-frontend": "frontend_us", "fastmq-worker": "worker_us"}     # what the names of threads begin with


def broker_threads(pids: Iterable[int]) -> Counter[str]:
    """Seconds of CPU by figure; threads that have no line of their own (the supervisor, libzmq's for live events) are `other_us`."""
    found: Counter[str] = Counter()
    for pid in pids:
        for name, seconds in cpu_by_thread(pid):
            found[next((figure for begin, figure in THREADS.items() if name.startswith(begin)), "other_us")] += seconds
    return found


def by_thread(broker: FastMQ, count: int) -> Figures:
    (queue,) = broker.queues(1)
    arguments = {"url": broker.url, "count": count, "size": SIZE}
    sides = {
        "producer_us": Side(LOADS, "producer", keys=[queue], **arguments),
        "consumer_us": Side(LOADS, "consumer", queue=queue, prefetch=PREFETCH, **arguments),
    }
    try:
        with together(*sides.values()):
            before = broker_threads(broker.pids)
            used = {name: -of_side(side) for name, side in sides.items()}
            for name, side in sides.items():
                side.report()
                used[name] += of_side(side)
            wait(broker.all_settled, "nothing to be ready or outstanding")
            used |= broker_threads(broker.pids) - before
            for side in sides.values():
                side.finish()
    finally:
        broker.delete([queue])
    return {name: seconds / count * 1e6 for name, seconds in used.items()}


def of_side(side: Side) -> float:
    """In ticks of 10 ms, but with the threads that have ended."""
    fields = Path(f"/proc/{side.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def where(stage: Stage) -> dict[str, Run]:
    return {"fastmq": partial(by_thread, stage.fastmq(), stage.count(1_000_000))}


LOADS_OF_WHERE = (
    Load(
        "where", "work queue, 128 B, CPU a message", where,
        (
            Line("producer (publish, send), us", "producer_us"),
            Line("front-end (sockets, route, account), us", "frontend_us"),
            Line("worker (decide, deliver, settle), us", "worker_us"),
            Line("consumer (receive, Message, ack), us", "consumer_us"),
        ),
    ),
)  # fmt: skip
