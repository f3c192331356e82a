"""Live subscriptions as iterators."""
cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport free

from fastmq.client.connection cimport WAITED, WAITED_TIMEOUT, Connection
from fastmq.client.events cimport EventRun, EventsCore, Subscriber
from fastmq.client.message cimport Event, key_of, raw_of
from fastmq.client.peer cimport NEVER, WAIT_ACTIVE, WAIT_EVENT
from fastmq.client.posix cimport clock_ns
from fastmq.wire.msgpack cimport Reader, reader_init
from fastmq.wire.records cimport RECORD_GOOD, Record, record_read

from fastmq.errors import Closed


@cython.final
@cython.no_gc_clear
cdef class Subscription:
    """Events of one live subscription, one after the other: an iterator and a context manager.

    Iterating waits for the next event; it ends after `timeout` seconds without one, and when the subscription is closed. Events that did
    not come (the broker drops them for a subscriber that reads too slowly) are counted in `lost`.
    """

    cdef object client
    cdef Connection origin
    cdef EventsCore core
    cdef uint64_t number
    cdef EventRun* run
    cdef str key
    cdef uint64_t lost_before
    cdef double timeout
    cdef readonly str pattern
    cdef readonly str exchange
    cdef readonly bytes topic
    cdef bint closing

    def __cinit__(self, client, Connection origin, bytes topic, str pattern, str exchange, uint64_t accepted, timeout):
        cdef Subscriber* s = NULL
        self.client = client
        self.origin = origin
        self.core = <EventsCore?> origin.peer
        self.topic = topic
        self.pattern = pattern
        self.exchange = exchange
        self.timeout = -1 if timeout is None else max(0.0, timeout)
        origin.lock()
        if not origin.closed:
            s = self.core.add(topic, len(topic), accepted)
            if s != NULL:
                self.number = s.number
        origin.unlock()
        if origin.closed:
            raise Closed("the client is closed")
        if s == NULL:
            raise MemoryError

    def __dealloc__(self):
        cdef Subscriber* s
        if self.origin is None:
            return
        free(self.run)
        self.run = NULL
        self.origin.lock()
        s = self.core.subscriber(self.number)
        if s != NULL:
            self.core.remove(s)
        self.origin.unlock()
        if s != NULL and not self.origin.closed:
            self.origin.push()

    def begin(self, uint64_t deadline_ns):
        """Wait until the broker sends events for it."""
        cdef int waited = self.origin.wait_for(WAIT_ACTIVE, self.number, deadline_ns)
        if waited != WAITED:
            self.origin.fail(waited, "the broker did not begin the live subscription in time")

    @property
    def lost(self):
        """Events that did not come, as far as the gaps in the broker's numbers tell; a break of unknown length counts as one."""
        cdef Subscriber* s
        self.origin.lock()
        s = self.core.subscriber(self.number)
        if s != NULL:
            self.lost_before = s.lost
        self.origin.unlock()
        return self.lost_before

    def __iter__(self):
        return self

    def __next__(self):
        cdef EventRun* run = self.run
        cdef Reader r
        cdef Record record
        cdef Event event
        if run == NULL or run.taken == run.count:
            self.more()
            run = self.run
        event = Event.__new__(Event)
        reader_init(&r, <uint8_t*> run + sizeof(EventRun) + run.at, run.size - run.at)
        if record_read(&r, &record) != RECORD_GOOD:
            raise SystemError("a record that could be read when it came cannot be read any more")
        event.body = PyBytes_FromStringAndSize(<const char*> record.body, record.body_size)
        event.routing_key = self.key = key_of(&record, self.key)
        event.raw = raw_of(&record)
        event.exchange = self.exchange
        run.at += record.size
        run.taken += 1
        return event

    cdef int more(self) except -1:
        """Sets `run` to one with something in it."""
        cdef uint64_t deadline = NEVER if self.timeout < 0 else clock_ns() + <uint64_t> (self.timeout * 1e9)
        cdef Subscriber* s
        cdef EventRun* run
        cdef int waited
        cdef bint was_full
        while True:
            run = self.run                                  # another thread may have taken one while this one waited
            if run != NULL and run.taken < run.count:
                return 0
            if self.closing:
                raise StopIteration
            self.run = NULL
            free(run)
            self.origin.lock()
            was_full = self.core.full
            s = self.core.subscriber(self.number)
            self.run = self.core.take(s) if s != NULL else NULL
            if was_full and not self.core.full:
                self.origin.poke(0)
            self.origin.unlock()
            if self.run == NULL:
                waited = self.origin.wait_for(WAIT_EVENT, self.number, deadline)
                if waited == WAITED_TIMEOUT:
                    raise StopIteration
                if waited != WAITED and not self.closing:
                    self.origin.fail(waited, "")

    def next(self, timeout=None):
        """The next event, or None after `timeout` seconds (None: the subscription's own timeout)."""
        cdef double before = self.timeout
        if timeout is not None:
            self.timeout = max(0.0, timeout)
        try:
            return self.__next__()
        except StopIteration:
            return None
        finally:
            self.timeout = before

    def close(self):
        """Stop; events that were not handed out are dropped."""
        cdef Subscriber* s
        cdef bint last = False
        if self.closing:
            return
        self.lost                                           # kept for after the end
        self.closing = True
        self.origin.lock()
        s = self.core.subscriber(self.number)
        if s != NULL:
            last = self.core.remove(s)
        self.origin.unlock()
        if self.origin.closed:
            return
        with nogil:
            self.origin.push()
        if last:
            self.client._unsubscribe(self.topic, self.pattern, self.exchange)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self.close()
