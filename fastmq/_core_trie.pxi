# Included by _core.pyx: the bodies of Trie, which is drawn and declared in _core.pxd.

cdef struct Words:                  # of a pattern or key: where each begins, and how long it is
    const char* text
    uint32_t count
    uint8_t start[WORDS_MAX]
    uint8_t length[WORDS_MAX]


cdef void words_split(Words* words, const char* text, size_t length) noexcept nogil:
    cdef size_t i, start = 0
    words.text = text
    words.count = 0
    for i in range(length + 1 if length != 0 else 0):
        if i == length or text[i] == c".":
            words.start[words.count] = <uint8_t>start
            words.length[words.count] = <uint8_t>(i - start)
            words.count += 1
            start = i + 1


cdef inline bint word_is(const Words* words, uint32_t i, char wildcard) noexcept nogil:
    return words.length[i] == 1 and words.text[words.start[i]] == wildcard


# ------------------------------------------------------------------------------------------------------------ interned words

cdef inline uint64_t word_hash(const Trie* trie, const char* text, size_t length) noexcept nogil:
    cdef uint64_t hashed = trie.words.seed ^ length, part
    while length > 8:
        memcpy(&part, text, 8)
        hashed = fold(hashed ^ part, TRIE_FOLD_2)
        text += 8
        length -= 8
    part = 0
    memcpy(&part, text, length)
    return fold(hashed ^ part, TRIE_FOLD_2)


cdef inline TrieWord* word_at(const Trie* trie, uint64_t number) noexcept nogil:
    return <TrieWord*>cell_at(&trie.cells, <uint32_t>number)


cdef inline const char* word_text(const TrieWord* word) noexcept nogil:
    if word.length <= sizeof(word.text):
        return word.text
    return (<const char**>word.text)[0]


cdef Entry* word_entry(const Trie* trie, uint64_t hashed, const char* text, size_t length) noexcept nogil:
    cdef Entry* entry = table_find(&trie.words, hashed, NULL)
    cdef TrieWord* word
    while entry != NULL:
        word = word_at(trie, entry.value)
        if word.length == length and memcmp(word_text(word), text, length) == 0:
            return entry
        entry = table_find(&trie.words, hashed, entry)
    return NULL


cdef uint32_t word_find(const Trie* trie, const char* text, size_t length) noexcept nogil:
    """The number of a word that some pattern has, or NONE."""
    cdef Entry* entry = word_entry(trie, word_hash(trie, text, length), text, length)
    return NONE if entry == NULL else <uint32_t>entry.value


cdef uint32_t word_use(Trie* trie, const char* text, size_t length) noexcept nogil:
    """The number of a word, with one use more; UINT32_MAX: no memory."""
    cdef uint64_t hashed = word_hash(trie, text, length)
    cdef Entry* entry = word_entry(trie, hashed, text, length)
    cdef uint32_t number
    cdef TrieWord* word
    cdef char* copy
    if entry != NULL:
        word_at(trie, entry.value).uses += 1
        return <uint32_t>entry.value
    number = cells_take(&trie.cells)
    if number == UINT32_MAX:
        return UINT32_MAX
    word = word_at(trie, number)
    word.uses = 1
    word.length = <uint32_t>length
    copy = word.text
    if length > sizeof(word.text):
        copy = <char*>resize_memory(NULL, length)
        (<char**>word.text)[0] = copy
    if copy != NULL:
        memcpy(copy, text, length)
        if table_put(&trie.words, hashed, number) == 0:
            return number
        if length > sizeof(word.text):
            free(copy)
    cells_give(&trie.cells, number)
    return UINT32_MAX


cdef void word_release(Trie* trie, uint32_t number) noexcept nogil:
    cdef TrieWord* word = word_at(trie, number)
    cdef const char* text = word_text(word)
    word.uses -= 1
    if word.uses != 0:
        return
    table_drop(&trie.words, word_entry(trie, word_hash(trie, text, word.length), text, word.length))
    if word.length > sizeof(word.text):
        free(<void*>text)
    cells_give(&trie.cells, number)


