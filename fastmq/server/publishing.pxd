# The way of a publish through a front-end: records frame -> routes -> one message for each worker.
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmq.server.live cimport LivePatterns
from fastmq.server.routes cimport Destination, Route, RouteCache
from fastmq.server.session cimport Session
from fastmq.server.workers cimport Placement, Workers
from fastmq.wire.buffer cimport Buffer
from fastmq.wire.limits cimport WORKERS_MAX


cdef struct PublishRequest:         # the fields of the header
    uint64_t floor
    uint64_t first_seq
    uint64_t count
    const uint8_t* exchange
    uint32_t exchange_size
    uint32_t flags


cdef enum PublishResult:
    PUBLISH_DONE
    PUBLISH_BAD_SEQUENCE            # of these nothing was taken
    PUBLISH_BAD_COUNT
    PUBLISH_BAD_FLAGS
    PUBLISH_BAD_EXCHANGE
    PUBLISH_NO_MEMORY
    PUBLISH_BAD_RECORDS             # (private: they are refused one by one)


cdef struct KeyRun:                 # consecutive records with the same routing key and the same fate
    const uint8_t* key
    uint32_t key_size
    uint32_t code                   # why they are refused before anything is looked up (Code), or 0
    uint32_t index                  # of the first, in the batch
    uint32_t count
    uint32_t offset                 # of the first, in the records frame
    uint32_t size
    bint is_large                   # one record, to be put into the workers' arenas


cdef struct Piece:                  # records that a worker needs
    uint32_t offset                 # in the records frame
    uint32_t size


cdef struct Parcel:                 # what one worker is going to get of the batch in hand
    Buffer entries                  # LinkPublishEntry[]
    Buffer pieces                   # Piece[]
    uint32_t records_size


cdef class Publishing:
    cdef readonly RouteCache routes
    cdef readonly LivePatterns live
    cdef readonly Workers workers
    cdef object resolve                 # (vhost number, exchange, key) -> (Code, [(worker, shard, queue)...], [pattern...])
    cdef Parcel[WORKERS_MAX] parcels
    cdef uint32_t lost                  # bits of the workers that could not be told of a part of it: no memory
    cdef const Placement* placed        # where the only record of the batch in hand lies already; NULL: it does not
    cdef Buffer runs                    # KeyRun[] of the batch in hand
    cdef Buffer sizes                   # uint32_t[]: size of each record
    # counted in messages
    cdef readonly uint64_t published
    cdef readonly uint64_t unroutable
    cdef readonly uint64_t refused
    cdef readonly uint64_t over_window

    cdef int publish(
        self, Session* s, const PublishRequest* p, const uint8_t* records, size_t records_size
    ) noexcept nogil
    # Reserve a place for the only record of a PUBLISH, of which the first `size` bytes have come; False: it is to be read like any other.
    cdef bint place(
        self, Session* s, const PublishRequest* p, const uint8_t* record, size_t size, size_t total, Placement* placement
    ) noexcept nogil
    cdef int check(self, Session* s, const PublishRequest* p) noexcept nogil
    cdef int split(self, Session* s, const PublishRequest* p, const uint8_t* records, size_t records_size) noexcept nogil
    cdef void refuse_all(self, Session* s, const PublishRequest* p, size_t records_size) noexcept nogil
    cdef Route* route(self, uint32_t vhost, const PublishRequest* p, const KeyRun* run) noexcept nogil
    cdef Route* resolve_route(self, uint32_t vhost, const PublishRequest* p, const KeyRun* run) noexcept with gil
    cdef bint enter(self, Session* s, const PublishRequest* p, const KeyRun* run, uint32_t workers, uint32_t code) noexcept nogil
    cdef bint address(self, Session* s, const PublishRequest* p, const KeyRun* run, const Route* route, const uint8_t* records) noexcept nogil
    cdef bint add_to_parcel(
        self, const PublishRequest* p, const KeyRun* run, const Destination* to, uint32_t count
    ) noexcept nogil
    cdef bint share(
        self, Session* s, const PublishRequest* p, const KeyRun* run, const Destination* to, uint32_t count, const uint8_t* records
    ) noexcept nogil
    cdef uint8_t* begin(self, Session* s, const PublishRequest* p, int worker, size_t entries_size, uint32_t records_size) noexcept nogil
    cdef bint is_placed(self, int worker, const uint8_t* record, uint64_t size) noexcept nogil
    cdef void watch(self, Session* s, const PublishRequest* p, const KeyRun* run, const Route* route) noexcept nogil
    cdef bint send(self, Session* s, const PublishRequest* p, int worker, const uint8_t* records) noexcept nogil
