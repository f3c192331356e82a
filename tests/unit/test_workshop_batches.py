"""server/workshop.pyx: batches from and to front-ends, put together by session."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stand_in import StandIn, make_workshop, record

from fastmq.wire.limits import Limit
from fastmq.wire.link import LinkKind
from fastmq.wire.verbs import Code

SHARDS = 8
PUBLISHER, CONSUMER = 11, 22


@pytest.fixture
def frontend():
    """A front-end of a workshop in which queue 100 + n lies on shard n."""
    frontend = StandIn(make_workshop(SHARDS))
    for shard in range(SHARDS):
        frontend.declare(shard, 100 + shard)
    frontend.turn()
    return frontend


def spread(first, count):
    """Entries of one batch whose records go to the shards in turn."""
    return [(seq, [100 + seq % SHARDS], seq % SHARDS, [record("k", b"%d" % seq)]) for seq in range(first, first + count)]


def test_batch_spread_over_shards_comes_out_as_one_range(frontend):
    frontend.publish(PUBLISHER, 1, spread(1, 450))
    assert frontend.all_of(LinkKind.L_OUTCOME) == [(PUBLISHER, [(1, 450)], [])]


def test_batches_of_several_sessions_have_an_outcome_each(frontend):
    for sid in (1, 2, 3):
        frontend.publish(sid, 1, spread(1, 20))
    frontend.publish(2, 1, spread(21, 20))
    assert frontend.all_of(LinkKind.L_OUTCOME) == [(1, [(1, 20)], []), (2, [(1, 40)], []), (3, [(1, 20)], [])]


def test_refusals_of_several_shards_are_joined(frontend):
    frontend.publish(PUBLISHER, 1, [(seq, [999], seq % SHARDS, [record("k", b"")]) for seq in range(1, 31)])
    assert frontend.all_of(LinkKind.L_OUTCOME) == [(PUBLISHER, [], [(1, 30, Code.NO_QUEUE)])]


def test_sequence_that_one_shard_holds_and_another_refuses_is_refused(frontend):
    items = [record("k", b"%d" % seq) for seq in range(1, 11)]
    frontend.publish(PUBLISHER, 1, [(1, [100], 0, items), (1, [101], 1, items[:3]), (4, [999], 1, items[3:6]), (7, [101], 1, items[6:])])
    assert frontend.all_of(LinkKind.L_OUTCOME) == [(PUBLISHER, [(1, 3), (7, 10)], [(4, 6, Code.NO_QUEUE)])]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 5)), min_size=1, max_size=40))
def test_outcomes_are_what_an_oracle_says(steps):
    """Each step: to how many queues that do not exist (of three shards), and how many records; all shards get all records."""
    frontend = StandIn(make_workshop(3))
    for shard in range(3):
        frontend.declare(shard, 100 + shard)
    held, refused, first, entries = set(), set(), 1, []
    for bad, count in steps:
        items = [record("k", b"x")] * count
        entries += [(first, [999 if shard < bad else 100 + shard], shard, items) for shard in range(3)]
        (refused if bad else held).update(range(first, first + count))
        first += count
    frontend.publish(PUBLISHER, 1, entries)
    [outcome] = frontend.all_of(LinkKind.L_OUTCOME)
    assert [seq for low, high in outcome.held for seq in range(low, high + 1)] == sorted(held)
    assert [seq for low, high, _ in outcome.refused for seq in range(low, high + 1)] == sorted(refused)
    assert all(low > before + 1 for (_, before), (low, _) in zip(outcome.held, outcome.held[1:], strict=False)), "joined where they meet"


def test_several_queues_of_one_decision_are_all_or_none(frontend):
    frontend.declare(0, 200)
    frontend.publish(PUBLISHER, 1, [(1, [100, 200], 0, [record("k", b"both")]), (2, [100, 999], 0, [record("k", b"none")])])
    assert frontend.all_of(LinkKind.L_OUTCOME) == [(PUBLISHER, [(1, 1)], [(2, 2, Code.NO_QUEUE)])]
    for queue in (100, 200):
        frontend.consume(0, queue, CONSUMER, consumer=queue)
    [delivery] = frontend.all_of(LinkKind.L_DELIVER)
    assert [body for _, _, body in delivery.records] == [b"both", b"both"]


def test_deliveries_of_all_shards_to_one_session_are_one_message(frontend):
    for shard in range(SHARDS):
        frontend.consume(shard, 100 + shard, CONSUMER, consumer=1 + shard)
    frontend.turn()
    frontend.publish(PUBLISHER, 1, spread(1, 80), exchange=b"logs")
    [delivery] = frontend.all_of(LinkKind.L_DELIVER)
    assert (delivery.sid, delivery.hello) == (CONSUMER, 1)
    at = 0
    for run in delivery.runs:
        assert run.exchange == b"logs"
        for _, _, body in delivery.records[at : at + run.count]:
            assert int(body) % SHARDS == run.shard == run.consumer - 1
        at += run.count
    assert sorted(int(body) for _, _, body in delivery.records) == list(range(1, 81))


def test_deliveries_with_different_exchanges_keep_their_names(frontend):
    for shard in range(SHARDS):
        frontend.consume(shard, 100 + shard, CONSUMER, consumer=1 + shard)
    frontend.turn()
    for seq in range(1, 41):
        frontend.publish(PUBLISHER, 1, spread(seq, 1), exchange=b"exchange-%d" % (seq % 5))
    for delivery in frontend.all_of(LinkKind.L_DELIVER):
        at = 0
        for run in delivery.runs:
            for _, _, body in delivery.records[at : at + run.count]:
                assert run.exchange == b"exchange-%d" % (int(body) % 5)
            at += run.count


def test_delivery_frames_are_bounded(frontend):
    for shard in range(SHARDS):
        frontend.consume(shard, 100 + shard, CONSUMER, consumer=1 + shard)
    frontend.turn()
    body = b"x" * 50_000
    frontend.publish(PUBLISHER, 1, [(seq, [100 + seq % SHARDS], seq % SHARDS, [record("k", body)]) for seq in range(1, 101)])
    deliveries = frontend.all_of(LinkKind.L_DELIVER)
    assert sum(len(delivery.records) for delivery in deliveries) == 100
    for delivery in deliveries:
        assert sum(run.size for run in delivery.runs) <= Limit.DELIVERY_SIZE_MAX


def test_body_larger_than_the_ring_arrives_whole(frontend):
    frontend.consume(0, 100, CONSUMER)
    frontend.publish(PUBLISHER, 1, [(1, [100], 0, [record("k", b"y" * 1_000_000)])])
    [delivery] = frontend.all_of(LinkKind.L_DELIVER)
    assert delivery.records == [["k", None, b"y" * 1_000_000]]


def test_reply_to_cancel_comes_behind_the_deliveries_made_before_it(frontend):
    frontend.consume(0, 100, CONSUMER)
    frontend.turn()
    frontend.publish(PUBLISHER, 1, [(1, [100], 0, [record("k", b"1")])])
    frontend.workshop.turn_once(1, 1)
    frontend.cancel(0, CONSUMER, token=5)
    frontend.publish(PUBLISHER, 2, [(2, [100], 0, [record("k", b"2")])])
    kinds = [kind for kind, _ in frontend.turn()]
    assert kinds == [LinkKind.L_DELIVER, LinkKind.L_OUTCOME, LinkKind.L_REPLY, LinkKind.L_OUTCOME]


def test_what_was_taken_is_confirmed_again_and_not_delivered_again(frontend):
    frontend.publish(PUBLISHER, 1, spread(1, 40))
    frontend.turn()
    frontend.publish(PUBLISHER, 1, spread(1, 50))
    assert frontend.all_of(LinkKind.L_OUTCOME) == [(PUBLISHER, [(1, 50)], [])]
    for shard in range(SHARDS):
        frontend.consume(shard, 100 + shard, CONSUMER, consumer=1 + shard)
    assert sum(len(delivery.records) for delivery in frontend.all_of(LinkKind.L_DELIVER)) == 50


def test_counts_of_all_queues_are_one_reply(frontend):
    frontend.publish(PUBLISHER, 1, spread(1, SHARDS * 3))
    frontend.turn()
    frontend.request(LinkKind.L_SHARD_COUNTS, 0, token=9)
    [reply] = frontend.all_of(LinkKind.L_REPLY)
    assert (reply.token, reply.code) == (9, Code.OK)
    found = [int.from_bytes(reply.payload[at : at + 8], "little") for at in range(0, len(reply.payload), 32)]
    assert sorted(found) == [100 + shard for shard in range(SHARDS)]


def test_message_for_a_shard_of_another_worker_is_passed_over(frontend):
    frontend.publish(PUBLISHER, 1, [(1, [100], 0, [record("k", b"")]), (2, [160], 60, [record("k", b"")])])
    frontend.request(LinkKind.L_QUEUE_COUNTS, 60, queue=160, token=3)
    assert frontend.turn() == [(LinkKind.L_OUTCOME, (PUBLISHER, [(1, 1)], []))]


def test_outcome_does_not_wait_for_the_end_of_a_backlog_that_is_delivered():
    frontend = StandIn(make_workshop(SHARDS))
    frontend.declare(0, 100)
    frontend.declare(1, 101)
    for first in range(1, 8001, 100):
        frontend.publish(PUBLISHER, 1, [(first, [100], 0, [record("k", bytes(4000))] * 100)])
        frontend.turn()
    frontend.consume(0, 100, CONSUMER, window=60_000, window_bytes=2**40)
    frontend.publish(PUBLISHER, 1, [(8001, [101], 1, [record("k", b"")])])
    delivered, outcomes = 0, []
    while not outcomes:                     # 32 MB wait for a front-end that reads less in a turn than a shard delivers
        frontend.link.flush_waiting()
        frontend.workshop.turn_once(frontend.now_ms * 1_000_000, frontend.now_ms)
        for kind, value in frontend.read():
            if kind == LinkKind.L_DELIVER:
                delivered += len(value.records)
                frontend.settle(0, CONSUMER, [(run.first_n, run.first_n + run.count - 1) for run in value.runs])
            elif kind == LinkKind.L_OUTCOME:
                outcomes.append(value)
    assert outcomes == [(PUBLISHER, [(8001, 8001)], [])]
    assert delivered * 4000 <= 1.3 * 2**20, "what one pump of a shard makes"
