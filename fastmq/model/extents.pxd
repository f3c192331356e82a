# The payload of an extent: messages of some queues, as they are put into it and found in it again.
#
# Owns: the format. Rules: a payload is what one shard says of its own messages, so its reader checks sizes only where the bytes
# end; the log checks that they are those that were written. Consecutive messages of a queue that agree in all but their bytes
# are one run, records consecutive as they were published. How often a message was delivered stands in no extent: that changes.
# Worker, no GIL, no I/O.
#
#       | ExtentHead: version, number | ExtentRun | exchange's name | records | ExtentRun | name | records | ...
#                                                   each padded with zeros to a multiple of 8
#
# To change it: raise EXTENT_VERSION, keep reading the older one (extents lie on disks for as long as their messages live), and
# extend tests/unit/test_shard_extents.py.
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from fastmq._core cimport Slot
from fastmq.model.members cimport Queue
from fastmq.model.pieces cimport Extents, extent_close, extent_make
from fastmq.model.state cimport ShardState
from fastmq.model.store cimport Name, name_is, slot_name, slot_size, slot_timestamp_ms, store_bytes
from fastmq.wire.buffer cimport buffer_add, buffer_extend, buffer_reserve


cdef enum:
    EXTENT_VERSION = 1


cdef struct ExtentHead:
    uint32_t version
    uint32_t zero
    uint64_t number


cdef struct ExtentRun:
    uint64_t queue
    uint64_t seq                    # of the first message; the others follow it without a gap
    uint64_t timestamp_ms
    uint32_t count
    uint32_t exchange_size
    uint32_t records_size           # without padding; the last run grows while it is being filled
    uint32_t zero


cdef inline size_t padded(size_t size) noexcept nogil:
    return (size + 7) & ~<size_t> 7


cdef inline bint extent_open(ShardState* s, uint32_t size) noexcept nogil:
    """Make sure that an extent is being filled that has room for a record of `size` bytes; False when there is no memory."""
    cdef Extents* all = &s.extents
    cdef ExtentHead head
    if all.filling != NULL and all.payload.size + sizeof(ExtentRun) + 256 + size + 16 > all.size_max:
        extent_close(all)
    if all.filling == NULL:
        all.filling = extent_make(all, all.last + 1)
        if all.filling == NULL:
            return False
        buffer_reserve(&all.payload, all.size_max)
        memset(&head, 0, sizeof(head))
        head.version = EXTENT_VERSION
        head.number = all.filling.number
        buffer_add(&all.payload, &head, sizeof(head))
        s.run_at = 0
    all.failed |= all.payload.failed
    return not all.failed


cdef inline bint extent_add(ShardState* s, Queue* q, uint64_t seq, const Slot* slot) noexcept nogil:
    """Copy a message into the extent that is being filled, which has room for it; False when there is no memory."""
    cdef Extents* all = &s.extents
    cdef Name* name = &s.store.names.items[slot_name(slot)]
    cdef ExtentRun* run = <ExtentRun*> (all.payload.data + s.run_at)
    cdef size_t end, before
    if (s.run_at == 0 or run.queue != q.id or run.seq + run.count != seq or run.timestamp_ms != slot_timestamp_ms(slot)
            or not name_is(name, run_name(run), run.exchange_size)):
        s.run_at = all.payload.size
        run = <ExtentRun*> buffer_extend(&all.payload, sizeof(ExtentRun) + padded(name.size))
        if run == NULL:
            all.failed = True
            return False
        memset(run, 0, sizeof(ExtentRun) + padded(name.size))
        run.queue = q.id
        run.seq = seq
        run.timestamp_ms = slot_timestamp_ms(slot)
        run.exchange_size = name.size
        memcpy(run + 1, name.data, name.size)
    before = s.run_at + sizeof(ExtentRun) + padded(run.exchange_size) + run.records_size
    end = before + slot_size(slot)
    if buffer_reserve(&all.payload, padded(end) - all.payload.size) == NULL:
        all.failed = True
        return False
    run = <ExtentRun*> (all.payload.data + s.run_at)        # it may have moved
    memcpy(all.payload.data + before, store_bytes(&s.store, slot), slot_size(slot))
    memset(all.payload.data + end, 0, padded(end) - end)
    all.payload.size = padded(end)
    run.count += 1
    run.records_size += slot_size(slot)
    return True


cdef inline const ExtentRun* extent_run(const uint8_t* payload, size_t size, size_t* at) noexcept nogil:
    """The run at `at` (0 to begin with), which is then behind it; NULL: no more, and then `at` is `size`, or it is damaged."""
    cdef const ExtentRun* run
    cdef size_t left
    if at[0] == 0:
        if size < sizeof(ExtentHead) or (<const ExtentHead*> payload).version != EXTENT_VERSION:
            return NULL
        at[0] = sizeof(ExtentHead)
    left = size - at[0]
    if left < sizeof(ExtentRun):
        return NULL
    run = <const ExtentRun*> (payload + at[0])
    if left - sizeof(ExtentRun) < padded(run.exchange_size) + padded(run.records_size) or run.count == 0:
        return NULL
    at[0] += sizeof(ExtentRun) + padded(run.exchange_size) + padded(run.records_size)
    return run


cdef inline const uint8_t* run_name(const ExtentRun* run) noexcept nogil:
    return <const uint8_t*> (run + 1)


cdef inline const uint8_t* run_records(const ExtentRun* run) noexcept nogil:
    return run_name(run) + padded(run.exchange_size)
