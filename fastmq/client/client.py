"""The blocking client: what applications call. Publishing, and what needs the connection's mutex, is in base.pyx."""

from __future__ import annotations

import math
import os
import sys
import time
import weakref
from types import TracebackType
from typing import Any, NamedTuple

from fastmq.client.base import ClientBase
from fastmq.client.consumer import Consumer
from fastmq.client.link import Link, reason
from fastmq.client.message import Message
from fastmq.client.subscription import Subscription
from fastmq.client.url import Address, parse_url
from fastmq.errors import (
    ERROR_OF_CODE,
    BadArgument,
    Closed,
    ConnectionFailed,
    FastMQError,
    Unavailable,
    UnknownOutcome,
    error_from_wire,
)
from fastmq.wire.limits import Limit
from fastmq.wire.verbs import Verb

FLUSH_ON_CLOSE_S = 10.0
CONSUME_WINDOW_BYTES = 64 * 2**20
RETRY_PAUSE_S = (0.01, 0.25)  # between requests that are answered `unavailable`: the first, the longest
GET_PAUSE_S = (0.001, 0.02)  # between looks into an empty queue
SUBSCRIPTION_KINDS = {"exact": "e", "topic": "t"}
BROKE_OFF = frozenset(("unwelcome", "closed-by-broker", "silent"))  # ends of a first connection after which another is tried
HANDSHAKES_MAX = 5  # of those, ends during the handshake
PASSING = frozenset(("unavailable", "closing-down", "limit"))  # answers to HELLO that may be another one in a moment
NOT_REPEATED = frozenset((Verb.PURGE_QUEUE, Verb.DELETE_QUEUE, Verb.DELETE_EXCHANGE))


class QueueInfo(NamedTuple):
    """A queue as the broker knows it: messages that are ready, and consumers."""

    name: str
    message_count: int
    consumer_count: int


def connect(url: str = "fastmq://127.0.0.1:7400/", timeout: float = 10) -> Client:
    """Connect to the broker at `url` (fastmq://host:port/vhost, fastmq+unix:///path?vhost=name) and return a Client, which threads may share.

    `timeout` (seconds) bounds the connecting, and later each call that waits for the broker: while it cannot be reached the client goes on
    trying, and the calls wait that long. Raises ConnectionFailed when no broker is there, Refused or NotFound when it does not want this
    client.
    """
    return Client(url, timeout)


_open_clients: weakref.WeakSet[Client] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for client in list(_open_clients):
        client._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)


