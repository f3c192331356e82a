# The part of a front-end's process that runs without the GIL: frames between libzmq and the sessions, and sleep between turns.
from libc.stdint cimport uint32_t, uint64_t

from fastmq.net.libzmq cimport zmq_msg_t
from fastmq.server.session cimport Frame, Meter, Session
from fastmq.server.sessions cimport Sessions
from fastmq.wire.buffer cimport Buffer
from fastmq.wire.limits cimport WORKERS_MAX


cdef enum:
    REQUESTS_AT_ONCE = 64               # read before the monitor is looked at, then judged
    REQUEST_BYTES_AT_ONCE = 1048576
    PUMP_MESSAGES = 64                  # of one worker in a turn
    POLL_ITEMS = 4 + WORKERS_MAX


cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd* items, unsigned long count, int timeout_ms)
    short POLLIN


cdef struct Request:                    # as ROUTER gave it
    zmq_msg_t rid
    zmq_msg_t header
    zmq_msg_t records
    int frames                          # behind the routing id, those that were not kept too


cdef struct Suspect:                    # a connection that the monitor says has ended
    int fd
    uint32_t accept_count
    uint64_t since_ns


cdef class FrontendLoop:
    cdef Sessions sessions
    cdef void* router
    cdef void* monitor
    cdef Request[REQUESTS_AT_ONCE] requests
    cdef uint32_t* accepts              # how many connections each descriptor has been
    cdef int accepts_room
    cdef Buffer suspects                # Suspect[]
    cdef pollfd[POLL_ITEMS] items       # control, router, monitor, events' bell, workers' bells
    cdef int items_count
    cdef bint router_ready              # ROUTER may have something: its descriptor said so, or a send may have taken that word away
    cdef bint monitor_ready
    cdef readonly uint64_t accept_failed    # connections that the system refused
    cdef readonly uint64_t accepted
    cdef readonly bint monitor_failed

    cdef bint turn(self) noexcept nogil
    cdef bint hear_workers(self) noexcept nogil
    cdef void look(self, int timeout_ms) noexcept nogil
    cdef bint read_monitor(self) noexcept nogil
    cdef uint32_t* accepts_of(self, int fd) noexcept nogil
    cdef int read_requests(self, bint* drained) noexcept nogil
    cdef bint read_request(self, Request* r, size_t* size) noexcept nogil
    cdef void judge_requests(self, int count) noexcept nogil
    cdef bint end_suspects(self, size_t count, bint drained) noexcept nogil
    cdef bint read_events(self) noexcept nogil
    cdef bint send_all(self) noexcept nogil
    cdef int send_frame(self, Frame* f, const void* rid, size_t rid_size, Meter* meter) noexcept nogil
    cdef bint may_sleep(self) noexcept nogil
    cdef void awake(self) noexcept nogil
    cdef void turns(self, uint64_t until_ns, bint until_idle, uint64_t soon_ns) noexcept nogil
