"""Shard T: who decides about exchanges, queues and bindings.

Owns: the numbers of topology records, and the claims on what ends with its session or its consumers. Rules: a change is
a record, applied here and returned to be told to all front-ends in order; what is refused changes nothing; nothing is
taken before every front-end that was alive when this T began has handed back what it knows. Process: worker 0.

    begun --begin_handback--> waiting --the last handback, or that front-end gone--> ready, snapshot to all

A front-end answers the first snapshot on a new link with its whole view, and takes over a snapshot whose number is
above its own: that of a waiting T is 0, so a front-end with a view goes on by it; that of a ready one is new.
"""
from __future__ import annotations

import base64
from collections.abc import Callable, Iterable
from typing import Any

from fastmq.config import Config
from fastmq.errors import NUMBER_OF_CODE, TEXT_OF_NUMBER, FastMQError, NotFound, Refused, Unavailable
from fastmq.model.claims import Claims
from fastmq.model.exchanges import TABLES
from fastmq.model.topology import (
    VHOSTS,
    Binding,
    DestinationKind,
    Exchange,
    ExchangeFlag,
    Queue,
    Record,
    RecordKind,
    Topology,
    is_kept,
)
from fastmq.wire.digest import blake2b
from fastmq.wire.limits import Limit
from fastmq.wire.link import QueueFlag
from fastmq.wire.shards import shard_of
from fastmq.wire.verbs import Code, Verb

Options = dict[str, Any]
EXCHANGE_OPTIONS: dict[str, int] = {
    "durable": ExchangeFlag.DURABLE,
    "auto_delete": ExchangeFlag.AUTO_DELETE,
    "internal": ExchangeFlag.INTERNAL,
}
QUEUE_OPTIONS: dict[str, int] = {
    "durable": QueueFlag.QUEUE_DURABLE,
    "exclusive": QueueFlag.QUEUE_EXCLUSIVE,
    "auto_delete": QueueFlag.QUEUE_AUTO_DELETE,
}
_ADDS = frozenset({RecordKind.EXCHANGE_DECLARED, RecordKind.QUEUE_DECLARED, RecordKind.BOUND})
OPTIONS_TRUE_BY_DEFAULT = frozenset({"durable"})
EPOCH_NUMBER_MIN = 1 << 32          # below it: what is pre-declared
RESERVED_PREFIX = "amq."
SERVER_NAMED_PREFIX = "amq.gen-"


