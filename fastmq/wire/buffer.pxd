# A growable run of bytes in C memory, the one way bytes are gathered on the hot path.
#
# Owns: its malloc'ed block. Rules: a failed allocation sets `failed` and drops what follows, so that a writer checks once, at the end;
# pointers into a buffer are void after the next reserve. Runs in every process, without the GIL.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memmove, memset


cdef struct Buffer:
    uint8_t* data       # the block, NULL before the first reserve
    size_t size         # bytes written
    size_t room         # bytes allocated
    bint failed         # an allocation failed since the last buffer_clear


cdef inline void buffer_init(Buffer* b) noexcept nogil:
    b.data = NULL
    b.size = 0
    b.room = 0
    b.failed = False


cdef inline void buffer_free(Buffer* b) noexcept nogil:
    free(b.data)
    buffer_init(b)


cdef inline void buffer_clear(Buffer* b) noexcept nogil:
    """Forget the bytes, keep the block."""
    b.size = 0
    b.failed = False


cdef inline bint buffer_grow(Buffer* b, size_t extra) noexcept nogil:
    cdef size_t room = b.room * 2 if b.room else 256
    while room < b.size + extra:
        room *= 2
    cdef uint8_t* data = <uint8_t*> realloc(b.data, room)
    if data == NULL:
        b.failed = True
        return False
    b.data = data
    b.room = room
    return True


cdef inline uint8_t* buffer_reserve(Buffer* b, size_t extra) noexcept nogil:
    """Room for `extra` more bytes behind `size`, which does not move; NULL when there is no memory."""
    if b.size + extra > b.room and not buffer_grow(b, extra):
        return NULL
    return b.data + b.size


cdef inline uint8_t* buffer_extend(Buffer* b, size_t extra) noexcept nogil:
    """`extra` more bytes, not yet set, counted as written; NULL when there is no memory."""
    cdef uint8_t* at = buffer_reserve(b, extra)
    if at != NULL:
        b.size += extra
    return at


cdef inline void buffer_add(Buffer* b, const void* data, size_t size) noexcept nogil:
    cdef uint8_t* at = buffer_reserve(b, size)
    if at != NULL and size:
        memcpy(at, data, size)
        b.size += size


cdef inline void buffer_pad8(Buffer* b) noexcept nogil:
    """Zero bytes up to the next multiple of 8."""
    cdef size_t extra = (8 - (b.size & 7)) & 7
    cdef uint8_t* at = buffer_extend(b, extra)
    if at != NULL and extra:
        memset(at, 0, extra)


cdef inline void buffer_drop_front(Buffer* b, size_t size) noexcept nogil:
    """Forget the first `size` bytes."""
    if size >= b.size:
        b.size = 0
    else:
        memmove(b.data, b.data + size, b.size - size)
        b.size -= size
