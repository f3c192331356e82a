# CRC32C (Castagnoli), by the processor's own instruction where it has one.
from libc.stdint cimport uint32_t


cdef uint32_t crc32c(uint32_t crc, const void* data, size_t size) noexcept nogil   # `crc`: of the bytes before, or a seed; 0 at the start
