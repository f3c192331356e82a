"""Sessions: HELLO, the five numbers, connections, and the end of a session."""

import pytest
from front_desk import Desk, Peer, record, sid_of

from fastmq.wire.link import LinkKind
from fastmq.wire.verbs import Verb


def codes(frames):
    return [(frame[0], frame[4] if frame[0] == Verb.ERROR else None) for frame in frames]


def error_code(frame):
    assert frame[0] == Verb.ERROR, frame
    assert frame[5].strip(), "an error has a sentence"
    return frame[4]


def test_first_hello_is_welcomed_with_a_new_session():
    desk = Desk()
    peer = Peer(desk)
    verb, public, incarnation, session, version, limits, window, window_bytes, endpoint = peer.hello()
    assert (verb, incarnation, version, window, window_bytes) == (Verb.WELCOME, 1, 1, 16384, 16 * 2**20)
    assert len(session) == 16
    assert session[:8] == public
    assert limits["name_size_max"] == 255
    assert endpoint == ""
    assert Peer(desk, 8).hello()[3] != session


HELLO_TABLE = [
    # session known, its incarnation, incarnation of the HELLO -> answer, incarnation of its header
    (True, 3, 2, "stale", 3),
    (True, 3, 3, "stale", 3),
    (True, 3, 4, None, 4),
    (True, 3, 9, None, 9),
    (True, 3, 2**31, "bad-incarnation", 2**31),
    (False, 3, 2, None, 2),
    (False, 3, 4, None, 4),
    (False, 3, 0, "bad-incarnation", 0),
    (False, 3, 2**64 - 1, "bad-incarnation", 2**64 - 1),
]


@pytest.mark.parametrize(("known", "current", "number", "code", "answered"), HELLO_TABLE)
def test_hello_of_a_session_with_a_good_proof(known, current, number, code, answered):
    desk = Desk()
    peer = desk.peer()
    while peer.incarnation < current:
        peer.hello()
    session = peer.session
    if not known:                                       # another front-end with the same key
        desk = Desk()
    answer = Peer(desk, 9).hello(session, number)
    assert answer[2] == answered
    if code:
        assert error_code(answer) == code
        assert answer[1] == session[:8]
    else:
        assert answer[0] == Verb.WELCOME
        assert answer[3] == session


@pytest.mark.parametrize("known", [True, False])
def test_hello_with_a_bad_proof_changes_nothing(known):
    desk = Desk()
    peer = desk.peer()
    forged = peer.session[:8] + bytes(8) if known else b"\1" * 16
    answer = Peer(desk, 9).hello(forged, 5)
    assert error_code(answer) == "no-session"
    assert answer[2] == 5
    peer.send(Verb.SETTLE, [])
    assert peer.take() == []


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ((2, "/", "me", 5, {}), "version"),
        ((1, "/other", "me", 5, {}), "no-vhost"),
        ((1, "/", "me", 5), "bad-request"),
        ((1, "/", "me", -1, {}), "bad-request"),
        ((1, "/", 5, 5, {}), "bad-request"),
        ((1, "", "me", 5, {}), "bad-request"),
        (("1", "/", "me", 5, {}), "bad-request"),
        ((1, "/", "x" * 256, 5, {}), "too-large"),
        ((1, "/", "me", 5, {str(i): 0 for i in range(33)}), "too-large"),
    ],
)
def test_hello_that_is_refused_leaves_no_session(fields, code):
    desk = Desk()
    peer = Peer(desk)
    peer.send(Verb.HELLO, *fields)
    assert [error_code(frame) for frame in peer.take()] == [code]
    assert len(desk.sessions) == 0


def test_hello_without_a_session_has_incarnation_0():
    peer = Peer(Desk())
    assert error_code(peer.hello(b"", 1)) == "bad-request"


def test_wishes_that_the_broker_does_not_know_are_passed_over():
    desk = Desk()
    peer = Peer(desk)
    peer.send(Verb.HELLO, 1, "/", "me", 5, {"sing": True})
    assert codes(peer.take()) == [(Verb.WELCOME, None)]


# the request's incarnation and connection, relative to a session with HELLO 2 and RESEND 3 -> what is answered
REQUEST_TABLE = [
    ("publish", 1, "same", "stale"),
    ("publish", 2, "same", "stale"),
    ("publish", 3, "same", None),
    ("publish", 4, "same", "bad-incarnation"),
    ("publish", 1, "other", "stale"),
    ("publish", 3, "other", "no-session"),
    ("settle", 1, "same", "stale"),
    ("settle", 2, "same", None),
    ("settle", 3, "same", None),
    ("settle", 4, "same", "bad-incarnation"),
    ("settle", 2, "other", "no-session"),
    ("settle", 3, "again", "no-session"),
    ("get", 1, "same", "stale"),
    ("get", 2, "same", "no-queue"),
    ("get", 3, "other", "no-session"),
]


