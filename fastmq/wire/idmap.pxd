# A map from a 64-bit number (a session, a queue, a sequence) to a pointer-sized value, in C memory.
#
# Open addressing with linear probing and backward-shift deletion, at most three quarters full, halved when an eighth full. Key 0 is
# never stored. Runs in every process, without the GIL.
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free


cdef struct IdEntry:
    uint64_t key            # 0: empty
    uint64_t value


cdef struct IdMap:
    IdEntry* entries        # NULL before the first put
    size_t mask             # entries - 1
    size_t count


cdef inline void idmap_init(IdMap* m) noexcept nogil:
    m.entries = NULL
    m.mask = 0
    m.count = 0


cdef inline void idmap_free(IdMap* m) noexcept nogil:
    free(m.entries)
    idmap_init(m)


cdef inline size_t idmap_hash(uint64_t key) noexcept nogil:
    key ^= key >> 32
    key *= <uint64_t> 0x9e3779b97f4a7c15
    return <size_t> (key ^ (key >> 29))


cdef inline IdEntry* idmap_find(IdMap* m, uint64_t key) noexcept nogil:
    """The entry of `key`, or NULL. Void after the next put or remove."""
    cdef size_t i
    if m.count == 0:
        return NULL
    i = idmap_hash(key) & m.mask
    while m.entries[i].key:
        if m.entries[i].key == key:
            return &m.entries[i]
        i = (i + 1) & m.mask
    return NULL


cdef inline uint64_t idmap_get(IdMap* m, uint64_t key, uint64_t absent) noexcept nogil:
    cdef IdEntry* entry = idmap_find(m, key)
    return absent if entry == NULL else entry.value


cdef inline bint idmap_resize(IdMap* m, size_t room) noexcept nogil:
    cdef IdEntry* old = m.entries
    cdef size_t old_room = m.mask + 1 if old != NULL else 0
    cdef size_t i, j
    cdef IdEntry* entries = <IdEntry*> calloc(room, sizeof(IdEntry))
    if entries == NULL:
        return False
    m.entries = entries
    m.mask = room - 1
    for i in range(old_room):
        if old[i].key:
            j = idmap_hash(old[i].key) & m.mask
            while entries[j].key:
                j = (j + 1) & m.mask
            entries[j] = old[i]
    free(old)
    return True


cdef inline bint idmap_put(IdMap* m, uint64_t key, uint64_t value) noexcept nogil:
    """Set the value of `key`; False, and nothing changed, when there is no memory."""
    cdef size_t i
    if m.entries == NULL:
        if not idmap_resize(m, 8):
            return False
    elif (m.count + 1) * 4 > (m.mask + 1) * 3 and not idmap_resize(m, (m.mask + 1) * 2):
        return False
    i = idmap_hash(key) & m.mask
    while m.entries[i].key:
        if m.entries[i].key == key:
            m.entries[i].value = value
            return True
        i = (i + 1) & m.mask
    m.entries[i].key = key
    m.entries[i].value = value
    m.count += 1
    return True


cdef inline bint idmap_remove(IdMap* m, uint64_t key) noexcept nogil:
    """Whether the key was there."""
    cdef IdEntry* entry = idmap_find(m, key)
    cdef size_t hole, i, home
    if entry == NULL:
        return False
    hole = <size_t> (entry - m.entries)
    i = hole
    while True:
        i = (i + 1) & m.mask
        if m.entries[i].key == 0:
            break
        home = idmap_hash(m.entries[i].key) & m.mask
        if ((i - home) & m.mask) >= ((i - hole) & m.mask):
            m.entries[hole] = m.entries[i]
            hole = i
    m.entries[hole].key = 0
    m.count -= 1
    if m.mask >= 64 and m.count * 8 < m.mask:
        idmap_resize(m, (m.mask + 1) // 2)      # without memory it stays as it is
    return True
