"""`fastmq bench`: how fast a running broker is from here."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from fastmq.cli import EXIT_STATUS
from fastmq.cli.connection import connected, url_option
from fastmq.cli.messages import NUMBER_SIZE, check_together
from fastmq.cli.output import say, write_json, write_table
from fastmq.cli.sides import LOADS, Progress, Side, Void, together
from fastmq.errors import ConnectionFailed, FastMQError

if TYPE_CHECKING:
    from fastmq import Client

STEPS = 100  # of the progress bar
SETTLE_S = 30.0  # without an acknowledgement: there will be none
PAUSE_MIN_S, PAUSE_EACH_S, PAUSE_MAX_S = 0.0005, 1e-7, 0.05  # between two looks at what is left: longer where much is
HOUR_S = 3600.0
PREPARED_SIZE, PREPARED_SIZE_MAX = 2**28, 2**32  # bytes of all bodies, which are made beforehand: by default, at most
FEWEST_MESSAGES = 50

Figures = dict[str, float]


class Given(NamedTuple):
    """What was asked for."""

    url: str
    messages: int
    size: int
    producers: int
    consumers: int
    prefetch: int
    clients: int
    exchange: str


class Bench:
    """The loads, against one broker. The queues it makes go with it."""

    def __init__(self, mq: Client, given: Given) -> None:
        self.mq, self.given = mq, given
        self.prefix = f"fastmq-bench.{secrets.token_hex(4)}"
        self.made: list[str] = []

    def queue(self, name: str) -> str:
        """A new queue."""
        full = f"{self.prefix}.{name}"
        self.made.append(full)
        self.mq.declare_queue(full, durable=False)
        return full

    def delete_queues(self) -> None:
        """Those that cannot be deleted, because the broker has gone, have gone with it or are named."""
        for name in self.made:
            try:
                self.mq.delete_queue(name)
            except FastMQError as error:
                say(f"the queue {name} could not be deleted: {error}")
        self.made.clear()

    def left(self, queue: str) -> int:
        """How many messages are ready or outstanding."""
        for found in self.mq.status()["queues"]:
            if found["name"] == queue:
                return int(found["messages_ready"] + found["messages_unacknowledged"])
        return self.mq.declare_queue(queue, passive=True).message_count  # where there are too many queues to be listed

    def wait_settled(self, queue: str) -> None:
        """Return when nothing is ready or outstanding; Void when for SETTLE_S nothing is acknowledged."""
        fewest, deadline = self.left(queue), monotonic() + SETTLE_S
        while (left := self.left(queue)) > 0:
            if left < fewest:
                fewest, deadline = left, monotonic() + SETTLE_S
            if monotonic() > deadline:
                raise Void(f"{left} messages were not acknowledged within {SETTLE_S:.0f} s")
            sleep(min(PAUSE_MAX_S, PAUSE_MIN_S + left * PAUSE_EACH_S))

    def work_queue(self, progress: Progress) -> Figures:
        """Producers publish, consumers acknowledge."""
        given, queue = self.given, self.queue("work")
        senders = [
            Side(LOADS, "producer", url=given.url, keys=[queue], count=count, size=given.size, first=first, steps=STEPS)
            for first, count in shares(given.messages, given.producers)
        ]
        return self._flow(senders, queue, progress)

    def crowd(self, progress: Progress) -> Figures:
        """Many clients, of bare sockets in a few processes, all publish; the consumers are ordinary ones."""
        given, queue = self.given, self.queue("crowd")
        processes = min(len(os.sched_getaffinity(0)), given.clients)
        per_process = zip(shares(given.messages, processes), shares(given.clients, processes), strict=True)
        senders = [
            Side(
                ("-m", "fastmq.cli.crowd"), "crowd", url=given.url, queue=queue, clients=clients, active=clients, count=count,
                size=given.size, window=100, batch=50, first=first, steps=STEPS,
            )
            for (first, count), (_, clients) in per_process
        ]  # fmt: skip
        return self._flow(senders, queue, progress)

    def _flow(self, senders: Sequence[Side], queue: str, progress: Progress) -> Figures:
        given = self.given
        receivers = [
            Side(
                LOADS, "consumer", url=given.url, queue=queue, count=given.messages, size=given.size, prefetch=given.prefetch,
                shared=True,
            )
            for _ in range(given.consumers)
        ]  # fmt: skip
        with together(*senders, *receivers, timeout=HOUR_S) as started:
            for side in senders:
                side.report(lambda share: progress(share / len(senders)))
            self.wait_settled(queue)
            seconds = monotonic() - started
            for side in senders:
                side.finish()
            check_together([side.finish()["seen"] for side in receivers], given.messages)
        return rates(given.messages, given.size, seconds)

    def pingpong(self, progress: Progress) -> Figures:
        """One message at a time through two queues and back."""
        given = self.given
        ping, pong = self.queue("ping"), self.queue("pong")
        asking = Side(LOADS, "ping", url=given.url, ping=ping, pong=pong, trips=given.messages, size=given.size, steps=STEPS)
        answering = Side(LOADS, "pong", url=given.url, ping=ping, pong=pong)
        with together(asking, answering, timeout=HOUR_S) as started:
            return asking.report(progress) | {"seconds": monotonic() - started}

    def pubsub(self, progress: Progress) -> Figures:
        """Live events to subscribers; the publisher waits for the slowest one, so that none is lost."""
        given = self.given
        arguments = {"url": given.url, "exchange": given.exchange, "key": self.prefix, "count": given.messages, "size": given.size}
        pipes = [os.pipe() for _ in range(given.consumers)]
        try:
            reads = [read for read, _ in pipes]
            receivers = [Side(LOADS, "subscriber", [write], pace=write, **arguments) for _, write in pipes]
            sender = Side(LOADS, "publisher", reads, paces=reads, steps=STEPS, **arguments)
        finally:
            for fd in (fd for pipe in pipes for fd in pipe):
                os.close(fd)
        with together(sender, *receivers, timeout=HOUR_S) as started:
            sender.report(progress)
            for side in receivers:
                side.report()
            seconds = monotonic() - started
            for side in (sender, *receivers):
                side.finish()
        return rates(given.messages, given.size, seconds)


VERBS: dict[str, tuple[str, int, Callable[[Bench, Progress], Figures]]] = {  # what it is, messages, how
    "queue": ("work queue", 500_000, Bench.work_queue),
    "pingpong": ("ping-pong", 3000, Bench.pingpong),
    "pubsub": ("live events", 500_000, Bench.pubsub),
    "crowd": ("many clients", 500_000, Bench.crowd),
}


def messages_of(name: str, size: int) -> int:
    """How many messages a load takes by default: fewer large ones."""
    return max(FEWEST_MESSAGES, min(VERBS[name][1], PREPARED_SIZE // size))


def shares(count: int, parts: int) -> Iterator[tuple[int, int]]:
    """(first, number) of each part."""
    for part in range(parts):
        first, end = count * part // parts, count * (part + 1) // parts
        yield first, end - first


def rates(count: int, size: int, seconds: float) -> Figures:
    return {"messages_s": count / seconds, "mb_s": count * size / seconds / 1e6, "seconds": seconds}


@contextmanager
def progress_bar(title: str) -> Iterator[Progress]:
    """On standard error, where that is a terminal; called with each share of the work that is done."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TimeElapsedColumn())
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield partial(bar.advance, bar.add_task(title, total=1.0))


