"""What a worker reads from its log, or from those of another number of workers, before it serves.

Owns: nothing. Rules: entries of shards that live elsewhere are passed over; what is taken over from other logs is durable in this worker's own
before it is ready. Runs in workers, while they start.
"""
import os
from collections.abc import Sequence

import msgpack

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from fastmq.model.pieces cimport EXTENT_COUNTER_BITS
from fastmq.model.shard cimport Shard
from fastmq.server.checkpointer cimport Checkpointer
from fastmq.storage.failpoints cimport MID_TAKE_OVER, failpoint
from fastmq.storage.log cimport SHARD_TOPOLOGY, BatchView, EntryHead, Log, LogReader, entry_next
from fastmq.wire.limits cimport SHARDS_MAX

from fastmq.errors import JournalDamaged
from fastmq.model.shard import BadRecord
from fastmq.storage.checkpoint import Checkpoint
from fastmq.storage.crc32c import checksum
from fastmq.storage.file_log import FileLog
from fastmq.storage.files import Files


cdef enum:
    PROGRESS_COUNT = 16384              # entries between two calls of `progress`


cdef void apply_blob(const uint8_t* blob, size_t size, uint32_t index, uint64_t position, list shards, object topology,
                     int64_t now_ns) except *:
    """Apply records to whom they concern."""
    cdef Shard shard
    if index == SHARD_TOPOLOGY:
        topology.recover(msgpack.unpackb((<const char*> blob)[:size]))
        return
    shard = shards[index]
    if shard.recover(blob, size, now_ns) != 0:
        what = f"entry {position}" if position else "the checkpoint"
        raise BadRecord(f"{what} of the log does not fit what stands before it, in shard {index}")


def recover(log: Log, epoch: int, shards: list[Shard | None], topology: object, now_ns: int, progress: object = None) -> None:
    """Apply what the log has to `shards` and to shard T, None where that is elsewhere, and open it.

    `progress`: called now and then with the number of entries applied. Raises BadRecord, and what reading and opening raise; the worker is
    then of no use. The log is read once: what is damaged further on is found when what lies before it is applied, and nobody was served.
    """
    cdef LogReader reader = log.read()
    apply(reader, shards, topology, now_ns, progress)
    log.open(epoch, reader)
    for shard in shards:
        if shard is not None:
            shard.recovered()


def take_over(log: Log, epoch: int, folders: Sequence[str], shards: list[Shard | None], topology: object, checkpointer: Checkpointer,
              now_ns: int, progress: object = None) -> None:
    """The same with the logs of another number of workers, in `folders`; on return what concerns this one is durable in `log`,
    as a checkpoint.

    Nothing in those folders is changed: other workers read them at the same time.
    """
    log.open(epoch)
    for folder in folders:
        apply(FileLog(folder).read(), shards, topology, now_ns, progress)
        copy_extents(log, folder, shards)
        failpoint(MID_TAKE_OVER)
    for shard in shards:
        if shard is not None:
            shard.recovered()
    checkpointer.make()


def copy_extents(log: Log, folder: str, shards: list[Shard | None]) -> None:
    """Write the extents of these shards into another log."""
    places = [place for place in Checkpoint(Files(), folder).places if shards[place[0] >> EXTENT_COUNTER_BITS] is not None]
    if not places:
        return
    path = os.path.join(folder, "extents")
    with open(path, "rb", buffering=0) as file:
        for number, offset, size, crc in places:
            payload = os.pread(file.fileno(), size, offset)
            if len(payload) != size or checksum(payload) != crc:
                raise JournalDamaged(f"{path} is damaged at {offset}; what it kept is only there and in a backup", path, offset)
            log.write_extent(number, payload)


cdef void apply(LogReader reader, list shards, object topology, int64_t now_ns, object progress) except *:
    """Apply all that is left of a log."""
    cdef BatchView view
    cdef const uint8_t* entry
    cdef const EntryHead* head
    cdef uint32_t i
    cdef uint64_t applied = 0, told = 0
    cdef dict known = {}                # shard -> position up to which the checkpoint includes its entries
    while reader.next_batch(&view):
        if progress is not None and applied >= told + PROGRESS_COUNT:
            told = applied
            progress(applied)
        applied += view.count
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
    reader.check()
