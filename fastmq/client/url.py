"""Where a broker is: fastmq://host:7400/vhost."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from fastmq.errors import BadArgument

PORT = 7400


class Address(NamedTuple):
    """A broker's command endpoint, and the virtual host there."""

    host: str
    port: int
    vhost: str

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_url(url: str) -> Address:
    """The address that a URL names; without a port 7400, without a path the virtual host `/`."""
    if not isinstance(url, str):
        raise BadArgument(f"the URL must be str, not {type(url).__name__}")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise BadArgument(f"the URL {url!r} cannot be read: {error}") from None
    if parts.scheme == "fastmq+unix":
        raise BadArgument(f"the URL {url!r} names a unix socket; this version connects over tcp only: fastmq://host:{PORT}/vhost")
    if parts.scheme != "fastmq" or not host:
        raise BadArgument(f"the URL {url!r} is not of the form fastmq://host:{PORT}/vhost")
    if parts.username is not None or parts.query or parts.fragment:
        raise BadArgument(f"the URL {url!r} may have a host, a port and a virtual host, and nothing else")
    vhost = unquote(parts.path[1:]) or "/"
    if "\0" in vhost or len(vhost.encode(errors="replace")) > 255:
        raise BadArgument(f"the URL {url!r} names an impossible virtual host")
    return Address(host, PORT if port is None else port, vhost)


def parse_endpoint(endpoint: str, host: str) -> tuple[str, int]:
    """(host, port) of a ZeroMQ endpoint that the broker named; a wildcard stands for `host`, through which the broker was reached."""
    try:
        parts = urlsplit(endpoint)
        if parts.scheme != "tcp" or not parts.port:
            raise ValueError
    except ValueError:
        raise BadArgument(f"the broker names an endpoint for live events that cannot be used: {endpoint!r}") from None
    named = parts.hostname or "*"
    return (host if named in ("*", "0.0.0.0", "::") else named), parts.port