# ----------------------------------------------------------------------------------------------------------- a node's ids

cdef size_t id_place(const uint64_t* ids, size_t count, uint64_t id) noexcept nogil:
    """The index of the first of the sorted ids that is not below `id`."""
    cdef size_t low = 0, high = count, middle
    while low < high:
        middle = (low + high) // 2
        if ids[middle] < id:
            low = middle + 1
        else:
            high = middle
    return low


cdef inline uint64_t* node_ids(TrieNode* node) noexcept nogil:
    return &node.ids if node.id_count <= 1 else <uint64_t*>node.ids


cdef int node_add_id(TrieNode* node, uint64_t id) noexcept nogil:
    """1: added; 0: it has it; TRIE_NO_MEMORY."""
    cdef uint64_t* ids = node_ids(node)
    cdef uint32_t count = node.id_count
    cdef size_t place = id_place(ids, count, id)
    if place < count and ids[place] == id:
        return 0
    if count == 0:
        node.ids = id
        node.id_count = 1
        return 1
    if (count & (count - 1)) == 0:              # a power of two: no room
        ids = <uint64_t*>resize_memory(NULL if count == 1 else ids, <size_t>count * 2 * sizeof(uint64_t))
        if ids == NULL:
            return TRIE_NO_MEMORY
        if count == 1:
            ids[0] = node.ids
        node.ids = <uint64_t>ids
    memmove(&ids[place + 1], &ids[place], (count - place) * sizeof(uint64_t))
    ids[place] = id
    node.id_count += 1
    return 1


cdef int node_remove_id(TrieNode* node, uint64_t id) noexcept nogil:
    """1: removed; 0: it does not have it."""
    cdef uint64_t* ids = node_ids(node)
    cdef uint32_t count = node.id_count
    cdef size_t place = id_place(ids, count, id)
    if place == count or ids[place] != id:
        return 0
    count -= 1
    node.id_count = count
    if count == 0:
        return 1
    memmove(&ids[place], &ids[place + 1], (count - place) * sizeof(uint64_t))
    if count == 1:
        node.ids = ids[0]
        free(ids)
    elif (count & (count - 1)) == 0:
        ids = <uint64_t*>resize_memory(ids, count * sizeof(uint64_t))
        if ids != NULL:                         # otherwise the old, larger memory is still there
            node.ids = <uint64_t>ids
    return 1


# ------------------------------------------------------------------------------------------------- making and removing nodes

cdef enum:
    WORD_STAR = 0x7fffffff          # the words of the edges by wildcards; no cell has these numbers
    WORD_HASH = 0x7ffffffe
    LENGTH_MARK_FIRST = 4           # the bit of a node's marks for keys of which one word is left
    LENGTH_MARKS = 6
    WORD_MARK_FIRST = 10            # the first of the bits that are for words
    WORD_MARKS = 22
    WORD_MARK_MASK = 0xfffffc00

cdef extern from *:
    """
    #define EDGE_LEAF (UINT64_C(1) << 31)
    #define EDGE_NEAR (UINT64_C(1) << 63)
    """
    const uint64_t EDGE_LEAF        # in the key of an edge that leads to a leaf
    const uint64_t EDGE_NEAR        # in the key of an edge of a node that is not spread

cdef struct Path:                   # where the words of a pattern lead
    Words words
    uint32_t depth                  # words that were followed
    uint32_t word[WORDS_MAX]        # their numbers
    uint32_t node[WORDS_MAX + 1]    # node[0] is the root; that of a leaf is not set
    bint leaf                       # the last one leads to a leaf


