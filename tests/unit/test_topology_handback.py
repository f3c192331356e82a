"""Shard T after the death of another T or of a front-end: what is handed back, who claims what, and what goes when nobody does."""

import pytest

from fastmq.config import Config
from fastmq.model.claims import Claims
from fastmq.model.topology import Topology
from fastmq.model.topology_shard import TopologyShard
from fastmq.wire.verbs import Code, Verb

SECOND = 10**9
RESUME_NS = 30 * SECOND


def begin(epoch, frontends=()):
    shard = TopologyShard(epoch, Config(), b"salt%d" % epoch)
    shard.begin_handback(frontends)
    return shard


def ask(shard, verb, *fields, sid=7, frontend=0, views=()):
    """The request's code; its records go to the views, which are topologies of front-ends."""
    records, code, _ = shard.request(frontend, sid, verb, "/", list(fields), 0)
    tell(records, *views)
    return code


def tell(records, *views):
    for record in records:
        for view in views:
            view.apply(record)


@pytest.fixture
def view():
    """What a front-end knows of a T of epoch 1."""
    shard, view = begin(1), Topology()
    for fields in (
        (Verb.DECLARE_EXCHANGE, "logs", "topic", {"durable": False}),
        (Verb.DECLARE_QUEUE, "jobs", {}),
        (Verb.DECLARE_QUEUE, "mine", {"exclusive": True}),
        (Verb.BIND, "queue", "jobs", "logs", "#", {}),
        (Verb.BIND, "queue", "mine", "amq.topic", "a.*", {}),
    ):
        assert ask(shard, *fields, views=[view]) == Code.OK
    return view


def names(topology):
    return {queue.name for queue in topology.queues.values()}


def test_nothing_is_taken_until_every_frontend_has_handed_back(view):
    shard = begin(2, frontends=(0, 1))
    assert ask(shard, Verb.DECLARE_QUEUE, "new", {}) == Code.UNAVAILABLE
    assert shard.snapshot()[0] == 0
    assert not shard.handback(0, view.snapshot())
    assert ask(shard, Verb.DECLARE_QUEUE, "new", {}) == Code.UNAVAILABLE
    assert shard.handback(1, [0, []])
    assert shard.ready
    assert ask(shard, Verb.DECLARE_QUEUE, "new", {}) == Code.OK


def test_what_is_handed_back_keeps_its_ids_and_its_routes(view):
    shard = begin(2, frontends=(0,))
    assert shard.handback(0, view.snapshot())
    number, records = shard.snapshot()
    assert records == view.snapshot()[1]
    assert number == 2 << 32 > view.number
    restored = Topology.restore([number, records])
    assert restored.route("/", "logs", "x") == view.route("/", "logs", "x")
    assert ask(shard, Verb.DECLARE_QUEUE, "new", {}, views=[restored]) == Code.OK
    assert restored.queue("/", "new").id == (2 << 32) + 1


def test_without_frontends_a_shard_is_ready_at_once():
    shard = TopologyShard(1, Config())
    assert not shard.ready
    assert shard.begin_handback(())
    assert shard.ready
    assert shard.snapshot()[0] == 1 << 32


def test_a_frontend_that_dies_is_not_waited_for(view):
    shard = begin(2, frontends=(0, 1))
    shard.handback(0, view.snapshot())
    assert shard.frontend_gone(1)
    assert names(shard.topology) == {"jobs", "mine"}


def test_a_frontend_that_attaches_while_others_are_awaited_is_awaited_too(view):
    shard = TopologyShard(2, Config())
    shard.frontend_attached(1)
    assert not shard.begin_handback((0,))
    assert not shard.handback(0, [0, []])
    assert shard.handback(1, view.snapshot())
    assert names(shard.topology) == {"jobs", "mine"}
    shard.frontend_attached(2)
    assert shard.ready


def test_of_two_views_the_later_one_holds(view):
    """T had deleted a queue and died before the second front-end heard of it."""
    behind = Topology.restore(view.snapshot())
    view.apply([view.number + 1, 4, view.queue("/", "jobs").id])
    for order in ((view, behind), (behind, view)):
        shard = begin(2, frontends=(0, 1))
        for frontend, known in enumerate(order):
            shard.handback(frontend, known.snapshot())
        assert names(shard.topology) == {"mine"}
        assert shard.snapshot()[1] == view.snapshot()[1]


def test_a_view_nobody_had_announced_is_merged_late(view):
    shard = begin(2)
    assert ask(shard, Verb.DECLARE_QUEUE, "jobs", {"auto_delete": True}) == Code.OK
    number, jobs = shard.snapshot()[0], shard.topology.queue("/", "jobs")
    assert shard.handback(0, view.snapshot())
    assert shard.snapshot()[0] > number
    assert shard.topology.queue("/", "jobs") == jobs, "the name is taken"
    assert names(shard.topology) == {"jobs", "mine"}
    assert len(shard.topology.bindings) == 1, "the binding of the queue that is not there any more is left out"
    assert not shard.handback(0, view.snapshot())
    follower = Topology.restore(shard.snapshot())
    assert ask(shard, Verb.DECLARE_QUEUE, "new", {}, views=[follower]) == Code.OK


def test_a_view_of_this_epoch_brings_nothing():
    shard, view = begin(2), Topology()
    ask(shard, Verb.DECLARE_QUEUE, "jobs", {}, views=[view])
    behind = Topology.restore(view.snapshot())
    ask(shard, Verb.DELETE_QUEUE, "jobs", {}, views=[view])
    assert not shard.handback(0, behind.snapshot())
    assert names(shard.topology) == set()


