# Included by _core.pyx: how a Trie, which is drawn and declared in _core.pxd, is matched.

cdef struct KeyWord:                # of the key that is matched
    uint32_t number
    uint32_t mark                   # of its edges in the marks of a node; 0: no pattern has this word
    uint32_t length_mark            # of the words from here to the end


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


cdef inline int ids_append(Ids* ids, uint64_t item) noexcept nogil:
    if ids.count == ids.capacity and ids_reserve(ids, ids.count + 1) < 0:
        return -1
    ids.items[ids.count] = item
    ids.count += 1
    return 0


# ------------------------------------------------------------------------------------------------------------------- the walk

cdef int probes_grow(Probes* probes) noexcept nogil:
    cdef size_t capacity = probes.capacity * 2 if probes.capacity != 0 else LIST_FIRST
    cdef Probe* items = <Probe*>resize_memory(probes.items, capacity * sizeof(Probe))
    if items == NULL:
        return -1
    probes.items, probes.capacity = items, capacity
    return 0


cdef inline int probes_reserve(Probes* probes) noexcept nogil:
    """Make room for the probes of one node."""
    return 0 if probes.count + 2 <= probes.capacity else probes_grow(probes)


cdef inline void probe_add(Probes* probes, uint64_t key, Entry* line, bint wanted) noexcept nogil:
    """Look for an edge, later. Whether it is wanted cannot be foreseen, so it is no branch."""
    probes.items[probes.count] = Probe(key, line)
    probes.count += wanted


cdef inline const Entry* probe_edge(const Trie* trie, const Probe* probe) noexcept nogil:
    """The edge, or NULL. A line is filled from its beginning, so nothing is behind one with room; the key of an edge is never 0."""
    cdef const Entry* line = probe.line
    cdef uint64_t key = probe.key
    cdef uint32_t second = (line[1].key & ~EDGE_LEAF) == key, third = (line[2].key & ~EDGE_LEAF) == key
    cdef uint32_t fourth = (line[3].key & ~EDGE_LEAF) == key, place = second + 2 * third + 3 * fourth
    if place != 0 or (line[0].key & ~EDGE_LEAF) == key:         # four branches instead would be guessed wrong every other time
        return &line[place]
    if line[LINE_SLOTS - 1].key == 0:
        return NULL
    return table_find(&trie.edges, key, NULL)


cdef inline int trie_reach(Trie* trie, uint64_t link, const KeyWord* next_word) noexcept nogil:
    """A node was reached (marks << 32 | number): look for its children by the next word, NULL behind the last, and by `#`."""
    cdef uint32_t marks = <uint32_t>(link >> 32)
    cdef uint64_t key = edge_key(link, NONE)
    cdef Entry* line
    if probes_reserve(&trie.following) < 0 or probes_reserve(&trie.hashes) < 0:
        return -1
    if next_word == NULL:
        if marks & MARK_HASH:
            probe_add(&trie.hashes, key | WORD_HASH, table_fetch(&trie.edges, key | WORD_HASH), True)
        if (marks & MARK_IDS) == 0:
            return 0
        prefetch(cell_at(&trie.cells, <uint32_t>link))
        return ids_append(&trie.ended, link)
    if (marks & next_word.length_mark) == 0:
        return 0
    if (marks & MARK_SPREAD) == 0:
        line = table_fetch(&trie.edges, key)
        probe_add(&trie.following, key | next_word.number, line, (marks & next_word.mark) != 0)
        probe_add(&trie.following, key | WORD_STAR, line, (marks & MARK_STAR) != 0)
        probe_add(&trie.hashes, key | WORD_HASH, line, (marks & MARK_HASH) != 0)
        return 0
    if marks & next_word.mark:
        probe_add(&trie.following, key | next_word.number, table_fetch(&trie.edges, key | next_word.number), True)
    if marks & MARK_STAR:
        probe_add(&trie.following, key | WORD_STAR, table_fetch(&trie.edges, key | WORD_STAR), True)
    if marks & MARK_HASH:
        probe_add(&trie.hashes, key | WORD_HASH, table_fetch(&trie.edges, key | WORD_HASH), True)
    return 0


cdef bint trie_is_open(Trie* trie, uint64_t link) noexcept nogil:
    """Whether a `#` node was reached before; few are compared, many have this match's stamp."""
    cdef size_t i
    cdef TrieNode* node
    if trie.open.count < SCAN_MAX:
        for i in range(trie.open.count):
            if trie.open.items[i] == link:
                return True
        return False
    if trie.open.count == SCAN_MAX:
        for i in range(SCAN_MAX):
            cell_at(&trie.cells, <uint32_t>trie.open.items[i]).stamp = trie.stamp
    node = cell_at(&trie.cells, <uint32_t>link)
    if node.stamp == trie.stamp:
        return True
    node.stamp = trie.stamp
    return False


cdef int trie_open(Trie* trie, const KeyWord* next_word) noexcept nogil:
    """Reach the `#` nodes that were looked for, as they stand for no word, and their own `#` children; they stay."""
    cdef size_t i = 0
    cdef uint64_t link, stays
    while i < trie.hashes.count:
        link = probe_edge(trie, &trie.hashes.items[i]).value
        stays = link & ~(<uint64_t>MARK_HASH << 32)
        i += 1
        if trie_is_open(trie, stays):
            continue
        if ids_append(&trie.open, stays) < 0 or trie_reach(trie, link, next_word) < 0:
            return -1
    trie.hashes.count = 0
    return 0


