"""Sessions: the view of the topology, declares, and what is handed back after a death of worker 0."""

import msgpack
import pytest
from front_desk import COUNTS, REQUEST, Desk, record

from fastmq.model.topology import Topology
from fastmq.model.topology_shard import TopologyShard
from fastmq.server import requests, topology_view
from fastmq.server.workers import link_sizes
from fastmq.wire.link import LinkKind, QueueFlag
from fastmq.wire.verbs import Verb


def notices(desk):
    """What T was told without being asked to answer."""
    found = []
    for _, payload in desk.sent(0, LinkKind.L_TOPOLOGY):
        body = msgpack.unpackb(payload[8:])
        if isinstance(body[0], str):
            assert payload[:8] == bytes(8)
            found.append(tuple(body))
    return found


def test_declare_is_answered_when_the_shard_has_the_queue():
    desk = Desk()
    peer = desk.peer()
    desk.auto = False
    peer.send(Verb.DECLARE_QUEUE, 5, "jobs", {"durable": False})
    assert peer.take() == []
    queue = desk.sessions.requests.view.topology.queue("/", "jobs")
    worker = desk.map[queue.shard]
    declared = [(shard, REQUEST.unpack(payload)) for shard, payload in desk.sent(worker, LinkKind.L_QUEUE_DECLARE)]
    assert [(shard, request[2], request[4]) for shard, request in declared] == [(queue.shard, queue.id, 0)] * 2
    assert declared[0][1][0] == 0, "as soon as T has it"
    desk.reply(worker, declared[1][1][0], COUNTS.pack(queue.id, 7, 1, 2, 0))
    answer, = peer.take()
    assert answer[3:] == [5, {"name": "jobs", "message_count": 7, "consumer_count": 2}]


def test_declare_does_not_wait_for_a_shard_that_is_down():
    desk = Desk()
    peer = desk.peer()
    queue = desk.queue_on(1, peer)
    desk.kill(1)
    assert peer.ok(Verb.DECLARE_QUEUE, queue, {}) == {"name": queue, "message_count": 0, "consumer_count": 0}


def test_declare_whose_shard_dies_has_happened():
    desk = Desk()
    peer = desk.peer()
    queue = desk.queue_on(1, peer)
    desk.auto = False
    peer.send(Verb.DECLARE_QUEUE, 5, queue, {})
    desk.turn()
    desk.kill(1)
    answer, = peer.take()
    assert answer[3:] == [5, {"name": queue, "message_count": 0, "consumer_count": 0}]


def test_server_named_queue_has_its_name_in_the_result():
    desk = Desk()
    peer = desk.peer()
    name = peer.ok(Verb.DECLARE_QUEUE, "", {"exclusive": True})["name"]
    assert name.startswith("amq.gen-")
    assert desk.peer(8).refused(Verb.GET, name) == "resource-locked"
    assert peer.ok(Verb.GET, name) is None


def test_delete_counts_the_messages_of_the_queue():
    desk = Desk()
    peer = desk.peer()
    queue = desk.queue_on(1, peer)
    desk.auto = False
    peer.send(Verb.DELETE_QUEUE, 5, queue, {})
    assert peer.take() == []
    (_, payload), = desk.sent(1, LinkKind.L_QUEUE_DELETE)
    token, _, queue_id, _, _ = REQUEST.unpack(payload)
    desk.reply(1, token, COUNTS.pack(queue_id, 9, 0, 0, 9))
    answer, = peer.take()
    assert answer[3:] == [5, 9]
    assert peer.ok(Verb.DELETE_QUEUE, queue, {}) == 0


def test_purge_counts():
    desk = Desk()
    peer = desk.peer()
    queue = desk.queue_on(1, peer)
    desk.auto = False
    peer.send(Verb.PURGE_QUEUE, 5, queue)
    desk.turn()
    (_, payload), = desk.sent(1, LinkKind.L_QUEUE_PURGE)
    token, _, queue_id, _, _ = REQUEST.unpack(payload)
    desk.reply(1, token, COUNTS.pack(queue_id, 0, 0, 0, 4))
    answer, = peer.take()
    assert answer[3:] == [5, 4]


