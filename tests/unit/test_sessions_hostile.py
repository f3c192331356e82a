"""Sessions: whatever bytes a client sends, it is answered with a known code or not at all, and the broker and other sessions go on."""

import os

import msgpack
import pytest
from front_desk import Desk, Peer, record
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmq.errors import CODE_OF_NUMBER
from fastmq.wire.verbs import Verb

EXAMPLES = int(os.environ.get("FASTMQ_EXAMPLES", "2000"))
CODES = set(CODE_OF_NUMBER.values())

# One valid request of each verb; {s} stands for the session.
VALID = [
    [Verb.HELLO, b"", 0, 1, "/", "me", 5, {}],
    [Verb.HELLO, "{s}", 99, 1, "/", "me", 5, {"wish": [1, {"a": None}]}],
    [Verb.PUBLISH, "{s}", 1, 1, 1, 2, "amq.topic", 1],
    [Verb.SETTLE, "{s}", 1, [[0, 10, 5, [[1, 2], [4, 4]], [[7, 9, 1]]], [3, 10, 0, [], []]]],
    [Verb.CONSUME, "{s}", 1, 5, 1, "q", 10, 100, {"exclusive": False}],
    [Verb.CANCEL, "{s}", 1, 6, 1],
    [Verb.GET, "{s}", 1, 7, "q"],
    [Verb.DECLARE_EXCHANGE, "{s}", 1, 8, "logs", "topic", {"durable": True}],
    [Verb.DELETE_EXCHANGE, "{s}", 1, 9, "logs", {}],
    [Verb.DECLARE_QUEUE, "{s}", 1, 10, "jobs", {"exclusive": True, "auto_delete": True}],
    [Verb.DELETE_QUEUE, "{s}", 1, 11, "jobs", {}],
    [Verb.PURGE_QUEUE, "{s}", 1, 12, "q"],
    [Verb.BIND, "{s}", 1, 13, "queue", "q", "amq.topic", "a.#", {}],
    [Verb.UNBIND, "{s}", 1, 14, "exchange", "logs", "amq.topic", "", {}],
    [Verb.SUBSCRIBE, "{s}", 1, 15, "amq.topic", "t", "a.*"],
    [Verb.UNSUBSCRIBE, "{s}", 1, 16, "amq.topic", "e", "a.b"],
    [Verb.STATUS, "{s}", 1, 17, {}],
    [Verb.BYE, "{s}", 1],
]
RECORDS = record("a.b", b"body", {"headers": {"k": [1, 2]}}) + record("", b"")


class Stage:
    """A desk with a victim whose session must live through everything, and an attacker."""

    def __init__(self):
        self.desk = Desk(workers=2, shards=8)
        self.victim = self.desk.peer(20)
        self.queue = self.desk.queue_on(0, self.victim)
        self.victim.ok(Verb.DECLARE_QUEUE, "q", {})
        self.victim.ok(Verb.DECLARE_EXCHANGE, "unbound", "topic", {})      # a name that no attack makes up: others bind to amq.topic
        self.fd = 100

    def attack(self, requests):
        """Send (header, records or None) over a connection with a session; what was answered."""
        self.fd += 1
        attacker = Peer(self.desk, self.fd)
        attacker.hello()
        for header, records in requests:
            header = header.replace(b"\xa3{s}", b"\xc4\x10" + attacker.session)
            self.desk.sessions.receive(*attacker.address, header, records)
        answers = []
        for _ in range(4):
            answers += attacker.take()
        self.desk.clear()
        self.desk.sessions.connection_lost(*attacker.address)
        self.desk.frames.pop(attacker.address, None)
        return answers

    def check(self, answers):
        for answer in answers:
            assert answer[0] in (Verb.WELCOME, Verb.CONFIRM, Verb.REPLY, Verb.ERROR), answer
            if answer[0] == Verb.ERROR:
                assert answer[4] in CODES
                assert answer[4] != "internal", answer
                assert answer[5]
            if answer[0] == Verb.CONFIRM:
                assert all(code in CODES - {"internal"} for _, _, code, _ in answer[5])

    def victim_lives(self):
        self.victim.publish(record(self.queue))
        assert self.victim.take() == []
        assert len(self.desk.published(0)) == 1
        self.desk.outcome(0, self.victim.sid, [(self.victim.sequence, self.victim.sequence)])
        assert [frame[0] for frame in self.victim.take()] == [Verb.CONFIRM]
        assert not self.desk.sessions.out_of_memory


@pytest.fixture(scope="module")
def stage():
    return Stage()


def packed(request):
    return msgpack.packb([int(request[0]), *request[1:]])


@settings(max_examples=EXAMPLES)
@given(st.binary(max_size=200), st.none() | st.binary(max_size=100))
def test_random_bytes(stage, header, records):
    answers = stage.attack([(header, records)])
    stage.check(answers)
    assert len(answers) == 1, "each is answered"


