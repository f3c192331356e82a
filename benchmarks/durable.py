"""Durable messages: confirmed publishes beside Redis and beside the disk, the work queue on a log, recovery, what the log takes of the disk.

The folders of both sides lie where temporary files do (TMPDIR moves them). A run counts only if what was confirmed is there, each once.
"""

import os
from collections.abc import Callable
from functools import partial
from time import monotonic

from depth import fill
from harness import FastMQ, Figures, Line, Load, Run, Stage, disk_bytes, flow, trips
from memory import drain
from peers import RedisServer, side
from queues import SIZE, fastmq_queue

from fastmq.cli.loads import WARM_UP_TRIPS
from fastmq.cli.sides import LOADS, Side, Void, together, wait

PREFETCH = 5000
WINDOW = 500  # publishes of one producer without an outcome
TRIPS = 4000
LARGE_SIZE, LARGE_PREFETCH = 2**18, 64
SYNC_SIZE = 2**23  # bytes that the disk is given between two syncs
RECOVERED = PASSING = 10**7
TAIL = 7 * 10**6  # messages of 128 B in a journal of 1 GiB
NEVER = 2**39  # bytes
PASSING_LONG = 10**8
PASSING_TIMEOUT_S = 900.0
SEGMENT_SIZE = 2**26  # of the log, at its largest
SEGMENTS_MAX = 8  # "a few"

REDIS = "Redis AOF always, XADD"
DISK = "the disk, fdatasync each 8 MiB"


def kept_once(broker: FastMQ, queue: str, count: int, size: int = SIZE, prefetch: int = PREFETCH) -> None:
    """Take what was confirmed. Raises Void unless each message comes once."""
    consumer = Side(LOADS, "consumer", url=broker.url, queue=queue, count=count, size=size, prefetch=prefetch)
    with together(consumer):
        consumer.report()
        consumer.finish()
    wait(broker.all_settled, "nothing to be ready or outstanding")


def confirmed(broker: FastMQ, producers: int, share: int, size: int = SIZE, prefetch: int = PREFETCH) -> Figures:
    """Publish until everything is confirmed; the clock has stopped when it is looked whether all of it is there."""
    (queue,) = broker.queues(1)
    count = producers * share
    try:
        figures = flow(
            [
                Side(LOADS, "producer", url=broker.url, keys=[queue], count=share, size=size, first=number * share)
                for number in range(producers)
            ],
            [], count, broker.pids, lambda: True, size,
        )  # fmt: skip
        kept_once(broker, queue, count, size, prefetch)
        return figures
    finally:
        broker.delete([queue])


def redis_confirmed(redis: RedisServer, producers: int, share: int) -> Figures:
    arguments = {"port": redis.port, "stream": "bench", "count": share, "size": SIZE, "window": WINDOW}
    try:
        figures = flow(
            [side("redis_window_producer", first=number * share, **arguments) for number in range(producers)],
            [], producers * share, redis.pids, lambda: True, SIZE,
        )  # fmt: skip
        redis_has(redis, producers * share)
        return figures
    finally:
        redis.client.delete("bench")


def redis_has(redis: RedisServer, count: int) -> None:
    if redis.client.xlen("bench") != count:
        raise Void(f"of {count} messages the stream holds {redis.client.xlen('bench')}")


