# Included by _core.pyx: the bodies of Ring, which is drawn and declared in _core.pxd.

cdef struct BlockHead:              # before the slots of each block
    Slot* slots                     # so that the small block is its own directory
    uint64_t removed                # its tombstones


cdef inline BlockHead* head_of(Slot* block) noexcept nogil:
    return (<BlockHead*>block) - 1


cdef Slot* block_new(uint64_t slots) noexcept nogil:
    cdef BlockHead* head = <BlockHead*>resize_memory(NULL, sizeof(BlockHead) + slots * sizeof(Slot))
    if head == NULL:
        return NULL
    head.slots = <Slot*>(head + 1)
    head.removed = 0
    return head.slots


cdef inline void block_free(Slot* block) noexcept nogil:
    if block != NULL:
        free(head_of(block))


cdef inline bint ring_is_spread(const Ring* ring) noexcept nogil:
    """Whether its blocks are of full size."""
    return ring.small_slots == UINT64_MAX


cdef inline Slot** ring_block(const Ring* ring, uint64_t number) noexcept nogil:
    """Where the directory has the block of this place."""
    return &ring.blocks[(number >> ring.shift) & ring.directory_mask]


cdef inline uint64_t slots_first(const Ring* ring) noexcept nogil:
    cdef uint64_t half = (<uint64_t>1 << ring.block_shift) >> 1
    return RING_SLOTS_FIRST if half > RING_SLOTS_FIRST else half


cdef void ring_init_sized(Ring* ring, uint8_t block_shift) noexcept nogil:
    memset(ring, 0, sizeof(Ring))
    ring.first = ring.end = <uint64_t>1 << NUMBER_FIRST_SHIFT
    ring.shrink_at = UINT64_MAX
    ring.block_shift = block_shift


cdef void ring_init(Ring* ring) noexcept nogil:
    ring_init_sized(ring, RING_BLOCK_SHIFT)


cdef void ring_free_blocks(Ring* ring) noexcept nogil:
    cdef uint64_t i
    if ring.blocks == NULL:
        return
    if ring_is_spread(ring):
        for i in range(ring.directory_mask + 1):
            block_free(ring.blocks[i])
        free(ring.blocks)
    else:
        block_free(ring.blocks[0])
    block_free(ring.spare)


cdef void ring_free(Ring* ring) noexcept nogil:
    cdef uint8_t block_shift = ring.block_shift
    ring_free_blocks(ring)
    ring_init_sized(ring, block_shift)


cdef size_t ring_memory_size(const Ring* ring) noexcept nogil:
    cdef size_t size = 0, block = sizeof(BlockHead) + (sizeof(Slot) << ring.shift)
    cdef uint64_t i
    if ring.blocks == NULL:
        return 0
    if not ring_is_spread(ring):
        return block
    for i in range(ring.directory_mask + 1):
        size += sizeof(Slot*) + (block if ring.blocks[i] != NULL else 0)
    return size + (block if ring.spare != NULL else 0)


cdef int ring_resettle(Ring* ring, uint8_t shift) noexcept nogil:
    """Move all places to a small block of 1 << shift slots, or to blocks of full size if that is block_shift. They fit into it, or
    into two of full size. This alone moves entries, less than a block's. -1: no memory, nothing changed."""
    cdef Ring fresh
    cdef Slot* block
    cdef uint64_t n
    ring_init_sized(&fresh, ring.block_shift)
    fresh.first, fresh.end, fresh.removed = ring.first, ring.end, ring.removed
    fresh.shift = shift
    fresh.slot_mask = (<uint64_t>1 << shift) - 1
    if shift == ring.block_shift:
        fresh.blocks = <Slot**>resize_memory(NULL, 4 * sizeof(Slot*))
        if fresh.blocks == NULL:
            return -1
        memset(fresh.blocks, 0, 4 * sizeof(Slot*))
        fresh.directory_mask = 3
        fresh.small_slots = UINT64_MAX
        fresh.shrink_at = (<uint64_t>1 << shift) >> 4
    else:
        block = block_new(<uint64_t>1 << shift)
        if block == NULL:
            return -1
        fresh.blocks = &head_of(block).slots
        fresh.small_slots = <uint64_t>1 << shift
        fresh.shrink_at = fresh.small_slots >> 3 if fresh.small_slots > slots_first(ring) else UINT64_MAX
    n = ring.first
    while n != ring.end:
        if ring_block(&fresh, n)[0] == NULL:
            ring_block(&fresh, n)[0] = block_new(fresh.slot_mask + 1)
            if ring_block(&fresh, n)[0] == NULL:
                ring_free_blocks(&fresh)
                return -1
        ring_place(&fresh, n)[0] = ring_place(ring, n)[0]
        if ring_place(&fresh, n).a == RING_REMOVED:
            head_of(ring_block(&fresh, n)[0]).removed += 1
        n += 1
    ring_free_blocks(ring)
    ring[0] = fresh
    return 0


cdef void ring_shrink(Ring* ring) noexcept nogil:
    """Go to a small block of at least twice the span. Without memory for it the ring stays as it is."""
    cdef uint64_t span = ring_span(ring)
    cdef uint8_t shift = 0
    while (<uint64_t>1 << shift) < slots_first(ring) or (<uint64_t>1 << shift) < 2 * span:
        shift += 1
    if shift < ring.shift:
        ring_resettle(ring, shift)


