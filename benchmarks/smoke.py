"""The smoke figures: three ratios that show whether the shape of fastmq is right, against Redis in the same run.

    python benchmarks/smoke.py [queue] [pingpong] [spread] [--rounds N] [--messages N]

queue     an acknowledged work queue of 128-byte messages, ordinary `publish` and `ack` calls, against Redis lists
          in bulk (LPUSH of 500 at once, BLMPOP of 500, no acknowledgement): messages/s, at least 1.0 x
pingpong  one message at a time through two queues and back, against LPUSH / BLPOP: median round trip, at most 1.0 x
spread    one session's messages over 1,000 queues in 64 shards, against one queue: messages/s, at least 0.3 x

One producer process, one consumer process, one worker, TCP loopback; A B A B, medians. A run starts with everything
prepared and ends when the last message is acknowledged and the broker shows nothing ready or outstanding; it is void
unless each message came exactly once. Exit status: 0 all bounds kept, 1 a bound missed or a run void, 2 wrong usage or
something is not installed.
"""

import argparse
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from time import monotonic
from typing import NamedTuple

from harness import (
    Gate,
    RedisServer,
    Side,
    Void,
    check_exactly_once,
    cpu_seconds,
    in_turn,
    machine,
    median,
    payloads,
    percentile,
    sides,
    spread,
    wait,
)

SIZE = 128
BULK = 500  # of Redis, as in the comparison that is to be beaten
PREFETCH = 5000
QUEUES = 1000
SPREAD_PREFETCH = 100  # of each queue
WARM_UP_TRIPS = 500

Figures = dict[str, float]


# --- the sides: each is one process (see harness) --------------------------------------------------------------------


