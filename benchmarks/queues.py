"""Work queues: one producer and one consumer process, every message confirmed and acknowledged."""

from functools import partial
from typing import Any

from harness import FastMQ, Figures, Line, Load, Run, Stage, flow
from peers import GROUP, NatsServer, RedisServer, need_module, side

from fastmq.cli.sides import LOADS, Side

SIZE = 128
PREFETCH = 5000
QUEUES = 1000
SPREAD_PREFETCH = 100  # of each of many queues
BINDINGS = 10_000
KEYS = 100  # that are published in turn

LISTS = "Redis lists in bulk"
STREAMS = "Redis streams, group, XACK"
JETSTREAM = "NATS JetStream in memory"


def fastmq_queue(broker: FastMQ, count: int, size: int = SIZE, prefetch: int = PREFETCH) -> Figures:
    (queue,) = broker.queues(1)
    try:
        return flow(
            [Side(LOADS, "producer", url=broker.url, keys=[queue], count=count, size=size)],
            [Side(LOADS, "consumer", url=broker.url, queue=queue, count=count, size=size, prefetch=prefetch)],
            count, broker.pids, broker.all_settled, size,
        )  # fmt: skip
    finally:
        broker.delete([queue])


def redis_lists(redis: RedisServer, count: int, size: int) -> Figures:
    arguments = {"port": redis.port, "queue": "bench", "count": count, "size": size}
    try:
        return flow(
            [side("redis_producer", **arguments)], [side("redis_consumer", **arguments)],
            count, redis.pids, lambda: redis.client.llen("bench") == 0, size,
        )  # fmt: skip
    finally:
        redis.client.delete("bench")


def redis_streams(redis: RedisServer, count: int) -> Figures:
    arguments = {"port": redis.port, "stream": "bench", "count": count, "size": SIZE}
    redis.client.xgroup_create("bench", GROUP, "0", mkstream=True)
    try:
        return flow(
            [side("redis_stream_producer", **arguments)], [side("redis_stream_consumer", **arguments)],
            count, redis.pids, lambda: redis.client.xpending("bench", GROUP)["pending"] == 0,
        )  # fmt: skip
    finally:
        redis.client.delete("bench")


def nats_jetstream(nats: NatsServer, count: int) -> Figures:
    nats.renew_stream("bench")
    arguments = {"port": nats.port, "queue": "bench", "count": count, "size": SIZE}
    return flow(
        [side("nats_producer", **arguments)], [side("nats_consumer", **arguments)],
        count, nats.pids, lambda: nats.messages("bench") == 0,
    )  # fmt: skip


def against_lists(stage: Stage, full: int, size: int, prefetch: int = PREFETCH) -> dict[str, Run]:
    redis = stage.enter(RedisServer())
    count = stage.count(full)
    return {
        "fastmq": partial(fastmq_queue, stage.fastmq(), count, size, prefetch),
        LISTS: partial(redis_lists, redis, count, size),
    }


def against_streams(stage: Stage) -> dict[str, Run]:
    redis = stage.enter(RedisServer())
    return {
        "fastmq": partial(fastmq_queue, stage.fastmq(), stage.count(1_000_000)),
        STREAMS: partial(redis_streams, redis, stage.count(200_000)),
    }


def against_jetstream(stage: Stage) -> dict[str, Run]:
    need_module("nats", "nats-py")
    nats = stage.enter(NatsServer())
    return {
        "fastmq": partial(fastmq_queue, stage.fastmq(), stage.count(1_000_000)),
        JETSTREAM: partial(nats_jetstream, nats, stage.count(50_000)),
    }


# ---- one session over many queues


def spread(broker: FastMQ, count: int) -> Figures:
    queues = broker.queues(QUEUES)
    try:
        return flow(
            [Side(LOADS, "producer", url=broker.url, keys=queues, count=count, size=SIZE)],
            [Side(LOADS, "spread_consumer", url=broker.url, queues=queues, count=count, size=SIZE, prefetch=SPREAD_PREFETCH)],
            count, broker.pids, broker.all_settled,
        )  # fmt: skip
    finally:
        broker.delete(queues)


