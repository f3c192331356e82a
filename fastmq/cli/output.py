"""How data is written to standard output: bodies as they are, JSON, and tables for people."""

from __future__ import annotations

import base64
import io
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

TABLE_WIDTH = 10_000  # where no terminal sets one: nothing is cut off in a pipe


class ReaderGone(Exception):
    """Nobody reads standard output any more. (Not an OSError, which click would take for its own.)"""


class CannotWrite(click.ClickException):
    """Standard output takes nothing: it is closed, its disk is full."""


def write_bytes(*parts: bytes) -> None:
    """Write now; what follows (an acknowledgement) may rely on it. Raises ReaderGone or CannotWrite."""
    if sys.stdout is None:
        raise CannotWrite("standard output is closed")
    out = sys.stdout.buffer
    try:
        out.write(b"".join(parts))
        out.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered cannot be written either
        if isinstance(error, BrokenPipeError):
            raise ReaderGone from None
        raise CannotWrite(f"standard output cannot be written: {error.strerror}") from None


def write_json(value: Any) -> None:
    """One line of JSON."""
    write_bytes(json.dumps(value, ensure_ascii=False, default=_encode).encode("utf-8", "surrogatepass"), b"\n")


def body_fields(body: bytes) -> dict[str, str]:
    """A body for JSON: `body` if it is UTF-8, otherwise `body_base64`."""
    try:
        return {"body": body.decode()}
    except UnicodeDecodeError:
        return {"body_base64": base64.b64encode(body).decode()}


def _encode(value: object) -> object:
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def show(text: str) -> str:
    """A name as it can be printed: control characters escaped."""
    return text if text.isprintable() else repr(text)[1:-1]


def write_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table for people; whole numbers stand to the right."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left", box=SIMPLE_HEAD)
    for index, column in enumerate(columns):
        numbers = all(isinstance(row[index], int) for row in rows)
        table.add_column(column, justify="right" if numbers and rows else "left")
    for row in rows:
        table.add_row(*(Text(show(str(cell))) for cell in row))
    if sys.stdout is None:
        raise CannotWrite("standard output is closed")
    terminal = sys.stdout.isatty()
    drawn = io.StringIO()  # not standard output: rich touches even what it only captures
    console = Console(highlight=False, width=None if terminal else TABLE_WIDTH, file=drawn, force_terminal=terminal or None)
    console.print(table)
    write_bytes("".join(line.rstrip() + "\n" for line in drawn.getvalue().splitlines()).encode("utf-8", "backslashreplace"))


def say(text: str) -> None:
    """A message, on standard error."""
    click.echo(text, err=True)