cdef void trie_init(Trie* trie, uint64_t seed, uint32_t block_shift) noexcept nogil:
    memset(trie, 0, sizeof(Trie))
    trie.cells.shift = block_shift
    trie.edges.slots_max = trie.words.slots_max = trie.seen.slots_max = <uint32_t>1 << block_shift
    trie.words.seed = fold(seed ^ TRIE_FOLD_1, TRIE_FOLD_2)
    trie.edges.seed = fold(seed ^ TRIE_FOLD_2, TRIE_FOLD_1)
    trie.seen.seed = trie.edges.seed
    trie.words.key_mask = trie.seen.key_mask = UINT64_MAX
    trie.edges.key_mask = ~EDGE_LEAF
    memset(trie.words.hash_masks, 0xff, sizeof(trie.words.hash_masks))
    memset(trie.seen.hash_masks, 0xff, sizeof(trie.seen.hash_masks))
    trie.edges.hash_masks[0] = ~EDGE_LEAF                       # node and word
    trie.edges.hash_masks[1] = ~<uint64_t>UINT32_MAX            # EDGE_NEAR and node


cdef void trie_free_ids(Trie* trie) noexcept nogil:
    """Free the ids of all nodes."""
    cdef uint64_t i
    cdef uint32_t slot
    cdef Segment* segment
    cdef Entry* entry
    cdef TrieNode* node = cell_at(&trie.cells, ROOT)
    if node.id_count > 1:
        free(<uint64_t*>node.ids)
    for i in range(<uint64_t>1 << trie.edges.depth if trie.edges.count != 0 else 0):
        segment = segment_at(&trie.edges, i)
        if i != 0 and segment_at(&trie.edges, i - 1) == segment:
            continue
        for slot in range(segment.mask + 1):
            entry = &entries_of(segment)[slot]
            if entry_taken(entry) and (entry.key & EDGE_LEAF) == 0:
                node = cell_at(&trie.cells, <uint32_t>entry.value)
                if node.id_count > 1:
                    free(<uint64_t*>node.ids)


cdef void trie_free_words(Trie* trie) noexcept nogil:
    """Free the texts of the words that do not fit into a cell."""
    cdef uint64_t i
    cdef uint32_t slot
    cdef Segment* segment
    cdef TrieWord* word
    for i in range(<uint64_t>1 << trie.words.depth if trie.words.count != 0 else 0):
        segment = segment_at(&trie.words, i)
        if i != 0 and segment_at(&trie.words, i - 1) == segment:
            continue
        for slot in range(segment.mask + 1):
            if entry_taken(&entries_of(segment)[slot]):
                word = word_at(trie, entries_of(segment)[slot].value)
                if word.length > sizeof(word.text):
                    free(<void*>word_text(word))


cdef void trie_free(Trie* trie) noexcept nogil:
    cdef Trie fresh
    if trie.cells.count != 0:
        trie_free_ids(trie)
        trie_free_words(trie)
    table_free(&trie.edges)
    table_free(&trie.words)
    table_free(&trie.seen)
    cells_free(&trie.cells)
    free(trie.current.items)
    free(trie.following.items)
    free(trie.hashes.items)
    free(trie.open.items)
    free(trie.leaves.items)
    free(trie.ended.items)
    trie_init(&fresh, 0, trie.cells.shift)
    fresh.words.seed, fresh.edges.seed, fresh.seen.seed = trie.words.seed, trie.edges.seed, trie.seen.seed
    trie[0] = fresh


cdef inline uint64_t node_link(const Trie* trie, uint32_t node) noexcept nogil:
    """What the edge to a node says about it: marks << 32 | number."""
    return (<uint64_t>cell_at(&trie.cells, node).marks << 32) | node


cdef inline uint64_t edge_key(uint64_t link, uint32_t word) noexcept nogil:
    """The key of an edge of the node of this link."""
    return (0 if link & (<uint64_t>MARK_SPREAD << 32) else EDGE_NEAR) | (link << 32) | word


