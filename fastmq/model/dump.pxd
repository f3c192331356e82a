# The whole state of a shard as plain Python values, for tests: equal for equal states.
#
# Owns: nothing. Rules: reads only; times of use are no part of it, their order is. Runs where tests run.
from libc.stdint cimport uint32_t, uint64_t

from fastmq._core cimport Slot, ring_at, ring_span
from fastmq.model.members cimport Consumer, Outstanding, Queue, Session
from fastmq.model.outstanding cimport outstanding_find
from fastmq.model.pieces cimport Piece, SEQ_NONE, piece_at
from fastmq.model.publishers cimport Publisher
from fastmq.model.state cimport ShardState
from fastmq.model.store cimport Name, slot_name, slot_size, slot_timestamp_ms, store_bytes


cdef inline object dump_slot(ShardState* s, const Slot* slot):
    """(exchange, timestamp_ms, record) of a message."""
    cdef Name* name = &s.store.names.items[slot_name(slot)]
    return name.data[:name.size], slot_timestamp_ms(slot), store_bytes(&s.store, slot)[:slot_size(slot)]


cdef inline list dump_pieces(Queue* q):
    """(first, last, extent, cold) of each; their sums are checked."""
    cdef list found = []
    cdef uint32_t i
    cdef const Piece* piece
    cdef uint64_t end = 0
    for i in range(q.pieces.count):
        piece = piece_at(&q.pieces, i)
        if end >= piece.first or piece.first > piece.last:
            raise AssertionError(f"pieces overlap at {piece.first}")
        end = piece.last
        found.append((piece.first, piece.last, piece.extent.number, bool(piece.cold)))
    cold = [(first, last) for first, last, _, is_cold in found if is_cold]
    if q.pieces.cold_count != sum([last - first + 1 for first, last in cold]):
        raise AssertionError("the count of cold messages is wrong")
    if q.pieces.cold_seq != (cold[0][0] if cold else SEQ_NONE):
        raise AssertionError("the first cold message is not the first")
    return found


cdef inline dict dump_queue(ShardState* s, Queue* q):
    cdef list ready = [(q.returned[i].seq, q.returned[i].deliveries, *dump_slot(s, &q.returned[i].slot))
                       for i in range(q.returned_count)]
    cdef list turns = []
    cdef dict consumers = {}
    cdef Consumer* c = q.consumers
    cdef Slot* slot
    ready.sort()
    for i in range(ring_span(&q.ring)):
        slot = ring_at(&q.ring, i)
        if slot != NULL:
            ready.append((q.seq_base + q.ring.first + i, 0, *dump_slot(s, slot)))
    while c != NULL:
        consumers[c.session.sid, c.number] = {
            "window_messages": c.window_messages, "window_bytes": c.window_bytes, "outstanding": c.outstanding,
            "bytes": c.bytes, "exclusive": bool(c.exclusive),
        }
        c = c.next
    c = q.open_first
    while c != NULL:
        turns.append((c.session.sid, c.number))
        c = c.open_next
    return {"flags": q.flags, "next_seq": q.seq_base + q.ring.end, "ready": ready, "unacknowledged": q.unacknowledged,
            "ready_bytes": q.ready_bytes, "consumers": consumers, "turns": turns, "exclusive": bool(q.exclusive),
            "pieces": dump_pieces(q), "cold": q.pieces.cold_count,
            "counts": {q.counts.entries[i].key: q.counts.entries[i].value - 1 for i in range(q.counts.mask + 1 if q.counts.count else 0)
                       if q.counts.entries[i].key},
            "recovered_mark": q.recovered_mark,
            "unused": (q.unused_sid, q.unused_frontend if q.unused_sid else 0)}


cdef inline dict dump_sessions(ShardState* s):
    cdef dict found = {}
    cdef Session* session
    cdef Outstanding* e
    if s.sessions.entries == NULL:
        return found
    for i in range(s.sessions.mask + 1):
        if s.sessions.entries[i].key:
            session = <Session*> s.sessions.entries[i].value
            e = session.first
            tags = []
            while e != NULL:
                tags.append(e.tag)
                e = e.next
            found[session.sid] = {"frontend": session.frontend, "hello": session.hello, "outstanding": tags}
    return found


cdef inline dict dump_outstanding(ShardState* s):
    cdef dict found = {}
    cdef Outstanding* e
    for i in range(s.queue_count):
        e = s.queues[i].first
        while e != NULL:
            found[e.tag] = (e.queue.id, e.consumer.session.sid, e.consumer.number, bool(e.consumer.closed), e.seq,
                            e.deliveries, *dump_slot(s, &e.slot))
            if outstanding_find(&s.outstanding, e.tag) != e:
                raise AssertionError(f"tag {e.tag} is not found")
            e = e.queue_next
    if len(found) != s.outstanding.count:
        raise AssertionError("the table by tag and the queues' lists disagree")
    return found


cdef inline list dump_publishers(ShardState* s):
    """(sid, floor, highest, taken ranges), the longest idle first."""
    cdef list found = []
    cdef Publisher* p = s.publishers.oldest
    while p != NULL:
        ranges = [(p.ranges[p.start + i].first, p.ranges[p.start + i].last) for i in range(p.count)]
        found.append((p.sid, p.floor, p.highest, ranges))
        p = p.newer
    return found
