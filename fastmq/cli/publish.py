"""`fastmq publish`: messages from arguments, files or lines, confirmed by the broker."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from fastmq.cli import EXIT_STATUS
from fastmq.cli.connection import connected, url_option
from fastmq.cli.output import say, show
from fastmq.errors import BadArgument, PublishError

if TYPE_CHECKING:
    from fastmq import Client

BODY_SIZE_MAX = 128 * 2**20  # what is longer is refused unread: the broker allows less
CHUNK_MESSAGES = 5000  # published between two looks at the outcomes; a line that is typed has its own
NAMED_MAX = 10  # refusals that are named one by one


def _headers(ctx: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    headers = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{value!r} is not of the form NAME=VALUE")
        headers[name] = text
    return headers


@click.command(epilog=EXIT_STATUS)
@click.argument("key", metavar="QUEUE_OR_KEY")
@click.argument("bodies", metavar="[BODY]...", nargs=-1)
@click.option("--exchange", "-e", default="", help="Publish to this exchange; QUEUE_OR_KEY is then the routing key.")
@click.option(
    "--file",
    "-f",
    "files",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, readable=True, allow_dash=True),
    metavar="FILE",
    help="A file's content as one message; - is standard input. Repeatable.",
)
@click.option(
    "--header", "-H", "headers", multiple=True, callback=_headers, metavar="NAME=VALUE", help="A header. Repeatable."
)
@click.option("--content-type", help="What the body is, for example application/json.")
@click.option("--message-id", help="An id of yours.")
@click.option("--correlation-id", help="The id of what this belongs to.")
@click.option("--reply-to", help="The queue for answers.")
@click.option("--transient", is_flag=True, help="Not persistent: need not survive a restart of the broker.")
@click.option("--mandatory", is_flag=True, help="Refuse what no queue is bound for.")
@click.option(
    "--timeout", type=float, default=60.0, show_default=True, help="Seconds to wait for the broker to take messages."
)
@url_option
def command(
    key: str, bodies: tuple[str, ...], files: tuple[str, ...], transient: bool, timeout: float, url: str, **options: Any
) -> int:
    """Publish messages to a queue, or with --exchange to an exchange, and wait until the broker has confirmed each.

    Each BODY is a message, each --file is one. With neither, each line of standard input is one, without its line end.
    What is refused is named on standard error; the rest is published all the same.
    """
    tally = Tally()
    typed = not (bodies or files) and sys.stdin is not None and sys.stdin.isatty()
    with connected(url) as mq:
        if typed:
            say("each line is published as a message; Ctrl-D ends")
        publish = Publishing(mq, tally, timeout, 1 if typed else CHUNK_MESSAGES, key, {"persistent": not transient, **options})
        try:
            for name, body in messages(bodies, files):
                publish.add(name, body)
            publish.finish()
        except KeyboardInterrupt:
            publish.finish()
            tally.report()
            raise
    return tally.report()


def messages(bodies: tuple[str, ...], files: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    """Each message's name for people, and its body."""
    for number, body in enumerate(bodies, 1):
        yield f"argument {number}", os.fsencode(body)
    if "-" in files or not (bodies or files):
        if sys.stdin is None:
            raise click.ClickException("standard input is closed")
    for path in files:
        try:
            with click.open_file(path, "rb") as file:
                yield show(os.fsencode(path).decode("utf-8", "backslashreplace")), file.read(BODY_SIZE_MAX + 1)
        except OSError as error:
            raise click.FileError(path, error.strerror) from None
    if bodies or files:
        return
    try:
        for number, line in enumerate(lines(sys.stdin.buffer), 1):
            yield f"line {number}", line
    except OSError as error:
        raise click.ClickException(f"standard input cannot be read: {error.strerror}") from None


def lines(file: BinaryIO) -> Iterator[bytes]:
    """Each line without its end. One that has none is the last: a terminal would have to be told twice that nothing follows."""
    while line := file.readline(BODY_SIZE_MAX + 1):
        yield line.removesuffix(b"\n")
        while len(line) > BODY_SIZE_MAX and not line.endswith(b"\n"):  # the rest of a line that is too long
            line = file.readline(BODY_SIZE_MAX + 1)
        if not line.endswith(b"\n"):
            return


class Tally:
    """What became of the messages."""

    def __init__(self) -> None:
        self.published = 0
        self.refused = 0
        self.codes: Counter[str] = Counter()

    def refuse(self, name: str, reason: str, code: str) -> None:
        self.refused += 1
        self.codes[code] += 1
        if self.refused <= NAMED_MAX:
            say(f"{name} was refused: {reason} ({code})")

    def report(self) -> int:
        """Say it; the exit status."""
        confirmed = self.published - self.refused
        say(f"{confirmed:,} message{'' if confirmed == 1 else 's'} published")
        if self.refused:
            codes = ", ".join(f"{count:,} x {code}" for code, count in self.codes.most_common())
            say(f"{self.refused:,} refused: {codes}")
        return 1 if self.refused else 0


class Publishing:
    """Messages on their way: their names are remembered until their outcomes are known."""

    def __init__(self, mq: Client, tally: Tally, timeout: float, chunk: int, key: str, options: dict[str, Any]) -> None:
        self.mq, self.tally, self.timeout, self.chunk, self.key = mq, tally, timeout, chunk, key
        self.publish, self.options = mq.publish, {"timeout": timeout, **options}
        self.names: dict[int, str] = {}  # by sequence

    def add(self, name: str, body: bytes) -> None:
        if len(body) > BODY_SIZE_MAX:
            self.tally.refuse(name, f"it is longer than {BODY_SIZE_MAX >> 20} MiB", "too-large")
        else:
            try:
                self.names[self.publish(self.key, body, **self.options)] = name
            except BadArgument as error:
                self.tally.refuse(name, str(error), error.code)
        self.tally.published += 1
        if len(self.names) >= self.chunk:
            self.finish()

    def finish(self) -> None:
        """Wait for the outcomes of what has been published so far."""
        try:
            self.mq.flush(timeout=self.timeout)
        except PublishError as error:
            for failure in error.failures:
                name = self.names.get(failure.sequence, f"message {failure.sequence}")  # Ctrl-C may have come before the name was kept
                self.tally.refuse(name, failure.reason, failure.code)
        self.names.clear()
