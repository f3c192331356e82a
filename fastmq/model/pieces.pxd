# Which messages of a queue lie in extents, as ranges of sequences, and what a shard wants done with extents.
#
# Owns: the ranges of each queue, the shard's table of extents, the payload that is being filled. Rules: ranges are sorted and
# never overlap; each holds only messages that live, so one that is settled shortens its range, or splits it; a message whose
# range is not cold is in memory too; an extent goes with its last message, and then the worker is told. Most changes are near
# an end of the array, and the shorter side moves. No Python object, no I/O; runs in the worker, without the GIL.
#
#       pieces    [1, 2000] e1 cold | [2001, 4000] e2 cold | [4002, 4002] e3 cold ...         ring: 4100 and up
#       settled   2 of [1, 3] e0:  [1, 1] e0 | [3, 3] e0
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memmove, memset

from fastmq.wire.buffer cimport Buffer, buffer_add, buffer_clear, buffer_free, buffer_init
from fastmq.wire.idmap cimport IdMap, idmap_free, idmap_get, idmap_init, idmap_put, idmap_remove


cdef enum:
    EXTENT_SIZE = 260096            # bytes of a payload: with its head and sum it fits into a slot of 256 KiB
    EXTENT_COUNTER_BITS = 48        # of an extent's number; above them the shard's


cdef extern from *:
    """
    #define SEQ_NONE UINT64_MAX
    """
    const uint64_t SEQ_NONE         # no message is cold


cdef struct Extent:
    uint64_t number
    uint64_t live                   # messages in it, of all queues
    uint32_t reading                # it has been asked for, and has not come
    uint32_t padding


cdef struct Piece:                  # messages of one queue that lie in one extent
    uint64_t first
    uint64_t last
    Extent* extent
    uint32_t cold                   # they lie nowhere else
    uint32_t padding


cdef struct Pieces:                 # of one queue: items[start] to items[start + count - 1]
    uint64_t cold_count             # messages that are cold
    uint64_t cold_seq               # of the first of them; SEQ_NONE: there is none
    Piece* items
    uint32_t start
    uint32_t count
    uint32_t room
    uint32_t padding
    Extent* wanted                  # asked for, because of this queue; NULL: none


cdef struct ExtentWrite:            # a wish of the shard: this is to be written
    uint64_t number
    Buffer payload


cdef struct Extents:                # of one shard
    IdMap by_number                 # number -> Extent*
    uint64_t last                   # the highest number ever used
    uint64_t size_max               # EXTENT_SIZE, smaller in tests
    Extent* filling                 # whose payload grows; NULL: none
    Buffer payload                  # of that one
    Buffer writes                   # ExtentWrite[]; who takes one takes its payload
    Buffer reads                    # uint64_t[]: numbers to be read; a write of the same turn comes first
    Buffer frees                    # uint64_t[]: numbers not needed any more
    bint failed                     # no memory


# ---- extents

cdef inline void extents_init(Extents* all, uint32_t shard) noexcept nogil:
    memset(all, 0, sizeof(Extents))
    idmap_init(&all.by_number)
    all.last = <uint64_t> shard << EXTENT_COUNTER_BITS
    all.size_max = EXTENT_SIZE
    buffer_init(&all.payload)
    buffer_init(&all.writes)
    buffer_init(&all.reads)
    buffer_init(&all.frees)


