"""Throughput of a queue that is never shorter than so many messages: what goes in is taken out at the other end."""


from harness import FastMQ, Figures, Line, Load, Run, Stage, flow

from fastmq.cli.sides import LOADS, Side, Void, together

SIZE = 128
PREFETCH = 5000
DEPTHS = (10**3, 10**5, 10**7)


class Deep:
    """A queue of that depth on a broker of its own, filled at the first run."""

    def __init__(self, broker: FastMQ, depth: int, count: int) -> None:
        self.broker, self.depth, self.count = broker, depth, count
        self.taken = 0  # messages, since it was filled
        (self.queue,) = broker.queues(1)

    def run(self) -> Figures:
        if not self.taken:
            fill(self.broker, self.queue, self.depth)
        first, self.taken = self.taken, self.taken + self.count
        arguments = {"url": self.broker.url, "count": self.count, "size": SIZE}
        figures = flow(
            [Side(LOADS, "producer", keys=[self.queue], first=first + self.depth, **arguments)],
            [Side(LOADS, "consumer", queue=self.queue, prefetch=PREFETCH, first=first, **arguments)],
            self.count, self.broker.pids, lambda: self.broker.messages() == self.depth,
        )  # fmt: skip
        if self.broker.messages() != self.depth:
            raise Void(f"the queue holds {self.broker.messages()} messages, not {self.depth}")
        return figures


def fill(broker: FastMQ, queue: str, depth: int) -> None:
    """Publish so many messages to a queue that nobody consumes."""
    filler = Side(LOADS, "filler", url=broker.url, queue=queue, count=depth, size=SIZE)
    with together(filler):
        filler.report()
        filler.finish()
    if broker.messages() != depth:
        raise Void(f"the queue holds {broker.messages()} messages, not {depth}")


def depths(stage: Stage) -> dict[str, Run]:
    count = stage.count(1_000_000)
    return {name_of(depth): Deep(stage.fastmq(), stage.count(depth, 1000), count).run for depth in DEPTHS}


def name_of(depth: int) -> str:
    return f"depth {depth:,}"


ALL = tuple(map(name_of, DEPTHS))
LOADS_OF_DEPTH = (
    Load("depth", "work queue, 128 B", depths, tuple(Line("messages/s", "messages_s", name, ALL, 0.7) for name in ALL)),
)
