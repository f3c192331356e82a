"""Where a broker is: fastmq://host:7400/vhost, or fastmq+unix:///path/of/socket?vhost=name."""

from __future__ import annotations

import os
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from fastmq.errors import BadArgument

PORT = 7400
UNIX = "fastmq+unix://"
UNIX_FORM = f"{UNIX}/path/of/socket?vhost=name"


class Address(NamedTuple):
    """An endpoint of a broker, and the virtual host there."""

    host: str
    port: int
    vhost: str
    path: str = ""  # of a unix socket, `@name` for an abstract one; "": host and port count

    def __str__(self) -> str:
        if self.path:
            return self.path
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_url(url: str) -> Address:
    """The address that a URL names; without a port 7400, without a virtual host `/`."""
    if not isinstance(url, str):
        raise BadArgument(f"the URL must be str, not {type(url).__name__}")
    if url.startswith("fastmq+unix:"):
        return _parse_unix(url)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise BadArgument(f"the URL {url!r} cannot be read: {error}") from None
    if parts.scheme != "fastmq" or not host:
        raise BadArgument(f"the URL {url!r} is not of the form fastmq://host:{PORT}/vhost, or {UNIX_FORM}")
    if parts.username is not None or parts.query or parts.fragment:
        raise BadArgument(f"the URL {url!r} may have a host, a port and a virtual host, and nothing else")
    return Address(host, PORT if port is None else port, _vhost(parts.path[1:], url))


def _parse_unix(url: str) -> Address:
    """A path may hold `#` as it is, and anything as %XX; the virtual host is not part of it, so it stands behind."""
    place, _, query = url.removeprefix(UNIX).partition("?")
    name, _, value = query.partition("=")
    path = unquote(place)
    if not url.startswith(UNIX) or not path.startswith(("/", "@")) or path == "@" or "\0" in path or (query and name != "vhost"):
        raise BadArgument(f"the URL {url!r} is not of the form {UNIX_FORM}")
    return Address("", 0, _vhost(value, url), path)


def _vhost(quoted: str, url: str) -> str:
    vhost = unquote(quoted) or "/"
    if "\0" in vhost or len(vhost.encode(errors="replace")) > 255:
        raise BadArgument(f"the URL {url!r} names an impossible virtual host")
    return vhost


def parse_endpoint(endpoint: str, reached: Address) -> Address:
    """The address of a ZeroMQ endpoint that the broker named, which was itself reached at `reached`.

    A wildcard stands for the host of `reached`. A path that does not exist here (the broker may run in a container) is that of the file
    of that name beside the socket of `reached`.
    """
    try:
        parts = urlsplit(endpoint)
        if parts.scheme == "ipc" and reached.path:
            return Address("", 0, reached.vhost, _path_here(endpoint.removeprefix("ipc://"), reached.path))
        if parts.scheme != "tcp" or not parts.port:
            raise ValueError
    except ValueError:
        raise BadArgument(f"the broker names an endpoint for live events that cannot be used: {endpoint!r}") from None
    named = parts.hostname or "*"
    host = (reached.host or "127.0.0.1") if named in ("*", "0.0.0.0", "::") else named
    return Address(host, parts.port, reached.vhost)


def _path_here(path: str, reached: str) -> str:
    if not path.startswith(("/", "@")) or "\0" in path:
        raise ValueError
    if path.startswith("@") or reached.startswith("@") or os.path.exists(path):
        return path
    return os.path.join(os.path.dirname(reached), os.path.basename(path))
