# The links of a front-end to its workers, and which worker has which shard.
from cpython.ref cimport PyObject
from libc.stdint cimport uint8_t, uint16_t, uint32_t

from fastmq.wire.limits cimport SHARDS_MAX, WORKERS_MAX


cdef inline size_t padded(size_t size) noexcept nogil:
    """What `size` bytes take in a message of wire/link.pxd."""
    return (size + 7) & ~<size_t> 7


cdef class Workers:
    cdef readonly int count                     # workers of the broker, up or not
    cdef readonly int shards
    cdef PyObject* links[WORKERS_MAX]            # Link, borrowed from `_links`; NULL: the worker is down
    cdef list _links
    cdef readonly uint32_t up                   # bits of the workers that have a link
    cdef uint16_t[SHARDS_MAX] of_shard          # shard -> worker
    cdef uint32_t written                       # bits of the links written to since the last flush

    cdef uint8_t* begin(self, int worker, uint16_t kind, uint16_t shard, size_t size) noexcept nogil
    cdef void commit(self, int worker) noexcept nogil
    cdef bint add(self, int worker, uint16_t kind, uint16_t shard, const void* data, size_t size) noexcept nogil
    cdef void flush(self) noexcept nogil
