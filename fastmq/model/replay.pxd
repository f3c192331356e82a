# Applying the records of a shard: the other half of shard_records.
#
# Rules: a record is checked for its size and for what it names before it changes anything; one that does not fit the
# state ends the replay, and the state is then worth nothing. The changes are made by the functions that made them
# first. Runs in the worker, without the GIL.
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from fastmq.model.attend cimport consumer_add, consumer_cancel, queue_delete, queue_purge, session_end
from fastmq.model.deliver cimport consumer_give, consumer_turn, queue_peek, queue_take
from fastmq.model.effects cimport effects_clear
from fastmq.model.members cimport Consumer, Queue, Session
from fastmq.model.publish cimport publish_publisher, publish_take, publisher_forget, records_measure
from fastmq.model.publishers cimport Publisher, publishers_find
from fastmq.model.settle cimport Search, settle_range
from fastmq.model.keeping cimport replay_kept
from fastmq.model.shard_records cimport C_CANCEL, C_CONSUME, C_DECIDE, C_DELIVER, C_FORGET, C_KEEP, C_PLACE, C_PURGE, C_QUEUE
from fastmq.model.shard_records cimport C_QUEUE_DELETE
from fastmq.model.shard_records cimport C_SESSION, C_SESSION_END, C_SETTLE, C_TAKE, C_UNUSED
from fastmq.model.shard_records cimport ChangeConsume, ChangeDecide, ChangeDeliver, ChangeQueue, ChangeSession
from fastmq.model.shard_records cimport ChangeSettle
from fastmq.model.shard_records cimport ChangeTake, RecordHead
from fastmq.model.snapshot cimport replay_snapshot
from fastmq.model.state cimport ShardState, queue_declare, queue_find, queue_wake
from fastmq.model.state cimport session_find, session_leave, session_make, unused_clear
from fastmq.wire.idmap cimport idmap_get
from fastmq.wire.verbs cimport OK


cdef inline int replay(ShardState* s, const uint8_t* data, size_t size) noexcept nogil:
    """Apply consecutive records; 0, or -1 when one is damaged or does not fit the state."""
    cdef const RecordHead* head
    cdef uint32_t i
    while size:
        if size < sizeof(RecordHead):
            return -1
        head = <const RecordHead*> data
        if head.size & 7 or size - sizeof(RecordHead) < head.size:
            return -1
        if replay_record(s, head, data + sizeof(RecordHead)) != 0 or s.failed:
            return -1
        data += sizeof(RecordHead) + head.size
        size -= sizeof(RecordHead) + head.size
        effects_clear(&s.effects)
    if not s.keeps:                                         # what a log keeps has no consumers, so nothing is to be delivered yet
        for i in range(s.queue_count):
            queue_wake(s, s.queues[i])
    return 0


cdef inline int replay_record(ShardState* s, const RecordHead* head, const uint8_t* at) noexcept nogil:
    cdef const ChangeQueue* queue = <const ChangeQueue*> at
    cdef Queue* q
    if head.kind == C_TAKE:
        return replay_take(s, at, head.size)
    if head.kind >= C_PLACE:
        return replay_snapshot(s, head, at)
    if head.kind >= C_KEEP:
        return replay_kept(s, head, at)
    if head.kind >= C_DECIDE:
        return replay_session(s, head, at)
    if head.size < sizeof(ChangeQueue) or queue.queue == 0:
        return -1
    if head.kind == C_QUEUE:
        return -1 if queue_declare(s, queue.queue, queue.flags) == NULL else 0
    q = queue_find(s, queue.queue)
    if q == NULL:
        return -1
    if head.kind == C_QUEUE_DELETE:
        queue_delete(s, q)
    elif head.kind == C_PURGE:
        queue_purge(s, q)
    elif head.kind == C_UNUSED:
        unused_clear(s, q)
    else:
        return -1
    return 0


