"""A shard in plain Python, as simple as it can be: what tests compare the real one with.

It does not choose who gets a message: it is told (`delivered`) and objects when the choice was not allowed."""
from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from shard_driver import EPOCH, NACK, RELEASE, Counts, Delivered

from fastmq.wire.verbs import Code

AUTO_DELETE = 4


@dataclass(eq=False)
class Consumer:
    sid: int
    number: int
    queue: int
    messages: int
    size: int
    exclusive: bool
    closed: bool = False


@dataclass(order=True)
class Message:
    seq: int
    deliveries: int
    exchange: bytes = field(compare=False)
    timestamp_ms: int = field(compare=False)
    record: bytes = field(compare=False)


@dataclass
class Queue:
    flags: int
    ready: list[Message] = field(default_factory=list)
    next_seq: int = 1
    unused: tuple[int, int, int] = (0, 0, 0)            # sid, frontend, since


@dataclass
class Publisher:
    floor: int = 0
    highest: int = 0
    taken: set[int] = field(default_factory=set)
    used_ns: int = 0


class Oracle:
    def __init__(self, resume_ns: int, keep_ns: int, publishers_max: int) -> None:
        self.resume_ns, self.keep_ns, self.publishers_max = resume_ns, keep_ns, publishers_max
        self.queues: dict[int, Queue] = {}
        self.sessions: dict[int, tuple[int, int]] = {}                              # sid -> frontend, hello
        self.consumers: dict[tuple[int, int], Consumer] = {}
        self.outstanding: dict[int, tuple[Message, Consumer]] = {}
        self.publishers: OrderedDict[int, Publisher] = OrderedDict()
        self.next_tag = 1
        self.stale = 0
        self.unused: list[tuple[int, int, int]] = []                                # to be told: frontend, sid, queue

    # publishing: [(sequence, code)...]; code 0 is held

    def publish(self, sid: int, floor: int, first: int, queues: list[int], records: list[bytes], exchange: bytes, now_ms: int,
                now_ns: int) -> list[tuple[int, int]]:
        p = self.publishers.setdefault(sid, Publisher())
        self.publishers.move_to_end(sid)
        p.used_ns, p.floor = now_ns, max(p.floor, floor)
        while len(self.publishers) > self.publishers_max:
            self.publishers.popitem(last=False)
        p.taken = {seq for seq in p.taken if seq >= p.floor}
        outcome = []
        known = all(queue in self.queues for queue in queues)
        highest = p.highest
        for seq, data in enumerate(records, first):
            if seq <= highest:
                outcome.append((seq, 0 if seq in p.taken else int(Code.LATE)))
                continue
            p.highest = seq
            outcome.append((seq, 0 if known else int(Code.NO_QUEUE)))
            if known:
                p.taken.add(seq)
                for queue in queues:
                    q = self.queues[queue]
                    q.ready.append(Message(q.next_seq, 0, exchange, now_ms, data))
                    q.next_seq += 1
        return outcome

    def tick(self, now_ns: int) -> None:
        for sid in [sid for sid, p in self.publishers.items() if now_ns - p.used_ns >= self.keep_ns]:
            del self.publishers[sid]
        for number, q in self.queues.items():
            if q.unused[0] and now_ns - q.unused[2] >= self.resume_ns:
                self.unused.append((q.unused[1], q.unused[0], number))
                q.unused = (0, 0, 0)

    # windows and deliveries

    def load(self, consumer: Consumer) -> tuple[int, int]:
        found = [len(message.record) for message, c in self.outstanding.values() if c is consumer]
        return len(found), sum(found)

    def fits(self, consumer: Consumer, size: int) -> bool:
        count, total = self.load(consumer)
        return count == 0 or (count < consumer.messages and total + size <= consumer.size)

    def delivered(self, d: Delivered) -> None:
        """The shard delivered this: it must have been the next of its queue, to one who had room."""
        if d.consumer:
            consumer = self.consumers[d.sid, d.consumer]
        else:
            raise AssertionError("a GET's message in a delivery")
        message = self.take(consumer, d)
        assert self.fits(consumer, len(message.record))
        self.outstanding[d.tag] = (message, consumer)

    def got(self, sid: int, queue: int, d: Delivered) -> None:
        consumer = Consumer(sid, 0, queue, 0, 0, False)
        self.outstanding[d.tag] = (self.take(consumer, d), consumer)

    def take(self, consumer: Consumer, d: Delivered) -> Message:
        assert (d.frontend, d.hello) == self.sessions[consumer.sid]
        assert (d.sid, d.epoch, d.tag) == (consumer.sid, EPOCH, self.next_tag)
        self.next_tag += 1
        message = self.queues[consumer.queue].ready.pop(0)
        message.deliveries += 1
        assert (d.deliveries, d.exchange, d.timestamp_ms, d.record) == (
            message.deliveries, message.exchange, message.timestamp_ms, message.record)
        return message

    def at_rest(self) -> None:
        """After a pump, nobody waits for what is there."""
        for (_, _), consumer in self.consumers.items():
            ready = self.queues[consumer.queue].ready
            assert not ready or not self.fits(consumer, len(ready[0].record))

    # settling

    def settle(self, sid: int, epoch: int, up_to: int, ranges: list[tuple[int, int]], exceptions: list[tuple[int, int, int]]) -> None:
        for first, last, action in [*exceptions, *((first, last, 0) for first, last in ranges)]:
            mine = self.mine(sid, first, last) if epoch == EPOCH else []
            for tag in mine:
                self.back(tag, action)
            span = last - first
            self.stale += 1 if first > last else span + 1 - len(mine) if span < 65536 else 65536
        if up_to and (epoch != EPOCH or sid not in self.sessions):
            self.stale += 1
        elif up_to:
            for tag in self.mine(sid, 0, up_to):
                self.back(tag, 0)
        self.leave(sid)

    def mine(self, sid: int, first: int, last: int) -> list[int]:
        return [tag for tag in sorted(self.outstanding) if first <= tag <= last and self.outstanding[tag][1].sid == sid]

    def back(self, tag: int, action: int) -> None:
        message, consumer = self.outstanding.pop(tag)
        if action == RELEASE:
            message.deliveries -= 1
        if action in (NACK, RELEASE):
            q = self.queues[consumer.queue]
            q.ready.append(message)
            q.ready.sort()

    # sessions and consumers

    def enter(self, sid: int, frontend: int, hello: int, now_ns: int) -> None:
        if self.sessions.get(sid, (frontend, hello)) != (frontend, hello):
            self.end(sid, False, now_ns)
        self.sessions[sid] = (frontend, hello)

    def leave(self, sid: int) -> None:
        if not any(key[0] == sid for key in self.consumers) and not any(c.sid == sid for _, c in self.outstanding.values()):
            self.sessions.pop(sid, None)

    def consume(self, frontend: int, sid: int, hello: int, number: int, queue: int, messages: int, size: int, exclusive: bool,
                now_ns: int) -> int:
        self.enter(sid, frontend, hello, now_ns)
        others = [c for c in self.consumers.values() if c.queue == queue]
        code = Code.OK
        if queue not in self.queues:
            code = Code.NO_QUEUE
        elif (sid, number) in self.consumers or any(c.exclusive for c in others) or (exclusive and others):
            code = Code.CONSUMER_EXISTS
        else:
            self.consumers[sid, number] = Consumer(sid, number, queue, messages, size, exclusive)
            self.queues[queue].unused = (0, 0, 0)
        self.leave(sid)
        return code

    def close(self, key: tuple[int, int], vanished: bool, now_ns: int) -> None:
        consumer = self.consumers.pop(key)
        consumer.closed = True
        q = self.queues[consumer.queue]
        if q.flags & AUTO_DELETE and not any(c.queue == consumer.queue for c in self.consumers.values()):
            frontend = self.sessions[key[0]][0]
            if vanished:
                q.unused = (key[0], frontend, now_ns)
            else:
                self.unused.append((frontend, key[0], consumer.queue))

    def cancel(self, frontend: int, sid: int, number: int) -> int:
        if (sid, number) not in self.consumers or self.sessions[sid][0] != frontend:
            return Code.NO_CONSUMER
        self.close((sid, number), False, 0)
        self.leave(sid)
        return Code.OK

    def end(self, sid: int, bye: bool, now_ns: int) -> None:
        for key in [key for key in self.consumers if key[0] == sid]:
            self.close(key, not bye, now_ns)
        for tag in self.mine(sid, 0, self.next_tag):
            self.back(tag, NACK)
        self.sessions.pop(sid, None)
        if bye:
            self.publishers.pop(sid, None)

    # queues

    def counts(self, queue: int, affected: int = 0) -> Counts:
        return Counts(queue, len(self.queues[queue].ready), sum(c.queue == queue for _, c in self.outstanding.values()),
                      sum(c.queue == queue for c in self.consumers.values()), affected)

    def delete(self, queue: int) -> list[tuple[int, int, int, int]]:
        """The consumers to be told: (frontend, sid, number, code)."""
        told = []
        for key in [key for key, c in self.consumers.items() if c.queue == queue]:
            told.append((self.sessions[key[0]][0], *key, int(Code.QUEUE_DELETED)))
            self.consumers.pop(key).closed = True
        for tag in [tag for tag, (_, c) in self.outstanding.items() if c.queue == queue]:
            del self.outstanding[tag]
        del self.queues[queue]
        for sid in list(self.sessions):
            self.leave(sid)
        return sorted(told)

    # the same form as Shard.dump, without what only the shard chooses

    def dump(self) -> dict[str, object]:
        return {
            "next_tag": self.next_tag,
            "queues": {
                number: {
                    "flags": q.flags, "next_seq": q.next_seq,
                    "ready": [(m.seq, m.deliveries, m.exchange, m.timestamp_ms, m.record) for m in q.ready],
                    "unused": q.unused[:2],
                    "consumers": {
                        key: {"window_messages": c.messages, "window_bytes": c.size, "exclusive": c.exclusive,
                              "outstanding": self.load(c)[0], "bytes": self.load(c)[1]}
                        for key, c in self.consumers.items() if c.queue == number},
                } for number, q in self.queues.items()},
            "sessions": {sid: {"frontend": frontend, "hello": hello, "outstanding": self.mine(sid, 0, self.next_tag)}
                         for sid, (frontend, hello) in self.sessions.items()},
            "outstanding": {tag: (c.queue, c.sid, c.number, c.closed, m.seq, m.deliveries, m.exchange, m.timestamp_ms, m.record)
                            for tag, (m, c) in self.outstanding.items()},
            "publishers": [(sid, p.floor, p.highest, p.taken) for sid, p in self.publishers.items()],
        }


def comparable(dump: dict[str, Any]) -> dict[str, object]:
    """A shard's dump in the form of the oracle's."""
    queues = {number: {key: value for key, value in q.items() if key in ("flags", "next_seq", "ready", "unused", "consumers")}
              for number, q in dump["queues"].items()}
    publishers = []
    for sid, floor, highest, ranges in dump["publishers"]:
        for (_, before), (after, _) in pairwise(ranges):
            assert before + 1 < after, "adjacent ranges are one range"
        taken = {seq for first, last in ranges for seq in range(first, last + 1) if seq >= floor}
        publishers.append((sid, floor, highest, taken))
    return {"next_tag": dump["next_tag"], "queues": queues, "sessions": dump["sessions"], "outstanding": dump["outstanding"],
            "publishers": publishers}
