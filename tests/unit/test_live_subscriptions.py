"""Live subscriptions: the patterns that are active, their events, and who subscribes to what."""

import msgpack
import pytest
from front_desk import Desk, record
from hypothesis import given
from hypothesis import strategies as st

from fastmq.net.ring import Link
from fastmq.server.events import Subscriptions
from fastmq.server.live import EventKind, LivePatterns, make_subscription, split_subscription
from fastmq.wire.verbs import Verb


def subscription(kind="t", pattern="a.*", exchange="amq.topic"):
    return make_subscription("/", exchange, kind, pattern)


def events(end):
    """[(subscription, [epoch, n, count], records)...] that the XPUB thread is to send."""
    found = []
    while (message := end.receive_message()) is not None:
        kind, _, payload = message
        assert kind == EventKind.E_EVENT
        sizes = [int.from_bytes(payload[:4], "little"), int.from_bytes(payload[4:8], "little"), int.from_bytes(payload[8:16], "little")]
        rest = payload[16:]
        assert len(rest) == sum(sizes)
        header = msgpack.unpackb(rest[sizes[0] : sizes[0] + sizes[1]])
        found.append((rest[: sizes[0]], header, rest[sizes[0] + sizes[1] :]))
    return found


@pytest.mark.parametrize(
    ("data", "good"),
    [
        (b"/\0logs\0t\0*.error\0", True),
        (b"/\0\0e\0key\0", True),
        (b"/\0logs\0e\0\0", True),
        (b"/\0logs\0g\0key\0", False),
        (b"/\0logs\0t\0key", False),
        (b"/\0logs\0t\0key\0more", False),
        (b"/\0logs\0t\0", False),
        (b"\0logs\0t\0key\0", False),
        (b"", False),
        (b"/\0logs\0t\0" + b"k" * 255 + b"\0", True),
        (b"/\0logs\0t\0" + b"k" * 256 + b"\0", False),
        (b"/\0" + b"e" * 256 + b"\0t\0k\0", False),
        (b"/\0logs\0t\0\xff\0", False),
    ],
)
def test_only_well_formed_subscriptions_are_accepted(data, good):
    assert (split_subscription(data) is not None) == good
    assert Subscriptions(10).add(5, data) == good


@given(st.binary(max_size=40))
def test_any_bytes_may_be_subscribed_to(data):
    Subscriptions(10).add(5, data)


def test_record_goes_once_to_each_distinct_pattern_that_matches():
    desk = Desk()
    peer = desk.peer()
    for pattern in (subscription(), subscription("t", "a.#"), subscription("e", "a.b"), subscription("e", "a.b", "other")):
        desk.sessions.from_events(EventKind.E_ACTIVE, pattern)
    assert [(name, header) for name, header, _ in events(desk.events)] == [
        (subscription(), [3, 1, 0]), (subscription("t", "a.#"), [3, 1, 0]), (subscription("e", "a.b"), [3, 1, 0]),
        (subscription("e", "a.b", "other"), [3, 1, 0]),
    ]  # fmt: skip
    ab, ac, b = record("a.b", b"1"), record("a.c", b"2"), record("b", b"3")
    peer.publish(ab, ab, ac, b, ab, exchange="amq.topic")
    desk.turn()
    assert {name: (header, data) for name, header, data in events(desk.events)} == {
        subscription(): ([3, 1, 4], ab + ab + ac + ab),
        subscription("t", "a.#"): ([3, 1, 4], ab + ab + ac + ab),
        subscription("e", "a.b"): ([3, 1, 3], ab + ab + ab),
    }
    assert desk.sessions.counters()["events_sent"] == 11


def test_what_is_refused_is_no_event():
    desk = Desk()
    peer = desk.peer()
    queue = desk.queue_on(0, peer)
    for key in (queue, "nothing"):
        desk.sessions.from_events(EventKind.E_ACTIVE, subscription("e", key, ""))
    desk.sessions.from_events(EventKind.E_ACTIVE, subscription("t", "#"))
    events(desk.events)
    peer.publish(record(queue), record("nothing"))
    peer.publish(record("x"), exchange="amq.topic", mandatory=True)
    desk.turn()
    assert [(name, header) for name, header, _ in events(desk.events)] == [(subscription("e", queue, ""), [3, 1, 1])]


