"""A broker that says anything at all: the client's cores end in `broken` or pass it over, whole and byte by byte, and never crash."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from client_script import EXAMPLES, GREETING, SESSION, Script, frame, record
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmq.client.core import ClientCore
from fastmq.client.events import EventsCore
from fastmq.wire.verbs import Verb

NUMBERS = st.one_of(st.integers(0, 12), st.sampled_from([2**16, 2**32 - 1, 2**32, 2**63, 2**64 - 1, -1]))
CODES = st.sampled_from(["stale", "no-session", "bad-incarnation", "unavailable", "no-queue", "unknown", "", "x" * 70000])
PAIRS = st.lists(st.lists(NUMBERS, min_size=2, max_size=2), max_size=4)
PLAIN = st.one_of(NUMBERS, st.sampled_from([None, True, 1.5, b"", b"bin", "", "str", SESSION, [], {}, [[]], {"k": [None]}, [1, [2, [3]]]]))
JUNK = st.one_of(PLAIN, st.lists(PLAIN, max_size=4))
RUN = st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS, st.integers(0, 3), NUMBERS, st.text(max_size=3), NUMBERS).map(list)
FIELDS: dict[int, st.SearchStrategy[list[Any]]] = {
    Verb.WELCOME: st.tuples(st.just(SESSION), NUMBERS, st.just({}), NUMBERS, NUMBERS, st.text(max_size=9)).map(list),
    Verb.CONFIRM: st.tuples(NUMBERS, PAIRS, st.lists(st.tuples(NUMBERS, NUMBERS, CODES, CODES), max_size=3), NUMBERS, NUMBERS).map(list),
    Verb.DELIVER: st.lists(RUN, max_size=3).map(lambda runs: [runs]),
    Verb.REPLY: st.tuples(NUMBERS, st.one_of(st.none(), RUN, JUNK)).map(list),
    Verb.ERROR: st.tuples(st.one_of(st.none(), NUMBERS), CODES, CODES).map(list),
    Verb.RESEND: st.tuples(NUMBERS, NUMBERS).map(list),
    Verb.CANCELLED: st.tuples(NUMBERS, CODES, CODES).map(list),
    Verb.CLOSING: st.tuples(CODES, CODES).map(list),
}
RECORD = st.one_of(st.just(record("k", b"body")), st.just(record("k", b"", {"a": [1]})), st.binary(max_size=6))
RECORDS = st.lists(RECORD, max_size=4).map(b"".join)

EVENT_HEADERS = st.one_of(st.tuples(NUMBERS, NUMBERS, st.integers(0, 3)).map(list), JUNK)


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """One message of a broker: mostly of the right shape, sometimes damaged."""
    verb = draw(st.sampled_from(sorted(FIELDS)))
    sid = draw(st.sampled_from([SESSION[:8], SESSION[:8], SESSION[:8], b"", SESSION, b"stranger"]))
    fields = draw(st.one_of(FIELDS[verb], FIELDS[verb], FIELDS[verb], st.lists(JUNK, max_size=6)))
    header = msgpack.packb([verb, sid, draw(st.one_of(st.integers(0, 3), NUMBERS)), *fields])
    if draw(st.integers(0, 9)) == 0:
        at = draw(st.integers(0, len(header) - 1))
        header = header[:at] + draw(st.binary(max_size=3)) + header[at + draw(st.integers(0, 3)) :]
    if verb in (Verb.DELIVER, Verb.REPLY) or draw(st.integers(0, 9)) == 0:
        return frame(header, more=True) + frame(draw(RECORDS))
    return frame(header)


def lively(step: int = 0) -> Script:
    """A session with open publishes, requests and consumers, so that any answer may hit something."""
    script = Script(step, window=(50, 4000))
    for i in range(12):
        script.core.publish("k", b"%d" % i, "x" * (i % 2))
    for verb in (Verb.GET, Verb.STATUS, Verb.PURGE_QUEUE):
        script.core.request(verb, ["q"])
    for auto in (False, True):
        script.core.begin_consumer("q", 3, 2000, auto)
    script.core.take_output(script.now)
    return script


def state(core: ClientCore) -> tuple[Any, ...]:
    return (
        core.state, core.why_broken, core.open_count, core.outstanding_count, core.floor, core.current_incarnation, core.window,
        core.strange, [core.consumer_phase(number) for number in (1, 2)],
    )  # fmt: skip


@pytest.mark.fuzz
@settings(max_examples=EXAMPLES)
@given(st.lists(messages(), max_size=4), st.integers(1, 40))
def test_any_messages_mean_the_same_whole_and_in_pieces(data: list[bytes], step: int) -> None:
    whole, pieces = lively(), lively(step)
    for each in data:
        whole.feed(each)
        pieces.feed(each)
        assert state(whole.core) == state(pieces.core)
        assert whole.core.take_output(1) == pieces.core.take_output(1)
    for script in (whole, pieces):
        core = script.core
        assert core.open_count <= 12
        for number in (1, 2):
            for shard, epoch, n, generation, *_ in core.take_deliveries(number):
                core.settle_tag(shard, epoch, n, 0, generation)
        for number in range(1, 6):
            core.answer(number)
        core.take_failures()
        core.run(10**9)
        core.take_output(2)
        core.disconnected(3)
        core.connected(4)
        core.take_output(5)


@pytest.mark.fuzz
@settings(max_examples=EXAMPLES)
@given(st.binary(max_size=60), st.binary(max_size=30), st.integers(0, 20))
def test_any_bytes_as_header_and_records(header: bytes, records: bytes, cut: int) -> None:
    script = lively()
    good = msgpack.packb([Verb.DELIVER, SESSION[:8], 1, [[1, 3, 7, 1, 1, 1, "", 5]]])
    script.feed(frame(good[: len(good) - cut] + header, more=True) + frame(records))
    script.feed(frame(header, more=True) + frame(records))
    script.core.take_output(1)


HOSTILE = [
    [],
    [Verb.CONFIRM],
    [Verb.CONFIRM, SESSION[:8], 1],
    [Verb.CONFIRM, SESSION[:8], 1, 1, [[2, 1]], [], 1, 1],
    [Verb.CONFIRM, SESSION[:8], 1, 1, [[1, 2, 3]], [], 1, 1],
    [Verb.CONFIRM, SESSION[:8], 1, 1, [], [[1, 2, 3, 4]], 1, 1],
    [Verb.CONFIRM, SESSION[:8], 1, 1, [], [], -1, 1],
    [Verb.DELIVER, SESSION[:8], 1, [[1, 3, 7, 1, 2**32 - 1, 1, "", 5]]],
    [Verb.DELIVER, SESSION[:8], 1, [[1, 3, 7, 1, 0, 1, "", 5]]],
    [Verb.DELIVER, SESSION[:8], 1, [[1, 3, 7, 0, 1, 1, "", 5]]],
    [Verb.DELIVER, SESSION[:8], 1, [[1, 99999, 7, 1, 1, 1, "", 5]]],
    [Verb.DELIVER, SESSION[:8], 1, [[1, 3, 7, 2**64 - 1, 1, 1, "", 5]]],
    [Verb.DELIVER, SESSION[:8], 1, []],
    [Verb.WELCOME, SESSION[:8], 1, b"short", 1, {}, 1, 1, ""],
]


@pytest.mark.parametrize("header", HOSTILE)
def test_malformed_messages_break_the_connection(header: list[Any]) -> None:
    script = lively()
    script.feed(frame(msgpack.packb(header), more=True) + frame(record("k", b"x")))
    assert script.core.why_broken is not None
    assert script.core.why_broken[0] == "bad-protocol"


def test_unknown_verbs_and_further_fields_are_passed_over() -> None:
    script = lively()
    script.say(99, "new")
    script.say(Verb.CONFIRM, 2, [], [], 50, 4000, "more", {"later": 1})
    assert (script.core.why_broken, script.core.floor) == (None, 3)


@pytest.mark.fuzz
@settings(max_examples=EXAMPLES)
@given(
    st.lists(st.tuples(st.sampled_from([b"t\0", b"u\0", b"x"]), EVENT_HEADERS, RECORDS), max_size=4),
    st.integers(1, 30),
)
def test_any_events_mean_the_same_whole_and_in_pieces(events: list[tuple[bytes, Any, bytes]], step: int) -> None:
    cores = [EventsCore(), EventsCore()]
    for core in cores:
        core.connected(1)
        core.feed(GREETING + b"\x04\x1a\x05READY\x0bSocket-Type\0\0\0\x04XPUB", 1)
        assert (core.subscribe(b"t\0"), core.subscribe(b"u\0"), core.subscribe(b"t\0")) == (1, 2, 3)
    for topic, header, records in events:
        data = frame(topic, True) + frame(msgpack.packb(header), True) + frame(records)
        cores[0].feed(data, 2)
        for at in range(0, len(data), step):
            cores[1].feed(data[at : at + step], 2)
        assert cores[0].why_broken == cores[1].why_broken
        assert [cores[0].status(n) for n in (1, 2, 3)] == [cores[1].status(n) for n in (1, 2, 3)]
    assert [cores[0].take_events(n) for n in (1, 2, 3)] == [cores[1].take_events(n) for n in (1, 2, 3)]
    for core in cores:
        assert [core.unsubscribe(n) for n in (1, 2, 3)] == [False, True, True]
