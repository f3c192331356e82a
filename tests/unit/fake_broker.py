"""A front-end in plain Python on a pyzmq ROUTER and XPUB: enough of the protocol to drive the client, and to misbehave on demand."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any

import msgpack
import zmq

from fastmq.wire.verbs import Verb


def records_of(data: bytes) -> list[Any]:
    unpacker = msgpack.Unpacker(strict_map_key=False)
    unpacker.feed(data)
    return list(unpacker)


class FakeBroker:
    """Queues are deques of record bytes. Runs in a thread of its own; `hold` and the like change how it answers."""

    def __init__(self, window: tuple[int, int] = (16384, 2**24), port: int = 0) -> None:
        self.context = zmq.Context()
        self.router = self.context.socket(zmq.ROUTER)
        self.router.linger = 0
        self.router.bind(f"tcp://127.0.0.1:{port or '*'}")
        self.port = int(self.router.last_endpoint.rpartition(b":")[2])
        self.xpub = self.context.socket(zmq.XPUB)
        self.xpub.linger = 0
        self.xpub.xpub_verboser = True
        self.events_port = self.xpub.bind_to_random_port("tcp://127.0.0.1")
        self.window = window
        self.url = f"fastmq://127.0.0.1:{self.port}"
        self.sessions: dict[bytes, dict[str, Any]] = {}
        self.sessions_begun = 0
        self.queues: dict[str, deque[bytes]] = {}
        self.seen: list[list[Any]] = []  # headers received
        self.taken: dict[bytes, dict[int, bytes]] = {}  # publishes by sequence, of each session
        self.settled: list[Any] = []
        self.mute: set[int] = set()  # verbs that are not answered
        self.refuse: dict[int, tuple[str, str]] = {}  # verb -> (code, text) that it is answered with
        self.held_confirms = False
        self.epoch = 7
        self.next_n = 1
        self.event_n: dict[bytes, int] = {}
        self.calls: deque[Any] = deque()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def __enter__(self) -> FakeBroker:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self.ended.set()
        self.thread.join(5)
        self.router.close(0)
        self.xpub.close(0)
        self.context.term()

    def call(self, function: Any) -> None:
        """Run something in the broker's thread, and wait for it."""
        done = threading.Event()
        self.calls.append((function, done))
        assert done.wait(5)

    def verbs(self) -> list[int]:
        return [header[0] for header in self.seen]

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self.router, zmq.POLLIN)
        poller.register(self.xpub, zmq.POLLIN)
        while not self.ended.is_set():
            for socket, _ in poller.poll(2):
                if socket is self.router:
                    self._receive(self.router.recv_multipart())
                else:
                    self._subscription(self.xpub.recv())
            while self.calls:
                function, done = self.calls.popleft()
                function()
                done.set()

    def say(self, session: dict[str, Any], verb: int, *fields: Any, records: bytes | None = None) -> None:
        header = msgpack.packb([verb, session["id"][:8], session["incarnation"], *fields])
        self.router.send_multipart([session["address"], header] + ([records] if records is not None else []))

    def _receive(self, frames: list[bytes]) -> None:
        address, header = frames[0], msgpack.unpackb(frames[1], strict_map_key=False)
        self.seen.append(header)
        verb, sid, incarnation, *fields = header
        if verb in self.mute:
            return
        if verb == Verb.HELLO:
            self._hello(address, sid, incarnation)
            return
        session = self.sessions.get(sid)
        if session is None or session["address"] != address:
            stranger = {"address": address, "id": sid, "incarnation": incarnation}
            self.say(stranger, Verb.ERROR, None, "no-session", "say HELLO")
        elif verb in self.refuse:
            self.say(session, Verb.ERROR, fields[0], *self.refuse[verb])
        else:
            getattr(self, "_" + Verb(verb).name.lower())(session, fields, frames[2] if len(frames) > 2 else b"")

    def _hello(self, address: bytes, sid: bytes, incarnation: int) -> None:
        session = self.sessions.get(sid)
        if sid and session is None:
            self.say({"address": address, "id": sid, "incarnation": incarnation}, Verb.ERROR, None, "no-session", "unknown")
            return
        if session is None:
            self.sessions_begun += 1
            session = {"id": self.sessions_begun.to_bytes(8, "big") + b"proof..."}
            self.sessions[session["id"]] = session
            incarnation = 1
        elif incarnation <= session["incarnation"]:
            self.say({**session, "address": address}, Verb.ERROR, None, "stale", "old")
            return
        for queue, record in session.get("out", {}).values():
            self.queues[queue].appendleft(record)
        session.update(address=address, incarnation=incarnation, sent=0, size=0, consumers={}, out={})
        endpoint = f"tcp://*:{self.events_port}"
        self.say(session, Verb.WELCOME, session["id"], 1, {}, *self.window, endpoint)

    def _publish(self, session: dict[str, Any], fields: list[Any], records: bytes) -> None:
        _floor, first, count, exchange, _flags = fields
        taken = self.taken.setdefault(session["id"], {})
        exceptions = []
        unpacker = msgpack.Unpacker(strict_map_key=False)
        unpacker.feed(records)
        at = 0
        for sequence in range(first, first + count):
            key = unpacker.unpack()[0]
            record = records[at : unpacker.tell()]
            at = unpacker.tell()
            if exchange == "" and key not in self.queues:
                exceptions.append([sequence, sequence, "no-queue", f"there is no queue {key!r}"])
            elif sequence not in taken:
                taken[sequence] = record
                if exchange == "":
                    self.queues[key].append(record)
        session["sent"] += count
        session["size"] += len(records)
        session.setdefault("confirms", []).append((first + count - 1, exceptions))
        if not self.held_confirms:
            self.confirm(session)
        self.pump()

    def confirm(self, session: dict[str, Any]) -> None:
        for up_to, exceptions in session.pop("confirms", []):
            messages, size = session["sent"] + self.window[0], session["size"] + self.window[1]
            self.say(session, Verb.CONFIRM, up_to, [], exceptions, messages, size)

    def confirm_all(self) -> None:
        for session in self.sessions.values():
            self.confirm(session)

    def pump(self) -> None:
        """Deliver what consumers have room for."""
        for session in self.sessions.values():
            for number, consumer in session.get("consumers", {}).items():
                queue = self.queues.get(consumer["queue"])
                batch = []
                while queue and consumer["out"] < consumer["window"]:
                    record = queue.popleft()
                    session["out"][self.next_n + len(batch)] = consumer["queue"], record
                    consumer["out"] += 1
                    batch.append(record)
                if batch:
                    run = [number, 3, self.epoch, self.next_n, len(batch), 1, "", int(time.time() * 1000)]
                    session.setdefault("owner", {}).update(dict.fromkeys(range(self.next_n, self.next_n + len(batch)), number))
                    self.next_n += len(batch)
                    self.say(session, Verb.DELIVER, [run], records=b"".join(batch))

    def _settle(self, session: dict[str, Any], fields: list[Any], _: bytes) -> None:
        for _shard, _epoch, _up_to, ranges, exceptions in fields[0]:
            self.settled.append((ranges, exceptions))
            for first, last, *action in [*ranges, *exceptions]:
                for n in range(first, last + 1):
                    queue, record = session["out"].pop(n, (None, b""))
                    if queue is not None:
                        consumer = session["consumers"].get(session.get("owner", {}).get(n))
                        if consumer is not None:
                            consumer["out"] -= 1
                        if action and action[0] != 2 and queue in self.queues:
                            self.queues[queue].appendleft(record)
        self.pump()

    def _consume(self, session: dict[str, Any], fields: list[Any], _: bytes) -> None:
        request, consumer, queue, window, _size, _options = fields
        if queue not in self.queues:
            self.say(session, Verb.ERROR, request, "no-queue", f"there is no queue {queue!r}")
            return
        session["consumers"][consumer] = {"queue": queue, "window": window, "out": 0}
        self.say(session, Verb.REPLY, request, None)
        self.pump()

    def _cancel(self, session: dict[str, Any], fields: list[Any], _: bytes) -> None:
        session["consumers"].pop(fields[1], None)
        self.say(session, Verb.REPLY, fields[0], None)

    def _get(self, session: dict[str, Any], fields: list[Any], _: bytes) -> None:
        queue = self.queues.get(fields[1])
        if queue is None:
            self.say(session, Verb.ERROR, fields[0], "no-queue", "none")
        elif not queue:
            self.say(session, Verb.REPLY, fields[0], None)
        else:
            record = queue.popleft()
            session["out"][self.next_n] = fields[1], record
            run = [0, 3, self.epoch, self.next_n, 1, 1, "", 5000]
            self.next_n += 1
            self.say(session, Verb.REPLY, fields[0], run, records=record)

    def _declare_queue(self, session: dict[str, Any], fields: list[Any], _: bytes) -> None:
        name = fields[1] or "amq.gen-1"
        queue = self.queues.setdefault(name, deque())
        self.say(session, Verb.REPLY, fields[0], {"name": name, "message_count": len(queue), "consumer_count": 0})

    def _delete_queue(self, session: dict[str, Any], fields: list[Any], _: bytes) -> None:
        count = len(self.queues.pop(fields[1], ()))
        self.say(session, Verb.REPLY, fields[0], count)
        for number, consumer in list(session["consumers"].items()):
            if consumer["queue"] == fields[1]:
                del session["consumers"][number]
                self.say(session, Verb.CANCELLED, number, "queue-deleted", "the queue was deleted")

    def _done(self, session: dict[str, Any], fields: list[Any], _: bytes) -> None:
        self.say(session, Verb.REPLY, fields[0], None)

    _declare_exchange = _delete_exchange = _bind = _unbind = _subscribe = _unsubscribe = _done

    def _purge_queue(self, session: dict[str, Any], fields: list[Any], _: bytes) -> None:
        count = len(self.queues[fields[1]])
        self.queues[fields[1]].clear()
        self.say(session, Verb.REPLY, fields[0], count)

    def _status(self, session: dict[str, Any], fields: list[Any], _: bytes) -> None:
        queues = [{"name": name, "messages_ready": len(queue)} for name, queue in self.queues.items()]
        self.say(session, Verb.REPLY, fields[0], {"processes": [], "queues": queues})

    def _bye(self, session: dict[str, Any], _fields: list[Any], _: bytes) -> None:
        del self.sessions[session["id"]]

    def _subscription(self, frame: bytes) -> None:
        if frame[:1] == b"\1":
            self.event_n.setdefault(frame[1:], 1)
            self.xpub.send_multipart([frame[1:], msgpack.packb([self.epoch, self.event_n[frame[1:]], 0]), b""])

    def emit(self, topic: bytes, *records: tuple[str, bytes], skip: int = 0) -> None:
        """Send one event message, after leaving out `skip` numbers."""
        n = self.event_n[topic] + skip
        self.event_n[topic] = n + len(records)
        body = b"".join(msgpack.packb([key, None, data]) for key, data in records)
        self.xpub.send_multipart([topic, msgpack.packb([self.epoch, n, len(records)]), body])

    def forget_sessions(self) -> None:
        """As after the death of a front-end, without the cut: requests are answered `no-session`."""
        self.sessions.clear()

    def resend(self) -> None:
        for session in self.sessions.values():
            session["incarnation"] += 1
            session.update(sent=0, size=0)
            session.pop("confirms", None)
            self.say(session, Verb.RESEND, *self.window)


def fill(broker: FakeBroker, count: int, queue: str = "q") -> None:
    """Put `count` messages into a queue, with bodies 0, 1, 2, ..."""
    broker.queues[queue].extend(msgpack.packb([queue, None, b"%d" % i]) for i in range(count))
