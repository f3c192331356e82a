# The part of a front-end's process that runs without the GIL: its turns, and sleep between them.
from libc.stdint cimport uint64_t

from fastmq.server.connections cimport Connections
from fastmq.server.sessions cimport Sessions


cdef enum:
    PUMP_MESSAGES = 64                  # of one worker in a turn


cdef class FrontendLoop:
    cdef Sessions sessions
    cdef Connections connections

    cdef void turns(self, uint64_t until_ns, bint until_idle, uint64_t soon_ns) noexcept nogil
    cdef bint turn(self) noexcept nogil
    cdef bint read_events(self) noexcept nogil
    cdef bint hear_workers(self) noexcept nogil
    cdef int sleep_ms(self, uint64_t until_ns) noexcept nogil
    cdef bint may_sleep(self) noexcept nogil
    cdef void stay_awake(self) noexcept nogil
