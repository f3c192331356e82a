"""wire.values: strict decoding of what a stranger sends."""

import contextlib

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmq.errors import Refused
from fastmq.wire.limits import Limit
from fastmq.wire.values import decode

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=40) | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=5),
    max_leaves=20,
)


@given(plain)
def test_decode_returns_what_was_packed(value):
    assert decode(msgpack.packb(value)) == value


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not one msgpack value"),
        (b"\x92\x01", "not one msgpack value"),
        (b"\x01\x02", "nothing behind it"),
        (b"\xc1", "not one msgpack value"),
        (b"\xc7\x00\x05", "ext"),
        (b"\xd4\x05\x00", "ext"),
        (b"\xdf\xff\xff\xff\xff", "not one msgpack value"),
        (b"\x82\xa1a\x01\xa1a\x02", "same key twice"),
        (b"\x81\x01\x01", "not a str"),
        (b"\x81\x91\x01\x01", "not a str"),
        (b"\x81\x81\xa1a\x01\x01", "not a str"),
        (b"\x81\xc4\x01a\x01", "not a str"),
        (b"\xa2\xff\xfe", "not UTF-8"),
        (b"\x91" * 17 + b"\xc0", "nested"),
    ],
)
def test_decode_refuses_with_a_sentence(data, why):
    with pytest.raises(Refused, match="the header") as refused:
        decode(data)
    assert refused.value.code == "bad-request"
    assert why in str(refused.value)


@pytest.mark.parametrize("make", [
    lambda n: [0] * n, lambda n: {str(i): 0 for i in range(n)}, lambda n: "x" * 64 * n, lambda n: b"x" * 64 * n, lambda n: {"x" * 64 * n: 0},
], ids=["array", "map", "str", "bin", "key"])
def test_decode_allows_what_the_limits_say_and_refuses_more_as_too_large(make):
    assert Limit.TEXT_SIZE_MAX == 64 * Limit.ELEMENTS_MAX
    value = make(Limit.ELEMENTS_MAX)
    assert decode(msgpack.packb([value])) == [value]
    with pytest.raises(Refused, match="the header holds too much: at most 4096 bytes") as refused:
        decode(msgpack.packb([make(Limit.ELEMENTS_MAX + 1)]))
    assert refused.value.code == "too-large"


@settings(max_examples=2000)
@given(st.binary(max_size=64))
def test_decode_of_random_bytes_returns_or_refuses(data):
    with contextlib.suppress(Refused):
        decode(data)


@given(plain)
def test_decode_refuses_every_truncation(value):
    packed = msgpack.packb(value)
    for size in range(len(packed)):
        with pytest.raises(Refused):
            decode(packed[:size])
