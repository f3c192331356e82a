"""Messages of 1 MiB, and what they do to small ones beside them."""

import time
from collections.abc import Sequence
from contextlib import closing
from functools import partial

from harness import FastMQ, Figures, Line, Load, Run, Stage, flow, trips
from latency import fastmq_trips, tcp_trips
from peers import ZmqProxy, side
from queues import fastmq_queue

from fastmq.cli.sides import LOADS, Side, Void, together, wait

SIZE = 2**20
PREFETCH = 32
DIFFERENT = 64  # messages of an endless flow
SMALL_SIZE = 128
TRIPS = 3000
BESIDE_S = 8.0  # a broker that lets small messages wait makes no more trips than come in this time
PROXY = "ZeroMQ PUSH - proxy - PULL"
BESIDE, ALONE = "beside 1 MiB messages", "alone"
TCP_BESIDE, TCP_ALONE = "bare TCP beside the proxy's", "bare TCP alone"


def zmq_flow(proxy: ZmqProxy, count: int) -> Figures:
    return flow(
        [side("zmq_producer", port=proxy.ports["push"], count=count, size=SIZE)],
        [side("zmq_consumer", port=proxy.ports["pull"], count=count, size=SIZE)],
        count, proxy.pids, lambda: True, SIZE,
    )  # fmt: skip


def against_proxy(stage: Stage) -> dict[str, Run]:
    broker, proxy, count = stage.fastmq(), stage.enter(ZmqProxy()), stage.count(600, 20)
    return {
        "fastmq": partial(fastmq_queue, broker, count, SIZE, PREFETCH),
        PROXY: partial(zmq_flow, proxy, count),
    }


def beside(broker: FastMQ, count: int, seconds: float) -> Figures:
    """Ping-pong while large messages flow as fast as they can."""
    queue, ping, pong = broker.queues(3)
    producer = Side(LOADS, "stream_producer", url=broker.url, queue=queue, different=DIFFERENT, size=SIZE)
    consumer = Side(LOADS, "stream_consumer", url=broker.url, queue=queue, different=DIFFERENT, size=SIZE, prefetch=PREFETCH)
    try:
        with together(producer, consumer):
            begun = time.monotonic()
            figures = trips(
                Side(LOADS, "ping", url=broker.url, ping=ping, pong=pong, trips=count, size=SMALL_SIZE, seconds=seconds),
                Side(LOADS, "pong", url=broker.url, ping=ping, pong=pong),
            )
            sent = producer.finish()["sent"]
            figures["large_s"] = sent / (time.monotonic() - begun)
            wait(broker.all_settled, "nothing to be ready or outstanding")
            check_stream(consumer.finish()["came"], sent)
    finally:
        broker.delete([queue, ping, pong])
    return figures


def check_stream(came: Sequence[int], sent: int) -> None:
    """Raise Void unless each of the messages that were sent in turn came as often as it was sent."""
    whole, more = divmod(sent, len(came))
    expected = [whole + (number < more) for number in range(len(came))]
    if list(came) != expected:
        raise Void(f"of {sent} large messages {sum(came)} came, or not those that were sent")


def tcp_beside(count: int, seconds: float) -> Figures:
    """Ping-pong of two programs without a broker, while the same messages flow through a proxy, which would not stop trying to pass on
    what is left when its consumer has gone, and ends here."""
    with closing(ZmqProxy()) as proxy:
        producer = side("zmq_stream_producer", port=proxy.ports["push"], different=DIFFERENT, size=SIZE)
        consumer = side("zmq_stream_consumer", port=proxy.ports["pull"])
        with together(producer, consumer):
            begun = time.monotonic()
            figures = tcp_trips(count, seconds)
            came = consumer.finish()["came"]
            figures["large_s"] = came / (time.monotonic() - begun)
    if not came:
        raise Void("nothing came through the proxy")
    return figures


def small_beside_large(stage: Stage) -> dict[str, Run]:
    broker, count = stage.fastmq(), stage.count(TRIPS, 200)
    seconds = BESIDE_S if stage.scale >= 1 else 1.0
    return {
        BESIDE: partial(beside, broker, count, seconds),
        ALONE: partial(fastmq_trips, broker, broker.url, count),
        TCP_BESIDE: partial(tcp_beside, count, seconds),
        TCP_ALONE: partial(tcp_trips, count),
    }


LOADS_OF_LARGE = (
    Load(
        "large", "work queue, 1 MiB", against_proxy,
        (Line("MB/s", "mb_s", against=(PROXY,), bound=0.8), Line("broker CPU, us a message", "cpu_us", against=(PROXY,), at_least=False)),
    ),
    Load(
        "beside", "ping-pong beside a flow of 1 MiB messages", small_beside_large,
        (
            Line("there and back, p99 us", "p99_us", BESIDE, (ALONE,), 3, False),
            Line("there and back, p50 us", "p50_us", BESIDE, (ALONE,), at_least=False),
            Line("large messages a second meanwhile", "large_s", BESIDE),
            Line("bare TCP, no broker, beside the same through zmq.proxy, p99 us", "p99_us", TCP_BESIDE, (TCP_ALONE,), at_least=False),
        ),
    ),
)  # fmt: skip
