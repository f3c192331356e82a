"""Sessions: publishes on their way to the workers, and their outcomes."""

import random

import pytest
from front_desk import Desk, Peer, record

from fastmq.wire.link import LinkKind
from fastmq.wire.verbs import Code, Verb

CONFIRM = Verb.CONFIRM


def confirms(peer):
    """[(up_to, ranges, exceptions without their texts, window, window in bytes)...]"""
    found = []
    for frame in peer.take():
        assert frame[0] == CONFIRM, frame
        assert all(text for *_, text in frame[5])
        found.append((frame[3], frame[4], [item[:3] for item in frame[5]], *frame[6:]))
    return found


def test_batch_for_one_queue_is_forwarded_as_it_came():
    desk = Desk()
    peer = desk.peer()
    queue = desk.queue_on(1, peer)
    records = [record(queue, b"%d" % i, {"headers": {"k": i}}) for i in range(5)]
    peer.publish(*records)
    assert peer.take() == []
    sid, floor, exchange, entries = desk.published(1)[0]
    assert (sid, floor, exchange) == (peer.sid, 1, "")
    (first, queue_id, count, shard, data), = entries
    assert (first, count, data) == (1, 5, b"".join(records))
    assert queue_id == desk.queue_id(queue)
    assert desk.map[shard] == 1
    assert desk.published(0) == []


def test_batch_for_many_queues_is_one_message_for_each_worker():
    desk = Desk(workers=3, shards=24)
    peer = desk.peer()
    rnd = random.Random(5)
    names = [peer.ok(Verb.DECLARE_QUEUE, f"many{i}", {})["name"] for i in range(40)]
    desk.clear()
    keys = [rnd.choice(names) for _ in range(300)]
    records = [record(key, b"%d" % i * rnd.randint(1, 30)) for i, key in enumerate(keys)]
    peer.publish(*records)
    desk.turn()
    topology = desk.sessions.requests.view.topology
    seen = {}
    for worker in range(3):
        (_, _, _, entries), = desk.published(worker)
        for first, queue, count, shard, data in entries:
            assert desk.map[shard] == worker
            assert topology.queues[queue].shard == shard
            assert data == b"".join(records[first - 1 : first - 1 + count])
            for seq in range(first, first + count):
                assert topology.queues[queue].name == keys[seq - 1]
                seen[seq] = seen.get(seq, 0) + 1
    assert seen == dict.fromkeys(range(1, 301), 1)


def test_fan_out_is_confirmed_when_each_worker_has_it():
    desk = Desk()
    peer = desk.peer()
    here, there, also = desk.queue_on(0, peer, "here"), desk.queue_on(1, peer, "there"), desk.queue_on(1, peer, "also")
    for queue in (here, there, also):
        peer.ok(Verb.BIND, "queue", queue, "amq.fanout", "", {})
    desk.clear()
    peer.publish(record("x"), record("x"), exchange="amq.fanout")
    desk.turn()
    (_, _, exchange, entries), = desk.published(0)
    assert exchange == "amq.fanout"
    assert [(entry[0], entry[2]) for entry in entries] == [(1, 2)]
    (_, _, _, entries), = desk.published(1)
    assert {entry[1] for entry in entries} == {desk.queue_id(there), desk.queue_id(also)}
    assert {entry[4] for entry in entries} == {record("x") * 2}, "the records stand in it once"
    desk.outcome(0, peer.sid, [(1, 2)])
    assert confirms(peer) == []
    desk.outcome(1, peer.sid, [(1, 1)], [(2, 2, Code.LIMIT)])
    assert confirms(peer) == [(2, [], [[2, 2, "limit"]], 16386, 16 * 2**20 + 2 * len(record("x")))]


def test_outcomes_of_a_turn_are_one_confirm():
    desk = Desk()
    peer = desk.peer()
    queue = desk.queue_on(0, peer)
    for _ in range(10):
        peer.publish(record(queue), record(queue))
    desk.turn()
    assert len(desk.published(0)) == 10
    for first in range(1, 20, 2):
        desk.outcome(0, peer.sid, [(first, first + 1)])
    assert [item[:3] for item in confirms(peer)] == [(20, [], [])]


