# Link messages of a shard, each with its payload.
#
# Rules: a payload is checked before anything is changed; -1: it is not what its kind says. A request that wants an answer has a
# token. In the worker, without the GIL.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from fastmq.model.attend cimport consumer_add, queue_delete, queue_purge, session_end, session_enter
from fastmq.model.deliver cimport get_reply
from fastmq.model.effects cimport effects_begin
from fastmq.model.gets cimport get_must_wait, get_wait
from fastmq.model.members cimport Queue, Session, queue_ready, session_is_idle
from fastmq.model.publish cimport publish_run, publisher_forget
from fastmq.model.publishers cimport Publisher, publishers_find
from fastmq.model.settle cimport settle
from fastmq.model.state cimport ShardState, queue_declare, queue_find, session_find
from fastmq.wire.buffer cimport buffer_add, buffer_clear
from fastmq.wire.link cimport L_QUEUE_DECLARE, L_QUEUE_DELETE, L_QUEUE_PURGE, L_REPLY
from fastmq.wire.link cimport LinkAttach, LinkConsume, LinkCounts, LinkPublish, LinkPublishEntry
from fastmq.wire.link cimport LinkQueue, LinkQueueRequest, LinkRange, LinkReply, LinkSessionEnd, LinkSettle, LinkSettleException
from fastmq.wire.verbs cimport CONSUMER_EXISTS, LIMIT, NO_QUEUE, OK


cdef inline void reply(ShardState* s, uint32_t frontend, uint64_t token, uint32_t code,
                       const LinkCounts* counts) noexcept nogil:
    """Answer a request that wants an answer."""
    cdef LinkReply* at
    cdef size_t size = sizeof(LinkCounts) if counts != NULL else 0
    if token == 0:
        return
    at = <LinkReply*> effects_begin(&s.effects, frontend, L_REPLY, s.index, sizeof(LinkReply) + size)
    if at == NULL:
        s.failed = True
        return
    at.token = token
    at.code = code
    at.size = <uint32_t> size
    if counts != NULL:
        (<LinkCounts*> (at + 1))[0] = counts[0]


cdef inline void queue_counts(const Queue* q, uint32_t affected, LinkCounts* out) noexcept nogil:
    out.queue = q.id
    out.ready = queue_ready(q)
    out.unacknowledged = q.unacknowledged
    out.consumers = q.consumer_count
    out.affected = affected


cdef inline int handle_publish(ShardState* s, uint32_t frontend, const uint8_t* payload, size_t size,
                               int64_t now_ms) noexcept nogil:
    cdef const LinkPublish* head = <const LinkPublish*> payload
    cdef const LinkPublishEntry* entries
    cdef const LinkPublishEntry* e
    cdef const uint8_t* records
    cdef uint64_t* queues
    cdef uint32_t i = 0, count
    cdef size_t names, needed
    if size < sizeof(LinkPublish):
        return -1
    names = (<size_t> head.exchange_size + 7) & ~<size_t> 7
    needed = sizeof(LinkPublish) + names + <size_t> head.entries * sizeof(LinkPublishEntry)
    if size < needed or size - needed < head.records_size or head.sid == 0:
        return -1
    entries = <const LinkPublishEntry*> (payload + sizeof(LinkPublish) + names)
    records = payload + needed
    for i in range(head.entries):
        if <uint64_t> entries[i].offset + entries[i].size > head.records_size:
            return -1
    i = 0
    while i < head.entries:
        e = &entries[i]
        i += 1
        if e.shard != s.index:
            continue
        buffer_clear(&s.delivery.segments)                  # empty between pumps: the queues of one decision
        buffer_add(&s.delivery.segments, &e.queue, sizeof(uint64_t))
        count = 1
        while (i < head.entries and entries[i].shard == e.shard and entries[i].first_seq == e.first_seq
               and entries[i].count == e.count and entries[i].offset == e.offset and entries[i].size == e.size):
            buffer_add(&s.delivery.segments, &entries[i].queue, sizeof(uint64_t))
            count += 1
            i += 1
        if s.delivery.segments.failed:
            s.failed = True
            return -3
        queues = <uint64_t*> s.delivery.segments.data
        publish_run(s, frontend, head.sid, head.floor, e.first_seq, e.count, queues, count,
                    payload + sizeof(LinkPublish), head.exchange_size, records + e.offset, e.size, <uint64_t> now_ms)
    buffer_clear(&s.delivery.segments)
    return 0


cdef inline int handle_settle(ShardState* s, uint32_t frontend, const uint8_t* payload, size_t size) noexcept nogil:
    cdef const LinkSettle* head = <const LinkSettle*> payload
    cdef Session* session
    cdef const LinkRange* ranges
    if size < sizeof(LinkSettle):
        return -1
    if size - sizeof(LinkSettle) < (<size_t> head.ranges * sizeof(LinkRange)
                                    + <size_t> head.exceptions * sizeof(LinkSettleException)):
        return -1
    session = session_find(s, head.sid)
    if session != NULL and session.frontend != frontend:    # it lives elsewhere now
        s.stale_settles += 1
        return 0
    ranges = <const LinkRange*> (head + 1)
    settle(s, head, ranges, <const LinkSettleException*> (ranges + head.ranges))
    return 0


