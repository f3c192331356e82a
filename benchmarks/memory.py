"""Memory of the broker's processes for messages that wait, and what is left of it when they are gone."""

from functools import partial
from time import monotonic, sleep

from depth import fill
from harness import FastMQ, Figures, Line, Load, Run, Stage, pss_bytes

from fastmq.cli.sides import LOADS, Side, Void, together

SIZE = 128
PREFETCH = 5000
MESSAGES = 10**7
GIVE_BACK_S = 5.0  # how long it may take to return memory


def waiting(count: int, give_back_s: float) -> Figures:
    """A new broker each time: its memory at the start, with messages that wait, and after they have been consumed."""
    with Stage() as own:
        broker = own.fastmq()
        (queue,) = broker.queues(1)
        start = pss_bytes(broker.pids)
        fill(broker, queue, count)
        full = pss_bytes(broker.pids)
        drain(broker, queue, count)
        until = monotonic() + give_back_s
        left = pss_bytes(broker.pids)
        while monotonic() < until and left > start:
            sleep(0.1)
            left = min(left, pss_bytes(broker.pids))
    return {"bytes_each": (full - start) / count, "left_ratio": left / start, "start_mb": start / 1e6, "left_mb": left / 1e6}


def drain(broker: FastMQ, queue: str, count: int) -> None:
    drainer = Side(LOADS, "drainer", url=broker.url, queue=queue, count=count, size=SIZE, prefetch=PREFETCH)
    with together(drainer):
        drainer.report()
        drainer.finish()
    if broker.messages():
        raise Void("messages are left")


def memory(stage: Stage) -> dict[str, Run]:
    return {"fastmq": partial(waiting, stage.count(MESSAGES), GIVE_BACK_S if stage.scale >= 1 else 0.5)}


LOADS_OF_MEMORY = (
    Load(
        "memory", "ten million messages of 128 B", memory,
        (
            Line("bytes for each that waits", "bytes_each", bound=200, at_least=False),
            Line("memory after they are gone / at the start", "left_ratio", bound=1.3, at_least=False),
        ),
    ),
)  # fmt: skip