def test_slow_worker_delays_only_its_own_outcomes():
    desk = Desk()
    peer = desk.peer()
    slow, fast = desk.queue_on(0, peer, "slow"), desk.queue_on(1, peer, "fast")
    peer.publish(record(slow), record(fast), record(fast), record(slow), record(fast))
    desk.turn()
    desk.outcome(1, peer.sid, [(2, 3), (5, 5)])
    assert [item[:3] for item in confirms(peer)] == [(0, [[2, 3], [5, 5]], [])]
    desk.outcome(0, peer.sid, [(1, 1)])
    assert [item[:3] for item in confirms(peer)] == [(3, [], [])]
    desk.outcome(0, peer.sid, [(4, 4)])
    assert [item[:3] for item in confirms(peer)] == [(5, [], [])]


def test_many_scattered_outcomes_wait_a_moment_for_the_gaps_to_close():
    desk = Desk()
    peer = desk.peer()
    even, odd = desk.queue_on(0, peer, "even"), desk.queue_on(1, peer, "odd")
    peer.publish(*(record(odd if i % 2 else even) for i in range(100)))
    desk.turn()
    desk.outcome(1, peer.sid, [(i, i) for i in range(2, 101, 2)])
    assert confirms(peer) == []
    desk.move(1)
    desk.outcome(0, peer.sid, [(i, i) for i in range(1, 51, 2)])
    assert [item[:2] for item in confirms(peer)] == [(50, [])]
    desk.move(3)
    assert [item[:2] for item in confirms(peer)] == [(50, [[i, i] for i in range(52, 101, 2)])]


@pytest.mark.parametrize(
    ("exchange", "key", "mandatory", "code"),
    [
        ("", "no such queue", False, "no-queue"),
        ("no such exchange", "x", False, "no-exchange"),
        ("secret", "x", False, "access-refused"),
        ("amq.direct", "unbound", True, "unroutable"),
        ("amq.direct", "unbound", False, None),
        ("amq.topic", "", False, None),
    ],
)
def test_publish_that_reaches_no_queue(exchange, key, mandatory, code):
    desk = Desk()
    peer = desk.peer()
    peer.ok(Verb.DECLARE_EXCHANGE, "secret", "direct", {"internal": True})
    peer.publish(record(key), record(key), exchange=exchange, mandatory=mandatory)
    expected = [[1, 2, code]] if code else []
    assert [item[:3] for item in confirms(peer)] == [(2, [], expected)]
    assert desk.sessions.counters()["unroutable"] == (0 if code else 2)
    assert desk.sessions.counters()["refused"] == (2 if code else 0)


def test_records_that_cannot_be_carried_are_refused_one_by_one():
    desk = Desk()
    peer = desk.peer()
    queue = desk.queue_on(0, peer)
    good = record(queue)
    peer.publish(
        good, record("k" * 256), record(queue, b"x", {"headers": {"a": b"z" * 131073}}), b"\x93\xa2\xff\xfe\xc0\xc4\x00",
        b"\x93\xa1\0\xc0\xc4\x00", good,
    )  # fmt: skip
    assert [item[:3] for item in confirms(peer)] == [(0, [], [[2, 3, "too-large"], [4, 5, "bad-request"]])]
    (_, _, _, entries), = desk.published(0)
    assert [(entry[0], entry[2], entry[4]) for entry in entries] == [(1, 1, good), (6, 1, good)]


@pytest.mark.parametrize("data", [b"", b"\xc1", record()[:-1], record() + b"\0", record() * 3, record() + b"\x92\xa1q\xc0", b"\x90" * 2])
def test_malformed_records_refuse_the_whole_batch(data):
    desk = Desk()
    peer = desk.peer()
    queue = desk.queue_on(0, peer)
    peer.publish(data, count=2)
    assert [item[:3] for item in confirms(peer)] == [(2, [], [[1, 2, "bad-request"]])]
    peer.publish(record(queue))
    desk.turn()
    assert len(desk.published(0)) == 1, "the session lives on"