@pytest.mark.parametrize(("what", "number", "connection", "code"), REQUEST_TABLE)
def test_request_is_judged_by_incarnation_and_connection(what, number, connection, code):
    desk = Desk()
    peer = desk.peer()
    queue = desk.queue_on(0, peer)
    peer.hello()
    desk.kill(1)
    desk.attach(1)
    assert [(frame[0], frame[2]) for frame in peer.take()] == [(Verb.RESEND, 3)]
    sender = {"same": peer, "other": Peer(desk, 9), "again": Peer(desk, 7, 2)}[connection]
    sender.session, sender.incarnation = peer.session, number
    if what == "publish":
        sender.publish(record(queue), first=1)
    elif what == "settle":
        sender.send(Verb.SETTLE, [])
    else:
        sender.send(Verb.GET, 1, "nothing")
    answers = sender.take()
    assert [error_code(frame) for frame in answers] == ([code] if code else [])
    if code in ("stale", "bad-incarnation"):
        assert answers[0][2] == 3, "the header says the current incarnation"
    if code == "no-session":
        assert answers[0][2] == number, "the header says the request's"
    assert bool(desk.published(0)) == (what == "publish" and code is None)


def test_request_with_the_wrong_proof_is_answered_no_session():
    desk = Desk()
    peer = desk.peer()
    peer.send(Verb.SETTLE, [], session=peer.session[:8] + bytes(8))
    assert [error_code(frame) for frame in peer.take()] == ["no-session"]


def test_accepted_hello_ends_what_the_session_did_and_keeps_its_exclusive_queues():
    desk = Desk()
    peer = desk.peer()
    peer.ok(Verb.DECLARE_QUEUE, "mine", {"exclusive": True})
    peer.ok(Verb.CONSUME, 1, "mine", 10, 0, {})
    desk.clear()
    peer.hello()
    for worker in (0, 1):
        (_, payload), = desk.sent(worker, LinkKind.L_SESSION_END)
        assert payload == peer.sid.to_bytes(8, "little") + bytes(8)
    assert peer.refused(Verb.CANCEL, 1) == "no-consumer"
    assert peer.ok(Verb.DECLARE_QUEUE, "mine", {"exclusive": True})["name"] == "mine"


def test_another_hello_on_a_connection_takes_it_over():
    desk = Desk()
    first = desk.peer()
    second = Peer(desk, *first.address)
    assert second.hello()[0] == Verb.WELCOME
    first.send(Verb.SETTLE, [])
    assert [error_code(frame) for frame in first.take()] == ["no-session"]


def test_bye_ends_the_session_and_forgets_the_publisher():
    desk = Desk()
    peer = desk.peer()
    peer.ok(Verb.DECLARE_QUEUE, "mine", {"exclusive": True})
    desk.clear()
    peer.send(Verb.BYE)
    assert peer.take() == []
    assert len(desk.sessions) == 0
    for worker in (0, 1):
        (_, payload), = desk.sent(worker, LinkKind.L_SESSION_END)
        assert payload == peer.sid.to_bytes(8, "little") + (1).to_bytes(8, "little")
    assert desk.t.topology.queue("/", "mine") is None
    peer.send(Verb.SETTLE, [])
    assert [error_code(frame) for frame in peer.take()] == ["no-session"]


def test_lost_connection_ends_consumers_at_once_and_the_session_after_resume_s():
    desk = Desk()
    peer = desk.peer()
    desk.clear()
    desk.sessions.connection_lost(peer.address[0], peer.address[1] + 1)
    desk.turn()
    assert not desk.sent(0, LinkKind.L_SESSION_END), "another connection of the same descriptor"
    desk.sessions.connection_lost(*peer.address)
    desk.turn()
    assert len(desk.sent(0, LinkKind.L_SESSION_END)) == 1
    peer.send(Verb.SETTLE, [])
    assert [error_code(frame) for frame in peer.take()] == ["no-session"]
    desk.move(29_900)
    assert len(desk.sessions) == 1
    assert Peer(desk, 9).hello(peer.session, 1)[4] == "stale"
    desk.move(200)
    desk.move(200)
    assert len(desk.sessions) == 0
    assert Peer(desk, 9).hello(peer.session, 2)[0] == Verb.WELCOME


def test_sessions_are_limited_and_one_without_a_connection_gives_way():
    desk = Desk(settings={"sessions_max": 2})
    first, _second = desk.peer(7), desk.peer(8)
    assert error_code(Peer(desk, 9).hello()) == "limit"
    desk.sessions.connection_lost(*first.address)
    assert Peer(desk, 9).hello()[0] == Verb.WELCOME
    assert Peer(desk, 10).hello()[4] == "limit"
    assert len(desk.sessions) == 2


