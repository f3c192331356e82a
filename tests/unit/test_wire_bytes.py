"""The bytes that the broker reads without Python objects: values, records, names, and the map from numbers."""
import random

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmq.wire.idmap import IdTable
from fastmq.wire.records import is_utf8, split_records, value_size

scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=40) | st.binary(max_size=300)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=5), inner, max_size=5), max_leaves=20
)


@settings(max_examples=2000, deadline=None)
@given(values, st.binary(max_size=4))
def test_value_is_passed_over_whole_and_no_further(value, behind):
    packed = msgpack.packb(value)
    assert value_size(packed + behind) == len(packed)


@settings(max_examples=2000, deadline=None)
@given(values, st.data())
def test_value_cut_short_is_refused(value, data):
    packed = msgpack.packb(value)
    assert value_size(packed[: data.draw(st.integers(0, len(packed) - 1))]) == -1


@settings(max_examples=3000, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_passed_over_or_refused(data):
    assert -1 <= value_size(data) <= len(data)


@pytest.mark.parametrize("depth, good", [(16, True), (17, False), (5000, False)])
def test_nesting_is_bounded(depth, good):
    assert (value_size(b"\x91" * depth + b"\xc0") == depth + 1) is good


@pytest.mark.parametrize(
    "claim",
    [
        b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff",
        b"\xc9\0\0\0\1\1a", b"\xd4\1a", b"\xc1",
    ],
)
def test_hostile_size_or_type_is_refused_at_once(claim):
    assert value_size(claim + b"\x00" * 50) == -1


def record(key="q", properties=None, body=b"x"):
    return msgpack.packb([key, properties, body])


keys = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=60)
properties = st.none() | st.dictionaries(st.text(max_size=5), scalars, max_size=5)
records = st.lists(st.tuples(keys, properties, st.binary(max_size=300)), max_size=8)


@settings(max_examples=2000, deadline=None)
@given(records)
def test_records_come_back_as_written(batch):
    data = b"".join(record(*one) for one in batch)
    expected = [(key.encode(), b"" if properties is None else msgpack.packb(properties), body) for key, properties, body in batch]
    assert split_records(data) == expected


@settings(max_examples=3000, deadline=None)
@given(st.binary(max_size=120), st.integers(0, 200))
def test_mutated_records_are_split_or_refused(noise, at):
    data = bytearray(record() + record("other", {"a": 1}, b"body" * 20) + record())
    data[at % len(data) : at % len(data) + len(noise) % 7] = noise
    try:
        split_records(bytes(data))
        why = "record 0"
    except ValueError as error:
        why = str(error)
    assert why.startswith("record ")


@pytest.mark.parametrize(
    "bad",
    [
        record("k" * 256), record("a\0b"), record(properties={"h": "x" * 140000}), msgpack.packb(["q", None]),
        msgpack.packb(["q", [], b""]), msgpack.packb(["q", None, "text"]), msgpack.packb([b"q", None, b""]),
        b"\x93\xa1\xff\xc0\xc4\x00", record()[:-1],
    ],
)
def test_bad_record_is_named_by_its_index(bad):
    with pytest.raises(ValueError, match="record 2"):
        split_records(record() + record() + bad)


@settings(max_examples=5000, deadline=None)
@given(st.binary(max_size=12) | st.text(max_size=6).map(lambda s: s.encode("utf-8", "surrogatepass")))
def test_utf8_agrees_with_python(data):
    try:
        data.decode()
        good = b"\0" not in data
    except UnicodeDecodeError:
        good = False
    assert is_utf8(data) is good


@pytest.mark.parametrize("spread", [1, 64, 1 << 32])
def test_id_map_agrees_with_a_dict(spread):
    rnd, table, oracle = random.Random(7), IdTable(), {}
    for step in range(15000):
        key = rnd.randrange(1, 2000) * spread
        if key in oracle and rnd.random() < 0.5:
            del table[key], oracle[key]
        else:
            table[key] = oracle[key] = step
        assert len(table) == len(oracle)
    assert {key: table[key] for key in oracle} == oracle
    for key in list(oracle):
        del table[key]
    assert len(table) == 0 and table.room <= 64
