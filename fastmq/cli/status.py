"""`fastmq status`: the broker's processes and queues."""

from __future__ import annotations

import click

from fastmq.cli import EXIT_STATUS
from fastmq.cli.connection import connected, url_option
from fastmq.cli.output import write_json, write_table

PROCESS_FIELDS = ("role", "index", "pid", "restarts")
QUEUE_FIELDS = ("name", "vhost", "messages_ready", "messages_unacknowledged", "consumers")


@click.command(epilog=EXIT_STATUS)
@click.option("--json", "as_json", is_flag=True, help="One JSON object: processes, queues.")
@url_option
def command(as_json: bool, url: str) -> int:
    """Show the broker's processes, and its queues with their messages."""
    with connected(url) as mq:
        found = mq.status()
    if as_json:
        write_json(found)
        return 0
    write_table("processes", PROCESS_FIELDS, [[row[name] for name in PROCESS_FIELDS] for row in found["processes"]])
    write_table("queues", QUEUE_FIELDS, [[row[name] for name in QUEUE_FIELDS] for row in found["queues"]])
    return 0
