"""Many clients: what connected ones cost the others, and a thousand that publish at once with small windows.

The clients are bare sockets, so that it is the broker that is measured: two processes hold them and publish to one queue, which an ordinary
consumer empties.
"""

from functools import partial

from harness import FastMQ, Figures, Line, Load, Run, Stage, flow

from fastmq.cli.sides import LOADS, Side

CROWD = ("-m", "fastmq.cli.crowd")
PROCESSES = 2
SIZE = 128
PREFETCH = 5000
WINDOW, BATCH = 5000, 500  # of each of few clients
SMALL_WINDOW, SMALL_BATCH = 100, 50


def crowd(broker: FastMQ, clients: int, active: int, count: int, window: int, batch: int) -> Figures:
    (queue,) = broker.queues(1)
    share = count // PROCESSES
    senders = [
        Side(
            CROWD, "crowd", url=broker.url, queue=queue, clients=clients // PROCESSES, active=active // PROCESSES, count=share,
            size=SIZE, window=window, batch=batch, first=number * share,
        )
        for number in range(PROCESSES)
    ]  # fmt: skip
    count = share * PROCESSES
    consumer = Side(LOADS, "consumer", url=broker.url, queue=queue, count=count, size=SIZE, prefetch=PREFETCH)
    try:
        return flow(senders, [consumer], count, broker.pids, broker.all_settled)
    finally:
        broker.delete([queue])


def crowds(stage: Stage) -> dict[str, Run]:
    broker, count = stage.fastmq(), stage.count(1_000_000)
    few, many = 10, stage.count(1000, 40)
    return {
        "10 connected": partial(crowd, broker, few, few, count, WINDOW, BATCH),
        "1,000 connected, 10 active": partial(crowd, broker, many, few, count, WINDOW, BATCH),
        "1,000 active": partial(crowd, broker, many, many, count, SMALL_WINDOW, SMALL_BATCH),
    }


LOADS_OF_MANY = (
    Load(
        "clients", "many clients", crowds,
        (
            Line("messages/s", "messages_s", "1,000 connected, 10 active", ("10 connected",), 0.7),
            Line("messages/s, windows of 100", "messages_s", "1,000 active", ("10 connected",), 0.3),
            Line("broker CPU, us a message", "cpu_us", "1,000 active", ("10 connected",), at_least=False),
        ),
    ),
)  # fmt: skip
