"""URLs of brokers, and endpoints that brokers name."""

from __future__ import annotations

import pytest

from fastmq.client.url import parse_endpoint, parse_url
from fastmq.errors import BadArgument


@pytest.mark.parametrize(
    ("url", "address", "text"),
    [
        ("fastmq://127.0.0.1", ("127.0.0.1", 7400, "/"), "127.0.0.1:7400"),
        ("fastmq://host:1/", ("host", 1, "/"), "host:1"),
        ("fastmq://host/shop", ("host", 7400, "shop"), "host:7400"),
        ("fastmq://host/a%2Fb%20c", ("host", 7400, "a/b c"), "host:7400"),
        ("fastmq://[::1]:7/x", ("::1", 7, "x"), "[::1]:7"),
    ],
)
def test_urls(url: str, address: tuple[str, int, str], text: str) -> None:
    assert parse_url(url) == address
    assert str(parse_url(url)) == text


@pytest.mark.parametrize(
    "url",
    [
        "", "host:7400", "http://host", "fastmq://", "fastmq://host:x", "fastmq://host:99999", "fastmq+unix:///tmp/x", "fastmq://u:p@host",
        "fastmq://host/?a=1", "fastmq://host/a%00b", "fastmq://host/" + "v" * 256, "fastmq://[::1", 7,
    ],
)  # fmt: skip
def test_impossible_urls_are_refused_with_a_sentence(url: str) -> None:
    with pytest.raises(BadArgument) as caught:
        parse_url(url)
    assert "URL" in str(caught.value)


def test_endpoints_with_a_wildcard_stand_for_the_host_that_was_connected_to() -> None:
    assert parse_endpoint("tcp://10.0.0.1:5", "me") == ("10.0.0.1", 5)
    for wildcard in ("*", "0.0.0.0", "[::]"):
        assert parse_endpoint(f"tcp://{wildcard}:5", "me") == ("me", 5)
    for bad in ("", "ipc:///x", "tcp://host", "tcp://host:0", "tcp://host:x"):
        with pytest.raises(BadArgument):
            parse_endpoint(bad, "me")
