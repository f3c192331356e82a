# Included by _core.pyx: what a trie is made of, cells of 32 bytes by number and a hash table. Neither ever stands still for
# longer than a block of 4,096 takes. Both are declared in _core.pxd.

cdef inline uint64_t table_hash(const Table* table, uint64_t key) noexcept nogil:
    return fold((key & table.hash_masks[key >> 63]) ^ table.seed, TRIE_FOLD_1)


cdef inline Segment* segment_in(uint64_t named) noexcept nogil:
    """The segment that an item of the directory names."""
    return <Segment*>(named & ~<uint64_t>(LINE_SIZE - 1))


cdef inline uint32_t mask_in(uint64_t named) noexcept nogil:
    """Its slots - 1, for which its head would have to be loaded otherwise."""
    return (<uint32_t>1 << (named & (LINE_SIZE - 1))) - 1


cdef inline Segment* segment_at(const Table* table, uint64_t i) noexcept nogil:
    return segment_in(table.directory[i])


cdef inline uint64_t place_of(const Table* table, uint64_t hashed) noexcept nogil:
    """The place in the directory for a hash."""
    return (hashed >> 32) >> (32 - table.depth)


cdef inline Segment* segment_of(const Table* table, uint64_t hashed) noexcept nogil:
    return segment_at(table, place_of(table, hashed))


cdef inline Entry* entries_of(Segment* segment) noexcept nogil:
    return <Entry*>(segment + 1)


cdef inline uint32_t home_of(const Segment* segment, uint64_t hashed) noexcept nogil:
    """The slot where a search begins, the first of a cache line."""
    return <uint32_t>hashed & segment.mask & LINE_MASK


cdef inline bint entry_taken(const Entry* entry) noexcept nogil:
    return (entry.key | entry.value) != 0


cdef Segment* segment_new(uint32_t slots, uint32_t depth) noexcept nogil:
    cdef Segment* segment = <Segment*>aligned_memory(sizeof(Segment) + slots * sizeof(Entry))
    if segment == NULL:
        return NULL
    segment.depth, segment.count, segment.mask = depth, 0, slots - 1
    memset(entries_of(segment), 0, slots * sizeof(Entry))
    return segment


cdef void segment_put(Segment* segment, uint64_t hashed, Entry entry) noexcept nogil:
    """Put an entry for which there is room."""
    cdef Entry* entries = entries_of(segment)
    cdef uint32_t i = home_of(segment, hashed)
    while entry_taken(&entries[i]):
        i = (i + 1) & segment.mask
    entries[i] = entry
    segment.count += 1


cdef Entry* table_find(const Table* table, uint64_t key, Entry* after) noexcept nogil:
    """The next entry of this key behind `after` (NULL: the first), or NULL. Valid until the next put or drop."""
    cdef uint64_t hashed, named
    cdef Entry* entries
    cdef uint32_t i, mask
    if table.directory == NULL:
        return NULL
    hashed = table_hash(table, key)
    named = table.directory[place_of(table, hashed)]
    mask = mask_in(named)
    entries = entries_of(segment_in(named))
    i = <uint32_t>hashed & mask & LINE_MASK if after == NULL else (<uint32_t>(after - entries) + 1) & mask
    while entry_taken(&entries[i]):
        if (entries[i].key & table.key_mask) == key:
            return &entries[i]
        i = (i + 1) & mask
    return NULL


cdef inline Entry* table_fetch(const Table* table, uint64_t key) noexcept nogil:
    """Begin to load the cache line where the search for a key begins; the table is not empty."""
    cdef uint64_t hashed = table_hash(table, key)
    cdef uint64_t named = table.directory[place_of(table, hashed)]
    cdef Entry* line = &entries_of(segment_in(named))[<uint32_t>hashed & mask_in(named) & LINE_MASK]
    prefetch(line)
    return line


cdef void directory_set(Table* table, uint64_t hashed, Segment* segment) noexcept nogil:
    """Let all pointers whose leading bits are those of `hashed`, as many as the segment's depth says, point to it."""
    cdef uint64_t step = <uint64_t>1 << (table.depth - segment.depth)
    cdef uint64_t i = place_of(table, hashed) & ~(step - 1)
    cdef uint64_t end = i + step
    cdef uint64_t shift = 0
    while (<uint32_t>1 << shift) <= segment.mask:
        shift += 1
    while i < end:
        table.directory[i] = <uint64_t>segment | shift
        i += 1


