# The snapshot of a shard for a checkpoint of the log: what is durable in it as records, and those records applied.
#
# Owns: nothing but the progress in ShardState.ageing. Rules: `snapshot_begin` writes what must be of one moment; from then on all
# that was kept before it is aged, and then the pieces are told, a bounded number in each step. What happens meanwhile is in the log
# behind that moment and is applied again, after the snapshot: that a message is settled, or has been delivered so often, may be
# said twice. So pieces are told only of messages from before that moment. Worker, no GIL, no I/O.
#
#       | of each kept queue C_QUEUE, C_PLACE | C_PUBLISHER, the longest idle first |     snapshot_begin
#       | C_PIECE ... | C_COUNT ... | C_EXTENTS |                                         snapshot_step
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from fastmq.model.ageing cimport AGE_DONE, AGE_MORE, AGE_SPOILED, age_count, age_snapshot
from fastmq.model.keeping cimport ring_reach
from fastmq.model.members cimport Queue, queue_next_seq
from fastmq.model.pieces cimport Extent, Piece, extent_find, extent_make, piece_at, pieces_find, pieces_index, pieces_put
from fastmq.model.publish cimport publish_publisher
from fastmq.model.publishers cimport Publisher, publisher_take
from fastmq.model.shard_records cimport C_EXTENTS, C_PIECE, C_PLACE, C_PUBLISHER, C_QUEUE
from fastmq.model.shard_records cimport ChangePiece, ChangePlace, ChangePublisher, ChangeQueue
from fastmq.model.shard_records cimport RecordHead, record_add, record_begin
from fastmq.model.state cimport Ageing, ShardState, queue_find
from fastmq.wire.buffer cimport Buffer, buffer_add, buffer_clear, buffer_free
from fastmq.wire.link cimport LinkRange


cdef enum:
    SNAPSHOT_PIECE_COST = 32        # of the bytes of a step: 2,048 pieces are told in one


cdef inline void snapshot_open(ShardState* s, Buffer* out) noexcept nogil:
    """Begin with what is to be of one moment; all records so far have been taken."""
    cdef Ageing* a = &s.ageing
    cdef ChangeQueue declared
    cdef ChangePlace place
    cdef Publisher* p
    cdef uint32_t i
    cdef Queue* q
    snapshot_end(s)
    for i in range(s.queue_count):
        q = s.queues[i]
        q.age_end = queue_next_seq(q) if q.kept else 0
        q.told_end = 0
        if q.kept:
            declared.queue = q.id
            declared.flags = q.flags
            declared.padding = 0
            record_add(out, C_QUEUE, True, &declared, sizeof(declared))
            place.queue = q.id
            place.next_seq = queue_next_seq(q)
            place.mark = q.mark
            record_add(out, C_PLACE, True, &place, sizeof(place))
    p = s.publishers.oldest
    while p != NULL:
        snapshot_publisher(p, out)
        p = p.newer
    a.snapshot = True


cdef inline void snapshot_publisher(const Publisher* p, Buffer* out) noexcept nogil:
    cdef ChangePublisher* change = <ChangePublisher*> record_begin(
        out, C_PUBLISHER, True, sizeof(ChangePublisher) + p.count * sizeof(LinkRange))
    if change == NULL:
        return
    change.sid = p.sid
    change.floor = p.floor
    change.highest = p.highest
    change.count = p.count
    if p.count:
        memcpy(change + 1, p.ranges + p.start, p.count * sizeof(LinkRange))


cdef inline void snapshot_end(ShardState* s) noexcept nogil:
    """No snapshot is being made any more."""
    cdef Ageing* a = &s.ageing
    a.snapshot = False
    a.aged = False
    a.spoiled = False
    a.queue_at = 0
    a.sweeping = NULL
    a.cursor = NULL
    a.unvisited = 0
    a.out_at = 0
    buffer_free(&a.counts)


