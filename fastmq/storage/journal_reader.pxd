# Reads a journal and judges what it finds: the one way in which segments are read, by `FileLog.open`, `FileLog.read` and `fastmq journal`.
#
# Owns: a window on the segment that is read. Rules: every byte is checked each time; nothing is written. Where no good batch follows,
#
#     the next segment begins with the position that is due      the segment ended there; what lies behind was cut earlier
#     the next segment begins with a later one                   DAMAGE: it was begun only when all before it was durable
#     a good batch anywhere later knew that position durable     DAMAGE: refuse to start
#     something was written there                                a TEAR: nobody was ever told of it. Cut, and told
#     nothing was                                                the end
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from fastmq.storage.checkpoint cimport Checkpoint
from fastmq.storage.files cimport FileCalls, Files
from fastmq.storage.log cimport BatchView, LogReader
from fastmq.storage.segments cimport BatchHead


cdef enum ReaderState:
    READER_READS
    READER_END
    READER_TEAR
    READER_DAMAGE
    READER_ERROR                # a file call failed


cdef struct SegmentFile:        # what its head says
    uint64_t number
    uint64_t first
    uint64_t salt
    uint64_t size
    uint64_t epoch
    bint recycled


cdef class JournalReader(LogReader):
    cdef readonly Checkpoint checkpoint     # that it began with; None: with none
    cdef bint gives_checkpoint          # its entries are still to be given
    cdef Files files
    cdef FileCalls* calls
    cdef readonly str folder
    cdef bytes folder_bytes
    cdef char* path                     # of the folder, in `folder_bytes`
    cdef SegmentFile* segments
    cdef size_t count
    cdef size_t at                      # the segment that is read
    cdef int fd                         # of it; -1: not open
    cdef readonly uint64_t offset       # of the next batch in it
    cdef readonly uint64_t expected     # position of the next entry
    cdef uint64_t start                 # entries from here on are given
    cdef readonly uint64_t epoch        # the highest that was found
    cdef uint64_t doubt                 # in the segment that is read: from here on nothing says that it is durable
    cdef ReaderState state
    cdef int error                      # errno
    cdef uint64_t claim                 # what is found behind a bad batch says that all up to here was durable
    cdef uint64_t cut_size              # bytes of a tear, up to the last that is not zero
    cdef uint8_t* window
    cdef size_t window_room
    cdef uint64_t window_at
    cdef size_t window_size

    cdef const uint8_t* look_at(self, uint64_t offset, size_t size) noexcept nogil
    cdef bint open_segment(self) noexcept nogil
    cdef void close_segment(self) noexcept nogil
    cdef const BatchHead* good_batch(self, uint64_t offset) noexcept nogil
    cdef bint read_batch(self, BatchView* out) noexcept nogil
    cdef bint sound(self, const uint8_t* data, size_t size) noexcept nogil
    cdef void judge(self) noexcept nogil
    cdef bint search(self, uint64_t offset) noexcept nogil
