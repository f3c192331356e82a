"""Live publish/subscribe: no event is lost, because the publisher waits for the slowest subscriber, in both systems alike."""

import os
from collections.abc import Callable
from functools import partial

from harness import FastMQ, Figures, Line, Load, Run, Stage, flow
from peers import RedisServer, side

from fastmq.cli.sides import LOADS, Side

SIZE = 128
REDIS = "Redis pub/sub, pipelined"

Publisher = Callable[[list[int]], Side]
Subscriber = Callable[[int], Side]


def events(publisher: Publisher, subscriber: Subscriber, subscribers: int, count: int, pids: list[int]) -> Figures:
    """Events/s that each subscriber receives. Between each subscriber and the publisher is a pipe that paces it."""
    pipes = [os.pipe() for _ in range(subscribers)]
    try:
        receivers = [subscriber(write) for _, write in pipes]
        sender = publisher([read for read, _ in pipes])
    finally:
        for fd in (fd for pipe in pipes for fd in pipe):
            os.close(fd)
    return flow([sender], receivers, count, pids, lambda: True)


def fastmq_events(broker: FastMQ, subscribers: int, count: int) -> Figures:
    arguments = {"url": broker.url, "exchange": "amq.topic", "key": "bench", "count": count, "size": SIZE}
    return events(
        lambda paces: Side(LOADS, "publisher", paces, paces=paces, **arguments),
        lambda pace: Side(LOADS, "subscriber", [pace], pace=pace, **arguments),
        subscribers, count, broker.pids,
    )  # fmt: skip


def redis_events(redis: RedisServer, subscribers: int, count: int) -> Figures:
    arguments = {"port": redis.port, "channel": "bench", "count": count, "size": SIZE}
    return events(
        lambda paces: side("redis_publisher", paces, paces=paces, **arguments),
        lambda pace: side("redis_subscriber", [pace], pace=pace, **arguments),
        subscribers, count, redis.pids,
    )  # fmt: skip


def to_subscribers(subscribers: int, full: int, redis_full: int, stage: Stage) -> dict[str, Run]:
    redis, broker = stage.enter(RedisServer()), stage.fastmq()
    return {
        "fastmq": partial(fastmq_events, broker, subscribers, stage.count(full)),
        REDIS: partial(redis_events, redis, subscribers, stage.count(redis_full)),
    }


LINES = (
    Line("events/s of each subscriber", "messages_s", against=(REDIS,), bound=5),
    Line("broker CPU, us an event", "cpu_us", against=(REDIS,), at_least=False),
)
LOADS_OF_PUBSUB = (
    Load("pubsub", "live events, 1 to 1", partial(to_subscribers, 1, 1_000_000, 150_000), LINES),
    Load("pubsub-4", "live events, 1 to 4", partial(to_subscribers, 4, 500_000, 75_000), LINES),
)
