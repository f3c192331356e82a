"""Sessions: consumers, deliveries, single messages, and what becomes of requests when workers die."""

import msgpack
import pytest
from front_desk import CONSUME, COUNTS, DELIVER, REQUEST, RUN, Desk, Peer, record

from fastmq.wire.link import LinkKind
from fastmq.wire.verbs import Code, Verb


def consumes(desk, worker):
    """(sid, queue, hello, consumer, window, window in bytes, exclusive, whether an answer is wanted) of each L_CONSUME."""
    found = []
    for _, payload in desk.sent(worker, LinkKind.L_CONSUME):
        token, sid, queue, size, hello, consumer, messages, exclusive = CONSUME.unpack(payload)
        found.append((sid, queue, hello, consumer, messages, size, exclusive, bool(token)))
    return found


# ---- consumers

def test_consume_reaches_the_shard_of_the_queue():
    desk = Desk()
    peer = desk.peer()
    queue = desk.queue_on(1, peer)
    assert peer.ok(Verb.CONSUME, 7, queue, 10, 1000, {"exclusive": True}) is None
    assert consumes(desk, 1) == [(peer.sid, desk.queue_id(queue), 1, 7, 10, 1000, 1, True)]
    assert consumes(desk, 0) == []


@pytest.mark.parametrize(("asked", "granted"), [(0, 64 * 2**20), (2**40, 64 * 2**20), (1, 1)])
def test_window_in_bytes_is_as_much_as_the_broker_allows(asked, granted):
    desk = Desk()
    peer = desk.peer()
    queue = desk.queue_on(0, peer)
    peer.ok(Verb.CONSUME, 1, queue, 10, asked, {})
    assert consumes(desk, 0)[0][5] == granted


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ((1, "nothing", 10, 0, {}), "no-queue"),
        ((1, "theirs", 10, 0, {}), "resource-locked"),
        ((0, "q", 10, 0, {}), "bad-request"),
        ((2**32, "q", 10, 0, {}), "bad-request"),
        ((1, "q", 0, 0, {}), "bad-request"),
        ((1, "q", 65536, 0, {}), "bad-request"),
        ((1, "q", 1, -1, {}), "bad-request"),
        ((1, "q", 1, 0, {"priority": 1}), "unknown-argument"),
        ((1, "q", 1, 0, {"exclusive": 1}), "bad-request"),
        ((1, "", 1, 0, {}), "bad-request"),
        ((1, "x" * 256, 1, 0, {}), "too-large"),
        ((1, "a\0b", 1, 0, {}), "bad-request"),
        ((1, "q", 1, 0, []), "bad-request"),
        ((1, "q", 1, 0), "bad-request"),
        ((9, "q", 1, 0, {}), "consumer-exists"),
    ],
)
def test_consume_that_is_refused(fields, code):
    desk = Desk()
    peer, other = desk.peer(7), desk.peer(8)
    peer.ok(Verb.DECLARE_QUEUE, "q", {})
    peer.ok(Verb.CONSUME, 9, "q", 1, 0, {})
    other.ok(Verb.DECLARE_QUEUE, "theirs", {"exclusive": True})
    assert peer.refused(Verb.CONSUME, *fields) == code
    assert peer.refused(Verb.CANCEL, 1) == "no-consumer"


def test_consume_that_the_shard_refuses_leaves_no_consumer():
    desk = Desk()
    peer = desk.peer()
    queue = desk.queue_on(0, peer)
    desk.auto = False
    peer.send(Verb.CONSUME, 1, 7, queue, 10, 0, {})
    desk.turn()
    (_, payload), = desk.sent(0, LinkKind.L_CONSUME)
    desk.reply(0, CONSUME.unpack(payload)[0], code=Code.CONSUMER_EXISTS)
    answer, = peer.take()
    assert (answer[0], answer[3], answer[4]) == (Verb.ERROR, 1, "consumer-exists")
    desk.auto = True
    assert peer.refused(Verb.CANCEL, 7) == "no-consumer"
    peer.ok(Verb.CONSUME, 7, queue, 10, 0, {})


