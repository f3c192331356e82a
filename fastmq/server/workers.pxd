# The links of a front-end to its workers, and which worker has which shard.
from cpython.ref cimport PyObject
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from fastmq.net.arena cimport ArenaMap, Borrowed
from fastmq.wire.limits cimport SHARDS_MAX, WORKERS_MAX
from fastmq.wire.link cimport LinkRegion


cdef inline size_t padded(size_t size) noexcept nogil:
    """What `size` bytes take in a message of wire/link.pxd."""
    return (size + 7) & ~<size_t> 7


cdef enum:
    REGIONS_MAX = 8                             # of one worker's arena that a front-end may have at a time
    RECORD_ALIGNMENT = 64


cdef struct Lent:                               # a region of a worker's arena, to be written from its start on
    uint64_t offset
    uint64_t size
    uint64_t used
    bint is_warm                                # it took memory when it was lent
    uint32_t reserved                           # places in it that are being filled


cdef struct Regions:                            # those of one worker, oldest first
    Lent[REGIONS_MAX] items
    int count
    Lent[REGIONS_MAX] leaving                   # to be handed back when their places are filled
    int leaving_count
    bint idle                                   # nothing was written since the last tick,
    uint64_t idle_since_ns                      # nor since then


cdef struct Placement:                          # a place in a worker's arena for a record that is still to come
    uint8_t* at                                 # NULL: there is none
    uint64_t size
    uint64_t offset                             # in the arena
    uint64_t region                             # where its region begins
    int worker
    uint32_t link                               # the number of the worker's link: with another one the place is nobody's
    bint is_cold                                # its memory is still to be taken
    ArenaMap* map


cdef class Workers:
    cdef readonly int count                     # workers of the broker, up or not
    cdef readonly int shards
    cdef PyObject* links[WORKERS_MAX]            # Link, borrowed from `_links`; NULL: the worker is down
    cdef list _links
    cdef readonly uint32_t up                   # bits of the workers that have a link
    cdef uint16_t[SHARDS_MAX] of_shard          # shard -> worker
    cdef uint32_t written                       # bits of the links written to since the last flush
    cdef PyObject* arenas[WORKERS_MAX]          # ArenaView, borrowed from `_arenas`; NULL: none
    cdef list _arenas
    cdef Regions[WORKERS_MAX] regions
    cdef uint32_t[WORKERS_MAX] link_number      # of the links that each worker has had

    cdef uint8_t* begin(self, int worker, uint16_t kind, uint16_t shard, size_t size) noexcept nogil
    cdef void commit(self, int worker) noexcept nogil
    cdef bint add(self, int worker, uint16_t kind, uint16_t shard, const void* data, size_t size) noexcept nogil
    cdef void flush(self) noexcept nogil
    # the workers' arenas
    cdef void take_region(self, int worker, const LinkRegion* region) noexcept nogil
    cdef uint8_t* place(self, int worker, uint64_t size, uint64_t* offset) noexcept nogil
    cdef uint8_t* cut(self, int worker, Lent* region, uint64_t size, uint64_t* offset) noexcept nogil
    cdef void region_done(self, int worker, bint idle) noexcept nogil
    cdef void hand_back(self, int worker, const Lent* region, bint is_warm) noexcept nogil
    cdef bint reserve(self, int worker, uint64_t size, Placement* placement) noexcept nogil
    cdef void release(self, Placement* placement) noexcept nogil
    cdef const uint8_t* borrow(self, int worker, uint64_t loan, uint64_t offset, Borrowed** borrowed) noexcept nogil
    cdef bint return_loan(self, int worker, uint64_t loan) noexcept nogil
    cdef void return_loans(self) noexcept nogil
