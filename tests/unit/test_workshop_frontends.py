"""server/workshop.pyx: front-ends come, lag and die; shard T and its messages."""

import msgpack
import pytest
from stand_in import EPOCH, StandIn, make_workshop, record

from fastmq.errors import FastMQError
from fastmq.wire.link import LinkKind, QueueFlag
from fastmq.wire.verbs import Code, Verb

PUBLISHER, CONSUMER = 11, 22
FIRST_NUMBER = EPOCH << 32


def value(payload):
    return msgpack.unpackb(payload)


def snapshots(messages):
    return [value(payload) for kind, payload in messages if kind == LinkKind.L_SNAPSHOT]


def records(messages):
    return [value(payload) for kind, payload in messages if kind == LinkKind.L_RECORD]


# ---- a front-end that lags, or dies

def publish_bodies(frontend, count, size):
    for seq in range(1, 1 + count):
        frontend.publish(PUBLISHER, 1, [(seq, [100], 0, [record("k", b"%06d" % seq + b"x" * size)])])


def test_while_a_link_is_congested_nothing_more_is_delivered_and_then_all_of_it():
    frontend = StandIn(make_workshop(1), ring_size=4096)
    frontend.declare(0, 100)
    frontend.consume(0, 100, CONSUMER, window=60_000)
    frontend.turn()
    publish_bodies(frontend, 1000, 20_000)
    while frontend.link.waiting_bytes:              # nobody reads what comes back
        frontend.workshop.turn_once(1, 1)
        frontend.link.flush_waiting()
    assert frontend.workshop.waiting_bytes < 2**22, "20 MB are to be delivered"
    bodies = [body for delivery in frontend.all_of(LinkKind.L_DELIVER) for _, _, body in delivery.records]
    assert [int(body[:6]) for body in bodies] == list(range(1, 1001))


def test_outcomes_grow_together_while_the_ring_is_full():
    frontend = StandIn(make_workshop(1), ring_size=4096)
    frontend.declare(0, 100)
    frontend.consume(0, 100, CONSUMER)
    frontend.turn()
    publish_bodies(frontend, 1, 50_000)
    for _ in range(100):                            # a delivery in pieces fills the ring
        frontend.workshop.turn_once(1, 1)
        frontend.link.flush_waiting()
    for seq in range(2, 300):
        frontend.publish(PUBLISHER, seq, [(seq, [100], 0, [record("k", b"")])])
        frontend.link.flush_waiting()
        frontend.workshop.turn_once(1, 1)
    outcomes = frontend.all_of(LinkKind.L_OUTCOME)
    assert [outcome.held for outcome in outcomes] == [[(1, 299)]]


def test_dead_front_end_gives_its_messages_back_to_another():
    workshop = make_workshop(2)
    first = StandIn(workshop, 0)
    second = StandIn(workshop, 1)
    first.declare(0, 100)
    first.consume(0, 100, CONSUMER)
    first.publish(PUBLISHER, 1, [(1, [100], 0, [record("k", b"body")])])
    assert len(first.all_of(LinkKind.L_DELIVER)) == 1
    second.consume(0, 100, 33)
    assert second.all_of(LinkKind.L_DELIVER) == []
    workshop.detach(0, 1)
    [delivery] = second.all_of(LinkKind.L_DELIVER)
    assert (delivery.sid, delivery.runs[0].deliveries) == (33, 2)


def test_front_end_attached_again_finds_the_publishers_numbers():
    workshop = make_workshop(1)
    frontend = StandIn(workshop)
    frontend.declare(0, 100)
    publish_bodies(frontend, 5, 1)
    frontend.turn()
    workshop.detach(0, 1)
    again = StandIn(workshop)
    publish_bodies(again, 5, 1)
    assert again.all_of(LinkKind.L_OUTCOME) == [(PUBLISHER, [(1, 5)], [])]
    again.request(LinkKind.L_QUEUE_COUNTS, 0, queue=100, token=1)
    [reply] = again.all_of(LinkKind.L_REPLY)
    assert int.from_bytes(reply.payload[8:16], "little") == 5, "none was taken twice"


def test_unused_auto_delete_queue_is_told_to_another_when_its_front_end_is_gone():
    workshop = make_workshop(1, resume_ns=0)
    first, second = StandIn(workshop, 0), StandIn(workshop, 1)
    first.declare(0, 100, flags=QueueFlag.QUEUE_AUTO_DELETE)
    first.consume(0, 100, CONSUMER)
    first.turn()
    workshop.detach(0, 1)
    workshop.tick(10**12)
    assert [kind for kind, _ in second.turn()] == [LinkKind.L_UNUSED]


def test_front_end_attached_twice_is_refused():
    workshop = make_workshop(1)
    StandIn(workshop)
    with pytest.raises(ValueError, match="attached already"):
        StandIn(workshop)


# ---- shard T

