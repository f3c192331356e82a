# Sessions, consumers and queues come and go.
#
# Rules: messages of a session that ends go back to their queues at once, counted as delivered; a consumer that is
# cancelled keeps what is outstanding at it; a queue that is deleted takes its messages along, ready and outstanding,
# and tells its consumers. What may be much (messages of a purged queue) is given back later, in steps. Runs in the
# worker, without the GIL.
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from fastmq._core cimport Ring, Slot, ring_free, ring_pop_front, ring_size
from fastmq.model.ageing cimport age_forget
from fastmq.model.effects cimport effects_begin
from fastmq.model.gets cimport gets_drop
from fastmq.model.members cimport Consumer, Outstanding, Queue, Returned, Session
from fastmq.model.members cimport consumer_close, consumer_new, queue_next_seq, queue_ready, session_free
from fastmq.model.pieces cimport Piece, SEQ_NONE, extent_leave, piece_at, pieces_drop, pieces_free, pieces_split
from fastmq.model.shard_records cimport C_CANCEL, C_CONSUME, C_PURGE, C_QUEUE_DELETE, C_SESSION_END
from fastmq.model.shard_records cimport LEVEL_ALL, LEVEL_DURABLE, ChangeConsume, ChangeQueue, ChangeSession, record_add
from fastmq.model.state cimport FORGET, GARBAGE_STEP_COUNT, Garbage, ShardState, done_range, hidden_forget
from fastmq.model.state cimport message_settle, queue_calm, queue_wake, ring_make, session_find, session_leave
from fastmq.model.state cimport session_make
from fastmq.model.state cimport unused_clear, unused_mark, unused_report
from fastmq.model.store cimport store_drop, tail_detach
from fastmq.wire.idmap cimport idmap_free, idmap_get, idmap_remove
from fastmq.wire.link cimport L_CANCELLED, QUEUE_AUTO_DELETE, QUEUE_DURABLE, LinkCancelled, LinkConsume
from fastmq.wire.verbs cimport CONSUMER_EXISTS, INTERNAL, NACK, NO_CONSUMER, OK, QUEUE_DELETED


# ---- sessions

cdef inline Session* session_enter(ShardState* s, uint64_t sid, uint32_t frontend, uint32_t hello) noexcept nogil:
    """The session as of this HELLO; what an earlier one left, or one through another front-end, ends. NULL when there
    is no memory."""
    cdef Session* session = session_find(s, sid)
    if session != NULL and (session.frontend != frontend or session.hello != hello):
        session_end(s, session, False)
        session = NULL
    if session == NULL:
        session = session_make(s, sid, frontend, hello)
        if session == NULL:
            s.failed = True
    return session


cdef inline void session_end(ShardState* s, Session* session, bint bye) noexcept nogil:
    """Its consumers go, its outstanding messages go back. `bye`: it left on purpose, so auto-delete queues do not wait
    for it."""
    cdef size_t i = 0, mask = session.consumers.mask
    cdef ChangeSession change
    if s.level == LEVEL_ALL:
        change.sid = session.sid
        change.frontend = session.frontend
        change.hello = bye
        record_add(&s.records, C_SESSION_END, False, &change, sizeof(change))
    if session.gets:
        gets_drop(s, session.sid, 0)
    while session.consumers.count:
        if session.consumers.mask != mask or i > mask:      # it was halved: look from the start
            mask = session.consumers.mask
            i = 0
        if session.consumers.entries[i].key == 0:
            i += 1
        else:
            consumer_leave(s, <Consumer*> session.consumers.entries[i].value, not bye)
    while session.first != NULL:                            # the oldest first, as the heaps of the queues like best
        message_settle(s, session.first, NACK)
    idmap_remove(&s.sessions, session.sid)
    session_free(session)


# ---- consumers

