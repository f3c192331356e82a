# What a shard has in its log: the records of LEVEL_DURABLE applied again, and what waits until the log has it for good.
#
# Rules: a message is named by its queue and its sequence there, which it keeps over deaths. While records are applied,
# all messages lie in the rings, at the places that their sequences say, with removed places between them, or are cold: a
# snapshot has told of their pieces; `keeping_end` then makes an ordinary state of it: what may have been delivered is in
# the heaps, as if it had come back. Records of queues and messages that are no more are passed over: what follows may
# have removed them, or a snapshot was made after it. In the worker, without the GIL.
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from fastmq._core cimport Ring, Slot, ring_at, ring_pop_front, ring_push_back, ring_remove, ring_size, ring_span
from fastmq.model.members cimport Queue, queue_next_seq
from fastmq.model.pieces cimport pieces_drop, pieces_find
from fastmq.model.publish cimport publish_publisher, queue_put, records_measure
from fastmq.model.publishers cimport Publisher, publisher_take
from fastmq.model.shard_records cimport C_COUNT, C_DONE, C_KEEP, C_MARK, C_TAKEN
from fastmq.model.shard_records cimport ChangeCount, ChangeDone, ChangeTake, ChangeTaken, KeptQueue, RecordHead
from fastmq.model.state cimport Hidden, ShardState, queue_find, queue_return, queue_show
from fastmq.model.store cimport NAME_NONE, SLOT_KEPT, name_take, slot_size, store_drop
from fastmq.wire.buffer cimport buffer_clear, buffer_drop_front
from fastmq.wire.idmap cimport IdMap, idmap_free, idmap_get, idmap_init, idmap_put, idmap_remove


# ---- what waits for the log

cdef inline void hidden_stamp(ShardState* s, uint64_t position) noexcept nogil:
    """The records so far end at this position of the log."""
    cdef Hidden* all = <Hidden*> s.hidden.data
    cdef size_t i = s.hidden.size // sizeof(Hidden)
    while i > s.hidden_first and all[i - 1].position == 0:
        i -= 1
        all[i].position = position


cdef inline bint hidden_show(ShardState* s, uint64_t durable) noexcept nogil:
    """The log has everything up to this position: those messages may be delivered. Whether there are any."""
    cdef size_t first = s.hidden_first
    cdef Hidden hidden
    cdef Queue* q
    while s.hidden_first < s.hidden.size // sizeof(Hidden):
        hidden = (<Hidden*> s.hidden.data)[s.hidden_first]      # a copy: showing it may hide more, and the buffer moves
        if hidden.position == 0 or hidden.position > durable:
            break
        s.hidden_first += 1
        q = queue_find(s, hidden.queue)
        if q == NULL or not q.kept:
            continue
        if hidden.taken and q.durable_end < hidden.end_seq:
            q.durable_end = hidden.end_seq
        if hidden.marked and q.marked_end < hidden.end_seq:
            q.marked_end = hidden.end_seq
        queue_show(s, q)
    if s.hidden_first == first:
        return False
    if s.hidden_first * sizeof(Hidden) == s.hidden.size:
        buffer_clear(&s.hidden)
        s.hidden_first = 0
    elif s.hidden_first * 2 * sizeof(Hidden) > s.hidden.size:
        buffer_drop_front(&s.hidden, s.hidden_first * sizeof(Hidden))
        s.hidden_first = 0
    return True


# ---- records applied again

cdef inline int replay_kept(ShardState* s, const RecordHead* head, const uint8_t* at) noexcept nogil:
    """One of C_KEEP to C_COUNT; 0, or -1 when it is damaged."""
    cdef const ChangeTaken* taken = <const ChangeTaken*> at
    cdef const ChangeDone* done = <const ChangeDone*> at
    cdef const ChangeCount* count = <const ChangeCount*> at
    cdef Publisher* p
    cdef Queue* q
    if head.kind == C_KEEP:
        return replay_keep(s, at, head.size)
    if head.kind == C_TAKEN and head.size >= sizeof(ChangeTaken):
        p = replay_publisher(s, taken.sid, taken.floor, taken.first, taken.last)
        return -1 if p == NULL or not publisher_take(p, taken.first, taken.last) else 0
    if head.kind == C_DONE and head.size >= sizeof(ChangeDone):
        q = queue_find(s, done.queue)
        if q != NULL:
            replay_done(s, q, done.first, done.last)
        return 0
    if head.size < sizeof(ChangeCount):
        return -1
    q = queue_find(s, count.queue)
    if q == NULL:
        return 0
    if head.kind == C_MARK:
        q.mark = count.seq
        return 0
    if head.kind == C_COUNT:
        if ((kept_slot(q, count.seq) != NULL or pieces_find(&q.pieces, count.seq) != NULL)
                and not idmap_put(&q.counts, count.seq, <uint64_t> count.deliveries + 1)):
            s.failed = True
        return 0
    return -1


cdef inline Publisher* replay_publisher(ShardState* s, uint64_t sid, uint64_t floor, uint64_t first,
                                        uint64_t last) noexcept nogil:
    """The publisher of a record that takes these sequences; NULL when it does not fit, or there is no memory."""
    cdef Publisher* p
    if sid == 0 or first == 0 or last < first:
        return NULL
    p = publish_publisher(s, sid, floor)
    return p if p != NULL and first > p.highest else NULL


cdef inline Slot* kept_slot(Queue* q, uint64_t seq) noexcept nogil:
    """A message in the ring by its sequence, NULL: it is not there."""
    cdef uint64_t first = q.seq_base + q.ring.first
    return ring_at(&q.ring, seq - first) if first <= seq < queue_next_seq(q) else NULL