@pytest.mark.parametrize(
    ("verb", "fields", "code"),
    [
        (Verb.DECLARE_QUEUE, ("amq.mine", {}), "access-refused"),
        (Verb.DECLARE_QUEUE, ("q", {"shiny": True}), "unknown-argument"),
        (Verb.DECLARE_QUEUE, ("q", {"durable": 1}), "bad-request"),
        (Verb.DECLARE_QUEUE, ("known", {"durable": False}), "precondition-failed"),
        (Verb.DECLARE_QUEUE, ("nothing", {"passive": True}), "no-queue"),
        (Verb.DECLARE_QUEUE, ("x" * 256, {}), "too-large"),
        (Verb.DECLARE_QUEUE, (5, {}), "bad-request"),
        (Verb.DECLARE_QUEUE, ("q", {}, {}), "bad-request"),
        (Verb.DECLARE_EXCHANGE, ("e", "cubic", {}), "unknown-argument"),
        (Verb.DECLARE_EXCHANGE, ("", "topic", {}), "access-refused"),
        (Verb.DECLARE_EXCHANGE, ("amq.topic", "direct", {}), "precondition-failed"),
        (Verb.DELETE_EXCHANGE, ("amq.topic", {}), "access-refused"),
        (Verb.BIND, ("queue", "nothing", "amq.topic", "k", {}), "no-queue"),
        (Verb.BIND, ("queue", "known", "nothing", "k", {}), "no-exchange"),
        (Verb.BIND, ("table", "known", "amq.topic", "k", {}), "bad-request"),
        (Verb.BIND, ("queue", "theirs", "amq.topic", "k", {}), "resource-locked"),
        (Verb.DELETE_QUEUE, ("theirs", {}), "resource-locked"),
        (Verb.DECLARE_QUEUE, ("theirs", {}), "resource-locked"),
    ],
)
def test_topology_request_that_is_refused(verb, fields, code):
    desk = Desk()
    peer, other = desk.peer(7), desk.peer(8)
    peer.ok(Verb.DECLARE_QUEUE, "known", {})
    other.ok(Verb.DECLARE_QUEUE, "theirs", {"exclusive": True})
    assert peer.refused(verb, *fields) == code
    assert peer.ok(Verb.DECLARE_QUEUE, "after", {})["name"] == "after"


# ---- deaths of worker 0, and of the front-end

def test_new_front_end_attaches_no_worker_before_it_has_the_topology():
    desk = Desk(attach=False)
    desk.attach(1)
    assert desk.sent(1, LinkKind.L_ATTACH_SHARD) == []
    assert not desk.sessions.serving
    desk.attach(0)
    desk.turn()
    assert desk.sessions.serving
    assert len(desk.sent(0, LinkKind.L_ATTACH_SHARD)) == 4
    assert len(desk.sent(1, LinkKind.L_ATTACH_SHARD)) == 4
    (_, payload), = desk.sent(0, LinkKind.L_HANDBACK)
    assert msgpack.unpackb(payload)[0] > 0, "what it has just been given"


def test_new_front_end_waits_for_a_topology_that_is_being_recovered():
    desk = Desk(attach=False)
    desk.t = TopologyShard(5, desk.config)
    desk.t.begin_handback([0])
    desk.attach(0)
    desk.attach(1)
    desk.turn()
    (_, payload), = desk.sent(0, LinkKind.L_HANDBACK)
    assert msgpack.unpackb(payload) == [0, []]
    assert not desk.sessions.serving
    assert desk.t.ready
    desk.ends[0].send(LinkKind.L_SNAPSHOT, 0, msgpack.packb(desk.t.snapshot()))
    desk.turn()
    assert desk.sessions.serving
    assert len(desk.sent(1, LinkKind.L_ATTACH_SHARD)) == 4


