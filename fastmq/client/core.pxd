# The native protocol of one session without I/O: what the broker says, and the face for Python.
#
# Owns nothing beside what Session owns. Rules: an answer that cannot belong to this session changes nothing; what the protocol does not
# allow ends in `broken`, never in a crash; sizes and counts are checked before anything is kept. Runs in client processes, under the
# connection's mutex.
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmq.client.requests cimport Request
from fastmq.client.session cimport Session
from fastmq.wire.msgpack cimport Reader


cdef class ClientCore(Session):
    cdef bint dispatch(self, uint32_t verb, uint64_t incarnation, Reader* r, uint32_t fields, Reader* records, uint64_t now) noexcept nogil
    cdef bint on_welcome(self, uint64_t incarnation, Reader* r, uint64_t now) noexcept nogil
    cdef bint on_confirm(self, uint64_t incarnation, Reader* r, uint64_t now) noexcept nogil
    cdef bint on_refusals(self, Reader* r) noexcept nogil
    cdef bint on_deliver(self, Reader* r, Reader* records) noexcept nogil
    cdef bint on_reply(self, Reader* r, Reader* records, uint64_t now) noexcept nogil
    cdef bint on_error(self, uint64_t incarnation, Reader* r, uint64_t now) noexcept nogil
    cdef void on_answer(self, Request* request, uint64_t now) noexcept nogil
    cdef void on_consumer_answer(self, Request* request, uint64_t now) noexcept nogil
    cdef void on_session_error(self, uint64_t incarnation, const uint8_t* code, uint32_t code_size,
                               const uint8_t* text, uint32_t text_size, uint64_t now) noexcept nogil
    cdef bint on_resend(self, uint64_t incarnation, Reader* r, uint64_t now) noexcept nogil
    cdef bint on_cancelled(self, Reader* r) noexcept nogil
    cdef void begin_incarnation(self, uint64_t window_messages, uint64_t window_bytes, uint64_t now) noexcept nogil
