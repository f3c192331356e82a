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

cdef void trie_init(Trie* trie, uint64_t seed, uint32_t block_shift) noexcept nogil:
    memset(trie, 0, sizeof(Trie))
    trie.cells.shift = block_shift
    trie.edges.slots_max = trie.words.slots_max = trie.seen.slots_max = <uint32_t>1 << block_shift
    trie.words.seed = fold(seed ^ TRIE_FOLD_1, TRIE_FOLD_2)
    trie.edges.seed = fold(seed ^ TRIE_FOLD_2, TRIE_FOLD_1)
    trie.seen.seed = trie.edges.seed


cdef void node_free_ids(Trie* trie, uint32_t number) noexcept nogil:
    """Free the ids of a node and of those that are reached from it by wildcards only; as deep as a pattern has words."""
    cdef TrieNode* node = cell_at(&trie.cells, number)
    if node.id_count > 1:
        free(<uint64_t*>node.ids)
    if node.star != NONE:
        node_free_ids(trie, node.star)
    if node.hash != NONE:
        node_free_ids(trie, node.hash)


cdef void trie_free(Trie* trie) noexcept nogil:
    cdef uint64_t i
    cdef uint32_t slot
    cdef Segment* segment
    cdef TrieWord* word
    cdef Trie fresh
    if trie.cells.count != 0:
        node_free_ids(trie, ROOT)
        for i in range(<uint64_t>1 << trie.edges.depth if trie.edges.count != 0 else 0):
            segment = trie.edges.directory[i]
            if i != 0 and trie.edges.directory[i - 1] == segment:
                continue
            for slot in range(segment.mask + 1):
                if entries_of(segment)[slot].value != 0:
                    node_free_ids(trie, <uint32_t>entries_of(segment)[slot].value)
        for i in range(<uint64_t>1 << trie.words.depth if trie.words.count != 0 else 0):
            segment = trie.words.directory[i]
            if i != 0 and trie.words.directory[i - 1] == segment:
                continue
            for slot in range(segment.mask + 1):
                if entries_of(segment)[slot].value != 0:
                    word = word_at(trie, entries_of(segment)[slot].value)
                    if word.length > sizeof(word.text):
                        free(<void*>word_text(word))
    table_free(&trie.edges)
    table_free(&trie.words)
    table_free(&trie.seen)
    cells_free(&trie.cells)
    free(trie.current.items)
    free(trie.following.items)
    free(trie.open.items)
    trie_init(&fresh, 0, trie.cells.shift)
    fresh.words.seed, fresh.edges.seed, fresh.seen.seed = trie.words.seed, trie.edges.seed, trie.seen.seed
    trie[0] = fresh


cdef inline uint64_t edge_key(uint32_t node, uint32_t word) noexcept nogil:
    return (<uint64_t>node << 32) | word


cdef uint32_t trie_child(const Trie* trie, uint32_t node, const Words* words, uint32_t i) noexcept nogil:
    """The child of a node by the i-th word of a pattern, or NONE."""
    cdef uint32_t word
    cdef Entry* entry
    if word_is(words, i, c"*"):
        return cell_at(&trie.cells, node).star
    if word_is(words, i, c"#"):
        return cell_at(&trie.cells, node).hash
    word = word_find(trie, words.text + words.start[i], words.length[i])
    if word == NONE:
        return NONE
    entry = table_find(&trie.edges, edge_key(node, word), NULL)
    return NONE if entry == NULL else <uint32_t>entry.value


cdef uint32_t trie_grow(Trie* trie, uint32_t node, const Words* words, uint32_t i) noexcept nogil:
    """Make the child that trie_child did not find; UINT32_MAX: no memory, nothing changed."""
    cdef uint32_t word, child = cells_take(&trie.cells)
    if child == UINT32_MAX:
        return UINT32_MAX
    if word_is(words, i, c"*"):
        cell_at(&trie.cells, node).star = child
    elif word_is(words, i, c"#"):
        cell_at(&trie.cells, node).hash = child
    else:
        word = word_use(trie, words.text + words.start[i], words.length[i])
        if word == UINT32_MAX or table_put(&trie.edges, edge_key(node, word), child) < 0:
            if word != UINT32_MAX:
                word_release(trie, word)
            cells_give(&trie.cells, child)
            return UINT32_MAX
        cell_at(&trie.cells, node).children += 1
    return child


