# Settling: what a session says about the messages outstanding in it.
#
# Rules: exceptions first, then ranges, then `up_to`, so that an exception below `up_to` is heeded; only what is
# outstanding in that session under this shard's epoch is touched, all else is counted in stale_settles; the work is
# bounded by the message and by what is outstanding, whatever numbers the ranges hold. Runs in the worker, without the
# GIL.
from libc.stdint cimport uint32_t, uint64_t

from fastmq.model.members cimport Consumer, Outstanding, Queue, Session, prefetch, prefetch_lines
from fastmq.model.outstanding cimport outstanding_find
from fastmq.model.shard_records cimport C_SETTLE, LEVEL_ALL, ChangeSettle, record_add
from fastmq.model.state cimport ACK, ShardState, message_settle, session_find, session_leave
from fastmq.model.store cimport store_chunk
from fastmq.wire.link cimport LinkRange, LinkSettle, LinkSettleException
from fastmq.wire.verbs cimport NACK, REJECT, RELEASE


cdef enum:
    STALE_COUNT_MAX = 65536         # tags that one range adds to the counter at most
    PREFETCH_COUNT = 32             # messages whose memory is asked for before they are settled
    LOOKUP_SPAN_MAX = 64            # so short a range is looked up tag by tag where its first is not outstanding


cdef struct Search:                 # where the last search through a session's list ended, and how far it may go on
    uint64_t passed                 # everything below this tag has been passed over
    uint64_t after                  # the last tag passed over that is still outstanding; 0: none
    uint64_t left                   # steps


cdef inline Outstanding* settle_first(ShardState* s, Session* session, uint64_t first, uint64_t last,
                                      Search* search) noexcept nogil:
    """The session's lowest outstanding message from `first` to `last`, or NULL.

    A range of an honest client begins with one that is outstanding. Others are searched for, through the list from
    where the last search ended, so that ascending ranges cost one walk together; those that go back and forth are given
    up when `left` is used up."""
    cdef Outstanding* e = outstanding_find(&s.outstanding, first)
    cdef uint64_t tag
    if e != NULL and e.consumer.session == session:
        return e
    if last - first < LOOKUP_SPAN_MAX:
        for tag in range(first + 1, last + 1):
            e = outstanding_find(&s.outstanding, tag)
            if e != NULL and e.consumer.session == session:
                return e
        return NULL
    e = NULL
    if search.after and search.passed <= first:
        e = outstanding_find(&s.outstanding, search.after)
        if e != NULL and e.consumer.session != session:
            e = NULL
    if e == NULL:
        e = session.first
        search.after = 0
    while e != NULL and e.tag < first:
        if search.left == 0:
            return NULL
        search.left -= 1
        search.after = e.tag
        e = e.next
    search.passed = first
    return e if e != NULL and e.tag <= last else NULL


cdef inline uint64_t settle_range(ShardState* s, Session* session, uint64_t first, uint64_t last, int action,
                                  Search* search) noexcept nogil:
    """Settle what is outstanding in the session from `first` to `last`; how many that were."""
    cdef uint64_t settled = 0
    cdef Outstanding* e
    cdef Outstanding* following
    cdef ChangeSettle change
    if first == 0:
        first = 1
    if last >= s.outstanding.next_tag:
        last = s.outstanding.next_tag - 1
    if first > last or session.first == NULL:
        return 0
    e = settle_first(s, session, first, last, search)
    while e != NULL and e.tag <= last:
        following = e.next
        message_settle(s, e, action)
        settled += 1
        e = following
    if settled and s.level == LEVEL_ALL:
        change.sid = session.sid
        change.first = first
        change.last = last
        change.action = <uint32_t> action
        change.padding = 0
        record_add(&s.records, C_SETTLE, True, &change, sizeof(change))
    s.settled += settled
    return settled


cdef inline uint32_t settle_prefetch(ShardState* s, const LinkRange* ranges, uint32_t count) noexcept nogil:
    """Ask for the memory of the first messages of these ranges; for how many of the ranges that was."""
    cdef Outstanding* found[PREFETCH_COUNT]
    cdef Outstanding* e
    cdef uint32_t reached = 0, n = 0, i
    cdef uint64_t tag
    while reached < count and n < PREFETCH_COUNT:
        tag = ranges[reached].first
        while tag <= ranges[reached].last and s.outstanding.base <= tag < s.outstanding.next_tag and n < PREFETCH_COUNT:
            e = outstanding_find(&s.outstanding, tag)
            if e != NULL:
                prefetch_lines(e, sizeof(Outstanding))
                found[n] = e
                n += 1
            tag += 1
        reached += 1
    for i in range(n):
        e = found[i]
        prefetch_lines(e.consumer, sizeof(Consumer))
        prefetch_lines(e.queue, sizeof(Queue))
        prefetch(store_chunk(&s.store, &e.slot))
        if e.queue_next != NULL:
            prefetch(&e.queue_next.queue_previous)
    return reached


cdef inline void settle_stale(ShardState* s, uint64_t first, uint64_t last, uint64_t settled) noexcept nogil:
    """Count the tags from `first` to `last` that were not outstanding."""
    cdef uint64_t stale = 1
    if first <= last:
        stale = last - first
        stale = stale + 1 - settled if stale < STALE_COUNT_MAX else STALE_COUNT_MAX
    s.stale_settles += stale


cdef inline void settle(ShardState* s, const LinkSettle* head, const LinkRange* ranges,
                        const LinkSettleException* exceptions) noexcept nogil:
    """One SETTLE of a session; both lists have been found to be complete."""
    cdef Session* session = session_find(s, head.sid)
    cdef bint known = session != NULL and head.epoch == s.epoch
    cdef const LinkSettleException* e
    cdef uint64_t settled = 0
    cdef uint32_t i, ready = 0
    cdef Search search
    search.passed = 0
    search.after = 0
    search.left = 0
    if known:
        search.left = 4 * <uint64_t> session.outstanding + 1024
    for i in range(head.exceptions):
        settled = 0
        e = &exceptions[i]
        if known and (e.action == NACK or e.action == REJECT or e.action == RELEASE):
            settled = settle_range(s, session, e.first, e.last, <int> e.action, &search)
        settle_stale(s, e.first, e.last, settled)
    search.passed = 0
    search.after = 0
    for i in range(head.ranges):
        settled = 0
        if known:
            if i == ready and head.ranges > 1:
                ready += settle_prefetch(s, ranges + i, head.ranges - i)
            settled = settle_range(s, session, ranges[i].first, ranges[i].last, ACK, &search)
        settle_stale(s, ranges[i].first, ranges[i].last, settled)
    if head.up_to:
        if not known:
            s.stale_settles += 1
        elif session.first != NULL and session.first.tag <= head.up_to:
            search.left = 1
            settle_range(s, session, session.first.tag, head.up_to, ACK, &search)
    if session != NULL:
        session_leave(s, session)