def test_consumers_are_attached_again_to_a_new_worker():
    desk = Desk()
    peer, other = desk.peer(7), desk.peer(8)
    other.hello()
    here, there = desk.queue_on(0, peer, "here"), desk.queue_on(1, peer, "there")
    for number, (who, queue) in enumerate([(peer, here), (peer, there), (other, there), (other, there)]):
        who.ok(Verb.CONSUME, number + 1, queue, 10, 500, {})
    other.ok(Verb.CANCEL, 4)
    desk.kill(1)
    desk.attach(1)
    desk.turn()
    kinds = [kind for kind, _, _ in desk.inbox[1]]
    assert kinds == sorted(kinds, key=[LinkKind.L_ATTACH_SHARD, LinkKind.L_CONSUME].index), "queues before consumers"
    assert sorted(consumes(desk, 1)) == sorted(
        [(peer.sid, desk.queue_id(there), 1, 2, 10, 500, 0, False), (other.sid, desk.queue_id(there), 2, 3, 10, 500, 0, False)]
    )
    attached = dict(desk.sent(1, LinkKind.L_ATTACH_SHARD))
    assert set(attached) == {1, 3, 5, 7}
    assert sum(int.from_bytes(payload[:4], "little") for payload in attached.values()) == 1
    assert [frame[0] for frame in peer.take()] == [Verb.RESEND]


def test_consumer_of_a_deleted_queue_is_cancelled_by_its_shard_or_here():
    desk = Desk()
    peer = desk.peer()
    here, there = desk.queue_on(0, peer, "here"), desk.queue_on(1, peer, "there")
    peer.ok(Verb.CONSUME, 1, here, 10, 0, {})
    peer.ok(Verb.CONSUME, 2, there, 10, 0, {})
    desk.ends[0].send(LinkKind.L_CANCELLED, 0, peer.sid.to_bytes(8, "little") + (1).to_bytes(4, "little") + b"\x18\0\0\0")
    assert [frame[3:5] for frame in peer.take()] == [[1, "queue-deleted"]]
    desk.kill(1)
    assert peer.ok(Verb.DELETE_QUEUE, there, {}) == 0
    assert [frame[3:5] for frame in peer.take()] == [[2, "queue-deleted"]]
    assert peer.refused(Verb.CANCEL, 2) == "no-consumer"


# ---- deliveries

def test_deliveries_of_a_turn_are_one_frame():
    desk = Desk()
    peer = desk.peer()
    first, second = [record("a", b"1"), record("a", b"2")], [record("b", b"3")]
    desk.deliver(0, peer.sid, 1, (1, 100, first, 1, "logs"), (2, 5, second, 3, ""))
    desk.deliver(1, peer.sid, 1, (1, 7, second, 1, "logs"))
    frame, = peer.take()
    assert frame[:3] == [Verb.DELIVER, peer.session[:8], 1]
    assert frame[3] == [[1, 0, 10, 100, 2, 1, "logs", 1700], [2, 0, 10, 5, 1, 3, "", 1700], [1, 1, 10, 7, 1, 1, "logs", 1700]]
    assert frame[4] == b"".join(first + second + second)


def test_deliveries_are_cut_into_frames():
    desk = Desk()
    peer = desk.peer()
    big = record("a", bytes(100_000))
    for n in range(5):
        desk.deliver(0, peer.sid, 1, (1, n, [big], 1, ""))
        desk.turn()
        desk.sessions.pump_all()
    huge = record("a", bytes(400_000))
    desk.deliver(0, peer.sid, 1, (1, 9, [huge], 1, ""))
    for _ in range(6):                                  # it is larger than the ring
        desk.turn()
    frames = peer.take()
    assert all(len(frame[4]) <= 262_144 or len(frame[3]) == 1 for frame in frames)
    assert [run[3] for frame in frames for run in frame[3]] == [0, 1, 2, 3, 4, 9]
    assert b"".join(frame[4] for frame in frames) == big * 5 + huge


