# The header page of the two data structures: every field, then every signature. No Python object and no I/O in here; all
# functions are nogil and for one thread at a time. `-1` is "no memory", and then nothing is changed, unless said otherwise.

from libc.stdint cimport uint8_t, uint32_t, uint64_t


# ---------------------------------------------------------------------------------------------------------------- RingQueue
#
# A double-ended queue of 24-byte slots. Every entry has a place with a number that never changes; places are numbered without a
# gap from `first` to `end` - 1, and index i is place first + i. Place n lies in block n / 4,096 at slot n % 4,096; the directory
# of block pointers is a circle, and only it moves when the ring grows:
#
#      directory   [ B6 | B7 | -- | B3 | B4 | B5 ]          first = 3 * 4096 + 4093       end = 7 * 4096 + 2
#                    |    |         |
#        B6: all places taken       B3: .....xxx            x taken, . free
#        B7: xx......
#
# A ring of few entries has no such block: `small_slots` (16, doubling to 2,048) slots in one piece of memory, used as a circle,
# which is re-allocated as the ring grows and shrinks. An empty ring that was never used has no memory at all. A block whose last
# entry is gone is given back, except one spare, so that a ring that breathes at a block's edge does not allocate each time.
#
# `ring_remove` leaves a tombstone (a == RING_REMOVED), so no other entry changes its index; tombstones at the ends are passed
# over at once, so both ends are always entries; a block of nothing but tombstones is given back. Its work is bounded by two blocks.

cdef enum:
    RING_BLOCK_SHIFT = 12       # 4,096 slots a block
    RING_SLOTS_FIRST = 16       # slots of the first, small block

cdef extern from *:
    """
    #define RING_REMOVED UINT64_MAX
    """
    const uint64_t RING_REMOVED     # `a` of a removed place; no entry may have it

cdef struct Slot:               # 24 bytes; the ring's user gives them their meaning
    uint64_t a
    uint64_t b
    uint64_t c

cdef struct Ring:
    Slot** blocks               # the directory; NULL: no memory
    uint64_t first              # number of the first place
    uint64_t end                # number after the last place
    uint64_t slot_mask          # slots of a block - 1
    uint64_t directory_mask     # entries of the directory - 1; 0: the one small block
    uint64_t small_slots        # slots of the small block; UINT64_MAX: blocks of full size; 0: no memory
    uint64_t shrink_at          # at this span a smaller block will do; UINT64_MAX: never
    uint64_t removed            # tombstones between first and end
    Slot* spare                 # an empty block of full size, or NULL
    uint8_t shift               # log2 of the slots of a block now
    uint8_t block_shift         # log2 of the slots of a block of full size

# Make an empty ring; `ring_init_sized` takes log2 of the block size (1 to 16), for tests. Neither allocates.
cdef void ring_init(Ring* ring) noexcept nogil
cdef void ring_init_sized(Ring* ring, uint8_t block_shift) noexcept nogil
# Give all memory back; the ring is empty and may be used again.
cdef void ring_free(Ring* ring) noexcept nogil
# Remove the entry at index i; False when there is none.
cdef bint ring_remove(Ring* ring, size_t i) noexcept nogil
# The bytes it has allocated.
cdef size_t ring_memory_size(const Ring* ring) noexcept nogil

# The slow halves of the inline functions below.
cdef int ring_room_back(Ring* ring) noexcept nogil
cdef int ring_room_front(Ring* ring) noexcept nogil
cdef void ring_settle_front(Ring* ring) noexcept nogil
cdef void ring_settle_back(Ring* ring) noexcept nogil
cdef Slot* ring_at_unless_removed(Ring* ring, uint64_t number) noexcept nogil


cdef inline size_t ring_size(const Ring* ring) noexcept nogil:
    """The number of entries."""
    return ring.end - ring.first - ring.removed


cdef inline size_t ring_span(const Ring* ring) noexcept nogil:
    """The number of places, removed ones too: indexes go from 0 to this."""
    return ring.end - ring.first


cdef inline Slot* ring_place(const Ring* ring, uint64_t number) noexcept nogil:
    """The slot of a place that exists and whose block was not given back: unchecked."""
    return &ring.blocks[(number >> ring.shift) & ring.directory_mask][number & ring.slot_mask]


cdef inline Slot* ring_at(Ring* ring, size_t i) noexcept nogil:
    """The entry at index i, valid until the next push, pop or remove; NULL when it is outside or was removed."""
    if i >= ring.end - ring.first:
        return NULL
    if ring.removed != 0:
        return ring_at_unless_removed(ring, ring.first + i)
    return ring_place(ring, ring.first + i)


