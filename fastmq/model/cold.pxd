# Cold messages come back into memory: read from their extent when it is nearly their turn, or because the extent could not be
# written.
#
# Rules: what is read back goes into the heap of each queue that asked for this extent; for the others it stays cold. What an
# extent says of a message counts only where a piece says that it lives there. How often it was delivered is what its queue says
# (`counts`, `recovered_mark`). Worker, no GIL, no I/O.
#
#       cold --queue_want, read--> heap, its piece is warm --deliver--> outstanding --settle--> its piece is shorter
#       cold --not written-------> heap, in no piece
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from fastmq._core cimport Slot
from fastmq.model.ageing cimport age_count
from fastmq.model.extents cimport ExtentRun, extent_run, run_name, run_records
from fastmq.model.members cimport Queue
from fastmq.model.pieces cimport Extent, Piece, extent_find, extent_forget, piece_at, pieces_index, pieces_remove, pieces_warm
from fastmq.model.publish cimport records_measure
from fastmq.model.state cimport ShardState, queue_find, queue_return, queue_wake
from fastmq.model.store cimport NAME_NONE, SLOT_KEPT, Chunk, chunk_data, name_take, store_large, store_open_large
from fastmq.model.store cimport store_room_for, tail_detach
from fastmq.wire.idmap cimport idmap_get, idmap_remove


cdef inline bint cold_store(ShardState* s, Chunk** tail, const uint8_t* record, uint32_t size, uint64_t left,
                            Slot* slot) noexcept nogil:
    """Copy a record into memory, and say in the slot where it lies; False when there is no memory."""
    cdef Chunk* chunk = NULL
    if size > store_large(&s.store):
        chunk = store_open_large(&s.store, record, size)
    if chunk == NULL:
        chunk = store_room_for(&s.store, tail, size, left)
    if chunk == NULL:
        return False
    memcpy(chunk_data(chunk) + chunk.used, record, size)
    slot.a = (<uint64_t> chunk.index << 32) | chunk.used
    chunk.used += size
    chunk.live += size
    chunk.messages += 1
    s.store.live_bytes += size
    return True


cdef inline uint32_t cold_deliveries(ShardState* s, Queue* q, uint64_t seq) noexcept nogil:
    """How often a message that was cold has been delivered."""
    cdef uint64_t count = idmap_get(&q.counts, seq, 0)
    if count:
        idmap_remove(&q.counts, seq)
        if s.ageing.snapshot:                               # its queue's sweep may be over
            age_count(s, q, seq, <uint32_t> (count - 1))
        return <uint32_t> (count - 1)
    return 1 if seq <= q.recovered_mark else 0


cdef inline int cold_fill(ShardState* s, Queue* q, const Extent* extent, const ExtentRun* run, Chunk** tail) noexcept nogil:
    """The messages of a run that are cold in this extent go into the heap; how many, or -1: the run is damaged."""
    cdef const uint8_t* record = run_records(run)
    cdef const uint32_t* sizes = records_measure(s, record, run.records_size, run.count)
    cdef uint32_t at = pieces_index(&q.pieces, run.seq), left = run.records_size, i, name
    cdef int filled = 0
    cdef const Piece* piece
    cdef uint64_t seq
    cdef Slot slot
    if sizes == NULL:
        return -1
    for i in range(run.count):
        seq = run.seq + i
        while at < q.pieces.count and piece_at(&q.pieces, at).last < seq:
            at += 1
        if at == q.pieces.count:
            break
        piece = piece_at(&q.pieces, at)
        if piece.first <= seq and piece.cold and piece.extent == extent:
            name = name_take(&s.store.names, run_name(run), run.exchange_size, 1)
            if name == NAME_NONE or not cold_store(s, tail, record, sizes[i], left, &slot):
                s.failed = True
                return filled
            slot.b = (<uint64_t> sizes[i] << 32) | SLOT_KEPT | name
            slot.c = run.timestamp_ms
            queue_return(s, q, &slot, seq, cold_deliveries(s, q, seq))
            q.ready_bytes += sizes[i]
            filled += 1
        record += sizes[i]
        left -= sizes[i]
    return filled


cdef inline int cold_arrived(ShardState* s, uint64_t number, const uint8_t* data, size_t size) noexcept nogil:
    """An extent that was asked for; 0, or -1: it does not hold what it has to."""
    cdef Extent* extent = extent_find(&s.extents, number)
    cdef const ExtentRun* run
    cdef Chunk* tail = NULL
    cdef uint64_t cold = 0
    cdef int filled = 0, more
    cdef size_t at = 0
    cdef Queue* q
    if extent == NULL:
        return 0                                            # its last message went meanwhile
    extent.reading = 0
    while True:
        run = extent_run(data, size, &at)
        if run == NULL:
            break
        q = queue_find(s, run.queue)
        if q == NULL or q.pieces.wanted != extent:
            continue
        more = cold_fill(s, q, extent, run, &tail)
        if more < 0:
            break
        filled += more
    tail_detach(&s.store, &tail)
    if run != NULL or at != size:
        return -1
    at = 0
    while True:                                             # a piece may have several runs: only now are they all in memory
        run = extent_run(data, size, &at)
        if run == NULL:
            break
        q = queue_find(s, run.queue)
        if q != NULL and q.pieces.wanted == extent:
            cold += pieces_warm(&q.pieces, extent, run.seq, run.seq + run.count - 1)
    at = 0
    while True:
        run = extent_run(data, size, &at)
        if run == NULL:
            break
        q = queue_find(s, run.queue)
        if q != NULL and q.pieces.wanted == extent:
            q.pieces.wanted = NULL
            queue_wake(s, q)
    return 0 if cold == <uint64_t> filled else -1


cdef inline int cold_failed(ShardState* s, uint64_t number, const uint8_t* data, size_t size) noexcept nogil:
    """An extent was not written, this is its payload: its messages are in memory again, and lie in no piece; 0, or -1: the
    payload is damaged."""
    cdef Extent* extent = extent_find(&s.extents, number)
    cdef const ExtentRun* run
    cdef Chunk* tail = NULL
    cdef size_t at = 0
    cdef Queue* q
    if extent == NULL:
        return 0                                            # nothing in it lives
    s.ageing.spoiled = True
    while True:
        run = extent_run(data, size, &at)
        if run == NULL:
            break
        q = queue_find(s, run.queue)
        if q != NULL and cold_fill(s, q, extent, run, &tail) < 0:
            break
    tail_detach(&s.store, &tail)
    if run != NULL or at != size:
        return -1
    at = 0
    while True:
        run = extent_run(data, size, &at)
        if run == NULL:
            break
        q = queue_find(s, run.queue)
        if q != NULL:
            cold_leave(q, extent, run.seq, run.seq + run.count - 1)
            queue_wake(s, q)
    if extent.live == 0:                                    # otherwise the rest was purged, and is given back by and by
        extent_forget(&s.extents, extent)
    return 0


cdef inline void cold_leave(Queue* q, Extent* extent, uint64_t first, uint64_t last) noexcept nogil:
    """These messages lie in the extent no more: they are in memory."""
    cdef uint32_t i
    if q.pieces.wanted == extent:
        q.pieces.wanted = NULL
    pieces_warm(&q.pieces, extent, first, last)
    i = pieces_index(&q.pieces, first)
    while i < q.pieces.count and piece_at(&q.pieces, i).first <= last:
        if piece_at(&q.pieces, i).extent == extent:
            extent.live -= piece_at(&q.pieces, i).last - piece_at(&q.pieces, i).first + 1
            pieces_remove(&q.pieces, i)
        else:
            i += 1