def test_delivery_from_before_the_last_hello_is_dropped():
    desk = Desk()
    peer = desk.peer()
    peer.hello()
    desk.deliver(0, peer.sid, 1, (1, 1, [record()], 1, ""))
    desk.deliver(0, 12345, 1, (1, 1, [record()], 1, ""))
    assert peer.take() == []
    desk.deliver(0, peer.sid, 2, (1, 2, [record()], 1, ""))
    desk.sessions.pump_all()
    desk.sessions.connection_lost(*peer.address)
    assert peer.take() == []
    assert desk.sessions.counters()["deliveries_dropped"] == 2


def test_get_answers_with_the_message_or_nil():
    desk = Desk()
    peer = desk.peer()
    queue = desk.queue_on(0, peer)
    assert peer.ok(Verb.GET, queue) is None
    desk.auto = False
    peer.send(Verb.GET, 77, queue)
    desk.turn()
    _, payload = desk.sent(0, LinkKind.L_GET)[-1]
    token, sid, queue_id, hello, _ = REQUEST.unpack(payload)
    assert (sid, queue_id, hello) == (peer.sid, desk.queue_id(queue), 1)
    data = record("key", b"body")
    run = RUN.pack(10, 4, 1700, 0, 1, 2, len(data), 0, 4, 3)
    desk.reply(0, token, DELIVER.pack(sid, 1, 1, 4, len(data), 0, 0) + run + b"logs\0\0\0\0" + data)
    assert peer.take() == [[Verb.REPLY, peer.session[:8], 1, 77, [0, 3, 10, 4, 1, 2, "logs", 1700], data]]


# ---- requests and deaths

@pytest.mark.parametrize(
    ("verb", "fields", "code"),
    [
        (Verb.GET, ("{q}",), "unknown"),
        (Verb.PURGE_QUEUE, ("{q}",), "unknown"),
        (Verb.CONSUME, (1, "{q}", 10, 0, {}), "unavailable"),
        (Verb.CANCEL, (5,), "unknown"),
    ],
)
def test_request_at_a_worker_that_dies_is_answered(verb, fields, code):
    desk = Desk()
    peer = desk.peer()
    queue = desk.queue_on(1, peer)
    peer.ok(Verb.CONSUME, 5, queue, 10, 0, {})
    desk.auto = False
    peer.send(verb, 99, *(queue if field == "{q}" else field for field in fields))
    assert peer.take() == []
    desk.kill(1)
    answer, = peer.take()
    if verb == Verb.CANCEL:                             # it has ended with the worker
        assert answer[:1] + answer[3:] == [Verb.REPLY, 99, None]
    else:
        assert (answer[0], answer[3], answer[4]) == (Verb.ERROR, 99, code)
    desk.attach(1)
    desk.turn()
    assert [item[3] for item in consumes(desk, 1)] == ([] if verb == Verb.CANCEL else [5])


@pytest.mark.parametrize(("verb", "fields"), [(Verb.GET, ()), (Verb.PURGE_QUEUE, ()), (Verb.CONSUME, (10, 0, {}))])
def test_request_at_a_worker_that_is_down_is_unavailable(verb, fields):
    desk = Desk()
    peer = desk.peer()
    queue = desk.queue_on(1, peer)
    desk.kill(1)
    if verb == Verb.CONSUME:
        fields = (1, queue, *fields)
    else:
        fields = (queue, *fields)
    assert peer.refused(verb, *fields) == "unavailable"


