# What a front-end's connections are told: frames of sessions, frames without one, commands of ZMTP.
#
# Owns: what waits for a connection, and which of them take no more. Rules: a frame that has begun to leave is finished before anything else
# leaves; frames are sent from where they lie, a body in a worker's arena too; each connection gets its share of a turn (SEND_AT_ONCE); large
# frames are the bulk thread's; what a connection does not take waits for it alone; where nothing can be sent any more, what has come is still
# read. Runs in front-ends, on the main thread, without the GIL.
from libc.stdint cimport uint32_t, uint64_t

from fastmq.server.bulk cimport Bulk, BulkJob
from fastmq.server.crowd cimport Crowd
from fastmq.server.session cimport Address, Frame, Session
from fastmq.server.sessions cimport Sessions
from fastmq.server.workers cimport Placement
from fastmq.wire.zmtp cimport Zmtp


cdef enum:
    SEND_AT_ONCE = 262144               # bytes sent to one connection before others have their turn
    SEND_IN_TURN = 2097152              # bytes sent in a turn
    STRAYS_WAITING_MAX = 4096           # frames without a session that wait for connections which take no more,
    STRAYS_OF_ONE_MAX = 64              # and for one of them


cdef struct Connection:
    Address address
    Zmtp zmtp
    uint64_t accepted_ns
    uint64_t heard_ns
    uint64_t pinged_ns
    int unacknowledged                  # bytes sent that it had not taken at the last look
    Frame* first                        # frames without a session that wait to be sent, oldest first
    Frame* last
    int strays                          # those
    Connection* next                    # in the list of those to be read
    uint32_t interest                   # what epoll looks for
    bint listed                         # it may have something to read
    bint more                           # whole requests of it may wait to be judged
    bint opened                         # READY has come
    bint paused                         # it is not read before the front-end serves
    bint blocked                        # it takes no more
    bint begun                          # a part of its session's first frame has left: nothing else is sent before the rest
    bint broken                         # nothing can be sent any more; what has come is still read
    bint near                           # its peer is a program on this machine
    uint64_t large_ns                   # when the bulk thread was lent, or gave back, a direction of it last
    bint reads_bulk                     # the bulk thread has `reading`, and nobody else reads
    bint writes_bulk                    # the bulk thread has `writing`, and nobody else sends
    size_t lent_size                    # bytes of memory of the frames that it sends, those in workers' arenas aside
    bint gone                           # closed, as soon as the bulk thread has let go of it
    Placement placed                    # where the record goes that the bulk thread reads; none: into `zmtp`
    BulkJob reading
    BulkJob writing


cdef class Outlet:
    cdef Sessions sessions
    cdef int epoll
    cdef Connection** by_fd
    cdef int room                       # of by_fd
    cdef Bulk bulk
    cdef readonly int lent              # directions of connections that the bulk thread has
    cdef Crowd crowd
    cdef readonly uint64_t held_back    # how often a direction was lent to move in small steps because of it
    cdef int strays_waiting
    cdef readonly int blocked           # of them, those that take no more

    cdef bint send_all(self) noexcept nogil
    cdef void writable(self, Connection* c) noexcept nogil
    # for Connections
    cdef Connection* find(self, const Address* address) noexcept nogil
    cdef void look_for(self, Connection* c) noexcept nogil
    cdef bint send_own(self, Connection* c) noexcept nogil
    cdef void break_off(self, Connection* c) noexcept nogil
    cdef void drop_own(self, Connection* c) noexcept nogil
    cdef bint send_session(self, Session* s, size_t* size) noexcept nogil
    cdef bint takes_stray(self, Connection* c) noexcept nogil
    cdef void send_stray(self, Frame* f) noexcept nogil
    cdef void drop_stray(self, Connection* c) noexcept nogil
    cdef bint took_less(self, Connection* c, ssize_t size) noexcept nogil
    cdef bint lend(self, Connection* c, BulkJob* job) noexcept nogil
    cdef Frame* take_to_lend(self, Connection* c, Session* s) noexcept nogil
    cdef void lend_writing(self, Connection* c, Session* s) noexcept nogil
