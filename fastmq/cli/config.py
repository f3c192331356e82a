"""`fastmq config`: the settings of a broker; docs/config.md is what it prints with --markdown."""

from __future__ import annotations

import click

from fastmq.cli import EXIT_STATUS
from fastmq.cli.output import write_bytes, write_json, write_table
from fastmq.cli.settings import load_settings
from fastmq.config import SETTINGS


@click.command(epilog=EXIT_STATUS)
@click.option("--config", "path", type=click.Path(), metavar="FILE", help="With the settings of this TOML file.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object: the settings and their values.")
@click.option("--markdown", "as_markdown", is_flag=True, help="Every setting with its default, as in docs/config.md.")
def command(path: str | None, as_json: bool, as_markdown: bool) -> None:
    """Show the settings that `fastmq serve` would have here: defaults, over them FILE, over that the environment."""
    if as_markdown:
        write_bytes(markdown().encode())
        return
    config = load_settings(path)
    if as_json:
        write_json(config.to_map())
    else:
        rows = [(name, str(getattr(config, name)), setting.help) for name, setting in SETTINGS.items()]
        write_table("", ("setting", "value", "meaning"), rows)


def markdown() -> str:
    """docs/config.md."""
    lines = [
        "# Settings",
        "",
        "Made by `fastmq config --markdown` from fastmq/config.py; do not edit.",
        "",
        "A setting comes from its flag of `fastmq serve`, or else from the environment, or from the TOML file given",
        "as `--config` (`workers = 2`), or is the default. `fastmq.Broker(...)` takes each as an argument. Times are",
        "seconds, sizes bytes.",
        "",
        "| setting | flag | environment | default | least | most | meaning |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, setting in SETTINGS.items():
        flag = f"`--{name.replace('_', '-')}`" if setting.flag else ""
        default = f"`{setting.default}`" if setting.default != "" else "empty"
        low, high = ("" if bound is None else str(bound) for bound in (setting.low, setting.high))
        cells = (f"`{name}`", flag, f"`FASTMQ_{name.upper()}`", default, low, high, setting.help)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