@pytest.mark.parametrize(
    "fields",
    [
        (1, 1, 1, ""),                          # a field is missing
        (1, 1, 1, "", 0, 0),                    # one too many
        (1, "1", 1, "", 0),
        (1, 1, 1, b"", 0),
        (1, 1, 1, "", True),
        (0, 1, 1, "", 0),                       # floor 0
        (1, 0, 1, "", 0),                       # sequence 0
        (5, 4, 1, "", 0),                       # below its floor
        (1, 2**63, 1, "", 0),
        (1, 1, 0, "", 0),                       # no record
        (1, 1, 65536, "", 0),                   # too many
        (1, 1, 2**40, "", 0),
        (1, 1, 1, "", 2),                       # unknown flag
        (1, 1, 1, "x" * 256, 0),
        (1, 1, 1, "a\0b", 0),
    ],
)  # fmt: skip
def test_publish_with_an_impossible_header_is_refused_with_a_sentence(fields):
    desk = Desk()
    peer = desk.peer()
    peer.send(Verb.PUBLISH, *fields, records=record())
    answer, = peer.take()
    assert (answer[0], answer[3], answer[4]) == (Verb.ERROR, None, "bad-request")
    assert len(answer[5]) > 20
    peer.publish(record("nothing"))
    assert [item[:3] for item in confirms(peer)] == [(1, [], [[1, 1, "no-queue"]])]


def test_sequences_rise_within_an_incarnation_and_may_jump():
    desk = Desk()
    peer = desk.peer()
    queue = desk.queue_on(0, peer)
    peer.publish(record(queue), first=5)
    peer.publish(record(queue), first=9)
    desk.outcome(0, peer.sid, [(5, 5), (9, 9)])
    assert [item[:3] for item in confirms(peer)] == [(9, [], [])]
    for first in (9, 3):
        peer.publish(record(queue), first=first)
        answer, = peer.take()
        assert answer[4] == "bad-request"
    peer.hello()
    peer.publish(record(queue), first=9)
    desk.turn()
    assert len(desk.published(0)) == 3


def test_frames_that_do_not_fit_the_verb_are_refused():
    desk = Desk()
    peer = desk.peer()
    peer.send(Verb.PUBLISH, 1, 1, 1, "", 0)
    peer.send(Verb.PUBLISH, 1, 1, 1, "", 0, records=record(), frames=3)
    peer.send(Verb.SETTLE, [], records=b"")
    peer.send(Verb.GET, 1, "q", records=b"x")
    peer.send(Verb.SETTLE, [], frames=5)
    assert [frame[4] for frame in peer.take()] == ["bad-request"] * 5


# ---- windows

WINDOW = {"publish_window_messages": 4, "publish_window_bytes": 1000}


def test_what_exceeds_the_window_is_refused_and_confirms_open_it():
    desk = Desk(settings=WINDOW)
    peer = desk.peer()
    queue = desk.queue_on(0, peer)
    peer.publish(*[record(queue)] * 6)
    size = len(record(queue))
    assert confirms(peer) == [(0, [], [[5, 6, "over-window"]], 6, 1000 + 2 * size)]
    assert [entry[2] for entry in desk.published(0)[0][3]] == [4]
    desk.outcome(0, peer.sid, [(1, 3)])
    assert confirms(peer) == [(3, [], [], 9, 1000 + 5 * size)]
    peer.publish(*[record(queue)] * 4)
    assert confirms(peer) == [(3, [], [[10, 10, "over-window"]], 10, 1000 + 6 * size)]
    assert desk.sessions.counters()["over_window"] == 3


def test_window_in_bytes_allows_one_message_of_any_size_when_none_is_open():
    desk = Desk(settings=WINDOW)
    peer = desk.peer()
    queue = desk.queue_on(0, peer)
    peer.publish(record(queue, b"x" * 5000), record(queue, b"x"))
    assert [item[:3] for item in confirms(peer)] == [(0, [], [[2, 2, "over-window"]])]
    desk.outcome(0, peer.sid, [(1, 1)])
    confirms(peer)
    peer.publish(record(queue, b"x" * 600), record(queue, b"x" * 600))
    assert [item[:3] for item in confirms(peer)] == [(2, [], [[4, 4, "over-window"]])]


