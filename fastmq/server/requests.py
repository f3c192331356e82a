"""What clients ask for beside publishing and settling: consumers, single messages, declares and deletes, live subscriptions, status.

Owns: the consumers of each session (so that a worker that was restarted gets them again) and the requests without an answer. Rules: each
request is answered once; by `unknown` when its worker dies, `unavailable` when that was down before; an answer reaches only the HELLO that
asked; a declare is answered when T's record is applied here and the queue's shard has it. What grows has a bound. Runs in front-ends.
"""
from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import msgpack

from fastmq.config import __version__
from fastmq.errors import CODE_OF_NUMBER, TEXT_OF_NUMBER, FastMQError, NotFound, Refused, Unavailable
from fastmq.model.topology import Queue
from fastmq.server.fields import check_options, read_fields, read_hello, shape_of, shown
from fastmq.server.topology_view import QUEUE_REQUEST, TOPOLOGY_WORKER, TopologyView
from fastmq.wire.limits import Limit
from fastmq.wire.link import LinkKind
from fastmq.wire.values import decode
from fastmq.wire.verbs import Code, Verb

if TYPE_CHECKING:
    from fastmq.config import Config
    from fastmq.server.sessions import Sessions

__all__ = ["LIMITS", "VHOSTS", "Requests", "read_hello", "shape_of"]

PENDING_MAX = 1024              # requests of one session without an answer
STATUS_TOGETHER = 16            # that are answered at once: the work is done once, each answer may be large
STATUS_QUEUES_MAX = 20_000      # queues in one STATUS
UNUSED_AGAIN_NS = 10**9         # between two notices of the same queue
DELETIONS_KEPT = 1024           # deletes whose counts came before T's answer
VHOSTS = ["/"]                  # by number
LIMITS: dict[str, Any] = {      # as WELCOME tells them
    "name_size_max": int(Limit.NAME_SIZE_MAX),
    "properties_size_max": int(Limit.PROPERTIES_SIZE_MAX),
    "message_size_max": int(Limit.MESSAGE_SIZE_MAX),
    "batch_count_max": int(Limit.BATCH_COUNT_MAX),
    "consume_window_max": int(Limit.CONSUMER_WINDOW_MAX),
    "version": __version__,
}
TOPOLOGY_VERBS = frozenset(
    {Verb.DECLARE_EXCHANGE, Verb.DELETE_EXCHANGE, Verb.DECLARE_QUEUE, Verb.DELETE_QUEUE, Verb.BIND, Verb.UNBIND}
)  # fmt: skip
ENDING_VERBS = frozenset({Verb.CANCEL, Verb.UNSUBSCRIBE, Verb.STATUS})      # those that a broker that stops still takes

# The structs of wire/link.pxd that are read and written here; a test compares their sizes.
CONSUME = struct.Struct("<QQQQIIII")    # LinkConsume: token, sid, queue, window_bytes, hello, consumer, window_messages, exclusive
CANCEL = struct.Struct("<QQII")         # LinkCancel: token, sid, consumer, padding
REPLY = struct.Struct("<QII")           # LinkReply: token, code, size
COUNTS = struct.Struct("<QQQII")        # LinkCounts: queue, ready, unacknowledged, consumers, affected
CANCELLED = struct.Struct("<QII")       # LinkCancelled: sid, consumer, code
UNUSED = QUEUE_REQUEST                  # LinkQueueRequest

Counts = tuple[int, int, int, int, int]
Done = Callable[[int, bytes], None]     # what is done with a worker's answer: (Code, payload)


class Consumer(NamedTuple):
    number: int
    queue: int
    window_messages: int
    window_bytes: int
    exclusive: bool


class Client:
    """A session as the requests see it."""

    __slots__ = ("consumers", "hello", "name", "pending", "sid", "vhost")

    def __init__(self, sid: int, hello: int, name: str, vhost: str = "/") -> None:
        self.sid = sid
        self.hello = hello
        self.name = name
        self.vhost = vhost
        self.consumers: dict[int, Consumer] = {}
        self.pending = 0            # its requests without an answer