def test_topology_request_needs_worker_0():
    desk = Desk()
    peer = desk.peer()
    queue = desk.queue_on(1, peer)
    desk.kill(0)
    assert peer.refused(Verb.DECLARE_QUEUE, "other", {}) == "unavailable"
    peer.publish(record(queue))
    desk.turn()
    assert len(desk.published(1)) == 1, "routing goes on"
    desk.attach(0)
    assert [frame[0] for frame in peer.take()] == [Verb.RESEND]
    assert peer.ok(Verb.DECLARE_QUEUE, "other", {})["name"] == "other"


def test_answer_reaches_only_the_hello_that_asked():
    desk = Desk()
    peer = desk.peer()
    queue = desk.queue_on(0, peer)
    desk.auto = False
    peer.send(Verb.GET, 1, queue)
    desk.turn()
    (_, payload), = desk.sent(0, LinkKind.L_GET)
    peer.hello()
    desk.reply(0, REQUEST.unpack(payload)[0])
    assert peer.take() == []


def test_requests_without_an_answer_are_limited():
    desk = Desk()
    peer = desk.peer()
    queue = desk.queue_on(0, peer)
    desk.auto = False
    for number in range(1024):
        peer.send(Verb.GET, number, queue)
    assert peer.take() == []
    peer.send(Verb.GET, 5000, queue)
    assert [(frame[3], frame[4]) for frame in peer.take()] == [(5000, "limit")]


def test_consumers_of_a_session_are_limited():
    desk = Desk()
    peer = desk.peer()
    queue = desk.queue_on(0, peer)
    for number in range(16384):
        peer.send(Verb.CONSUME, number, number + 1, queue, 10, 0, {})
        if number % 500 == 0:
            desk.turn()
    peer.take()
    assert peer.refused(Verb.CONSUME, 20000, queue, 10, 0, {}) == "limit"


# ---- clients that do not read

def test_what_a_slow_client_does_not_take_waits_and_keeps_its_order():
    desk = Desk()
    peer, other = desk.peer(7), desk.peer(8)
    queue = desk.queue_on(0, peer)
    desk.refuse.add(peer.address)
    peer.publish(record(queue))
    desk.deliver(0, peer.sid, 1, (1, 1, [record()], 1, ""))
    desk.turn()
    desk.outcome(0, peer.sid, [(1, 1)])
    desk.turn()
    peer.send(Verb.GET, 5, "nothing")
    desk.deliver(0, peer.sid, 1, (1, 2, [record()], 1, ""))
    desk.turn()
    assert peer.take() == []
    assert other.ok(Verb.SUBSCRIBE, "", "e", "x") is None, "nobody else waits"
    desk.refuse.clear()
    found = [(frame[0], [run[3] for run in frame[3]] if frame[0] == Verb.DELIVER else None) for frame in peer.take()]
    assert found == [(Verb.DELIVER, [1]), (Verb.CONFIRM, None), (Verb.ERROR, None), (Verb.DELIVER, [2])]


def test_slow_client_loses_its_session_when_too_many_answers_wait():
    desk = Desk()
    peer = desk.peer()
    desk.refuse.add(peer.address)
    desk.clear()
    for number in range(1100):
        peer.send(Verb.GET, number, "nothing")
    desk.turn()
    assert desk.sessions.counters()["clients_too_slow"] == 1
    assert len(desk.sent(0, LinkKind.L_SESSION_END)) == 1
    desk.refuse.clear()
    peer.frames = desk.frames.pop(peer.address, [])
    peer.send(Verb.SETTLE, [])
    assert [frame[4] for frame in peer.take()] == ["no-session"]
    assert peer.hello()[0] == Verb.WELCOME


def test_clients_for_which_most_waits_are_ended_before_the_memory_is_used_up():
    desk = Desk(settings={"frontend_memory_max": 2**26})
    greedy, modest = desk.peer(7), desk.peer(8)
    desk.refuse |= {greedy.address, modest.address}
    big = record("a", bytes(50_000))
    for n in range(340):
        desk.deliver(0, greedy.sid, 1, (1, n, [big], 1, ""))
        desk.turn()
    desk.deliver(0, modest.sid, 1, (1, 1, [big], 1, ""))
    desk.turn()
    desk.move(200)
    assert desk.sessions.counters()["clients_too_slow"] == 1
    desk.refuse.clear()
    assert greedy.take() == []
    assert [frame[0] for frame in modest.take()] == [Verb.DELIVER]


