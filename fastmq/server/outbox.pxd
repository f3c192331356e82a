# What a front-end has to send: frames of sessions, in order, and frames that belong to no session.
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmq.server.session cimport CODES, Address, CodeText, Frame, Session, SessionList
from fastmq.wire.buffer cimport Buffer
from fastmq.wire.idmap cimport IdMap


cdef struct Source:                     # where a request came from, and what its header begins with
    Address address                     # of its connection
    uint64_t sid
    uint64_t proof
    uint64_t incarnation
    uint32_t verb
    bint has_session                    # 16 bytes; HELLO may have none
    bint readable                       # the header begins as it should
    bint has_number                     # `number` is that of a request, which an ERROR to it carries
    uint64_t number


cdef class Outbox:
    cdef readonly uint64_t now_ns
    cdef readonly bint closing          # nothing new is taken
    cdef readonly bint out_of_memory    # something was lost for want of memory: this process is of no more use
    cdef bint cuts_connections          # the descriptors are those of this process's sockets, not a test's numbers
    cdef list _codes_kept               # the bytes that `codes` points to
    cdef CodeText[CODES] codes
    cdef IdMap by_sid                   # sid -> Session*
    cdef SessionList ready              # sessions that have something to send
    cdef Session* later                 # sessions with decided ranges that wait for the gaps between them to close
    cdef Frame* strays                  # frames that belong to no session, oldest first
    cdef Frame* strays_last
    cdef uint32_t strays_count
    # counters
    cdef readonly uint64_t too_slow     # sessions ended because their clients did not read
    cdef readonly uint64_t strays_dropped

    cdef Session* find(self, uint64_t sid) noexcept nogil
    # for whoever sends
    cdef Session* next_ready(self) noexcept nogil
    cdef void sent(self, Session* s) noexcept nogil
    cdef void hold(self, Session* s) noexcept nogil
    cdef void release(self, Session* s) noexcept nogil
    cdef void retry_later(self) noexcept nogil
    cdef int wait_at_most(self) noexcept nogil
    cdef Frame* next_stray(self) noexcept nogil
    # for whoever has something to say
    cdef void list_ready(self, Session* s) noexcept nogil
    cdef void list_delivery(self, Session* s) noexcept nogil
    cdef void add_frame(self, Session* s, Buffer* header, Buffer* records) noexcept nogil
    cdef void error_head(self, Session* s, const Source* source, uint32_t code, uint64_t incarnation, Buffer* header) noexcept nogil
    cdef void add_error(self, Session* s, const Source* source, Buffer* header) noexcept nogil
    cdef void add_stray(self, const Source* source, Buffer* header) noexcept nogil
    cdef void append_stray(self, Frame* f) noexcept nogil
    cdef void keep_begun(self, Session* s) noexcept nogil
    cdef void answer_code(self, Session* s, const Source* source, uint32_t code, uint64_t incarnation) noexcept nogil
    cdef void refuse(self, Session* s, const Source* source, int code, str text)
    cdef void say(self, Session* s, int verb, int fields, bytes packed)
    # private
    cdef void free_if_ended(self, Session* s) noexcept nogil
    cdef void flush_outcomes(self, Session* s) noexcept nogil
    cdef void bound_waiting(self, uint64_t size_max) noexcept nogil
    cdef void end_slow(self, Session* s) noexcept nogil
    cdef void lose(self, Session* s) noexcept with gil
    cdef void vanish(self, Session* s)
