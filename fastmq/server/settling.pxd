# The way of a SETTLE through a front-end: header -> one message for each group, to the worker of its shard.
from libc.stdint cimport uint16_t, uint32_t, uint64_t

from fastmq.server.session cimport Session
from fastmq.server.workers cimport Workers
from fastmq.wire.buffer cimport Buffer
from fastmq.wire.msgpack cimport Reader


cdef enum SettleResult:
    SETTLE_DONE
    SETTLE_BAD                          # of these nothing was settled
    SETTLE_TOO_LARGE
    SETTLE_NO_MEMORY


cdef struct SettleGroup:                # of the SETTLE in hand: one message to one shard
    size_t start                        # in `messages`
    size_t size
    uint16_t shard


cdef class Settling:
    cdef readonly Workers workers
    cdef Buffer messages                # LinkSettle, LinkRange[], LinkSettleException[] for each group
    cdef Buffer groups                  # SettleGroup[]
    cdef uint32_t left                  # groups, ranges and exceptions that the SETTLE in hand may still have
    cdef readonly uint64_t dropped      # groups for a worker that is down

    cdef int settle(self, Session* s, Reader* r) noexcept nogil
    cdef bint take(self, Reader* r, uint32_t count) noexcept nogil
    cdef bint read_group(self, Session* s, Reader* r) noexcept nogil
