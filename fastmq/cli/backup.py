"""`fastmq backup`: a copy of the data directory of a broker, which runs or not; and what `fastmq restore` shares with it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from fastmq.cli.output import write_bytes, write_json
from fastmq.cli.settings import load_settings
from fastmq.errors import FastMQError
from fastmq.server.backup import Copied, back_up
from fastmq.server.data_directory import default_data_dir

EXIT_STATUS = """\b
Exit status: 0 done; 1 it could not be done, and nothing was changed or as
the message says; 2 wrong usage; 130 stopped by Ctrl-C."""

NICE = 10           # a backup gives way to the broker where both want a processor

config_option = click.option("--config", "path", type=click.Path(), metavar="FILE", help="Settings in TOML, as for `fastmq serve`.")
json_option = click.option("--json", "as_json", is_flag=True, help="What was copied as one JSON object.")


@click.command(epilog=EXIT_STATUS)
@click.argument("destination", metavar="DEST", type=click.Path())
@click.option("--data-dir", help="The broker's directory, by default that of `fastmq serve`.")
@config_option
@json_option
def command(destination: str, data_dir: str | None, path: str | None, as_json: bool) -> None:
    """Copy the data directory of a broker, which may run, to a new directory DEST.

    All that was confirmed before and is not consumed meanwhile is in it, with the queues, exchanges and bindings. The broker goes on, and has
    at least half of the disk's time; its journals grow while they are copied. The copy is synced and checked before it has its name.
    """
    os.nice(NICE)
    with progress_bar("backup") as progress, said_errors():
        copied = back_up(directory(data_dir, path), destination, progress)
    tell(copied, as_json)


def directory(data_dir: str | None, path: str | None) -> str:
    """The data directory as `fastmq serve` would choose it."""
    return data_dir or load_settings(path).data_dir or default_data_dir()


def tell(copied: Copied, as_json: bool) -> None:
    if as_json:
        write_json({**copied._asdict(), "logs": [log._asdict() for log in copied.logs]})
        return
    positions = ", ".join(f"{log.first - 1 if log.last < log.first else log.last:,}" for log in copied.logs)
    plural = "s" if len(copied.logs) > 1 else ""
    write_bytes(f"{copied.source} -> {copied.destination}: {copied.bytes:,} bytes, {len(copied.logs)} log{plural} up to position "
                f"{positions}, whole, in {copied.seconds:.1f} s\n".encode())


@contextmanager
def said_errors() -> Iterator[None]:
    """What the system refuses, as a sentence."""
    try:
        yield
    except (OSError, shutil.Error) as error:
        if isinstance(error, FastMQError):
            raise
        where = f"{error.filename}: " if error.filename else ""
        raise FastMQError(f"{where}{error.strerror or error}", "disk") from None


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """On standard error, where that is a terminal; called with the bytes so far, and of how many."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
