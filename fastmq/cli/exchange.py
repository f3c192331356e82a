"""`fastmq exchange`: declare, bind and delete exchanges."""

from __future__ import annotations

import click

from fastmq.cli import EXIT_STATUS
from fastmq.cli.connection import connected, url_option
from fastmq.cli.output import say


@click.group(epilog=EXIT_STATUS)
def command() -> None:
    """Declare, bind and delete exchanges."""


@command.command("declare", epilog=EXIT_STATUS)
@click.argument("name")
@click.argument("kind", metavar="TYPE", type=click.Choice(["direct", "fanout", "topic"]))
@click.option("--transient", is_flag=True, help="Not durable: need not survive a restart of the broker.")
@click.option("--auto-delete", is_flag=True, help="Deleted when its last binding goes.")
@click.option("--internal", is_flag=True, help="Takes nothing from clients, only from exchanges it is bound to.")
@url_option
def declare_exchange(name: str, kind: str, transient: bool, auto_delete: bool, internal: bool, url: str) -> None:
    """Make sure that the exchange exists. TYPE is direct, fanout or topic."""
    with connected(url) as mq:
        mq.declare_exchange(name, kind, durable=not transient, auto_delete=auto_delete, internal=internal)
    say(f"exchange {name} exists")


@command.command("delete", epilog=EXIT_STATUS)
@click.argument("name")
@url_option
def delete_exchange(name: str, url: str) -> None:
    """Delete an exchange and its bindings."""
    with connected(url) as mq:
        mq.delete_exchange(name)
    say(f"exchange {name} deleted")


@command.command("bind", epilog=EXIT_STATUS)
@click.argument("destination")
@click.argument("source")
@click.argument("key", default="")
@url_option
def bind_exchange(destination: str, source: str, key: str, url: str) -> None:
    """Let the exchange DESTINATION receive what is published to SOURCE with the routing key, or pattern, KEY."""
    with connected(url) as mq:
        mq.bind_exchange(destination, source, key)
    say(f"exchange {destination} bound to {source}")


@command.command("unbind", epilog=EXIT_STATUS)
@click.argument("destination")
@click.argument("source")
@click.argument("key", default="")
@url_option
def unbind_exchange(destination: str, source: str, key: str, url: str) -> None:
    """Remove a binding between exchanges."""
    with connected(url) as mq:
        mq.unbind_exchange(destination, source, key)
    say(f"exchange {destination} no longer bound to {source} by {key!r}")