cdef inline int snapshot_go_on(ShardState* s, Buffer* out) noexcept nogil:
    """Go on; an AgeResult."""
    cdef Ageing* a = &s.ageing
    cdef int32_t left = <int32_t> (s.age_step_bytes // SNAPSHOT_PIECE_COST) + 1
    cdef int result
    cdef Queue* q
    if not a.snapshot or a.spoiled:
        return AGE_SPOILED
    if not a.aged:
        result = age_snapshot(s)
        return AGE_MORE if result == AGE_DONE else result
    while a.out_at < s.queue_count:
        if left <= 0:
            return AGE_MORE
        left -= 1
        q = s.queues[a.out_at]
        if q.told_end < q.age_end:
            left -= snapshot_pieces(s, q, out, left)
        if q.told_end >= q.age_end:
            a.out_at += 1
    buffer_add(out, a.counts.data, a.counts.size)
    if a.counts.failed:
        out.failed = True
    record_add(out, C_EXTENTS, True, &s.extents.last, sizeof(uint64_t))
    snapshot_end(s)
    return AGE_DONE


cdef inline int32_t snapshot_pieces(ShardState* s, Queue* q, Buffer* out, int32_t left) noexcept nogil:
    """Tell of some of a queue's pieces, or of all and of what is known of its cold messages; how many."""
    cdef uint32_t i = pieces_index(&q.pieces, q.told_end)
    cdef int32_t count = 0
    cdef ChangePiece change
    cdef const Piece* piece
    cdef size_t n
    while i < q.pieces.count and piece_at(&q.pieces, i).first < q.age_end:
        if count >= left:
            return count
        piece = piece_at(&q.pieces, i)
        change.queue = q.id
        change.extent = piece.extent.number
        change.first = piece.first if piece.first > q.told_end else q.told_end
        change.last = piece.last if piece.last < q.age_end else q.age_end - 1
        record_add(out, C_PIECE, True, &change, sizeof(change))
        q.told_end = change.last + 1
        count += 1
        i += 1
    q.told_end = q.age_end
    for n in range(q.counts.mask + 1 if q.counts.entries != NULL else 0):
        if q.counts.entries[n].key:
            age_count(s, q, q.counts.entries[n].key, <uint32_t> (q.counts.entries[n].value - 1))
    return count


# ---- applied

cdef inline int replay_snapshot(ShardState* s, const RecordHead* head, const uint8_t* at) noexcept nogil:
    """One of C_PLACE to C_EXTENTS; 0, or -1 when it is damaged."""
    cdef const ChangePlace* place = <const ChangePlace*> at
    cdef const ChangePiece* piece = <const ChangePiece*> at
    cdef Queue* q
    if head.kind == C_PUBLISHER:
        return replay_numbers(s, at, head.size)
    if head.kind == C_EXTENTS and head.size >= sizeof(uint64_t):
        if (<const uint64_t*> at)[0] > s.extents.last:
            s.extents.last = (<const uint64_t*> at)[0]
        return 0
    if head.kind == C_PLACE and head.size >= sizeof(ChangePlace):
        q = queue_find(s, place.queue)
        if q == NULL or place.next_seq < queue_next_seq(q) or queue_next_seq(q) != 1:
            return -1
        q.mark = place.mark
        if not ring_reach(q, place.next_seq):
            s.failed = True
        q.visible = q.durable_end = place.next_seq
        return 0
    if head.kind == C_PIECE and head.size >= sizeof(ChangePiece):
        q = queue_find(s, piece.queue)
        return -1 if q == NULL else replay_piece(s, q, piece)
    return -1


cdef inline int replay_piece(ShardState* s, Queue* q, const ChangePiece* change) noexcept nogil:
    cdef Extent* extent = extent_find(&s.extents, change.extent)
    cdef uint32_t i = pieces_index(&q.pieces, change.first)
    if change.extent == 0 or change.first == 0 or change.last < change.first or change.last >= queue_next_seq(q):
        return -1
    if i < q.pieces.count and piece_at(&q.pieces, i).first <= change.last:
        return -1
    if extent == NULL:
        extent = extent_make(&s.extents, change.extent)
    if extent == NULL or not pieces_put(&q.pieces, extent, change.first, change.last, True):
        s.failed = True
    return 0


cdef inline int replay_numbers(ShardState* s, const uint8_t* at, size_t size) noexcept nogil:
    """What is known of a publisher."""
    cdef const ChangePublisher* change = <const ChangePublisher*> at
    cdef const LinkRange* ranges = <const LinkRange*> (change + 1)
    cdef Publisher* p
    cdef uint32_t i
    if size < sizeof(ChangePublisher) or (size - sizeof(ChangePublisher)) // sizeof(LinkRange) < change.count or change.sid == 0:
        return -1
    p = publish_publisher(s, change.sid, change.floor)
    if p == NULL:
        return -1
    for i in range(change.count):
        if ranges[i].first == 0 or ranges[i].last < ranges[i].first or ranges[i].first <= p.highest or ranges[i].last > change.highest:
            return -1
        if not publisher_take(p, ranges[i].first, ranges[i].last):
            s.failed = True
    p.highest = change.highest
    return 0
