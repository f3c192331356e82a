"""URLs of brokers, and endpoints that brokers name."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastmq.client.url import parse_endpoint, parse_url
from fastmq.errors import BadArgument


@pytest.mark.parametrize(
    ("url", "address", "text"),
    [
        ("fastmq://127.0.0.1", ("127.0.0.1", 7400, "/", ""), "127.0.0.1:7400"),
        ("fastmq://host:1/", ("host", 1, "/", ""), "host:1"),
        ("fastmq://host/shop", ("host", 7400, "shop", ""), "host:7400"),
        ("fastmq://host/a%2Fb%20c", ("host", 7400, "a/b c", ""), "host:7400"),
        ("fastmq://[::1]:7/x", ("::1", 7, "x", ""), "[::1]:7"),
        ("fastmq+unix:///run/mq", ("", 0, "/", "/run/mq"), "/run/mq"),
        ("fastmq+unix:///a%20%3Fb#c?vhost=a%2Fb", ("", 0, "a/b", "/a ?b#c"), "/a ?b#c"),
        ("fastmq+unix://@name?vhost=", ("", 0, "/", "@name"), "@name"),
    ],
)
def test_urls(url: str, address: tuple[str, int, str, str], text: str) -> None:
    assert parse_url(url) == address
    assert str(parse_url(url)) == text


@pytest.mark.parametrize(
    "url",
    [
        "", "host:7400", "http://host", "fastmq://", "fastmq://host:x", "fastmq://host:99999", "fastmq://u:p@host",
        "fastmq://host/?a=1", "fastmq://host/a%00b", "fastmq://host/" + "v" * 256, "fastmq://[::1", 7,
        "fastmq+unix:", "fastmq+unix:/x", "fastmq+unix://", "fastmq+unix://x/y", "fastmq+unix://@", "fastmq+unix:///a%00b",
        "fastmq+unix:///a?x=y", "fastmq+unix:///a?vhost=%00",
    ],
)  # fmt: skip
def test_impossible_urls_are_refused_with_a_sentence(url: str) -> None:
    with pytest.raises(BadArgument) as caught:
        parse_url(url)
    assert "URL" in str(caught.value)


TCP = parse_url("fastmq://me:7/v")
UNIX = parse_url("fastmq+unix:///here/mq?vhost=v")


def test_endpoints_with_a_wildcard_stand_for_the_host_that_was_connected_to() -> None:
    assert parse_endpoint("tcp://10.0.0.1:5", TCP) == ("10.0.0.1", 5, "v", "")
    for wildcard in ("*", "0.0.0.0", "[::]"):
        assert parse_endpoint(f"tcp://{wildcard}:5", TCP) == ("me", 5, "v", "")
        assert parse_endpoint(f"tcp://{wildcard}:5", UNIX) == ("127.0.0.1", 5, "v", "")
    for bad in ("", "ipc:///x", "tcp://host", "tcp://host:0", "tcp://host:x"):
        with pytest.raises(BadArgument):
            parse_endpoint(bad, TCP)


def test_unix_endpoint_that_is_not_here_lies_beside_the_socket_that_was_connected_to(tmp_path: Path) -> None:
    assert parse_endpoint("ipc:///broker/mq.events", UNIX) == ("", 0, "v", "/here/mq.events")
    (tmp_path / "mq.events").touch()
    assert parse_endpoint(f"ipc://{tmp_path}/mq.events", UNIX) == ("", 0, "v", f"{tmp_path}/mq.events")
    assert parse_endpoint("ipc://@name.events", UNIX) == ("", 0, "v", "@name.events")
    for bad in ("ipc://", "ipc://x", "ipc:///x\0"):
        with pytest.raises(BadArgument):
            parse_endpoint(bad, UNIX)