class Client(ClientBase):
    """A session with a broker. Thread-safe; a context manager that flushes and closes on leaving.

    After a loss of the connection it connects again by itself: what was published and has no outcome is sent again (nothing is lost or
    doubled), consumers and subscriptions go on; messages that were received but not settled are delivered again.

    A process that was forked (`os.fork`, `multiprocessing`, a pre-forking server) must connect anew: in it this client is closed, because
    two processes on one session would lose each other's messages.
    """

    def __init__(self, url: str = "fastmq://127.0.0.1:7400/", timeout: float = 10) -> None:
        if timeout <= 0:
            raise BadArgument(f"timeout={timeout} must be above 0")
        address = parse_url(url)
        self._closed = False
        self._address = address
        name = f"{os.path.basename(sys.argv[0] or 'python') if sys.argv else 'python'}[{os.getpid()}]"
        self._start(address.vhost, name[:200], float(timeout))
        self._link = Link(self, address, self._commands, self._events)
        self._connect(address, timeout)
        self._link.start()
        _open_clients.add(self)

    def _connect(self, address: Address, timeout: float) -> None:
        """The first session. A connection that ends during the handshake is tried again: a broker may be restarting, or not want us."""
        until = time.monotonic() + timeout
        handshakes = 0
        try:
            while not self._try_to_connect(max(0.001, until - time.monotonic())):
                why = self._why_broken
                handshakes += why is not None and why[0] == "unwelcome"
                if why is None or why[0] not in BROKE_OFF or handshakes == HANDSHAKES_MAX:
                    raise self._no_broker(why, timeout)
                pause = RETRY_PAUSE_S[0] * 2 ** min(handshakes, 4)
                if time.monotonic() + pause >= until:
                    raise self._no_broker(why, timeout)
                time.sleep(pause)
        except OSError as error:
            self._abort()
            if isinstance(error, FastMQError):
                raise
            raise ConnectionFailed(f"no fastmq broker at {address}: {reason(error)}") from None
        except BaseException:
            self._abort()
            raise

    def _try_to_connect(self, timeout: float) -> bool:
        self._link.connect(timeout)
        return self._wait_up(self._deadline(timeout))

    def _no_broker(self, why: tuple[str, str] | None, timeout: float) -> FastMQError:
        """What to raise when the first session was not agreed."""
        if why is None:
            return ConnectionFailed(
                f"no fastmq broker at {self._address}: the connection was accepted, but no answer came in {timeout:g} s"
            )
        code, text = why
        if code in ERROR_OF_CODE and code not in PASSING:
            return error_from_wire(code, text)
        found = "the fastmq broker at {} takes no session" if code in PASSING else "no fastmq broker at {}"
        return ConnectionFailed(f"{found.format(self._address)}: {text}", code)

    def _after_fork(self) -> None:
        """In the child of a fork: the session stays with the parent, and so does the helper thread."""
        self._closed = True
        self._commands.abandon()
        self._events.abandon()

    def _abort(self) -> None:
        self._closed = True
        self._link.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.close()
        except FastMQError:
            if kind is None:
                raise

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self._closed = True
            self._link.close()

    def __repr__(self) -> str:
        return f"<fastmq.Client of {self._address}{', closed' if self._closed else ''}>"

    def close(self) -> None:
        """Flush (for at most 10 s), then end the session: what was received and not settled goes back to its queues at once.

        Raises what `flush` raises; the client is closed all the same. Closing twice does nothing.
        """
        if self._closed:
            return
        self._closed = True
        try:
            self.flush(FLUSH_ON_CLOSE_S)
        finally:
            try:
                self._say_bye()
            finally:
                self._link.close()

    # ---- exchanges and queues

    def declare_exchange(
        self, name: str, kind: str = "direct", durable: bool = True, auto_delete: bool = False, internal: bool = False, passive: bool = False
    ) -> None:
        """Make sure that the exchange exists; `kind` is direct, fanout or topic.

        An equal one that exists already is good; one with other properties is Refused (precondition-failed). `passive` only asks whether it
        exists, and raises NotFound if not.
        """
        options = {"durable": durable, "auto_delete": auto_delete, "internal": internal, "passive": passive}
        self._request(Verb.DECLARE_EXCHANGE, [self._name("exchange", name), kind, self._options(options, {"durable": True})])

    def delete_exchange(self, name: str) -> None:
        """Delete the exchange and its bindings; none of that name is good too. UnknownOutcome: the connection was lost meanwhile."""
        self._request(Verb.DELETE_EXCHANGE, [self._name("exchange", name), {}])

    def declare_queue(
        self, name: str = "", durable: bool = True, exclusive: bool = False, auto_delete: bool = False, passive: bool = False, **unknown: Any
    ) -> QueueInfo:
        """Make sure that the queue exists and return its QueueInfo; with an empty name the broker chooses one.

        `durable`: it and its persistent messages survive what the broker's data directory survives. `exclusive`: for this client only, and
        gone with it. `auto_delete`: gone with its last consumer. An equal queue that exists already is good, one with other properties is
        Refused (precondition-failed). `passive` only asks whether it exists, and raises NotFound if not.
        """
        if unknown:
            raise BadArgument(f"declare_queue does not know the argument {next(iter(unknown))!r}", "unknown-argument")
        options = {"durable": durable, "exclusive": exclusive, "auto_delete": auto_delete, "passive": passive}
        found = self._request(Verb.DECLARE_QUEUE, [self._name("queue", name), self._options(options, {"durable": True})])
        return QueueInfo(found["name"], found["message_count"], found["consumer_count"])

    def delete_queue(self, name: str) -> int:
        """Delete the queue; the number of its messages that were ready. UnknownOutcome: the connection or worker was lost meanwhile."""
        return int(self._request(Verb.DELETE_QUEUE, [self._name("queue", name), {}]))

    def purge_queue(self, name: str) -> int:
        """Drop the messages of the queue that are ready; their number. UnknownOutcome: the connection or worker was lost meanwhile."""
        return int(self._request(Verb.PURGE_QUEUE, [self._name("queue", name)]))

    def bind_queue(self, queue: str, exchange: str, key: str = "") -> None:
        """Let the queue receive what is published to the exchange with this routing key (topic exchange: pattern). Again is good."""
        self._bind(Verb.BIND, "queue", queue, exchange, key)

    def unbind_queue(self, queue: str, exchange: str, key: str = "") -> None:
        """Take a binding away; one that does not exist is good too."""
        self._bind(Verb.UNBIND, "queue", queue, exchange, key)

    def bind_exchange(self, destination: str, source: str, key: str = "") -> None:
        """Let the exchange `destination` receive what is published to `source` with this routing key (topic exchange: pattern)."""
        self._bind(Verb.BIND, "exchange", destination, source, key)

    def unbind_exchange(self, destination: str, source: str, key: str = "") -> None:
        """Take a binding between exchanges away; one that does not exist is good too."""
        self._bind(Verb.UNBIND, "exchange", destination, source, key)

    def _bind(self, verb: Verb, kind: str, destination: str, source: str, key: str) -> None:
        fields = [kind, self._name(kind, destination), self._name("exchange", source), self._name("key", key), {}]
        self._request(verb, fields)

    # ---- messages

    def consume(self, queue: str, prefetch: int = 500, auto_ack: bool = False, timeout: float | None = None) -> Consumer:
        """Begin to consume the queue at once; iterate over the result for its messages, one after the other.

        At most `prefetch` messages (and 64 MiB) are out at this consumer without being settled. With `auto_ack` they are settled as they
        arrive, and what this process loses is lost. Iterating ends when nothing has come for `timeout` seconds (None: never).
        """
        if not 1 <= prefetch <= Limit.CONSUMER_WINDOW_MAX:
            raise BadArgument(f"prefetch={prefetch} must lie between 1 and {int(Limit.CONSUMER_WINDOW_MAX)}")
        consumer = Consumer(self, self._commands, self._name("queue", queue), prefetch, CONSUME_WINDOW_BYTES, auto_ack, timeout)
        consumer.begin(self._deadline(self.timeout))
        return consumer

    def get(self, queue: str, timeout: float | None = 0) -> Message | None:
        """Take one message from the queue, to be settled like any other; None if there is none within `timeout` seconds (None: wait for ever).

        It asks again and again meanwhile, after pauses of up to 20 ms; `consume` waits without asking, and is much faster.
        """
        until = math.inf if timeout is None else time.monotonic() + timeout
        pause = GET_PAUSE_S[0]
        fields = [self._name("queue", queue)]
        while True:
            message = self._request_message(Verb.GET, fields)
            left = until - time.monotonic()
            if message is not None or left <= 0:
                return message
            time.sleep(min(pause, left))
            pause = min(pause * 2, GET_PAUSE_S[1])

    def subscribe(self, pattern: str, exchange: str = "", kind: str = "exact", timeout: float | None = None) -> Subscription:
        """Begin a live subscription; returns when it is active. Iterate over the result for its events, one after the other.

        Events are what is published to `exchange` with a routing key equal to `pattern` (kind exact) or matching it (kind topic) from now
        on, whether a queue takes it or not. Nothing is kept for a subscriber: `lost` of the result counts what it missed. Iterating ends
        when nothing has come for `timeout` seconds (None: never).
        """
        if kind not in SUBSCRIPTION_KINDS:
            raise BadArgument(f"kind={kind!r} must be one of {', '.join(SUBSCRIPTION_KINDS)}")
        deadline = self._deadline(self.timeout)
        fields = [self._name("exchange", exchange), SUBSCRIPTION_KINDS[kind], self._name("pattern", pattern)]
        session = self._welcomes
        self._request(Verb.SUBSCRIBE, fields)
        topic = "\0".join([self._address.vhost, *fields, ""]).encode()
        subscription = Subscription(self, self._events, topic, pattern, exchange, session, timeout)
        if self._events.is_dormant:
            self._events.want()
        else:
            self._events.nudge()
        subscription.begin(deadline)
        return subscription

    def _unsubscribe(self, topic: bytes, pattern: str, exchange: str) -> None:
        kind = topic.decode().split("\0")[2]
        try:
            self._request(Verb.UNSUBSCRIBE, [exchange, kind, pattern])
        except (Closed, ConnectionFailed, Unavailable):
            pass  # the session's subscriptions end with it

    def _ask_for_topics(self) -> int:
        """For the helper thread: SUBSCRIBE for what this session was not asked for yet; the session's number."""
        session = self._welcomes
        for topic in self._topics():
            _, exchange, kind, pattern, _ = topic.decode().split("\0")
            refused, _, _ = self._ask(Verb.SUBSCRIBE, [exchange, kind, pattern], self._deadline(self.timeout), True)
            if refused:
                raise error_from_wire(*refused)
            session = self._welcomes
            self._accepted(topic, session)
        return session

    def status(self) -> dict[str, Any]:
        """The broker's processes and queues, as `fastmq status --json` prints them."""
        found: dict[str, Any] = self._request(Verb.STATUS, [{}])
        return found

    # ---- requests

    def _request(self, verb: Verb, fields: list[Any]) -> Any:
        """The result of a request. Repeated while the worker it needs is away, for at most the client's timeout."""
        return self._retry(verb, fields)[0]

    def _request_message(self, verb: Verb, fields: list[Any]) -> Message | None:
        return self._retry(verb, fields)[1]

    def _retry(self, verb: Verb, fields: list[Any]) -> tuple[Any, Message | None]:
        until = time.monotonic() + self.timeout
        deadline = self._deadline(self.timeout)
        pause = RETRY_PAUSE_S[0]
        while True:
            refused, result, message = self._ask(verb, fields, deadline)
            if refused is None:
                return result, message
            error = error_from_wire(*refused)
            repeated = isinstance(error, Unavailable) or (isinstance(error, UnknownOutcome) and verb not in NOT_REPEATED)
            if not repeated or time.monotonic() + pause > until:
                raise error
            time.sleep(pause)
            pause = min(pause * 2, RETRY_PAUSE_S[1])

    @staticmethod
    def _name(what: str, name: str) -> str:
        if not isinstance(name, str):
            raise BadArgument(f"the {what} must be str, not {type(name).__name__}")
        try:
            size = len(name.encode())
        except UnicodeEncodeError:
            raise BadArgument(f"the {what} cannot be written as UTF-8") from None
        if size > Limit.NAME_SIZE_MAX:
            raise BadArgument(f"the {what} has {size} bytes; at most {int(Limit.NAME_SIZE_MAX)} are allowed")
        if "\0" in name:
            raise BadArgument(f"the {what} must not contain NUL")
        return name

    @staticmethod
    def _options(options: dict[str, bool], defaults: dict[str, bool]) -> dict[str, bool]:
        """Only what is not left at its default."""
        return {name: bool(value) for name, value in options.items() if bool(value) != defaults.get(name, False)}