cdef int ring_widen_directory(Ring* ring) noexcept nogil:
    """Double the directory; only block pointers move."""
    cdef uint64_t mask = ring.directory_mask * 2 + 1
    cdef uint64_t block = ring.first >> ring.shift
    cdef Slot** blocks = <Slot**>resize_memory(NULL, (mask + 1) * sizeof(Slot*))
    if blocks == NULL:
        return -1
    memset(blocks, 0, (mask + 1) * sizeof(Slot*))
    while block <= (ring.end - 1) >> ring.shift:
        blocks[block & mask] = ring.blocks[block & ring.directory_mask]
        block += 1
    free(ring.blocks)
    ring.blocks = blocks
    ring.directory_mask = mask
    return 0


cdef int ring_room(Ring* ring, uint64_t number, uint64_t first, uint64_t last) noexcept nogil:
    """Make sure that there is a slot for place `number`, when the ring reaches from `first` to `last` with it."""
    cdef uint8_t shift = 0
    if ring.blocks == NULL:
        while (<uint64_t>1 << shift) < slots_first(ring):
            shift += 1
        if ring_resettle(ring, shift) < 0:
            return -1
    if ring_span(ring) == ring.small_slots and ring_resettle(ring, ring.shift + 1) < 0:
        return -1
    if not ring_is_spread(ring):
        return 0
    if (last >> ring.shift) - (first >> ring.shift) > ring.directory_mask and ring_widen_directory(ring) < 0:
        return -1
    if ring_block(ring, number)[0] == NULL:
        if ring.spare != NULL:
            ring_block(ring, number)[0] = ring.spare
            ring.spare = NULL
        else:
            ring_block(ring, number)[0] = block_new(ring.slot_mask + 1)
            if ring_block(ring, number)[0] == NULL:
                return -1
    return 0


cdef int ring_room_back(Ring* ring) noexcept nogil:
    return ring_room(ring, ring.end, ring.first, ring.end)


cdef int ring_room_front(Ring* ring) noexcept nogil:
    return ring_room(ring, ring.first - 1, ring.first - 1, ring.end - 1)


cdef void ring_give_block(Ring* ring, uint64_t number) noexcept nogil:
    """Give back the block of this place, which holds no entry: it becomes the spare one, or memory."""
    cdef Slot** block = ring_block(ring, number)
    if not ring_is_spread(ring) or block[0] == NULL:
        return
    if ring.spare == NULL:
        head_of(block[0]).removed = 0
        ring.spare = block[0]
    else:
        block_free(block[0])
    block[0] = NULL


cdef void ring_trim_front(Ring* ring) noexcept nogil:
    """Pass over the tombstones before the first entry: those of two blocks one by one, whole blocks of them at once."""
    cdef Slot** block
    while ring.removed != 0 and ring.end != ring.first:
        block = ring_block(ring, ring.first)
        if block[0] == NULL:
            ring.first += ring.slot_mask + 1
            ring.removed -= ring.slot_mask + 1
            continue
        if block[0][ring.first & ring.slot_mask].a != RING_REMOVED:
            return
        head_of(block[0]).removed -= 1
        ring.removed -= 1
        ring.first += 1
        if (ring.first & ring.slot_mask) == 0:
            ring_give_block(ring, ring.first - 1)


cdef void ring_trim_back(Ring* ring) noexcept nogil:
    """The same behind the last entry."""
    cdef Slot** block
    while ring.removed != 0 and ring.end != ring.first:
        block = ring_block(ring, ring.end - 1)
        if block[0] == NULL:
            ring.end -= ring.slot_mask + 1
            ring.removed -= ring.slot_mask + 1
            continue
        if block[0][(ring.end - 1) & ring.slot_mask].a != RING_REMOVED:
            return
        head_of(block[0]).removed -= 1
        ring.removed -= 1
        ring.end -= 1
        if (ring.end & ring.slot_mask) == 0:
            ring_give_block(ring, ring.end)


cdef void ring_settle_front(Ring* ring) noexcept nogil:
    """After a pop at the front: give back what is empty. Only then, because at any other moment the block before the first place
    may be, in the circle of the directory, the last one."""
    if (ring.first & ring.slot_mask) == 0:
        ring_give_block(ring, ring.first - 1)
    ring_trim_front(ring)
    if ring_span(ring) <= ring.shrink_at and ring.shrink_at != UINT64_MAX:
        ring_shrink(ring)


cdef void ring_settle_back(Ring* ring) noexcept nogil:
    if (ring.end & ring.slot_mask) == 0:
        ring_give_block(ring, ring.end)
    ring_trim_back(ring)
    if ring_span(ring) <= ring.shrink_at and ring.shrink_at != UINT64_MAX:
        ring_shrink(ring)


cdef Slot* ring_at_unless_removed(Ring* ring, uint64_t number) noexcept nogil:
    cdef Slot* block = ring_block(ring, number)[0]
    if block == NULL or block[number & ring.slot_mask].a == RING_REMOVED:
        return NULL
    return &block[number & ring.slot_mask]


cdef bint ring_remove(Ring* ring, size_t i) noexcept nogil:
    cdef Slot* slot = ring_at(ring, i)
    cdef uint64_t number = ring.first + i
    cdef BlockHead* head
    if slot == NULL:
        return False
    slot.a = RING_REMOVED
    ring.removed += 1
    head = head_of(ring_block(ring, number)[0])
    head.removed += 1
    if head.removed == ring.slot_mask + 1:
        ring_give_block(ring, number)
    if number == ring.first:
        ring_trim_front(ring)
    elif number == ring.end - 1:
        ring_trim_back(ring)
    else:
        return True
    if ring_span(ring) <= ring.shrink_at and ring.shrink_at != UINT64_MAX:
        ring_shrink(ring)
    return True
