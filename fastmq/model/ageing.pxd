# Ageing: messages are copied into extents, so that the log's old part, or memory, is not needed for them.
#
# Owns: nothing but the progress in ShardState.ageing. Rules: only kept messages that the log has for good are aged; the ring
# becomes cold from its front, and what is not kept there moves to the heap, where it waits for what is cold before it; what is
# outstanding or in the heap is copied, stays in memory, and is cold in no case; each call does a bounded part. A payload
# belongs to the log as soon as it is full, and its messages leave memory before it is written: a payload that cannot be
# written comes back (model/cold.pxd), because the log has it as long as it is not written anyway, and so nothing has to be
# kept twice. Worker, no GIL, no I/O.
#
# A snapshot needs everything below each queue's `age_end` in extents, while the queue lives on. Its queues are swept one by
# one: first the ring, so that from then on nothing that counts leaves it; then what is outstanding, by tag, where a cursor
# steps aside when its message is settled; then the heap, in which entries move: those visited are stamped, and one that is
# taken out before is visited then. The queue's messages change places only with each other, so none is missed.
from libc.stdint cimport int64_t, uint32_t, uint64_t

from fastmq._core cimport Slot, ring_at, ring_pop_front, ring_size
from fastmq.model.chill cimport chill_is_worth, chill_queue
from fastmq.model.extents cimport extent_add, extent_open
from fastmq.model.members cimport Outstanding, Queue, Returned, queue_next_seq
from fastmq.model.pieces cimport extent_close, pieces_find, pieces_put
from fastmq.model.shard_records cimport C_COUNT, ChangeCount, record_add
from fastmq.model.state cimport AGE_HEAP, AGE_OUTSTANDING, AGE_RING, Ageing, ShardState, queue_find, queue_return, queue_wake
from fastmq.model.store cimport slot_is_kept, slot_size, store_drop


cdef enum:
    AGE_STEP_BYTES = 65536          # that one call copies, about; looking at a message counts AGE_LOOK_BYTES
    AGE_LOOK_BYTES = 64
    AGE_LOOK_COUNT = 256            # queues that one call asks how long they are
    AGE_LEAVE_BYTES = 65536         # of a queue that has consumers: what they get next stays in memory
    AGE_LEAST_BYTES = 65536
    AGE_VICTIM_BYTES = 1048576      # aged of the longest queue before another may be it


cdef enum AgeResult:                # also of a snapshot's step: see shard.pxd
    AGE_DONE = 0
    AGE_MORE = 1
    AGE_WAITS = 2
    AGE_SPOILED = 3


cdef inline bint age_copy(ShardState* s, Queue* q, uint64_t seq, const Slot* slot, bint cold) noexcept nogil:
    """Put a message that lies in no piece into an extent; False when there is no memory."""
    if (not extent_open(s, slot_size(slot)) or not extent_add(s, q, seq, slot)
            or not pieces_put(&q.pieces, s.extents.filling, seq, seq, cold)):
        s.failed = True
        return False
    return True


cdef inline int age_ring(ShardState* s, Queue* q, uint64_t end, uint64_t* leave, int64_t* budget) noexcept nogil:
    """Let the ring's front become cold, up to the sequence `end`; the first `leave` bytes stay in memory."""
    cdef int result = AGE_DONE
    cdef uint64_t seq
    cdef uint32_t size
    cdef Slot slot
    while ring_size(&q.ring):
        seq = q.seq_base + q.ring.first
        if seq >= end:
            break
        if seq >= q.durable_end or budget[0] <= 0:
            result = AGE_MORE if budget[0] <= 0 else AGE_WAITS
            break
        slot = ring_at(&q.ring, 0)[0]
        size = slot_size(&slot)
        budget[0] -= AGE_LOOK_BYTES
        if slot_is_kept(&slot) and size > leave[0]:
            if not age_copy(s, q, seq, &slot, True):
                return AGE_DONE
            leave[0] = 0
            budget[0] -= size
            ring_pop_front(&q.ring, &slot)
            q.ready_bytes -= size
            store_drop(&s.store, &q.tail, &slot)
            continue
        leave[0] -= size if slot_is_kept(&slot) else 0
        ring_pop_front(&q.ring, &slot)
        queue_return(s, q, &slot, seq, 0)
    queue_wake(s, q)
    return result


# ---- for a snapshot

cdef inline void age_count(ShardState* s, Queue* q, uint64_t seq, uint32_t deliveries) noexcept nogil:
    """How often a message has been delivered, for the snapshot."""
    cdef ChangeCount change
    change.queue = q.id
    change.seq = seq
    change.deliveries = deliveries
    change.padding = 0
    record_add(&s.ageing.counts, C_COUNT, True, &change, sizeof(change))


cdef inline void age_visit(ShardState* s, Queue* q, uint64_t seq, const Slot* slot, uint32_t deliveries) noexcept nogil:
    """A message in memory, not in the ring: copied, if it lies nowhere, and its deliveries, if they have to be told."""
    if seq >= q.age_end or not slot_is_kept(slot):
        return
    if pieces_find(&q.pieces, seq) == NULL and not age_copy(s, q, seq, slot, False):
        return
    if deliveries and deliveries != (1 if seq <= q.mark else 0):      # 0: it may be out again before the log could say so
        age_count(s, q, seq, deliveries)


cdef inline void age_taken(ShardState* s, Queue* q, const Returned* back) noexcept nogil:
    """A message leaves the heap of the queue that is being swept."""
    if s.ageing.stage == AGE_HEAP:
        if back.stamp == s.ageing.generation:
            return
        s.ageing.unvisited -= 1
    age_visit(s, q, back.seq, &back.slot, back.deliveries)


