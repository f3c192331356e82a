# Extents and checkpoints: what outlives the journal, and the thread that writes and reads them.
#
# Owns: the file `extents`, in units of 64 KiB, the map of who has which, the file `checkpoint`. Rules: an extent's bytes are
# never overwritten while a checkpoint that is valid, or may become so, knows them; writes are done in the order of the calls, reads before
# them; a checkpoint is begun when all extents written before it lie there, and is renamed into place when they, all that was appended before
# it, and itself are synced; only then the journal is trimmed. While a backup copies the log (it shares the lock on the file `checkpoint.lock`)
# no checkpoint is written, but everything else goes on. Without room an extent is refused (`extent_next` says so), or a checkpoint given
# up; any other failure ends the log. The thread never takes the GIL; nobody holds `lock` during a call that can wait.
#
#     extent_write -> WAITS -> WRITES -> LIES --extent_free--> freed --the next checkpoint is durable--> free units
#                                        (one that no checkpoint was begun with: free at once)
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmq.storage.files cimport FileCalls, Files
from fastmq.storage.journal cimport Journal
from fastmq.storage.log cimport ExtentRead
from fastmq.storage.posix cimport pthread_cond_t, pthread_mutex_t, pthread_t
from fastmq.storage.units cimport Units
from fastmq.wire.buffer cimport Buffer
from fastmq.wire.idmap cimport IdMap


cdef enum ExtentState:
    EXTENT_WAITS, EXTENT_WRITES, EXTENT_LIES


cdef struct Extent:
    uint64_t number
    uint64_t unit               # the first one
    uint64_t size               # bytes of the payload
    uint64_t born               # checkpoints begun before it was written
    uint64_t freed_at           # checkpoints begun before it was freed
    uint32_t crc
    ExtentState state
    bint freed
    Buffer payload              # until it lies
    Extent* next                # in the queue of writes, or of those freed


cdef struct ReadRequest:        # place and size as they were at the call
    uint64_t number
    uint64_t unit
    uint64_t size
    uint32_t crc


cdef struct Extents:
    FileCalls* files
    Journal* journal
    int fd                      # of the file; -1: not there yet
    # said to the worker, atomically
    uint64_t done_count         # reads that are finished, and writes that failed
    uint64_t full
    uint64_t checkpointing
    uint64_t checkpointed
    uint64_t tail_begin         # bytes that the journal had written at the last checkpoint
    uint64_t bytes              # of the units in use
    uint64_t pending            # bytes that wait to be written
    # under `lock`
    pthread_mutex_t lock
    pthread_cond_t work
    bint closing
    IdMap map                   # number -> Extent*
    Extent* first               # of those to be written, in order
    Extent* last
    Extent* freed               # may be known to a checkpoint
    Buffer reads                # ReadRequest[]
    Buffer done                 # ExtentRead[]
    Units units
    uint64_t begun              # checkpoints that were begun
    uint64_t writes             # extents that were given to be written,
    uint64_t written            # and those that were, or failed
    uint64_t failures           # writes that failed for want of room,
    uint64_t failures_heard     # and those that the worker has heard of
    Buffer states               # of the checkpoint to be written
    uint64_t position
    uint64_t needs_durable      # what was appended when it was begun
    uint64_t needs_written
    uint64_t needs_heard        # failures that it knows of
    bint held                   # a backup keeps it from being written
    # the thread's own
    uint64_t unsynced           # bytes written since the last sync
    void (*write_checkpoint)(Extents*) noexcept nogil
    pthread_t thread
    bint is_started


cdef void extents_free(Extents* x) noexcept nogil
cdef int extents_start(Extents* x, void (*write_checkpoint)(Extents*) noexcept nogil) noexcept nogil
cdef void extents_stop(Extents* x) noexcept nogil
cdef bint extents_write(Extents* x, uint64_t number, Buffer* payload) noexcept nogil
cdef bint extents_read(Extents* x, uint64_t number) noexcept nogil
cdef bint extents_next(Extents* x, ExtentRead* out) noexcept nogil
cdef void extents_release(Extents* x, uint64_t number) noexcept nogil
cdef bint extents_checkpoint(Extents* x, uint64_t position, Buffer* states, uint64_t appended) noexcept nogil
cdef bint extents_add(Extents* x, uint64_t number, uint64_t unit, uint64_t size, uint32_t crc) noexcept nogil
# for write_checkpoint
cdef void read_extent(Extents* x, const ReadRequest* request) noexcept nogil
cdef int extents_sync(Extents* x) noexcept nogil
cdef void extents_fail(Extents* x, const char* call, const char* name, int error) noexcept nogil
cdef void extents_full(Extents* x, bint full) noexcept nogil
cdef void free_units(Extents* x, const Extent* e) noexcept nogil
cdef void forget(Extent* e) noexcept nogil