class TopologyShard:
    """Decides about declares, binds and deletes, one request after another."""

    def __init__(self, epoch: int, config: Config, salt: bytes = b"", *, keeps: bool = False) -> None:
        """`salt` (at most 64 bytes) makes the names that this T gives to queues unlike those of any other.

        `keeps`: a log has what is durable, so front-ends hand back only the rest.
        """
        self.topology = Topology()
        self._keeps = keeps
        self._kept: list[Record] = []                           # records for the log
        self.ready = False
        self.full = False                                       # the log has no room for more: what is durable is refused
        self._epoch_number = epoch << 32
        self._number = self._epoch_number
        self._config = config
        self._salt = salt
        self._records: list[Record] = []                        # of the request in hand
        self._begun = False
        self._awaited: set[int] = set()                         # front-ends that are to hand back
        self._handed_back: list[Any] = [0, []]                  # of what was handed back: that with the highest number
        resume_ns = int(config.resume_s * 10**9)
        self._sessions = Claims(resume_ns)                      # sessions that own exclusive queues
        self._consumers = Claims(resume_ns)                     # auto-delete queues that have consumers

    def snapshot(self) -> list[Any]:
        """The topology as a plain value; its number is 0 until this T is ready."""
        return self.topology.snapshot()

    # ---- the log

    def take_kept(self) -> list[Record]:
        """The records made since the last call that are to survive: of what is durable, and not exclusive."""
        kept, self._kept = self._kept, []
        return kept

    def kept_records(self) -> list[Record]:
        """All that is to survive, as the records that declared it; for `recover`."""
        return [record for record in self.topology.snapshot()[1] if record[0] > EPOCH_NUMBER_MIN and is_kept(record, self.topology)]

    def recover(self, records: Iterable[Record]) -> None:
        """Apply records of the log, in order; before `begin_handback`."""
        for record in records:
            self.topology.apply(record)

    # ---- after the death of another T

    def begin_handback(self, frontends: Iterable[int]) -> bool:
        """This T begins, and waits for these front-ends. Whether it is ready: then its snapshot goes to all of them."""
        self.topology.number = 0            # not ready, whatever was recovered
        self._awaited.update(frontends)
        self._begun = True
        return self._finish()

    def frontend_attached(self, frontend: int) -> None:
        """A front-end has a link to this worker, and is sent the snapshot. A T that is not ready waits for it too."""
        if not self.ready:
            self._awaited.add(frontend)

    def frontend_gone(self, frontend: int) -> bool:
        """A front-end died: what was held through it has `resume_s` left, and it is not waited for.

        Whether T became ready by that: then its snapshot goes to all front-ends.
        """
        self._sessions.frontend_gone(frontend)
        self._consumers.frontend_gone(frontend)
        self._awaited.discard(frontend)
        return self._finish()

    def handback(self, frontend: int, snapshot: list[Any]) -> bool:
        """What a front-end knows. Whether T's snapshot is to go to all front-ends now.

        Every view is what some T said up to some number: the one with the highest holds all that is still true.
        """
        if not self.ready:
            if snapshot[0] > self._handed_back[0]:
                self._handed_back = [snapshot[0], self._not_kept(snapshot[1])]
            self._awaited.discard(frontend)
            return self._finish()
        if 0 < snapshot[0] < self._epoch_number and self.topology.adopt(self._not_kept(snapshot[1])):
            self._number += 1               # it was alive when this T began, but nobody had said so
            self.topology.number = self._number
            self._expect_owners()
            return True
        return False

    def _not_kept(self, records: list[Record]) -> list[Record]:
        """What of a snapshot's records no log has: what it has and T does not was deleted since."""
        if not self._keeps:
            return records
        view = Topology(records)
        return [record for record in records if not is_kept(record, view)]

    def _finish(self) -> bool:
        if self.ready or not self._begun or self._awaited:
            return False
        self.topology.adopt(self._handed_back[1])
        self.topology.number = self._number
        self._handed_back = [0, []]
        self.ready = True
        self._sessions.forget_unless({queue.owner for queue in self.topology.queues.values() if queue.owner})
        self._consumers.forget_unless({queue.id for queue in self.topology.queues.values() if queue.auto_delete})
        self._expect_owners()
        return True

    def _expect_owners(self) -> None:
        for queue in self.topology.queues.values():
            if queue.owner:
                self._sessions.expect(queue.owner)

    # ---- what ends with its session or its consumers

    def claim(self, sid: int, frontend: int) -> None:
        """A session is alive on this front-end. Only those that own exclusive queues need be told."""
        if not self.ready or self.topology.queues_of_owner(sid):
            self._sessions.claim(sid, frontend, sole=True)

    def release(self, sid: int, now_ns: int, frontend: int | None = None) -> None:
        """A session's connection has ended (only on `frontend`): its exclusive queues have `resume_s` left."""
        self._sessions.release(sid, now_ns, frontend)

    def forget(self, sid: int) -> list[Record]:
        """A session has said BYE: the records that delete its exclusive queues."""
        self._sessions.forget(sid)
        if self.ready:
            self._delete_queues_of(sid)
        return self._take_records()

    def consumed(self, queue_id: int, frontend: int) -> None:
        """An auto-delete queue has a consumer through this front-end."""
        queue = self.topology.queues.get(queue_id)
        if not self.ready or (queue is not None and queue.auto_delete):
            self._consumers.claim(queue_id, frontend)

    def unused(self, queue_id: int) -> list[Record]:
        """A queue has lost its last consumer: the records that delete it, if it is an auto-delete one."""
        queue = self.topology.queues.get(queue_id)
        if queue is not None and queue.auto_delete and self.ready:
            self._delete(queue)
        return self._take_records()

    def tick(self, now_ns: int) -> list[Record]:
        """The records that delete what nobody has claimed for `resume_s`."""
        if not self.ready:
            return []
        for sid in self._sessions.due(now_ns):
            self._delete_queues_of(sid)
        for queue_id in self._consumers.due(now_ns):
            if queue_id in self.topology.queues:
                self._delete(self.topology.queues[queue_id])
        return self._take_records()

    # ---- requests

    def request(
        self, frontend: int, sid: int, verb: int, vhost: str, fields: list[Any], now_ns: int
    ) -> tuple[list[Record], int, Any]:
        """Decide a request: (records, code, result).

        `fields` are those of docs/protocol.md behind the request's number. The records have been applied here, and go
        to all front-ends before the answer. A code other than OK comes with a sentence as its result, and no records.
        Otherwise the result is {"id", "name", "shard"} of a queue declared or deleted, {"id", "name"} of an exchange,
        None for a binding, and None where there was nothing to delete. `now_ns` will date queues that expire.
        """
        try:
            if not self.ready:
                raise Unavailable("the topology is being recovered; nothing was changed", "unavailable")
            if vhost not in VHOSTS:
                raise NotFound(f"there is no virtual host {vhost!r}", "no-vhost")
            if verb not in _VERBS:
                raise Refused(f"verb {verb} does not concern the topology", "unknown-verb")
            decide, takes = _VERBS[verb]
            if len(fields) != len(takes) or not all(map(isinstance, fields, takes.values())):
                described = ", ".join(f"{name} ({kind.__name__})" for name, kind in takes.items())
                raise Refused(f"{Verb(verb).name} takes {described}", "bad-request")
            result = decide(self, frontend, sid, vhost, *fields)
        except FastMQError as error:
            return [], NUMBER_OF_CODE[error.code], str(error)
        return self._take_records(), Code.OK, result

    def _declare_exchange(
        self, frontend: int, sid: int, vhost: str, name: str, type_: str, options: Options
    ) -> dict[str, Any]:
        flags, passive = _flags(options, EXCHANGE_OPTIONS)
        _check_exchange_name(name)
        exchange = self.topology.exchange(vhost, name)
        if exchange is None:
            if passive:
                raise _no_exchange(vhost, name)
            if type_ not in TABLES:
                types = ", ".join(TABLES)
                raise Refused(f"there is no exchange type {_shown(type_)}; there are {types}", "unknown-argument")
            _check_reserved("exchange", name)
            _check_limit("exchanges", len(self.topology.exchanges), self._config.exchanges_max)
            self._emit(RecordKind.EXCHANGE_DECLARED, vhost, name, type_, flags)
            exchange = self.topology.exchange(vhost, name)
            assert exchange is not None
        elif not passive:
            if exchange.type != type_:
                raise Refused(f"exchange {name!r} has type={exchange.type}, not {_shown(type_)}", "precondition-failed")
            _check_equal(f"exchange {name!r}", exchange.flags, flags, EXCHANGE_OPTIONS)
        return {"id": exchange.id, "name": name}

    def _delete_exchange(
        self, frontend: int, sid: int, vhost: str, name: str, options: Options
    ) -> dict[str, Any] | None:
        _flags(options, {})
        _check_exchange_name(name)
        _check_reserved("exchange", name)
        exchange = self.topology.exchange(vhost, name)
        if exchange is None:
            return None
        self._delete(exchange)
        return {"id": exchange.id, "name": name}

    def _declare_queue(self, frontend: int, sid: int, vhost: str, name: str, options: Options) -> dict[str, Any]:
        flags, passive = _flags(options, QUEUE_OPTIONS)
        if name or passive:
            _check_queue_name(name)
        queue = self.topology.queue(vhost, name)
        if queue is None:
            if passive:
                raise _no_queue(vhost, name)
            if name:
                _check_reserved("queue", name)
            else:
                name = self._server_name()
            _check_limit("queues", len(self.topology.queues), self._config.queues_max)
            owner = sid if flags & QueueFlag.QUEUE_EXCLUSIVE else 0
            shard = shard_of(vhost, name, self._config.shards)
            self._emit(RecordKind.QUEUE_DECLARED, vhost, name, flags, owner, shard)
            queue = self.topology.queue(vhost, name)
            assert queue is not None
        else:
            _check_owner(queue, sid)
            if not passive:
                _check_equal(f"queue {name!r}", queue.flags, flags, QUEUE_OPTIONS)
        if queue.owner:
            self._sessions.claim(sid, frontend, sole=True)
        return {"id": queue.id, "name": name, "shard": queue.shard}

    def _delete_queue(
        self, frontend: int, sid: int, vhost: str, name: str, options: Options
    ) -> dict[str, Any] | None:
        _flags(options, {})
        _check_queue_name(name)
        queue = self.topology.queue(vhost, name)
        if queue is None:
            return None
        _check_owner(queue, sid)
        self._delete(queue)
        return {"id": queue.id, "name": name, "shard": queue.shard}

    def _bind(
        self, frontend: int, sid: int, vhost: str, kind: str, destination: str, source: str, key: str, options: Options
    ) -> None:
        _check_binding(kind, destination, source, key, options)
        exchange = self.topology.exchange(vhost, source)
        if exchange is None:
            raise _no_exchange(vhost, source)
        target = self._destination(sid, vhost, kind, destination)
        if target is None:
            raise _no_queue(vhost, destination) if kind == "queue" else _no_exchange(vhost, destination)
        if self.topology.binding(exchange.id, target.id, key) is None:
            _check_limit("bindings", len(self.topology.bindings), self._config.bindings_max)
            number = DestinationKind.QUEUE if kind == "queue" else DestinationKind.EXCHANGE
            self._emit(RecordKind.BOUND, exchange.id, int(number), target.id, key)

    def _unbind(
        self, frontend: int, sid: int, vhost: str, kind: str, destination: str, source: str, key: str, options: Options
    ) -> None:
        _check_binding(kind, destination, source, key, options)
        exchange = self.topology.exchange(vhost, source)
        target = self._destination(sid, vhost, kind, destination)
        binding = self.topology.binding(exchange.id, target.id, key) if exchange and target else None
        if binding is not None:
            self._emit(RecordKind.UNBOUND, binding.id)
            self._sweep([binding])

    def _destination(self, sid: int, vhost: str, kind: str, name: str) -> Queue | Exchange | None:
        """The queue or exchange of this name, if this session may bind it."""
        if kind == "exchange":
            return self.topology.exchange(vhost, name)
        queue = self.topology.queue(vhost, name)
        if queue is not None:
            _check_owner(queue, sid)
        return queue

    # ---- making records

    def _emit(self, kind: RecordKind, *fields: Any) -> None:
        record = [self._number + 1, int(kind), *fields]
        if self._keeps and is_kept(record, self.topology):
            if self.full and kind in _ADDS:
                raise Refused(TEXT_OF_NUMBER[Code.DISK_FULL], "disk-full")
            self._kept.append(record)
        self._number += 1
        self.topology.apply(record)
        self._records.append(record)

    def _take_records(self) -> list[Record]:
        records, self._records = self._records, []
        return records

    def _delete(self, what: Queue | Exchange) -> None:
        """Delete a queue or an exchange, and the auto-delete exchanges that lose their last binding by it."""
        bindings = self.topology.bindings_to(what.id)
        if isinstance(what, Exchange):
            self._emit(RecordKind.EXCHANGE_DELETED, what.id)
        else:
            self._emit(RecordKind.QUEUE_DELETED, what.id)
            self._consumers.forget(what.id)
            if what.owner and not self.topology.queues_of_owner(what.owner):
                self._sessions.forget(what.owner)
        self._sweep(bindings)

    def _sweep(self, removed: list[Binding]) -> None:
        """Delete the auto-delete exchanges whose last binding was among the removed, and so on from those."""
        pending = {binding.source for binding in removed}
        while pending:
            exchange = self.topology.exchanges.get(pending.pop())
            if exchange is not None and exchange.auto_delete and not self.topology.has_bindings_from(exchange.id):
                pending.update(binding.source for binding in self.topology.bindings_to(exchange.id))
                self._emit(RecordKind.EXCHANGE_DELETED, exchange.id)

    def _delete_queues_of(self, sid: int) -> None:
        for queue in self.topology.queues_of_owner(sid):
            self._delete(queue)

    def _server_name(self) -> str:
        digest = blake2b((self._number + 1).to_bytes(8, "big"), digest_size=15, key=self._salt).digest()
        return SERVER_NAMED_PREFIX + base64.urlsafe_b64encode(digest).decode()