def test_stale_publishes_do_not_flood_a_client_that_does_not_read():
    desk = Desk()
    peer = desk.peer()
    queue = desk.queue_on(0, peer)
    desk.kill(1)
    desk.attach(1)
    desk.refuse.add(peer.address)
    for _ in range(3000):
        peer.publish(record(queue))
        if peer.sequence % 100 == 0:
            desk.turn()
    assert desk.sessions.counters()["clients_too_slow"] == 0
    assert desk.sessions.counters()["stale"] == 3000


# ---- settling

def test_settle_is_split_by_shard_and_goes_to_its_worker():
    desk = Desk()
    peer = desk.peer()
    peer.send(Verb.SETTLE, [[0, 10, 5, [], []], [1, 11, 0, [[7, 7], [9, 12]], [[1, 2, 1], [3, 3, 3]]], [2, 10, 8, [], []]])
    desk.turn()
    sid = peer.sid.to_bytes(8, "little")
    assert [(shard, payload[:8]) for shard, payload in desk.inbox[0] and desk.sent(0, LinkKind.L_SETTLE)] == [(0, sid), (2, sid)]
    (shard, payload), = desk.sent(1, LinkKind.L_SETTLE)
    numbers = [int.from_bytes(payload[at : at + 8], "little") for at in range(8, len(payload), 8)]
    assert shard == 1
    assert numbers == [11, 0, 2 | 2 << 32, 7, 7, 9, 12, 1, 2, 1, 3, 3, 3]


@pytest.mark.parametrize(
    "settlements",
    [
        5, [5], [[]], [[0, 1, 2, []]], [[8, 1, 0, [], []]], [[2**40, 1, 0, [], []]], [[0, 1, 0, [[2, 1]], []]], [[0, 1, 0, [[1]], []]],
        [[0, 1, 0, [], [[1, 1, 0]]]], [[0, 1, 0, [], [[1, 1, 4]]]], [[0, 1, 0, [], [[2, 1, 1]]]], [[0, -1, 0, [], []]],
        [[0, 1, 0, [[1, 2]], []], [0, 1, 0, [["x", 2]], []]],
    ],
)  # fmt: skip
def test_malformed_settle_settles_nothing(settlements):
    desk = Desk()
    peer = desk.peer()
    peer.send(Verb.SETTLE, settlements)
    answer, = peer.take()
    assert (answer[0], answer[3], answer[4]) == (Verb.ERROR, None, "bad-request")
    assert desk.sent(0, LinkKind.L_SETTLE) == []


def test_settle_is_limited():
    desk = Desk()
    peer = desk.peer()
    peer.send(Verb.SETTLE, [[0, 1, 0, [[1, 1]] * 65536, []]])
    assert [frame[4] for frame in peer.take()] == ["too-large"]
    peer.send(Verb.SETTLE, [[0, 1, 0, [[1, 1]] * 65000, [[1, 1, 1]] * 500]])
    assert peer.take() == []
    for _ in range(20):
        desk.turn()
    assert len(desk.sent(0, LinkKind.L_SETTLE)) == 1


# ---- what is wrong with a request is told to whom waits for its number

