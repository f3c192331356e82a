"""`fastmq queue`: list, declare, bind, purge and delete queues."""

from __future__ import annotations

import click

from fastmq.cli import EXIT_STATUS
from fastmq.cli.connection import connected, url_option
from fastmq.cli.output import say, write_bytes, write_json, write_table
from fastmq.cli.status import QUEUE_FIELDS


@click.group(epilog=EXIT_STATUS)
def command() -> None:
    """List, declare, bind, purge and delete queues."""


@command.command("ls", epilog=EXIT_STATUS)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, one line a queue.")
@url_option
def list_queues(as_json: bool, url: str) -> None:
    """List the queues, with their messages and consumers."""
    with connected(url) as mq:
        status = mq.status()
    queues = status["queues"]
    if len(queues) < status["queues_total"]:
        say(f"the first {len(queues):,} of {status['queues_total']:,} queues:")
    if as_json:
        for queue in queues:
            write_json(queue)
    else:
        write_table("", QUEUE_FIELDS, [[queue[name] for name in QUEUE_FIELDS] for queue in queues])


@command.command("declare", epilog=EXIT_STATUS)
@click.argument("name")
@click.option("--transient", is_flag=True, help="Not durable: need not survive a restart of the broker.")
@click.option("--auto-delete", is_flag=True, help="Deleted when its last consumer goes.")
@url_option
def declare_queue(name: str, transient: bool, auto_delete: bool, url: str) -> None:
    """Make sure that the queue exists. An empty NAME lets the broker choose one, which is printed."""
    with connected(url) as mq:
        info = mq.declare_queue(name, durable=not transient, auto_delete=auto_delete)
    if not name:
        write_bytes(info.name.encode(), b"\n")
    say(f"queue {info.name}: {info.message_count:,} messages, {info.consumer_count:,} consumers")


@command.command("delete", epilog=EXIT_STATUS)
@click.argument("name")
@url_option
def delete_queue(name: str, url: str) -> None:
    """Delete a queue and its messages."""
    with connected(url) as mq:
        say(f"there is no queue {name} any more; {mq.delete_queue(name):,} messages went with it")


@command.command("purge", epilog=EXIT_STATUS)
@click.argument("name")
@url_option
def purge_queue(name: str, url: str) -> None:
    """Drop the messages that wait in a queue; those that a consumer has stay its own."""
    with connected(url) as mq:
        say(f"{mq.purge_queue(name):,} messages dropped")


@command.command("bind", epilog=EXIT_STATUS)
@click.argument("name")
@click.argument("exchange")
@click.argument("key", default="")
@url_option
def bind_queue(name: str, exchange: str, key: str, url: str) -> None:
    """Let a queue receive what is published to EXCHANGE with the routing key, or pattern, KEY."""
    with connected(url) as mq:
        mq.bind_queue(name, exchange, key)
    say(f"queue {name} bound to {exchange}")


@command.command("unbind", epilog=EXIT_STATUS)
@click.argument("name")
@click.argument("exchange")
@click.argument("key", default="")
@url_option
def unbind_queue(name: str, exchange: str, key: str, url: str) -> None:
    """Remove a binding of a queue."""
    with connected(url) as mq:
        mq.unbind_queue(name, exchange, key)
    say(f"queue {name} no longer bound to {exchange} by {key!r}")