class Pending(NamedTuple):
    """A request that a worker has in hand, and what is done with its reply."""

    worker: int
    done: Done
    client: Client | None = None            # whose; None: the front-end's own
    lost: Code = Code.UNKNOWN               # what a death of the worker makes of it


class Gathering:
    """Those who want a STATUS (client, its HELLO, its request), and what the workers have said so far."""

    __slots__ = ("asked", "counts", "waiting")

    def __init__(self, asked: list[tuple[Client, int, int]], waiting: int) -> None:
        self.asked = asked
        self.waiting = waiting
        self.counts: list[Counts] = []


class Requests:
    """The requests of all sessions of a front-end. `Sessions` calls it, and is what it answers through."""

    def __init__(self, sessions: Sessions, config: Config) -> None:
        self.view = TopologyView(sessions, self, VHOSTS)
        self.processes: list[dict[str, Any]] = []       # as the supervisor says; for STATUS
        self.loop_counters: Callable[[], dict[str, int]] = dict     # those of the loop around the sessions; for STATUS
        self._sessions = sessions
        self._config = config
        self._clients: dict[int, Client] = {}
        self._pending: dict[int, Pending] = {}          # by token
        self._token = 0
        self._status_asked: deque[tuple[Client, int, int]] = deque()
        self._gathering = False
        self._deletions: dict[int, int | Callable[[int], None]] = {}    # queue -> how many it held, or who waits for that
        self._unattended: set[int] = set()              # auto-delete queues that lost a consumer here; their shards say when it was the last
        self._unused: dict[int, int] = {}               # auto-delete queue without a consumer -> when T is told (again), until it deletes it
        self._now_ns = 0

    @property
    def pending(self) -> int:
        """How many requests have no answer yet."""
        return len(self._pending)

    # ---- sessions

    def session_began(self, sid: int, hello: int, name: str) -> None:
        """A HELLO was accepted."""
        self._clients[sid] = Client(sid, hello, name)
        if self.owns_queues(sid):
            self.view.notice("claim", sid)

    def session_ended(self, sid: int, forget: bool) -> None:
        """Its consumers and requests end; with `forget` (BYE) its exclusive queues too."""
        client = self._clients.pop(sid, None)
        if client is not None:
            for consumer in client.consumers.values():
                queue = self.view.topology.queues.get(consumer.queue)
                if queue is not None and queue.auto_delete:
                    self._unattended.add(queue.id)
        if self.owns_queues(sid):
            self.view.notice("forget" if forget else "release", sid)

    def owns_queues(self, sid: int) -> bool:
        """Whether there are exclusive queues of this session."""
        return bool(self.view.topology.queues_of_owner(sid))

    def consumed_queues(self) -> Iterator[int]:
        """Queues that have consumers here, some of them several times."""
        return (consumer.queue for client in self._clients.values() for consumer in client.consumers.values())

    # ---- requests

    def read(self, verb: int, header: bytes) -> list[Any]:
        """The values of a header. Raises Refused when it cannot be read, or has no answer that could carry what is wrong."""
        values: list[Any] = decode(header)
        if verb == Verb.BYE or verb not in _ASK:
            read_fields(verb, values)
        return values

    def ask(self, sid: int, hello: int, verb: int, values: list[Any]) -> None:
        """Do what a client asks for, or refuse it."""
        client = self._clients[sid]
        request = values[3] if len(values) > 3 and type(values[3]) is int and 0 <= values[3] < 2**64 else None
        try:
            fields = read_fields(verb, values)
            if self._sessions.closing and verb not in ENDING_VERBS:
                raise Unavailable("the broker is stopping; nothing was handed over", "closing-down")
            if client.pending >= PENDING_MAX:
                raise Refused(f"the session has {client.pending} requests without an answer, as many as are allowed", "limit")
            _ASK[verb](self, client, verb, *fields)
        except FastMQError as error:
            self._sessions.answer_error(sid, hello, request, error.code, str(error))

    def _consume(
        self, client: Client, verb: int, request: int, number: int, name: str, messages: int, size: int, options: dict[str, Any]
    ) -> None:
        check_options(options, {"exclusive": bool})
        queue = self._queue_for(client, name)
        if number in client.consumers:
            raise Refused(f"the session has a consumer {number} already", "consumer-exists")
        if len(client.consumers) >= Limit.CONSUMERS_MAX:
            raise Refused(f"the session has {len(client.consumers)} consumers, as many as are allowed", "limit")
        size_max = self._config.consume_window_bytes
        consumer = Consumer(number, queue.id, messages, min(size or size_max, size_max), options.get("exclusive", False))

        unattended = queue.id in self._unattended

        def done(code: int, payload: bytes) -> None:
            if code != Code.OK and client.consumers.get(number) is consumer:
                del client.consumers[number]
                if unattended:
                    self._unattended.add(queue.id)
            self._answer(client, request, code, None)

        token = self._await(self.view.worker_of(queue), done, client, Code.UNAVAILABLE)
        self._send(token, LinkKind.L_CONSUME, queue.shard, self._described(token, client, consumer))
        client.consumers[number] = consumer
        if queue.auto_delete:
            self._unused.pop(queue.id, None)
            self._unattended.discard(queue.id)
            self.view.notice("consumed", queue.id)

    def _described(self, token: int, client: Client, consumer: Consumer) -> bytes:
        return CONSUME.pack(
            token, client.sid, consumer.queue, consumer.window_bytes, client.hello, consumer.number, consumer.window_messages,
            consumer.exclusive,
        )  # fmt: skip

    def _cancel(self, client: Client, verb: int, request: int, number: int) -> None:
        consumer = client.consumers.get(number)
        if consumer is None:
            raise Refused(f"the session has no consumer {number}", "no-consumer")
        queue = self.view.topology.queues.get(consumer.queue)
        if queue is not None and queue.auto_delete:
            self._unattended.add(queue.id)
        if queue is None or not self._sessions.workers.is_up(self.view.worker_of(queue)):
            del client.consumers[number]
            self._sessions.answer(client.sid, client.hello, request, None)
            return
        def done(code: int, payload: bytes) -> None:
            self._answer(client, request, Code.OK, None)

        token = self._await(self.view.worker_of(queue), done, client)
        self._send(token, LinkKind.L_CANCEL, queue.shard, CANCEL.pack(token, client.sid, number, 0))
        del client.consumers[number]

    def _get(self, client: Client, verb: int, request: int, name: str) -> None:
        queue = self._queue_for(client, name)

        def done(code: int, payload: bytes) -> None:
            if code == Code.OK:
                self._sessions.answer_message(client.sid, client.hello, request, payload)
            else:
                self._answer(client, request, code, None)

        self._ask_shard(LinkKind.L_GET, queue, client, done)

    def _purge(self, client: Client, verb: int, request: int, name: str) -> None:
        queue = self._queue_for(client, name)

        def done(code: int, payload: bytes) -> None:
            self._answer(client, request, code, COUNTS.unpack_from(payload)[4] if code == Code.OK else None)

        self._ask_shard(LinkKind.L_QUEUE_PURGE, queue, client, done)

    def _subscribe(self, client: Client, verb: int, request: int, exchange: str, kind: str, pattern: str) -> None:
        if kind not in ("e", "t"):
            raise Refused(f"kind is {shown(kind)}, not 'e' (exact) or 't' (topic)", "bad-request")
        if verb == Verb.SUBSCRIBE and exchange and self.view.topology.exchange(client.vhost, exchange) is None:
            raise NotFound(f"there is no exchange {exchange!r} in {client.vhost!r}", "no-exchange")
        live = self._sessions.live
        if verb == Verb.SUBSCRIBE and len(live) >= self._config.patterns_max:
            if "\0".join((client.vhost, exchange, kind, pattern, "")).encode() not in live:
                raise Refused(f"there are {len(live)} patterns of live subscriptions, as many as patterns_max allows", "limit")
        self._sessions.answer(client.sid, client.hello, request, None)

    # ---- the topology

    def _ask_topology(self, client: Client, verb: int, request: int, *fields: Any) -> None:
        if not self._sessions.workers.is_up(TOPOLOGY_WORKER):
            raise Unavailable("the worker that holds the topology is being restarted; nothing was changed", "unavailable")
        hello = client.hello

        def done(code: int, payload: bytes) -> None:
            result: Any = msgpack.unpackb(payload) if payload else None
            if code != Code.OK:
                self._sessions.answer_error(client.sid, hello, request, CODE_OF_NUMBER[code], result or TEXT_OF_NUMBER[code])
            elif verb == Verb.DECLARE_QUEUE:
                self._declare_at_shard(client, request, result)
            elif verb == Verb.DELETE_QUEUE:
                self._answer_deleted(client, request, result)
            else:
                self._sessions.answer(client.sid, hello, request, None)

        token = self._await(TOPOLOGY_WORKER, done, client)
        self.view.request(token, verb, client.sid, client.vhost, list(fields))

    def _declare_at_shard(self, client: Client, request: int, declared: dict[str, Any]) -> None:
        """T has the queue: answer when its shard has it too, or at once while that is down."""
        queue = self.view.topology.queues.get(declared["id"])

        def done(code: int, payload: bytes) -> None:
            _, ready, _, consumers, _ = COUNTS.unpack_from(payload) if code == Code.OK and payload else (0, 0, 0, 0, 0)
            result = {"name": declared["name"], "message_count": ready, "consumer_count": consumers}
            self._sessions.answer(client.sid, client.hello, request, result)

        if queue is None or not self._sessions.workers.is_up(self.view.worker_of(queue)):
            done(Code.OK, b"")
        else:
            self._ask_shard(LinkKind.L_QUEUE_DECLARE, queue, client, done, Code.OK, queue.flags)

    def queue_deleted(self, queue: Queue) -> None:
        """T has deleted a queue: its shard drops it, and says how many messages it held."""
        self._unused.pop(queue.id, None)
        self._unattended.discard(queue.id)

        def done(code: int, payload: bytes) -> None:
            self._deleted(queue.id, COUNTS.unpack_from(payload)[4] if code == Code.OK and payload else 0)

        if self._sessions.workers.is_up(self.view.worker_of(queue)):
            self._ask_shard(LinkKind.L_QUEUE_DELETE, queue, None, done, Code.OK)
            return
        self._deleted(queue.id, 0)
        for client in list(self._clients.values()):     # its shard is not there to say it; who does not read may go by it
            for number in [number for number, consumer in client.consumers.items() if consumer.queue == queue.id]:
                del client.consumers[number]
                self._sessions.tell_cancelled(client.sid, number, "queue-deleted", TEXT_OF_NUMBER[Code.QUEUE_DELETED])

    def _deleted(self, queue: int, count: int) -> None:
        waiting = self._deletions.pop(queue, None)
        if callable(waiting):
            waiting(count)
            return
        self._deletions[queue] = count
        if len(self._deletions) > DELETIONS_KEPT:
            del self._deletions[next(iter(self._deletions))]

    def _answer_deleted(self, client: Client, request: int, deleted: dict[str, Any] | None) -> None:
        """T has deleted what a client wanted to be deleted: answer with the number of messages it held."""
        def answer(count: int) -> None:
            self._sessions.answer(client.sid, client.hello, request, count)

        if deleted is None:
            answer(0)
            return
        found = self._deletions.pop(deleted["id"], None)
        if isinstance(found, int):
            answer(found)
        else:
            self._deletions[deleted["id"]] = answer

    # ---- status

    def _status(self, client: Client, verb: int, request: int, options: dict[str, Any]) -> None:
        check_options(options, {})
        client.pending += 1
        self._status_asked.append((client, client.hello, request))
        if not self._gathering:
            self._gather()

    def _gather(self) -> None:
        """Ask the workers once for the STATUS of all who have asked by now; those who ask meanwhile wait for the next time."""
        workers = [worker for worker in range(self._sessions.workers.count) if self._sessions.workers.is_up(worker)]
        gathering = Gathering([self._status_asked.popleft() for _ in range(min(len(self._status_asked), STATUS_TOGETHER))], len(workers))
        self._gathering = True

        def done(code: int, payload: bytes) -> None:
            gathering.counts.extend(COUNTS.iter_unpack(payload))
            gathering.waiting -= 1
            if gathering.waiting == 0:
                self._answer_status(gathering)

        for worker in workers:
            token = self._await(worker, done, None, Code.OK)
            self._send(token, LinkKind.L_SHARD_COUNTS, 0, QUEUE_REQUEST.pack(token, 0, 0, 0, 0))
        if not workers:
            self._answer_status(gathering)

    def _answer_status(self, gathering: Gathering) -> None:
        known = {counts[0]: counts for counts in gathering.counts}
        queues: list[dict[str, Any]] = []
        for queue in self.view.topology.queues.values():
            if len(queues) == STATUS_QUEUES_MAX:
                break
            _, ready, unacknowledged, consumers, _ = known.get(queue.id, (0, 0, 0, 0, 0))
            queues.append({
                "name": queue.name, "vhost": queue.vhost, "messages_ready": ready, "messages_unacknowledged": unacknowledged,
                "consumers": consumers,
            })  # fmt: skip
        result = {
            "processes": self.processes, "queues": queues, "queues_total": len(self.view.topology.queues),
            "counters": self._sessions.counters() | self.loop_counters(),
        }  # fmt: skip
        packed = msgpack.packb(result)
        for client, hello, request in gathering.asked:
            client.pending -= 1
            self._sessions.answer_packed(client.sid, hello, request, packed)
        self._gathering = False
        if self._status_asked:
            self._gather()

    # ---- workers

    def from_worker(self, worker: int, kind: int, shard: int, payload: bytes) -> None:
        """A message that is not on the hot path."""
        if kind == LinkKind.L_REPLY:
            token, code, size = REPLY.unpack_from(payload)
            pending = self._forget_pending(token)
            if pending is not None:
                pending.done(code, payload[REPLY.size : REPLY.size + size])
        elif kind == LinkKind.L_RECORD:
            self.view.record(payload)
        elif kind == LinkKind.L_SNAPSHOT:
            self.view.snapshot(payload)
        elif kind == LinkKind.L_CANCELLED:
            sid, number, code = CANCELLED.unpack_from(payload)
            client = self._clients.get(sid)
            if client is not None and client.consumers.pop(number, None) is not None:
                self._sessions.tell_cancelled(sid, number, CODE_OF_NUMBER[code], TEXT_OF_NUMBER[code])
        elif kind == LinkKind.L_UNUSED:
            self._tell_unused(UNUSED.unpack_from(payload)[2])

    def _tell_unused(self, queue: int) -> None:
        """An auto-delete queue has had no consumer, for `resume_s` where one vanished. T is told until it has deleted it: it may die."""
        self._unattended.discard(queue)
        if queue in self.view.topology.queues:
            self._unused[queue] = self._now_ns + UNUSED_AGAIN_NS
            self.view.notice("unused", queue)

    def worker_attached(self, worker: int) -> None:
        """There is a new link to a worker."""
        self.view.worker_attached(worker)

    def worker_lost(self, worker: int) -> None:
        """A worker has died: what it had in hand is answered."""
        self.view.worker_lost(worker)
        for token in [token for token, pending in self._pending.items() if pending.worker == worker]:
            pending = self._forget_pending(token)
            assert pending is not None
            pending.done(pending.lost, b"")

    def attach_consumers(self, worker: int) -> None:
        """Give a worker the consumers of its queues."""
        for client in self._clients.values():
            for consumer in client.consumers.values():
                queue = self.view.topology.queues.get(consumer.queue)
                if queue is not None and self.view.worker_of(queue) == worker:
                    described = self._described(0, client, consumer)
                    self._sessions.workers.send(worker, LinkKind.L_CONSUME, queue.shard, described)
        consumed = set(self.consumed_queues())
        for id in self._unattended - consumed:          # the worker that would have said it is dead
            queue = self.view.topology.queues.get(id)
            if queue is not None and self.view.worker_of(queue) == worker:
                self._unused.setdefault(id, self._now_ns + int(self._config.resume_s * 10**9))

    def tick(self, now_ns: int) -> None:
        """Some time has passed."""
        self._now_ns = now_ns
        for queue in [queue for queue, due in self._unused.items() if due <= now_ns]:
            del self._unused[queue]
            self._tell_unused(queue)

    # ---- parts

    def _queue_for(self, client: Client, name: str) -> Queue:
        """The queue of this name, if the session may use it and its worker is up."""
        queue = self.view.queue(client.vhost, name)
        if queue is None:
            raise NotFound(f"there is no queue {name!r} in {client.vhost!r}", "no-queue")
        if queue.owner and queue.owner != client.sid:
            raise Refused(f"queue {name!r} is exclusive to another session", "resource-locked")
        if not self._sessions.workers.is_up(self.view.worker_of(queue)):
            raise Unavailable(f"the worker that holds queue {name!r} is being restarted; nothing was handed over", "unavailable")
        return queue

    def _ask_shard(
        self, kind: int, queue: Queue, client: Client | None, done: Done, lost: Code = Code.UNKNOWN, flags: int = 0
    ) -> None:
        """Ask the shard of a queue something; `done` gets its answer."""
        token = self._await(self.view.worker_of(queue), done, client, lost)
        sid, hello = (client.sid, client.hello) if client is not None else (0, 0)
        self._send(token, kind, queue.shard, QUEUE_REQUEST.pack(token, sid, queue.id, hello, flags))

    def _await(self, worker: int, done: Done, client: Client | None, lost: Code = Code.UNKNOWN) -> int:
        """Note that a worker owes an answer; the token of the request."""
        self._token += 1
        self._pending[self._token] = Pending(worker, done, client, lost)
        if client is not None:
            client.pending += 1
        return self._token

    def _forget_pending(self, token: int) -> Pending | None:
        pending = self._pending.pop(token, None)
        if pending is not None and pending.client is not None:
            pending.client.pending -= 1
        return pending

    def _send(self, token: int, kind: int, shard: int, payload: bytes) -> None:
        self._sessions.workers.send(self._pending[token].worker, kind, shard, payload)

    def _answer(self, client: Client, request: int, code: int, result: Any) -> None:
        if code == Code.OK:
            self._sessions.answer(client.sid, client.hello, request, result)
        else:
            self._sessions.answer_error(client.sid, client.hello, request, CODE_OF_NUMBER[code], TEXT_OF_NUMBER[code])


_ASK: dict[int, Callable[..., None]] = {
    Verb.CONSUME: Requests._consume,
    Verb.CANCEL: Requests._cancel,
    Verb.GET: Requests._get,
    Verb.PURGE_QUEUE: Requests._purge,
    Verb.SUBSCRIBE: Requests._subscribe,
    Verb.UNSUBSCRIBE: Requests._subscribe,
    Verb.STATUS: Requests._status,
    **dict.fromkeys(TOPOLOGY_VERBS, Requests._ask_topology),
}