@click.command(epilog=EXIT_STATUS)
@click.argument("loads", metavar="[LOAD]...", nargs=-1, type=click.Choice(list(VERBS)))
@click.option("--messages", "-n", type=click.IntRange(min=1), help="Messages, or round trips. [default: what takes about a second]")
@click.option("--size", "-s", type=click.IntRange(NUMBER_SIZE, 2**26), default=128, show_default=True, help="Bytes of a body.")
@click.option("--producers", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes that publish to a queue.")
@click.option("--consumers", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes that consume or subscribe.")
@click.option("--prefetch", type=click.IntRange(1, 65535), default=5000, show_default=True, help="Of each consumer.")
@click.option("--clients", type=click.IntRange(1, 10_000), default=100, show_default=True, help="Of `crowd`.")
@click.option("--exchange", default="amq.topic", show_default=True, help="Where `pubsub` publishes.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, one line a load.")
@url_option
def command(loads: tuple[str, ...], messages: int | None, as_json: bool, url: str, **options: Any) -> int:
    """Measure a running broker with loads of this machine: queue, pingpong, pubsub (these three if none is named), crowd.

    Each load has queues of its own, which are deleted at the end. Clients are ordinary ones that publish and acknowledge one message after
    the other; those of `crowd` are bare sockets, each with at most 100 messages unconfirmed. Every message is checked to have come exactly
    once; otherwise the exit status is 1.
    """
    rows: list[dict[str, Any]] = []
    status = 0
    end_tidily()
    with connected(url) as mq:
        for name in loads or ("queue", "pingpong", "pubsub"):
            given = Given(url=url, messages=messages or messages_of(name, options["size"]), **options)
            if given.messages * given.size > PREPARED_SIZE_MAX:
                raise click.UsageError(f"{given.messages:,} messages of {given.size:,} bytes are too many to be prepared in memory")
            figures = measure(mq, name, given)
            if figures is None:
                status = 1
                continue
            rows.append({"load": name, "messages": given.messages, "size": given.size, **figures})
            if as_json:
                write_json(rows[-1])
    if not as_json and rows:
        shown = [figure for figure in FIGURES if any(figure in row for row in rows)]
        columns = ("load", "messages", "size", *(FIGURES[figure][0] for figure in shown))
        write_table("", columns, [[row["load"], row["messages"], row["size"], *(cell(row, figure) for figure in shown)] for row in rows])
    return status


def end_tidily() -> None:
    """Delete the queues on SIGTERM and SIGHUP too, unless these are ignored (nohup)."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)


FIGURES = {  # as a table shows them
    "messages_s": ("messages/s", ",.0f"), "mb_s": ("MB/s", ",.1f"), "p50_us": ("p50 us", ",.0f"), "p99_us": ("p99 us", ",.0f"),
    "seconds": ("seconds", ",.2f"),
}  # fmt: skip


def cell(row: dict[str, Any], figure: str) -> str:
    return format(row[figure], FIGURES[figure][1]) if figure in row else "-"


def measure(mq: Client, name: str, given: Given) -> Figures | None:
    """One load's figures; None if it failed, which has been said then. Raises ConnectionFailed when the broker has gone."""
    title, _, run = VERBS[name]
    bench = Bench(mq, given)
    try:
        with progress_bar(title) as progress:
            return run(bench, progress)
    except Void as reason:
        if reason.broker_gone:
            bench.made.clear()
            raise ConnectionFailed(str(reason)) from None
        say(f"{name}: {reason}")
        return None
    finally:
        bench.delete_queues()
