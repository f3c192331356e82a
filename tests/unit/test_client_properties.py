"""Properties on their way out: headers of any allowed values arrive as they are; others are refused with a sentence."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
from fake_broker import FakeBroker
from hypothesis import given
from hypothesis import strategies as st

import fastmq


@pytest.fixture(scope="module")
def lasting() -> Iterator[tuple[FakeBroker, fastmq.Client]]:
    with FakeBroker() as broker:
        broker.queues["q"] = deque()
        with fastmq.connect(broker.url) as mq:
            yield broker, mq


TEXT = st.text(st.characters(blacklist_categories=["Cs"]), max_size=40)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False), TEXT, st.binary(max_size=300)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXT, inner, max_size=4)),
    max_leaves=8,
)


@given(st.dictionaries(TEXT, VALUES, max_size=4), TEXT)
def test_headers_of_any_values_arrive_as_they_are(lasting: tuple[FakeBroker, fastmq.Client], headers: dict[str, Any], name: str) -> None:
    broker, mq = lasting
    mq.publish("q", b"", headers=headers, message_id=name)
    mq.flush()
    assert msgpack.unpackb(broker.queues["q"].pop())[1] == {"headers": headers, "message_id": name}


def nested(depth: int, make: Any) -> dict[str, Any]:
    value: Any = 1
    for _ in range(depth):
        value = make(value)
    return {"k": value}


def test_many_and_large_values_arrive_as_they_are(lasting: tuple[FakeBroker, fastmq.Client]) -> None:
    broker, mq = lasting
    headers: dict[str, Any] = {f"k{i}": i for i in range(100)} | {"text": "x" * 300, "bin": b"z" * 300, "list": list(range(20_000))}
    headers |= {str(size): [None] * size for size in (15, 16)} | {"map": {str(i): -i for i in range(16)}}
    mq.publish("q", b"", headers=headers)
    mq.flush()
    assert msgpack.unpackb(broker.queues["q"].pop())[1] == {"headers": headers}


@pytest.mark.parametrize("make", [lambda value: [value], lambda value: {"x": value}, lambda value: (1, value)])
def test_headers_are_nested_only_so_deep(lasting: tuple[FakeBroker, fastmq.Client], make: Any) -> None:
    _, mq = lasting
    mq.publish("q", b"", headers=nested(13, make))
    mq.flush()
    with pytest.raises(fastmq.BadArgument) as caught:
        mq.publish("q", b"", headers=nested(14, make))
    assert "nested" in str(caught.value)


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"x": object()}, "object"), ({1: "x"}, "int"), ({"x": {b"k": 1}}, "bytes"), ({"x": 2**64}, "64 bits"), ({"x": -(2**64)}, "64 bits"),
        ({"x": "\ud800"}, "UTF-8"), ({"\ud800": 1}, "UTF-8"), ({"x": {1, 2}}, "set"), ({"x": bytearray(1)}, "bytearray"),
        ({"x": [b"y" * 1000] * 200}, "131072"), ({"x": "y" * 200_000}, "131072"),
    ],
)  # fmt: skip
def test_other_values_are_refused(lasting: tuple[FakeBroker, fastmq.Client], headers: Any, words: str) -> None:
    _, mq = lasting
    with pytest.raises(fastmq.BadArgument) as caught:
        mq.publish("q", b"", headers=headers)
    assert words in str(caught.value)


def test_a_header_that_contains_itself_is_refused(lasting: tuple[FakeBroker, fastmq.Client]) -> None:
    headers: dict[str, Any] = {}
    headers["self"] = headers
    with pytest.raises(fastmq.BadArgument):
        lasting[1].publish("q", b"", headers=headers)
