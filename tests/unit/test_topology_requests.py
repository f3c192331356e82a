"""What shard T answers: names, options, what exists already, what is reserved, locked or too much."""

import msgpack
import pytest

from fastmq.config import Config
from fastmq.errors import CODE_OF_NUMBER
from fastmq.model.topology import RecordKind, Topology
from fastmq.model.topology_shard import TopologyShard
from fastmq.wire.shards import shard_of
from fastmq.wire.verbs import Verb

EPOCH = 3
LONG = "n" * 256


class Asker:
    """One session's requests, with the code's name as the answer."""

    def __init__(self, shard: TopologyShard, sid: int = 7) -> None:
        self.shard, self.sid = shard, sid

    def __call__(self, verb, *fields, vhost="/"):
        self.records, code, self.result = self.shard.request(0, self.sid, verb, vhost, list(fields), 0)
        return CODE_OF_NUMBER[code] if code else "ok"


@pytest.fixture
def shard():
    shard = TopologyShard(EPOCH, Config(queues_max=50, exchanges_max=50, bindings_max=50), b"salt")
    assert shard.begin_handback(())
    return shard


@pytest.fixture
def ask(shard):
    ask = Asker(shard)
    assert ask(Verb.DECLARE_EXCHANGE, "logs", "topic", {}) == "ok"
    assert ask(Verb.DECLARE_QUEUE, "jobs", {"durable": True}) == "ok"
    return ask


def test_predeclared_exchanges_are_there_and_no_headers_exchange():
    names = {exchange.name: exchange for exchange in Topology().exchanges.values()}
    assert set(names) == {"amq.direct", "amq.fanout", "amq.topic"}
    assert all(exchange.durable and not exchange.internal and exchange.vhost == "/" for exchange in names.values())


def test_records_are_numbered_from_the_epoch_and_name_what_they_declare(shard, ask):
    assert shard.topology.exchange("/", "logs").id == (EPOCH << 32) + 1
    assert ask(Verb.BIND, "queue", "jobs", "logs", "a.#", {}) == "ok"
    assert ask.records == [[(EPOCH << 32) + 3, RecordKind.BOUND, (EPOCH << 32) + 1, 0, (EPOCH << 32) + 2, "a.#"]]
    assert shard.topology.number == (EPOCH << 32) + 3


def test_records_and_snapshots_are_plain_msgpack(shard, ask):
    ask(Verb.BIND, "exchange", "amq.fanout", "logs", "#", {})
    assert msgpack.unpackb(msgpack.packb(ask.records)) == ask.records
    snapshot = shard.snapshot()
    restored = Topology.restore(msgpack.unpackb(msgpack.packb(snapshot)))
    assert restored.snapshot() == snapshot
    assert all(type(value) in (int, str) for record in snapshot[1] for value in record)


def test_declared_queue_is_told_with_id_name_and_shard(shard, ask):
    assert ask(Verb.DECLARE_QUEUE, "other", {}) == "ok"
    queue = shard.topology.queue("/", "other")
    assert ask.result == {"id": queue.id, "name": "other", "shard": shard_of("/", "other", 64)}
    assert queue.durable and not queue.exclusive and not queue.auto_delete and queue.owner == 0
    assert queue in shard.topology.queues_of_shard(queue.shard)


def test_an_equal_declare_again_changes_nothing_and_tells_the_same(shard, ask):
    first = ask(Verb.DECLARE_QUEUE, "other", {}), ask.result
    assert (ask(Verb.DECLARE_QUEUE, "other", {"durable": True, "exclusive": False}), ask.result) == first
    assert ask.records == []
    assert ask(Verb.DECLARE_EXCHANGE, "logs", "topic", {"durable": True}) == "ok"
    assert ask.records == []


