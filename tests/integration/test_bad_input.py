"""Bad input to a real broker: each is answered with a code, or ends its own connection, and nobody else sees anything of it."""

import contextlib
import os
import struct
import time

import msgpack
import pytest
from attacker import CODES, GREETING, MB, Bare, Growth, Wire, command_port, packed, ready, record, row_of
from conftest import LONG
from hypothesis import given, settings
from hypothesis import strategies as st
from waiting import wait_until

import fastmq
from fastmq.wire.limits import Limit
from fastmq.wire.verbs import Verb

EXAMPLES = int(os.environ.get("FASTMQ_EXAMPLES", "20000" if LONG else "2000"))
MAX_UINT = 2**64 - 1


# ---- requests

def raw_header(bare, tail, count=4, verb=Verb.STATUS):
    """A header whose fields, behind verb, session and incarnation, are these bytes."""
    return bytes([0x90 | count, verb]) + msgpack.packb(bare.session) + msgpack.packb(bare.incarnation) + tail


@pytest.mark.parametrize("verb", [0, 18, 31, 32, 39, 127, 2**32 + 2, MAX_UINT])
def test_unknown_verb_is_refused(bare, verb):
    bare.raw(packed(verb, bare.session, bare.incarnation, 1))
    assert bare.error() == "unknown-verb"
    bare.alive()


@pytest.mark.parametrize("count", [3, 4, 500])
def test_number_of_frames_is_refused(bare, count):
    header = packed(Verb.STATUS, bare.session, bare.incarnation, 1, {})
    publish = packed(Verb.PUBLISH, bare.session, bare.incarnation, 1, 1, 1, "", 0)
    for first in (header, publish, b"", packed(Verb.HELLO, b"", 0, 1, "/", "", 0, {})):
        bare.raw(first, *[b"x"] * (count - 1))
        assert bare.error() == "bad-request"
    bare.alive()


def test_number_of_frames_of_each_verb(bare):
    bare.raw(packed(Verb.PUBLISH, bare.session, bare.incarnation, 1, 1, 1, "", 0))
    assert bare.error() == "bad-request"
    for verb in Verb:
        if verb < Verb.WELCOME and verb != Verb.PUBLISH:
            bare.raw(packed(verb, bare.session, bare.incarnation), b"")
            assert bare.error() == "bad-request"
    bare.raw(b"")
    assert bare.error() == "bad-request"
    bare.alive()