cdef void trie_prune(Trie* trie, const uint32_t* path, const Words* words, uint32_t depth) noexcept nogil:
    """Remove the last node of a path while it has neither ids nor children; all memory with the root."""
    cdef TrieNode* node
    cdef TrieNode* parent
    cdef uint32_t word, i
    while True:
        node = cell_at(&trie.cells, path[depth])
        if node.id_count != 0 or node.children != 0 or node.star != NONE or node.hash != NONE:
            return
        if depth == 0:
            trie_free(trie)
            return
        i = depth - 1
        parent = cell_at(&trie.cells, path[i])
        if word_is(words, i, c"*"):
            parent.star = NONE
        elif word_is(words, i, c"#"):
            parent.hash = NONE
        else:
            word = word_find(trie, words.text + words.start[i], words.length[i])
            table_drop(&trie.edges, table_find(&trie.edges, edge_key(path[i], word), NULL))
            parent.children -= 1
            word_release(trie, word)
        cells_give(&trie.cells, path[depth])
        depth = i


cdef int trie_add(Trie* trie, const char* pattern, size_t length, uint64_t id) noexcept nogil:
    cdef Words words
    cdef uint32_t path[WORDS_MAX + 1]
    cdef uint32_t child, depth = 0
    cdef int done = TRIE_NO_MEMORY
    if length > TOPIC_LENGTH_MAX:
        return TRIE_TOO_LONG
    if trie.cells.count == 0 and cells_take(&trie.cells) == UINT32_MAX:
        trie_free(trie)
        return TRIE_NO_MEMORY
    words_split(&words, pattern, length)
    path[0] = ROOT
    while depth < words.count:
        child = trie_child(trie, path[depth], &words, depth)
        if child == NONE:
            child = trie_grow(trie, path[depth], &words, depth)
            if child == UINT32_MAX:
                break
        depth += 1
        path[depth] = child
    if depth == words.count:
        done = node_add_id(cell_at(&trie.cells, path[depth]), id)
    if done == 1:
        trie.size += 1
    else:
        trie_prune(trie, path, &words, depth)
    return done


cdef int trie_remove(Trie* trie, const char* pattern, size_t length, uint64_t id) noexcept nogil:
    cdef Words words
    cdef uint32_t path[WORDS_MAX + 1]
    cdef uint32_t depth = 0
    if length > TOPIC_LENGTH_MAX:
        return TRIE_TOO_LONG
    if trie.cells.count == 0:
        return 0
    words_split(&words, pattern, length)
    path[0] = ROOT
    while depth < words.count:
        path[depth + 1] = trie_child(trie, path[depth], &words, depth)
        if path[depth + 1] == NONE:
            return 0
        depth += 1
    if node_remove_id(cell_at(&trie.cells, path[depth]), id) == 0:
        return 0
    trie.size -= 1
    trie_prune(trie, path, &words, depth)
    return 1


# ------------------------------------------------------------------------------------------------------------------ matching

cdef int set_reserve(NodeSet* nodes, size_t room) noexcept nogil:
    """Make room for so many nodes in all."""
    cdef size_t capacity = nodes.capacity if nodes.capacity != 0 else NODES_FIRST
    cdef uint32_t* items
    if room <= nodes.capacity:
        return 0
    while capacity < room:
        capacity *= 2
    items = <uint32_t*>resize_memory(nodes.items, capacity * sizeof(uint32_t))
    if items == NULL:
        return -1
    nodes.items, nodes.capacity = items, capacity
    return 0


cdef int trie_open(Trie* trie, uint32_t hash_node) noexcept nogil:
    """A node was reached whose `#` child is `hash_node`: reach that too, as it stands for no word, and its own `#` child."""
    cdef TrieNode* node
    while hash_node != NONE:
        node = cell_at(&trie.cells, hash_node)
        if node.stamp == trie.stamp:
            return 0
        node.stamp = trie.stamp
        if set_reserve(&trie.open, trie.open.count + 1) < 0:
            return -1
        trie.open.items[trie.open.count] = hash_node
        trie.open.count += 1
        hash_node = node.hash
    return 0


cdef inline void trie_reach(const Trie* trie, NodeSet* nodes, uint32_t node, uint32_t next_word) noexcept nogil:
    """Add a node to the set, and fetch what the next step will look at."""
    nodes.items[nodes.count] = node
    nodes.count += 1
    prefetch(cell_at(&trie.cells, node))
    if next_word != NONE:
        table_prefetch(&trie.edges, edge_key(node, next_word))


cdef void trie_step(const Trie* trie, const NodeSet* origin, NodeSet* reached, uint32_t word, uint32_t next_word) noexcept nogil:
    """Add to `reached`, where there is room for two of each, the children of the nodes of `origin` by a word of the key."""
    cdef TrieNode* node
    cdef Entry* entry
    cdef size_t i
    for i in range(origin.count):
        node = cell_at(&trie.cells, origin.items[i])
        if node.children != 0 and word != NONE:
            entry = table_find(&trie.edges, edge_key(origin.items[i], word), NULL)
            if entry != NULL:
                trie_reach(trie, reached, <uint32_t>entry.value, next_word)
        if node.star != NONE:
            trie_reach(trie, reached, node.star, next_word)