def test_window_counts_anew_in_each_incarnation():
    desk = Desk(settings=WINDOW)
    peer = desk.peer()
    queue = desk.queue_on(0, peer)
    peer.publish(*[record(queue)] * 4)
    desk.kill(1)
    desk.attach(1)
    frame, = peer.take()
    assert frame == [Verb.RESEND, peer.session[:8], 2, 4, 1000]
    peer.incarnation = 2
    peer.publish(*[record(queue)] * 4, first=1)
    assert confirms(peer) == []
    peer.publish(record(queue), first=5)
    assert [item[:3] for item in confirms(peer)] == [(0, [], [[5, 5, "over-window"]])]


def test_window_of_what_is_not_told_yet_is_not_open():
    """A client that does not read its CONFIRMs cannot go on for ever."""
    desk = Desk(settings=WINDOW)
    peer = desk.peer()
    queue = desk.queue_on(0, peer)
    desk.refuse.add(peer.address)
    for _ in range(8):
        peer.publish(record(queue))
        desk.turn()
        desk.outcome(0, peer.sid, [(peer.sequence, peer.sequence)])
        desk.turn()
    assert sum(len(entries) for _, _, _, entries in desk.published(0)) == 5     # the first CONFIRM was made, and opened it by one
    assert desk.sessions.counters()["over_window"] == 3
    desk.refuse.clear()
    assert [item[:3] for item in confirms(peer)] == [(1, [], []), (8, [], [[6, 8, "over-window"]])]


def test_client_that_does_not_read_and_goes_on_is_ended():
    desk = Desk(settings=WINDOW)
    peer = desk.peer()
    desk.refuse.add(peer.address)
    for first in range(1, 20_000, 2):
        peer.publish(record("nothing"), first=first)
    assert desk.sessions.counters()["clients_too_slow"] == 1


# ---- deaths

def test_publishes_for_a_worker_that_is_down_stay_open_until_they_are_sent_again():
    desk = Desk()
    peer = desk.peer()
    up, down = desk.queue_on(0, peer, "up"), desk.queue_on(1, peer, "down")
    peer.publish(record(up), record(down))
    desk.turn()
    desk.kill(1)
    peer.publish(record(down), record(up))
    desk.outcome(0, peer.sid, [(1, 1), (4, 4)])
    assert [item[:3] for item in confirms(peer)] == [(1, [[4, 4]], [])]
    desk.attach(1)
    desk.outcome(0, peer.sid, [(2, 3)])                 # nobody asked worker 0 for these
    resend, = peer.take()
    assert resend[:3] == [Verb.RESEND, peer.session[:8], 2]
    peer.publish(record(down), first=2, floor=2, incarnation=1)
    answer, = peer.take()
    assert (answer[2], answer[4]) == (2, "stale")
    peer.incarnation = 2
    peer.publish(record(down), record(down), first=2, floor=2)
    desk.turn()
    (_, floor, _, entries), = desk.published(1)
    assert (floor, entries[0][0], entries[0][2]) == (2, 2, 2)
    desk.outcome(1, peer.sid, [(2, 3)])
    assert [item[:3] for item in confirms(peer)] == [(3, [], [])]


def test_what_was_decided_before_a_resend_is_told_before_it():
    desk = Desk()
    peer = desk.peer()
    queue = desk.queue_on(0, peer)
    peer.publish(record(queue))
    desk.turn()
    desk.outcome(0, peer.sid, [(1, 1)])
    desk.sessions.pump_all()
    desk.kill(1)
    desk.attach(1)
    assert [(frame[0], frame[2]) for frame in peer.take()] == [(CONFIRM, 1), (Verb.RESEND, 2)]