def against_redis(stage: Stage, producers: int) -> dict[str, Run]:
    redis = stage.enter(RedisServer(keeps=True))
    broker = stage.fastmq(data_dir=stage.disk_folder(), publish_window_messages=WINDOW)
    return {
        "fastmq": partial(confirmed, broker, producers, stage.count(1_000_000) // producers),
        REDIS: partial(redis_confirmed, redis, producers, stage.count(200_000) // producers),
    }


# ---- one at a time


def confirmed_trips(broker: FastMQ, count: int) -> Figures:
    (queue,) = broker.queues(1)
    try:
        figures = trips(Side(LOADS, "lone_producer", url=broker.url, queue=queue, trips=count, size=SIZE))
        kept_once(broker, queue, count + WARM_UP_TRIPS)
        return figures
    finally:
        broker.delete([queue])


def redis_confirmed_trips(redis: RedisServer, count: int) -> Figures:
    try:
        figures = trips(side("redis_lone_producer", port=redis.port, stream="bench", trips=count, size=SIZE))
        redis_has(redis, count + WARM_UP_TRIPS)
        return figures
    finally:
        redis.client.delete("bench")


def one_at_a_time(stage: Stage) -> dict[str, Run]:
    redis, count = stage.enter(RedisServer(keeps=True)), stage.count(TRIPS, 200)
    broker = stage.fastmq(data_dir=stage.disk_folder())
    return {"fastmq": partial(confirmed_trips, broker, count), REDIS: partial(redis_confirmed_trips, redis, count)}


# ---- beside transient messages, and beside the disk


def work_queues(stage: Stage) -> dict[str, Run]:
    count = stage.count(1_000_000)
    return {
        "durable": partial(fastmq_queue, stage.fastmq(data_dir=stage.disk_folder()), count),
        "transient": partial(fastmq_queue, stage.fastmq(), count),
    }


def written(folder: str, count: int) -> Figures:
    path = os.path.join(folder, "written")
    writer = side("disk_writer", path=path, count=count, size=LARGE_SIZE, sync_size=SYNC_SIZE)
    return flow([writer], [], count, [os.getpid()], lambda: True, LARGE_SIZE)


def against_disk(stage: Stage) -> dict[str, Run]:
    count = stage.count(2000, 40)
    broker = stage.fastmq(data_dir=stage.disk_folder())
    return {
        "fastmq": partial(confirmed, broker, 1, count, LARGE_SIZE, LARGE_PREFETCH),
        DISK: partial(written, stage.disk_folder(), count),
    }


# ---- recovery


def recovered(count: int, **settings: int) -> Figures:
    """Fill a queue, stop, start again: when another queue serves, and when all of the messages are there."""
    with Stage() as own:
        folder = own.disk_folder()
        with Stage() as before:
            broker = before.fastmq(data_dir=folder, **settings)
            large, small = broker.queues(2)
            fill(broker, large, count)
            broker.client.publish(small, b"first")
            broker.client.flush()
        started = monotonic()
        broker = own.fastmq(data_dir=folder, **settings)
        first = broker.client.get(small, timeout=60)
        if first is None or first.body != b"first":
            raise Void("the message of the small queue is lost")
        first_s = monotonic() - started
        first.ack()
        wait(lambda: broker.messages() == count, f"{count} messages to be recovered", timeout=60)
        seconds = monotonic() - started
        drain(broker, large, count)
    return {"messages_s": count / seconds, "first_s": first_s, "all_s": seconds}


def recovery(stage: Stage) -> dict[str, Run]:
    return {"fastmq": partial(recovered, stage.count(RECOVERED))}


def tail(stage: Stage) -> dict[str, Run]:
    """No checkpoint is made: the journal has all of it."""
    return {"fastmq": partial(recovered, stage.count(TAIL), checkpoint_tail_size=NEVER, memory_mark=NEVER)}


# ---- disk space


def passing(count: int) -> Figures:
    """Messages pass through a queue that never holds more than the filler may be before the drainer."""
    with Stage() as own:
        folder = own.disk_folder()
        broker = own.fastmq(data_dir=folder)
        (queue,) = broker.queues(1)
        most = 0

        def look(share: float) -> None:
            nonlocal most
            most = max(most, disk_bytes(folder))

        started = monotonic()
        pass_through(broker, queue, count, look)
        seconds = monotonic() - started
        look(1)
        if broker.messages():
            raise Void("messages are left")
        return {"segments": most / SEGMENT_SIZE, "left_segments": disk_bytes(folder) / SEGMENT_SIZE, "messages_s": count / seconds}


def pass_through(broker: FastMQ, queue: str, count: int, look: Callable[[float], None]) -> None:
    """The pipe by which the drainer holds the filler back can be read until both have ended: the filler ends first."""
    read, write = os.pipe()
    arguments = {"url": broker.url, "queue": queue, "count": count, "size": SIZE}
    try:
        filler = Side(LOADS, "filler", (read,), pace=read, **arguments)
        drainer = Side(LOADS, "drainer", (write,), pace=write, prefetch=PREFETCH, **arguments)
        with together(filler, drainer, timeout=PASSING_TIMEOUT_S):
            drainer.report(look)
            filler.report()
            filler.finish()
            drainer.finish()
    finally:
        os.close(read)
        os.close(write)


def disk(stage: Stage) -> dict[str, Run]:
    return {"fastmq": partial(passing, PASSING_LONG if stage.long else stage.count(PASSING))}


# ---- the lines


def redis_line(title: str, figure: str, bound: float | None, at_least: bool = True) -> Line:
    return Line(title, figure, against=(REDIS,), bound=bound, at_least=at_least)


CONFIRMED = (redis_line("messages/s", "messages_s", 5), redis_line("broker CPU, us a message", "cpu_us", None, False))
LOADS_OF_DURABLE = (
    Load("durable", "confirmed durable publishes, 128 B, 500 in flight", partial(against_redis, producers=1), CONFIRMED),
    Load("durable-8", "the same of 8 producers, 500 each", partial(against_redis, producers=8), CONFIRMED),
    Load(
        "durable-one", "one confirmed durable publish at a time", one_at_a_time,
        (redis_line("confirmed after, p50 us", "p50_us", 0.9, False), redis_line("confirmed after, p99 us", "p99_us", None, False)),
    ),
    Load(
        "durable-queue", "work queue, 128 B", work_queues,
        (
            Line("messages/s", "messages_s", "durable", ("transient",), 0.5),
            Line("broker CPU, us a message", "cpu_us", "durable", ("transient",), at_least=False),
        ),
    ),
    Load(
        "durable-256k", "confirmed durable publishes, 256 KiB", against_disk,
        (Line("MB/s", "mb_s", against=(DISK,), bound=0.7), Line("broker CPU, us a message", "cpu_us")),
    ),
    Load(
        "recovery", "ten million durable messages of 128 B, broker started again", recovery,
        (Line("messages/s", "messages_s", bound=2e6), Line("first queue serves after, s", "first_s", bound=2, at_least=False)),
    ),
    Load(
        "recovery-tail", "a journal of 1 GiB without a checkpoint, broker started again", tail,
        (
            Line("first queue serves after, s", "first_s", bound=2, at_least=False), Line("all messages are there after, s", "all_s"),
            Line("messages/s", "messages_s"),
        ),
    ),
    Load(
        "disk", "ten million durable messages pass through a short queue", disk,
        (
            Line("the log at its largest, segments", "segments", bound=SEGMENTS_MAX, at_least=False),
            Line("at the end, segments", "left_segments", at_least=False), Line("messages/s", "messages_s"),
        ),
    ),
)  # fmt: skip