cdef inline int handle_consume(ShardState* s, uint32_t frontend, const uint8_t* payload, size_t size) noexcept nogil:
    cdef const LinkConsume* head = <const LinkConsume*> payload
    cdef Session* session
    cdef Queue* q
    cdef uint32_t code = NO_QUEUE
    if size < sizeof(LinkConsume) or head.sid == 0 or head.consumer == 0:
        return -1
    session = session_enter(s, head.sid, frontend, head.hello)
    if session == NULL:
        return -3
    q = queue_find(s, head.queue)
    if q != NULL:
        code = consumer_add(s, session, q, head.consumer, head.window_messages, head.window_bytes, head.exclusive != 0)
    if session_is_idle(session):                            # made for nothing
        session_end(s, session, False)
    reply(s, frontend, head.token, code, NULL)
    return 0


cdef inline int handle_get(ShardState* s, uint32_t frontend, const uint8_t* payload, size_t size) noexcept nogil:
    cdef const LinkQueueRequest* head = <const LinkQueueRequest*> payload
    cdef Session* session
    cdef Queue* q
    if size < sizeof(LinkQueueRequest) or head.sid == 0:
        return -1
    q = queue_find(s, head.queue)
    if q == NULL or q.exclusive:
        reply(s, frontend, head.token, NO_QUEUE if q == NULL else CONSUMER_EXISTS, NULL)
        return 0
    session = session_enter(s, head.sid, frontend, head.hello)
    if session == NULL:
        return -3
    if not get_must_wait(q):
        get_reply(s, head.token, frontend, session, q)
    elif not get_wait(s, head.token, frontend, session, q):
        reply(s, frontend, head.token, LIMIT, NULL)
    if session_is_idle(session):                            # made for nothing
        session_end(s, session, False)
    return 0


cdef inline int handle_session_end(ShardState* s, uint32_t frontend, const uint8_t* payload, size_t size) noexcept nogil:
    cdef const LinkSessionEnd* head = <const LinkSessionEnd*> payload
    cdef Session* session
    cdef Publisher* p
    if size < sizeof(LinkSessionEnd):
        return -1
    session = session_find(s, head.sid)
    if session != NULL:
        if session.frontend != frontend:                    # it lives elsewhere now
            return 0
        session_end(s, session, head.forget != 0)
    if head.forget:
        p = publishers_find(&s.publishers, head.sid)
        if p != NULL:
            publisher_forget(s, p)
    return 0


cdef inline int handle_attach(ShardState* s, const uint8_t* payload, size_t size) noexcept nogil:
    """The live queues: make those that are missing, drop all others."""
    cdef const LinkAttach* head = <const LinkAttach*> payload
    cdef const LinkQueue* queues
    cdef uint32_t i
    cdef Queue* q
    if size < sizeof(LinkAttach) or (size - sizeof(LinkAttach)) // sizeof(LinkQueue) < head.queues:
        return -1
    queues = <const LinkQueue*> (head + 1)
    for i in range(s.queue_count):
        s.queues[i].listed = 0
    for i in range(head.queues):
        if queues[i].queue == 0:
            continue
        q = queue_declare(s, queues[i].queue, queues[i].flags)
        if q == NULL:
            s.failed = True
            return -3
        q.listed = 1
    i = s.queue_count
    while i:
        i -= 1
        if not s.queues[i].listed:
            queue_delete(s, s.queues[i])
    return 0


cdef inline int handle_queue(ShardState* s, uint32_t frontend, uint16_t kind, const uint8_t* payload,
                             size_t size) noexcept nogil:
    """Declare, delete, purge, counts."""
    cdef const LinkQueueRequest* head = <const LinkQueueRequest*> payload
    cdef const LinkQueue* described = <const LinkQueue*> (head + 1)
    cdef LinkCounts counts
    cdef uint32_t flags
    cdef Queue* q
    if size < sizeof(LinkQueueRequest) or head.queue == 0:
        return -1
    flags = head.flags
    if kind == L_QUEUE_DECLARE:
        if size >= sizeof(LinkQueueRequest) + sizeof(LinkQueue):
            flags = described.flags
        q = queue_declare(s, head.queue, flags)
        if q == NULL:
            s.failed = True
            return -3
    else:
        q = queue_find(s, head.queue)
        if q == NULL:
            reply(s, frontend, head.token, NO_QUEUE, NULL)
            return 0
    queue_counts(q, 0, &counts)
    if kind == L_QUEUE_PURGE:
        counts.affected = <uint32_t> queue_purge(s, q)
        counts.ready = 0
    elif kind == L_QUEUE_DELETE:
        counts.affected = <uint32_t> counts.ready
        queue_delete(s, q)
    reply(s, frontend, head.token, OK, &counts)
    return 0
