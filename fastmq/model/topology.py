"""Exchanges, queues and bindings, and the way of a message through them: what shard T decides and everybody follows.

Owns: the state of shard T, as T (topology_shard.py) and every front-end hold it. Rules: nothing changes it but `apply`
(and, after a death, `adopt`); equal records make equal topologies; a record costs what it changes and no more; the
number of the record that declares something is its id, never used again. Process: front-end, and worker 0.

A record is a plain list, [number, kind, fields...], its kind and fields as in `RecordKind`. A snapshot is
[number, records]: each thing that exists as the record that declared it, ascending, so that ends precede bindings.
To add a kind: a `RecordKind`, a method beside `_exchange_declared`, a row in `_APPLY`, and the way back in `snapshot`.
"""
from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from fastmq.errors import NotFound, Refused
from fastmq.model.exchanges import TABLES, Relation, Table
from fastmq.wire.link import QueueFlag

Record = list[Any]


class RecordKind(enum.IntEnum):
    """The changes of a topology, each with the fields behind [number, kind]."""

    EXCHANGE_DECLARED = 1       # vhost, name, type, ExchangeFlag bits
    EXCHANGE_DELETED = 2        # exchange; its bindings, from it and to it, go with it
    QUEUE_DECLARED = 3          # vhost, name, QueueFlag bits, owner's sid or 0, shard
    QUEUE_DELETED = 4           # queue; its bindings go with it
    BOUND = 5                   # source exchange, DestinationKind, destination, key
    UNBOUND = 6                 # binding


class ExchangeFlag(enum.IntEnum):
    DURABLE = 1                 # bits
    AUTO_DELETE = 2
    INTERNAL = 4


class DestinationKind(enum.IntEnum):
    QUEUE = 0
    EXCHANGE = 1


class Exchange(NamedTuple):
    id: int
    vhost: str
    name: str
    type: str
    flags: int

    @property
    def durable(self) -> bool:
        return bool(self.flags & ExchangeFlag.DURABLE)

    @property
    def auto_delete(self) -> bool:
        return bool(self.flags & ExchangeFlag.AUTO_DELETE)

    @property
    def internal(self) -> bool:
        return bool(self.flags & ExchangeFlag.INTERNAL)


class Queue(NamedTuple):
    id: int
    vhost: str
    name: str
    flags: int
    owner: int          # public half of the session that an exclusive queue belongs to, else 0
    shard: int

    @property
    def durable(self) -> bool:
        return bool(self.flags & QueueFlag.QUEUE_DURABLE)

    @property
    def exclusive(self) -> bool:
        return bool(self.flags & QueueFlag.QUEUE_EXCLUSIVE)

    @property
    def auto_delete(self) -> bool:
        return bool(self.flags & QueueFlag.QUEUE_AUTO_DELETE)


class Binding(NamedTuple):
    id: int
    source: int         # exchange
    kind: int           # DestinationKind
    destination: int    # queue or exchange
    key: str


VHOSTS = frozenset({"/"})
# The same in every broker and every epoch; What any T declares has a number above 2^32.
PREDECLARED: tuple[Record, ...] = tuple(
    [number, int(RecordKind.EXCHANGE_DECLARED), "/", f"amq.{type_}", type_, int(ExchangeFlag.DURABLE)]
    for number, type_ in ((1, "direct"), (2, "fanout"), (3, "topic"))
)


