# Copying messages out of sparse chunks, so that a few that stay do not pin much memory.
#
# A chunk is left sparse by messages that stay outstanding, or came back, while their neighbours went; within a ring
# only the first chunk and the tail can be sparse. Rules: a job begins when chunks take more than twice what is live,
# and some slack; it looks at every outstanding and returned message and both ends of every ring, a bounded number in
# each step; a waste it cannot help does not begin another at once. Chunks are no part of the state: no record is
# written. Runs in the worker, without the GIL.
from libc.stdint cimport int64_t, uint32_t, uint64_t

from fastmq._core cimport Slot, ring_at, ring_span
from fastmq.model.members cimport Outstanding, Queue
from fastmq.model.state cimport COMPACT_STEP_COUNT, ShardState
from fastmq.model.store cimport Chunk, chunk_is_sparse, slot_size, store_chunk, store_move


cdef inline uint64_t compact_waste(const ShardState* s) noexcept nogil:
    """Bytes of chunks beyond twice what lives in them."""
    return s.store.chunk_bytes - 2 * s.store.live_bytes if s.store.chunk_bytes > 2 * s.store.live_bytes else 0


cdef inline uint32_t compact_slot(ShardState* s, Queue* q, Slot* slot) noexcept nogil:
    """Move the message if its chunk is sparse; what that cost, in steps."""
    if not chunk_is_sparse(store_chunk(&s.store, slot)):
        return 1
    if not store_move(&s.store, &q.tail, slot, q.ready_bytes):
        s.failed = True
    s.moved += 1
    return 1 + slot_size(slot) // 512


cdef inline void compact_step(ShardState* s) noexcept nogil:
    """Go on with the job, or begin one if it is worth it."""
    cdef uint64_t waste = compact_waste(s)
    cdef int64_t left = COMPACT_STEP_COUNT
    if not s.compaction.active:
        if waste < s.compaction.beyond:
            s.compaction.beyond = waste
        if waste <= s.compaction.beyond + s.compact_slack_bytes:
            return
        s.compaction.active = True
        s.compaction.phase = 0
        s.compaction.at = 0
        s.compaction.at_returned = 0
    while left > 0 and s.compaction.active and not s.failed:
        if s.compaction.phase == 0:
            left -= compact_tag(s)
        elif s.compaction.phase == 1:
            left -= compact_straggler(s)
        else:
            left -= compact_queue(s)
    if not s.compaction.active:
        s.compaction.beyond = compact_waste(s)


cdef inline uint32_t compact_tag(ShardState* s) noexcept nogil:
    cdef Outstanding* e
    if s.compaction.at < s.outstanding.base:
        s.compaction.at = s.outstanding.base
    if s.compaction.at >= s.outstanding.next_tag:
        s.compaction.phase = 1
        s.compaction.at = 0
        return 1
    e = s.outstanding.ring[s.compaction.at & s.outstanding.mask]
    s.compaction.at += 1
    return 1 if e == NULL else compact_slot(s, e.queue, &e.slot)


cdef inline uint32_t compact_straggler(ShardState* s) noexcept nogil:
    cdef Outstanding* e
    if s.outstanding.stragglers.entries == NULL or s.compaction.at > s.outstanding.stragglers.mask:
        s.compaction.phase = 2
        s.compaction.at = 0
        s.compaction.at_returned = 0
        return 1
    e = <Outstanding*> s.outstanding.stragglers.entries[s.compaction.at].value
    if s.outstanding.stragglers.entries[s.compaction.at].key == 0:
        e = NULL
    s.compaction.at += 1
    return 1 if e == NULL else compact_slot(s, e.queue, &e.slot)


cdef inline uint32_t compact_queue(ShardState* s) noexcept nogil:
    """One message that came back, or one of the ring's first chunk and its tail: those are at most a chunk of messages
    each."""
    cdef Queue* q
    if s.compaction.at >= s.queue_count:
        s.compaction.active = False
        return 1
    q = s.queues[s.compaction.at]
    if s.compaction.at_returned < q.returned_count:
        s.compaction.at_returned += 1
        return compact_slot(s, q, &q.returned[s.compaction.at_returned - 1].slot)
    s.compaction.at += 1
    s.compaction.at_returned = 0
    return 1 + compact_front(s, q)


cdef inline uint32_t compact_front(ShardState* s, Queue* q) noexcept nogil:
    """Move what the ring's first chunk still holds, if that is sparse; it is the tail where the ring is short."""
    cdef uint32_t cost = 0
    cdef uint64_t i = 0
    cdef Slot* slot = ring_at(&q.ring, 0)
    cdef Chunk* chunk
    if slot == NULL:
        return 0
    chunk = store_chunk(&s.store, slot)
    if not chunk_is_sparse(chunk):
        return 1
    while i < ring_span(&q.ring):
        slot = ring_at(&q.ring, i)
        if slot == NULL or store_chunk(&s.store, slot) != chunk:
            break
        cost += compact_slot(s, q, slot)
        i += 1
    return cost