cdef int trie_step(Trie* trie, const KeyWord* next_word) noexcept nogil:
    """Go along all edges by a word of the key, and reach again the nodes that stay."""
    cdef const Entry* edge
    cdef size_t i, opened = trie.open.count
    trie.current, trie.following = trie.following, trie.current
    trie.following.count = 0
    for i in range(trie.current.count):
        edge = probe_edge(trie, &trie.current.items[i])
        if edge == NULL:
            continue
        if edge.key & EDGE_LEAF:
            if next_word == NULL and ids_append(&trie.leaves, edge.value) < 0:
                return -1
        elif trie_reach(trie, edge.value, next_word) < 0:
            return -1
    for i in range(opened):
        if trie_reach(trie, trie.open.items[i], next_word) < 0:
            return -1
    return trie_open(trie, next_word)


cdef int trie_walk(Trie* trie, const char* key, size_t length) noexcept nogil:
    """Leave in `leaves` and `ended` what the whole key leads to."""
    cdef Words words
    cdef KeyWord found[WORDS_MAX]
    cdef uint64_t hashed[WORDS_MAX]
    cdef uint32_t k
    cdef Entry* entry
    trie.following.count = trie.hashes.count = trie.open.count = trie.leaves.count = trie.ended.count = 0
    trie.stamp += 1
    words_split(&words, key, length)
    if trie.words.directory != NULL:
        for k in range(words.count):
            hashed[k] = word_hash(trie, key + words.start[k], words.length[k])
            table_fetch(&trie.words, hashed[k])
    for k in range(words.count):
        entry = NULL
        if trie.words.directory != NULL:
            entry = word_entry(trie, hashed[k], key + words.start[k], words.length[k])
        found[k].number = <uint32_t>entry.value if entry != NULL else NONE
        found[k].mark = word_mark(found[k].number) if entry != NULL else 0
        found[k].length_mark = length_mark(words.count - k)
    if trie_reach(trie, node_link(trie, ROOT), &found[0] if words.count != 0 else NULL) < 0:
        return -1
    if trie_open(trie, &found[0] if words.count != 0 else NULL) < 0:
        return -1
    for k in range(words.count):
        if trie_step(trie, &found[k + 1] if k + 1 < words.count else NULL) < 0:
            return -1
        if trie.following.count + trie.open.count == 0:
            break
    return 0


# -------------------------------------------------------------------------------------------------------------- the result

cdef int ids_append_new(Trie* trie, Ids* out, uint64_t* filter, const uint64_t* ids, size_t count, bint scan) noexcept nogil:
    """Append those that are not in `out`, where there is room; `scan`: look through it, otherwise in the table `seen`. An id whose
    bit in the filter (512 of them) is not set is not in `out`."""
    cdef size_t i, k
    cdef uint64_t hashed, bit
    for i in range(count):
        if scan:
            hashed = (ids[i] * TRIE_FOLD_1) >> 55
            bit = <uint64_t>1 << (hashed & 63)
            if filter[hashed >> 6] & bit:
                k = 0
                while k < out.count and out.items[k] != ids[i]:
                    k += 1
                if k < out.count:
                    continue
            filter[hashed >> 6] |= bit
        else:
            if table_find(&trie.seen, ids[i], NULL) != NULL:
                continue
            if table_put(&trie.seen, ids[i], 1) < 0:
                return -1
        out.items[out.count] = ids[i]
        out.count += 1
    return 0


cdef int trie_collect(Trie* trie, Ids* out) noexcept nogil:
    """Append the ids of `leaves` and of the nodes in `ended`, each id once."""
    cdef size_t i, total = trie.leaves.count, before = out.count
    cdef uint64_t filter[8]
    cdef TrieNode* node = NULL
    cdef bint scan
    cdef int done
    for i in range(trie.ended.count):
        node = cell_at(&trie.cells, <uint32_t>trie.ended.items[i])
        total += node.id_count
        if node.id_count > 1:
            prefetch(node_ids(node))
    if total == 0:
        return 0
    if ids_reserve(out, before + total) < 0:
        return -1
    if before == 0 and trie.leaves.count == 0 and trie.ended.count == 1:        # all from one node: no duplicates
        memcpy(out.items, node_ids(node), total * sizeof(uint64_t))
        out.count = total
        return 0
    scan = before + total <= SCAN_MAX
    memset(filter, 0, sizeof(filter))
    out.count = 0
    done = ids_append_new(trie, out, filter, out.items, before, scan)           # they stay where they are
    if done == 0:
        done = ids_append_new(trie, out, filter, trie.leaves.items, trie.leaves.count, scan)
    for i in range(trie.ended.count):
        node = cell_at(&trie.cells, <uint32_t>trie.ended.items[i])
        if done == 0:
            done = ids_append_new(trie, out, filter, node_ids(node), node.id_count, scan)
    if trie.seen.count != 0:
        table_free(&trie.seen)
    if out.count < before:
        out.count = before
    return done


cdef int trie_match_into(Trie* trie, const char* key, size_t length, Ids* out) noexcept nogil:
    if length > TOPIC_LENGTH_MAX:
        return TRIE_TOO_LONG
    if trie.cells.count == 0:
        return 0
    if trie_walk(trie, key, length) < 0 or trie_collect(trie, out) < 0:
        return TRIE_NO_MEMORY
    return 0