cdef inline bint ring_reach(Queue* q, uint64_t seq) noexcept nogil:
    """Make `seq` the next sequence of a queue; False when there is no memory."""
    cdef Slot none
    if ring_size(&q.ring) == 0:
        q.seq_base = seq - q.ring.end
        return True
    memset(&none, 0, sizeof(none))
    while queue_next_seq(q) < seq:
        if ring_push_back(&q.ring, &none) < 0:
            return False
    return True


cdef inline int replay_keep(ShardState* s, const uint8_t* at, size_t size) noexcept nogil:
    """A publish of persistent messages."""
    cdef const ChangeTake* change = <const ChangeTake*> at
    cdef const KeptQueue* places = <const KeptQueue*> (change + 1)
    cdef const uint32_t* sizes
    cdef size_t names
    cdef uint32_t i, name
    cdef Publisher* p
    cdef Queue* q
    if size < sizeof(ChangeTake):
        return -1
    names = (<size_t> change.exchange_size + 7) & ~<size_t> 7
    if size - sizeof(ChangeTake) < <size_t> change.queues * sizeof(KeptQueue) + names + change.records_size or change.count == 0:
        return -1
    at = <const uint8_t*> (places + change.queues)
    sizes = records_measure(s, at + names, change.records_size, change.count)
    p = replay_publisher(s, change.sid, change.floor, change.first_seq, change.first_seq + change.count - 1)
    if sizes == NULL or p == NULL or not publisher_take(p, change.first_seq, change.first_seq + change.count - 1):
        return -1
    for i in range(change.queues):
        q = queue_find(s, places[i].queue)
        if q == NULL:
            continue                                        # deleted, and nothing is kept of that
        if places[i].seq < queue_next_seq(q) or places[i].seq + change.count < places[i].seq:
            return -1
        name = name_take(&s.store.names, at, change.exchange_size, change.count)
        if name == NAME_NONE:
            s.failed = True
            return -1
        replay_put(s, q, places[i].seq, at + names, sizes, change, name)
        if places[i].marked and places[i].seq + change.count - 1 > q.mark:
            q.mark = places[i].seq + change.count - 1
    return 0


cdef inline void replay_put(ShardState* s, Queue* q, uint64_t seq, const uint8_t* records, const uint32_t* sizes,
                            const ChangeTake* change, uint32_t name) noexcept nogil:
    """Put the messages to their old places; the places before them that were not kept are removed ones."""
    cdef uint64_t hole = queue_next_seq(q), first
    if not ring_reach(q, seq):
        s.failed = True
        return
    queue_put(s, q, records, sizes, change.count, change.records_size, name | SLOT_KEPT, change.timestamp_ms)
    first = q.seq_base + q.ring.first
    if hole < first:
        hole = first
    while hole < seq:
        ring_remove(&q.ring, hole - first)
        hole += 1


cdef inline void replay_done(ShardState* s, Queue* q, uint64_t first, uint64_t last) noexcept nogil:
    """These messages are no more. They had been delivered, or were purged with all before them that were not out."""
    cdef uint64_t low = q.seq_base + q.ring.first
    cdef Slot* slot
    cdef Slot gone
    if last > q.mark:
        q.mark = last
    if not pieces_drop(&s.extents, &q.pieces, first, last):
        s.failed = True
    if first < low:
        first = low
    if last >= queue_next_seq(q):
        last = queue_next_seq(q) - 1
    while first <= last and ring_size(&q.ring):
        low = q.seq_base + q.ring.first
        if first < low:
            first = low
            continue
        slot = ring_at(&q.ring, first - low)
        if slot != NULL:
            gone = slot[0]
            q.ready_bytes -= slot_size(&gone)
            ring_remove(&q.ring, first - low)
            store_drop(&s.store, &q.tail, &gone)
            if q.counts.count:
                idmap_remove(&q.counts, first)
        first += 1


cdef inline void counts_of_cold(ShardState* s, Queue* q) noexcept nogil:
    """Keep of `counts` what is said there of cold messages."""
    cdef IdMap all = q.counts
    cdef size_t i
    idmap_init(&q.counts)
    for i in range(all.mask + 1 if all.entries != NULL and q.pieces.count else 0):
        if all.entries[i].key and pieces_find(&q.pieces, all.entries[i].key) != NULL:
            if not idmap_put(&q.counts, all.entries[i].key, all.entries[i].value):
                s.failed = True
    idmap_free(&all)


cdef inline void keeping_end(ShardState* s) noexcept nogil:
    """All records have been applied."""
    cdef uint64_t seq, next_seq, count
    cdef uint32_t i
    cdef Slot slot
    cdef Queue* q
    for i in range(s.queue_count):
        q = s.queues[i]
        next_seq = queue_next_seq(q)
        if next_seq <= q.mark:
            next_seq = q.mark + 1
        while ring_size(&q.ring) and q.seq_base + q.ring.first <= q.mark:
            seq = q.seq_base + q.ring.first
            ring_pop_front(&q.ring, &slot)
            count = idmap_get(&q.counts, seq, 2)
            queue_return(s, q, &slot, seq, <uint32_t> (count - 1))
        counts_of_cold(s, q)
        q.recovered_mark = q.mark
        if ring_size(&q.ring) == 0:
            q.seq_base = next_seq - q.ring.end
        if q.kept:
            q.durable_end = queue_next_seq(q)
            q.marked_end = q.mark + 1
            queue_show(s, q)
