# What a shard knows of its publishers: decided and taken sequences (design section 4, models/resend.py).
#
# Owns: a Publisher for each session that published here. Rules: `highest` is the highest sequence decided, refused ones
# too; `ranges` are the sequences taken at or above `floor`, ascending, apart and never adjacent; a publisher is kept
# until BYE or until it was idle for long enough, and the longest idle goes when there are too many. No Python object,
# no I/O; runs in the worker, without the GIL.
#
#       sequence     1  2  3  4  5  6  7  8  9 10 11
#       taken              t  t     t  t  t                ranges [3,4] [6,8], floor 3, highest 9
#       published again    drop  LATE  drop    LATE decide (5 and 9 were refused here; or 5 went to other shards only)
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memmove

from fastmq.wire.idmap cimport IdMap, idmap_free, idmap_get, idmap_init, idmap_put, idmap_remove
from fastmq.wire.link cimport LinkRange


cdef enum:
    # Of one publisher. For one more the lowest is forgotten: a client whose floor lies that far back is answered `late`
    # where it was taken.
    TAKEN_RANGES_MAX = 65536


cdef struct Publisher:
    uint64_t sid
    uint64_t floor                  # the client has an outcome for everything below
    uint64_t highest                # 0: nothing decided
    int64_t used_ns                 # of its last publish, monotonic; no part of the state: rebuilt ones start anew
    LinkRange* ranges               # taken: ranges[start] to ranges[start + count - 1]
    uint32_t start
    uint32_t count
    uint32_t room
    uint32_t padding
    Publisher* older                # by last publish
    Publisher* newer


cdef struct Publishers:
    IdMap by_sid
    Publisher* oldest
    Publisher* newest


cdef inline void publishers_init(Publishers* all) noexcept nogil:
    idmap_init(&all.by_sid)
    all.oldest = NULL
    all.newest = NULL


cdef inline Publisher* publishers_find(Publishers* all, uint64_t sid) noexcept nogil:
    if all.newest != NULL and all.newest.sid == sid:
        return all.newest
    return <Publisher*> idmap_get(&all.by_sid, sid, 0)


cdef inline void publishers_unlink(Publishers* all, Publisher* p) noexcept nogil:
    if p.older != NULL:
        p.older.newer = p.newer
    else:
        all.oldest = p.newer
    if p.newer != NULL:
        p.newer.older = p.older
    else:
        all.newest = p.older


cdef inline void publishers_link(Publishers* all, Publisher* p) noexcept nogil:
    p.older = all.newest
    p.newer = NULL
    if all.newest != NULL:
        all.newest.newer = p
    else:
        all.oldest = p
    all.newest = p


cdef inline void publishers_forget(Publishers* all, Publisher* p) noexcept nogil:
    idmap_remove(&all.by_sid, p.sid)
    publishers_unlink(all, p)
    free(p.ranges)
    free(p)


cdef inline void publishers_free(Publishers* all) noexcept nogil:
    while all.oldest != NULL:
        publishers_forget(all, all.oldest)
    idmap_free(&all.by_sid)


cdef inline Publisher* publishers_use(Publishers* all, uint64_t sid, int64_t now_ns) noexcept nogil:
    """The publisher of a session, made when it is new, now the newest; NULL when there is no memory."""
    cdef Publisher* p = publishers_find(all, sid)
    if p == NULL:
        p = <Publisher*> calloc(1, sizeof(Publisher))
        if p == NULL:
            return NULL
        if not idmap_put(&all.by_sid, sid, <uint64_t> p):
            free(p)
            return NULL
        p.sid = sid
        publishers_link(all, p)
    elif p != all.newest:
        publishers_unlink(all, p)
        publishers_link(all, p)
    p.used_ns = now_ns
    return p


cdef inline void publisher_trim(Publisher* p, uint64_t floor) noexcept nogil:
    """The client has an outcome for everything below `floor`: what was taken there is needed no more."""
    if floor > p.floor:
        p.floor = floor
    while p.count and p.ranges[p.start].last < p.floor:
        p.start += 1
        p.count -= 1
    if p.count and p.ranges[p.start].first < p.floor:
        p.ranges[p.start].first = p.floor
    if p.count == 0:
        p.start = 0
        if p.room > 64:
            free(p.ranges)
            p.ranges = NULL
            p.room = 0


cdef inline bint publisher_take(Publisher* p, uint64_t first, uint64_t last) noexcept nogil:
    """Sequences above `highest` were taken; False when there is no memory."""
    cdef LinkRange* end
    cdef LinkRange* ranges
    cdef uint32_t room
    p.highest = last
    if p.count:
        end = &p.ranges[p.start + p.count - 1]
        if end.last + 1 == first:
            end.last = last
            return True
        if p.count == TAKEN_RANGES_MAX:
            p.start += 1
            p.count -= 1
    if p.start + p.count == p.room:
        if p.start >= 16 and p.start * 2 >= p.room:     # half is free in front: amortised over as many takes
            memmove(p.ranges, p.ranges + p.start, p.count * sizeof(LinkRange))
            p.start = 0
        else:
            room = p.room * 2 if p.room else 4
            ranges = <LinkRange*> realloc(p.ranges, room * sizeof(LinkRange))
            if ranges == NULL:
                return False
            p.ranges = ranges
            p.room = room
    end = &p.ranges[p.start + p.count]
    end.first = first
    end.last = last
    p.count += 1
    return True


cdef inline bint publisher_has(const Publisher* p, uint64_t sequence, uint64_t* last) noexcept nogil:
    """Whether a sequence that is not above `highest` was taken; `last`: how far this answer holds, at most to
    `highest`."""
    cdef uint32_t low = 0, high = p.count, middle
    cdef const LinkRange* found
    while low < high:                       # the first range that ends at or above the sequence
        middle = (low + high) // 2
        if p.ranges[p.start + middle].last < sequence:
            low = middle + 1
        else:
            high = middle
    if low == p.count:
        last[0] = p.highest
        return False
    found = &p.ranges[p.start + low]
    if found.first <= sequence:
        last[0] = found.last
        return True
    last[0] = found.first - 1
    return False
