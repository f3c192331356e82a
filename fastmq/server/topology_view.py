"""A front-end's view of the topology, and what its workers have to know of it.

Owns: a Topology that follows shard T's records, and what the messages of server/workshop.pxd say about it. Rules: T commits first, the queue's
shard second; a worker that is attached gets its live queues and consumers before anything else; a view without a record of any T attaches no
worker (but it talks to T). Routing goes on while worker 0 is down. Runs in front-ends.

    no view --snapshot of a T that is ready--> view --worker 0 is attached again: its snapshot has number 0, ours is handed back--> view
"""
from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import msgpack

from fastmq.errors import NUMBER_OF_CODE, FastMQError
from fastmq.model.topology import Queue, RecordKind, Topology
from fastmq.wire.link import LinkKind
from fastmq.wire.verbs import Code

if TYPE_CHECKING:
    from fastmq.server.requests import Requests
    from fastmq.server.sessions import Sessions

TOPOLOGY_WORKER = 0             # has shard T
# The structs of wire/link.pxd that are written here; a test compares their sizes.
QUEUE_REQUEST = struct.Struct("<QQQII")         # LinkQueueRequest: token, sid, queue, hello, flags
QUEUE = struct.Struct("<QIHH")                  # LinkQueue: queue, flags, shard, padding
ATTACH = struct.Struct("<II")                   # LinkAttach: queues, padding
TOKEN = struct.Struct("<Q")                     # LinkToken

Route = tuple[int, list[tuple[int, int, int]], list[int]]


class TopologyView:
    """What exists, as far as this front-end knows."""

    def __init__(self, sessions: Sessions, requests: Requests, vhosts: list[str]) -> None:
        self.topology = Topology()
        self.ready = False              # T knows what this view knows, and takes requests
        self._sessions = sessions
        self._requests = requests
        self._vhosts = vhosts
        self._handed_back = False       # on the link to worker 0 that there is now

    # ---- routes

    def resolve(self, vhost: int, exchange: bytes, key: bytes) -> Route:
        """Where a publish goes: (Code, [(worker, shard, queue)...], [live pattern...]). For the route cache."""
        name = self._vhosts[vhost]
        try:
            ids = self.topology.route(name, exchange.decode(), key.decode())
        except FastMQError as error:
            return NUMBER_OF_CODE[error.code], [], []
        places = []
        for id in ids:
            shard = self.topology.queues[id].shard
            places.append((self._sessions.workers.worker_of(shard), shard, id))
        return Code.OK, places, self._sessions.live.match(name.encode(), exchange, key)

    def queue(self, vhost: str, name: str) -> Queue | None:
        """The queue of this name."""
        return self.topology.queue(vhost, name)

    def worker_of(self, queue: Queue) -> int:
        """The worker that holds a queue."""
        worker: int = self._sessions.workers.worker_of(queue.shard)
        return worker

    # ---- what T says

    def record(self, payload: bytes) -> None:
        """T has changed something."""
        record = msgpack.unpackb(payload)
        if record[0] <= self.topology.number:
            return                      # the snapshot had it
        changed = self.topology.apply(record)
        self._sessions.drop_routes()
        if isinstance(changed, Queue):
            if record[1] == RecordKind.QUEUE_DECLARED:
                self._queue_declared(changed)
            else:
                self._requests.queue_deleted(changed)

    def snapshot(self, payload: bytes) -> None:
        """T has begun, or has merged what front-ends handed back."""
        number, records = msgpack.unpackb(payload)
        if number > self.topology.number:
            self._take_over(Topology.restore([number, records]))
        self.ready = number > 0
        if not self._handed_back:
            self._handed_back = True
            self._claim_all()
            known = self.topology.snapshot() if self.topology.number else [0, []]
            self._sessions.workers.send(TOPOLOGY_WORKER, LinkKind.L_HANDBACK, 0, msgpack.packb(known))

    def _take_over(self, topology: Topology) -> None:
        """Follow another topology: what is new or gone in it is told to the shards."""
        before, self.topology = self.topology, topology
        self._sessions.drop_routes()
        if before.number == 0:
            self._sessions.serving = True
            self.attach([worker for worker in range(self._sessions.workers.count) if self._sessions.workers.is_up(worker)])
            return
        for queue in before.queues.values():
            if queue.id not in topology.queues:
                self._requests.queue_deleted(queue)
        for queue in topology.queues.values():
            if queue.id not in before.queues:
                self._queue_declared(queue)

    def _queue_declared(self, queue: Queue) -> None:
        request = QUEUE_REQUEST.pack(0, 0, queue.id, 0, queue.flags)
        self._sessions.workers.send(self.worker_of(queue), LinkKind.L_QUEUE_DECLARE, queue.shard, request)
        if queue.owner and not self._sessions.is_connected(queue.owner):
            self.notice("release", queue.owner)         # its session ended while the declare was under way

    # ---- workers come and go

    def worker_attached(self, worker: int) -> None:
        """There is a new link to a worker."""
        if worker == TOPOLOGY_WORKER:
            self.ready = self._handed_back = False
        if self.topology.number:
            self.attach([worker])

    def worker_lost(self, worker: int) -> None:
        if worker == TOPOLOGY_WORKER:
            self.ready = self._handed_back = False

    def attach(self, workers: list[int]) -> None:
        """Give workers their queues and consumers; then every session sends again."""
        if not workers:
            return
        for worker in workers:
            for shard in self._sessions.workers.shards_of(worker):
                queues = self.topology.queues_of_shard(shard)
                described = [QUEUE.pack(queue.id, queue.flags, shard, 0) for queue in queues]
                payload = ATTACH.pack(len(queues), 0) + b"".join(described)
                self._sessions.workers.send(worker, LinkKind.L_ATTACH_SHARD, shard, payload)
            self._requests.attach_consumers(worker)
        self._sessions.resend_all()

    # ---- what T is told

    def notice(self, what: str, subject: int) -> None:
        """Tell T something that has no answer. While worker 0 is down it is forgotten: the next T is told all that is still true."""
        self._sessions.workers.send(TOPOLOGY_WORKER, LinkKind.L_TOPOLOGY, 0, TOKEN.pack(0) + msgpack.packb([what, subject]))

    def request(self, token: int, verb: int, sid: int, vhost: str, fields: list[Any]) -> bool:
        """Ask T to decide something; False while worker 0 is down."""
        payload = TOKEN.pack(token) + msgpack.packb([verb, sid, vhost, *fields])
        sent: bool = self._sessions.workers.send(TOPOLOGY_WORKER, LinkKind.L_TOPOLOGY, 0, payload)
        return sent

    def _claim_all(self) -> None:
        """Tell T which owners of exclusive queues, and which consumers of auto-delete queues, are at this front-end."""
        owners = {queue.owner for queue in self.topology.queues.values() if queue.owner}
        for sid in owners:
            if self._sessions.is_connected(sid):
                self.notice("claim", sid)
        for queue in self._requests.consumed_queues():
            if queue in self.topology.queues and self.topology.queues[queue].auto_delete:
                self.notice("consumed", queue)