cdef inline void consumer_leave(ShardState* s, Consumer* c, bint vanished) noexcept nogil:
    """Close a consumer; an auto-delete queue that loses its last one is reported, at once or after a while."""
    cdef Queue* q = c.queue
    cdef Session* session = c.session
    consumer_close(c)
    if q.open_count == 0:
        queue_calm(s, q)
    if q.consumer_count == 0 and q.flags & QUEUE_AUTO_DELETE:
        if vanished:
            unused_mark(s, q, session.frontend, session.sid)
        else:
            unused_report(s, session.frontend, session.sid, q.id)


cdef inline uint32_t consumer_add(ShardState* s, Session* session, Queue* q, uint32_t number, uint32_t window_messages,
                                  uint64_t window_bytes, bint exclusive) noexcept nogil:
    """A new consumer; OK or why not."""
    cdef ChangeConsume change
    if idmap_get(&session.consumers, number, 0) or q.exclusive or (exclusive and q.consumer_count):
        return CONSUMER_EXISTS
    if consumer_new(session, q, number, window_messages, window_bytes, exclusive) == NULL:
        s.failed = True
        return INTERNAL
    unused_clear(s, q)
    queue_wake(s, q)
    if s.level == LEVEL_ALL:
        change.sid = session.sid
        change.queue = q.id
        change.window_bytes = window_bytes
        change.consumer = number
        change.window_messages = window_messages
        change.exclusive = exclusive
        change.padding = 0
        record_add(&s.records, C_CONSUME, False, &change, sizeof(change))
    return OK


cdef inline uint32_t consumer_cancel(ShardState* s, uint32_t frontend, uint64_t sid, uint32_t number) noexcept nogil:
    """Close a consumer on its client's wish; OK or why not."""
    cdef Session* session = session_find(s, sid)
    cdef Consumer* c
    cdef ChangeConsume change
    if session == NULL or session.frontend != frontend:
        return NO_CONSUMER
    c = <Consumer*> idmap_get(&session.consumers, number, 0)
    if c == NULL:
        return NO_CONSUMER
    if s.level == LEVEL_ALL:
        memset(&change, 0, sizeof(change))
        change.sid = sid
        change.consumer = number
        record_add(&s.records, C_CANCEL, False, &change, sizeof(change))
    consumer_leave(s, c, False)
    session_leave(s, session)
    return OK


# ---- queues

cdef inline bint queue_empty(ShardState* s, Queue* q) noexcept nogil:
    """What is ready becomes garbage; False, and nothing changed, when there is no memory."""
    cdef Garbage* garbage
    cdef uint32_t i
    if queue_ready(q) == 0:
        return True
    garbage = <Garbage*> malloc(sizeof(Garbage))
    if garbage == NULL:
        return False
    if not pieces_split(&q.pieces, &garbage.pieces):
        free(garbage)
        return False
    if q.pieces.count:
        for i in range(q.returned_count):
            if not pieces_drop(&s.extents, &q.pieces, q.returned[i].seq, q.returned[i].seq):
                s.failed = True
    idmap_free(&q.counts)
    if s.ageing.sweeping == q:
        s.ageing.unvisited = 0
    garbage.ring = q.ring
    garbage.returned = q.returned
    garbage.returned_count = q.returned_count
    garbage.padding = 0
    garbage.next = s.garbage
    s.garbage = garbage
    ring_make(s, q, q.seq_base + q.ring.end)                # sequences go on
    q.returned = NULL
    q.returned_count = 0
    q.returned_room = 0
    q.ready_bytes = 0
    tail_detach(&s.store, &q.tail)
    return True


cdef inline void queue_done(ShardState* s, Queue* q) noexcept nogil:
    """Tell the log that what is ready in a kept queue is no more."""
    cdef uint32_t i
    for i in range(q.returned_count):
        done_range(s, q, q.returned[i].seq, q.returned[i].seq)
    for i in range(q.pieces.count):
        if piece_at(&q.pieces, i).cold:
            done_range(s, q, piece_at(&q.pieces, i).first, piece_at(&q.pieces, i).last)
    if ring_size(&q.ring):
        done_range(s, q, q.seq_base + q.ring.first, queue_next_seq(q) - 1)