cdef inline uint32_t word_mark(uint32_t word) noexcept nogil:
    """The bit of a node's marks that is set when it has a child by this ordinary word, and perhaps otherwise."""
    return <uint32_t>1 << (WORD_MARK_FIRST + word % WORD_MARKS)


cdef inline uint32_t length_mark(uint32_t length) noexcept nogil:
    """The bit for keys of which so many words are left, at least one."""
    return <uint32_t>1 << (LENGTH_MARK_FIRST - 1 + (length if length < LENGTH_MARKS else LENGTH_MARKS))


cdef inline Entry* path_edge(const Trie* trie, const Path* path, uint32_t i) noexcept nogil:
    """The edge by the i-th word, or NULL."""
    return table_find(&trie.edges, edge_key(node_link(trie, path.node[i]), path.word[i]), NULL)


cdef void path_tell_marks(Trie* trie, const Path* path, uint32_t i) noexcept nogil:
    """The marks of node[i] have changed: the edge that leads there has them too."""
    if i != 0:
        path_edge(trie, path, i - 1).value = node_link(trie, path.node[i])


cdef void path_follow(const Trie* trie, Path* path, const char* pattern, size_t length) noexcept nogil:
    """Go as far as there are edges."""
    cdef const Words* words = &path.words
    cdef uint32_t i
    cdef Entry* edge
    words_split(&path.words, pattern, length)
    path.node[0] = ROOT
    path.depth = 0
    path.leaf = False
    while path.depth < words.count and not path.leaf:
        i = path.depth
        if word_is(words, i, c"*"):
            path.word[i] = WORD_STAR
        elif word_is(words, i, c"#"):
            path.word[i] = WORD_HASH
        else:
            path.word[i] = word_find(trie, words.text + words.start[i], words.length[i])
        edge = path_edge(trie, path, i) if path.word[i] != NONE else NULL
        if edge == NULL:
            return
        path.depth += 1
        path.leaf = (edge.key & EDGE_LEAF) != 0
        path.node[path.depth] = <uint32_t>edge.value


cdef inline uint32_t node_edges(const TrieNode* node) noexcept nogil:
    return node.children + ((node.marks & MARK_STAR) != 0) + ((node.marks & MARK_HASH) != 0)


cdef int path_spread(Trie* trie, const Path* path, uint32_t i) noexcept nogil:
    """Spread the edges of node[i]; -1: no memory, nothing changed."""
    cdef Entry moved[NEAR_MAX]
    cdef uint64_t link = node_link(trie, path.node[i]), hashed = table_hash(&trie.edges, edge_key(link, NONE))
    cdef Segment* segment = segment_of(&trie.edges, hashed)
    cdef Entry* entries = entries_of(segment)
    cdef uint32_t slot = home_of(segment, hashed), count = 0, done = 0
    while count < NEAR_MAX:
        if entries[slot].key >> 32 == edge_key(link, NONE) >> 32:
            moved[count] = entries[slot]
            count += 1
        slot = (slot + 1) & segment.mask
    while done < count and table_put(&trie.edges, moved[done].key & ~EDGE_NEAR, moved[done].value) == 0:
        done += 1
    for slot in range(done):
        table_drop(&trie.edges, table_find(&trie.edges, moved[slot].key & ~EDGE_LEAF & ~(0 if done == count else EDGE_NEAR), NULL))
    if done != count:
        return -1
    cell_at(&trie.cells, path.node[i]).marks |= MARK_SPREAD
    path_tell_marks(trie, path, i)
    return 0