cdef inline int ring_push_back(Ring* ring, const Slot* entry) noexcept nogil:
    """Append an entry (entry.a is not RING_REMOVED); 0, or -1."""
    if (ring.end & ring.slot_mask) == 0 or ring.end - ring.first == ring.small_slots:
        if ring_room_back(ring) < 0:
            return -1
    ring_place(ring, ring.end)[0] = entry[0]
    ring.end += 1
    return 0


cdef inline int ring_push_front(Ring* ring, const Slot* entry) noexcept nogil:
    """Put an entry (entry.a is not RING_REMOVED) before the first; 0, or -1."""
    if (ring.first & ring.slot_mask) == 0 or ring.end - ring.first == ring.small_slots:
        if ring_room_front(ring) < 0:
            return -1
    ring_place(ring, ring.first - 1)[0] = entry[0]
    ring.first -= 1
    return 0


cdef inline bint ring_pop_front(Ring* ring, Slot* out) noexcept nogil:
    """Take the first entry into `out`; False when the ring is empty."""
    if ring.end == ring.first:
        return False
    out[0] = ring_place(ring, ring.first)[0]
    ring.first += 1
    if (ring.first & ring.slot_mask) == 0 or ring.removed != 0 or ring.end - ring.first == ring.shrink_at:
        ring_settle_front(ring)
    return True


cdef inline bint ring_pop_back(Ring* ring, Slot* out) noexcept nogil:
    """Take the last entry into `out`; False when the ring is empty."""
    if ring.end == ring.first:
        return False
    ring.end -= 1
    out[0] = ring_place(ring, ring.end)[0]
    if (ring.end & ring.slot_mask) == 0 or ring.removed != 0 or ring.end - ring.first == ring.shrink_at:
        ring_settle_back(ring)
    return True


# ---------------------------------------------------------------------------------------------------------------- TopicTrie
#
# Patterns and keys are bytes of at most TOPIC_LENGTH_MAX, words split at '.'; in a pattern `*` stands for exactly one word and `#`
# for none or more. As in RabbitMQ, "" has no word, "a..b" has an empty word in the middle, and `*` or `#` inside a longer word is
# nothing special. The patterns `logs.*.error` (id 7), `logs.#` (id 8) and `#.error` (ids 7, 9):
#
#      root --logs--> (1) --*--> (2) --error--> (3) {7}
#        |             +---#--> (4) {8}
#        +----#-----> (5) --error--> (6) {7, 9}
#
# Memory is what a match waits for, so it looks at as little of it as it can, and at as much of it at once as it can. All edges
# are in one hash table, by (node, word), `*` and `#` being words too; four entries share a cache line, where a search nearly always
# ends. Words are interned, with the number of edges that use them; nodes and words are cells of 32 bytes, named by a number. An
# edge says about the node that it leads to
#
#     * if that is a leaf (one id, nothing behind it): the id. There is no cell, and most nodes are leaves;
#     * else its number and its marks: whether it has a child by `*`, a child by `#`, ids; how long the rest of a key can be that
#       one of the patterns behind it matches; and for each ordinary word by which it has a child one of 22 bits. So a match does
#       not look at the cell, nor for most of the edges that are not there or lead to nothing.
#
# Marks of what was removed may remain while the node has other edges; they cost time, not results.
#
# The edges of a node are near each other, in the cache line that its number is hashed to, until they are more than three; then
# they are spread, each to the line of its node and word.
#
# A match goes through the key word by word with the set of edges that the words so far can lead to: it begins to load all of
# them, and only then looks at the first. A `#` node, once reached, stays. An ordinary node is reached only from its parent, so only
# `#` nodes can be met twice; they are compared, and stamped when they are many. So each word costs at most one look at each node
# reached, and no pattern makes it exponential.
#
# The hash table grows by splitting segments of at most 4,096 slots (extendible hashing) and the cells by blocks of 4,096, so no
# single add stands still for long. What is removed is given back: an empty block, most of a nearly
# empty segment, all when the last pattern is gone.

cdef enum:
    TOPIC_LENGTH_MAX = 255      # bytes of a pattern or key
    TRIE_NO_MEMORY = -1
    TRIE_TOO_LONG = -2
    TRIE_BLOCK_SHIFT = 12       # 4,096 cells a block, 4,096 slots a segment

cdef struct Ids:                # a growing array; {NULL, 0, 0} is an empty one
    uint64_t* items
    size_t count
    size_t capacity             # items that fit; ids_free gives them back

cdef enum:                      # the marks of a node; the bits above are for words
    MARK_STAR = 1               # a child by `*`
    MARK_HASH = 2               # a child by `#`
    MARK_IDS = 4                # ids
    MARK_SPREAD = 8             # more edges than share a cache line
    MARK_LENGTHS = 0x3f0        # how many words of a key there may be behind it: 1, 2, 3, 4, 5, more