@pytest.mark.parametrize("tail, code", [
    (msgpack.packb("x" * 5000), "too-large"),
    (msgpack.packb({"x": b"x" * 5000}), "too-large"),
    (msgpack.packb({f"k{n}": n for n in range(65)}), "too-large"),
    (msgpack.packb({f"k{n}": n for n in range(33)}), "too-large"),
    (msgpack.packb(b"x" * 2**20), "too-large"),
    (b"\x82\xa1a\x01\xa1a\x02", "bad-request"),
    (b"\x81\x01\x01", "bad-request"),
    (b"\xc7\xff\x05" + bytes(255), "bad-request"),
    (b"\xdf\x7f\xff\xff\xff", "bad-request"),
    (b"\x81\xa2\xff\xfe\x01", "bad-request"),
    (b"\x80\x80", "bad-request"),
    (b"", "bad-request"),
], ids=["text", "bin", "65 keys", "33 keys", "header", "key twice", "key of a number", "ext", "long map", "not UTF-8", "behind", "cut"])
def test_request_that_cannot_be_read_is_refused_by_its_number(tail, code):
    desk = Desk()
    peer = desk.peer()
    header = b"\x95" + b"".join(msgpack.packb(value) for value in (int(Verb.STATUS), peer.session, peer.incarnation, 2**40)) + tail
    desk.sessions.receive(*peer.address, header)
    answer, = peer.take()
    assert (answer[0], answer[2:5]) == (Verb.ERROR, [peer.incarnation, 2**40, code])
    assert peer.ok(Verb.STATUS, {})


def test_request_of_two_frames_or_an_unknown_verb_is_refused_by_its_number():
    desk = Desk()
    peer = desk.peer()
    peer.send(Verb.STATUS, 5, {}, records=b"x")
    peer.send(99, 6)
    peer.send(99, "six")
    peer.send(Verb.SETTLE, 7)
    peer.send(Verb.PUBLISH, 8)
    assert [frame[3:5] for frame in peer.take()] == [
        [5, "bad-request"], [6, "unknown-verb"], [None, "unknown-verb"], [None, "bad-request"], [None, "bad-request"],
    ]


# ---- status

def test_status_gathers_from_all_workers():
    desk = Desk()
    peer = desk.peer()
    here, there = desk.queue_on(0, peer, "here"), desk.queue_on(1, peer, "there")
    desk.sessions.requests.processes = [{"role": "worker", "index": 0, "pid": 5, "restarts": 0}]
    desk.auto = False
    peer.send(Verb.STATUS, 5, {})
    desk.turn()
    for worker, queue in ((1, there), (0, here)):
        assert peer.take() == []
        (_, payload), = desk.sent(worker, LinkKind.L_SHARD_COUNTS)
        desk.reply(worker, REQUEST.unpack(payload)[0], COUNTS.pack(desk.queue_id(queue), 3 + worker, 2, 1, 0))
    answer, = peer.take()
    status = answer[4]
    assert status["processes"] == [{"role": "worker", "index": 0, "pid": 5, "restarts": 0}]
    rows = {row.pop("name"): row for row in status["queues"]}
    assert rows[here] == {"vhost": "/", "messages_ready": 3, "messages_unacknowledged": 2, "consumers": 1}
    assert rows[there]["messages_ready"] == 4
    assert status["counters"]["sessions"] == 1


def test_status_does_not_wait_for_workers_that_are_down_or_die():
    desk = Desk()
    peer = desk.peer()
    queue = desk.queue_on(1, peer)
    desk.kill(0)
    desk.auto = False
    peer.send(Verb.STATUS, 5, {})
    assert peer.take() == []
    desk.kill(1)
    answer, = peer.take()
    assert [row["name"] for row in answer[4]["queues"]] == [queue]
    peer.send(Verb.STATUS, 6, {})
    answer, = peer.take()
    assert answer[3] == 6
    assert peer.refused(Verb.STATUS, {"all": True}) == "unknown-argument"


def test_unknown_verb_is_refused_by_name():
    desk = Desk()
    peer = desk.peer()
    for verb in (0, 18, 32, 2**64 - 1):
        peer.send(verb)
    assert [frame[4] for frame in peer.take()] == ["unknown-verb"] * 4
    stranger = Peer(desk, 99)
    stranger.send(18, session=b"")
    assert [frame[1:5] for frame in stranger.take()] == [[b"", 0, None, "bad-request"]]
