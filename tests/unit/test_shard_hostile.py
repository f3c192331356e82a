"""Whatever bytes a shard is handed, it refuses them or does what they say: it never crashes and never reads past them."""
from __future__ import annotations

import os
import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from shard_driver import EPOCH, SHARD, TINY, Driver, Entry, publish_message, record, settle_message

from fastmq.model.shard import BadRecord, Shard
from fastmq.wire.link import LinkKind

KINDS = [LinkKind.L_PUBLISH, LinkKind.L_SETTLE, LinkKind.L_CONSUME, LinkKind.L_CANCEL, LinkKind.L_GET, LinkKind.L_SESSION_END,
         LinkKind.L_ATTACH_SHARD, LinkKind.L_QUEUE_DECLARE, LinkKind.L_QUEUE_DELETE, LinkKind.L_QUEUE_PURGE, LinkKind.L_QUEUE_COUNTS]
GOOD = {
    LinkKind.L_PUBLISH: publish_message(11, 1, [Entry(1, [1, 2], [record(b"x"), record(b"y")]), Entry(3, [1], [record(b"z")])], b"logs"),
    LinkKind.L_SETTLE: settle_message(12, EPOCH, 1, [(2, 3)], [(4, 4, 1)]),
    LinkKind.L_CONSUME: struct.pack("=QQQQIIII", 1, 12, 1, 1000, 1, 1, 10, 0),
    LinkKind.L_CANCEL: struct.pack("=QQII", 1, 12, 1, 0),
    LinkKind.L_GET: struct.pack("=QQQII", 1, 12, 1, 1, 0),
    LinkKind.L_SESSION_END: struct.pack("=QII", 12, 1, 0),
    LinkKind.L_ATTACH_SHARD: struct.pack("=IIQIHHQIHH", 2, 0, 1, 0, SHARD, 0, 2, 0, SHARD, 0),
    LinkKind.L_QUEUE_DECLARE: struct.pack("=QQQII", 1, 12, 1, 1, 0),
}
NUMBERS = st.sampled_from([0, 1, 2, 3, 4, 12, 255, 2**31, 2**32 - 1])


def busy() -> Driver:
    """A shard with something of everything."""
    driver = Driver(**TINY)
    driver.declare(1, 2)
    driver.consume(12, 1, 1, messages=5)
    driver.publish(11, 1, [1, 2], [record(b"x" * n) for n in range(0, 300, 30)])
    driver.pump()
    driver.get(13, 2)
    return driver


@given(kind=st.sampled_from(KINDS), payload=st.binary(max_size=200) | st.builds(
    lambda numbers: struct.pack(f"={len(numbers)}I", *numbers), st.lists(NUMBERS, max_size=40)))
@settings(max_examples=int(os.environ.get("FASTMQ_EXAMPLES", "2000")), deadline=None)
@example(LinkKind.L_PUBLISH, struct.pack("=QQIIIIQ", 11, 0, 2**32 - 1, 2**32 - 1, 2**32 - 1, 0, 0))
@example(LinkKind.L_SETTLE, struct.pack("=QQQII", 12, EPOCH, 0, 2**32 - 1, 2**32 - 1))
@example(LinkKind.L_ATTACH_SHARD, struct.pack("=II", 2**32 - 1, 0))
def test_any_payload_is_refused_or_done(kind: LinkKind, payload: bytes) -> None:
    driver = busy()
    before = driver.shard.dump()
    try:
        driver.send(kind, payload)
    except ValueError:
        assert driver.shard.dump() == before            # refused: nothing was changed
    driver.pump()
    assert driver.rebuilt().dump() == driver.shard.dump()


@pytest.mark.parametrize("kind", GOOD)
def test_payload_cut_anywhere_is_refused_and_whole_is_taken(kind: LinkKind) -> None:
    for size in range(len(GOOD[kind])):
        driver = busy()
        before = driver.shard.dump()
        with pytest.raises(ValueError, match="malformed"):
            driver.send(kind, GOOD[kind][:size])
        assert driver.shard.dump() == before
    busy().send(kind, GOOD[kind])


@given(kind=st.sampled_from(list(GOOD)), at=st.integers(0, 300), value=st.integers(0, 255))
@settings(max_examples=int(os.environ.get("FASTMQ_EXAMPLES", "1000")), deadline=None)
def test_payload_with_one_byte_changed_is_refused_or_done(kind: LinkKind, at: int, value: int) -> None:
    driver = busy()
    payload = bytearray(GOOD[kind])
    payload[at % len(payload)] = value
    try:
        driver.send(kind, bytes(payload))
    except ValueError:
        pass
    driver.pump()
    assert driver.rebuilt().dump() == driver.shard.dump()


def test_kind_that_is_not_for_a_shard_is_refused() -> None:
    for kind in (0, LinkKind.L_TOPOLOGY, LinkKind.L_DELIVER, 65535):
        with pytest.raises(ValueError, match="not for a shard"):
            busy().send(kind, bytes(64))


def test_record_of_a_publish_without_messages_is_refused() -> None:
    take = struct.pack("=QQQQIIII", 11, 0, 1, 1000, 0, 0, 0, 0)
    with pytest.raises(BadRecord):
        Shard(SHARD, EPOCH, **TINY).apply(struct.pack("=IHH", len(take), 5, 0) + take)


@given(st.data())
@settings(max_examples=int(os.environ.get("FASTMQ_EXAMPLES", "1000")), deadline=None)
def test_damaged_records_are_refused_or_applied_without_a_crash(data: st.DataObject) -> None:
    driver = busy()
    driver.settle(12, ranges=[(1, 2)], exceptions=[(3, 3, 1)])
    driver.end(13)
    driver.request(LinkKind.L_QUEUE_PURGE, 0, 2)
    driver.pump()
    records = bytearray(driver.records)
    for _ in range(data.draw(st.integers(1, 3))):
        records[data.draw(st.integers(0, len(records) - 1))] = data.draw(st.integers(0, 255))
    shard = Shard(SHARD, EPOCH, **TINY)
    try:
        shard.apply(bytes(records[:data.draw(st.sampled_from([len(records), len(records) // 2]))]))
    except BadRecord:
        return
    shard.dump()
    shard.pump(0)
