"""Every error of fastmq, each once: its stable code, what it means, and whether the session that caused it goes on."""
from __future__ import annotations

from typing import NamedTuple


class FastMQError(Exception):
    """The base of all errors of fastmq.

    `code` is stable and made for programs; the text is made for people. An error that the broker reported has the code it sent.
    """

    code = "internal"

    def __init__(self, text: str, code: str | None = None) -> None:
        super().__init__(text)
        if code is not None:
            self.code = code


class ConnectionFailed(FastMQError, ConnectionError):
    """No broker could be reached, or the connection could not be made again in time."""

    code = "unreachable"


class TimedOut(FastMQError, TimeoutError):
    """The answer, or room in the window, did not come in time. What was asked may still happen."""

    code = "timeout"


class Closed(FastMQError):
    """The client, consumer or broker was closed before this call."""

    code = "closed"


class UnknownOutcome(FastMQError):
    """The broker may have done what was asked, or not: the process that had it in hand died."""

    code = "unknown"


class Unavailable(FastMQError):
    """What was asked was not handed over: the worker it needs is being restarted."""

    code = "unavailable"


class NotFound(FastMQError):
    """The queue, exchange or virtual host does not exist."""

    code = "no-queue"


class Refused(FastMQError):
    """The broker refused what was asked, as `code` says; nothing was changed."""


class BadArgument(FastMQError, ValueError):
    """An argument that the client refuses itself, before anything is sent."""

    code = "bad-argument"


class BrokerFailed(FastMQError):
    """The broker's processes could not be started, or did not become ready."""

    code = "broker-failed"


class JournalDamaged(FastMQError):
    """What was durable cannot be read again: the journal's `file` is damaged at `offset`. Nothing was changed."""

    code = "journal-damaged"

    def __init__(self, text: str, file: str, offset: int) -> None:
        super().__init__(text)
        self.file, self.offset = file, offset


class Failure(NamedTuple):
    """One publish without success: its sequence, the code and reason, and what it was."""

    sequence: int
    code: str
    reason: str
    exchange: str
    routing_key: str
    message_id: str | None


class PublishError(FastMQError):
    """Some publishes were refused, or their outcome is not known. `failures` lists each once."""

    code = "publish-failed"

    def __init__(self, failures: list[Failure]) -> None:
        first = failures[0]
        more = f" and {len(failures) - 1} more" if len(failures) > 1 else ""
        where = f"exchange {first.exchange!r}, " if first.exchange else ""
        super().__init__(
            f"publish {first.sequence} ({where}routing key {first.routing_key!r}) failed: {first.reason} ({first.code}){more}"
        )
        self.failures = failures


class WireError(NamedTuple):
    """What the broker can answer: number inside the broker, code and default text outside, the exception it becomes in a client."""

    number: int
    code: str
    text: str
    raises: type[FastMQError] = Refused


# The numbers are those of `Code` in fastmq/wire/verbs.pxd; a test compares the two. No error ends the connection: a request is refused and
# the session goes on, except after `no-session` and `version`, where there is none.
WIRE_ERRORS = tuple(
    WireError(*row)
    for row in (
        (1, "bad-request", "the request is malformed"),
        (2, "unknown-verb", "there is no such verb in this version of the protocol"),
        (3, "version", "this version of the protocol is not spoken here"),
        (4, "no-session", "this broker holds no such session on this connection: say HELLO"),
        (5, "stale", "the request belongs to an earlier incarnation of the session"),
        (6, "bad-incarnation", "the request belongs to an incarnation that was never agreed: say HELLO"),
        (7, "too-large", "a name, header, body or batch is larger than the broker allows"),
        (8, "over-window", "more was published than the window allows"),
        (9, "late", "the publish came again after later ones were decided, and had not been taken"),
        (10, "no-queue", "the queue does not exist", NotFound),
        (11, "no-exchange", "the exchange does not exist", NotFound),
        (12, "no-vhost", "the virtual host does not exist", NotFound),
        (13, "unroutable", "no queue is bound that takes this message, and it was published as mandatory"),
        (14, "precondition-failed", "it exists already with other properties"),
        (15, "resource-locked", "the queue is exclusive to another session"),
        (16, "access-refused", "this name is reserved, or the operation is not allowed on it"),
        (17, "no-consumer", "the session has no consumer of this number"),
        (18, "consumer-exists", "the session has a consumer of this number, or the queue has an exclusive one"),
        (19, "limit", "a limit of the broker has been reached"),
        (20, "unavailable", "the worker that holds the queue is being restarted; nothing was handed over", Unavailable),
        (21, "unknown", "the worker died while it had the request in hand; it may have been done", UnknownOutcome),
        (22, "closing-down", "the broker is stopping", Unavailable),
        (23, "unknown-argument", "an option is not known to this broker"),
        (24, "queue-deleted", "the queue was deleted", NotFound),
        (25, "internal", "the broker failed in a way that is a defect of fastmq; its log says more"),
        (26, "disk-full", "the broker's disk has no room for more of what is durable; nothing was changed"),
    )
)
CODE_OF_NUMBER = {error.number: error.code for error in WIRE_ERRORS}
TEXT_OF_NUMBER = {error.number: error.text for error in WIRE_ERRORS}
NUMBER_OF_CODE = {error.code: error.number for error in WIRE_ERRORS}
ERROR_OF_CODE = {error.code: error for error in WIRE_ERRORS}


def error_from_wire(code: str, text: str) -> FastMQError:
    """The exception for what a broker answered; a code that this client does not know becomes `Refused` with that code."""
    known = ERROR_OF_CODE.get(code)
    return (known.raises if known else Refused)(text or (known.text if known else code), code)
