# Which units of the file `extents` are free: one byte for each, first fit.
#
# Owns: that map. Rules: `lowest` is at or below the first free unit. Under the lock of Extents, without the GIL.
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from fastmq.wire.buffer cimport Buffer, buffer_extend


cdef enum Unit:
    UNIT_FREE = 0               # takes no room on the disk
    UNIT_USED = 1
    UNIT_DIRTY = 2              # free, and may take room


cdef struct Units:
    Buffer states               # Unit, a byte each
    uint64_t lowest
    uint64_t used
    uint32_t size               # bytes of one


cdef inline uint64_t units_count(const Units* u, uint64_t size) noexcept nogil:
    """How many hold so many bytes; at least one."""
    return (size + u.size - 1) // u.size if size else 1


cdef inline bint units_grow(Units* u, uint64_t count) noexcept nogil:
    """Know at least so many; new ones may be dirty. False: no memory."""
    cdef size_t known = u.states.size
    if count <= known:
        return True
    if buffer_extend(&u.states, <size_t> (count - known)) == NULL:
        u.states.failed = False
        return False
    memset(u.states.data + known, UNIT_DIRTY, <size_t> (count - known))
    return True


cdef inline bint units_claim(Units* u, uint64_t unit, uint64_t count) noexcept nogil:
    """Use these. False: no memory, or one of them is used already."""
    cdef uint64_t i
    if not units_grow(u, unit + count):
        return False
    for i in range(unit, unit + count):
        if u.states.data[i] == UNIT_USED:
            return False
        u.states.data[i] = UNIT_USED
    u.used += count
    return True


cdef inline bint units_take(Units* u, uint64_t count, uint64_t* unit) noexcept nogil:
    """Use the first free run that is long enough, behind the end of the file if need be. False: no memory."""
    cdef uint64_t at = u.lowest, run = 0
    while at < u.states.size and run < count:
        if u.states.data[at] == UNIT_USED:
            if at == u.lowest:
                u.lowest += 1
            run = 0
        else:
            run += 1
        at += 1
    unit[0] = at - run
    return units_claim(u, unit[0], count)


cdef inline void units_release(Units* u, uint64_t unit, uint64_t count) noexcept nogil:
    memset(u.states.data + unit, UNIT_DIRTY, <size_t> count)
    u.used -= count
    if unit < u.lowest:
        u.lowest = unit


cdef inline uint64_t units_run(const Units* u, uint64_t* at, uint64_t* dirty) noexcept nogil:
    """The end of the first free run at or behind `at`, which moves to its beginning; `dirty`: how many of it may take room. An empty run:
    there is none."""
    cdef uint64_t end
    while at[0] < u.states.size and u.states.data[at[0]] == UNIT_USED:
        at[0] += 1
    end = at[0]
    dirty[0] = 0
    while end < u.states.size and u.states.data[end] != UNIT_USED:
        dirty[0] += u.states.data[end] == UNIT_DIRTY
        end += 1
    return end
