# The log: where a worker writes the records of all its shards, so that they can be applied again after its death.
#
# Owns: the interface, and the log that keeps nothing (`Log` itself; the file one is storage/file_log.pxd). Rules: an entry is copied into the
# batch that fills; one batch is in flight at a time, and the next one fills meanwhile; a failed write or sync is never tried again: the owner
# ends, and recovers from what is there; what was `durable` is read again after any death. All calls come from the worker's one thread, without
# the GIL but for those that Python makes, and none of them waits for a disk but `open`, `read`, `close` and `write_here`.
#
#     append, append, ... -> [ batch that fills ] --submit--> [ batch in flight ] --journal thread: write, sync--> durable, fileno readable
#
# The journal holds only the tail. What lives longer is copied into *extents*, payloads of about 256 KiB under numbers that shards choose, and
# a *checkpoint* holds all the rest; then the journal is trimmed. An extent counts only with a checkpoint that was begun after it was written.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from fastmq.wire.buffer cimport Buffer


cpdef enum RecordLevel:         # which records a shard has to make for its log
    RECORDS_NONE = 0            # none: nothing is ever read again
    RECORDS_ALL = 1             # of transient queues too: tests
    RECORDS_DURABLE = 2


cpdef enum LogShard:
    SHARD_TOPOLOGY = 0xffff     # the number under which the topology's shard T appends


cdef struct EntryHead:          # what stands before the bytes of an entry, in a batch
    uint32_t size               # bytes of the blob, which is padded with zeros to a multiple of 8
    uint16_t shard
    uint16_t zero


cdef struct BatchView:          # entries of consecutive positions, as they were appended
    uint64_t first              # position of the first; 0: these are a checkpoint's, which have none
    uint32_t count
    const uint8_t* entries      # EntryHead, blob, EntryHead, blob ...; 8-byte aligned
    size_t size                 # bytes of all of them


cdef struct ExtentRead:         # what became of an extent
    uint64_t number
    Buffer payload              # what was read, the caller's to free; empty where `error` is set
    int error                   # 0; ENOSPC: it could not be written, and is not there; EBADMSG: it is damaged; else errno of a read


cdef inline const uint8_t* entry_next(const uint8_t* entry) noexcept nogil:
    """The entry behind this one; only the view's `count` says whether there is one."""
    return entry + sizeof(EntryHead) + ((<size_t> (<const EntryHead*> entry).size + 7) & ~<size_t> 7)


cdef inline bint entries_fit(const uint8_t* entries, size_t size, uint32_t count) noexcept nogil:
    """Whether `count` entries take exactly `size` bytes."""
    cdef const uint8_t* end = entries + size
    while count:
        if <size_t> (end - entries) < sizeof(EntryHead):
            return False
        if <size_t> (end - entries) < sizeof(EntryHead) + ((<size_t> (<const EntryHead*> entries).size + 7) & ~<size_t> 7):
            return False
        entries = entry_next(entries)
        count -= 1
    return entries == end


cdef class LogReader:
    """Reads a log from a position on; this one finds nothing. For Python an iterator of (position, shard, bytes)."""
    cdef BatchView view             # of the iterator
    cdef const uint8_t* entry       # its next one
    cdef uint32_t left              # entries that it has still to give of the view

    cdef bint next_batch(self, BatchView* out) noexcept nogil


cdef class Log:
    """The log of a broker without a data directory: keeps nothing, so that everything is durable at once."""
    cdef readonly int record_level
    cdef readonly uint64_t appended     # position of the last entry; positions rise by one an entry, from 1, over all shards
    cdef readonly uint64_t submitted    # of the last entry of the last batch that was given to the journal thread
    cdef readonly uint64_t durable      # up to here everything survives any death, as of the last `look`
    cdef readonly bint failed           # a write or sync failed: nothing more becomes durable, the owner ends; `error` says what
    cdef readonly bint full             # no room for the next segment or an extent, as of the last `look`; goes on by itself when there is
    cdef readonly uint64_t checkpointed  # position of the last durable checkpoint, as of the last `look`; 0: there is none
    cdef readonly bint checkpointing    # one is being written, as of the last `look`
    cdef readonly uint64_t tail_size    # bytes of journal behind it, as of the last `look`
    cdef readonly uint64_t extent_bytes  # that extents take on disk, as of the last `look`
    cdef readonly uint64_t extent_pending  # bytes of those that wait in memory to be written, as of the last `look`

    cdef bint append(self, uint32_t shard, const uint8_t* records, size_t size) noexcept nogil
    cdef void submit(self) noexcept nogil
    cdef bint write_here(self) noexcept nogil
    cdef uint64_t look(self) noexcept nogil
    cdef uint64_t peek(self) noexcept nogil
    cdef bint extent_write(self, uint64_t number, Buffer* payload) noexcept nogil
    cdef bint extent_read(self, uint64_t number) noexcept nogil
    cdef bint extent_next(self, ExtentRead* out) noexcept nogil
    cdef void extent_free(self, uint64_t number) noexcept nogil
    cdef bint checkpoint(self, uint64_t position, Buffer* states) noexcept nogil
