"""The sides of fastmq's loads, each run as a process: python -m fastmq.cli.loads NAME ARGUMENTS (see sides.py).

Ordinary clients and ordinary per-message calls; what they publish is prepared before they are told to go.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import cycle, islice
from time import perf_counter

import fastmq
from fastmq.cli.connection import CONNECT_TIMEOUT_S
from fastmq.cli.messages import Kept, Tally, check_exactly_once, payloads, percentile
from fastmq.cli.sides import Gate, Void, run_side

WARM_UP_TRIPS = 500  # that are not counted
IDLE_S = 0.1  # a consumer that does not know how many messages are its own looks so often whether it is to end
CHUNK = 100_000  # messages made, or checked, at a time where all of them would need much memory
BLOCK = 500  # live events between two words about how far a subscriber is
BLOCKS_AHEAD = 8  # that a publisher of live events may be before its slowest subscriber


def connect(url: str) -> fastmq.Client:
    return fastmq.connect(url, timeout=CONNECT_TIMEOUT_S)


# ---- work queues


def producer(gate: Gate, url: str, keys: list[str], count: int, size: int, first: int = 0, exchange: str = "", steps: int = 1) -> None:
    """Publish `count` messages, with the keys in turn, and wait for their outcomes."""
    bodies = iter(payloads(count, size, first))
    with connect(url) as mq:
        publish = mq.publish
        gate.ready()
        if len(keys) == 1 and not exchange:
            key = keys[0]
            for part in gate.steps(count, steps):
                for body in islice(bodies, part):
                    publish(key, body)
        else:
            pairs = zip(cycle(keys), bodies, strict=False)
            for part in gate.steps(count, steps):
                for key, body in islice(pairs, part):
                    publish(key, body, exchange=exchange)
        mq.flush()
        gate.report(done=True)


def consumer(gate: Gate, url: str, queue: str, count: int, size: int, prefetch: int, first: int = 0, shared: bool = False) -> None:
    """Take and acknowledge `count` messages, or, where others share the queue, what comes until it is told to end."""
    kept = Kept(size)
    keep = kept.bodies.append
    with connect(url) as mq, mq.consume(queue, prefetch=prefetch, timeout=IDLE_S if shared else None) as messages:
        gate.ready()
        while True:
            mine = islice(messages, count - len(kept.bodies))
            if kept.whole:
                for message in mine:
                    keep(message.body)
                    message.ack()
            else:
                for message in mine:
                    body = message.body
                    keep(body[:10])
                    kept.bytes += len(body)
                    message.ack()
            if len(kept.bodies) == count:
                gate.report(done=True)
                gate.wait_end()
            if gate.ended:
                break
    if shared:
        gate.report(seen=kept.tally(count, first).packed())
    else:
        gate.report(**kept.check(count, first))


def spread_consumer(gate: Gate, url: str, queues: list[str], count: int, size: int, prefetch: int) -> None:
    """One session that consumes many queues, in the order in which `producer` publishes: one message from each in turn."""
    received: list[bytes] = []
    with connect(url) as mq:
        consumers = [mq.consume(queue, prefetch=prefetch) for queue in queues]
        gate.ready()
        keep = received.append
        for messages in islice(cycle(consumers), count):
            message = next(messages)
            keep(message.body)
            message.ack()
        gate.report(done=True)
        gate.wait_end()
    gate.report(**check_exactly_once(received, count, size))


def filler(gate: Gate, url: str, queue: str, count: int, size: int, pace: int | None = None) -> None:
    """Publish many messages, made on the way: a queue becomes deep; or stays short, with a `pace` that a drainer sets."""
    with connect(url) as mq:
        gate.ready()
        publish = mq.publish
        for start in range(0, count, CHUNK):
            if pace is not None and start >= 2 * CHUNK and not os.read(pace, 1):
                raise Void("the drainer has gone")
            for body in payloads(min(CHUNK, count - start), size, start):
                publish(queue, body)
        mq.flush(timeout=60)
    gate.report(done=True)


def drainer(gate: Gate, url: str, queue: str, count: int, size: int, prefetch: int, pace: int | None = None) -> None:
    """Take and acknowledge many messages, looked at on the way. With a `pace`, a pipe to a filler, say what was taken."""
    tally = Tally(count, size)
    with connect(url) as mq, mq.consume(queue, prefetch=prefetch) as messages:
        gate.ready()
        for start in range(0, count, CHUNK):
            bodies = []
            for message in islice(messages, min(CHUNK, count - start)):
                bodies.append(message.body)
                message.ack()
            tally.add(bodies)
            if pace is not None:
                os.write(pace, b".")
                gate.report(progress=len(bodies) / count)
    gate.report(**tally.result())


def stream_producer(gate: Gate, url: str, queue: str, different: int, size: int) -> None:
    """Publish the same `different` messages again and again until it is told to end; say how many it were."""
    bodies = payloads(different, size)
    sent = 0
    with connect(url) as mq:
        gate.ready()
        while not gate.ended:
            mq.publish(queue, bodies[sent % different])
            sent += 1
        mq.flush()
    gate.report(sent=sent)


def stream_consumer(gate: Gate, url: str, queue: str, different: int, size: int, prefetch: int) -> None:
    """Take what `stream_producer` publishes until it is told to end; say how often each message came."""
    came = [0] * different
    with connect(url) as mq, mq.consume(queue, prefetch=prefetch, timeout=IDLE_S) as messages:
        gate.ready()
        while not gate.ended:
            for message in messages:
                body = message.body
                came[int(body[:10])] += 1
                if len(body) != size:
                    raise Void(f"a message of {len(body)} bytes came, not of {size}")
                message.ack()
    gate.report(came=came)


# ---- latency


def ping(gate: Gate, url: str, ping: str, pong: str, trips: int, size: int, seconds: float = 3600, steps: int = 1) -> None:
    """Send one message at a time and wait until it has come back; end after so many trips, or seconds, or when it is told to."""
    bodies = iter(payloads(trips + WARM_UP_TRIPS, size))
    times, received = [], []
    with connect(url) as mq, mq.consume(pong, prefetch=1) as answers:
        gate.ready()
        until = perf_counter() + seconds
        for part in gate.steps(trips + WARM_UP_TRIPS, steps):
            for body in islice(bodies, part):
                start = perf_counter()
                mq.publish(ping, body)
                message = next(answers)
                times.append(perf_counter() - start)
                received.append(message.body)
                message.ack()
                if start > until or gate.ended:
                    break
    check_exactly_once(received, len(times), size)
    report_trips(gate, times)


def lone_producer(gate: Gate, url: str, queue: str, trips: int, size: int) -> None:
    """Publish one message at a time, each confirmed before the next."""
    times = []
    bodies = payloads(trips + WARM_UP_TRIPS, size)
    with connect(url) as mq:
        gate.ready()
        for body in bodies:
            start = perf_counter()
            mq.publish(queue, body)
            mq.flush()
            times.append(perf_counter() - start)
    report_trips(gate, times)


def pong(gate: Gate, url: str, ping: str, pong: str) -> None:
    """Send back what comes, until it is killed."""
    with connect(url) as mq, mq.consume(ping, prefetch=1) as questions:
        gate.ready()
        for message in questions:
            mq.publish(pong, message.body)
            message.ack()


def report_trips(gate: Gate, times: list[float]) -> None:
    trips = times[min(WARM_UP_TRIPS, len(times) // 2) :]
    gate.report(p50_us=percentile(trips, 0.5) * 1e6, p99_us=percentile(trips, 0.99) * 1e6)


# ---- live events


def paced(bodies: list[bytes], paces: list[int]) -> Iterator[list[bytes]]:
    """The bodies in blocks, each once the slowest subscriber is near enough: `paces` are pipes, a byte from each subscriber for a block."""
    for number, start in enumerate(range(0, len(bodies), BLOCK)):
        if number >= BLOCKS_AHEAD:
            for pace in paces:
                if not os.read(pace, 1):
                    raise Void("a subscriber has gone")
        yield bodies[start : start + BLOCK]


def publisher(gate: Gate, url: str, exchange: str, key: str, count: int, size: int, paces: list[int], steps: int = 1) -> None:
    """Publish live events, no faster than the slowest subscriber reads them."""
    bodies = payloads(count, size)
    with connect(url) as mq:
        publish = mq.publish
        gate.ready()
        blocks = paced(bodies, paces)
        for part in gate.steps(-(-count // BLOCK), steps):
            for block in islice(blocks, part):
                for body in block:
                    publish(key, body, exchange=exchange)
        mq.flush()
        gate.report(done=True)
        gate.wait_end()


def subscriber(gate: Gate, url: str, exchange: str, key: str, count: int, size: int, pace: int) -> None:
    """Receive live events, and say after each block that it was read."""
    kept = Kept(size)
    keep = kept.bodies.append
    with connect(url) as mq, mq.subscribe(key, exchange=exchange) as events:
        gate.ready()
        for start in range(0, count, BLOCK):
            block = islice(events, min(BLOCK, count - start))
            if kept.whole:
                for event in block:
                    keep(event.body)
            else:
                for event in block:
                    keep(event.body[:10])
                    kept.bytes += len(event.body)
            if events.lost:
                raise Void(f"{events.lost} live events were lost")
            os.write(pace, b".")
        gate.report(done=True)
        gate.wait_end()
    gate.report(**kept.check(count))


# ---- clients that do nothing


def idle(gate: Gate, url: str, clients: int) -> None:
    """Hold connected clients until it is told to end."""
    connected = [connect(url) for _ in range(clients)]
    gate.ready()
    gate.wait_end()
    for client in connected:
        client.close()


if __name__ == "__main__":
    run_side(globals())