def test_session_that_owns_a_queue_does_not_give_way():
    desk = Desk(settings={"sessions_max": 1})
    peer = desk.peer()
    peer.ok(Verb.DECLARE_QUEUE, "mine", {"exclusive": True})
    desk.sessions.connection_lost(*peer.address)
    assert error_code(Peer(desk, 9).hello()) == "limit"


def owners_on(desk: Desk, count: int) -> list[Peer]:
    """Sessions that one connection has begun one after the other, each with a queue of its own."""
    found = []
    for number in range(count):
        found.append(Peer(desk, 7))
        assert found[-1].hello()[0] == Verb.WELCOME
        found[-1].ok(Verb.DECLARE_QUEUE, f"own{number}", {"exclusive": True})
    return found


def test_sessions_of_one_connection_are_limited_and_leave_room_for_others():
    desk = Desk(settings={"connection_sessions_max": 3, "sessions_max": 5})
    first, second, third = owners_on(desk, 3)
    answer = Peer(desk, 7).hello()
    assert error_code(answer) == "limit"
    assert "connection_sessions_max" in answer[5]
    assert desk.sessions.counters()["sessions_refused"] == 1
    assert third.ok(Verb.STATUS, {}), "the session that is there lives on"
    assert Peer(desk, 8).hello()[0] == Verb.WELCOME
    assert first.hello()[0] == Verb.WELCOME, "those that it has left behind can be taken up again"
    assert first.ok(Verb.GET, "own0") is None
    first.send(Verb.BYE)
    assert Peer(desk, 7).hello()[0] == Verb.WELCOME
    assert second.hello()[0] == Verb.WELCOME
    assert len(desk.sessions) == 4


@pytest.mark.parametrize("limit", [1, 3])
def test_session_that_owns_nothing_gives_way_to_the_next_one_of_its_connection(limit):
    desk = Desk(settings={"connection_sessions_max": limit})
    owners = owners_on(desk, limit - 1)
    for _ in range(20):
        last = Peer(desk, 7)
        assert last.hello()[0] == Verb.WELCOME
    assert len(desk.sessions) == limit
    assert desk.sent(0, LinkKind.L_SESSION_END)
    for owner in owners:
        assert owner.hello()[0] == Verb.WELCOME
    assert last.hello()[0] == Verb.WELCOME


def test_session_counts_where_its_last_hello_came_from():
    desk = Desk(settings={"connection_sessions_max": 2})
    first, second = owners_on(desk, 2)
    other = Peer(desk, 8)
    assert other.hello(first.session, first.incarnation + 1)[0] == Verb.WELCOME
    third = Peer(desk, 7)
    assert third.hello()[0] == Verb.WELCOME, "its place is free"
    third.ok(Verb.DECLARE_QUEUE, "own2", {"exclusive": True})
    assert error_code(Peer(desk, 7).hello(first.session, first.incarnation + 2)) == "limit"
    assert other.ok(Verb.STATUS, {}), "nothing has changed for it"
    desk.sessions.connection_lost(7, 1)
    again = Peer(desk, 7, number=2)
    assert again.hello(second.session, second.incarnation + 1)[0] == Verb.WELCOME
    assert Peer(desk, 7, number=2).hello()[0] == Verb.WELCOME, "it is another connection"


def test_broker_that_stops_takes_nothing_new_and_says_farewell():
    desk = Desk()
    peer = desk.peer()
    queue = desk.queue_on(0, peer)
    peer.publish(record(queue))
    peer.take()
    desk.sessions.drain()
    assert not desk.sessions.is_drained()
    assert error_code(Peer(desk, 9).hello()) == "closing-down"
    assert peer.refused(Verb.GET, queue) == "closing-down"
    peer.publish(record(queue))
    peer.publish(record(queue))
    assert [error_code(frame) for frame in peer.take()] == ["closing-down"], "said once"
    desk.outcome(0, peer.sid, [(1, 1)])
    assert [frame[:4] for frame in peer.take()] == [[Verb.CONFIRM, peer.session[:8], 1, 1]]
    assert desk.sessions.is_drained()
    desk.sessions.close_sessions()
    assert [frame[0] for frame in peer.take()] == [Verb.CLOSING]


def test_counters_count():
    desk = Desk()
    peer = desk.peer()
    peer.send(Verb.SETTLE, [], incarnation=9)
    peer.send(Verb.SETTLE, [], incarnation=0)
    peer.send(99)
    Peer(desk, 9).send(Verb.SETTLE, [], session=b"x" * 16)
    counters = desk.sessions.counters()
    assert (counters["sessions"], counters["requests"]) == (1, 5)
    assert (counters["bad_incarnation"], counters["stale"], counters["bad_requests"], counters["no_session"]) == (1, 1, 1, 1)
    assert sid_of(peer.session) == peer.sid
