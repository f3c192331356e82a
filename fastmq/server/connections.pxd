# The connections of clients to one front-end: what ROUTER is in ZeroMQ (https://rfc.zeromq.org/spec/28/), spoken by ourselves.
#
# Owns: the sockets, what comes over them, heartbeats; what is told is server/outlet.pxd's. Rules: a connection is known by its Address, never
# by what its peer calls itself; a request is judged as soon as it is whole, in the order it came, and the end of a connection after everything
# that came over it; each connection gets its share of a turn (READ_AT_ONCE, JUDGED_AT_ONCE); nobody is waited for but in `look`; memory grows
# only as bytes arrive, and idle connections hold next to none. Runs in front-ends, on the main thread, without the GIL.
#
#   a large frame: its direction of the connection is lent to the bulk thread until the frame is whole, or has left
#
#   accepted --greeting, READY in time--> opened --bytes--> listed: read, judged, in turn
#                                           | takes no more: blocked until epoll says that it does
#                                           | silent for 15 s, malformed, ended: closed; its session loses its connection
from libc.stdint cimport uint32_t, uint64_t

from fastmq.server.outlet cimport Connection, Outlet
from fastmq.server.posix cimport epoll_event
from fastmq.server.session cimport Address
from fastmq.wire.blocks cimport Blocks


cdef enum:
    LISTENERS_MAX = 8
    EVENTS_AT_ONCE = 256                # of epoll
    ACCEPTED_AT_ONCE = 64
    READ_SIZE = 65536                   # bytes of room for a read, at least
    READ_AT_ONCE = 262144               # bytes read of one connection in a turn, and
    JUDGED_AT_ONCE = 64                 # requests, and
    JUDGE_NS = 1000000                  # for so long, which only those that Python handles need
    READ_IN_TURN = 1048576              # bytes read of all connections in a turn, and
    READ_NS = 4000000                   # for so long
    OUT_WAITING_MAX = 4096              # bytes of commands waiting for a connection above which it is not pinged

    HANDSHAKE_NS = 5000000000           # from the accept to READY
    PING_NS = 5000000000                # between two PINGs
    SILENCE_NS = 15000000000            # without a byte, nor one taken of what it was sent: the connection is lost
    REFUSED_NS = 100000000              # the system accepts no connection: how long it is not asked again
    LOOK_NS = 1000000000                # between two looks for silent ones,
    LOOK_SOON_NS = 100000000            # and while there are handshakes


cdef class Connections(Outlet):
    cdef epoll_event[EVENTS_AT_ONCE] events
    cdef list _listeners                # the sockets, kept open
    cdef int[LISTENERS_MAX] listeners
    cdef bint[LISTENERS_MAX] own_user   # only the broker's user, and root, are let in
    cdef int listener_count
    cdef uint64_t refused_until_ns      # nobody is accepted before; 0: they are
    cdef int room_max                   # connections, at most
    cdef size_t narrow_bytes            # that a publisher of large records may have on its way while there is a crowd, at least
    cdef bint holds_back                # it is held back at all
    cdef uint64_t judged                # requests, so far
    cdef Blocks blocks
    cdef Connection* first              # those to be read, in turn
    cdef Connection* last
    cdef uint32_t next_number
    cdef int handshakes                 # connections that are not opened
    cdef bint some_paused
    cdef uint64_t look_at_ns            # when silent ones are looked for
    cdef int control                    # descriptor whose events end `look`
    cdef list _bells
    cdef readonly bint control_ready
    cdef readonly int count             # connections
    cdef readonly uint64_t accepted     # so far
    cdef readonly uint64_t accept_failed    # the system refused, or there were too many
    cdef readonly uint64_t shed         # closed for want of memory

    cdef void look(self, int timeout_ms) noexcept nogil
    cdef bint read_some(self) noexcept nogil
    cdef void keep_alive(self) noexcept nogil
    cdef bint took_some(self, Connection* c) noexcept nogil
    cdef int wait_at_most(self) noexcept nogil
    cdef bint take_back(self) noexcept nogil
    # private
    cdef int fd_is_listener(self, int fd) noexcept nogil
    cdef void accept(self, int listener) noexcept nogil
    cdef void accept_more(self, bint more) noexcept nogil
    cdef bint add(self, int fd) noexcept nogil
    cdef void close(self, Connection* c) noexcept nogil
    cdef void end(self, Connection* c) noexcept nogil
    cdef void forget(self, Connection* c) noexcept nogil
    cdef Connection* take_first(self) noexcept nogil
    cdef void list_last(self, Connection* c) noexcept nogil
    cdef void resume(self) noexcept nogil
    cdef bint lend_reading(self, Connection* c) noexcept nogil
    cdef bint has_place(self, Connection* c) noexcept nogil
    cdef void heard_bulk(self, Connection* c) noexcept nogil
    cdef bint read_connection(self, Connection* c, size_t* size) noexcept nogil
    cdef void heard_small(self, Connection* c, size_t size) noexcept nogil
    cdef bint judge(self, Connection* c) noexcept nogil