@st.composite
def mutated(draw):
    """A valid request in which some bytes were changed, inserted or removed."""
    data = bytearray(packed(draw(st.sampled_from(VALID))))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        what = draw(st.integers(0, 2))
        if what == 0 and at < len(data):
            data[at] = draw(st.integers(0, 255))
        elif what == 1:
            data[at:at] = draw(st.binary(max_size=3))
        else:
            del data[at : at + draw(st.integers(1, 4))]
    return bytes(data)


@settings(max_examples=EXAMPLES)
@given(st.lists(st.tuples(mutated(), st.none() | st.just(RECORDS)), min_size=1, max_size=4))
def test_mutated_requests(stage, requests):
    stage.check(stage.attack(requests))
    if stage.fd % 50 == 0:
        stage.victim_lives()


values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.integers(2**31, 2**64 - 1) | st.floats() | st.text(max_size=300)
    | st.binary(max_size=20)
    | st.sampled_from(["q", "", "amq.topic", "queue", "t", "e", "\0", "x" * 256]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=EXAMPLES)
@given(st.sampled_from(VALID), st.data(), st.none() | st.just(RECORDS))
def test_fields_of_other_types(stage, request_, data, records):
    fields = list(request_)
    for at in data.draw(st.lists(st.integers(2, len(fields) - 1), min_size=1, max_size=3)):
        fields[at] = data.draw(values)
    stage.check(stage.attack([(packed(fields), records)]))


@settings(max_examples=EXAMPLES)
@given(st.lists(st.binary(max_size=60) | st.just(RECORDS), max_size=3), st.integers(0, 4))
def test_random_records_are_decided_or_refused(stage, parts, count):
    data = b"".join(parts)
    answers = stage.attack([(packed([Verb.PUBLISH, "{s}", 1, 1, 1, count, "unbound", 0]), data)])
    stage.check(answers)
    decided = [item for answer in answers if answer[0] == Verb.CONFIRM for item in (*answer[5], *answer[4])]
    if count:
        assert decided or answers[0][3] == count, "all is unroutable, and so confirmed, or refused"


@pytest.mark.parametrize("request_", VALID, ids=lambda request: Verb(request[0]).name)
def test_truncated_requests(stage, request_):
    whole = packed(request_)
    for size in range(len(whole)):
        header = whole[:size]
        answers = stage.attack([(header, RECORDS if request_[0] == Verb.PUBLISH else None)])
        stage.check(answers)
        assert [answer[0] for answer in answers] == [Verb.ERROR], f"cut at {size}"
    stage.check(stage.attack([(whole, RECORDS if request_[0] == Verb.PUBLISH else None)]))
    stage.victim_lives()


def test_truncated_records(stage):
    for size in range(len(RECORDS)):
        answers = stage.attack([(packed([Verb.PUBLISH, "{s}", 1, 1, 1, 2, "amq.topic", 0]), RECORDS[:size])])
        assert [(answer[0], answer[5][0][:3]) for answer in answers] == [(Verb.CONFIRM, [1, 2, "bad-request"])]
    stage.victim_lives()


@pytest.mark.parametrize(
    "header",
    [
        b"\x91" * 500_000,                                                  # nested
        b"\xdd\xff\xff\xff\xff",                                            # an array of four billion
        b"\xdf\xff\xff\xff\xff",
        b"\x95\x10\xc4\x10" + b"{S}" + b"\x01\x01\xdf\x7f\xff\xff\xff",     # options of two billion keys
        b"\x95\x10\xc4\x10" + b"{S}" + b"\x01\x01\x82\xa1a\x01\xa1a\x02",   # a key twice
        b"\x95\x10\xc4\x10" + b"{S}" + b"\x01\x01\xc7\xff\x05" + bytes(255),    # ext
        b"\x96\x09\xc4\x10" + b"{S}" + b"\x01\x01\xdb\xff\xff\xff\xff\x80",
        bytes(2_000_000),
        b"",
    ],
    ids=["nested", "long array", "long map", "long options", "duplicate key", "ext", "long name", "large", "empty"],
)  # fmt: skip
def test_hostile_headers(stage, header):
    stage.fd += 1
    attacker = Peer(stage.desk, stage.fd)
    attacker.hello()
    stage.desk.sessions.receive(*attacker.address, header.replace(b"{S}", attacker.session))
    answer, = attacker.take()
    assert (answer[0], answer[4]) in ((Verb.ERROR, "bad-request"), (Verb.ERROR, "too-large"))
    stage.victim_lives()


def test_nobody_can_act_for_another_session(stage):
    attacker = stage.desk.peer(stage.fd + 5000)
    for session in (stage.victim.session, stage.victim.session[:8] + attacker.session[8:]):
        for verb, *fields in ((Verb.BYE,), (Verb.GET, 1, "q"), (Verb.SETTLE, [[0, 10, 99, [], []]])):
            attacker.send(verb, *fields, session=session, incarnation=stage.victim.incarnation)
    assert [answer[4] for answer in attacker.take()] == ["no-session"] * 6
    stage.victim_lives()