cdef inline void age_outstanding(ShardState* s, Queue* q, int64_t* budget) noexcept nogil:
    cdef Ageing* a = &s.ageing
    while a.cursor != NULL and a.cursor.tag < a.tag_end and budget[0] > 0:
        age_visit(s, q, a.cursor.seq, &a.cursor.slot, a.cursor.deliveries)
        budget[0] -= AGE_LOOK_BYTES + slot_size(&a.cursor.slot)
        a.cursor = a.cursor.queue_next


cdef inline void age_heap(ShardState* s, Queue* q, int64_t* budget) noexcept nogil:
    cdef Ageing* a = &s.ageing
    cdef Returned* back
    while a.unvisited and budget[0] > 0:
        if a.heap_at >= q.returned_count:
            a.heap_at = 0
        back = &q.returned[a.heap_at]
        a.heap_at += 1
        budget[0] -= AGE_LOOK_BYTES // 4
        if back.stamp != a.generation:
            age_visit(s, q, back.seq, &back.slot, back.deliveries)
            back.stamp = a.generation
            a.unvisited -= 1
            budget[0] -= slot_size(&back.slot)


cdef inline int age_queue(ShardState* s, Queue* q, int64_t* budget) noexcept nogil:
    """Go on with the sweep of one queue."""
    cdef Ageing* a = &s.ageing
    cdef int result
    if a.sweeping != q:                                     # another's is begun again: age_forget has gone back behind it
        a.sweeping = q
        a.cursor = NULL
        a.stage = AGE_RING
        a.leave = s.age_leave_bytes if q.consumer_count or q.gets else 0
    if a.stage == AGE_RING:
        result = age_ring(s, q, q.age_end, &a.leave, budget)
        if result != AGE_DONE or s.failed:
            return result
        a.stage = AGE_OUTSTANDING
        a.cursor = q.first
        a.tag_end = s.outstanding.next_tag
    if a.stage == AGE_OUTSTANDING:
        age_outstanding(s, q, budget)
        if a.cursor != NULL and a.cursor.tag < a.tag_end:
            return AGE_MORE
        a.cursor = NULL
        a.stage = AGE_HEAP
        a.generation += 1
        if a.generation == 0:
            a.generation = 1
        a.unvisited = q.returned_count
        a.heap_at = 0
    age_heap(s, q, budget)
    if a.unvisited:
        return AGE_MORE
    a.sweeping = NULL
    return AGE_DONE


cdef inline int age_snapshot(ShardState* s) noexcept nogil:
    """Go on until all that the snapshot needs lies in extents."""
    cdef Ageing* a = &s.ageing
    cdef int64_t budget = <int64_t> s.age_step_bytes
    cdef int result
    while a.queue_at < s.queue_count and not s.failed:
        if budget <= 0:
            return AGE_MORE
        budget -= AGE_LOOK_BYTES
        if s.queues[a.queue_at].age_end:
            result = age_queue(s, s.queues[a.queue_at], &budget)
            if result != AGE_DONE:
                return result
        a.queue_at += 1
    extent_close(&s.extents)
    a.aged = True
    return AGE_DONE


cdef inline void age_forget(ShardState* s, Queue* q) noexcept nogil:
    """A queue is being deleted; the last of the array is about to take its place."""
    cdef Ageing* a = &s.ageing
    if a.sweeping == q:
        a.sweeping = NULL
        a.cursor = NULL
        a.unvisited = 0
    if a.queue_at > q.index:
        a.queue_at = q.index
    if a.out_at > q.index:
        a.out_at = q.index


# ---- because memory is short

cdef inline bint age_choose(ShardState* s) noexcept nogil:
    """Ask some queues how long they are; whether all have been asked, and the longest is chosen, if there is one."""
    cdef Ageing* a = &s.ageing
    cdef Queue* q
    for _ in range(AGE_LOOK_COUNT):
        if a.look_at >= s.queue_count:
            a.look_at = 0
            a.victim = a.longest
            a.longest = 0
            a.longest_bytes = 0
            q = queue_find(s, a.victim) if a.victim else NULL
            if q != NULL:
                a.victim_end = queue_next_seq(q)
                a.victim_left = AGE_VICTIM_BYTES
            return True
        q = s.queues[a.look_at]
        a.look_at += 1
        if chill_is_worth(s, q):
            chill_queue(s, q)
            return False
        if (q.kept and ring_size(&q.ring) and q.seq_base + q.ring.first < q.durable_end and q.ready_bytes >= s.age_least_bytes
                and q.ready_bytes > a.longest_bytes):
            a.longest = q.id
            a.longest_bytes = q.ready_bytes
    return False


cdef inline int age_longest(ShardState* s) noexcept nogil:
    """Let some of the longest queue become cold."""
    cdef Ageing* a = &s.ageing
    cdef int64_t budget = <int64_t> s.age_step_bytes
    cdef uint64_t leave = 0, before
    cdef int result
    cdef Queue* q
    if a.victim == 0:
        if not age_choose(s):
            return AGE_MORE
        if a.victim == 0:
            extent_close(&s.extents)
            return AGE_DONE
    q = queue_find(s, a.victim)
    if q == NULL:
        a.victim = 0
        return AGE_MORE
    if q.consumer_count and q.pieces.cold_count == 0 and q.returned_count == 0:
        leave = s.age_leave_bytes
    before = q.ready_bytes
    result = age_ring(s, q, a.victim_end, &leave, &budget)
    before -= q.ready_bytes
    a.victim_left -= before if before < a.victim_left else a.victim_left
    if result != AGE_MORE or a.victim_left == 0:
        a.victim = 0
    return AGE_MORE
