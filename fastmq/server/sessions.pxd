# The protocol core of a front-end, without I/O: requests of clients and messages of workers in, frames and link messages out.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from fastmq.server.live cimport LivePatterns
from fastmq.server.membership cimport Membership
from fastmq.server.outbox cimport Source
from fastmq.server.publishing cimport Publishing, PublishRequest
from fastmq.server.session cimport Address, Session
from fastmq.server.settling cimport Settling
from fastmq.server.workers cimport Placement
from fastmq.wire.msgpack cimport Reader


cdef class Sessions(Membership):
    cdef readonly LivePatterns live
    cdef readonly Publishing publishing
    cdef readonly Settling settling
    cdef readonly uint64_t epoch
    cdef public bint serving            # the topology is known: before that every publish would be refused for want of queues
    cdef uint64_t tick_at_ns
    # counters
    cdef readonly uint64_t received     # requests
    cdef readonly uint64_t delivered    # messages
    cdef readonly uint64_t deliveries_dropped   # runs for a session that is not there, or has said HELLO since

    cdef void receive_frames(
        self, const Address* address, int frames, const uint8_t* header, size_t header_size, const uint8_t* records, size_t records_size
    ) noexcept nogil
    # Reserve a place for the large record of a request whose header has come; False: it is to be read like any other.
    cdef bint place(self, const Address* address, const uint8_t* header, size_t header_size, const uint8_t* record, size_t size, size_t total,
                    Placement* placement) noexcept nogil
    cdef void from_link(self, int worker, uint16_t kind, uint16_t shard, const uint8_t* payload, size_t size) noexcept nogil
    cdef int pump(self, int worker, int messages_max) noexcept nogil
    cdef void hear_events(self, int kind, const uint8_t* payload, size_t size) noexcept with gil

    # private
    cdef int read_head(self, Reader* r, Source* source) noexcept nogil
    cdef void read_number(self, Reader* r, Source* source, int fields) noexcept nogil
    cdef void judge(
        self, Source* source, Reader* r, int fields, int frames, const uint8_t* header, size_t header_size,
        const uint8_t* records, size_t records_size
    ) noexcept nogil
    cdef bint read_publish(self, Reader* r, int fields, PublishRequest* p) noexcept nogil
    cdef void publish(
        self, Session* s, const Source* source, Reader* r, int fields, int frames, const uint8_t* records, size_t records_size
    ) noexcept nogil
    cdef void settle(self, Session* s, const Source* source, Reader* r, int fields) noexcept nogil
    cdef void outcome(self, int worker, const uint8_t* payload) noexcept nogil
    cdef void deliver(self, int worker, const uint8_t* payload) noexcept nogil
    cdef void refuse_frames(self, Session* s, const Source* source, int frames, size_t header_size) noexcept with gil
    cdef void refuse_publish(self, Session* s, const Source* source, int result) noexcept with gil
    cdef void refuse_settle(self, Session* s, const Source* source, int result) noexcept with gil
    cdef void cold(self, Session* s, const Source* source, const uint8_t* header, size_t header_size) noexcept with gil
    cdef void cold_link(
        self, int worker, uint16_t kind, uint16_t shard, const uint8_t* payload, size_t size
    ) noexcept with gil
