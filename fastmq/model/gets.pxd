# GETs that wait: the next message of their queue is cold, and is being read back.
#
# Owns: the list of them, at most GETS_MAX in a shard. Rules: they are answered in the order in which they came, before any
# consumer gets what was read back; a session that ends takes them along, a queue that is deleted answers them. Worker, no GIL,
# no I/O.
from libc.stdint cimport uint32_t, uint64_t

from fastmq.model.deliver cimport get_reply, queue_peek
from fastmq.model.effects cimport effects_begin
from fastmq.model.members cimport Queue, Session
from fastmq.model.state cimport ShardState, Waiting, queue_find, queue_want, session_find, session_leave
from fastmq.wire.buffer cimport buffer_add
from fastmq.wire.link cimport L_REPLY, LinkReply
from fastmq.wire.verbs cimport NO_QUEUE


cdef enum:
    GETS_MAX = 4096


cdef inline bint get_must_wait(Queue* q) noexcept nogil:
    return q.pieces.cold_count != 0 and not (q.returned_count and q.returned[0].seq < q.pieces.cold_seq)


cdef inline bint get_wait(ShardState* s, uint64_t token, uint32_t frontend, Session* session, Queue* q) noexcept nogil:
    """Let a GET wait for what is cold; False, and nothing changed, when too many wait already."""
    cdef Waiting waiting
    if s.gets.size >= GETS_MAX * sizeof(Waiting):
        return False
    waiting.token = token
    waiting.sid = session.sid
    waiting.queue = q.id
    waiting.frontend = frontend
    waiting.padding = 0
    buffer_add(&s.gets, &waiting, sizeof(waiting))
    if s.gets.failed:
        s.failed = True
        return True
    session.gets += 1
    q.gets += 1
    queue_want(s, q)
    return True


cdef inline void gets_answer(ShardState* s) noexcept nogil:
    """Answer those whose queue has a next message, or none."""
    cdef Waiting* all = <Waiting*> s.gets.data
    cdef size_t count = s.gets.size // sizeof(Waiting), i, left = 0
    cdef Session* session
    cdef Queue* q
    for i in range(count):
        q = queue_find(s, all[i].queue)
        if get_must_wait(q):
            queue_want(s, q)
            all[left] = all[i]
            left += 1
            continue
        session = session_find(s, all[i].sid)
        session.gets -= 1
        q.gets -= 1
        get_reply(s, all[i].token, all[i].frontend, session, q)
        session_leave(s, session)
    s.gets.size = left * sizeof(Waiting)


cdef inline void gets_drop(ShardState* s, uint64_t sid, uint64_t queue) noexcept nogil:
    """Those of a session that ends (queue is 0) or of a queue that is deleted (sid is 0) wait no more."""
    cdef Waiting* all = <Waiting*> s.gets.data
    cdef size_t count = s.gets.size // sizeof(Waiting), i, left = 0
    cdef LinkReply* reply
    for i in range(count):
        if all[i].sid != sid and all[i].queue != queue:
            all[left] = all[i]
            left += 1
            continue
        session_find(s, all[i].sid).gets -= 1
        queue_find(s, all[i].queue).gets -= 1
        if queue and all[i].token:
            reply = <LinkReply*> effects_begin(&s.effects, all[i].frontend, L_REPLY, s.index, sizeof(LinkReply))
            if reply == NULL:
                s.failed = True
                continue
            reply.token = all[i].token
            reply.code = NO_QUEUE
            reply.size = 0
        if queue:
            session_leave(s, session_find(s, all[i].sid))
    s.gets.size = left * sizeof(Waiting)
