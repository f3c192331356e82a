"""fastmq, a message broker: the public names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastmq.errors import (
    BadArgument,
    BrokerFailed,
    Closed,
    ConnectionFailed,
    Failure,
    FastMQError,
    NotFound,
    PublishError,
    Refused,
    TimedOut,
    Unavailable,
    UnknownOutcome,
)

if TYPE_CHECKING:
    from fastmq.broker import Broker
    from fastmq.client.client import Client, QueueInfo, connect
    from fastmq.client.consumer import Consumer
    from fastmq.client.message import Event, Message
    from fastmq.client.subscription import Subscription
    from fastmq.config import __version__ as __version__

# Imported when first used: the client needs nothing of the server, and the command line's --help needs neither.
_MODULE_OF = {
    "Broker": "fastmq.broker",
    "Client": "fastmq.client.client",
    "Consumer": "fastmq.client.consumer",
    "Event": "fastmq.client.message",
    "Message": "fastmq.client.message",
    "QueueInfo": "fastmq.client.client",
    "Subscription": "fastmq.client.subscription",
    "__version__": "fastmq.config",
    "connect": "fastmq.client.client",
}

__all__ = [
    "BadArgument",
    "Broker",
    "BrokerFailed",
    "Client",
    "Closed",
    "ConnectionFailed",
    "Consumer",
    "Event",
    "Failure",
    "FastMQError",
    "Message",
    "NotFound",
    "PublishError",
    "QueueInfo",
    "Refused",
    "Subscription",
    "TimedOut",
    "Unavailable",
    "UnknownOutcome",
    "connect",
]


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'fastmq' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
