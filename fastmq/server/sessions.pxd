# The protocol core of a front-end, without I/O: requests of clients and messages of workers in, frames and link messages out.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from fastmq.server.live cimport LivePatterns
from fastmq.server.outbox cimport Outbox, Source
from fastmq.server.publishing cimport Publishing
from fastmq.server.session cimport Session
from fastmq.server.settling cimport Settling
from fastmq.server.workers cimport Workers
from fastmq.wire.idmap cimport IdMap
from fastmq.wire.msgpack cimport Reader


cdef class Sessions(Outbox):
    cdef readonly Workers workers
    cdef readonly LivePatterns live
    cdef readonly Publishing publishing
    cdef readonly Settling settling
    cdef readonly object requests       # server.requests.Requests: what is not on the hot path
    cdef readonly object config
    cdef readonly uint64_t epoch
    cdef public str events_endpoint     # where the XPUB socket is bound, for WELCOME
    cdef public bint serving            # the topology is known: before that every publish would be refused for want of queues
    cdef bytes _key
    cdef object _random
    cdef IdMap by_fd                    # fd + 1 -> Session* that lives on it
    cdef dict _vanished                 # sids without a connection, in the order they lost it
    cdef dict _spare                    # those of them that owned no queues then, in the same order
    cdef uint64_t tick_at_ns
    # counters
    cdef readonly uint64_t received     # requests
    cdef readonly uint64_t bad_requests
    cdef readonly uint64_t stale
    cdef readonly uint64_t no_session
    cdef readonly uint64_t bad_incarnation
    cdef readonly uint64_t delivered    # messages
    cdef readonly uint64_t deliveries_dropped   # runs for a session that is not there, or has said HELLO since

    cdef void receive_frames(
        self, int fd, uint32_t accept_count, const uint8_t* rid, size_t rid_size, int frames, const uint8_t* header,
        size_t header_size, const uint8_t* records, size_t records_size
    ) noexcept nogil
    cdef void from_link(self, int worker, uint16_t kind, uint16_t shard, const uint8_t* payload, size_t size) noexcept nogil
    cdef int pump(self, int worker, int messages_max) noexcept nogil
    cdef void lose_connection(self, int fd, uint32_t accept_count) noexcept nogil
    cdef void hear_events(self, int kind, const uint8_t* payload, size_t size) noexcept with gil

    # private
    cdef int read_head(self, Reader* r, Source* source) noexcept nogil
    cdef void judge(
        self, const Source* source, Reader* r, int fields, int frames, const uint8_t* header, size_t header_size,
        const uint8_t* records, size_t records_size
    ) noexcept nogil
    cdef void publish(
        self, Session* s, const Source* source, Reader* r, int fields, int frames, const uint8_t* records, size_t records_size
    ) noexcept nogil
    cdef void settle(self, Session* s, const Source* source, Reader* r, int fields) noexcept nogil
    cdef void outcome(self, int worker, const uint8_t* payload) noexcept nogil
    cdef void deliver(self, const uint8_t* payload) noexcept nogil
    cdef void refuse_frames(self, Session* s, const Source* source, int frames, size_t header_size) noexcept with gil
    cdef void refuse_publish(self, Session* s, const Source* source, int result) noexcept with gil
    cdef void refuse_settle(self, Session* s, const Source* source, int result) noexcept with gil
    cdef void cold(self, Session* s, const Source* source, const uint8_t* header, size_t header_size) noexcept with gil
    cdef void cold_hello(self, const Source* source, const uint8_t* header, size_t header_size) noexcept with gil
    cdef void cold_link(
        self, int worker, uint16_t kind, uint16_t shard, const uint8_t* payload, size_t size
    ) noexcept with gil
    cdef void hello(self, const Source* source, bytes header) except *
    cdef Session* open_session(self, uint64_t sid, uint64_t proof) except NULL
    cdef void accept(self, Session* s, const Source* source, uint32_t incarnation, str name) except *
    cdef void leave_connection(self, Session* s) noexcept nogil
    cdef void end_at_workers(self, Session* s, bint forget) noexcept nogil
    cdef void forget(self, Session* s) noexcept nogil