HEADERS = {
    "not msgpack": b"\xc1",
    "nested": b"\x91" * 100_000,
    "maps nested": b"\x81\xa0" * 100_000,
    "array of 2^32": b"\xdd\xff\xff\xff\xff",
    "map of 2^32": b"\xdf\xff\xff\xff\xff",
    "str of 2^32": b"\xdb\xff\xff\xff\xff",
    "a map": b"\x80",
    "a number": b"\x01",
    "no elements": b"\x90",
    "negative verb": packed(-1, b"", 0),
    "float verb": packed(1.0, b"", 0),
    "short session": packed(Verb.STATUS, b"x" * 15, 1, 1, {}),
    "long session": packed(Verb.STATUS, b"x" * 17, 1, 1, {}),
    "session is a str": packed(Verb.STATUS, "x" * 16, 1, 1, {}),
    "negative incarnation": packed(Verb.STATUS, b"x" * 16, -1, 1, {}),
    "nil incarnation": packed(Verb.STATUS, b"x" * 16, None, 1, {}),
    "ext": b"\x93\x10\xc7\x10\x01" + bytes(16) + b"\x01",
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_header_that_cannot_be_read_is_refused(bare, header):
    bare.raw(header)
    assert bare.error() == "bad-request"
    bare.alive()


FIELDS = {
    "options nested": b"\x01" + b"\x81\xa1a" * 5000 + b"\xc0",
    "options of 2^31 keys": b"\x01\xdf\x7f\xff\xff\xff",
    "a key twice": b"\x01\x82\xa1a\x01\xa1a\x02",
    "a key that is a number": b"\x01\x81\x01\x01",
    "a key that is a bin": b"\x01\x81\xc4\x01a\x01",
    "ext": b"\x01\xc7\xff\x05" + bytes(255),
    "timestamp": b"\x01\xd6\xff" + bytes(4),
    "options nil": b"\x01\xc0",
    "options an array": b"\x01\x90",
    "bytes behind": b"\x01\x80\x80",
    "cut": b"\x01",
    "NaN as request": b"\xcb\x7f\xf8" + bytes(6) + b"\x80",
    "inf as request": b"\xcb\x7f\xf0" + bytes(6) + b"\x80",
    "negative request": b"\xff\x80",
    "negative request of 64 bits": b"\xd3" + b"\x80" + bytes(7) + b"\x80",
    "str that is not UTF-8": b"\x01\x81\xa2\xff\xfe\x01",
}


@pytest.mark.parametrize("tail", FIELDS.values(), ids=FIELDS)
def test_fields_that_cannot_be_read_are_refused(bare, tail):
    bare.raw(raw_header(bare, tail, 5))
    assert bare.error() == "bad-request"
    bare.alive()


@pytest.mark.parametrize("name", [b"\xff\xfe", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82", b"a\0b", b"\0"], ids=repr)
def test_names_of_odd_bytes_are_refused(bare, name):
    text = bytes([0xa0 | len(name)]) + name
    for verb, count, tail in (
        (Verb.DECLARE_QUEUE, 6, b"\x01" + text + b"\x80"), (Verb.GET, 5, b"\x01" + text), (Verb.PURGE_QUEUE, 5, b"\x01" + text),
        (Verb.DECLARE_EXCHANGE, 7, b"\x01" + text + b"\xa5topic\x80"), (Verb.BIND, 9, b"\x01\xa5queue\xa1q" + text + b"\xa0\x80"),
        (Verb.SUBSCRIBE, 7, b"\x01\xa0\xa1t" + text), (Verb.CONSUME, 9, b"\x01\x01" + text + b"\x01\x00\x80"),
        (Verb.PUBLISH, 8, b"\x01\x01\x01" + text + b"\x00"),
    ):
        header = raw_header(bare, tail, count, verb)
        bare.raw(header, *([record()] if verb == Verb.PUBLISH else []))
        assert bare.error() == "bad-request", verb
    bare.alive()


@pytest.mark.parametrize("name", [" ", "\n", "\x01\x7f", "\u202e", "é" * 127, "\U0001f41d", "../../x", "'; --", "%s%n", "{0}"], ids=ascii)
def test_odd_names_are_names(bare, name):
    assert bare.ok(Verb.DECLARE_QUEUE, name, {})["name"] == name
    bare.publish(record(name, b"body"))
    assert bare.outcome()[0] == bare.sequence
    assert bare.ok(Verb.DELETE_QUEUE, name, {}) == 1


LONG_NAME = "x" * 256


def test_names_that_are_too_long_are_refused(bare):
    for verb, *fields in (
        (Verb.DECLARE_QUEUE, LONG_NAME, {}), (Verb.DELETE_QUEUE, LONG_NAME, {}), (Verb.GET, LONG_NAME), (Verb.PURGE_QUEUE, LONG_NAME),
        (Verb.DECLARE_EXCHANGE, LONG_NAME, "topic", {}), (Verb.DELETE_EXCHANGE, LONG_NAME, {}), (Verb.CONSUME, 1, LONG_NAME, 1, 0, {}),
        (Verb.BIND, "queue", "q", "amq.topic", LONG_NAME, {}), (Verb.UNBIND, "queue", "q", LONG_NAME, "", {}),
        (Verb.SUBSCRIBE, "amq.topic", "t", LONG_NAME), (Verb.DECLARE_QUEUE, "é" * 128, {}),
    ):
        assert bare.refused(verb, *fields) == "too-large"
    bare.alive()


def test_header_that_is_too_large_is_refused(bare):
    bare.raw(raw_header(bare, b"\x01" + b"\xdb" + struct.pack(">I", 2**20) + bytes(2**20), 5))
    assert bare.error() == "too-large"
    for keys in (33, 65, 30_000):
        assert bare.refused(Verb.STATUS, {f"k{n}": n for n in range(keys)}) == "too-large"
    for size in (4097, 2_000_000):
        assert bare.refused(Verb.DECLARE_QUEUE, "x" * size, {}) == "too-large"
    bare.alive()


def test_what_does_not_exist_is_named(bare):
    for code, verb, *fields in (
        ("no-queue", Verb.GET, "none"), ("no-queue", Verb.PURGE_QUEUE, "none"), ("no-queue", Verb.CONSUME, 1, "none", 1, 0, {}),
        ("no-queue", Verb.DECLARE_QUEUE, "none", {"passive": True}), ("no-queue", Verb.BIND, "queue", "none", "amq.topic", "", {}),
        ("no-exchange", Verb.DECLARE_EXCHANGE, "none", "topic", {"passive": True}), ("no-exchange", Verb.SUBSCRIBE, "none", "t", "#"),
        ("no-exchange", Verb.BIND, "exchange", "none", "amq.topic", "", {}), ("no-consumer", Verb.CANCEL, 7),
        ("unknown-argument", Verb.DECLARE_QUEUE, "q", {"colour": 1}), ("unknown-argument", Verb.DECLARE_EXCHANGE, "e", "odd", {}),
        ("access-refused", Verb.DECLARE_QUEUE, "amq.mine", {}), ("access-refused", Verb.DECLARE_EXCHANGE, "amq.mine", "topic", {}),
        ("access-refused", Verb.DELETE_EXCHANGE, "amq.topic", {}), ("bad-request", Verb.SUBSCRIBE, "amq.topic", "g", "#"),
        ("bad-request", Verb.BIND, "neither", "q", "amq.topic", "", {}), ("bad-request", Verb.DECLARE_QUEUE, "q", {"durable": 1}),
    ):
        assert bare.refused(verb, *fields) == code, (verb, fields)
    bare.alive()


@pytest.mark.parametrize("number", [0, 2**32, MAX_UINT, -1, "1", None, 1.0, True], ids=repr)
def test_impossible_consumer_numbers_are_refused(bare, number):
    bare.ok(Verb.DECLARE_QUEUE, "numbers", {})
    assert bare.refused(Verb.CONSUME, number, "numbers", 1, 0, {}) == "bad-request"
    assert bare.refused(Verb.CANCEL, number) == "bad-request"
    assert bare.refused(Verb.CONSUME, 1, "numbers", number if number != 1 else 65536, 0, {}) == "bad-request"


# ---- HELLO and sessions

def test_hello_that_cannot_be(broker, watch):
    with Bare(broker, hello=False) as bare:
        for code, *fields in (
            ("version", b"", 0, 2, "/", "", 0, {}), ("version", b"", 0, MAX_UINT, "/", "", 0, {}), ("no-vhost", b"", 0, 1, "x", "", 0, {}),
            ("bad-request", b"", 1, 1, "/", "", 0, {}), ("bad-request", b"", 0, 1, "/", "", 0), ("bad-request", b"", 0, 1, "/", "", -1, {}),
            ("too-large", b"", 0, 1, "/", LONG_NAME, 0, {}), ("no-session", bytes(16), 1, 1, "/", "", 0, {}),
            ("no-session", os.urandom(16), 1, 1, "/", "", 0, {}), ("bad-request", b"", 0, 1, "", "", 0, {}),
        ):
            bare.raw(packed(Verb.HELLO, *fields))
            assert bare.error() == code, fields
        bare.send(Verb.STATUS, 1, {}, session=bytes(16), incarnation=0)
        assert bare.error() == "no-session"
        bare.hello()
        bare.alive()


def test_incarnations_that_do_not_fit(bare):
    for incarnation in (2, 2**31, 2**32, MAX_UINT):
        bare.send(Verb.STATUS, 1, {}, incarnation=incarnation)
        assert bare.error() == "bad-incarnation"
        bare.send(Verb.PUBLISH, 1, 1, 1, "", 0, records=record(), incarnation=incarnation)
        assert bare.error() == "bad-incarnation"
    bare.send(Verb.STATUS, 1, {}, incarnation=0)
    assert bare.error() == "stale"
    for incarnation in (0, 1):
        bare.send(Verb.HELLO, 1, "/", "", 0, {}, incarnation=incarnation)
        assert bare.error() == "stale"
    for incarnation in (2**31, 2**32, MAX_UINT):
        bare.send(Verb.HELLO, 1, "/", "", 0, {}, incarnation=incarnation)
        assert bare.error() == "bad-incarnation"
    bare.alive()
    bare.hello(bare.session, 2**31 - 1)
    bare.alive()


def test_nobody_acts_for_another_session(broker, bare):
    with Bare(broker) as victim:
        victim.ok(Verb.DECLARE_QUEUE, "victims", {"exclusive": True})
        victim.publish(record("victims"))
        victim.outcome()
        forged = victim.session[:8] + bare.session[8:]
        wrong = victim.session[:15] + bytes([victim.session[15] ^ 1])
        for session in (victim.session, forged, wrong, os.urandom(16)):
            for verb, *fields in (
                (Verb.BYE,), (Verb.GET, 1, "victims"), (Verb.SETTLE, [[0, 1, 9, [], []]]), (Verb.DELETE_QUEUE, 1, "victims", {}),
            ):
                bare.send(verb, *fields, session=session, incarnation=victim.incarnation)
                assert bare.error() == "no-session"
            bare.send(Verb.PUBLISH, 1, 2, 1, "", 0, records=record("victims"), session=session, incarnation=victim.incarnation)
            assert bare.error() == "no-session"
        for session in (forged, wrong):
            bare.send(Verb.HELLO, 1, "/", "", 0, {}, session=session, incarnation=50)
            assert bare.error() == "no-session"
        assert bare.refused(Verb.GET, "victims") == "resource-locked"
        bare.alive()
        victim.alive()
        assert victim.ok(Verb.DECLARE_QUEUE, "victims", {"passive": True})["message_count"] == 1


@pytest.mark.parametrize("identity", [b"same", b"\0same", b"x" * 255])
def test_routing_id_of_another_client_brings_nothing(broker, watch, identity):
    """A connection is known by what it is, not by what its peer calls itself."""
    with Bare(broker, identity=identity) as victim, Bare(broker, identity=identity) as thief:
        thief.send(Verb.STATUS, 1, {}, session=victim.session, incarnation=1)
        assert thief.error() == "no-session"
        thief.alive()
        victim.alive()


def test_routing_ids_by_the_thousand_are_nobodys(broker, watch):
    """What libzmq's ROUTER would give to others: a zero byte and four more."""
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(Wire(command_port(broker))) for _ in range(2000)]
        for n, wire in enumerate(wires):
            wire.send(GREETING + ready(identity=struct.pack(">BI", 0, n * 2**21)))
        for n in range(20):
            with Bare(broker, identity=struct.pack(">BI", 0, n * 2**21)) as bare:
                bare.alive()


def test_sessions_by_the_thousand_are_forgotten_or_refused(broker, watch):
    """One connection that says HELLO again and again: each begins a session and ends the one before."""
    growth = Growth(watch)
    with Bare(broker) as bare:
        for _ in range(5000):
            bare.send(Verb.HELLO, 1, "/", "", 0, {}, session=b"", incarnation=0)
        answers = bare.drain(500)               # a session that has ended already gets no WELCOME any more
        assert {answer[0] for answer in answers} == {Verb.WELCOME}
        bare.session, bare.incarnation = answers[-1][3], 1
        bare.alive()
        watch.check()
    growth.stays_below(30 * MB)


@pytest.mark.parametrize("limit", ["sessions_max", "connection_sessions_max"])
def test_refusing_sessions_beyond_the_limit_costs_little(limit):
    """Sessions that were left behind and own queues are kept for a while: each HELLO beyond them must not look through all of them."""
    count = 1500
    settings = {"connection_sessions_max": 2 * count, limit: count}
    with fastmq.Broker(workers=1, **settings) as broker, Bare(broker) as bare:
        began = time.monotonic()
        for _ in range(count - 1):
            bare.ok(Verb.DECLARE_QUEUE, "", {"exclusive": True})
            bare.hello()
        bare.ok(Verb.DECLARE_QUEUE, "", {"exclusive": True})
        filled = time.monotonic() - began
        began = time.monotonic()
        for _ in range(count):
            bare.send(Verb.HELLO, 1, "/", "", 0, {}, session=b"", incarnation=0)
        assert {bare.error() for _ in range(count)} == {"limit"}
        assert time.monotonic() - began < filled
        bare.alive()
        bare.send(Verb.BYE)

        def comes_and_goes():
            with Bare(broker, hello=False) as other:
                other.hello()
            return True

        for _ in range(5):                                              # one that has gone and owned nothing makes room
            wait_until(comes_and_goes)


# ---- publishes

def test_impossible_publishes_are_refused(bare):
    bare.publish(record("watch-not"), first=10)
    bare.outcome()
    for fields in (
        (1, 10, 1, "", 0), (1, 9, 1, "", 0), (0, 11, 1, "", 0), (12, 11, 1, "", 0), (11, 11, 0, "", 0), (11, 11, 65536, "", 0),
        (11, 11, 1, "", 2), (11, 11, 1, "", 2**32),
        (11, 2**62 + 1, 1, "", 0), (11, MAX_UINT, 1, "", 0), (11, 11, MAX_UINT, "", 0), (MAX_UINT, MAX_UINT, 1, "", 0),
        (11, 11, -1, "", 0), (11, 11, 1, None, 0), (11, 11, 1, b"", 0), (11, 11, 1, LONG_NAME, 0), (11, 11, 1, "", 0, 0), (11, 11, 1, ""),
    ):
        bare.send(Verb.PUBLISH, *fields, records=record())
        assert bare.error() == "bad-request", fields
    bare.alive()


def test_sequences_may_jump_forward_and_floors_too(bare):
    bare.ok(Verb.DECLARE_QUEUE, "jumps", {})
    for first, floor in ((1, 1), (1000, 1), (2**40, 2**40), (2**62 - 1, 2**62 - 1)):
        bare.publish(record("jumps"), first=first, floor=floor)
        up_to, ranges, refused = bare.outcome()
        assert not refused and (up_to >= first or [first, first] in ranges)
    assert bare.ok(Verb.DELETE_QUEUE, "jumps", {}) == 4


RECORDS = {
    "nothing": b"",
    "too few": record(),
    "too many": record() * 3,
    "cut": record() + record()[:-1],
    "not an array": msgpack.packb("x") * 2,
    "array of 2^32": b"\xdd\xff\xff\xff\xff" + record(),
    "body of 2^32": b"\x93\xa1q\xc0\xc6\xff\xff\xff\xff" * 2,
    "body is a str": msgpack.packb(["q", None, "x"]) * 2,
    "key is a bin": msgpack.packb([b"q", None, b"x"]) * 2,
    "key is nil": msgpack.packb([None, None, b"x"]) * 2,
    "properties an array": msgpack.packb(["q", [], b"x"]) * 2,
    "properties nested": (b"\x93\xa1q" + b"\x81\xa1a" * 100 + b"\xc0\xc4\x01x") * 2,
    "properties of 2^32": (b"\x93\xa1q\xdf\xff\xff\xff\xff\xc4\x01x") * 2,
    "ext": (b"\x93\xa1q\x81\xa1a\xd4\x01\x01\xc4\x01x") * 2,
    "random": bytes(range(200)),
}


@pytest.mark.parametrize("records", RECORDS.values(), ids=RECORDS)
def test_records_that_cannot_be_read_are_refused_all(bare, records):
    bare.ok(Verb.DECLARE_QUEUE, "q", {})
    bare.publish(records, count=2)
    assert bare.outcome()[2] == [(1, 2, "bad-request")]
    bare.publish(record("q"))
    assert bare.outcome()[0] == 3
    assert bare.ok(Verb.DELETE_QUEUE, "q", {}) == 1


def test_each_record_has_its_own_fate(bare):
    bare.ok(Verb.DECLARE_QUEUE, "fate", {})
    bare.publish(
        record("fate"), record("x" * 256), record("fate", properties={"headers": {"x": bytes(Limit.PROPERTIES_SIZE_MAX)}}),
        b"\x93\xa2\xff\xff\xc0\xc4\x01x", record("nobody"), record("fate", properties={"a": 1}),
        b"\x93\xa4fate\x82\xa1a\x01\xa1a\x02\xc4\x01x",
    )  # fmt: skip
    refused = {}
    while bare.socket.poll(200):
        for first, last, code in bare.outcome()[2]:
            refused.update(dict.fromkeys(range(first, last + 1), code))
    assert refused.pop(7, "bad-request") == "bad-request"       # a key twice: the broker passes over properties, its readers refuse
    assert refused == {2: "too-large", 3: "too-large", 4: "bad-request", 5: "no-queue"}
    bare.ok(Verb.DELETE_QUEUE, "fate", {})


def test_exchange_that_does_not_exist(bare):
    bare.publish(record(), record(), exchange="nowhere")
    assert bare.outcome()[2] == [(1, 2, "no-exchange")]


def test_publishes_over_the_window_are_refused_and_not_kept(broker, watch, bare):
    growth = Growth(watch)
    bare.ok(Verb.DECLARE_QUEUE, "window", {})
    window = bare.window[0]
    refused = 0
    for _ in range(40):                                         # ten times the window, in frames that are legal each
        bare.publish(*[record("window", b"")] * (window // 4))
    for answer in bare.drain(300):
        assert answer[0] == Verb.CONFIRM
        assert {code for _, _, code, _ in answer[5]} <= {"over-window"}
        refused += sum(last - first + 1 for first, last, *_ in answer[5])
    bare.publish(record("window", bytes(bare.window[1] // 2)), record("window", bytes(bare.window[1] // 2)), record("window"))
    bare.drain(300)
    held = bare.ok(Verb.DELETE_QUEUE, "window", {})
    assert held + refused >= 10 * window
    watch.check()
    growth.stays_below(60 * MB, timeout=3)


def test_message_beyond_the_size_is_refused(bare, watch):
    bare.ok(Verb.DECLARE_QUEUE, "size", {})
    bare.publish(record("size", bytes(Limit.MESSAGE_SIZE_MAX)))
    assert bare.outcome()[2] == [(1, 1, "too-large")]
    bare.alive()
    bare.ok(Verb.DELETE_QUEUE, "size", {})


# ---- settling

def test_settles_of_others_tags_and_impossible_ranges_do_nothing(broker, bare):
    with Bare(broker) as victim:
        victim.ok(Verb.DECLARE_QUEUE, "settle", {})
        victim.publish(*[record("settle")] * 3)
        victim.outcome()
        _, shard, epoch, n, *_ = victim.ok(Verb.GET, "settle")
        top = MAX_UINT
        for settlements in (
            [[shard, epoch, n, [], []]], [[shard, epoch, top, [], []]], [[shard, epoch, 0, [[0, top]], []]],
            [[shard, epoch, 0, [[1, 2**63]], []]],
            [[shard, epoch, 0, [], [[0, top, 1], [0, top, 2], [0, top, 3]]]], [[shard, epoch, 0, [[top, top]] * 1000, []]],
            [[s, epoch, top, [[1, top]], []] for s in range(64)], [[shard, 0, top, [], []]], [[shard, top, top, [[n, n]], []]],
        ):
            bare.send(Verb.SETTLE, settlements)
            bare.alive()
        for settlements in (
            None, 1, {}, [1], [[]], [[shard, epoch, 0, []]], [[64, epoch, 0, [], []]], [[2**32, epoch, 0, [], []]], [[-1, epoch, 0, [], []]],
            [[shard, epoch, 0, [[2, 1]], []]], [[shard, epoch, 0, [[1]], []]], [[shard, epoch, 0, [], [[1, 1, 0]]]],
            [[shard, epoch, 0, [], [[1, 1, 4]]]], [[shard, epoch, 0, [], [[1, 1, 2**32 + 1]]]], [[shard, epoch, 0, [[1, 1.0]], []]],
            [[shard, epoch, 0, [[1, -1]], []]], [[shard, epoch, None, [], []]],
        ):
            bare.send(Verb.SETTLE, settlements)
            assert bare.error() == "bad-request", settlements
        bare.send(Verb.SETTLE, [[shard, epoch, 0, [[n, n]] * (Limit.SETTLE_RANGES_MAX + 1), []]])
        assert bare.error() == "too-large"
        assert (row := row_of(victim, "settle"))["messages_unacknowledged"] == 1 and row["messages_ready"] == 2
        victim.send(Verb.SETTLE, [[shard, epoch, 2**63, [[n, n]] * (Limit.SETTLE_RANGES_MAX - 1), []]])
        assert victim.ok(Verb.DELETE_QUEUE, "settle", {}) == 2


# ---- hypothesis, over the live broker

VALID = [
    [Verb.HELLO, "S", 2, 1, "/", "me", 5, {"wish": [1, {"a": None}]}], [Verb.PUBLISH, "S", 1, 1, 1, 2, "amq.topic", 1],
    [Verb.SETTLE, "S", 1, [[0, 10, 5, [[1, 2], [4, 4]], [[7, 9, 1]]], [3, 10, 0, [], []]]],
    [Verb.CONSUME, "S", 1, 5, 1, "q", 10, 100, {"exclusive": False}], [Verb.CANCEL, "S", 1, 6, 1], [Verb.GET, "S", 1, 7, "q"],
    [Verb.DECLARE_EXCHANGE, "S", 1, 8, "logs", "topic", {"durable": True}], [Verb.DELETE_EXCHANGE, "S", 1, 9, "logs", {}],
    [Verb.DECLARE_QUEUE, "S", 1, 10, "jobs", {"auto_delete": True}], [Verb.DELETE_QUEUE, "S", 1, 11, "jobs", {}],
    [Verb.PURGE_QUEUE, "S", 1, 12, "q"], [Verb.BIND, "S", 1, 13, "queue", "q", "amq.topic", "a.#", {}],
    [Verb.UNBIND, "S", 1, 14, "exchange", "logs", "amq.topic", "", {}], [Verb.SUBSCRIBE, "S", 1, 15, "amq.topic", "t", "a.*"],
    [Verb.UNSUBSCRIBE, "S", 1, 16, "amq.topic", "e", "a.b"], [Verb.STATUS, "S", 1, 17, {}],
]  # fmt: skip
BATCH = record("a.b", b"body", {"headers": {"k": [1, 2]}}) + record("", b"")
ODD_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.integers(2**31, MAX_UINT) | st.floats() | st.text(max_size=300)
    | st.binary(max_size=20) | st.sampled_from(["q", "", "amq.topic", "queue", "t", "e", "\0", "x" * 256]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=8,
)  # fmt: skip


@st.composite
def bad_header(draw):
    """Random bytes, a valid request with bytes changed, or one with fields of other types; S stands for the session."""
    kind = draw(st.integers(0, 2))
    if kind == 0:
        return draw(st.binary(max_size=200))
    request = list(draw(st.sampled_from(VALID)))
    if kind == 1:
        request[draw(st.integers(2, len(request) - 1))] = draw(ODD_VALUES)
        return packed(*request)
    data = bytearray(packed(*request))
    at = draw(st.integers(0, len(data)))
    data[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(data)


class Sink:
    """One attacker that lives through all examples: its session is begun again when an example has ended or changed it."""

    def __init__(self, broker):
        self.bare = Bare(broker)
        self.examples = 0

    def attack(self, requests):
        self.examples += 1
        for header, *rest in requests:
            self.bare.raw(header.replace(b"\xa1S", b"\xc4\x10" + self.bare.session), *rest)
        self.bare.send(Verb.HELLO, 2, "/", "", 0, {}, session=b"", incarnation=0)       # its answer is the last
        answers = []
        while not answers or not (answers[-1][0] == Verb.ERROR and answers[-1][4] == "version"):
            answers.append(self.bare.receive())
        return answers

    def begin_again(self):
        """Another session; what a worker still answers to the old one may come before its WELCOME."""
        self.bare.send(Verb.HELLO, 1, "/", "", 0, {}, session=b"", incarnation=0)
        while (answer := self.bare.receive())[0] != Verb.WELCOME:
            pass
        self.bare.session, self.bare.incarnation = answer[3], answer[2]


@pytest.fixture(scope="module")
def sink(broker, watch):
    sink = Sink(broker)
    yield sink
    sink.bare.close()


@settings(max_examples=EXAMPLES)
@given(st.lists(st.tuples(bad_header()) | st.tuples(bad_header(), st.binary(max_size=60) | st.just(BATCH)), min_size=1, max_size=4))
def test_bad_headers_and_records_through_a_dealer(sink, requests):
    for answer in sink.attack(requests):
        assert answer[0] in (Verb.WELCOME, Verb.CONFIRM, Verb.REPLY, Verb.ERROR, Verb.DELIVER, Verb.CANCELLED), answer
        if answer[0] == Verb.ERROR:
            assert answer[4] in CODES and answer[5], answer
        if answer[0] == Verb.CONFIRM:
            assert all(code in CODES for _, _, code, _ in answer[5]), answer
    if sink.examples % 50 == 0:
        sink.begin_again()
