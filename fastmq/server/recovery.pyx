"""What a worker reads from its log, or from those of another number of workers, before it serves.

Owns: nothing. Rules: entries of shards that live elsewhere are passed over; what is taken over from other logs is durable in this worker's own
before it is ready. Runs in workers, while they start.
"""
import msgpack

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from fastmq.model.shard cimport Shard
from fastmq.storage.log cimport SHARD_TOPOLOGY, BatchView, EntryHead, Log, LogReader, entry_next
from fastmq.wire.limits cimport SHARDS_MAX

from fastmq.model.shard import BadRecord


cdef enum:
    TAKE_OVER_SIZE = 8388608        # bytes that are taken over between two submits


cdef void apply_blob(const uint8_t* blob, size_t size, uint32_t index, uint64_t position, list shards, object topology, int64_t now_ns) except *:
    """Apply records to whom they concern."""
    cdef Shard shard
    if index == SHARD_TOPOLOGY:
        topology.recover(msgpack.unpackb((<const char*> blob)[:size]))
        return
    shard = shards[index]
    if shard.recover(blob, size, now_ns) != 0:
        what = f"entry {position}" if position else "the checkpoint"
        raise BadRecord(f"{what} of the log does not fit what stands before it, in shard {index}")


def recover(log: Log, old_logs: object, shards: list[Shard | None], topology: object, now_ns: int) -> None:
    """Apply what the logs have to `shards` and to shard T, None where that is elsewhere.

    Raises BadRecord, and what reading raises; the worker is then of no use.
    """
    read(log, None, shards, topology, now_ns)
    for other in old_logs:
        read(other, log, shards, topology, now_ns)
    for shard in shards:
        if shard is not None:
            shard.recovered()


cdef void read(Log log, Log taker, list shards, object topology, int64_t now_ns) except *:
    """Apply one log; append what was applied to `taker`."""
    cdef LogReader reader = log.read()
    cdef BatchView view
    cdef const uint8_t* entry
    cdef const EntryHead* head
    cdef uint32_t i
    cdef size_t size = 0
    cdef dict known = {}                # shard -> position up to which the checkpoint includes its entries
    while reader.next_batch(&view):
        entry = view.entries
        for i in range(view.count):
            head = <const EntryHead*> entry
            entry = entry_next(entry)
            if (topology is None) if head.shard == SHARD_TOPOLOGY else (head.shard >= SHARDS_MAX or shards[head.shard] is None):
                continue
            if view.first == 0:
                known[head.shard] = (<const uint64_t*> (head + 1))[0]
                apply_blob(<const uint8_t*> (head + 1) + sizeof(uint64_t), head.size - sizeof(uint64_t), head.shard, 0, shards,
                           topology, now_ns)
                continue
            if view.first + i <= known.get(head.shard, 0):
                continue
            apply_blob(<const uint8_t*> (head + 1), head.size, head.shard, view.first + i, shards, topology, now_ns)
            if taker is not None:
                if not taker.append(head.shard, <const uint8_t*> (head + 1), head.size):
                    raise MemoryError
                size += head.size
                if size >= TAKE_OVER_SIZE:
                    taker.make_durable()
                    size = 0
    reader.check()
    if taker is not None:
        taker.make_durable()
