"""Random declares, binds and deletes: every answer and every route is the oracle's, and a follower has the same topology."""

import os

from hypothesis import given, settings
from hypothesis import strategies as st
from topology_oracle import Oracle

from fastmq.config import Config
from fastmq.errors import CODE_OF_NUMBER, FastMQError
from fastmq.model.topology import Topology
from fastmq.model.topology_shard import TopologyShard
from fastmq.wire.verbs import Verb

EXAMPLES = int(os.environ.get("FASTMQ_EXAMPLES", "150"))
LIMITS = {"queues_max": 4, "exchanges_max": 7, "bindings_max": 12}
EXCHANGES = ("d", "f", "t", "u", "amq.topic", "amq.new", "")
QUEUES = ("p", "q", "r", "amq.queue")
PATTERNS = ("", "a", "a.b", "*", "#", "a.#", "*.b", "#.b", "a.*.b", "a..b", "#.#")
KEYS = ("", "a", "b", "a.b", "a.c.b", "a..b", ".", "p", "q", "nobody")

flag = st.booleans()
exchange = st.sampled_from(("d", "f", "t", "u") * 3 + EXCHANGES)
queue = st.sampled_from(("p", "q") * 3 + QUEUES)
pattern = st.sampled_from(PATTERNS)


def options(*names):
    return st.fixed_dictionaries({}, optional=dict.fromkeys((*names, "passive"), flag))


binding = st.one_of(
    st.tuples(st.just("queue"), queue, exchange, pattern, st.just({})),
    st.tuples(st.just("exchange"), exchange, exchange, pattern, st.just({})),
)
kinds = st.sampled_from(("direct", "fanout", "topic", "topic", "headers"))
bind = st.tuples(st.just(Verb.BIND), binding)
request = st.one_of(
    bind,
    st.tuples(st.just(Verb.UNBIND), st.integers(0, 11)),        # one of the bindings there are
    st.tuples(st.just(Verb.DECLARE_EXCHANGE), st.tuples(exchange, kinds, options("durable", "auto_delete", "internal"))),
    st.tuples(st.just(Verb.DECLARE_QUEUE), st.tuples(queue, options("durable", "exclusive", "auto_delete"))),
    st.tuples(st.just(Verb.UNBIND), binding),
    st.tuples(st.just(Verb.DELETE_EXCHANGE), st.tuples(exchange, st.just({}))),
    st.tuples(st.just(Verb.DELETE_QUEUE), st.tuples(queue, st.just({}))),
)
# What is declared first in most examples, so that there is something to bind: random declares alone rarely meet.
FIRST = (
    (Verb.DECLARE_EXCHANGE, ("d", "direct", {})),
    (Verb.DECLARE_EXCHANGE, ("f", "fanout", {"auto_delete": True})),
    (Verb.DECLARE_EXCHANGE, ("t", "topic", {})),
    (Verb.DECLARE_EXCHANGE, ("u", "topic", {"internal": True, "auto_delete": True})),
    (Verb.DECLARE_QUEUE, ("p", {})),
    (Verb.DECLARE_QUEUE, ("q", {})),
    (Verb.BIND, ("exchange", "u", "f", "", {})),
    (Verb.BIND, ("queue", "p", "u", "#", {})),
)
begin = st.sampled_from((FIRST, FIRST, FIRST, ()))


def names_routed(topology, exchange, key):
    """The names of the queues reached, or the code of the error."""
    try:
        ids = topology.route("/", exchange, key)
    except FastMQError as error:
        return error.code
    assert len(ids) == len(set(ids))
    return {topology.queues[queue].name for queue in ids}


def check_routes(topology, oracle):
    for exchange in EXCHANGES:
        for key in KEYS:
            assert names_routed(topology, exchange, key) == oracle.route(exchange, key), (exchange, key)


@settings(max_examples=EXAMPLES)
@given(begin, st.lists(st.tuples(st.sampled_from((1, 1, 2)), request), min_size=15, max_size=60), st.integers(0, 50))
def test_random_requests_are_answered_as_the_oracle_answers(first, steps, snapshot_at):
    shard, oracle = TopologyShard(1, Config(**LIMITS), b"salt"), Oracle(**LIMITS)
    shard.begin_handback(())
    follower = Topology.restore(shard.snapshot())
    late_follower = None
    for number, (sid, (verb, fields)) in enumerate([(1, step) for step in first] + steps):
        if isinstance(fields, int):
            source, kind, *rest = sorted(oracle.bindings)[fields % len(oracle.bindings)] if oracle.bindings else ("t", "queue", "p", "")
            fields = (kind, rest[0], source, rest[1], {})
        if number == snapshot_at:
            late_follower = Topology.restore(shard.snapshot())
        before = shard.topology.number
        records, code, result = shard.request(0, sid, verb, "/", list(fields), 0)
        assert (CODE_OF_NUMBER[code] if code else "ok") == oracle.request(sid, verb, *fields), (verb, fields, result)
        if code:
            assert not records
            assert isinstance(result, str)
        assert [record[0] for record in records] == list(range(before + 1, before + 1 + len(records)))
        for record in records:
            follower.apply(record)
            if late_follower is not None:
                late_follower.apply(record)
    expected = shard.snapshot()
    assert follower.snapshot() == expected
    assert late_follower is None or late_follower.snapshot() == expected
    for topology in (shard.topology, follower, Topology.restore(expected)):
        check_routes(topology, oracle)


@given(st.lists(request, min_size=10, max_size=40))
def test_a_topology_from_which_everything_is_taken_holds_nothing_more(steps):
    shard = TopologyShard(1, Config(), b"salt")
    shard.begin_handback(())
    empty = shard.snapshot()[1]
    for verb, fields in (*FIRST, *steps):
        if isinstance(fields, int):
            continue
        shard.request(0, 1, verb, "/", list(fields), 0)
    for binding_ in list(shard.topology.bindings.values()):
        kind = "exchange" if binding_.kind else "queue"
        ends = shard.topology.exchanges if binding_.kind else shard.topology.queues
        names = shard.topology.exchanges.get(binding_.source), ends.get(binding_.destination)
        if all(names):
            shard.request(0, 1, Verb.UNBIND, "/", [kind, names[1].name, names[0].name, binding_.key, {}], 0)
    for queue_ in list(shard.topology.queues.values()):
        shard.request(0, 1, Verb.DELETE_QUEUE, "/", [queue_.name, {}], 0)
    for exchange_ in list(shard.topology.exchanges.values()):
        shard.request(0, 1, Verb.DELETE_EXCHANGE, "/", [exchange_.name, {}], 0)
    assert shard.snapshot()[1] == empty
    fresh = Topology()
    for name, value in vars(shard.topology).items():
        if name not in ("number", "_tables", "_queues_of_shard"):
            held, expected = (getattr(rows, "_rows", rows) for rows in (value, vars(fresh)[name]))
            assert held == expected, name
    assert not any(vars(shard.topology)["_queues_of_shard"].values())