@pytest.mark.parametrize(("verb", "fields", "differs"), [
    (Verb.DECLARE_QUEUE, ("jobs", {"durable": False}), "durable=True, not False"),
    (Verb.DECLARE_QUEUE, ("jobs", {"exclusive": True}), "exclusive=False, not True"),
    (Verb.DECLARE_QUEUE, ("jobs", {"auto_delete": True}), "auto_delete=False, not True"),
    (Verb.DECLARE_EXCHANGE, ("logs", "fanout", {}), "type=topic, not 'fanout'"),
    (Verb.DECLARE_EXCHANGE, ("logs", "nothing", {}), "type=topic, not 'nothing'"),
    (Verb.DECLARE_EXCHANGE, ("logs", "topic", {"durable": False}), "durable=True, not False"),
    (Verb.DECLARE_EXCHANGE, ("logs", "topic", {"internal": True}), "internal=False, not True"),
    (Verb.DECLARE_EXCHANGE, ("amq.topic", "topic", {"durable": False}), "durable=True, not False"),
])  # fmt: skip
def test_a_different_declare_names_what_differs(ask, verb, fields, differs):
    assert ask(verb, *fields) == "precondition-failed"
    assert differs in ask.result


@pytest.mark.parametrize(("verb", "fields", "code"), [
    (Verb.DECLARE_QUEUE, ("jobs", {"passive": True}), "ok"),
    (Verb.DECLARE_QUEUE, ("jobs", {"passive": True, "durable": False}), "ok"),
    (Verb.DECLARE_QUEUE, ("none", {"passive": True}), "no-queue"),
    (Verb.DECLARE_QUEUE, ("", {"passive": True}), "bad-request"),
    (Verb.DECLARE_EXCHANGE, ("logs", "direct", {"passive": True}), "ok"),
    (Verb.DECLARE_EXCHANGE, ("none", "direct", {"passive": True}), "no-exchange"),
])  # fmt: skip
def test_passive_only_asks(ask, verb, fields, code):
    assert ask(verb, *fields) == code
    assert ask.records == []


@pytest.mark.parametrize(("verb", "fields", "code", "says"), [
    (Verb.DECLARE_QUEUE, ("x", {"max_length": 5}), "unknown-argument", "'max_length'"),
    (Verb.DECLARE_QUEUE, ("x", {3: True}), "unknown-argument", "3"),
    (Verb.DECLARE_QUEUE, ("x", {"durable": 1}), "bad-request", "'durable'"),
    (Verb.DECLARE_QUEUE, ("x", {"durable": "x" * 5000}), "bad-request", "..."),
    (Verb.DECLARE_EXCHANGE, ("x", "topic", {"exclusive": True}), "unknown-argument", "'exclusive'"),
    (Verb.DECLARE_EXCHANGE, ("x", "headers", {}), "unknown-argument", "'headers'"),
    (Verb.DELETE_QUEUE, ("jobs", {"if_empty": True}), "unknown-argument", "'if_empty'"),
    (Verb.DELETE_EXCHANGE, ("logs", {"passive": True}), "unknown-argument", "'passive'"),
    (Verb.BIND, ("queue", "jobs", "logs", "a", {"x-match": "all"}), "unknown-argument", "'x-match'"),
    (Verb.BIND, ("topic", "jobs", "logs", "a", {}), "bad-request", "'topic'"),
    (Verb.BIND, ("queue", "jobs", "logs", "a"), "bad-request", "BIND takes kind (str), destination (str)"),
    (Verb.DECLARE_QUEUE, (b"x", {}), "bad-request", "name (str)"),
    (Verb.DECLARE_QUEUE, ("x", None), "bad-request", "options (dict)"),
    (Verb.PUBLISH, ("x",), "unknown-verb", "2"),
    (99, (), "unknown-verb", "99"),
])  # fmt: skip
def test_a_bad_request_is_told_what_is_wrong(ask, verb, fields, code, says):
    assert ask(verb, *fields) == code
    assert says in ask.result
    assert len(ask.result) < 300
    assert ask.records == []


@pytest.mark.parametrize("fields", [
    (Verb.DECLARE_QUEUE, "{}", {}), (Verb.DELETE_QUEUE, "{}", {}), (Verb.DECLARE_EXCHANGE, "{}", "topic", {}),
    (Verb.DELETE_EXCHANGE, "{}", {}), (Verb.BIND, "queue", "jobs", "logs", "{}", {}),
    (Verb.BIND, "queue", "{}", "logs", "a", {}), (Verb.UNBIND, "queue", "jobs", "{}", "a", {}),
])  # fmt: skip
@pytest.mark.parametrize(("name", "code"), [
    (LONG, "too-large"), ("ä" * 128, "too-large"), ("a\0b", "bad-request"), ("\ud800", "bad-request"),
])  # fmt: skip
def test_names_and_keys_are_limited_everywhere(ask, fields, name, code):
    verb, *rest = [name if field == "{}" else field for field in fields]
    assert ask(verb, *[field if type(field) is not dict else {} for field in rest]) == code


