# What was read back and is not wanted soon becomes cold again, without being written: it lies in its extent still.
#
# Rules: only while memory is short, of queues whose consumers have no room, and what they get next stays; a message's deliveries
# are kept (`counts`). So a thousand queues whose consumers are slow keep no extent each in memory. Worker, no GIL, no I/O.
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, qsort

from fastmq.model.members cimport Queue, Returned
from fastmq.model.pieces cimport Piece, pieces_chill, pieces_find
from fastmq.model.state cimport ShardState
from fastmq.model.store cimport slot_size, store_drop
from fastmq.wire.idmap cimport idmap_put


cdef enum:
    CHILL_COUNT_MAX = 8192          # a heap of more messages is left as it is: sorting it takes too long


cdef inline int compare_returned(const void* a, const void* b) noexcept nogil:
    return -1 if (<const Returned*> a).seq < (<const Returned*> b).seq else 1


cdef inline bint chill_is_worth(const ShardState* s, const Queue* q) noexcept nogil:
    return (q.returned_count and q.pieces.count and q.open_count == 0 and q.gets == 0 and q.returned_count <= CHILL_COUNT_MAX
            and s.ageing.sweeping != q and q.ready_bytes >= s.age_least_bytes)


cdef inline void chill_queue(ShardState* s, Queue* q) noexcept nogil:
    """Let what is in the heap and in an extent leave memory, but for the first bytes where there are consumers."""
    cdef uint64_t leave = s.age_leave_bytes if q.consumer_count else 0, seq
    cdef uint32_t count = q.returned_count, left = 0, i = 0, n
    cdef Returned* all = q.returned
    cdef Piece* piece
    qsort(all, count, sizeof(Returned), compare_returned)   # which leaves it a heap
    while i < count and not s.failed:
        seq = all[i].seq
        piece = pieces_find(&q.pieces, seq)
        if piece == NULL or slot_size(&all[i].slot) <= leave:
            leave -= slot_size(&all[i].slot) if slot_size(&all[i].slot) <= leave else leave
            all[left] = all[i]
            left += 1
            i += 1
            continue
        leave = 0
        n = 1
        while i + n < count and all[i + n].seq == seq + n and seq + n <= piece.last:
            n += 1
        if not pieces_chill(&q.pieces, seq, seq + n - 1):
            s.failed = True
        for _ in range(n):
            chill_message(s, q, &all[i])
            i += 1
    q.returned_count = left
    q.ahead_seq = 0
    for i in range(left):
        if all[i].seq < q.pieces.cold_seq:
            q.ahead_seq = all[i].seq                        # when this one is delivered, what follows is to be read
    if left == 0:
        free(all)
        q.returned = NULL
        q.returned_room = 0


cdef inline void chill_message(ShardState* s, Queue* q, Returned* back) noexcept nogil:
    if back.deliveries != (1 if back.seq <= q.recovered_mark else 0):
        if not idmap_put(&q.counts, back.seq, <uint64_t> back.deliveries + 1):
            s.failed = True
    q.ready_bytes -= slot_size(&back.slot)
    store_drop(&s.store, &q.tail, &back.slot)
