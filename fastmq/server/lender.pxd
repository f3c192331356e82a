# What a worker lends of its arena: regions that front-ends copy large records into, and records that they deliver from where they lie.
#
# Owns: the regions, and how many each front-end has. Rules: a front-end has up to REGIONS_LENT regions at a time, and gets another for one
# that it hands in; where the arena is full it gets what is missing at a tick; memory that nobody needs is given back at a tick.
# Runs in workers, without the GIL but for the tick.
from libc.stdint cimport uint8_t, uint32_t

from fastmq.model.regions cimport Regions
from fastmq.net.arena cimport ArenaMemory
from fastmq.server.port cimport Port
from fastmq.wire.buffer cimport Buffer
from fastmq.wire.link cimport LinkHead


cdef enum:
    REGIONS_LENT = 4            # regions of the arena that a front-end has at a time


cdef class Lender:
    cdef ArenaMemory arena          # None: there is none
    cdef Regions regions            # who has what of it
    cdef Buffer cooled              # Span[], to be given back
    cdef Port* ports                # the workshop's
    cdef int port_count

    # An L_LOANS_BACK or L_REGION_DONE. False: no memory.
    cdef bint message(self, uint32_t frontend, const LinkHead* head, const uint8_t* payload) noexcept nogil
    # A front-end has died: what it had is void.
    cdef void frontend_gone(self, uint32_t frontend) noexcept nogil
    # Give back memory that is not needed any more; lend what there was no room for before.
    cdef void cool(self)