cdef inline int replay_take(ShardState* s, const uint8_t* at, size_t size) noexcept nogil:
    cdef const ChangeTake* change = <const ChangeTake*> at
    cdef const uint64_t* queues
    cdef const uint32_t* sizes
    cdef size_t names
    cdef uint32_t i
    cdef Publisher* p
    if size < sizeof(ChangeTake):
        return -1
    names = (<size_t> change.exchange_size + 7) & ~<size_t> 7
    if size - sizeof(ChangeTake) < <size_t> change.queues * 8 + names + change.records_size or change.sid == 0:
        return -1
    if change.count == 0 or change.first_seq + change.count < change.first_seq:
        return -1
    queues = <const uint64_t*> (change + 1)
    for i in range(change.queues):
        if queue_find(s, queues[i]) == NULL:
            return -1
    at = <const uint8_t*> (queues + change.queues)
    sizes = records_measure(s, at + names, change.records_size, change.count)
    p = publish_publisher(s, change.sid, change.floor)
    if sizes == NULL or p == NULL or change.first_seq <= p.highest:
        return -1
    publish_take(s, p, change.first_seq, change.count, queues, change.queues, at, change.exchange_size, at + names,
                 sizes, change.records_size, change.timestamp_ms)
    return 0


cdef inline int replay_session(ShardState* s, const RecordHead* head, const uint8_t* at) noexcept nogil:
    """Records of publishers, sessions and consumers: all begin with a session's number."""
    cdef const ChangeDecide* decide = <const ChangeDecide*> at
    cdef const ChangeSession* change = <const ChangeSession*> at
    cdef Session* session
    cdef Publisher* p
    if head.size < sizeof(ChangeSession) or change.sid == 0:
        return -1
    if head.kind == C_DECIDE:
        if head.size < sizeof(ChangeDecide):
            return -1
        p = publish_publisher(s, decide.sid, decide.floor)
        if p == NULL:
            return -1
        p.highest = decide.highest
        return 0
    if head.kind == C_FORGET:
        p = publishers_find(&s.publishers, change.sid)
        if p == NULL:
            return 0 if s.keeps else -1                     # what it did while the disk was full has no record
        publisher_forget(s, p)
        return 0
    session = session_find(s, change.sid)
    if head.kind == C_SESSION:
        return -1 if session != NULL or session_make(s, change.sid, change.frontend, change.hello) == NULL else 0
    if session == NULL:
        return -1
    if head.kind == C_SESSION_END:
        session_end(s, session, change.hello != 0)
        return 0
    return replay_consumer(s, session, head, at)


cdef inline int replay_consumer(ShardState* s, Session* session, const RecordHead* head,
                                const uint8_t* at) noexcept nogil:
    cdef const ChangeConsume* consume = <const ChangeConsume*> at
    cdef const ChangeDeliver* deliver = <const ChangeDeliver*> at
    cdef const ChangeSettle* change = <const ChangeSettle*> at
    cdef Consumer* c
    cdef Queue* q
    cdef Search search
    if head.kind == C_CONSUME and head.size >= sizeof(ChangeConsume):
        q = queue_find(s, consume.queue)
        if q == NULL or consume.consumer == 0:
            return -1
        return -1 if consumer_add(s, session, q, consume.consumer, consume.window_messages, consume.window_bytes,
                                  consume.exclusive != 0) != OK else 0
    if head.kind == C_CANCEL and head.size >= sizeof(ChangeConsume):
        return -1 if consumer_cancel(s, session.frontend, consume.sid, consume.consumer) != OK else 0
    if head.kind == C_DELIVER and head.size >= sizeof(ChangeDeliver):
        q = queue_find(s, deliver.queue)
        if q == NULL or deliver.first_tag != s.outstanding.next_tag or queue_peek(q) == NULL:
            return -1
        if deliver.consumer == 0:
            return -1 if queue_take(s, q, &session.getter) == NULL else 0
        c = <Consumer*> idmap_get(&session.consumers, deliver.consumer, 0)
        if c == NULL or c.queue != q or not c.is_open:
            return -1
        if deliver.count == 0 or consumer_give(s, q, c, deliver.count, <uint64_t> -1) != deliver.count:
            return -1
        consumer_turn(c, deliver.turn_kept != 0)
        return 0
    if head.kind == C_SETTLE and head.size >= sizeof(ChangeSettle) and change.action <= 3:
        memset(&search, 0, sizeof(search))
        search.left = <uint64_t> -1
        settle_range(s, session, change.first, change.last, <int> change.action, &search)
        session_leave(s, session)
        return 0
    return -1
