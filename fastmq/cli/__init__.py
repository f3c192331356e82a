"""The command line, `fastmq VERB`: a file for each noun, imported when it is used, so that starting is quick."""

from __future__ import annotations

import importlib

import click

from fastmq.errors import BadArgument, Closed, ConnectionFailed, FastMQError, TimedOut

VERBS = {
    "serve": "run a broker in this process until it is stopped",
    "publish": "publish messages: arguments, files, or the lines of standard input",
    "consume": "take messages from a queue and print their bodies",
    "subscribe": "print what passes an exchange, live",
    "queue": "list, declare, bind, purge and delete queues",
    "exchange": "declare, bind and delete exchanges",
    "status": "the broker's processes and queues",
    "bench": "how fast a broker is from here",
    "journal": "check, dump and repair what a broker has kept",
    "backup": "copy the data of a broker, which may run",
    "restore": "make a broker's data what a backup is",
    "config": "the settings of `serve`",
}
EXIT_STATUS = """\b
Exit status: 0 done; 1 the broker refused something, or not all that was
asked for came; 2 wrong usage; 3 no broker could be reached, or it went away;
130 stopped by Ctrl-C; 141 the reader of standard output went away."""


class _Verbs(click.Group):
    """Imports fastmq.cli.VERB when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = importlib.import_module(f"fastmq.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.group(cls=_Verbs, epilog=EXIT_STATUS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fastmq", message="fastmq %(version)s")
def cli() -> None:
    """fastmq, a message broker.

    Data is written to standard output, everything said about it to standard error. `fastmq VERB --help` tells more. The
    broker is found by --url, or FASTMQ_URL, or at fastmq://127.0.0.1:7400/.
    """


def main() -> int:
    """Run one command; its exit status. The one place where errors become messages."""
    from fastmq.cli.output import ReaderGone

    try:
        status = cli(standalone_mode=False)
        return status if isinstance(status, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return 130
    except ReaderGone:
        return 141
    except FastMQError as error:
        click.echo(f"fastmq: {error} ({error.code})", err=True)
        if isinstance(error, BadArgument):
            return 2
        return 3 if isinstance(error, (Closed, ConnectionFailed, TimedOut)) else 1