def test_declare_is_told_to_every_front_end_before_it_is_answered():
    workshop = make_workshop(1, topology=True)
    first, second = StandIn(workshop, 0), StandIn(workshop, 1)
    assert [found[0] for found in snapshots(first.turn()) + snapshots(second.turn())] == [FIRST_NUMBER, FIRST_NUMBER]
    first.topology(Verb.DECLARE_QUEUE, PUBLISHER, "jobs", {}, token=8)
    (kind, told), (last, reply) = first.turn()
    assert (kind, last) == (LinkKind.L_RECORD, LinkKind.L_REPLY)
    assert value(told)[:4] == [FIRST_NUMBER + 1, 3, "/", "jobs"]
    assert (reply.token, reply.code, value(reply.payload)["id"]) == (8, Code.OK, FIRST_NUMBER + 1)
    assert records(second.turn()) == [value(told)]


def test_refused_request_is_answered_with_a_sentence():
    frontend = StandIn(make_workshop(1, topology=True))
    frontend.turn()
    frontend.topology(Verb.BIND, PUBLISHER, "queue", "nowhere", "amq.topic", "#", {}, token=8)
    [(kind, reply)] = frontend.turn()
    assert (kind, reply.token, reply.code) == (LinkKind.L_REPLY, 8, Code.NO_QUEUE)
    assert "nowhere" in value(reply.payload)


def test_exclusive_queue_goes_with_its_sessions_bye():
    frontend = StandIn(make_workshop(1, topology=True))
    frontend.turn()
    frontend.tell("claim", PUBLISHER)
    frontend.topology(Verb.DECLARE_QUEUE, PUBLISHER, "mine", {"exclusive": True})
    frontend.turn()
    frontend.tell("forget", PUBLISHER)
    assert records(frontend.turn()) == [[FIRST_NUMBER + 2, 4, FIRST_NUMBER + 1]]


def test_exclusive_queue_goes_when_its_session_stays_away():
    workshop = make_workshop(1, topology=True)
    frontend = StandIn(workshop)
    frontend.tell("claim", PUBLISHER)
    frontend.topology(Verb.DECLARE_QUEUE, PUBLISHER, "mine", {"exclusive": True})
    frontend.turn()
    frontend.tell("release", PUBLISHER)
    frontend.turn()
    workshop.tick(frontend.now_ms * 10**6 + 29 * 10**9)
    assert records(frontend.turn()) == []
    workshop.tick(frontend.now_ms * 10**6 + 31 * 10**9)
    assert records(frontend.turn()) == [[FIRST_NUMBER + 2, 4, FIRST_NUMBER + 1]]


def test_auto_delete_queue_goes_when_it_is_unused():
    frontend = StandIn(make_workshop(1, topology=True))
    frontend.topology(Verb.DECLARE_QUEUE, PUBLISHER, "brief", {"auto_delete": True})
    frontend.turn()
    frontend.tell("consumed", FIRST_NUMBER + 1)
    frontend.tell("unused", FIRST_NUMBER + 1)
    assert records(frontend.turn()) == [[FIRST_NUMBER + 2, 4, FIRST_NUMBER + 1]]


def test_new_t_waits_for_the_handback_of_front_ends_that_were_alive():
    before = make_workshop(1, topology=True)
    frontend = StandIn(before)
    frontend.topology(Verb.DECLARE_QUEUE, PUBLISHER, "kept", {"durable": False})
    frontend.turn()
    known = before.topology.snapshot()

    workshop = make_workshop(1, topology=True, frontends=[0, 1])
    first = StandIn(workshop, 0)
    assert snapshots(first.turn())[0][0] == 0
    first.topology(Verb.DECLARE_QUEUE, PUBLISHER, "early", {}, token=1)
    assert [reply.code for reply in first.all_of(LinkKind.L_REPLY)] == [Code.UNAVAILABLE]
    first.hand_back(known)
    assert snapshots(first.turn()) == [], "front-end 1 has not handed back"
    workshop.detach(1, 1)                           # it has died
    [merged] = snapshots(first.turn())
    assert merged == [FIRST_NUMBER, known[1]]


def test_request_that_a_defect_breaks_is_answered_and_the_worker_goes_on(capsys):
    frontend = StandIn(make_workshop(1, topology=True))
    frontend.turn()
    frontend.workshop.topology.request = None
    frontend.topology(Verb.DECLARE_QUEUE, PUBLISHER, "jobs", {}, token=8)
    assert [(reply.token, reply.code) for reply in frontend.all_of(LinkKind.L_REPLY)] == [(8, Code.INTERNAL)]
    assert "Traceback" in capsys.readouterr().err


def test_topology_message_to_a_worker_without_t_fails_the_worker():
    frontend = StandIn(make_workshop(1))
    frontend.topology(Verb.DECLARE_QUEUE, PUBLISHER, "jobs", {})
    with pytest.raises(FastMQError, match="worker 0"):
        frontend.turn()
    with pytest.raises(FastMQError):
        frontend.workshop.check()
