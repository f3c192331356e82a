"""What worker 0 says and hears of the topology: the messages of server/workshop.pxd on one side, shard T and the log on the other.

Owns: shard T, and what waits to be told. Rules: what T changes goes into the log before anybody hears of it: records, answers and snapshots
leave in order, each when the log has what T had changed by then; what a front-end was not told when it died is forgotten; a request that
fails by a defect is answered, and nobody else notices. Process: worker 0.
"""
from __future__ import annotations

import struct
import traceback
from collections import deque
from collections.abc import Iterable
from typing import Any

import msgpack

from fastmq.errors import FastMQError
from fastmq.model.topology_shard import TopologyShard
from fastmq.net.ring import Link
from fastmq.storage import failpoints
from fastmq.storage.log import Log, LogShard
from fastmq.wire.link import LinkKind
from fastmq.wire.verbs import Code

REPLY = struct.Struct("=QII")               # LinkReply
TOKEN = struct.Struct("=Q")                 # LinkToken


class TopologyDesk:
    """T's desk. `links`: by front-end, None where there is none; the workshop's own list."""

    def __init__(self, topology: TopologyShard, links: list[Link | None], log: Log) -> None:
        self.topology = topology
        self._links = links
        self._log = log
        self._position = 0                                              # in the log, of T's last change
        self._waiting: deque[tuple[int, int, LinkKind, bytes]] = deque()    # position, front-end, kind, payload

    @property
    def waits(self) -> bool:
        """Whether somebody waits for the log."""
        return bool(self._waiting)

    # ---- front-ends

    def attached(self, frontend: int) -> None:
        """A front-end has a link: it is sent the snapshot."""
        self.topology.frontend_attached(frontend)
        self._say(frontend, LinkKind.L_SNAPSHOT, msgpack.packb(self.topology.snapshot()))

    def gone(self, frontend: int) -> None:
        """A front-end has died."""
        self._waiting = deque(entry for entry in self._waiting if entry[1] != frontend)
        if self.topology.frontend_gone(frontend):
            self._say_snapshot()

    def message(self, frontend: int, kind: int, payload: bytes, now_ns: int) -> None:
        """An L_TOPOLOGY or L_HANDBACK."""
        if kind == LinkKind.L_HANDBACK:
            if self.topology.handback(frontend, msgpack.unpackb(payload)):
                self._say_snapshot()
            return
        body = msgpack.unpackb(payload[TOKEN.size:])
        if isinstance(body[0], str):
            self._notice(frontend, now_ns, *body)
        else:
            self._request(frontend, TOKEN.unpack_from(payload)[0], now_ns, *body)

    def tick(self, now_ns: int) -> None:
        """What is due by time."""
        self._say_records(self.topology.tick(now_ns))
        for link in self._links:
            if link is not None:
                link.ring_other()

    def checkpoint(self) -> bytes:
        """What is to survive, as an entry of the log."""
        packed: bytes = msgpack.packb(self.topology.kept_records())
        return packed

    def durable_up_to(self, position: int) -> None:
        """The log has everything up to here: what waited for it leaves."""
        if self._waiting:
            failpoints.hit("topology_durable")
        while self._waiting and self._waiting[0][0] <= position:
            _, frontend, kind, payload = self._waiting.popleft()
            self._send(frontend, kind, payload)

    # ---- private

    def _request(self, frontend: int, token: int, now_ns: int, verb: int, sid: int, vhost: str, *fields: object) -> None:
        try:
            records, code, result = self.topology.request(frontend, sid, verb, vhost, list(fields), now_ns)
        except Exception:                               # a defect: who asked is told, everybody else goes on
            traceback.print_exc()
            records, code, result = [], int(Code.INTERNAL), "deciding this request failed; the broker's log says more"
        self._say_records(records)
        packed = msgpack.packb(result)
        self._say(frontend, LinkKind.L_REPLY, REPLY.pack(token, code, len(packed)) + packed)

    def _notice(self, frontend: int, now_ns: int, what: str, subject: int) -> None:
        match what:
            case "claim":
                self.topology.claim(subject, frontend)
            case "release":
                self.topology.release(subject, now_ns, frontend)
            case "forget":
                self._say_records(self.topology.forget(subject))
            case "consumed":
                self.topology.consumed(subject, frontend)
            case "unused":
                self._say_records(self.topology.unused(subject))
            case _:
                raise FastMQError(f"front-end {frontend} sent the notice {what!r}")

    def _say_records(self, records: Iterable[list[Any]]) -> None:
        kept = self.topology.take_kept()
        if kept and self._log.record_level:
            self._log.add(LogShard.SHARD_TOPOLOGY, msgpack.packb(kept))
            self._position = self._log.appended
            failpoints.hit("topology_appended")
        for record in records:
            self._say_to_all(LinkKind.L_RECORD, msgpack.packb(record))

    def _say_snapshot(self) -> None:
        self._say_to_all(LinkKind.L_SNAPSHOT, msgpack.packb(self.topology.snapshot()))

    def _say_to_all(self, kind: LinkKind, payload: bytes) -> None:
        for frontend, link in enumerate(self._links):
            if link is not None:
                self._say(frontend, kind, payload)

    def _say(self, frontend: int, kind: LinkKind, payload: bytes) -> None:
        """Send it, when the log has what T has changed so far."""
        if self._waiting or self._log.durable < self._position:
            self._waiting.append((self._position, frontend, kind, payload))
        else:
            self._send(frontend, kind, payload)

    def _send(self, frontend: int, kind: LinkKind, payload: bytes) -> None:
        link = self._links[frontend]
        if link is not None:
            link.send(kind, 0, payload)
