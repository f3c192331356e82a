# Blocks of memory that are used again, because pages that come anew from the kernel cost more than what is written into them.
#
# Owns: the blocks that nobody uses now. Rules: bounded in number and bytes; a block is given out where it is not much larger than what is asked
# for; one that finds no place is freed. A block is malloc'ed: whoever has one may also free it. No I/O, no GIL. Runs in clients and front-ends.
from libc.stdint cimport uint8_t
from libc.stdlib cimport free, malloc


cdef enum:
    BLOCKS_MAX = 64
    BLOCKS_SIZE_MAX = 67108864          # bytes of all: the window of a consumer
    BLOCK_SIZE_MIN = 32768              # smaller ones are not worth it
    BLOCK_SLACK = 262144                # bytes by which a block may be larger than four times what is asked for


cdef struct Blocks:
    uint8_t* data[BLOCKS_MAX]
    size_t room[BLOCKS_MAX]
    int count
    size_t size                         # bytes of all


cdef inline uint8_t* blocks_take(Blocks* b, size_t size, size_t* room) noexcept nogil:
    """A block of at least `size` bytes, and how many it has, its owner's from now on; NULL: no memory."""
    cdef uint8_t* data
    cdef int i = b.count
    while i:
        i -= 1
        if size <= b.room[i] <= 4 * size + BLOCK_SLACK:
            data = b.data[i]
            room[0] = b.room[i]
            b.size -= b.room[i]
            b.count -= 1
            b.data[i] = b.data[b.count]
            b.room[i] = b.room[b.count]
            return data
    room[0] = size
    return <uint8_t*> malloc(size)


cdef inline void blocks_give(Blocks* b, uint8_t* data, size_t room) noexcept nogil:
    """A block that is used no more; NULL: none."""
    if data == NULL or room < BLOCK_SIZE_MIN or b.count == BLOCKS_MAX or b.size + room > BLOCKS_SIZE_MAX:
        free(data)
        return
    b.data[b.count] = data
    b.room[b.count] = room
    b.count += 1
    b.size += room


cdef inline void blocks_free(Blocks* b) noexcept nogil:
    while b.count:
        b.count -= 1
        free(b.data[b.count])
    b.size = 0