# verb -> who decides it, and its fields in order
_BINDING_FIELDS: dict[str, type] = {"kind": str, "destination": str, "source": str, "key": str, "options": dict}
_VERBS: dict[int, tuple[Callable[..., Any], dict[str, type]]] = {
    Verb.DECLARE_EXCHANGE: (TopologyShard._declare_exchange, {"name": str, "type": str, "options": dict}),
    Verb.DELETE_EXCHANGE: (TopologyShard._delete_exchange, {"name": str, "options": dict}),
    Verb.DECLARE_QUEUE: (TopologyShard._declare_queue, {"name": str, "options": dict}),
    Verb.DELETE_QUEUE: (TopologyShard._delete_queue, {"name": str, "options": dict}),
    Verb.BIND: (TopologyShard._bind, _BINDING_FIELDS),
    Verb.UNBIND: (TopologyShard._unbind, _BINDING_FIELDS),
}


def _flags(options: Options, known: dict[str, int]) -> tuple[int, bool]:
    """(flag bits, passive) of an options map."""
    for name, value in options.items():
        if name not in known and not (name == "passive" and known):
            offered = ", ".join((*known, "passive")) if known else "none"
            raise Refused(f"there is no option {_shown(name)} here; the options are: {offered}", "unknown-argument")
        if not isinstance(value, bool):
            raise Refused(f"option {name!r} is true or false, not {_shown(value)}", "bad-request")
    flags = 0
    for name, flag in known.items():
        if options.get(name, name in OPTIONS_TRUE_BY_DEFAULT):
            flags |= int(flag)
    return flags, options.get("passive", False)


