"""The way of a SETTLE through a front-end: header -> one message for each group, to the worker of its shard.

Owns: the SETTLE in hand. Rules: all of it is read before any of it is done; groups, ranges and exceptions together are at most
SETTLE_RANGES_MAX; what is for a worker that is down is dropped: its tags are void. No Python object. Runs in front-ends.
"""
cimport cython
from libc.stdint cimport uint16_t, uint32_t

from fastmq.server.session cimport Session
from fastmq.wire.buffer cimport buffer_add, buffer_clear, buffer_free, buffer_init
from fastmq.wire.limits cimport SETTLE_RANGES_MAX
from fastmq.wire.link cimport L_SETTLE, LinkRange, LinkSettle, LinkSettleException
from fastmq.wire.msgpack cimport Reader, mp_read_array, mp_read_u32, mp_read_uint
from fastmq.wire.verbs cimport NACK, RELEASE


cdef enum:
    SCRATCH_KEEP = 1048576              # a scratch buffer larger than this is given back


@cython.final
cdef class Settling:
    """Settles through `workers`."""

    def __cinit__(self, Workers workers not None):
        self.workers = workers
        buffer_init(&self.messages)
        buffer_init(&self.groups)

    def __dealloc__(self):
        buffer_free(&self.messages)
        buffer_free(&self.groups)

    cdef int settle(self, Session* s, Reader* r) noexcept nogil:
        """[[shard, epoch, up_to, [[first, last]...], [[first, last, action]...]]...], and nothing behind it. A SettleResult."""
        cdef SettleGroup* group
        cdef uint32_t count, i, _
        buffer_clear(&self.messages)
        buffer_clear(&self.groups)
        self.left = SETTLE_RANGES_MAX
        count = mp_read_array(r)
        if not self.take(r, count):
            return SETTLE_BAD if r.error else SETTLE_TOO_LARGE
        for _ in range(count):
            if not self.read_group(s, r):
                return SETTLE_TOO_LARGE if not r.error else SETTLE_BAD
            if self.messages.failed or self.groups.failed:
                return SETTLE_NO_MEMORY
        if r.at != r.end:
            return SETTLE_BAD
        group = <SettleGroup*> self.groups.data
        for i in range(count):
            if not self.workers.add(
                self.workers.of_shard[group[i].shard], L_SETTLE, group[i].shard, self.messages.data + group[i].start, group[i].size
            ):
                self.dropped += 1
        if self.messages.room > SCRATCH_KEEP:
            buffer_free(&self.messages)
            buffer_free(&self.groups)
        return SETTLE_DONE

    cdef bint take(self, Reader* r, uint32_t count) noexcept nogil:
        """Whether `count` more of anything may be read."""
        if r.error or count > self.left:
            return False
        self.left -= count
        return True

    cdef bint read_group(self, Session* s, Reader* r) noexcept nogil:
        """Read one group; False when it is malformed (`error` is set then) or too large."""
        cdef SettleGroup group
        cdef LinkSettle head
        cdef LinkRange held
        cdef LinkSettleException exception
        cdef uint32_t shard, _
        if mp_read_array(r) != 5:
            r.error = True
        shard = mp_read_u32(r)
        head.sid = s.sid
        head.epoch = mp_read_uint(r)
        head.up_to = mp_read_uint(r)
        head.ranges = mp_read_array(r)
        head.exceptions = 0
        if shard >= <uint32_t> self.workers.shards:
            r.error = True
        if not self.take(r, head.ranges):
            return False
        group.shard = <uint16_t> shard
        group.start = self.messages.size
        buffer_add(&self.messages, &head, sizeof(LinkSettle))
        for _ in range(head.ranges):
            if mp_read_array(r) != 2:
                r.error = True
            held.first = mp_read_uint(r)
            held.last = mp_read_uint(r)
            if r.error or held.first > held.last:
                r.error = True
                return False
            buffer_add(&self.messages, &held, sizeof(LinkRange))
        head.exceptions = mp_read_array(r)
        if not self.take(r, head.exceptions):
            return False
        exception.padding = 0
        for _ in range(head.exceptions):
            if mp_read_array(r) != 3:
                r.error = True
            exception.first = mp_read_uint(r)
            exception.last = mp_read_uint(r)
            exception.action = mp_read_u32(r)
            if r.error or exception.first > exception.last or not NACK <= exception.action <= RELEASE:
                r.error = True
                return False
            buffer_add(&self.messages, &exception, sizeof(LinkSettleException))
        group.size = self.messages.size - group.start
        if not self.messages.failed:
            (<LinkSettle*> (self.messages.data + group.start)).exceptions = head.exceptions
        buffer_add(&self.groups, &group, sizeof(SettleGroup))
        return True
