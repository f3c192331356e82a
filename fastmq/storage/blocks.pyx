"""The end of a file that grows by whole blocks (see blocks.pxd)."""
from libc.stdlib cimport free
from libc.string cimport memcpy, memmove, memset

from fastmq.storage.files cimport write_all


cdef enum:
    STAGE_SIZE = 1048576        # bytes that are written at once


cdef extern from "stdlib.h" nogil:
    int posix_memalign(void** memory, size_t alignment, size_t size)


cdef bint blocks_init(Blocks* b) noexcept nogil:
    """False: no memory."""
    b.held = 0
    b.memory = NULL
    return posix_memalign(<void**> &b.memory, BLOCK_SIZE, STAGE_SIZE) == 0


cdef void blocks_free(Blocks* b) noexcept nogil:
    free(b.memory)
    b.memory = NULL


cdef void blocks_begin(Blocks* b) noexcept nogil:
    """What comes next begins a block."""
    b.held = 0


cdef int blocks_write(Blocks* b, FileCalls* files, int fd, const uint8_t* data, size_t size, uint64_t offset) noexcept nogil:
    """Write behind what was written last, at `offset`. 0, or -errno: then nothing may follow in this file."""
    cdef size_t part, filled, whole
    cdef int failed
    while size:
        part = min(size, STAGE_SIZE - b.held)
        filled = b.held + part
        whole = (filled + BLOCK_SIZE - 1) & ~<size_t> (BLOCK_SIZE - 1)
        memcpy(b.memory + b.held, data, part)
        memset(b.memory + filled, 0, whole - filled)
        failed = write_all(files, fd, b.memory, whole, offset - b.held)
        if failed:
            return failed
        data += part
        size -= part
        offset += part
        b.held = filled & (BLOCK_SIZE - 1)
        memmove(b.memory, b.memory + filled - b.held, b.held)
    return 0


cdef uint8_t* blocks_zeros(size_t size) noexcept nogil:
    """`size` zero bytes from a block's border on, for `free`; NULL: no memory."""
    cdef void* memory = NULL
    if posix_memalign(&memory, BLOCK_SIZE, size):
        return NULL
    memset(memory, 0, size)
    return <uint8_t*> memory