cdef int segment_resize(Table* table, uint64_t hashed, uint32_t slots) noexcept nogil:
    """Give the segment of `hashed` another number of slots, into which its entries fit."""
    cdef Segment* old = segment_of(table, hashed)
    cdef Segment* segment = segment_new(slots, old.depth)
    cdef Entry* entries = entries_of(old)
    cdef uint32_t i
    if segment == NULL:
        return -1
    for i in range(old.mask + 1):
        if entry_taken(&entries[i]):
            segment_put(segment, table_hash(table, entries[i].key), entries[i])
    directory_set(table, hashed, segment)
    free(old)
    return 0


cdef int segment_split(Table* table, uint64_t hashed) noexcept nogil:
    """Make two segments of the one of `hashed`, told apart by the next bit of the hash."""
    cdef Segment* old = segment_of(table, hashed)
    cdef uint64_t i, bit = <uint64_t>1 << (63 - old.depth)
    cdef uint64_t* directory
    cdef Segment* low
    cdef Segment* high
    cdef Entry* entries = entries_of(old)
    if old.depth == table.depth:
        if table.depth == SEGMENT_DEPTH_MAX:
            return -1
        directory = <uint64_t*>resize_memory(NULL, (<size_t>2 << table.depth) * sizeof(uint64_t))
        if directory == NULL:
            return -1
        for i in range(<uint64_t>2 << table.depth):
            directory[i] = table.directory[i >> 1]
        free(table.directory)
        table.directory = directory
        table.depth += 1
    low = segment_new(old.mask + 1, old.depth + 1)
    high = segment_new(old.mask + 1, old.depth + 1)
    if low == NULL or high == NULL:
        free(low)
        free(high)
        return -1
    for i in range(old.mask + 1):
        if entry_taken(&entries[i]):
            segment_put(high if table_hash(table, entries[i].key) & bit else low, table_hash(table, entries[i].key), entries[i])
    directory_set(table, hashed & ~bit, low)
    directory_set(table, hashed | bit, high)
    free(old)
    return 0


cdef int table_put(Table* table, uint64_t key, uint64_t value) noexcept nogil:
    """Add an entry, also if there is one of this key; 0, or -1."""
    cdef uint64_t hashed = table_hash(table, key)
    cdef Segment* segment
    cdef int done
    if table.directory == NULL:
        segment = segment_new(SEGMENT_SLOTS_FIRST, 0)
        table.directory = <uint64_t*>resize_memory(NULL, sizeof(uint64_t))
        if segment == NULL or table.directory == NULL:
            free(segment)
            free(table.directory)
            table.directory = NULL
            return -1
        table.depth = 0
        directory_set(table, 0, segment)
    segment = segment_of(table, hashed)
    while (segment.count + 1) * 8 > (segment.mask + 1) * 5:
        if segment.mask + 1 < table.slots_max:
            done = segment_resize(table, hashed, (segment.mask + 1) * 2)
        else:
            done = segment_split(table, hashed)
        if done < 0:
            return -1
        segment = segment_of(table, hashed)
    segment_put(segment, hashed, Entry(key, value))
    table.count += 1
    return 0


cdef void table_free(Table* table) noexcept nogil:
    cdef uint64_t i = 0, step
    cdef Segment* segment
    if table.directory != NULL:
        while i < <uint64_t>1 << table.depth:
            segment = segment_at(table, i)
            i += <uint64_t>1 << (table.depth - segment.depth)
            free(segment)
        free(table.directory)
    table.directory = NULL
    table.depth = 0
    table.count = 0