def _check_exchange_name(name: str) -> None:
    if not name:
        raise Refused("the default exchange cannot be declared, deleted or bound", "access-refused")
    _check_text("an exchange's name", name)


def _check_queue_name(name: str) -> None:
    if not name:
        raise Refused("a queue's name is empty; only a declare leaves the name to the broker", "bad-request")
    _check_text("a queue's name", name)


def _check_text(what: str, text: str) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise Refused(f"{what} is not valid UTF-8", "bad-request") from None
    if size > Limit.NAME_SIZE_MAX:
        raise Refused(f"{what} has {size} bytes; {int(Limit.NAME_SIZE_MAX)} are allowed", "too-large")
    if "\0" in text:
        raise Refused(f"{what} contains NUL", "bad-request")


def _check_binding(kind: str, destination: str, source: str, key: str, options: Options) -> None:
    _flags(options, {})
    if kind not in ("queue", "exchange"):
        raise Refused(f"what is bound is of kind 'queue' or 'exchange', not {_shown(kind)}", "bad-request")
    _check_exchange_name(source)
    if kind == "queue":
        _check_queue_name(destination)
    else:
        _check_exchange_name(destination)
    _check_text("a binding's key", key)


def _check_reserved(what: str, name: str) -> None:
    if name.startswith(RESERVED_PREFIX):
        raise Refused(f"{what} {name!r}: names that begin with {RESERVED_PREFIX!r} are reserved", "access-refused")


def _check_limit(what: str, count: int, count_max: int) -> None:
    if count >= count_max:
        raise Refused(f"there are {count} {what}, as many as {what}_max allows", "limit")


def _check_owner(queue: Queue, sid: int) -> None:
    if queue.owner and queue.owner != sid:
        raise Refused(f"queue {queue.name!r} is exclusive to another session", "resource-locked")


def _check_equal(what: str, has: int, wanted: int, names: dict[str, int]) -> None:
    for name, flag in names.items():
        if (has ^ wanted) & flag:
            raise Refused(f"{what} has {name}={bool(has & flag)}, not {bool(wanted & flag)}", "precondition-failed")


def _shown(value: object) -> str:
    """What a client sent, as far as an error's text has room for it."""
    text = repr(value)
    return text if len(text) <= 64 else text[:61] + "..."


def _no_exchange(vhost: str, name: str) -> NotFound:
    return NotFound(f"there is no exchange {name!r} in {vhost!r}", "no-exchange")


def _no_queue(vhost: str, name: str) -> NotFound:
    return NotFound(f"there is no queue {name!r} in {vhost!r}", "no-queue")