def test_what_is_sent_again_is_no_new_event():
    desk = Desk()
    peer = desk.peer()
    desk.sessions.from_events(EventKind.E_ACTIVE, subscription("t", "#"))
    events(desk.events)
    records = [record("a", b"%d" % i) for i in range(5)]
    peer.publish(*records[:3], exchange="amq.topic")
    peer.hello()
    peer.publish(*records, exchange="amq.topic", first=1)
    desk.turn()
    assert [(header, data) for _, header, data in events(desk.events)] == [
        ([3, 1, 3], b"".join(records[:3])), ([3, 4, 2], b"".join(records[3:])),
    ]  # fmt: skip


def test_events_are_cut_at_64_kib_and_never_within_a_record():
    desk = Desk()
    peer = desk.peer()
    desk.sessions.from_events(EventKind.E_ACTIVE, subscription("t", "#"))
    events(desk.events)
    records = [record("a", bytes(size)) for size in (30_000, 30_000, 30_000, 1, 100_000, 1, 65_000)]
    peer.publish(*records, exchange="amq.topic")
    found = []
    for _ in range(12):
        desk.turn()
        found += events(desk.events)
    assert [header for _, header, _ in found] == [[3, 1, 2], [3, 3, 2], [3, 5, 1], [3, 6, 2]]
    assert b"".join(data for _, _, data in found) == b"".join(records)


def test_pattern_that_nobody_has_any_more_costs_nothing_and_counts_on():
    desk = Desk()
    peer = desk.peer()
    desk.sessions.from_events(EventKind.E_ACTIVE, subscription())
    peer.publish(record("a.b"), exchange="amq.topic")
    desk.turn()
    desk.sessions.from_events(EventKind.E_UNUSED, subscription())
    events(desk.events)
    peer.publish(record("a.b"), exchange="amq.topic")
    desk.turn()
    assert events(desk.events) == []
    assert desk.sessions.counters()["live_patterns"] == 0
    desk.sessions.from_events(EventKind.E_ACTIVE, subscription())
    assert [header for _, header, _ in events(desk.events)] == [[3, 2, 0]]


def test_events_that_cannot_be_taken_are_dropped_and_counted():
    main, end = Link.pair(1024)
    live = LivePatterns(4, 10, main, 2000)
    live.activate(subscription())
    data = record("a.b", bytes(500))
    number, = live.match(b"/", b"amq.topic", b"a.b")
    for _ in range(20):
        live.batch(data, [len(data)], [(number, 0, 1, 0, len(data))])
    assert 0 < live.events_dropped < 20
    assert live.events_sent + live.events_dropped == 20
    while events(end) or main.waiting_bytes:
        main.flush_waiting()
    live.batch(data, [len(data)], [(number, 0, 1, 0, len(data))])
    found = events(end)
    while not found:                                    # it is larger than a piece
        main.flush_waiting()
        found = events(end)
    assert found[0][1] == [4, 21, 1], "n goes on, so subscribers see the gap"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        (("nothing", "t", "x"), "no-exchange"),
        (("amq.topic", "g", "x"), "bad-request"),
        (("amq.topic", "t", "x" * 256), "too-large"),
        (("amq.topic", "t", "a\0b"), "bad-request"),
        (("amq.topic", "t"), "bad-request"),
        (("amq.topic", "t", "two"), "limit"),
        (("amq.topic", "t", "one"), None),
        (("", "e", "queue"), "limit"),
    ],
)
def test_subscribe_says_why_not(fields, code):
    desk = Desk(settings={"patterns_max": 1})
    peer = desk.peer()
    desk.sessions.from_events(EventKind.E_ACTIVE, subscription("t", "one"))
    if code:
        assert peer.refused(Verb.SUBSCRIBE, *fields) == code
    else:
        assert peer.ok(Verb.SUBSCRIBE, *fields) is None
        assert peer.ok(Verb.UNSUBSCRIBE, *fields) is None


# ---- who subscribes to what

def test_connection_counts_once_for_a_pattern_and_only_for_its_own():
    names = [subscription("t", str(i)) for i in range(3)]
    table = Subscriptions(2)
    assert table.add(5, names[0])
    assert not table.add(5, names[0])
    assert table.add(6, names[0])
    assert table.add(5, names[1])
    assert not table.add(7, names[2]), "patterns_max"
    assert table.add(7, names[0])
    assert not table.remove(8, names[0]), "it never subscribed to that"
    assert not table.remove(5, names[0])
    assert not table.remove(6, names[0])
    assert table.remove(7, names[0])
    assert table.lost(5) == [names[1]]
    assert table.lost(5) == []
    assert len(table) == 0
    assert table.refused == 1
