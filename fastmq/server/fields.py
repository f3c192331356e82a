"""The fields of the requests that are not on the hot path: names, types and limits, each once; reading and refusing derive from this table.

Owns: nothing. Rules: what a request may hold is decided here, before anything is done; a refusal names the field, what it is and what it has to
be. The meaning is in docs/protocol.md. Runs in front-ends.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastmq.errors import Refused
from fastmq.wire.limits import Limit
from fastmq.wire.values import decode
from fastmq.wire.verbs import Verb

Check = Callable[[str, Any], None]


def _uint(low: int, high: int) -> Check:
    def check(name: str, value: Any) -> None:
        if type(value) is not int or not low <= value <= high:
            raise Refused(f"{name} is {shown(value)}, not a whole number from {low} to {high}", "bad-request")

    return check


def _text(name: str, value: Any) -> None:
    """A routing key, a pattern, a name that may be left empty."""
    if type(value) is not str or "\0" in value:
        raise Refused(f"{name} is {shown(value)}, not a str without NUL", "bad-request")
    size = len(value.encode())
    if size > Limit.NAME_SIZE_MAX:
        raise Refused(f"{name} has {size} bytes; {int(Limit.NAME_SIZE_MAX)} are allowed", "too-large")


def _name(name: str, value: Any) -> None:
    _text(name, value)
    if not value:
        raise Refused(f"{name} is empty", "bad-request")


def _options(name: str, value: Any) -> None:
    if type(value) is not dict:
        raise Refused(f"{name} is {shown(value)}, not a map", "bad-request")
    if len(value) > Limit.OPTIONS_MAX:
        raise Refused(f"{name} has {len(value)} keys; {int(Limit.OPTIONS_MAX)} are allowed", "too-large")


def _any(name: str, value: Any) -> None:
    pass


_request = ("request", _uint(0, 2**64 - 1))
_binding = (_request, ("kind", _text), ("destination", _text), ("source", _text), ("key", _text), ("options", _options))
_pattern = (_request, ("exchange", _text), ("kind", _text), ("pattern", _text))

# Behind [verb, session, incarnation. PUBLISH and SETTLE stand here for the sentence that refuses them; they are read elsewhere.
FIELDS: dict[int, tuple[tuple[str, Check], ...]] = {
    Verb.HELLO: (
        ("version", _uint(0, 2**64 - 1)), ("vhost", _name), ("client_name", _text), ("heartbeat_s", _uint(0, 2**32 - 1)), ("wishes", _options),
    ),
    Verb.PUBLISH: (("floor", _any), ("first_seq", _any), ("count", _any), ("exchange", _any), ("flags", _any)),
    Verb.SETTLE: (("[[shard, epoch, up_to, [[first, last]...], [[first, last, action]...]]...]", _any),),
    Verb.CONSUME: (
        _request, ("consumer", _uint(1, 2**32 - 1)), ("queue", _name), ("window_messages", _uint(1, Limit.CONSUMER_WINDOW_MAX)),
        ("window_bytes", _uint(0, 2**64 - 1)), ("options", _options),
    ),
    Verb.CANCEL: (_request, ("consumer", _uint(1, 2**32 - 1))),
    Verb.GET: (_request, ("queue", _name)),
    Verb.DECLARE_EXCHANGE: (_request, ("name", _text), ("type", _text), ("options", _options)),
    Verb.DELETE_EXCHANGE: (_request, ("name", _text), ("options", _options)),
    Verb.DECLARE_QUEUE: (_request, ("name", _text), ("options", _options)),
    Verb.DELETE_QUEUE: (_request, ("name", _text), ("options", _options)),
    Verb.PURGE_QUEUE: (_request, ("name", _name)),
    Verb.BIND: _binding,
    Verb.UNBIND: _binding,
    Verb.SUBSCRIBE: _pattern,
    Verb.UNSUBSCRIBE: _pattern,
    Verb.STATUS: (_request, ("options", _options)),
    Verb.BYE: (),
}  # fmt: skip


def shape_of(verb: int) -> str:
    """A request as a sentence shows it."""
    names = [str(int(verb)), "session", "incarnation", *(name for name, _ in FIELDS[verb])]
    return "[" + ", ".join(names) + "]"


def shown(value: object) -> str:
    """What a client sent, as far as a sentence has room for it."""
    text = repr(value)
    return text if len(text) <= 64 else text[:61] + "..."


def read_fields(verb: int, values: list[Any]) -> list[Any]:
    """What stands behind [verb, session, incarnation in a decoded header, checked. Raises Refused."""
    if verb not in FIELDS:
        raise Refused(f"there is no verb {verb}; the highest is {max(FIELDS)}", "unknown-verb")
    expected = FIELDS[verb]
    if len(values) != 3 + len(expected):
        raise Refused(f"{Verb(verb).name} is {shape_of(verb)}; this one has {len(values)} elements", "bad-request")
    for (name, check), value in zip(expected, values[3:], strict=True):
        check(name, value)
    return values[3:]


def read_hello(header: bytes) -> tuple[int, str, str]:
    """(version, vhost, client name) of a HELLO. Raises Refused."""
    version, vhost, name, _, _ = read_fields(Verb.HELLO, decode(header))
    return version, vhost, name


def check_options(options: dict[str, Any], known: dict[str, type]) -> None:
    """Refuse an option that is not known, or has a value of another type."""
    for name, value in options.items():
        if name not in known:
            offered = ", ".join(known) or "none"
            raise Refused(f"there is no option {shown(name)} here; the options are: {offered}", "unknown-argument")
        if type(value) is not known[name]:
            raise Refused(f"option {name!r} is {shown(value)}, not a {known[name].__name__}", "bad-request")
