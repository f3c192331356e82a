"""The part of the blocking client that is on the way of a message: see base.pxd."""
from cpython.ref cimport PyObject
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memchr

from fastmq.client.connection cimport IMPATIENT, WAITED, WAITED_CLOSED, WAITED_TIMEOUT, WIDE_NS, Connection
from fastmq.client.core cimport ClientCore
from fastmq.client.deliveries cimport run_exchange
from fastmq.client.events cimport EventsCore
from fastmq.client.message cimport Message, message_next, text_of
from fastmq.client.peer cimport NEVER, WAIT_OUTCOME, WAIT_REQUEST, WAIT_ROOM, WAIT_SENT, WAIT_UP, WAIT_WIDE
from fastmq.client.posix cimport clock_ns
from fastmq.client.properties cimport properties_of
from fastmq.client.publishes cimport (
    FAILURES_MAX, PUBLISH_NO_MEMORY, Batch, publishes_add, publishes_drop, publishes_due, publishes_gathered,
)
from fastmq.client.requests cimport REQUEST_FAILED, Request, requests_find, requests_remove
from fastmq.wire.buffer cimport Buffer, buffer_add, buffer_free, buffer_init
from fastmq.wire.limits cimport MESSAGE_SIZE_MAX, NAME_SIZE_MAX, PROPERTIES_SIZE_MAX
from fastmq.wire.verbs cimport MANDATORY

import msgpack

from fastmq.errors import BadArgument, Closed, Failure, PublishError

cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL

cdef object packb = msgpack.packb


cdef int bad_text(str what, text) except -1:
    """Raise why `text` cannot be a name or routing key."""
    if not isinstance(text, str):
        raise BadArgument(f"the {what} must be str, not {type(text).__name__}")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise BadArgument(f"the {what} cannot be written as UTF-8") from None
    if size > NAME_SIZE_MAX:
        raise BadArgument(f"the {what} has {size} bytes; at most {NAME_SIZE_MAX} are allowed")
    raise BadArgument(f"the {what} must not contain NUL")


