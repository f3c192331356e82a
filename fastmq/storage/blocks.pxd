# The end of a file that grows by whole blocks, so that what is written may pass by the kernel's page cache (O_DIRECT): there each byte
# would take new memory, for nobody who reads it.
#
# Owns: memory on a block's border, with the last block as far as it is written, and what is put behind that. Rules: what stands in that
# block is written again, the same, with what comes behind it and zeros up to the block's end, so that a tear leaves it as it was.
# Runs on the journal's writer, or who is in its place, without the GIL.
from libc.stdint cimport uint8_t, uint64_t

from fastmq.storage.files cimport FileCalls


cdef enum:
    BLOCK_SIZE = 4096           # a multiple of what the disks that there are ask for


cdef struct Blocks:
    uint8_t* memory
    size_t held                 # bytes of the last block


cdef bint blocks_init(Blocks* b) noexcept nogil
cdef void blocks_free(Blocks* b) noexcept nogil
cdef void blocks_begin(Blocks* b) noexcept nogil
cdef int blocks_write(Blocks* b, FileCalls* files, int fd, const uint8_t* data, size_t size, uint64_t offset) noexcept nogil
cdef uint8_t* blocks_zeros(size_t size) noexcept nogil
