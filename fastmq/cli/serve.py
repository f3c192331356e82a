"""`fastmq serve`: a broker, its supervisor in this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from fastmq.cli.output import say
from fastmq.cli.settings import load_settings
from fastmq.config import SETTINGS

EXIT_STATUS_OF_SERVE = """\b
Exit status: 0 stopped when asked to; 1 the broker could not start; 2 wrong
usage, or a setting that is not possible."""


def setting_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add an option for each setting that has a flag."""
    for name, setting in reversed(SETTINGS.items()):
        if setting.flag:
            option, kind = "--" + name.replace("_", "-"), type(setting.default)
            default = "" if setting.default == "" else f"  [default: {setting.default}]"
            function = click.option(option, name, type=kind, help=_sentence(setting.help) + default)(function)
    return function


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


@click.command(epilog=EXIT_STATUS_OF_SERVE)
@setting_options
@click.option("--ephemeral", is_flag=True, help="Keep nothing after the broker has stopped.")
@click.option(
    "--config", "path", type=click.Path(), metavar="FILE", help="Settings in TOML; `fastmq config` lists them."
)
def command(ephemeral: bool, path: str | None, **flags: Any) -> int:
    """Run a broker until SIGTERM or Ctrl-C; a second one ends it at once.

    When it is ready, one line is written to standard output: `ready fastmq://HOST:PORT events=PORT`. A setting comes
    from its option, or else from its environment variable (FASTMQ_WORKERS for --workers), or from FILE, or is the
    default. What is durable is kept in --data-dir, by default ~/.local/share/fastmq (of root: /var/lib/fastmq).
    """
    from fastmq.errors import BadArgument
    from fastmq.server.data_directory import default_data_dir
    from fastmq.server.supervisor import Supervisor

    config = load_settings(path).replace(**flags)
    if ephemeral and flags.get("data_dir"):
        raise BadArgument("--ephemeral keeps nothing, --data-dir says where to keep it: give one of them")
    if ephemeral:
        config = config.replace(data_dir="")
    elif not config.data_dir:
        config = config.replace(data_dir=default_data_dir())
    if config.data_dir:
        say(f"fastmq: data in {config.data_dir}")
    return Supervisor(config).run()
