# The outstanding messages of a shard, by delivery tag.
#
# Owns: their memory. Rules: tags are 1, 2, 3, never used twice; the ring reaches from `base` to `next_tag` and is at
# most SPAN_FACTOR times as long as what is in it, because its oldest entries move to the map of stragglers: one message
# held for hours keeps no hundred million places. No Python object, no I/O; runs in the worker, without the GIL.
#
#       stragglers {3, 117}      ring   | x | . | x | x | . | x |           x outstanding, . settled
#                                        base                  next_tag
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

from fastmq.model.members cimport Outstanding, prefetch_lines
from fastmq.wire.idmap cimport IdMap, idmap_free, idmap_get, idmap_init, idmap_put, idmap_remove


cdef enum:
    SPAN_FACTOR = 4
    SPAN_FREE = 64                  # so long it may always be
    POOL_BLOCK_COUNT = 256          # messages of one allocation
    POOL_BLOCKS_KEPT = 16           # when more are there, and nothing is outstanding, all but one are given back


cdef struct PoolBlock:
    PoolBlock* next


cdef struct OutstandingTable:
    Outstanding** ring              # by tag & mask; NULL: settled
    uint64_t mask
    uint64_t base                   # the ring's lowest tag
    uint64_t next_tag
    uint64_t in_ring                # entries of the ring that are not NULL
    IdMap stragglers                # tag -> Outstanding*
    uint64_t count
    uint64_t span_free              # SPAN_FREE, smaller in tests
    Outstanding* free               # to be used again, by `next`
    PoolBlock* blocks
    uint32_t block_count
    uint32_t padding


cdef inline void outstanding_init(OutstandingTable* t) noexcept nogil:
    memset(t, 0, sizeof(OutstandingTable))
    t.base = 1
    t.next_tag = 1
    t.span_free = SPAN_FREE
    idmap_init(&t.stragglers)


cdef inline void outstanding_free(OutstandingTable* t) noexcept nogil:
    cdef PoolBlock* block
    while t.blocks != NULL:
        block = t.blocks
        t.blocks = block.next
        free(block)
    free(t.ring)
    idmap_free(&t.stragglers)
    outstanding_init(t)


cdef inline void pool_thread(OutstandingTable* t, PoolBlock* block) noexcept nogil:
    """All entries of the block are free."""
    cdef Outstanding* entries = <Outstanding*> (block + 1)
    cdef uint32_t i
    for i in range(POOL_BLOCK_COUNT - 1):
        entries[i].next = &entries[i + 1]
    entries[POOL_BLOCK_COUNT - 1].next = t.free
    t.free = entries


cdef inline bint pool_grow(OutstandingTable* t) noexcept nogil:
    cdef PoolBlock* block = <PoolBlock*> malloc(sizeof(PoolBlock) + POOL_BLOCK_COUNT * sizeof(Outstanding))
    if block == NULL:
        return False
    block.next = t.blocks
    t.blocks = block
    t.block_count += 1
    pool_thread(t, block)
    return True


cdef inline void pool_reset(OutstandingTable* t) noexcept nogil:
    """Nothing is outstanding: keep one block."""
    cdef PoolBlock* block
    while t.blocks.next != NULL:
        block = t.blocks
        t.blocks = block.next
        free(block)
    t.block_count = 1
    t.free = NULL
    pool_thread(t, t.blocks)


cdef inline bint outstanding_resize(OutstandingTable* t, uint64_t room) noexcept nogil:
    cdef Outstanding** ring = <Outstanding**> calloc(room, sizeof(Outstanding*))
    cdef uint64_t tag
    if ring == NULL:
        return False
    if t.ring != NULL:
        for tag in range(t.base, t.next_tag):
            ring[tag & (room - 1)] = t.ring[tag & t.mask]
        free(t.ring)
    t.ring = ring
    t.mask = room - 1
    return True


cdef inline bint outstanding_fit(OutstandingTable* t) noexcept nogil:
    """Make the ring fit for one tag more: short enough, and with a place; False when there is no memory."""
    cdef uint64_t span = t.next_tag - t.base + 1
    cdef Outstanding* e
    while span > t.span_free and span > SPAN_FACTOR * (t.in_ring + 1):
        e = t.ring[t.base & t.mask]
        if e != NULL:
            if not idmap_put(&t.stragglers, t.base, <uint64_t> e):
                return False
            t.ring[t.base & t.mask] = NULL
            t.in_ring -= 1
        t.base += 1
        span -= 1
    if t.ring == NULL:
        return outstanding_resize(t, 64)
    if span > t.mask + 1:
        return outstanding_resize(t, (t.mask + 1) * 2)
    if t.mask >= 1024 and span * 16 < t.mask:
        outstanding_resize(t, (t.mask + 1) // 4)        # without memory it stays as it is
    return True


cdef inline Outstanding* outstanding_add(OutstandingTable* t) noexcept nogil:
    """A new entry under the next tag, its other fields not set; NULL, and nothing added, when there is no memory."""
    cdef Outstanding* e
    if t.next_tag - t.base + 1 > t.span_free or t.ring == NULL or t.next_tag - t.base > t.mask:
        if not outstanding_fit(t):
            return NULL
    if t.free == NULL and not pool_grow(t):
        return NULL
    e = t.free
    t.free = e.next
    if t.free != NULL:
        prefetch_lines(t.free, sizeof(Outstanding))
    e.tag = t.next_tag
    t.ring[e.tag & t.mask] = e
    t.next_tag += 1
    t.in_ring += 1
    t.count += 1
    return e


cdef inline Outstanding* outstanding_find(OutstandingTable* t, uint64_t tag) noexcept nogil:
    """The entry of a tag; NULL when it is not outstanding."""
    if tag >= t.base:
        return t.ring[tag & t.mask] if tag < t.next_tag else NULL
    return <Outstanding*> idmap_get(&t.stragglers, tag, 0)


cdef inline void outstanding_remove(OutstandingTable* t, Outstanding* e) noexcept nogil:
    """Settled: the entry is void."""
    cdef uint64_t tag = e.tag
    if tag >= t.base:
        t.ring[tag & t.mask] = NULL
        t.in_ring -= 1
        if tag == t.base:
            t.base += 1
            while t.base < t.next_tag and t.ring[t.base & t.mask] == NULL:
                t.base += 1
    else:
        idmap_remove(&t.stragglers, tag)
    e.next = t.free
    t.free = e
    t.count -= 1
    if t.count == 0 and t.block_count > POOL_BLOCKS_KEPT:
        pool_reset(t)