cdef inline void extents_free(Extents* all) noexcept nogil:
    cdef size_t i
    if all.by_number.entries != NULL:
        for i in range(all.by_number.mask + 1):
            if all.by_number.entries[i].key:
                free(<Extent*> all.by_number.entries[i].value)
    idmap_free(&all.by_number)
    for i in range(all.writes.size // sizeof(ExtentWrite)):
        buffer_free(&(<ExtentWrite*> all.writes.data)[i].payload)
    buffer_free(&all.payload)
    buffer_free(&all.writes)
    buffer_free(&all.reads)
    buffer_free(&all.frees)


cdef inline Extent* extent_find(Extents* all, uint64_t number) noexcept nogil:
    return <Extent*> idmap_get(&all.by_number, number, 0)


cdef inline Extent* extent_make(Extents* all, uint64_t number) noexcept nogil:
    """A new extent; NULL when there is no memory."""
    cdef Extent* extent = <Extent*> malloc(sizeof(Extent))
    if extent == NULL or not idmap_put(&all.by_number, number, <uint64_t> extent):
        free(extent)
        all.failed = True
        return NULL
    extent.number = number
    extent.live = 0
    extent.reading = 0
    extent.padding = 0
    if number > all.last:
        all.last = number
    return extent


cdef inline void extent_close(Extents* all) noexcept nogil:
    """The payload that is being filled is to be written, if anything in it still lives."""
    cdef ExtentWrite write
    if all.filling == NULL:
        return
    if all.filling.live == 0:
        extent_forget(all, all.filling)
        all.filling = NULL
        buffer_clear(&all.payload)
        return
    write.number = all.filling.number
    write.payload = all.payload
    buffer_add(&all.writes, &write, sizeof(write))
    if all.writes.failed:
        all.failed = True
        return
    buffer_init(&all.payload)
    all.filling = NULL


cdef inline void extent_leave(Extents* all, Extent* extent, uint64_t count) noexcept nogil:
    """So many messages less live in the extent. One that is being filled stays until it is closed, though it be empty."""
    extent.live -= count
    if extent.live or extent == all.filling:
        return
    buffer_add(&all.frees, &extent.number, sizeof(uint64_t))
    all.failed |= all.frees.failed
    extent_forget(all, extent)


cdef inline void extent_forget(Extents* all, Extent* extent) noexcept nogil:
    idmap_remove(&all.by_number, extent.number)
    free(extent)


# ---- the pieces of a queue

cdef inline void pieces_init(Pieces* p) noexcept nogil:
    memset(p, 0, sizeof(Pieces))
    p.cold_seq = SEQ_NONE


cdef inline Piece* piece_at(const Pieces* p, uint32_t i) noexcept nogil:
    return &p.items[p.start + i]


cdef inline uint32_t pieces_index(const Pieces* p, uint64_t seq) noexcept nogil:
    """Index of the first piece that does not end before `seq`."""
    cdef uint32_t low = 0, high = p.count, middle
    if high and piece_at(p, high - 1).last < seq:           # new pieces come behind all others
        return high
    while low < high:
        middle = (low + high) // 2
        if piece_at(p, middle).last < seq:
            low = middle + 1
        else:
            high = middle
    return low


cdef inline Piece* pieces_find(const Pieces* p, uint64_t seq) noexcept nogil:
    """The piece in which the message lies; NULL: none."""
    cdef uint32_t i = pieces_index(p, seq)
    return piece_at(p, i) if i < p.count and piece_at(p, i).first <= seq else NULL


cdef inline void pieces_look(Pieces* p, uint32_t i) noexcept nogil:
    """Find the first cold message, from this piece on."""
    p.cold_seq = SEQ_NONE
    while i < p.count:
        if piece_at(p, i).cold:
            p.cold_seq = piece_at(p, i).first
            return
        i += 1


cdef inline bint pieces_arrange(Pieces* p) noexcept nogil:
    """Make room at both ends; False, and nothing changed, when there is no memory. What is moved is paid for by as many
    puts as there is room then."""
    cdef uint32_t gap = p.room - p.count, room
    cdef Piece* items
    if gap >= 2 and gap * 4 >= p.room:
        memmove(p.items + gap // 2, p.items + p.start, p.count * sizeof(Piece))
        p.start = gap // 2
        return True
    room = p.room * 2 if p.room else 4
    items = <Piece*> malloc(room * sizeof(Piece))
    if items == NULL:
        return False
    gap = room - p.count
    if p.count:
        memmove(items + gap // 2, p.items + p.start, p.count * sizeof(Piece))
    free(p.items)
    p.items = items
    p.room = room
    p.start = gap // 2
    return True


cdef inline bint pieces_insert(Pieces* p, uint32_t i, const Piece* piece) noexcept nogil:
    """Put a piece before the one at index i; False, and nothing changed, when there is no memory."""
    cdef bint front = i * 2 < p.count
    cdef uint32_t free_places = p.start if front else p.room - p.count - p.start
    if free_places == 0 and not pieces_arrange(p):
        return False
    if front:
        memmove(p.items + p.start - 1, p.items + p.start, i * sizeof(Piece))
        p.start -= 1
    else:
        memmove(p.items + p.start + i + 1, p.items + p.start + i, (p.count - i) * sizeof(Piece))
    p.count += 1
    piece_at(p, i)[0] = piece[0]
    return True


cdef inline void pieces_remove(Pieces* p, uint32_t i) noexcept nogil:
    if i * 2 < p.count:
        memmove(p.items + p.start + 1, p.items + p.start, i * sizeof(Piece))
        p.start += 1
    else:
        memmove(p.items + p.start + i, p.items + p.start + i + 1, (p.count - i - 1) * sizeof(Piece))
    p.count -= 1
    if p.count == 0:
        free(p.items)
        p.items = NULL
        p.start = 0
        p.room = 0


cdef inline bint pieces_put(Pieces* p, Extent* extent, uint64_t first, uint64_t last, bint cold) noexcept nogil:
    """These messages, which lie in no piece, lie in the extent now; False, and nothing changed, without memory."""
    cdef uint32_t i = pieces_index(p, first)
    cdef Piece* before = piece_at(p, i - 1) if i else NULL
    cdef Piece piece
    if before != NULL and before.last + 1 == first and before.extent == extent and before.cold == cold:
        before.last = last
    else:
        piece.first = first
        piece.last = last
        piece.extent = extent
        piece.cold = cold
        piece.padding = 0
        if not pieces_insert(p, i, &piece):
            return False
    extent.live += last - first + 1
    if cold:
        p.cold_count += last - first + 1
        if first < p.cold_seq:
            p.cold_seq = first
    return True


cdef inline bint pieces_drop(Extents* all, Pieces* p, uint64_t first, uint64_t last) noexcept nogil:
    """Those of these messages that lie in pieces are no more; False when there is no memory."""
    cdef uint32_t i = pieces_index(p, first)
    cdef uint64_t low, high
    cdef Piece rest
    cdef Piece* piece
    cdef Extent* extent
    cdef bint look = False
    while i < p.count and piece_at(p, i).first <= last:
        piece = piece_at(p, i)
        extent = piece.extent
        low = piece.first if piece.first > first else first
        high = piece.last if piece.last < last else last
        if piece.cold:
            p.cold_count -= high - low + 1
            look |= low <= p.cold_seq <= high
        if low == piece.first and high == piece.last:
            pieces_remove(p, i)
        elif low == piece.first:
            piece.first = high + 1
        elif high == piece.last:
            piece.last = low - 1
            i += 1
        else:
            rest = piece[0]
            rest.first = high + 1
            piece.last = low - 1
            i += 1
            if not pieces_insert(p, i, &rest):
                return False
        extent_leave(all, extent, high - low + 1)
    if look:
        pieces_look(p, pieces_index(p, first))
    return True


cdef inline uint64_t pieces_warm(Pieces* p, const Extent* extent, uint64_t first, uint64_t last) noexcept nogil:
    """The pieces in this extent that hold some of these messages are in memory again; how many messages that are."""
    cdef uint64_t warmed = 0
    cdef uint32_t i = pieces_index(p, first), at = i
    cdef bint look = False
    cdef Piece* piece
    while i < p.count and piece_at(p, i).first <= last:
        piece = piece_at(p, i)
        if piece.cold and piece.extent == extent:
            piece.cold = 0
            warmed += piece.last - piece.first + 1
            look |= piece.first == p.cold_seq
        i += 1
    p.cold_count -= warmed
    if look:
        pieces_look(p, at)
    return warmed


cdef inline bint pieces_chill(Pieces* p, uint64_t first, uint64_t last) noexcept nogil:
    """These messages, all of one piece that is not cold, are in memory no more; False when there is no memory."""
    cdef uint32_t i = pieces_index(p, first)
    cdef Piece* piece = piece_at(p, i)
    cdef Piece rest = piece[0]
    if piece.first < first:
        piece.last = first - 1
        rest.first = first
        i += 1
        if not pieces_insert(p, i, &rest):
            return False
    piece = piece_at(p, i)
    if piece.last > last:
        piece.last = last
        rest.first = last + 1
        if not pieces_insert(p, i + 1, &rest):
            return False
    piece_at(p, i).cold = 1
    p.cold_count += last - first + 1
    if first < p.cold_seq:
        p.cold_seq = first
    return True


cdef inline bint pieces_split(Pieces* p, Pieces* out) noexcept nogil:
    """Move what is cold into `out`, which is new; False, and nothing changed, when there is no memory."""
    cdef uint32_t i, left = 0
    pieces_init(out)
    if p.cold_count == 0:
        return True
    out.items = <Piece*> malloc(p.count * sizeof(Piece))
    if out.items == NULL:
        return False
    out.room = p.count
    for i in range(p.count):
        if piece_at(p, i).cold:
            out.items[out.count] = piece_at(p, i)[0]
            out.count += 1
        else:
            piece_at(p, left)[0] = piece_at(p, i)[0]
            left += 1
    p.count = left
    p.cold_count = 0
    p.cold_seq = SEQ_NONE
    p.wanted = NULL
    if left == 0:
        pieces_free(p)
    return True


cdef inline void pieces_free(Pieces* p) noexcept nogil:
    """Give the array back; the extents are not told."""
    free(p.items)
    pieces_init(p)
