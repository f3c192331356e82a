# What a worker lends of its arena: regions that front-ends copy large records into, and records that they deliver from where they lie.
#
# Owns: the regions, and how many each front-end has. Rules: a front-end has up to REGIONS_LENT regions at a time, and gets another for one
# that it hands in; where the arena is full it gets what is missing at a tick; memory that nobody has needed for a while is given back at a
# tick. Runs in workers, without the GIL.
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmq.model.regions cimport Regions
from fastmq.net.arena cimport ArenaMemory
from fastmq.server.port cimport Port
from fastmq.wire.buffer cimport Buffer
from fastmq.wire.link cimport LinkHead


cdef enum:
    REGIONS_LENT = 4            # regions of the arena that a front-end has at a time
    COOL_NS = 1000000000        # an eighth of the units that were free for so long is given back


cdef class Lender:
    cdef ArenaMemory arena          # None: there is none
    cdef Regions regions            # who has what of it
    cdef Buffer cooled              # Span[], to be given back
    cdef uint64_t cooled_ns         # when units were looked for last
    cdef Port* ports                # the workshop's
    cdef int port_count

    # An L_LOANS_BACK or L_REGION_DONE. False: no memory.
    cdef bint message(self, uint32_t frontend, const LinkHead* head, const uint8_t* payload) noexcept nogil
    # A front-end has died: what it had is void.
    cdef void frontend_gone(self, uint32_t frontend) noexcept nogil
    # Give back memory that is not needed any more; lend what there was no room for before.
    cdef void tick(self, uint64_t now_ns) noexcept nogil
    # Lend each front-end what it lacks, as far as there is room.
    cdef void fill(self) noexcept nogil