@pytest.mark.parametrize("name", ["n" * 255, "ä" * 127, "a", " ", "…", "x{tag}y"])
def test_names_up_to_the_limit_are_taken(shard, ask, name):
    assert ask(Verb.DECLARE_QUEUE, name, {}) == "ok"
    assert ask(Verb.DECLARE_EXCHANGE, name, "direct", {}) == "ok"
    assert shard.topology.queue("/", name).name == name


@pytest.mark.parametrize(("verb", "fields", "code"), [
    (Verb.DECLARE_QUEUE, ("amq.mine", {}), "access-refused"),
    (Verb.DECLARE_EXCHANGE, ("amq.mine", "topic", {}), "access-refused"),
    (Verb.DECLARE_EXCHANGE, ("amq.topic", "topic", {}), "ok"),
    (Verb.DECLARE_EXCHANGE, ("", "direct", {}), "access-refused"),
    (Verb.DELETE_EXCHANGE, ("amq.topic", {}), "access-refused"),
    (Verb.DELETE_EXCHANGE, ("", {}), "access-refused"),
    (Verb.BIND, ("queue", "jobs", "", "a", {}), "access-refused"),
    (Verb.BIND, ("exchange", "", "logs", "a", {}), "access-refused"),
    (Verb.BIND, ("queue", "", "logs", "a", {}), "bad-request"),
    (Verb.BIND, ("queue", "jobs", "amq.topic", "a", {}), "ok"),
    (Verb.BIND, ("queue", "none", "logs", "a", {}), "no-queue"),
    (Verb.BIND, ("queue", "jobs", "none", "a", {}), "no-exchange"),
    (Verb.BIND, ("exchange", "none", "logs", "a", {}), "no-exchange"),
    (Verb.UNBIND, ("queue", "none", "logs", "a", {}), "ok"),
    (Verb.UNBIND, ("exchange", "none", "none", "a", {}), "ok"),
    (Verb.DELETE_QUEUE, ("none", {}), "ok"),
    (Verb.DELETE_EXCHANGE, ("none", {}), "ok"),
])  # fmt: skip
def test_reserved_names_and_missing_things(ask, verb, fields, code):
    assert ask(verb, *fields) == code
    assert ask.result is None or code != "ok" or "id" in ask.result


def test_another_virtual_host_does_not_exist(ask):
    assert ask(Verb.DECLARE_QUEUE, "x", {}, vhost="/other") == "no-vhost"


def test_queues_without_a_name_get_one_of_their_own(shard, ask):
    names = set()
    for _ in range(20):
        assert ask(Verb.DECLARE_QUEUE, "", {"exclusive": True}) == "ok"
        names.add(ask.result["name"])
    assert len(names) == 20
    assert all(name.startswith("amq.gen-") and len(name) < 40 for name in names)
    assert ask(Verb.DECLARE_QUEUE, names.pop(), {"exclusive": True}) == "ok"
    assert ask.records == []
    other = TopologyShard(EPOCH, Config(), b"pepper")
    other.begin_handback(())
    assert Asker(other)(Verb.DECLARE_QUEUE, "", {}) == "ok"
    assert not other.topology._queue_ids.keys() & shard.topology._queue_ids.keys()


def test_an_exclusive_queue_is_locked_for_others(shard, ask):
    other = Asker(shard, sid=8)
    assert ask(Verb.DECLARE_QUEUE, "mine", {"exclusive": True}) == "ok"
    assert shard.topology.queue("/", "mine").owner == 7
    assert shard.topology.queues_of_owner(7) == [shard.topology.queue("/", "mine")]
    for verb, fields in (
        (Verb.DECLARE_QUEUE, ("mine", {"exclusive": True})),
        (Verb.DECLARE_QUEUE, ("mine", {"passive": True})),
        (Verb.BIND, ("queue", "mine", "logs", "a", {})),
        (Verb.UNBIND, ("queue", "mine", "logs", "a", {})),
        (Verb.DELETE_QUEUE, ("mine", {})),
    ):
        assert other(verb, *fields) == "resource-locked"
        assert ask(verb, *fields) == "ok"