cdef int path_link(Trie* trie, Path* path, uint64_t leaf, uint64_t value) noexcept nogil:
    """Make the edge by the next word and go along it; -1: no memory, nothing changed. `leaf` is EDGE_LEAF or 0."""
    cdef uint32_t i = path.depth, word
    cdef const Words* words = &path.words
    cdef bint ordinary = False
    cdef TrieNode* node = cell_at(&trie.cells, path.node[i])
    if node_edges(node) == NEAR_MAX and (node.marks & MARK_SPREAD) == 0 and path_spread(trie, path, i) < 0:
        return -1
    if word_is(words, i, c"*"):
        word = WORD_STAR
    elif word_is(words, i, c"#"):
        word = WORD_HASH
    else:
        ordinary = True
        word = word_use(trie, words.text + words.start[i], words.length[i])
        if word == UINT32_MAX:
            return -1
    if table_put(&trie.edges, edge_key(node_link(trie, path.node[i]), word) | leaf, value) < 0:
        if ordinary:
            word_release(trie, word)
        return -1
    node = cell_at(&trie.cells, path.node[i])           # a word may have moved it
    if ordinary:
        node.children += 1
    node.marks |= MARK_STAR if word == WORD_STAR else MARK_HASH if word == WORD_HASH else word_mark(word)
    path_tell_marks(trie, path, i)
    path.word[i] = word
    path.depth += 1
    path.node[path.depth] = <uint32_t>value
    path.leaf = leaf != 0
    return 0


cdef void path_unlink(Trie* trie, Path* path) noexcept nogil:
    """Remove the last edge and go back along it; its node is gone already."""
    cdef uint32_t i = path.depth - 1, word = path.word[i]
    cdef TrieNode* node = cell_at(&trie.cells, path.node[i])
    table_drop(&trie.edges, path_edge(trie, path, i))
    if word == WORD_STAR:
        node.marks &= ~<uint32_t>MARK_STAR
    elif word == WORD_HASH:
        node.marks &= ~<uint32_t>MARK_HASH
    else:
        node.children -= 1
        if node.children == 0:
            node.marks &= ~<uint32_t>WORD_MARK_MASK
        word_release(trie, word)
    if node_edges(node) == 0:
        node.marks &= MARK_IDS
    path_tell_marks(trie, path, i)
    path.depth = i
    path.leaf = False


cdef int path_open_leaf(Trie* trie, Path* path) noexcept nogil:
    """Make an ordinary node with one id of the leaf that was reached; -1: no memory, nothing changed."""
    cdef Entry* edge = path_edge(trie, path, path.depth - 1)
    cdef uint32_t number = cells_take(&trie.cells)
    cdef TrieNode* node
    if number == UINT32_MAX:
        return -1
    node = cell_at(&trie.cells, number)
    node.marks, node.id_count, node.ids = MARK_IDS, 1, edge.value
    edge.key &= ~EDGE_LEAF
    path.node[path.depth] = number
    path.leaf = False
    path_tell_marks(trie, path, path.depth)
    return 0


cdef void path_prune(Trie* trie, Path* path) noexcept nogil:
    """Remove the last node while it has neither ids nor children; one with a single id becomes a leaf; all memory with the root."""
    cdef TrieNode* node
    cdef Entry* edge
    while True:
        node = cell_at(&trie.cells, path.node[path.depth])
        if (node.marks & ~<uint32_t>MARK_IDS) != 0 or node.id_count > 1:
            return
        if path.depth == 0:
            if node.id_count == 0:
                trie_free(trie)
            return
        if node.id_count == 1:
            if path.word[path.depth - 1] != WORD_HASH:
                edge = path_edge(trie, path, path.depth - 1)
                edge.key |= EDGE_LEAF
                edge.value = node.ids
                cells_give(&trie.cells, path.node[path.depth])
            return
        cells_give(&trie.cells, path.node[path.depth])
        path_unlink(trie, path)