cdef class ClientBase:
    """The base of `Client`: publishing, requests and waiting."""

    def __cinit__(self, *args, **kwargs):
        self.timeout = 10.0

    def _start(self, str vhost, str name, double timeout):
        """Make the two cores and their connections; nothing is connected yet."""
        self.timeout = timeout
        self.core = ClientCore(vhost, name)
        self.events_core = EventsCore()
        self._commands = Connection(self.core, timeout)
        self._events = Connection(self.events_core, timeout)

    def publish(self, str routing_key not None, body not None, str exchange not None="", *, headers=None, bint persistent=True,
                bint mandatory=False, int priority=0, message_id=None, correlation_id=None, reply_to=None, content_type=None, timeout=None):
        """Publish one message; returns its sequence (1, 2, 3, ... for each client) without waiting for the broker.

        What becomes of it is known after `flush`, which raises PublishError for what was refused. `body` is bytes (64 KiB and more
        are kept until the outcome, not copied), or bytes-like: copied.
        With `mandatory` it is refused when no queue takes it. While the window is full this waits, for at most `timeout` seconds
        (None: as long as the broker is there); how much fits is the broker's to say, and less of large messages while it is busy
        with others. Raises TimedOut, ConnectionFailed, Closed or BadArgument: then nothing was published; and
        PublishError, nothing published either, when 10,000 failures of earlier messages were never asked for by `flush`.
        """
        cdef Py_ssize_t key_size, exchange_size
        cdef const char* key
        cdef const char* name
        cdef bytes properties = None
        cdef bytes data
        cdef uint64_t sequence
        cdef bint due
        cdef Connection c = self._commands
        cdef ClientCore core = self.core
        cdef int flags = MANDATORY if mandatory else 0
        if type(body) is bytes:
            data = <bytes> body
        elif isinstance(body, str):
            raise BadArgument("the body must be bytes, not str: encode it")
        else:
            try:
                data = bytes(memoryview(body))
            except TypeError:
                raise BadArgument(f"the body must be bytes, not {type(body).__name__}") from None
        try:
            key = PyUnicode_AsUTF8AndSize(routing_key, &key_size)
            name = PyUnicode_AsUTF8AndSize(exchange, &exchange_size)
        except UnicodeEncodeError:
            raise BadArgument("the routing key or exchange cannot be written as UTF-8") from None
        if key_size > NAME_SIZE_MAX or memchr(key, 0, key_size) != NULL:
            bad_text("routing key", routing_key)
        if exchange_size and (exchange_size > NAME_SIZE_MAX or memchr(name, 0, exchange_size) != NULL):
            bad_text("exchange", exchange)
        if (headers is not None or not persistent or priority or message_id is not None or correlation_id is not None
                or reply_to is not None or content_type is not None):
            properties = properties_of(headers, persistent, priority, message_id, correlation_id, reply_to, content_type)
        if len(data) > MESSAGE_SIZE_MAX - PROPERTIES_SIZE_MAX - 1024:
            raise BadArgument(f"the body has {len(data)} bytes; at most {MESSAGE_SIZE_MAX - PROPERTIES_SIZE_MAX - 1024} are allowed")
        c.lock()
        if c.closed or core.publishes.failures >= FAILURES_MAX:
            c.unlock()
            return self.publish_slowly(routing_key, data, exchange, flags, properties, timeout)
        sequence = publishes_add(
            &core.publishes, name, <uint8_t> exchange_size, <uint8_t> flags, key, <uint8_t> key_size,
            <const char*> properties if properties is not None else NULL, len(properties) if properties is not None else 0,
            <const char*> data, <uint32_t> len(data), <PyObject*> data)
        due = publishes_due(&core.publishes)
        if due and not publishes_gathered(&core.publishes) and c.expects_company():
            due = False
        if c.linger_ns == 0 and not due and core.publishes.ready:
            c.linger()
        c.unlock()
        if core.publishes.dropped != NULL:
            self.let_go_of_bodies()
        if due:
            with nogil:
                c.push()
                c.lock()
                c.published_ns = clock_ns()
                c.unlock()
        if sequence == 0 or sequence == PUBLISH_NO_MEMORY:
            return self.publish_slowly(routing_key, data, exchange, flags, properties, timeout)
        return sequence

    cdef uint64_t publish_slowly(self, str routing_key, bytes body, str exchange, int flags, bytes properties, timeout) except 0:
        """Publish when the window may be full, with waiting."""
        cdef bytes key = routing_key.encode(), name = exchange.encode()
        cdef uint64_t deadline = NEVER if timeout is None else clock_ns() + <uint64_t> (max(0.0, timeout) * 1e9)
        cdef uint64_t sequence
        cdef uint64_t size = len(key) + len(body) + 12 + (len(properties) if properties is not None else 0)
        cdef uint64_t wide
        cdef int waited = WAITED_TIMEOUT
        while True:
            self._raise_if_full_of_failures()
            self._commands.lock()
            sequence = 0 if self._commands.closed else publishes_add(
                &self.core.publishes, name, <uint8_t> len(name), <uint8_t> flags, key, <uint8_t> len(key),
                <const char*> properties if properties is not None else NULL, len(properties) if properties is not None else 0,
                <const char*> body, <uint32_t> len(body), <PyObject*> body)
            if sequence and waited == WAITED and not publishes_gathered(&self.core.publishes):
                self._commands.linger()         # who has filled the window goes on: not one message by itself
                self._commands.published_ns = clock_ns()
                self._commands.unlock()
                return sequence
            self._commands.unlock()
            if sequence == PUBLISH_NO_MEMORY:
                raise MemoryError("there is no memory for this message")
            with nogil:
                self._commands.push()
            self.let_go_of_bodies()
            if sequence:
                return sequence
            wide = clock_ns() + WIDE_NS         # one at a time, each would be a batch of its own
            waited = WAITED_TIMEOUT if deadline <= wide else self._commands.wait_for(WAIT_WIDE, size, wide)
            if waited == WAITED_TIMEOUT:
                waited = self._commands.wait_for(WAIT_ROOM, size, deadline)
            if waited != WAITED:
                self._commands.fail(waited, "earlier messages were not taken in time, so the window stayed full; nothing was published")

    def _raise_if_full_of_failures(self):
        if self.core.publishes.failures >= FAILURES_MAX:
            self._raise_failures()
        if self._commands.closed:
            raise Closed("the client is closed")

    def _take_failures(self):
        """The publishes without success that were not reported yet, as a list of Failure."""
        self._commands.lock()
        raw = <bytes> self.core.publishes.failed.data[:self.core.publishes.failed.size] if self.core.publishes.failures else b""
        self.core.publishes.failed.size = 0
        self.core.publishes.failures = 0
        self._commands.unlock()
        unpacker = msgpack.Unpacker(unicode_errors="replace")
        unpacker.feed(raw)
        return [Failure(*values) for values in unpacker]

    def _raise_failures(self):
        failures = self._take_failures()
        if failures:
            raise PublishError(failures)

    def flush(self, timeout=10.0):
        """Wait until every publish made so far has its outcome, for at most `timeout` seconds (None: as long as the broker is there).

        Raises PublishError, whose `failures` lists every publish without success that was not reported before; TimedOut, or ConnectionFailed
        where there is no connection, when outcomes are still missing.
        """
        cdef uint64_t last
        cdef int waited
        self._commands.lock()
        last = self.core.publishes.next_seq - 1
        self._commands.unlock()
        waited = self._commands.wait_for(WAIT_OUTCOME, last, NEVER if timeout is None else self._deadline(timeout))
        self.let_go_of_bodies()
        if waited == WAITED_CLOSED or self._commands.closed:
            raise Closed("the client is closed")
        if waited != WAITED:
            self._commands.fail(waited, f"the outcome of {self.core.publishes.open_messages} publishes did not come within {timeout} s")
        if self.core.publishes.failures:
            self._raise_failures()

    cdef void let_go_of_bodies(self):
        """Those of publishes that have their outcomes."""
        cdef Batch* dropped
        self._commands.lock()
        dropped = self.core.publishes.dropped
        self.core.publishes.dropped = NULL
        self._commands.unlock()
        publishes_drop(dropped)

    # ---- requests

    def _ask(self, uint32_t verb, list fields, uint64_t deadline_ns, bint impatient=False):
        """One request: (None, result, message of a GET) or ((code, text), None, None). Raises when no answer comes before the deadline.

        `impatient`, for the helper thread: also when the connection is lost, which only that thread can make again.
        """
        cdef Request* request
        cdef Connection c = self._commands
        cdef uint64_t number = 0
        cdef int waited
        cdef bytes packed = b"".join([packb(field) for field in fields])
        c.lock()
        if not c.closed:
            request = self.core.ask(verb)
            if request != NULL:
                buffer_add(&request.fields, <const char*> packed, len(packed))
                request.fields_count = <uint32_t> len(fields)
                number = request.number
                self.core.asked(request, clock_ns())
        c.unlock()
        if number == 0:
            raise Closed("the client is closed") if c.closed else MemoryError()
        try:
            waited = c.wait_for(WAIT_REQUEST | IMPATIENT if impatient else WAIT_REQUEST, number, deadline_ns)
        except BaseException:                               # interrupted: nobody waits for the answer any more
            self._forget(number)
            raise
        if waited != WAITED:
            self._forget(number)
            c.fail(waited, "the broker did not answer in time")
        return self._answer(number)

    def _answer(self, uint64_t number):
        cdef Request* request
        cdef bint failed
        cdef Message message = None
        self._commands.lock()
        request = requests_find(&self.core.requests, number)
        raw = <bytes> request.answer.data[:request.answer.size]
        failed = request.state == REQUEST_FAILED
        if request.run != NULL:
            message = self.message_of(request)
        requests_remove(&self.core.requests, request)
        self._commands.unlock()
        value = msgpack.unpackb(raw, unicode_errors="replace", strict_map_key=False)
        return (tuple(value), None, None) if failed else (None, value, message)

    cdef Message message_of(self, Request* request):
        return message_next(request.run, self._commands, text_of(run_exchange(request.run), request.run.exchange_size), None)

    def _forget(self, uint64_t number):
        self._commands.lock()
        self.core.forget(number)
        if self.core.settles.ranges:
            self._commands.linger()
        self._commands.unlock()

    # ---- for the helper thread and the end

    def _wait_up(self, uint64_t deadline_ns):
        """Wait for the first session; False: it was not agreed."""
        return self._commands.wait_for(WAIT_UP | IMPATIENT, 0, deadline_ns) == WAITED

    def _say_bye(self):
        """End the session cleanly, if there is one: what was not settled goes back at once."""
        self._commands.lock()
        self.core.bye(clock_ns())
        self._commands.unlock()
        self._commands.wait_for(WAIT_SENT | IMPATIENT, 0, clock_ns() + 1000000000)
        self._commands.finish()

    def _topics(self):
        """Topics of live subscriptions that this session has not asked for."""
        cdef Buffer b
        buffer_init(&b)
        self._events.lock()
        self.events_core.write_topics(&b)                   # under the mutex no object that the collector tracks is made
        self._events.unlock()
        raw = <bytes> b.data[:b.size] if b.size else b""
        buffer_free(&b)
        unpacker = msgpack.Unpacker()
        unpacker.feed(raw)
        return [topic for topic, accepted in unpacker if accepted != self.core.welcomes]

    def _accepted(self, bytes topic, uint64_t welcomes):
        self._events.lock()
        self.events_core.accept(topic, len(topic), welcomes)
        self._events.unlock()

    @property
    def _welcomes(self):
        return self.core.welcomes

    @property
    def _events_endpoint(self):
        cdef bytes raw = b""
        self._commands.lock()
        if self.core.endpoint.size:
            raw = <bytes> self.core.endpoint.data[:self.core.endpoint.size]
        self._commands.unlock()
        return raw.decode("utf-8", "replace")

    @property
    def _why_broken(self):
        return self._commands.why_broken

    @property
    def session_id(self):
        """The public half of the session's id, as `fastmq status` and the broker's log show it; "" without a session."""
        return self.core.session_id[:8].hex()

    @property
    def stale_settlements(self):
        """Settlements of messages whose connection had been lost: they did nothing, and the messages were delivered again."""
        return self.core.stale_settles

    @staticmethod
    def _deadline(double timeout):
        return clock_ns() + <uint64_t> (max(0.0, timeout) * 1e9)
