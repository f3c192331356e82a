# Shards that wait for something, each once, in the order they came. In workers, without the GIL.
from libc.stdint cimport uint8_t, uint16_t, uint32_t

from fastmq.wire.limits cimport SHARDS_MAX


cdef struct Fifo:               # shards that wait for something, each once
    uint16_t[SHARDS_MAX] items
    uint8_t[SHARDS_MAX] waits   # by shard
    uint32_t first
    uint32_t count


cdef inline void fifo_add(Fifo* f, uint32_t shard) noexcept nogil:
    if not f.waits[shard]:
        f.waits[shard] = 1
        f.items[(f.first + f.count) % SHARDS_MAX] = <uint16_t> shard
        f.count += 1


cdef inline uint32_t fifo_take(Fifo* f) noexcept nogil:
    """The shard that has waited longest. There is one."""
    cdef uint32_t shard = f.items[f.first]
    f.first = (f.first + 1) % SHARDS_MAX
    f.count -= 1
    f.waits[shard] = 0
    return shard