def fastmq_producer(gate: Gate, url: str, queues: list[str], count: int) -> None:
    import fastmq

    bodies = payloads(count, SIZE)
    many = len(queues)
    with fastmq.connect(url) as mq:
        publish = mq.publish
        gate.ready()
        if many == 1:
            queue = queues[0]
            for body in bodies:
                publish(queue, body)
        else:
            names = queues * (count // many + 1)
            for queue, body in zip(names, bodies, strict=False):
                publish(queue, body)
        mq.flush()
        gate.report(done=True)


def fastmq_consumer(gate: Gate, url: str, queue: str, count: int) -> None:
    import fastmq

    received = []
    with fastmq.connect(url) as mq, mq.consume(queue, prefetch=PREFETCH) as messages:
        gate.ready()
        keep = received.append
        for message in messages:
            keep(message.body)
            message.ack()
            if len(received) == count:
                break
        gate.report(done=True)
        gate.wait_end()
    gate.report(**check_exactly_once(received, count, SIZE))


def fastmq_spread_consumer(gate: Gate, url: str, queues: list[str], count: int) -> None:
    """Take the messages in the order in which they were published: one from each queue in turn."""
    import fastmq

    received = []
    with fastmq.connect(url) as mq:
        consumers = [mq.consume(queue, prefetch=SPREAD_PREFETCH) for queue in queues]
        gate.ready()
        keep = received.append
        turns = consumers * (count // len(consumers) + 1)
        for messages in turns[:count]:
            message = next(messages)
            keep(message.body)
            message.ack()
        gate.report(done=True)
        gate.wait_end()
    gate.report(**check_exactly_once(received, count, SIZE))


def redis_producer(gate: Gate, port: int, queue: str, count: int) -> None:
    import redis

    bodies = payloads(count, SIZE)
    bulks = [bodies[start : start + BULK] for start in range(0, count, BULK)]
    client = redis.Redis(port=port)
    client.ping()
    gate.ready()
    for bulk in bulks:
        client.lpush(queue, *bulk)
    gate.report(done=True)


def redis_consumer(gate: Gate, port: int, queue: str, count: int) -> None:
    import redis

    received: list[bytes] = []
    client = redis.Redis(port=port)
    client.ping()
    gate.ready()
    while len(received) < count:
        received.extend(client.blmpop(0, 1, queue, direction="RIGHT", count=BULK)[1])
    gate.report(done=True)
    gate.wait_end()
    gate.report(**check_exactly_once(received, count, SIZE))


def fastmq_ping(gate: Gate, url: str, ping: str, pong: str, trips: int) -> None:
    from time import perf_counter

    import fastmq

    bodies = payloads(trips + WARM_UP_TRIPS, SIZE)
    received, times = [], []
    with fastmq.connect(url) as mq, mq.consume(pong, prefetch=1) as answers:
        gate.ready()
        for body in bodies:
            start = perf_counter()
            mq.publish(ping, body)
            message = next(answers)
            times.append(perf_counter() - start)
            received.append(message.body)
            message.ack()
    check_exactly_once(received, len(bodies), SIZE)
    report_trips(gate, times)


def fastmq_pong(gate: Gate, url: str, ping: str, pong: str) -> None:
    import fastmq

    with fastmq.connect(url) as mq, mq.consume(ping, prefetch=1) as questions:
        gate.ready()
        for message in questions:
            mq.publish(pong, message.body)
            message.ack()


def redis_ping(gate: Gate, port: int, ping: str, pong: str, trips: int) -> None:
    from time import perf_counter

    import redis

    bodies = payloads(trips + WARM_UP_TRIPS, SIZE)
    received, times = [], []
    client = redis.Redis(port=port)
    client.ping()
    gate.ready()
    for body in bodies:
        start = perf_counter()
        client.lpush(ping, body)
        answer = client.blpop(pong)
        times.append(perf_counter() - start)
        received.append(answer[1])
    check_exactly_once(received, len(bodies), SIZE)
    report_trips(gate, times)


def redis_pong(gate: Gate, port: int, ping: str, pong: str) -> None:
    import redis

    client = redis.Redis(port=port)
    client.ping()
    gate.ready()
    while True:
        client.lpush(pong, client.blpop(ping)[1])


def report_trips(gate: Gate, times: list[float]) -> None:
    trips = times[WARM_UP_TRIPS:]
    gate.report(p50_us=percentile(trips, 0.5) * 1e6, p99_us=percentile(trips, 0.99) * 1e6)


# --- the runs --------------------------------------------------------------------------------------------------------


class FastMQ:
    """The broker under test, and an eye on it."""

    def __init__(self) -> None:
        import fastmq

        self.broker = fastmq.Broker(workers=1)
        self.client = fastmq.connect(self.broker.url)
        self.url = self.broker.url
        self.queues_made = 0

    @property
    def pids(self) -> list[int]:
        return [process["pid"] for process in self.client.status()["processes"]]

    def queues(self, count: int) -> list[str]:
        """New queues; those of the run before are deleted."""
        names = [f"smoke.{self.queues_made + number}" for number in range(count)]
        self.queues_made += count
        for name in names:
            self.client.declare_queue(name)
        return names

    def delete(self, queues: list[str]) -> None:
        for name in queues:
            self.client.delete_queue(name)

    def all_settled(self) -> bool:
        status = self.client.status()
        queues = status["queues"]
        if len(queues) < status["queues_total"]:
            raise Void("the broker does not show all of its queues")
        return not any(queue["messages_ready"] or queue["messages_unacknowledged"] for queue in queues)

    def __enter__(self) -> "FastMQ":
        return self

    def __exit__(self, *error: object) -> None:
        self.client.close()
        self.broker.stop()


def flow(producer: Side, consumer: Side, count: int, pids: list[int], settled: Callable[[], bool]) -> Figures:
    """Messages/s from the start until everything is settled, and the broker's CPU time for each message."""
    with sides(producer, consumer) as started:
        before = cpu_seconds(pids)
        producer.report()
        consumer.report()
        wait(settled, "nothing to be ready or outstanding")
        seconds = monotonic() - started
        cpu = cpu_seconds(pids) - before
        producer.finish()
        disordered = consumer.finish()["disordered"]
    return {"messages_s": count / seconds, "cpu_us": cpu / count * 1e6, "disordered": disordered}


def fastmq_queue(fastmq: FastMQ, count: int, queues: int = 1) -> Figures:
    names = fastmq.queues(queues)
    producer = Side(__file__, "fastmq_producer", url=fastmq.url, queues=names, count=count)
    if queues == 1:
        consumer = Side(__file__, "fastmq_consumer", url=fastmq.url, queue=names[0], count=count)
    else:
        consumer = Side(__file__, "fastmq_spread_consumer", url=fastmq.url, queues=names, count=count)
    try:
        return flow(producer, consumer, count, fastmq.pids, fastmq.all_settled)
    finally:
        fastmq.delete(names)


def redis_queue(redis: RedisServer, count: int) -> Figures:
    producer = Side(__file__, "redis_producer", port=redis.port, queue="smoke", count=count)
    consumer = Side(__file__, "redis_consumer", port=redis.port, queue="smoke", count=count)
    return flow(producer, consumer, count, redis.pids, lambda: redis.client.llen("smoke") == 0)


def trips(ping: Side, pong: Side) -> Figures:
    with sides(ping, pong):
        return ping.report()


def fastmq_pingpong(fastmq: FastMQ, count: int) -> Figures:
    ping, pong = fastmq.queues(2)
    try:
        return trips(
            Side(__file__, "fastmq_ping", url=fastmq.url, ping=ping, pong=pong, trips=count),
            Side(__file__, "fastmq_pong", url=fastmq.url, ping=ping, pong=pong),
        )
    finally:
        fastmq.delete([ping, pong])


def redis_pingpong(redis: RedisServer, count: int) -> Figures:
    return trips(
        Side(__file__, "redis_ping", port=redis.port, ping="ping", pong="pong", trips=count),
        Side(__file__, "redis_pong", port=redis.port, ping="ping", pong="pong"),
    )


# --- the lines of the table ------------------------------------------------------------------------------------------


class Line(NamedTuple):
    """One comparison: what is measured, against what, and the bound that its ratio must keep."""

    name: str
    ours: str
    theirs: str
    key: str  # the figure whose ratio counts
    bound: float
    at_least: bool
    count: int

    def kept(self, ratio: float) -> bool:
        return ratio >= self.bound if self.at_least else ratio <= self.bound


LINES = (
    Line("queue", "fastmq work queue, publish and ack", "Redis lists in bulk", "messages_s", 1.0, True, 1_000_000),
    Line("pingpong", "fastmq publish / consume", "Redis LPUSH / BLPOP", "p50_us", 1.0, False, 5000),
    Line("spread", f"fastmq, {QUEUES:,} queues", "fastmq, one queue", "messages_s", 0.3, True, 500_000),
)


def measure(line: Line, rounds: int, count: int) -> bool:
    """Measure one line, print its figures; True if it keeps its bound."""
    print(f"{line.name}: {count:,} messages of {SIZE} bytes, {rounds} rounds in turn", file=sys.stderr)
    with ExitStack() as stack:
        fastmq = stack.enter_context(FastMQ())
        runs: tuple[Callable[[], Figures], Callable[[], Figures]]
        if line.name == "queue":
            redis = stack.enter_context(RedisServer())
            runs = partial(fastmq_queue, fastmq, count), partial(redis_queue, redis, count)
        elif line.name == "pingpong":
            redis = stack.enter_context(RedisServer())
            runs = partial(fastmq_pingpong, fastmq, count), partial(redis_pingpong, redis, count)
        else:
            runs = partial(fastmq_queue, fastmq, count, QUEUES), partial(fastmq_queue, fastmq, count)
        ours, theirs = in_turn(rounds, *runs)
    ratio = median(ours, line.key) / median(theirs, line.key)
    for name, results in ((line.ours, ours), (line.theirs, theirs)):
        figures = "   ".join(f"{key} {median(results, key):,.4g} ({spread(results, key)})" for key in results[0])
        print(f"{line.name:9} {name:36} {figures}")
    bound = f"{'at least' if line.at_least else 'at most'} {line.bound}"
    kept = line.kept(ratio)
    print(f"{line.name:9} ratio of {line.key} {ratio:.2f}, bound {bound}: {'kept' if kept else 'MISSED'}", flush=True)
    return kept


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("line", nargs="*", help="queue, pingpong, spread; all three if none is named")
    parser.add_argument("--rounds", type=int, default=3, help="rounds A B (default 3)")
    parser.add_argument("--messages", type=int, help="messages, or round trips, of each run")
    arguments = parser.parse_args()
    if unknown := set(arguments.line) - {line.name for line in LINES}:
        parser.error(f"there is no line {', '.join(sorted(unknown))}")
    print(f"on {machine()}")
    kept = True
    for line in LINES:
        if not arguments.line or line.name in arguments.line:
            try:
                kept &= measure(line, arguments.rounds, arguments.messages or line.count)
            except Void as reason:
                print(f"{line.name:9} void: {reason}")
                kept = False
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
