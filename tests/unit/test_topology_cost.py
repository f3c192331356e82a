"""A request costs what it changes, however much there is: the lines of Python it executes are counted, not the time it takes."""

import gc
import sys

import pytest

from fastmq.config import Config
from fastmq.model.topology import Topology
from fastmq.model.topology_shard import TopologyShard
from fastmq.wire.verbs import Code, Verb


def lines_executed(call):
    """How many lines of Python a call executes; each turn of a loop counts."""
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    gc.disable()                # others may have hung Python code on it
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
        gc.enable()
    return count


def filled(size):
    """A T with so many queues, each bound to a topic, a direct and a fanout exchange; and a follower."""
    shard = TopologyShard(1, Config())
    shard.begin_handback(())

    def ask(verb, *fields):
        records, code, _ = shard.request(0, 7, verb, "/", list(fields), 0)
        assert code == Code.OK
        return records

    for kind in ("topic", "direct", "fanout"):
        ask(Verb.DECLARE_EXCHANGE, kind, kind, {})
    for number in range(size):
        ask(Verb.DECLARE_QUEUE, f"queue {number}", {})
        for kind in ("topic", "direct", "fanout"):
            ask(Verb.BIND, "queue", f"queue {number}", kind, f"{number}.key", {})
    return ask, Topology.restore(shard.snapshot())


@pytest.mark.parametrize("fields", [
    (Verb.DECLARE_QUEUE, "new", {"exclusive": True}),
    (Verb.DELETE_QUEUE, "queue 3", {}),
    (Verb.BIND, "queue", "queue 3", "topic", "another.*", {}),
    (Verb.UNBIND, "queue", "queue 3", "direct", "3.key", {}),
    (Verb.UNBIND, "queue", "queue 3", "fanout", "3.key", {}),
])  # fmt: skip
def test_a_request_costs_the_same_in_a_large_topology(fields):
    costs = []
    for size in (10, 1000):
        ask, follower = filled(size)
        made = []
        request = lines_executed(lambda ask=ask, made=made: made.extend(ask(*fields)))
        apply = lines_executed(lambda follower=follower, made=made: [follower.apply(record) for record in made])
        assert made
        costs.append((request, apply))
    assert costs[0] == costs[1]


def test_a_route_costs_what_it_reaches():
    costs = []
    for size in (10, 1000):
        _, follower = filled(size)
        for exchange in ("topic", "direct", ""):
            key = "queue 3" if not exchange else "3.key"
            costs.append(lines_executed(lambda follower=follower, exchange=exchange, key=key: follower.route("/", exchange, key)))
    assert costs[:3] == costs[3:]
