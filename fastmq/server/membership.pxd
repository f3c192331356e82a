# The life of sessions: HELLO, the connection that a session belongs to, its end.
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmq.server.outbox cimport Outbox, Source
from fastmq.server.session cimport Address, Session
from fastmq.server.workers cimport Workers
from fastmq.wire.idmap cimport IdMap


cdef class Membership(Outbox):
    cdef readonly Workers workers
    cdef readonly object requests       # server.requests.Requests: what is not on the hot path
    cdef readonly object config
    cdef public str events_endpoint     # where the XPUB socket is bound, for WELCOME
    cdef public str unix_events_endpoint    # the same for sessions over a unix socket; "": there is none
    cdef bytes _key
    cdef object _random
    cdef IdMap by_fd                    # fd + 1 -> Session* that lives on it
    cdef dict _vanished                 # sids without a connection, in the order they lost it
    cdef dict _spare                    # those of them that owned no queues then, in the same order
    cdef dict _homes                    # sid -> (descriptor, number) of the connection of its last HELLO, which may be gone
    cdef dict _at_home                  # the other way round: -> how many they are
    cdef dict _spare_at_home            # and -> those of them in `_spare`, in the same order
    # counters, of requests
    cdef readonly uint64_t bad_requests
    cdef readonly uint64_t stale
    cdef readonly uint64_t no_session
    cdef readonly uint64_t bad_incarnation
    cdef readonly uint64_t sessions_refused     # HELLOs, for want of room

    cdef Session* find_at(self, int fd) noexcept nogil
    cdef void lose_connection(self, const Address* address) noexcept nogil
    cdef void cold_hello(self, const Source* source, const uint8_t* header, size_t header_size) noexcept with gil
    cdef void hello(self, const Source* source, bytes header) except *
    cdef void make_room(self, const Source* source) except *
    cdef void move_home(self, uint64_t sid, tuple home)
    cdef void set_spare(self, uint64_t sid, bint spare)
    cdef Session* open_session(self, uint64_t sid, uint64_t proof) except NULL
    cdef void accept(self, Session* s, const Source* source, uint32_t incarnation, str name) except *
    cdef void leave_connection(self, Session* s) noexcept nogil
    cdef void end_at_workers(self, Session* s, bint forget) noexcept nogil
    cdef void forget(self, Session* s) noexcept nogil
    cdef void forget_vanished(self)
