# What a worker does for its log beside appending: extents that shards wish for, and checkpoints, so that the journal stays short.
#
# Owns: the checkpoint that is being made, and which shards hide something until the log has it. Rules: a checkpoint is made shard after shard,
# a bounded part in a turn, while everything goes on; it is begun when the journal behind the last one is too long, and begun anew when an
# extent found no room; messages become cold when those in memory are more than the mark. Runs in workers, without the GIL but for shard T's
# part.
#
#     idle --journal too long--> shard after shard: snapshot_begin, _step ... -> shard T --> Log.checkpoint --> idle
from cpython.ref cimport PyObject
from libc.stdint cimport int64_t, uint32_t, uint64_t

from fastmq.model.shard cimport Shard
from fastmq.server.fifo cimport Fifo
from fastmq.storage.log cimport Log
from fastmq.wire.buffer cimport Buffer


cdef class Checkpointer:
    cdef PyObject** shard_of            # the workshop's, SHARDS_MAX of them
    cdef Fifo* touched                  # the workshop's: shards to which something has happened
    cdef Fifo hiding                    # those with something that may be delivered once the log has it
    cdef Log log
    cdef object desk                    # TopologyDesk, None but on worker 0
    cdef bint failed                    # no memory, a damaged extent, or `error`
    cdef object error
    cdef bint pending                   # the log has extents or a checkpoint in hand
    cdef uint64_t reads                 # extents that were asked for and have not come
    cdef readonly bint active           # a checkpoint is being made
    cdef bint begun                     # of its shard in hand, the snapshot
    cdef uint32_t at                    # that shard
    cdef Buffer blob                    # what has been written of it
    cdef Buffer states                  # those that are done, as Log.checkpoint wants them
    cdef uint64_t position              # the least that one of them has
    cdef int64_t not_before_ns          # after a failure for want of room
    cdef uint64_t tail_size_max
    cdef uint64_t memory_mark           # bytes of messages in memory
    cdef uint64_t memory                # as of the last tick
    cdef uint32_t aged                  # shard whose turn it is to let messages become cold

    # What a shard's records and wishes are, to the log. False: failed.
    cdef bint keep(self, Shard shard) noexcept nogil
    cdef bint grant(self, Shard shard) noexcept nogil
    # The log has everything up to here: what was hidden until then may be delivered.
    cdef void show(self, uint64_t durable) noexcept nogil
    # Once in a turn: what the log has ready, and a part of what is to be done. Whether there is more to do at once.
    cdef bint turn(self, int64_t now_ns) noexcept nogil
    # At each tick.
    cdef void measure(self) noexcept nogil
    # private
    cdef void take_extents(self, int64_t now_ns) noexcept nogil
    cdef bint step(self, int64_t now_ns) noexcept nogil
    cdef bint finish(self, uint64_t position, uint32_t shard) noexcept nogil
    cdef void add_topology(self) noexcept with gil
    cdef void abandon(self, int64_t not_before_ns) noexcept nogil
    cdef bint age(self) noexcept nogil


cdef inline bint has_wishes(Shard shard) noexcept nogil:
    return shard.state.extents.writes.size + shard.state.extents.reads.size + shard.state.extents.frees.size != 0