cdef inline uint64_t queue_purge(ShardState* s, Queue* q) noexcept nogil:
    """Drop what is ready; how many that were."""
    cdef uint64_t count = queue_ready(q)
    cdef ChangeQueue change
    if count == 0:
        return 0
    if s.level == LEVEL_DURABLE and q.kept:
        queue_done(s, q)
    if not queue_empty(s, q):
        s.failed = True
        return 0
    queue_calm(s, q)
    if s.level == LEVEL_ALL:
        memset(&change, 0, sizeof(change))
        change.queue = q.id
        record_add(&s.records, C_PURGE, q.flags & QUEUE_DURABLE, &change, sizeof(change))
    return count


cdef inline void queue_tell(ShardState* s, Consumer* c) noexcept nogil:
    """Its queue is being deleted."""
    cdef LinkCancelled* told = <LinkCancelled*> effects_begin(&s.effects, c.session.frontend, L_CANCELLED, s.index,
                                                              sizeof(LinkCancelled))
    if told != NULL:
        told.sid = c.session.sid
        told.consumer = c.number
        told.code = QUEUE_DELETED


cdef inline void queue_delete(ShardState* s, Queue* q) noexcept nogil:
    """The queue goes with all its messages; its consumers are told."""
    cdef Session* session
    cdef ChangeQueue change
    if s.level == LEVEL_ALL or (s.level == LEVEL_DURABLE and q.kept):
        memset(&change, 0, sizeof(change))
        change.queue = q.id
        record_add(&s.records, C_QUEUE_DELETE, q.flags & QUEUE_DURABLE, &change, sizeof(change))
    hidden_forget(s, q.id)
    unused_clear(s, q)
    if q.gets:
        gets_drop(s, 0, q.id)
    while q.consumers != NULL:
        session = q.consumers.session
        queue_tell(s, q.consumers)
        consumer_close(q.consumers)
        session_leave(s, session)
    while q.first != NULL:
        session = q.first.consumer.session
        message_settle(s, q.first, FORGET)
        session_leave(s, session)
    queue_calm(s, q)
    if not queue_empty(s, q):
        s.failed = True
        return
    tail_detach(&s.store, &q.tail)
    if not pieces_drop(&s.extents, &q.pieces, 0, SEQ_NONE):  # of what was outstanding
        s.failed = True
    pieces_free(&q.pieces)
    age_forget(s, q)
    idmap_remove(&s.queue_of, q.id)
    s.queue_count -= 1
    s.queues[q.index] = s.queues[s.queue_count]
    s.queues[q.index].index = q.index
    ring_free(&q.ring)
    idmap_free(&q.counts)
    free(q.returned)
    free(q)


cdef inline void garbage_step(ShardState* s) noexcept nogil:
    """Give back some messages of purged and deleted queues."""
    cdef Garbage* garbage = s.garbage
    cdef uint32_t left = GARBAGE_STEP_COUNT
    cdef const Piece* piece
    cdef Slot slot
    while garbage != NULL and left:
        left -= 1
        if garbage.returned_count:
            garbage.returned_count -= 1
            store_drop(&s.store, NULL, &garbage.returned[garbage.returned_count].slot)
        elif ring_pop_front(&garbage.ring, &slot):
            store_drop(&s.store, NULL, &slot)
        elif garbage.pieces.count:
            garbage.pieces.count -= 1
            piece = piece_at(&garbage.pieces, garbage.pieces.count)
            extent_leave(&s.extents, piece.extent, piece.last - piece.first + 1)
        else:
            s.garbage = garbage.next
            ring_free(&garbage.ring)
            free(garbage.returned)
            pieces_free(&garbage.pieces)
            free(garbage)
            garbage = s.garbage