def test_view_is_handed_back_to_a_new_t_and_merged():
    desk = Desk()
    peer = desk.peer()
    mine = desk.queue_on(1, peer, "mine", exclusive=True)
    auto = desk.queue_on(1, peer, "auto", auto_delete=True)
    peer.ok(Verb.CONSUME, 1, auto, 10, 0, {})
    peer.ok(Verb.DECLARE_EXCHANGE, "logs", "topic", {})
    peer.ok(Verb.BIND, "queue", mine, "logs", "a.*", {})
    before = desk.sessions.requests.view.topology.snapshot()
    desk.kill(0)
    desk.t = TopologyShard(7, desk.config)
    desk.t.begin_handback([0])
    desk.attach(0)
    desk.turn()
    kinds = [kind for kind, _, _ in desk.inbox[0]]
    assert kinds[-1] == LinkKind.L_HANDBACK, "after the claims"
    assert set(notices(desk)) == {("claim", peer.sid), ("consumed", desk.queue_id(auto))}
    (_, payload), = desk.sent(0, LinkKind.L_HANDBACK)
    assert msgpack.unpackb(payload) == before
    desk.ends[0].send(LinkKind.L_SNAPSHOT, 0, msgpack.packb(desk.t.snapshot()))
    desk.turn()
    view = desk.sessions.requests.view
    assert view.ready
    assert view.topology.snapshot()[1] == before[1]
    assert view.topology.number == 7 << 32
    assert desk.sent(1, LinkKind.L_QUEUE_DELETE, LinkKind.L_QUEUE_DECLARE) == []
    assert peer.ok(Verb.DECLARE_QUEUE, "later", {})["name"] == "later"


def test_shards_are_told_what_a_merged_topology_changes():
    desk = Desk()
    peer = desk.peer()
    gone = desk.queue_on(1, peer, "gone")
    gone_id, shard = desk.queue_id(gone), desk.sessions.requests.view.topology.queue("/", gone).shard
    other = Topology()
    other.apply([9 << 32, 3, "/", "new", int(QueueFlag.QUEUE_DURABLE), 0, 1])
    desk.auto = False
    desk.ends[0].send(LinkKind.L_SNAPSHOT, 0, msgpack.packb(other.snapshot()))
    desk.turn()
    (where, payload), = desk.sent(1, LinkKind.L_QUEUE_DELETE)
    assert (where, REQUEST.unpack(payload)[2]) == (shard, gone_id)
    (where, payload), = desk.sent(1, LinkKind.L_QUEUE_DECLARE)
    assert (where, REQUEST.unpack(payload)[2]) == (1, 9 << 32)
    peer.publish(record(gone))
    assert peer.take()[0][5][0][2] == "no-queue"


def test_record_that_the_snapshot_had_is_passed_over():
    desk = Desk()
    number = desk.sessions.requests.view.topology.number
    desk.ends[0].send(LinkKind.L_RECORD, 0, msgpack.packb([number, 3, "/", "x", 0, 0, 1]))
    desk.turn()
    assert desk.sessions.requests.view.topology.queue("/", "x") is None


# ---- what ends with its session or its consumers

def test_owner_of_exclusive_queues_is_claimed_and_released():
    desk = Desk()
    peer = desk.peer()
    desk.sessions.connection_lost(*peer.address)
    desk.turn()
    assert notices(desk) == [], "nobody need know of a session without queues"
    peer.hello()
    peer.ok(Verb.DECLARE_QUEUE, "mine", {"exclusive": True})
    desk.clear()
    desk.sessions.connection_lost(*peer.address)
    desk.turn()
    assert notices(desk) == [("release", peer.sid)]
    peer.hello()
    assert notices(desk) == [("claim", peer.sid)]
    peer.send(Verb.BYE)
    desk.turn()
    assert notices(desk) == [("forget", peer.sid)]


def test_exclusive_queue_whose_owner_left_while_it_was_declared_is_released():
    desk = Desk()
    peer = desk.peer()
    desk.clear()
    peer.send(Verb.DECLARE_QUEUE, 1, "mine", {"exclusive": True})
    desk.sessions.connection_lost(*peer.address)
    desk.turn()
    assert notices(desk) == [("release", peer.sid)]


def unused(desk, worker, queue):
    desk.ends[worker].send(LinkKind.L_UNUSED, 0, REQUEST.pack(0, 0, queue, 0, 0))
    desk.turn()


def test_auto_delete_queue_goes_with_its_last_consumer():
    desk = Desk()
    peer = desk.peer()
    queue = desk.queue_on(1, peer, auto_delete=True)
    peer.ok(Verb.CONSUME, 1, queue, 10, 0, {})
    assert notices(desk) == [("consumed", desk.queue_id(queue))]
    peer.ok(Verb.CANCEL, 1)
    unused(desk, 1, desk.queue_id(queue))
    assert [what for what, _ in notices(desk)] == ["unused"]
    assert desk.sessions.requests.view.topology.queue("/", queue) is None