def test_exclusive_queues_go_when_their_session_does_not_come_back():
    shard, view = begin(1), Topology()
    ask(shard, Verb.DECLARE_QUEUE, "mine", {"exclusive": True}, views=[view])
    ask(shard, Verb.DECLARE_QUEUE, "jobs", {}, views=[view])
    assert shard.tick(0) == []
    shard.release(7, now_ns=5 * SECOND)
    assert shard.tick(5 * SECOND + RESUME_NS - 1) == []
    records = shard.tick(5 * SECOND + RESUME_NS)
    tell(records, view)
    assert names(view) == {"jobs"}
    assert shard.tick(10**6 * SECOND) == []


@pytest.mark.parametrize("ending", ["release", "frontend_gone"])
def test_a_session_that_comes_back_in_time_keeps_its_queues(ending):
    shard = begin(1)
    ask(shard, Verb.DECLARE_QUEUE, "mine", {"exclusive": True})
    if ending == "release":
        shard.release(7, 0)
    else:
        shard.frontend_gone(0)
        assert shard.tick(0) == []
    shard.claim(7, 1)
    assert shard.tick(2 * RESUME_NS) == []
    shard.release(7, 2 * RESUME_NS, frontend=0)
    assert shard.tick(10 * RESUME_NS) == [], "it lives at front-end 1 now"
    shard.frontend_gone(1)
    assert shard.tick(10 * RESUME_NS) == []
    assert len(shard.tick(11 * RESUME_NS)) == 1


def test_a_session_that_says_bye_loses_its_queues_at_once():
    shard = begin(1)
    for name in ("a", "b"):
        ask(shard, Verb.DECLARE_QUEUE, name, {"exclusive": True})
    ask(shard, Verb.DECLARE_QUEUE, "other", {"exclusive": True}, sid=8)
    assert len(shard.forget(7)) == 2
    assert names(shard.topology) == {"other"}
    assert shard.forget(7) == []


def test_owners_that_nobody_claims_after_a_handback_have_their_time(view):
    for claimed in (False, True):
        shard = begin(2, frontends=(0,))
        if claimed:
            shard.claim(7, 0)
        shard.claim(99, 0)
        shard.handback(0, view.snapshot())
        assert shard.tick(0) == []
        assert len(shard.tick(RESUME_NS)) == (0 if claimed else 1)
        assert ("mine" in names(shard.topology)) == claimed
        assert 99 not in shard._sessions, "a session without exclusive queues is not remembered"


def test_nothing_is_deleted_before_the_topology_is_whole(view):
    shard = begin(2, frontends=(0,))
    assert shard.forget(7) == []
    assert shard.unused(view.queue("/", "jobs").id) == []
    assert shard.tick(10 * RESUME_NS) == []


def test_an_auto_delete_queue_goes_with_its_last_consumer_and_others_stay():
    shard = begin(1)
    ask(shard, Verb.DECLARE_QUEUE, "passing", {"auto_delete": True})
    ask(shard, Verb.DECLARE_QUEUE, "jobs", {})
    passing, jobs = (shard.topology.queue("/", name).id for name in ("passing", "jobs"))
    assert shard.unused(jobs) == []
    assert len(shard.unused(passing)) == 1
    assert shard.unused(passing) == []
    assert names(shard.topology) == {"jobs"}


def test_auto_delete_queues_wait_for_the_consumers_of_a_dead_frontend():
    shard = begin(1)
    for name in ("never", "back", "gone"):
        ask(shard, Verb.DECLARE_QUEUE, name, {"auto_delete": True})
    back, gone = (shard.topology.queue("/", name).id for name in ("back", "gone"))
    shard.consumed(back, 0)
    shard.consumed(gone, 0)
    shard.frontend_gone(0)
    assert shard.tick(0) == []
    shard.consumed(back, 0)
    assert len(shard.tick(RESUME_NS)) == 1
    assert names(shard.topology) == {"never", "back"}, "one that never had a consumer stays"


def test_a_queue_consumed_through_two_frontends_is_held_by_either():
    shard = begin(1)
    ask(shard, Verb.DECLARE_QUEUE, "passing", {"auto_delete": True})
    queue = shard.topology.queue("/", "passing").id
    shard.consumed(queue, 0)
    shard.consumed(queue, 1)
    shard.frontend_gone(0)
    shard.tick(0)
    assert shard.tick(RESUME_NS) == []
    shard.frontend_gone(1)
    shard.tick(RESUME_NS)
    assert len(shard.tick(2 * RESUME_NS)) == 1


def test_a_deleted_queue_is_claimed_no_more():
    shard = begin(1)
    ask(shard, Verb.DECLARE_QUEUE, "mine", {"exclusive": True, "auto_delete": True})
    queue = shard.topology.queue("/", "mine").id
    shard.consumed(queue, 0)
    ask(shard, Verb.DELETE_QUEUE, "mine", {})
    assert 7 not in shard._sessions
    assert queue not in shard._consumers
    shard.claim(7, 0)
    shard.consumed(queue, 0)
    assert 7 not in shard._sessions
    assert queue not in shard._consumers


def test_deadlines_come_in_the_order_of_their_releases():
    claims = Claims(resume_ns=10)
    for key in (1, 2, 3):
        claims.claim(key, 0)
    for now, key in enumerate((3, 1, 2)):
        claims.release(key, now)
    claims.release(3, 9)            # not held any more: its deadline stays
    assert [claims.due(now) for now in (9, 10, 11, 12)] == [[], [3], [1], [2]]
    assert 1 not in claims
