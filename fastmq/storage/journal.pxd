# The journal's two threads: the writer, which makes batches durable, and the keeper, which makes room for the next segments.
#
# Owns: the segment that is written, the finished ones' list, the spares, the eventfd. Rules: neither thread takes the GIL; one batch is in
# flight, the next one fills; a batch holds whole turns of the worker (all that was appended up to a `submit`); segment n+1 is begun only after
# n is synced, and has its name before anything in it is told durable; a failed write or sync is never tried again. What is appended, and said,
# is under `lock`, which nobody holds during a call that can wait. While the writer has nothing to do the worker may take its place for one
# batch of up to 128 KiB, if the disk has been quick of late: a disk that stalls holds up the worker once, and not again before it was quick
# for so many batches in a row.
#
#     worker: append -> fill --submit: mark--> writer: fill <-> flight, write, sync, `durable`, bell; nothing for a while: an empty batch
#     keeper: spare-N ready (made, or a segment that is not needed any more) --roll--> writer: head, first batch, sync, rename, sync the folder
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from fastmq.storage.blocks cimport Blocks
from fastmq.storage.files cimport FileCalls
from fastmq.storage.posix cimport pthread_cond_t, pthread_mutex_t, pthread_t
from fastmq.wire.buffer cimport Buffer


cdef enum:
    SPARES_MAX = 2              # files that wait to be segments
    QUICK_COUNT = 16            # quick batches in a row after which the worker may write a small batch itself,
    QUICK_COUNT_LARGE = 64      # and one that is not so small


cdef struct Segment:            # one that is finished
    uint64_t number
    uint64_t first
    uint64_t last               # position of its last entry; first - 1: it has none
    uint64_t size               # of the file
    uint64_t begin              # bytes that the journal had written before it


cdef struct Spare:
    uint64_t serial             # in its name
    uint64_t size
    int fd
    bint recycled


cdef struct Failure:
    int error                   # errno; 0: none
    char[16] call
    char[64] name               # of the file


cdef struct Journal:
    FileCalls* files
    char* folder
    uint64_t epoch
    uint64_t segment_size       # of those to come
    int bell                    # eventfd: something new is said
    # said to the worker, atomically
    uint64_t durable
    uint64_t written            # bytes of batches, since `open` found so many
    uint64_t rung               # how often the bell was rung
    uint64_t failed
    uint64_t full               # no room for the next segment
    # under `lock`
    pthread_mutex_t lock
    pthread_cond_t work         # for the writer: something was submitted
    pthread_cond_t room         # for the writer: there is a spare
    pthread_cond_t house        # for the keeper
    pthread_cond_t watch        # for who waits in `journal_wait`
    uint64_t watched            # the position that is waited for; 0: none
    bint unwatched              # nobody may wait any more
    bint idle                   # the writer waits for work
    bint dozes                  # it does, for a while only: it owes news
    int64_t wrote_ns            # when the last batch was durable
    bint lent                   # the worker is in the writer's place, and writes itself
    bint waiting                # for room
    bint closing
    bint writer_ended
    Failure failure
    Buffer fill                 # room for a BatchHead, then entries
    uint32_t fill_count
    size_t mark                 # bytes of `fill` that were submitted; 0: none
    uint32_t mark_count
    uint64_t next_first         # position of the first entry of `fill`
    Buffer finished             # Segment[], oldest first
    Spare[SPARES_MAX] spares
    int spare_count
    uint64_t spare_serial       # of the next one
    uint64_t wanted             # the writer wants a spare of this size; 0: none
    bint bare                   # and one that is not filled with zeros
    double used                 # how much of its segment the writer had used when it asked for room last; 1: all
    uint64_t trimmed            # entries up to here are not needed
    bint named                  # the segment that is written has its name
    # the writer's own
    Buffer flight               # a whole batch
    uint32_t flight_count
    uint64_t flight_first
    int fd                      # of the segment that is written; -1: none
    Segment segment             # it; `last` is that of the last batch written
    uint64_t salt
    uint64_t offset             # where the next batch goes
    Blocks blocks               # what goes there
    uint64_t batches            # in this segment
    uint64_t quick              # batches in a row that the disk took quickly
    int64_t took_ns             # how long it takes for one, on average
    uint64_t known              # `durable` as the last batch says it
    uint64_t taken_serial       # of the spare that became it, while it has no name
    # threads
    pthread_t writer
    pthread_t keeper
    int threads                 # how many were started


cdef bint journal_append(Journal* j, uint32_t shard, const uint8_t* data, size_t size) noexcept nogil
cdef void journal_submit(Journal* j) noexcept nogil
cdef bint journal_write_here(Journal* j) noexcept nogil
cdef void journal_trim(Journal* j, uint64_t position) noexcept nogil
cdef int journal_start(Journal* j, void* (*keep_house)(void*) noexcept nogil) noexcept nogil
cdef void journal_stop(Journal* j) noexcept nogil
# for the other threads
cdef void journal_tell(Journal* j) noexcept nogil
cdef void journal_fail(Journal* j, const char* call, const char* path, int error) noexcept nogil
cdef bint journal_wait(Journal* j, uint64_t position) noexcept nogil
cdef uint64_t journal_checkpointed(Journal* j, uint64_t position) noexcept nogil
cdef void segment_path(char* path, const char* folder, uint64_t number) noexcept nogil
cdef void spare_path(char* path, const char* folder, uint64_t serial) noexcept nogil