class Topology:
    """Exchanges, queues and bindings, and where a message goes.

    `number` is that of the last record applied; 0: only what is pre-declared, nothing from any T yet.
    `exchanges`, `queues` and `bindings` map ids. They are to be read, not changed.
    """

    def __init__(self, records: Iterable[Record] = PREDECLARED) -> None:
        self.number = 0
        self.exchanges: dict[int, Exchange] = {}
        self.queues: dict[int, Queue] = {}
        self.bindings: dict[int, Binding] = {}
        self._exchange_ids: dict[tuple[str, str], int] = {}
        self._queue_ids: dict[tuple[str, str], int] = {}
        self._binding_ids: dict[tuple[int, int, str], int] = {}     # (source, destination, key)
        self._tables: dict[int, Table] = {}                         # exchange -> what its type makes of its bindings
        self._bindings_from: Relation[int] = Relation()             # exchange -> bindings
        self._bindings_to: Relation[int] = Relation()               # queue or exchange -> bindings
        self._queues_of_shard: dict[int, dict[int, Queue]] = {}
        self._queues_of_owner: Relation[int] = Relation()           # sid -> its exclusive queues
        for record in records:
            _APPLY[record[1]](self, *record[2:], number=record[0])

    # ---- records

    def apply(self, record: Record) -> Exchange | Queue | Binding:
        """Take the next record of T; what it declared, or what it removed, is returned."""
        number = record[0]
        assert number > self.number, f"topology record {number} after {self.number}"
        changed: Exchange | Queue | Binding = _APPLY[record[1]](self, *record[2:], number=number)
        self.number = number
        return changed

    def snapshot(self) -> list[Any]:
        """All of it as a plain value, for `restore`."""
        records: list[Record] = [[e.id, int(RecordKind.EXCHANGE_DECLARED), *e[1:]] for e in self.exchanges.values()]
        records += [[q.id, int(RecordKind.QUEUE_DECLARED), *q[1:]] for q in self.queues.values()]
        records += [[b.id, int(RecordKind.BOUND), *b[1:]] for b in self.bindings.values()]
        records.sort(key=_number_of)
        return [self.number, records]

    @classmethod
    def restore(cls, snapshot: list[Any]) -> Topology:
        """A topology equal to the one that the snapshot was taken of."""
        number, records = snapshot
        topology = cls(records)
        topology.number = number
        return topology

    def adopt(self, records: Iterable[Record]) -> int:
        """Take over what another topology holds (the records of its snapshot) and this one does not; how much that was.

        It keeps its ids. Of two things of one name this one's stays; a binding without its ends is left out.
        """
        adopted = 0
        for record in records:
            number, kind, *fields = record
            if kind == RecordKind.BOUND:
                source, _, destination, key = fields
                known = number in self.bindings or (source, destination, key) in self._binding_ids
                known = known or source not in self.exchanges
                known = known or (destination not in self.queues and destination not in self.exchanges)
            else:
                ids = self._queue_ids if kind == RecordKind.QUEUE_DECLARED else self._exchange_ids
                known = (fields[0], fields[1]) in ids
            if not known:
                _APPLY[kind](self, *fields, number=number)
                adopted += 1
        return adopted

    def _exchange_declared(self, vhost: str, name: str, type_: str, flags: int, *, number: int) -> Exchange:
        exchange = Exchange(number, vhost, name, type_, flags)
        self.exchanges[number] = exchange
        self._exchange_ids[vhost, name] = number
        self._tables[number] = TABLES[type_]()
        return exchange

    def _exchange_deleted(self, exchange_id: int, *, number: int) -> Exchange:
        for binding in [*self._bindings_from.get(exchange_id), *self._bindings_to.get(exchange_id)]:
            if binding in self.bindings:            # an exchange bound to itself stands in both
                self._unbound(binding, number=number)
        exchange = self.exchanges.pop(exchange_id)
        del self._exchange_ids[exchange.vhost, exchange.name], self._tables[exchange_id]
        return exchange

    def _queue_declared(self, vhost: str, name: str, flags: int, owner: int, shard: int, *, number: int) -> Queue:
        queue = Queue(number, vhost, name, flags, owner, shard)
        self.queues[number] = queue
        self._queue_ids[vhost, name] = number
        self._queues_of_shard.setdefault(shard, {})[number] = queue
        if owner:
            self._queues_of_owner.add(owner, number)
        return queue

    def _queue_deleted(self, queue_id: int, *, number: int) -> Queue:
        for binding in [*self._bindings_to.get(queue_id)]:
            self._unbound(binding, number=number)
        queue = self.queues.pop(queue_id)
        del self._queue_ids[queue.vhost, queue.name], self._queues_of_shard[queue.shard][queue_id]
        if queue.owner:
            self._queues_of_owner.remove(queue.owner, queue_id)
        return queue

    def _bound(self, source: int, kind: int, destination: int, key: str, *, number: int) -> Binding:
        binding = Binding(number, source, kind, destination, key)
        self.bindings[number] = binding
        self._binding_ids[source, destination, key] = number
        self._bindings_from.add(source, number)
        self._bindings_to.add(destination, number)
        self._tables[source].add(key, destination)
        return binding

    def _unbound(self, binding_id: int, *, number: int) -> Binding:
        binding = self.bindings.pop(binding_id)
        del self._binding_ids[binding.source, binding.destination, binding.key]
        self._bindings_from.remove(binding.source, binding_id)
        self._bindings_to.remove(binding.destination, binding_id)
        self._tables[binding.source].remove(binding.key, binding.destination)
        return binding

    # ---- looking up

    def exchange(self, vhost: str, name: str) -> Exchange | None:
        """The exchange of this name; the default exchange, which has none, is not among them."""
        exchange_id = self._exchange_ids.get((vhost, name))
        return None if exchange_id is None else self.exchanges[exchange_id]

    def queue(self, vhost: str, name: str) -> Queue | None:
        """The queue of this name."""
        queue_id = self._queue_ids.get((vhost, name))
        return None if queue_id is None else self.queues[queue_id]

    def binding(self, source: int, destination: int, key: str) -> Binding | None:
        """The binding from an exchange to a queue or exchange with this key."""
        binding_id = self._binding_ids.get((source, destination, key))
        return None if binding_id is None else self.bindings[binding_id]

    def bindings_from(self, exchange: int) -> list[Binding]:
        """The bindings whose source an exchange is."""
        return [self.bindings[binding] for binding in self._bindings_from.get(exchange)]

    def bindings_to(self, destination: int) -> list[Binding]:
        """The bindings to a queue or an exchange."""
        return [self.bindings[binding] for binding in self._bindings_to.get(destination)]

    def has_bindings_from(self, exchange: int) -> bool:
        return exchange in self._bindings_from

    def queues_of_shard(self, shard: int) -> list[Queue]:
        """The queues that a shard holds."""
        return list(self._queues_of_shard.get(shard, {}).values())

    def queues_of_owner(self, sid: int) -> list[Queue]:
        """The exclusive queues of a session."""
        return [self.queues[queue] for queue in self._queues_of_owner.get(sid)]

    # ---- routing

    def route(self, vhost: str, exchange: str, key: str, headers: Mapping[str, Any] | None = None) -> tuple[int, ...]:
        """The ids of the queues that a publish reaches, each once; empty: unroutable.

        Raises NotFound `no-exchange`, or `no-queue` at the default exchange (""), and Refused `access-refused` at an
        internal exchange. The answer holds until `number` changes.
        """
        if not exchange:
            queue = self._queue_ids.get((vhost, key))
            if queue is None:
                raise NotFound(f"there is no queue {key!r} in {vhost!r}", "no-queue")
            return (queue,)
        exchange_id = self._exchange_ids.get((vhost, exchange))
        if exchange_id is None:
            raise NotFound(f"there is no exchange {exchange!r} in {vhost!r}", "no-exchange")
        if self.exchanges[exchange_id].flags & ExchangeFlag.INTERNAL:
            raise Refused(f"exchange {exchange!r} is internal: only exchanges publish to it", "access-refused")
        return self._reach(exchange_id, key, headers)

    def _reach(self, exchange: int, key: str, headers: Mapping[str, Any] | None) -> tuple[int, ...]:
        """The queues behind an exchange and the exchanges bound to it, each exchange visited once."""
        queues: dict[int, None] = {}
        visited = {exchange}
        pending = [exchange]
        while pending:
            for destination in self._tables[pending.pop()].match(key, headers):
                if destination in self.queues:
                    queues[destination] = None
                elif destination not in visited:
                    visited.add(destination)
                    pending.append(destination)
        return tuple(queues)