cdef int trie_walk(Trie* trie, const char* key, size_t length) noexcept nogil:
    """Leave in `current` and `open` the nodes that the whole key reaches."""
    cdef Words words
    cdef uint32_t numbers[WORDS_MAX + 1]
    cdef uint32_t k
    cdef size_t i
    words_split(&words, key, length)
    for k in range(words.count):
        numbers[k] = word_find(trie, key + words.start[k], words.length[k])
    numbers[words.count] = NONE
    trie.stamp += 1
    trie.open.count = 0
    if set_reserve(&trie.current, 1) < 0 or trie_open(trie, cell_at(&trie.cells, ROOT).hash) < 0:
        return -1
    trie.current.items[0] = ROOT
    trie.current.count = 1
    for k in range(words.count):
        trie.following.count = 0
        if set_reserve(&trie.following, 2 * (trie.current.count + trie.open.count)) < 0:
            return -1
        trie_step(trie, &trie.current, &trie.following, numbers[k], numbers[k + 1])
        trie_step(trie, &trie.open, &trie.following, numbers[k], numbers[k + 1])
        trie.current, trie.following = trie.following, trie.current
        for i in range(trie.current.count):
            if trie_open(trie, cell_at(&trie.cells, trie.current.items[i]).hash) < 0:
                return -1
        if trie.current.count + trie.open.count == 0:
            break
    return 0


cdef void ids_free(Ids* ids) noexcept nogil:
    free(ids.items)
    ids.items, ids.count, ids.capacity = NULL, 0, 0


cdef int ids_reserve(Ids* ids, size_t room) noexcept nogil:
    cdef size_t capacity = ids.capacity if ids.capacity != 0 else IDS_FIRST
    cdef uint64_t* items
    if room <= ids.capacity:
        return 0
    while capacity < room:
        capacity *= 2
    items = <uint64_t*>resize_memory(ids.items, capacity * sizeof(uint64_t))
    if items == NULL:
        return -1
    ids.items, ids.capacity = items, capacity
    return 0


cdef int ids_append_new(Trie* trie, Ids* out, const uint64_t* ids, size_t count, bint scan) noexcept nogil:
    """Append those that are not in `out`, where there is room; `scan`: look through it, otherwise in the table `seen`."""
    cdef size_t i, k
    for i in range(count):
        if scan:
            k = 0
            while k < out.count and out.items[k] != ids[i]:
                k += 1
            if k < out.count:
                continue
        else:
            if table_find(&trie.seen, ids[i], NULL) != NULL:
                continue
            if table_put(&trie.seen, ids[i], 1) < 0:
                return -1
        out.items[out.count] = ids[i]
        out.count += 1
    return 0


cdef int trie_collect(Trie* trie, Ids* out) noexcept nogil:
    """Append the ids of the nodes in `current` and `open`, which are disjoint, each id once."""
    cdef size_t i, total = 0, before = out.count
    cdef NodeSet* nodes = &trie.current
    cdef TrieNode* node
    cdef uint32_t turn
    cdef bint scan
    cdef int done = 0
    for turn in range(2):
        for i in range(nodes.count):
            total += cell_at(&trie.cells, nodes.items[i]).id_count
        nodes = &trie.open
    if total == 0:
        return 0
    if ids_reserve(out, before + total) < 0:
        return -1
    scan = before + total <= SCAN_MAX
    if not scan:
        for i in range(before):
            if table_put(&trie.seen, out.items[i], 1) < 0:
                done = -1
    nodes = &trie.current
    for turn in range(2):
        for i in range(nodes.count):
            node = cell_at(&trie.cells, nodes.items[i])
            if node.id_count == total and before == 0:          # all from one node: no duplicates
                memcpy(out.items, node_ids(node), total * sizeof(uint64_t))
                out.count = total
            elif done == 0:
                done = ids_append_new(trie, out, node_ids(node), node.id_count, scan)
        nodes = &trie.open
    table_free(&trie.seen)
    return done


cdef int trie_match_into(Trie* trie, const char* key, size_t length, Ids* out) noexcept nogil:
    if length > TOPIC_LENGTH_MAX:
        return TRIE_TOO_LONG
    if trie.cells.count == 0:
        return 0
    if trie_walk(trie, key, length) < 0 or trie_collect(trie, out) < 0:
        return TRIE_NO_MEMORY
    return 0


cdef size_t trie_memory_size(const Trie* trie) noexcept nogil:
    cdef size_t size = trie.cells.capacity * sizeof(CellBlock)
    cdef uint32_t i
    for i in range(trie.cells.count):
        if trie.cells.blocks[i].cells != NULL:
            size += trie.cells.blocks[i].slots * sizeof(TrieNode)
    size += (trie.current.capacity + trie.following.capacity + trie.open.capacity) * sizeof(uint32_t)
    return size + table_memory_size(&trie.edges) + table_memory_size(&trie.words)
