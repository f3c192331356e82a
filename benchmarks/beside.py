"""What small transient messages feel of a worker that recovers, and of a disk that is saturated: ping-pong through queues of another worker."""

import os
import signal
from collections.abc import Callable
from functools import partial
from time import monotonic

from depth import fill
from harness import FastMQ, Figures, Line, Load, Run, Stage, trips
from large import check_stream
from latency import tcp_trips
from peers import side

from fastmq.cli.sides import LOADS, Side, together, wait
from fastmq.config import Config
from fastmq.wire.shards import shard_of

SIZE = 128
TRIPS, TRIPS_MAX = 5000, 100_000
RECOVERED = 10**7  # messages that the worker which was killed recovers: some seconds
TAIL_SIZE, MEMORY_MARK = 2**39, 2**40  # bytes: nothing is written out, so it reads all of them from the journal each time
DISK_S = 4.0
LARGE_SIZE, LARGE_PREFETCH, DIFFERENT = 2**18, 64, 64  # of the durable flow
# The outside writer's file. Synced each MiB it gets most out of the disk; each 8 MiB, half of that, and a kernel that preempts nobody then
# holds a core for 2 ms at a time, which a bare TCP ping-pong feels as well.
FILE_SIZE, SYNC_SIZE = 2**30, 2**20
TIMEOUT_S = 60.0
POLL_S = 0.05  # between two looks at the broker, which must not be a load itself

ALONE, RECOVERY, WRITER, FLOW = "alone", "beside a recovery", "beside another program's writes", "beside a durable flow of 256 KiB"
TRANSIENT = "beside a transient flow of 256 KiB"
TCP_ALONE, TCP_WRITER = "bare TCP alone", "bare TCP beside another program's writes"


class Workers:
    """A durable broker of two workers: a transient ping and pong queue on the first, a durable queue on the second."""

    def __init__(self, broker: FastMQ) -> None:
        self.broker = broker
        self.ping, self.pong = self.queue_of(0, "ping", False), self.queue_of(0, "pong", False)
        self.durable, self.transient = self.queue_of(1, "durable", True), self.queue_of(1, "transient", False)

    def queue_of(self, worker: int, name: str, durable: bool) -> str:
        """A new queue of that worker."""
        name = next(f"{name}.{n}" for n in range(1000) if shard_of("/", f"{name}.{n}", Config().shards) % 2 == worker)
        self.broker.client.declare_queue(name, durable=durable)
        return name

    def sides(self, count: int, seconds: float = TIMEOUT_S) -> tuple[Side, Side]:
        """Of a ping-pong that ends after so many trips, or seconds, or when it is told to."""
        arguments = {"url": self.broker.url, "ping": self.ping, "pong": self.pong}
        return Side(LOADS, "ping", trips=count, size=SIZE, seconds=seconds, **arguments), Side(LOADS, "pong", **arguments)

    def trips(self, count: int, seconds: float = TIMEOUT_S) -> Figures:
        return trips(*self.sides(count, seconds))

    def pid(self) -> int:
        """Of the second worker; 0 while there is none."""
        rows = self.broker.client.status()["processes"]
        return next((row["pid"] for row in rows if (row["role"], row["index"]) == ("worker", 1)), 0) or 0


# ---- a worker recovers


def beside_recovery(workers: Workers, count: int) -> Figures:
    """Ping-pong from the death of the second worker until all of its messages are there again."""
    ping, pong = workers.sides(TRIPS_MAX)
    killed = workers.pid()
    with together(ping, pong) as started:
        os.kill(killed, signal.SIGKILL)
        wait(lambda: workers.pid() not in (0, killed), "another worker in its place", interval=POLL_S)
        wait(lambda: workers.broker.messages() >= count, f"{count} messages to be recovered", TIMEOUT_S, POLL_S)
        seconds = monotonic() - started
        ping.end()
        figures = ping.report()
    wait(lambda: workers.broker.messages() == count, f"{count} messages, and no others")
    return {**figures, "recovery_s": seconds}


def recovery(stage: Stage) -> dict[str, Run]:
    workers = Workers(stage.fastmq(2, data_dir=stage.disk_folder(), checkpoint_tail_size=TAIL_SIZE, memory_mark=MEMORY_MARK))
    count = stage.count(RECOVERED)
    fill(workers.broker, workers.durable, count)
    return {RECOVERY: partial(beside_recovery, workers, count), ALONE: partial(workers.trips, stage.count(TRIPS, 200))}


# ---- the disk is saturated


def beside_writer(ping_pong: Callable[[], Figures], folder: str) -> Figures:
    """A ping-pong while another program writes, with a sync behind each MiB, as fast as the disk takes it."""
    writer = side("disk_saturator", path=os.path.join(folder, "written"), file_size=FILE_SIZE, sync_size=SYNC_SIZE)
    with together(writer) as started:
        figures = ping_pong()
        written = writer.finish()["written"]
        return {**figures, "disk_mb_s": written / (monotonic() - started) / 1e6}


def beside_flow(workers: Workers, queue: str, count: int, seconds: float) -> Figures:
    """Ping-pong while large messages flow through a queue of the second worker as fast as they can."""
    arguments = {"url": workers.broker.url, "queue": queue, "different": DIFFERENT, "size": LARGE_SIZE}
    producer, consumer = Side(LOADS, "stream_producer", **arguments), Side(LOADS, "stream_consumer", prefetch=LARGE_PREFETCH, **arguments)
    with together(producer, consumer) as started:
        figures = workers.trips(count, seconds)
        sent = producer.finish()["sent"]
        flowed = monotonic() - started
        wait(workers.broker.all_settled, "nothing to be ready or outstanding", TIMEOUT_S)
        check_stream(consumer.finish()["came"], sent)
    return {**figures, "flow_mb_s": sent * LARGE_SIZE / flowed / 1e6}


def saturated(stage: Stage) -> dict[str, Run]:
    workers = Workers(stage.fastmq(2, data_dir=stage.disk_folder()))
    folder, count = stage.disk_folder(), stage.count(TRIPS, 200)
    seconds = DISK_S if stage.scale >= 1 else 1.0
    return {
        WRITER: partial(beside_writer, partial(workers.trips, count, seconds), folder),
        FLOW: partial(beside_flow, workers, workers.durable, count, seconds),
        TRANSIENT: partial(beside_flow, workers, workers.transient, count, seconds),
        ALONE: partial(workers.trips, count),
        TCP_WRITER: partial(beside_writer, partial(tcp_trips, count, seconds), folder),
        TCP_ALONE: partial(tcp_trips, count),
    }


def lines(name: str, against: str = ALONE, bound: float | None = 3) -> tuple[Line, Line]:
    return (
        Line(f"{name}, p99 us", "p99_us", name, (against,), bound, False),
        Line(f"{name}, p50 us", "p50_us", name, (against,), at_least=False),
    )


LINES_OF_DISK = (*lines(WRITER), *lines(FLOW), *lines(FLOW, TRANSIENT, None), *lines(TCP_WRITER, TCP_ALONE, None))

LOADS_OF_BESIDE = (
    Load("beside-recovery", "ping-pong through another worker", recovery, lines(RECOVERY)),
    Load("beside-disk", "ping-pong through another worker", saturated, LINES_OF_DISK),
)
