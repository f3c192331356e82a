# The file `checkpoint`, version 1: the small state of all shards of a worker, and where its extents lie.
#
#     | CheckpointHead | CheckpointExtent, extent_count times | entries as in a batch: EntryHead, blob, EntryHead, blob ... |
#
# Native byte order. Written as `checkpoint.new`, synced, renamed, the folder synced. What the blobs are is the model's.
from libc.stdint cimport uint32_t, uint64_t

from fastmq.storage.files cimport Files
from fastmq.storage.log cimport BatchView
from fastmq.wire.buffer cimport Buffer


cdef extern from *:
    """
    #define CHECKPOINT_MARK 0x4b484351514d46ffull       /* the bytes ff FMQQCHK */
    """
    const uint64_t CHECKPOINT_MARK


cdef enum:
    CHECKPOINT_VERSION = 1


cdef struct CheckpointHead:
    uint64_t mark
    uint32_t version
    uint32_t byte_order
    uint64_t position           # the journal is needed behind it
    uint64_t epoch              # of the owner
    uint64_t extent_count
    uint64_t entries_size
    uint32_t entry_count
    uint32_t unit_size
    uint32_t zero
    uint32_t crc                # of all that follows, and then of all before it


cdef struct CheckpointExtent:
    uint64_t number
    uint64_t unit
    uint64_t size
    uint32_t crc                # of the payload
    uint32_t zero


cdef class Checkpoint:
    """What the file says."""
    cdef unsigned char* data            # NULL: there is none
    cdef const CheckpointHead* head
    cdef const CheckpointExtent* extents

    cdef void view(self, BatchView* out) noexcept nogil


# writing one: the head's room, `checkpoint_add` for each extent, `checkpoint_head`, the entries' CRC
cdef void checkpoint_add(Buffer* file, uint64_t number, uint64_t unit, uint64_t size, uint32_t crc) noexcept nogil
cdef void checkpoint_head(Buffer* file, const Buffer* entries, uint64_t position, uint64_t epoch, uint32_t unit_size) noexcept nogil
cdef uint32_t checkpoint_crc(const CheckpointHead* head, uint32_t behind) noexcept nogil
