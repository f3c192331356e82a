# Where a publish goes, remembered for each (vhost, exchange, routing key).
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t


cdef struct Destination:
    uint64_t queue
    uint16_t shard
    uint16_t worker
    uint32_t padding


cdef struct Route:                  # one block of memory, with what its pointers point to
    Route* next                     # in its bucket
    uint64_t hash
    uint32_t vhost
    uint32_t exchange_size
    uint32_t key_size
    uint32_t code                   # why nothing can be published here (Code), or 0
    uint32_t count                  # destinations; 0: unroutable
    uint32_t patterns_count
    uint32_t workers                # bits of the workers that have a destination
    Destination* destinations       # ascending by (worker, shard, queue)
    uint32_t* patterns              # live subscriptions that match: indexes of LivePatterns
    uint8_t* name                   # exchange, routing key


cdef class RouteCache:
    cdef Route** buckets
    cdef size_t mask
    cdef readonly size_t count
    cdef readonly size_t size       # bytes of all routes
    cdef size_t size_max
    cdef uint64_t[2] seed

    cdef Route* find(
        self, uint32_t vhost, const uint8_t* exchange, uint32_t exchange_size, const uint8_t* key, uint32_t key_size
    ) noexcept nogil
    cdef Route* add(
        self, uint32_t vhost, const uint8_t* exchange, uint32_t exchange_size, const uint8_t* key, uint32_t key_size,
        uint32_t code, list destinations, list patterns
    ) except NULL
    cdef void clear(self) noexcept nogil
    cdef uint64_t hash_of(
        self, uint32_t vhost, const uint8_t* exchange, uint32_t exchange_size, const uint8_t* key, uint32_t key_size
    ) noexcept nogil
