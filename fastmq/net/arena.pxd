# A worker's arena: shared memory for bodies that are too large to be copied through rings.
#
# Owns: the mapping of one end. Rules: only the worker decides what lies where (model/regions.pxd); a front-end writes into regions that it was
# lent, once, and reads what it was lent by a delivery, until it gives that back: its main thread tells the worker once a turn. A front-end's
# mapping outlives its worker until the last record has been let go of. Used by workers (ArenaMemory) and front-ends (ArenaView).
#
#     worker  --region-->  front-end: reads a body into it, or copies one  --publish, offset-->  worker: holds it
#     worker  --deliver, offset, loan-->  front-end: sends it from there  --arena_give_back, loan-->  worker
from libc.stdint cimport uint8_t, uint64_t


cdef struct ArenaMap:
    uint8_t* base
    size_t size
    uint64_t holders            # the view, each record on loan, each place that is being filled; the last one unmaps
    bint closed                 # the view has gone: nobody asks for what comes back any more
    Borrowed* returned          # what has come back, newest first


cdef struct Borrowed:           # a record on loan
    Borrowed* next
    ArenaMap* map
    uint64_t loan               # the worker's number of it


cdef void arena_give_back(Borrowed* borrowed) noexcept nogil
cdef void arena_hold(ArenaMap* m) noexcept nogil                # keep the mapping, until as often
cdef void arena_let_go(ArenaMap* m) noexcept nogil


cdef void arena_prepare(uint8_t* at, size_t size) noexcept nogil  # all of these bytes are about to be written


cdef class ArenaMemory:
    """The worker's mapping, of the whole file."""
    cdef uint8_t* base
    cdef readonly size_t size
    cdef int fd

    cdef void punch(self, uint64_t offset, uint64_t size) noexcept nogil


cdef class ArenaView:
    """A front-end's mapping of one worker's arena."""
    cdef ArenaMap* map

    cdef Borrowed* borrow(self, uint64_t loan) noexcept nogil
    cdef Borrowed* take_returned(self) noexcept nogil
    cdef void forget(self, Borrowed* borrowed) noexcept nogil
