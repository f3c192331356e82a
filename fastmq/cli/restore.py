"""`fastmq restore`: a data directory becomes what a backup is, under a running broker too."""

from __future__ import annotations

import click

from fastmq.cli.backup import EXIT_STATUS, config_option, directory, json_option, progress_bar, said_errors, tell
from fastmq.cli.output import say
from fastmq.server.restore import restore


@click.command(epilog=EXIT_STATUS)
@click.argument("source", metavar="SRC", type=click.Path())
@click.option("--data-dir", help="The directory to restore to, by default that of `fastmq serve`.")
@click.option("--replace", "replaces", is_flag=True, help="Also where there is data already, which is lost, and a broker that runs on it.")
@config_option
@json_option
def command(source: str, data_dir: str | None, replaces: bool, path: str | None, as_json: bool) -> None:
    """Make a data directory what the backup SRC is.

    A broker that runs on it stops its processes, takes the backup, starts them again and keeps its addresses; clients reconnect by themselves.
    Whatever is killed meanwhile, the directory is either what it was or what SRC is.
    """
    with progress_bar("restore") as progress, said_errors():
        copied = restore(source, directory(data_dir, path), replaces, progress, say)
    tell(copied, as_json)
