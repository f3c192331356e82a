"""The settings of a command that reads them where it runs."""

from __future__ import annotations

from fastmq.cli.output import say
from fastmq.config import Config, misspelt


def load_settings(path: str | None) -> Config:
    """Config.load, and a word on standard error for what the environment has that was probably meant to be a setting."""
    for variable, meant in misspelt():
        say(f"fastmq: {variable} in the environment is no setting, and does nothing; did you mean {meant}?")
    return Config.load(path)
