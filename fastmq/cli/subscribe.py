"""`fastmq subscribe`: what passes an exchange, live."""

from __future__ import annotations

import click

from fastmq.cli import EXIT_STATUS
from fastmq.cli.connection import connected, url_option
from fastmq.cli.output import body_fields, say, write_bytes, write_json


@click.command(epilog=EXIT_STATUS)
@click.argument("pattern")
@click.option(
    "--exchange", "-e", default="", help="The exchange; without it the default one, whose routing keys are queues."
)
@click.option(
    "--kind", type=click.Choice(["exact", "topic"]), default="topic", show_default=True, help="How PATTERN is meant."
)
@click.option("--count", "-n", type=click.IntRange(min=1), help="End after so many events.")
@click.option("--timeout", "-t", type=click.FloatRange(min=0), help="End when no event has come for so many seconds.")
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object a line: body (or body_base64), routing_key, headers."
)
@click.option("--raw", is_flag=True, help="Bodies one after the other, with no line ends between them.")
@url_option
def command(
    pattern: str, exchange: str, kind: str, count: int | None, timeout: float | None, as_json: bool, raw: bool, url: str
) -> int:
    """Print the bodies of messages as they are published, while this command runs; no queue is touched.

    In a topic PATTERN `*` is one word between dots, `#` is any number. Events that come faster than they are read are
    dropped by the broker; how many were missed is said on standard error. With --count the exit status is 1 if
    --timeout came first.
    """
    shown = missed = 0
    with connected(url) as mq, mq.subscribe(pattern, exchange=exchange, kind=kind, timeout=timeout) as events:
        say(f"subscribed to {pattern}")
        for event in events:
            if events.lost != missed:
                say(f"{events.lost - missed:,} events were missed")
                missed = events.lost
            if as_json:
                write_json({**body_fields(event.body), "routing_key": event.routing_key, "headers": event.headers})
            else:
                write_bytes(event.body, b"" if raw else b"\n")
            shown += 1
            if shown == count:
                return 0
    if count is not None:
        say(f"{shown:,} of {count:,} events came")
        return 1
    return 0