def is_kept(record: Record, topology: Topology) -> bool:
    """Whether a record, about to be applied to this topology or applied already, is to survive in a log: it concerns what is durable."""
    kind, *fields = record[1:]
    if kind == RecordKind.EXCHANGE_DECLARED:
        return bool(fields[3] & ExchangeFlag.DURABLE)
    if kind == RecordKind.QUEUE_DECLARED:
        return _is_durable_queue(fields[2])
    if kind in (RecordKind.EXCHANGE_DELETED, RecordKind.QUEUE_DELETED):
        return _has_durable(topology, fields[0])
    if kind == RecordKind.UNBOUND:
        binding = topology.bindings[fields[0]]
        return _has_durable(topology, binding.source) and _has_durable(topology, binding.destination)
    return _has_durable(topology, fields[0]) and _has_durable(topology, fields[2])


def _is_durable_queue(flags: int) -> bool:
    return flags & (QueueFlag.QUEUE_DURABLE | QueueFlag.QUEUE_EXCLUSIVE) == QueueFlag.QUEUE_DURABLE


def _has_durable(topology: Topology, id: int) -> bool:
    exchange = topology.exchanges.get(id)
    return exchange.durable if exchange is not None else _is_durable_queue(topology.queues[id].flags)


def _number_of(record: Record) -> int:
    number: int = record[0]
    return number


_APPLY: dict[int, Callable[..., Any]] = {
    RecordKind.EXCHANGE_DECLARED: Topology._exchange_declared,
    RecordKind.EXCHANGE_DELETED: Topology._exchange_deleted,
    RecordKind.QUEUE_DECLARED: Topology._queue_declared,
    RecordKind.QUEUE_DELETED: Topology._queue_deleted,
    RecordKind.BOUND: Topology._bound,
    RecordKind.UNBOUND: Topology._unbound,
}
