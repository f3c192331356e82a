"""Consumers as iterators: see consumer.pxd."""
cimport cython
from libc.stdint cimport uint32_t, uint64_t

from fastmq.client.connection cimport WAITED, WAITED_TIMEOUT, Connection
from fastmq.client.deliveries cimport CONSUMER_ENDED, Run, run_exchange
from fastmq.client.message cimport Message, message_next, text_of
from fastmq.client.peer cimport NEVER, WAIT_CLOSED, WAIT_CONSUMING, WAIT_RUN
from fastmq.client.posix cimport clock_ns
from fastmq.client.session cimport Session

import msgpack

from fastmq.errors import Closed, TimedOut, error_from_wire


@cython.final
@cython.no_gc_clear
cdef class Consumer:
    """Messages of one queue, one after the other: an iterator and a context manager.

    Iterating waits for the next message. It ends after `timeout` seconds without one, and when the consumer is closed; it raises NotFound
    when the queue is deleted, ConnectionFailed when the broker cannot be reached for the client's timeout. Safe to share among threads.
    """

    def __cinit__(self, client, Connection origin, str queue, uint32_t prefetch, uint64_t window_bytes, bint auto_ack, timeout):
        cdef bytes name = queue.encode()
        self.client = client
        self.origin = origin
        self.session = <Session?> origin.peer
        self.queue = queue
        self.timeout = -1 if timeout is None else max(0.0, timeout)
        origin.lock()
        if not origin.closed:
            self.state = self.session.consume(name, len(name), prefetch, window_bytes, auto_ack, clock_ns())
        origin.unlock()
        if origin.closed:
            raise Closed("the client is closed")
        if self.state == NULL:
            raise MemoryError

    def __dealloc__(self):
        cdef Connection origin = self.origin
        if self.state == NULL:
            return
        origin.lock()
        self.session.drop_consumer(self.state, clock_ns())
        self.state = NULL
        if self.run != NULL:
            self.session.release_run(self.run)
            self.run = NULL
        origin.unlock()
        if not origin.closed:
            origin.push()

    def begin(self, uint64_t deadline_ns):
        """Wait for the broker's answer to CONSUME; its refusal is raised."""
        cdef int waited = self.origin.wait_for(WAIT_CONSUMING, self.state.number, deadline_ns)
        if waited != WAITED:
            self.origin.fail(waited, "the answer to consume did not come in time")
        if self.state.phase == CONSUMER_ENDED:
            self.fail()

    def __iter__(self):
        return self

    def __next__(self):
        cdef Run* run = self.run
        cdef Message message
        if run == NULL or run.taken == run.count or (run.generation != self.session.generation and not run.acked):
            run = self.more()
        message = message_next(run, self.origin, self.exchange, self.key)
        self.key = message.routing_key
        return message

    def next(self, timeout=None):
        """The next message, or None after `timeout` seconds (None: the consumer's own timeout)."""
        cdef double before = self.timeout
        if timeout is not None:
            self.timeout = max(0.0, timeout)
        try:
            return self.__next__()
        except StopIteration:
            return None
        finally:
            self.timeout = before

    cdef Run* more(self) except NULL:
        """The next run with something in it, waited for."""
        cdef uint64_t deadline = NEVER if self.timeout < 0 else clock_ns() + <uint64_t> (self.timeout * 1e9)
        cdef Run* run
        cdef int waited
        cdef bint ended
        while True:
            # Another thread may have taken one while this one waited. From here to the end of the lock the GIL is not given up.
            run = self.run
            if run != NULL and run.taken < run.count and (run.generation == self.session.generation or run.acked):
                return run
            if self.closing or self.state == NULL:
                raise StopIteration
            self.run = NULL
            self.origin.lock()
            self.session.free_run(run)
            self.run = run = self.session.take_run(self.state)
            ended = self.state.phase == CONSUMER_ENDED
            if self.session.settles.ranges:
                self.origin.linger()
            self.origin.unlock()
            if run != NULL:
                self.exchange = text_of(run_exchange(run), run.exchange_size)
            elif ended:
                self.fail()
            else:
                waited = self.origin.wait_for(WAIT_RUN, self.state.number, deadline)
                if waited == WAITED_TIMEOUT:
                    raise StopIteration
                if waited != WAITED and not self.closing:
                    self.origin.fail(waited, "")

    def fail(self):
        """Raise why there are no more deliveries."""
        if self.closing or self.state.ended.size == 0:
            raise StopIteration
        code, text = msgpack.unpackb(<bytes> self.state.ended.data[:self.state.ended.size], unicode_errors="replace")
        raise error_from_wire(code, f"queue {self.queue!r}: {text}")

    cdef int give_back(self) except -1:
        self.closing = True
        self.origin.lock()
        self.session.close_consumer(self.state, clock_ns())
        if self.run != NULL:
            self.session.release_run(self.run)              # behind CANCEL, so that it does not come back at once
            self.run = NULL
        if self.session.settles.ranges:
            self.session.flush_settles()
        self.origin.unlock()
        return 0

    def close(self):
        """Stop: messages that were not handed out go back to the queue unchanged. Those that were can still be settled."""
        cdef int waited
        if self.closing or self.state == NULL:
            return
        self.give_back()
        if not self.origin.closed:
            waited = self.origin.wait_for(WAIT_CLOSED, self.state.number, clock_ns() + self.origin.patience_ns)
            if waited == WAITED_TIMEOUT:
                raise TimedOut(f"the broker did not confirm in time that the consumer of {self.queue!r} is closed")

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self.close()
