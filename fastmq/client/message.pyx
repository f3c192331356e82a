"""Messages and events as the application sees them."""
cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.string cimport memcmp

from fastmq.client.connection cimport Connection
from fastmq.client.deliveries cimport Run
from fastmq.client.session cimport Session
from fastmq.wire.msgpack cimport Reader, reader_init
from fastmq.wire.records cimport RECORD_GOOD, Record, record_read
from fastmq.wire.verbs cimport NACK, REJECT

import msgpack

cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL


cdef str text_of(const void* data, size_t size):
    """Text from the broker; what is not UTF-8 in it is replaced."""
    return PyUnicode_DecodeUTF8(<const char*> data, <Py_ssize_t> size, b"replace")


cdef str key_of(Record* record, str last):
    """The record's routing key; the same object as `last` when it is the same key."""
    cdef Py_ssize_t size
    cdef const char* data
    if last is not None:
        data = PyUnicode_AsUTF8AndSize(last, &size)
        if size == <Py_ssize_t> record.routing_key_size and memcmp(data, record.routing_key, size) == 0:
            return last
    return text_of(record.routing_key, record.routing_key_size)


cdef bytes raw_of(Record* record):
    if record.properties_size == 0:
        return None
    return PyBytes_FromStringAndSize(<const char*> record.properties, record.properties_size)


cdef Message message_next(Run* run, Connection origin, str exchange, str last_key):
    """The run's next message, which counts as handed out."""
    cdef Reader r
    cdef Record record
    cdef Message message = Message.__new__(Message)
    reader_init(&r, run.records + run.at, run.size - run.at)
    if record_read(&r, &record) != RECORD_GOOD:
        raise SystemError("a record that could be read when it came cannot be read any more")
    message.body = PyBytes_FromStringAndSize(<const char*> record.body, record.body_size)
    message.routing_key = key_of(&record, last_key)
    if record.properties_size:
        message.raw = raw_of(&record)
    message.exchange = exchange
    message.origin = origin
    message.epoch = run.epoch
    message.n = run.first_n + run.taken
    message.generation = run.generation
    message.timestamp_ms = run.timestamp_ms
    message.deliveries = run.deliveries
    message.shard = run.shard
    message.settled = run.acked
    run.at += record.size
    run.taken += 1
    return message


cdef dict decode(bytes raw):
    """Properties, from whatever client wrote them; what is not a map of the expected kind is as good as empty."""
    try:
        found = msgpack.unpackb(raw, strict_map_key=False, unicode_errors="replace")
    except (ValueError, RecursionError, msgpack.UnpackException):
        return {}
    return found if isinstance(found, dict) else {}


cdef text_or_none(dict properties, str name):
    value = properties.get(name)
    return value if isinstance(value, str) else None


@cython.final
@cython.no_gc
@cython.freelist(512)
cdef class Message:
    """A message from a queue.

    `body` (bytes), `routing_key` and `exchange` are as published. Settle it once: with `ack`, `nack` or `reject`, or as a context manager:
    acknowledged on leaving, requeued on an exception. Settling a message whose connection was lost since does nothing: it is delivered again.
    """

    @property
    def headers(self):
        """The application's headers, a dict; empty where there are none."""
        headers = self.properties().get("headers")
        return headers if isinstance(headers, dict) else {}

    @property
    def redelivered(self):
        """Whether it was delivered before, to anyone."""
        return self.deliveries > 1

    @property
    def delivery_count(self):
        """How often it was delivered, this time included."""
        return self.deliveries

    @property
    def timestamp(self):
        """When the broker took it: seconds since 1970."""
        return self.timestamp_ms / 1000

    @property
    def message_id(self):
        return text_or_none(self.properties(), "message_id")

    @property
    def correlation_id(self):
        return text_or_none(self.properties(), "correlation_id")

    @property
    def reply_to(self):
        return text_or_none(self.properties(), "reply_to")

    @property
    def content_type(self):
        return text_or_none(self.properties(), "content_type")

    @property
    def priority(self):
        """0 to 255; 0 where none was given."""
        value = self.properties().get("priority")
        return value if isinstance(value, int) else 0

    @property
    def persistent(self):
        """Whether it was published to survive a restart."""
        return self.properties().get("persistent") is not False

    def ack(self):
        """It is done with: the broker forgets it. The second settlement of a message does nothing."""
        self.settle(0)

    def nack(self, bint requeue=True):
        """It was not handled: back to its old place in the queue, marked as redelivered, or dropped with `requeue=False`."""
        self.settle(NACK if requeue else REJECT)

    def reject(self):
        """It cannot be handled: dropped. The same as `nack(requeue=False)`."""
        self.settle(REJECT)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self.settle(0 if kind is None else NACK)

    def __repr__(self):
        return f"<fastmq.Message {self.routing_key!r}, {len(self.body)} bytes>"

    cdef int settle(self, int action) except -1:
        cdef Connection c = self.origin
        cdef bint due
        if self.settled:
            return 0
        self.settled = True
        c.lock()
        due = (<Session> c.peer).settle(self.shard, self.epoch, self.n, action, self.generation)
        if c.linger_ns == 0 and not due and (<Session> c.peer).settles.ranges:
            c.linger()
        c.unlock()
        if due:
            with nogil:
                c.push()
        return 0

    cdef dict properties(self):
        if self.decoded is None:
            self.decoded = {} if self.raw is None else decode(self.raw)
        return self.decoded


@cython.final
@cython.no_gc
@cython.freelist(256)
cdef class Event:
    """A message seen by a live subscription: nothing is to be settled."""

    @property
    def headers(self):
        """The application's headers, a dict; empty where there are none."""
        headers = self.properties().get("headers")
        return headers if isinstance(headers, dict) else {}

    @property
    def message_id(self):
        return text_or_none(self.properties(), "message_id")

    @property
    def correlation_id(self):
        return text_or_none(self.properties(), "correlation_id")

    @property
    def reply_to(self):
        return text_or_none(self.properties(), "reply_to")

    @property
    def content_type(self):
        return text_or_none(self.properties(), "content_type")

    @property
    def priority(self):
        value = self.properties().get("priority")
        return value if isinstance(value, int) else 0

    def __repr__(self):
        return f"<fastmq.Event {self.routing_key!r}, {len(self.body)} bytes>"

    cdef dict properties(self):
        if self.decoded is None:
            self.decoded = {} if self.raw is None else decode(self.raw)
        return self.decoded