cdef struct TrieNode:           # one cell of 32 bytes
    uint32_t marks
    uint32_t children           # number of children by ordinary words; in a freed cell 1 + index of the next freed one
    uint32_t id_count
    uint32_t padding
    uint64_t ids                # the id if there is one, otherwise the address of id_count sorted ids (room for a power of two)
    uint64_t stamp              # `#` nodes: the last match that reached it together with many others

cdef struct TrieWord:           # one cell of 32 bytes
    uint32_t uses               # edges with this word
    uint32_t length
    char text[24]               # the word itself, or (if longer) first its address

cdef struct CellBlock:
    TrieNode* cells             # NULL: given back
    uint32_t slots              # the first block starts with 16 and doubles to full size
    uint32_t used
    uint32_t fresh              # cells from here on were never used
    uint32_t free               # 1 + index of the first freed cell, which has the next one in `children`; 0: none
    uint32_t next               # 1 + index of the next block with room (or of the next one given back); 0: none
    uint32_t previous           # 1 + index of the previous block with room; 0: none

cdef struct Cells:
    CellBlock* blocks
    uint32_t count
    uint32_t capacity
    uint32_t with_room          # 1 + index of the first block with room; 0: none
    uint32_t vacant             # 1 + index of the first block that was given back; 0: none
    uint32_t shift              # log2 of the cells of a block

cdef struct Entry:              # 16 bytes; both 0: the slot is empty
    uint64_t key
    uint64_t value

cdef struct Segment:            # 64 bytes, followed by its entries; linear probing in lines of four, at most five eighths full
    uint32_t depth              # the leading bits of the hash that all its entries share
    uint32_t count
    uint32_t mask               # slots - 1
    uint32_t padding[13]

cdef struct Table:              # from a 64-bit key to a 64-bit value, not both 0; two entries may share a key
    uint64_t* directory         # 1 << depth of segment's address | log2 of its slots, by the leading bits of the hash; NULL: no memory
    uint32_t depth
    uint32_t slots_max          # of a segment
    uint64_t count
    uint64_t seed
    uint64_t key_mask           # the bits of a stored key by which it is found
    uint64_t hash_masks[2]      # the bits that are hashed, by the highest one

cdef struct Probe:              # an edge that is looked for
    uint64_t key
    Entry* line                 # where the search begins, being loaded

cdef struct Probes:
    Probe* items
    size_t count
    size_t capacity

cdef struct Trie:
    Cells cells                 # cell 0 is the root
    Table edges                 # near << 63 | node << 32 | leaf << 31 | word -> id of the leaf, or marks << 32 | child
    Table words                 # hash of the text -> word
    uint64_t size               # (pattern, id) pairs
    uint64_t stamp              # of the last match
    Probes current              # the rest is what a match works with, kept from one to the next: edges by the word it is at
    Probes following            # by the next word
    Probes hashes               # by `#`
    Ids open                    # marks << 32 | number of the `#` nodes that were reached
    Ids leaves                  # ids of the leaves that the key leads to
    Ids ended                   # marks << 32 | number of the nodes with ids that the key leads to
    Table seen                  # ids of a large result

# Make an empty trie; `seed` is a secret random number, so that no client can choose words that collide. `block_shift` (1 to 12) is
# TRIE_BLOCK_SHIFT but for tests. Does not allocate.
cdef void trie_init(Trie* trie, uint64_t seed, uint32_t block_shift) noexcept nogil
# Give all memory back; the trie is empty and may be used again.
cdef void trie_free(Trie* trie) noexcept nogil
# 1: added; 0: this pattern has this id already; TRIE_NO_MEMORY, TRIE_TOO_LONG.
cdef int trie_add(Trie* trie, const char* pattern, size_t length, uint64_t id) noexcept nogil
# 1: removed; 0: this pattern does not have this id. Needs no memory.
cdef int trie_remove(Trie* trie, const char* pattern, size_t length, uint64_t id) noexcept nogil
# Append the ids of all patterns that match `key` and that are not in `out` yet, in no order; 0, TRIE_NO_MEMORY (`out` may have got
# some of them), TRIE_TOO_LONG. What was in `out` must be free of duplicates.
cdef int trie_match_into(Trie* trie, const char* key, size_t length, Ids* out) noexcept nogil
# The bytes it has allocated, without the ids of patterns with several and the words longer than 24 bytes.
cdef size_t trie_memory_size(const Trie* trie) noexcept nogil
cdef void ids_free(Ids* ids) noexcept nogil


cdef class RingQueue:
    cdef Ring ring


cdef class TopicTrie:
    cdef Trie trie
    cdef Ids found
