"""`fastmq consume`: messages of a queue, acknowledged when they are written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from fastmq.cli import EXIT_STATUS
from fastmq.cli.connection import connected, url_option
from fastmq.cli.output import body_fields, say, write_bytes, write_json

if TYPE_CHECKING:
    from fastmq import Message

PROPERTIES = ("message_id", "correlation_id", "reply_to", "content_type", "priority")


@click.command(epilog=EXIT_STATUS)
@click.argument("queue")
@click.option("--count", "-n", type=click.IntRange(min=1), help="End after so many messages.")
@click.option("--timeout", "-t", type=click.FloatRange(min=0), help="End when no message has come for so many seconds.")
@click.option(
    "--prefetch",
    type=click.IntRange(1, 65535),
    default=500,
    show_default=True,
    help="Messages that may be on their way here.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object a line: body (or body_base64), routing_key, headers, ..."
)
@click.option("--raw", is_flag=True, help="Bodies one after the other, with no line ends between them.")
@click.option("--requeue", is_flag=True, help="Put everything back at the end: at most --prefetch messages are shown.")
@url_option
def command(
    queue: str,
    count: int | None,
    timeout: float | None,
    prefetch: int,
    as_json: bool,
    raw: bool,
    requeue: bool,
    url: str,
) -> int:
    """Take messages from QUEUE and print their bodies, one a line, until --count, --timeout or Ctrl-C.

    A message is acknowledged when it has been written. A program that stops reading (`| head`) loses what is still in
    the pipe; --count does not. With --count the exit status is 1 if --timeout came first.
    """
    shown = 0
    if requeue:
        count = min(count or prefetch, prefetch)
    wanted = min(prefetch, count or prefetch)
    with connected(url) as mq, mq.consume(queue, prefetch=wanted, timeout=timeout) as messages:
        for message in messages:
            if as_json:
                write_json(fields_of(message))
            else:
                write_bytes(message.body, b"" if raw else b"\n")
            if not requeue:
                message.ack()
            shown += 1
            if shown == count:
                break
    if count is not None and shown < count and not requeue:
        say(f"{shown:,} of {count:,} messages came")
        return 1
    return 0


def fields_of(message: Message) -> dict[str, Any]:
    """A message for JSON; properties it does not have are left out."""
    fields: dict[str, Any] = {
        **body_fields(message.body),
        "routing_key": message.routing_key,
        "exchange": message.exchange,
        "headers": message.headers,
        "redelivered": message.redelivered,
        "delivery_count": message.delivery_count,
        "timestamp": message.timestamp,
    }
    properties = {name: getattr(message, name) for name in PROPERTIES}
    return fields | {name: value for name, value in properties.items() if value not in (None, 0)}