cdef int path_extend(Trie* trie, Path* path, uint64_t id) noexcept nogil:
    """Make what is missing of a pattern's path; 1: with the id, in a leaf; 0: without; TRIE_NO_MEMORY."""
    cdef const Words* words = &path.words
    cdef uint32_t number
    if path.leaf and path_open_leaf(trie, path) < 0:
        return TRIE_NO_MEMORY
    while path.depth < words.count:
        if path.depth + 1 == words.count and not word_is(words, path.depth, c"#"):
            return 1 if path_link(trie, path, EDGE_LEAF, id) == 0 else TRIE_NO_MEMORY
        number = cells_take(&trie.cells)
        if number == UINT32_MAX:
            return TRIE_NO_MEMORY
        if path_link(trie, path, 0, number) < 0:
            cells_give(&trie.cells, number)
            return TRIE_NO_MEMORY
    return 0


cdef void path_mark_lengths(Trie* trie, const Path* path) noexcept nogil:
    """Let the nodes of a pattern's path know what keys it matches."""
    cdef const Words* words = &path.words
    cdef uint32_t i = words.count, length = 0, marks
    cdef bint any_more = False
    while i > 0:
        i -= 1
        if word_is(words, i, c"#"):
            any_more = True
        else:
            length += 1
        marks = length_mark(length) if length != 0 else 0
        if any_more:
            marks = MARK_LENGTHS & ~(marks - 1) if marks != 0 else MARK_LENGTHS
        if marks & ~cell_at(&trie.cells, path.node[i]).marks:
            cell_at(&trie.cells, path.node[i]).marks |= marks
            path_tell_marks(trie, path, i)


cdef int trie_add(Trie* trie, const char* pattern, size_t length, uint64_t id) noexcept nogil:
    cdef Path path
    cdef TrieNode* node
    cdef int done
    if length > TOPIC_LENGTH_MAX:
        return TRIE_TOO_LONG
    if trie.cells.count == 0 and cells_take(&trie.cells) == UINT32_MAX:
        trie_free(trie)
        return TRIE_NO_MEMORY
    path_follow(trie, &path, pattern, length)
    if path.leaf and path.depth == path.words.count and path_edge(trie, &path, path.depth - 1).value == id:
        return 0
    done = path_extend(trie, &path, id)
    if done == 0:
        node = cell_at(&trie.cells, path.node[path.depth])
        done = node_add_id(node, id)
        if done == 1 and (node.marks & MARK_IDS) == 0:
            node.marks |= MARK_IDS
            path_tell_marks(trie, &path, path.depth)
    if done == 1:
        path_mark_lengths(trie, &path)
        trie.size += 1
    elif not path.leaf:
        path_prune(trie, &path)
    return done


cdef int trie_remove(Trie* trie, const char* pattern, size_t length, uint64_t id) noexcept nogil:
    cdef Path path
    cdef TrieNode* node
    if length > TOPIC_LENGTH_MAX:
        return TRIE_TOO_LONG
    if trie.cells.count == 0:
        return 0
    path_follow(trie, &path, pattern, length)
    if path.depth < path.words.count:
        return 0
    if path.leaf:
        if path_edge(trie, &path, path.depth - 1).value != id:
            return 0
        path_unlink(trie, &path)
    else:
        node = cell_at(&trie.cells, path.node[path.depth])
        if node_remove_id(node, id) == 0:
            return 0
        if node.id_count == 0:
            node.marks &= ~<uint32_t>MARK_IDS
            path_tell_marks(trie, &path, path.depth)
    trie.size -= 1
    path_prune(trie, &path)
    return 1


cdef size_t trie_memory_size(const Trie* trie) noexcept nogil:
    cdef size_t size = trie.cells.capacity * sizeof(CellBlock)
    cdef uint32_t i
    for i in range(trie.cells.count):
        if trie.cells.blocks[i].cells != NULL:
            size += trie.cells.blocks[i].slots * sizeof(TrieNode)
    size += (trie.current.capacity + trie.following.capacity + trie.hashes.capacity) * sizeof(Probe)
    size += (trie.open.capacity + trie.leaves.capacity + trie.ended.capacity) * sizeof(uint64_t)
    return size + table_memory_size(&trie.edges) + table_memory_size(&trie.words)