def test_auto_delete_queue_whose_consumer_vanished_waits_at_its_shard_and_nowhere_else():
    desk = Desk()
    peer = desk.peer()
    queue = desk.queue_on(1, peer, auto_delete=True)
    peer.ok(Verb.CONSUME, 1, queue, 10, 0, {})
    desk.sessions.connection_lost(*peer.address)
    desk.move(40_000)
    assert "unused" not in [what for what, _ in notices(desk)]
    unused(desk, 1, desk.queue_id(queue))               # after resume_s, by the shard's clock
    assert "unused" in [what for what, _ in notices(desk)]
    assert desk.sessions.requests.view.topology.queue("/", queue) is None


@pytest.mark.parametrize("how", ["vanishes", "cancels", "cancels before"])
@pytest.mark.parametrize("comes_back", [True, False])
def test_auto_delete_queue_that_loses_its_consumer_with_its_worker_goes_after_a_while(how, comes_back):
    desk = Desk()
    peer, other = desk.peer(), desk.peer(fd=8)
    queue = desk.queue_on(1, peer, auto_delete=True)
    unconsumed = desk.queue_on(1, peer, "never", auto_delete=True)
    peer.ok(Verb.CONSUME, 1, queue, 10, 0, {})
    if how == "cancels before":
        peer.ok(Verb.CANCEL, 1)                         # and what the shard says of it dies with the worker
    desk.kill(1)
    if how == "vanishes":
        desk.sessions.connection_lost(*peer.address)
    elif how == "cancels":
        peer.ok(Verb.CANCEL, 1)
    desk.attach(1)
    desk.move(29_000)
    assert "unused" not in [what for what, _ in notices(desk)]
    if comes_back:
        other.ok(Verb.CONSUME, 1, queue, 10, 0, {})
    desk.move(2_000)
    desk.turn()
    assert ("unused" in [what for what, _ in notices(desk)]) == (not comes_back)
    assert (desk.sessions.requests.view.topology.queue("/", queue) is not None) == comes_back
    assert desk.sessions.requests.view.topology.queue("/", unconsumed) is not None


def test_t_is_told_of_an_unused_queue_until_it_has_deleted_it():
    desk = Desk()
    peer = desk.peer()
    queue = desk.queue_on(1, peer, auto_delete=True)
    peer.ok(Verb.CONSUME, 1, queue, 10, 0, {})
    before = desk.sessions.requests.view.topology.snapshot()
    desk.kill(0)
    peer.ok(Verb.CANCEL, 1)
    unused(desk, 1, desk.queue_id(queue))               # nobody is there to hear it
    desk.t = TopologyShard(7, desk.config)
    desk.t.begin_handback([0])
    desk.t.handback(0, before)
    desk.attach(0)
    desk.turn()
    desk.move(1_500)
    desk.turn()
    assert desk.sessions.requests.view.topology.queue("/", queue) is None


def test_a_deleted_queue_ends_its_consumers_also_where_a_client_that_does_not_read_is_lost_by_it():
    desk = Desk()
    slow, peer = desk.peer(), desk.peer(fd=8)
    queue = desk.queue_on(1, slow)
    desk.refuse.add(slow.address)
    for number in range(1, 1025):
        slow.send(Verb.CONSUME, number, number, queue, 1, 0, {})
        desk.turn()
    peer.ok(Verb.CONSUME, 1, queue, 10, 0, {})
    desk.kill(1)
    assert peer.ok(Verb.DELETE_QUEUE, queue, {}) == 0
    assert [frame[0] for frame in peer.take()] == [Verb.CANCELLED]
    assert desk.sessions.too_slow == 1
    assert peer.refused(Verb.CANCEL, 1) == "no-consumer"


def test_structs_are_those_of_the_link():
    sizes = {
        "LinkQueueRequest": topology_view.QUEUE_REQUEST, "LinkQueue": topology_view.QUEUE, "LinkAttach": topology_view.ATTACH,
        "LinkToken": topology_view.TOKEN, "LinkConsume": requests.CONSUME, "LinkCancel": requests.CANCEL, "LinkReply": requests.REPLY,
        "LinkCounts": requests.COUNTS, "LinkCancelled": requests.CANCELLED,
    }  # fmt: skip
    assert {name: packing.size for name, packing in sizes.items()} == {name: link_sizes()[name] for name in sizes}
