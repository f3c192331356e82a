"""Ping-pong: one message at a time through two queues and back."""

from functools import partial

from harness import FastMQ, Figures, Line, Load, Missing, Run, Stage, trips
from peers import RedisServer, side, tcp_connection

import fastmq
from fastmq.cli.sides import LOADS, Side

SIZE = 128
TRIPS = 5000
TRIPS_S, PAUSE_S = 60.0, 1e-4
REDIS = "Redis LPUSH / BLPOP"


def fastmq_trips(broker: FastMQ, url: str, count: int) -> Figures:
    ping, pong = broker.queues(2)
    try:
        return trips(
            Side(LOADS, "ping", url=url, ping=ping, pong=pong, trips=count, size=SIZE),
            Side(LOADS, "pong", url=url, ping=ping, pong=pong),
        )
    finally:
        broker.delete([ping, pong])


def tcp_trips(count: int, seconds: float = TRIPS_S) -> Figures:
    """Of two programs on one connection, without a broker: what the machine itself makes a message wait. With pauses, so that the two sleep
    as often as those of a broker do: without, they hand one core to each other, and some hundred trips fit into what it gives them."""
    ends = tcp_connection()
    ping = side("tcp_ping", [ends[0].fileno()], fd=ends[0].fileno(), trips=count, size=SIZE, seconds=seconds, pause=PAUSE_S)
    pong = side("tcp_pong", [ends[1].fileno()], fd=ends[1].fileno(), size=SIZE)
    for end in ends:
        end.close()
    return trips(ping, pong)


def redis_trips(redis: RedisServer, count: int) -> Figures:
    return trips(
        side("redis_ping", port=redis.port, ping="ping", pong="pong", trips=count, size=SIZE),
        side("redis_pong", port=redis.port, ping="ping", pong="pong"),
    )


def over_tcp(stage: Stage) -> dict[str, Run]:
    redis, broker = stage.enter(RedisServer()), stage.fastmq()
    count = stage.count(TRIPS, 200)
    return {"fastmq": partial(fastmq_trips, broker, broker.url, count), REDIS: partial(redis_trips, redis, count)}


def over_unix(stage: Stage) -> dict[str, Run]:
    redis = stage.enter(RedisServer())
    path = f"{stage.folder()}/fastmq.sock"
    try:
        broker = stage.fastmq(unix=path)
    except fastmq.FastMQError as error:
        raise Missing(f"this version has no unix sockets ({error})") from None
    count = stage.count(TRIPS, 200)
    return {
        "fastmq": partial(fastmq_trips, broker, f"fastmq+unix://{path}", count),
        REDIS: partial(redis_trips, redis, count),
    }


def lines(bound: float) -> tuple[Line, ...]:
    return (
        Line("there and back, p50 us", "p50_us", against=(REDIS,), bound=bound, at_least=False),
        Line("there and back, p99 us", "p99_us", against=(REDIS,), at_least=False),
    )


LOADS_OF_LATENCY = (
    Load("pingpong", "ping-pong, tcp", over_tcp, lines(0.8)),
    Load("pingpong-unix", "ping-pong, unix socket (Redis: tcp)", over_unix, lines(0.7)),
)
