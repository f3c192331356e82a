"""RingQueue and TopicTrie: the two data structures of the broker, without I/O. What they are is drawn in _core.pxd."""

from libc.stdint cimport UINT32_MAX, UINT64_MAX, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcmp, memcpy, memmove, memset

import os
from array import array

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize

cdef extern from *:
    """
    #define TRIE_FOLD_1 UINT64_C(0x9e3779b97f4a7c15)
    #define TRIE_FOLD_2 UINT64_C(0xd6e8feb86659fd93)
    static inline uint64_t fold(uint64_t a, uint64_t b) {
        __uint128_t product = (__uint128_t)a * b;
        return (uint64_t)product ^ (uint64_t)(product >> 64);
    }
    """
    const uint64_t TRIE_FOLD_1
    const uint64_t TRIE_FOLD_2
    uint64_t fold(uint64_t a, uint64_t b) noexcept nogil
    void* aligned_alloc(size_t alignment, size_t size) noexcept nogil
    void prefetch "__builtin_prefetch"(const void* address) noexcept nogil

cdef enum:
    LINE_SIZE = 64
    NUMBER_FIRST_SHIFT = 62         # a ring's first place is number 1 << 62, so that numbers wrap at neither end
    CELLS_FIRST = 16                # cells of the first block at the beginning
    SEGMENT_SLOTS_FIRST = 8
    SEGMENT_DEPTH_MAX = 24
    LINE_SLOTS = 4                  # entries of a hash table that share a cache line
    LINE_MASK = 0xfffffffc          # of a slot: the first of its cache line
    CELLS_SHIFT_MAX = 30            # log2 of the cells of a trie
    NEAR_MAX = 3                    # edges of a node that are kept in one cache line
    LIST_FIRST = 64                 # of the lists that a match works with
    IDS_FIRST = 16
    FOUND_KEPT_MAX = 4096           # ids for which TopicTrie.match keeps the memory
    SCAN_MAX = 64                   # up to so many ids or nodes a duplicate is looked for by a scan
    WORDS_MAX = TOPIC_LENGTH_MAX + 1
    ROOT = 0
    NONE = 0                        # cell 0 is the root, so no child and no word has this number

# Allocations that still succeed; below 0 all of them. A test counts it down to see that a failure changes nothing.
cdef long allocations_left = -1


cdef void* resize_memory(void* memory, size_t size) noexcept nogil:
    global allocations_left
    if allocations_left >= 0:
        if allocations_left == 0:
            return NULL
        allocations_left -= 1
    return realloc(memory, size)


cdef void* aligned_memory(size_t size) noexcept nogil:
    """New memory that begins with a cache line and consists of whole ones."""
    global allocations_left
    if allocations_left >= 0:
        if allocations_left == 0:
            return NULL
        allocations_left -= 1
    return aligned_alloc(LINE_SIZE, size)


def fail_allocations_after(long count):
    """For tests: let `count` more allocations succeed, then none; -1: all."""
    global allocations_left
    allocations_left = count


include "_core_ring.pxi"
include "_core_table.pxi"
include "_core_trie.pxi"
include "_core_match.pxi"


cdef tuple entry_of(const Slot* slot):
    return (slot.a, slot.b, slot.c)


@cython.final
cdef class RingQueue:
    """A double-ended queue of entries (a, b, c), three integers from 0 to 2**64 - 1, where `a` is not 2**64 - 1.

    `block_slots` is a power of two from 2 to 65,536, and not 4,096 only in tests.
    """

    def __cinit__(self, *, uint32_t block_slots=4096):
        cdef uint8_t shift = 0
        while (<uint32_t>1 << shift) < block_slots and shift < 16:
            shift += 1
        if shift == 0 or (<uint32_t>1 << shift) != block_slots:
            raise ValueError("block_slots must be a power of two from 2 to 65536")
        ring_init_sized(&self.ring, shift)

    def __dealloc__(self):
        ring_free(&self.ring)

    def __len__(self):
        return ring_size(&self.ring)

    @property
    def span(self):
        """The number of places, those of removed entries too."""
        return ring_span(&self.ring)

    @property
    def memory_size(self):
        """Bytes allocated for entries."""
        return ring_memory_size(&self.ring)

    def push_back(self, uint64_t a, uint64_t b=0, uint64_t c=0):
        """Append an entry. MemoryError changes nothing."""
        cdef Slot entry = Slot(a, b, c)
        if a == RING_REMOVED:
            raise ValueError("a must be below 2**64 - 1")
        if ring_push_back(&self.ring, &entry) < 0:
            raise MemoryError

    def push_front(self, uint64_t a, uint64_t b=0, uint64_t c=0):
        """Put an entry before the first. MemoryError changes nothing."""
        cdef Slot entry = Slot(a, b, c)
        if a == RING_REMOVED:
            raise ValueError("a must be below 2**64 - 1")
        if ring_push_front(&self.ring, &entry) < 0:
            raise MemoryError

    def pop_front(self):
        """Take the first entry; IndexError when there is none."""
        cdef Slot entry
        if not ring_pop_front(&self.ring, &entry):
            raise IndexError("the queue is empty")
        return entry_of(&entry)

    def pop_back(self):
        """Take the last entry; IndexError when there is none."""
        cdef Slot entry
        if not ring_pop_back(&self.ring, &entry):
            raise IndexError("the queue is empty")
        return entry_of(&entry)

    def get(self, size_t i):
        """The entry at place `i` from the front, None if it was removed; IndexError from `span` on."""
        cdef Slot* slot = ring_at(&self.ring, i)
        if slot != NULL:
            return entry_of(slot)
        if i < ring_span(&self.ring):
            return None
        raise IndexError("no such place")

    def remove(self, size_t i):
        """Remove the entry at place `i`; False when it is removed already. The others keep their places, but removed places before
        the first and behind the last entry disappear. IndexError from `span` on."""
        if i >= ring_span(&self.ring):
            raise IndexError("no such place")
        return ring_remove(&self.ring, i)

    def clear(self):
        """Remove all entries and give all memory back."""
        ring_free(&self.ring)