cdef void table_drop(Table* table, Entry* entry) noexcept nogil:
    """Remove an entry, moving those behind it up; a segment that is less than a quarter full is halved if there is memory."""
    cdef uint64_t hashed = table_hash(table, entry.key)
    cdef Segment* segment = segment_of(table, hashed)
    cdef Entry* entries = entries_of(segment)
    cdef uint32_t hole = <uint32_t>(entry - entries), i = hole, home
    while True:
        i = (i + 1) & segment.mask
        if not entry_taken(&entries[i]):
            break
        home = home_of(segment, table_hash(table, entries[i].key))
        if ((i - home) & segment.mask) >= ((i - hole) & segment.mask):
            entries[hole] = entries[i]
            hole = i
    entries[hole] = Entry(0, 0)
    segment.count -= 1
    table.count -= 1
    if table.count == 0:
        table_free(table)
    elif segment.mask + 1 > SEGMENT_SLOTS_FIRST and segment.count * 4 < segment.mask + 1:
        segment_resize(table, hashed, (segment.mask + 1) // 2)


cdef size_t table_memory_size(const Table* table) noexcept nogil:
    cdef uint64_t i = 0
    cdef size_t size = 0
    cdef Segment* segment
    if table.directory == NULL:
        return 0
    while i < <uint64_t>1 << table.depth:
        segment = segment_at(table, i)
        i += <uint64_t>1 << (table.depth - segment.depth)
        size += sizeof(Segment) + (segment.mask + 1) * sizeof(Entry)
    return size + (<size_t>sizeof(uint64_t) << table.depth)


cdef inline TrieNode* cell_at(const Cells* cells, uint32_t number) noexcept nogil:
    return &cells.blocks[number >> cells.shift].cells[number & ((<uint32_t>1 << cells.shift) - 1)]


cdef void room_list_put(Cells* cells, uint32_t index) noexcept nogil:
    cdef CellBlock* block = &cells.blocks[index]
    block.previous = 0
    block.next = cells.with_room
    if block.next != 0:
        cells.blocks[block.next - 1].previous = index + 1
    cells.with_room = index + 1


cdef void room_list_drop(Cells* cells, uint32_t index) noexcept nogil:
    cdef CellBlock* block = &cells.blocks[index]
    if block.previous != 0:
        cells.blocks[block.previous - 1].next = block.next
    else:
        cells.with_room = block.next
    if block.next != 0:
        cells.blocks[block.next - 1].previous = block.previous


cdef int cells_add_block(Cells* cells) noexcept nogil:
    """Put one block more on the list of those with room: one that was given back, or a new one."""
    cdef uint32_t index, capacity, slots = <uint32_t>1 << cells.shift
    cdef CellBlock* blocks
    cdef TrieNode* memory
    if cells.vacant == 0 and cells.count == cells.capacity:
        capacity = cells.capacity * 2 if cells.capacity != 0 else 1
        if capacity > (<uint32_t>1 << CELLS_SHIFT_MAX) >> cells.shift:
            return -1
        blocks = <CellBlock*>resize_memory(cells.blocks, capacity * sizeof(CellBlock))
        if blocks == NULL:
            return -1
        cells.blocks, cells.capacity = blocks, capacity
    index = cells.vacant - 1 if cells.vacant != 0 else cells.count
    if index == 0 and slots > CELLS_FIRST:
        slots = CELLS_FIRST
    memory = <TrieNode*>resize_memory(NULL, slots * sizeof(TrieNode))
    if memory == NULL:
        return -1
    if cells.vacant != 0:
        cells.vacant = cells.blocks[index].next
    else:
        cells.count += 1
    cells.blocks[index] = CellBlock(cells=memory, slots=slots, used=0, fresh=0, free=0, next=0, previous=0)
    room_list_put(cells, index)
    return 0


cdef int cells_make_room(Cells* cells) noexcept nogil:
    """When no block has room: the first one doubles up to full size, then there are more."""
    cdef CellBlock* first = cells.blocks
    cdef TrieNode* memory
    if cells.count == 0 or first.slots == <uint32_t>1 << cells.shift:
        return cells_add_block(cells)
    memory = <TrieNode*>resize_memory(first.cells, first.slots * 2 * sizeof(TrieNode))
    if memory == NULL:
        return -1
    first.cells = memory
    first.slots *= 2
    room_list_put(cells, 0)
    return 0


cdef uint32_t cells_take(Cells* cells) noexcept nogil:
    """The number of a cell, zeroed; UINT32_MAX: no memory."""
    cdef CellBlock* block
    cdef uint32_t index, slot
    if cells.with_room == 0 and cells_make_room(cells) < 0:
        return UINT32_MAX
    index = cells.with_room - 1
    block = &cells.blocks[index]
    if block.free != 0:
        slot = block.free - 1
        block.free = block.cells[slot].children
    else:
        slot = block.fresh
        block.fresh += 1
    block.used += 1
    if block.used == block.slots:
        room_list_drop(cells, index)
    memset(&block.cells[slot], 0, sizeof(TrieNode))
    return (index << cells.shift) + slot


cdef void cells_give(Cells* cells, uint32_t number) noexcept nogil:
    cdef uint32_t index = number >> cells.shift
    cdef uint32_t slot = number & ((<uint32_t>1 << cells.shift) - 1)
    cdef CellBlock* block = &cells.blocks[index]
    if block.used == block.slots:
        room_list_put(cells, index)
    block.cells[slot].children = block.free
    block.free = slot + 1
    block.used -= 1
    if block.used == 0:
        room_list_drop(cells, index)
        free(block.cells)
        block.cells = NULL
        block.next = cells.vacant
        cells.vacant = index + 1


cdef void cells_free(Cells* cells) noexcept nogil:
    cdef uint32_t i, shift = cells.shift
    for i in range(cells.count):
        free(cells.blocks[i].cells)
    free(cells.blocks)
    memset(cells, 0, sizeof(Cells))
    cells.shift = shift