def test_fan_out_needs_the_worker_that_died_to_answer_again():
    desk = Desk()
    peer = desk.peer()
    for worker in (0, 1):
        peer.ok(Verb.BIND, "queue", desk.queue_on(worker, peer, "f"), "amq.fanout", "", {})
    peer.publish(record(), exchange="amq.fanout")
    desk.turn()
    desk.outcome(0, peer.sid, [(1, 1)])
    desk.turn()
    desk.kill(1)
    desk.attach(1)
    peer.take()
    peer.incarnation = 2
    peer.publish(record(), exchange="amq.fanout", first=1)
    desk.outcome(1, peer.sid, [(1, 1)])
    assert confirms(peer) == []
    desk.outcome(0, peer.sid, [], [(1, 1, Code.LATE)])
    assert [item[:3] for item in confirms(peer)] == [(1, [], [[1, 1, "late"]])]


def test_up_to_of_a_new_incarnation_does_not_pass_what_may_have_been_refused_before():
    desk = Desk()
    peer = desk.peer()
    queue = desk.queue_on(0, peer)
    peer.publish(record("no such queue"), record(queue), record(queue))
    desk.turn()
    desk.outcome(0, peer.sid, [(2, 2)])
    desk.sessions.pump_all()
    desk.frames.clear()                                 # none of it reaches the client
    peer.hello()
    peer.publish(record("no such queue"), first=1)
    peer.publish(record(queue), first=3, floor=1)
    assert [item[:3] for item in confirms(peer)] == [(2, [], [[1, 1, "no-queue"]])]


def test_outcome_for_a_session_that_is_gone_is_nothing():
    desk = Desk()
    peer = desk.peer()
    queue = desk.queue_on(0, peer)
    peer.publish(record(queue))
    desk.turn()
    peer.send(Verb.BYE)
    desk.outcome(0, peer.sid, [(1, 1)])
    desk.outcome(0, 12345, [(1, 2**64 - 1)])
    assert peer.take() == []


def test_routes_are_forgotten_when_the_topology_changes():
    desk = Desk()
    peer = desk.peer()
    queue = desk.queue_on(0, peer)
    peer.publish(record("k"), exchange="amq.direct", mandatory=True)
    assert confirms(peer)[0][2] == [[1, 1, "unroutable"]]
    peer.ok(Verb.BIND, "queue", queue, "amq.direct", "k", {})
    peer.publish(record("k"), exchange="amq.direct", mandatory=True)
    desk.turn()
    assert len(desk.published(0)) == 1
    peer.ok(Verb.DELETE_QUEUE, queue, {})
    desk.clear()
    peer.publish(record("k"), exchange="amq.direct", mandatory=True)
    assert confirms(peer)[-1][2] == [[3, 3, "unroutable"]]


def test_large_batch_is_larger_than_the_ring():
    desk = Desk()
    peer = desk.peer()
    queue = desk.queue_on(0, peer)
    body = random.Random(1).randbytes(300_000)
    peer.publish(record(queue, body), record(queue, b"small"))
    for _ in range(4):
        desk.turn()
    (_, _, _, entries), = desk.published(0)
    assert [entry[4] for entry in entries] == [record(queue, body), record(queue, b"small")]     # a large one goes by itself


def test_client_that_says_hello_on_a_new_connection_gets_the_answers_there():
    desk = Desk()
    peer = desk.peer()
    queue = desk.queue_on(0, peer)
    peer.publish(record(queue))
    desk.turn()
    desk.outcome(0, peer.sid, [(1, 1)])
    desk.sessions.pump_all()
    again = Peer(desk, 9)
    again.session, again.incarnation = peer.session, peer.incarnation
    assert again.hello()[0] == Verb.WELCOME
    assert peer.take() == []
    assert again.take() == [], "what was decided before HELLO is asked for again"
    again.publish(record(queue), first=1)
    desk.outcome(0, peer.sid, [(1, 1)])
    assert [item[:3] for item in confirms(again)] == [(1, [], [])]
    assert LinkKind.L_SESSION_END in [kind for kind, _, _ in desk.inbox[0]]
