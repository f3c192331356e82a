"""What every command that talks to a broker needs: where it is, a connection, and a sentence when there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fastmq.errors import ConnectionFailed, TimedOut

if TYPE_CHECKING:
    from fastmq import Client

DEFAULT_URL = "fastmq://127.0.0.1:7400/"
CONNECT_TIMEOUT_S = 5.0

F = TypeVar("F", bound=Callable[..., Any])


class NoBroker(click.ClickException):
    exit_code = 3


def url_option(function: F) -> F:
    """Add --url."""
    option = click.option(
        "--url", envvar="FASTMQ_URL", default=DEFAULT_URL, show_default=True, show_envvar=True,
        help="The broker, and after the slash its virtual host.",
    )  # fmt: skip
    return option(function)


@contextmanager
def connected(url: str) -> Iterator[Client]:
    """A client of the broker at `url`, closed on leaving. Without a broker: what to do, and exit status 3."""
    import fastmq
    from fastmq.client.client import PASSING

    try:
        client = fastmq.connect(url, timeout=CONNECT_TIMEOUT_S)
    except (ConnectionFailed, TimedOut) as error:
        start = "" if "fastmq serve" in str(error) or error.code in PASSING else " Start one with `fastmq serve`."
        raise NoBroker(f"{error}.{start} Another address is named with --url or FASTMQ_URL.") from None
    with client:
        yield client