def test_a_publish_is_refused_where_there_is_nothing_to_publish_to(shard, ask):
    ask(Verb.DECLARE_EXCHANGE, "inner", "fanout", {"internal": True})
    ask(Verb.BIND, "exchange", "inner", "logs", "#", {})
    ask(Verb.BIND, "queue", "jobs", "inner", "", {})
    topology = shard.topology
    jobs = topology.queue("/", "jobs").id
    for exchange, key, code in (("none", "a", "no-exchange"), ("", "none", "no-queue"), ("inner", "a", "access-refused")):
        with pytest.raises(Exception) as raised:
            topology.route("/", exchange, key)
        assert raised.value.code == code
    assert topology.route("/", "logs", "any.thing") == (jobs,)
    assert topology.route("/", "", "jobs") == (jobs,)
    assert topology.route("/", "amq.direct", "jobs") == ()


def test_exchanges_bound_in_a_circle_reach_each_queue_once(shard, ask):
    for name in ("a", "b", "c"):
        ask(Verb.DECLARE_EXCHANGE, name, "fanout", {})
        ask(Verb.BIND, "queue", "jobs", name, "", {})
        ask(Verb.BIND, "queue", "jobs", name, "again", {})
    for source, destination in ("ab", "bc", "ca", "aa"):
        assert ask(Verb.BIND, "exchange", destination, source, "", {}) == "ok"
    assert shard.topology.route("/", "b", "key") == (shard.topology.queue("/", "jobs").id,)
    assert ask(Verb.DELETE_EXCHANGE, "a", {}) == "ok"
    assert shard.topology.route("/", "b", "key") == (shard.topology.queue("/", "jobs").id,)


def test_auto_delete_exchanges_go_with_their_last_binding_one_after_another(shard, ask):
    for name in ("first", "second"):
        ask(Verb.DECLARE_EXCHANGE, name, "fanout", {"auto_delete": True})
    ask(Verb.BIND, "exchange", "second", "first", "", {})
    ask(Verb.BIND, "queue", "jobs", "second", "a", {})
    ask(Verb.BIND, "queue", "jobs", "second", "b", {})
    assert ask(Verb.UNBIND, "queue", "jobs", "second", "a", {}) == "ok"
    assert shard.topology.exchange("/", "second") is not None
    assert ask(Verb.DELETE_QUEUE, "jobs", {}) == "ok"
    assert [record[1] for record in ask.records] == [
        RecordKind.QUEUE_DELETED, RecordKind.EXCHANGE_DELETED, RecordKind.EXCHANGE_DELETED,
    ]  # fmt: skip
    assert shard.topology.exchange("/", "first") is None
    assert shard.topology.exchange("/", "second") is None
    assert not shard.topology.bindings


@pytest.mark.parametrize(("limit", "fields"), [
    ("queues_max", (Verb.DECLARE_QUEUE, "q{}", {})),
    ("exchanges_max", (Verb.DECLARE_EXCHANGE, "e{}", "topic", {})),
    ("bindings_max", (Verb.BIND, "queue", "jobs", "logs", "k{}", {})),
])  # fmt: skip
def test_what_is_beyond_a_limit_is_refused_and_room_is_used_again(limit, fields):
    shard = TopologyShard(EPOCH, Config(**{limit: 6}))
    shard.begin_handback(())
    ask = Asker(shard)
    ask(Verb.DECLARE_EXCHANGE, "logs", "topic", {})
    ask(Verb.DECLARE_QUEUE, "jobs", {})
    codes = [ask(*(field.format(n) if isinstance(field, str) else field for field in fields)) for n in range(8)]
    assert "limit" in codes and limit in ask.result
    assert sorted(codes, key=lambda code: code == "limit") == codes
    undo = {Verb.DECLARE_QUEUE: Verb.DELETE_QUEUE, Verb.DECLARE_EXCHANGE: Verb.DELETE_EXCHANGE, Verb.BIND: Verb.UNBIND}
    name = [field.format(0) if isinstance(field, str) else field for field in fields[1:] if field != "topic"]
    assert ask(undo[fields[0]], *name) == "ok"
    assert ask(*(field.format(9) if isinstance(field, str) else field for field in fields)) == "ok"