@cython.final
cdef class TopicTrie:
    """Topic patterns with ids, integers from 0 to 2**64 - 1; patterns and keys are bytes, of at most 255.

    Words are split at `.`; in a pattern `*` is one word, `#` none or more. Longer ones raise ValueError; MemoryError changes nothing.
    `block_slots` is a power of two from 8 to 4,096, and not 4,096 only in tests.
    """

    def __cinit__(self, *, uint32_t block_slots=4096):
        cdef uint32_t shift = 3
        cdef uint64_t seed = int.from_bytes(os.urandom(8), "little")
        while (<uint32_t>1 << shift) < block_slots and shift < TRIE_BLOCK_SHIFT:
            shift += 1
        if (<uint32_t>1 << shift) != block_slots:
            raise ValueError("block_slots must be a power of two from 8 to 4096")
        trie_init(&self.trie, seed, shift)

    def __dealloc__(self):
        trie_free(&self.trie)
        ids_free(&self.found)

    def __len__(self):
        """The number of (pattern, id) pairs."""
        return self.trie.size

    @property
    def memory_size(self):
        """Bytes allocated for patterns, words and matching."""
        return trie_memory_size(&self.trie)

    def add(self, bytes pattern not None, uint64_t id):
        """Give a pattern an id; False when it has it already."""
        return outcome(trie_add(&self.trie, pattern, len(pattern), id)) == 1

    def remove(self, bytes pattern not None, uint64_t id):
        """Take an id from a pattern; False when it does not have it."""
        return outcome(trie_remove(&self.trie, pattern, len(pattern), id)) == 1

    def match(self, bytes key not None):
        """The ids of all patterns that match the key, each once, in no order."""
        cdef size_t i
        self.found.count = 0
        outcome(trie_match_into(&self.trie, key, len(key), &self.found))
        ids = [self.found.items[i] for i in range(self.found.count)]
        if self.found.capacity > FOUND_KEPT_MAX:
            ids_free(&self.found)
        return ids

    def match_many(self, list keys not None):
        """The ids for many keys, as an array of 64-bit numbers, those of one key behind those of the one before; and where those of
        each key end in it."""
        cdef size_t i, count = len(keys)
        cdef bytes key
        cdef Ids found = Ids(NULL, 0, 0)
        ends = array("Q", bytes(8 * count))
        cdef uint64_t[::1] end = ends
        try:
            for i in range(count):
                key = keys[i]
                self.found.count = 0
                outcome(trie_match_into(&self.trie, key, len(key), &self.found))
                if ids_reserve(&found, found.count + self.found.count) < 0:
                    raise MemoryError
                if self.found.count != 0:
                    memcpy(&found.items[found.count], self.found.items, self.found.count * sizeof(uint64_t))
                found.count += self.found.count
                end[i] = found.count
            return array("Q", PyBytes_FromStringAndSize(<char*>found.items, found.count * sizeof(uint64_t))), ends
        finally:
            ids_free(&found)
            if self.found.capacity > FOUND_KEPT_MAX:
                ids_free(&self.found)

    def clear(self):
        """Remove everything and give all memory back."""
        trie_free(&self.trie)


cdef int outcome(int done) except -1:
    """The Python edge of a trie function's result."""
    if done == TRIE_NO_MEMORY:
        raise MemoryError
    if done == TRIE_TOO_LONG:
        raise ValueError(f"a topic has at most {TOPIC_LENGTH_MAX} bytes")
    return done