def over_queues(workers: int, stage: Stage) -> dict[str, Run]:
    broker, count = stage.fastmq(workers=workers), stage.count(500_000)
    return {"1,000 queues": partial(spread, broker, count), "one queue": partial(fastmq_queue, broker, count)}


# ---- routing


def routed(broker: FastMQ, exchange: str, queue: str, count: int) -> Figures:
    keys = [f"key.{number}" for number in range(KEYS)]
    return flow(
        [Side(LOADS, "producer", url=broker.url, keys=keys, count=count, size=SIZE, exchange=exchange)],
        [Side(LOADS, "consumer", url=broker.url, queue=queue, count=count, size=SIZE, prefetch=PREFETCH)],
        count, broker.pids, broker.all_settled,
    )  # fmt: skip


def cached_route(stage: Stage) -> dict[str, Run]:
    """A direct exchange with a binding for each key, and a topic exchange where one binding in a hundred matches."""
    broker, count = stage.fastmq(), stage.count(1_000_000)
    mq = broker.client
    (queue,) = broker.queues(1)
    mq.declare_exchange("direct", "direct")
    mq.declare_exchange("topic", "topic")
    for number in range(KEYS):
        mq.bind_queue(queue, "direct", f"key.{number}")
        mq.bind_queue(queue, "topic", f"key.{number}")
    for number in range(stage.count(BINDINGS, 100) - KEYS):
        mq.bind_queue(queue, "topic", f"other.{number}.*")
    return {
        "topic, 10,000 bindings": partial(routed, broker, "topic", queue, count),
        "direct exchange": partial(routed, broker, "direct", queue, count),
    }


# ---- the lines


def lists_line(bound: float, **more: Any) -> Line:
    return Line("messages/s", "messages_s", against=(LISTS,), bound=bound, **more)


LOADS_OF_QUEUES = (
    Load(
        "queue", "work queue, 128 B", partial(against_lists, full=1_000_000, size=SIZE),
        (lists_line(1.6), Line("broker CPU, us a message", "cpu_us", against=(LISTS,), bound=1.5, at_least=False)),
    ),
    Load(
        "streams", "work queue, 128 B", against_streams,
        (
            Line("messages/s", "messages_s", against=(STREAMS,), bound=10),
            Line("broker CPU, us a message", "cpu_us", against=(STREAMS,), at_least=False),
        ),
    ),
    Load("queue-1k", "work queue, 1 KiB", partial(against_lists, full=400_000, size=1024), (lists_line(1.3),)),
    Load("queue-16k", "work queue, 16 KiB", partial(against_lists, full=40_000, size=16384), (lists_line(1.0),)),
    Load(
        "jetstream", "work queue, 128 B", against_jetstream,
        (
            Line("messages/s", "messages_s", against=(JETSTREAM,)),
            Line("broker CPU, us a message", "cpu_us", against=(JETSTREAM,), at_least=False),
        ),
    ),
    Load(
        "spread", "one session, 1 worker", partial(over_queues, 1),
        (
            Line("messages/s", "messages_s", "1,000 queues", ("one queue",), 0.3),
            Line("broker CPU, us a message", "cpu_us", "1,000 queues", ("one queue",), at_least=False),
        ),
    ),
    Load(
        "spread-4", "one session, 4 workers", partial(over_queues, 4),
        (
            Line("messages/s", "messages_s", "1,000 queues", ("one queue",), 0.5),
            Line("broker CPU, us a message", "cpu_us", "1,000 queues", ("one queue",), at_least=False),
        ),
    ),
    Load(
        "route", "a route from memory", cached_route,
        (Line("messages/s", "messages_s", "topic, 10,000 bindings", ("direct exchange",), 0.9),),
    ),
)  # fmt: skip
