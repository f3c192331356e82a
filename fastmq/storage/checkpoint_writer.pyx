"""Writes checkpoints, on the thread of the extents (see extents.pxd; the format is in checkpoint.pxd)."""
from libc.errno cimport EAGAIN, EDQUOT, EINTR, EIO, ENOSPC
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from fastmq.storage.checkpoint cimport CheckpointHead, checkpoint_add, checkpoint_crc, checkpoint_head
from fastmq.storage.crc32c cimport crc32c
from fastmq.storage.extents cimport (
    Extent, Extents, ReadRequest, extents_fail, extents_full, extents_sync, forget, free_units, read_extent,
)
from fastmq.storage.failpoints cimport AFTER_CHECKPOINT_BEFORE_RENAME, AFTER_RENAME_BEFORE_TRIM, MID_CHECKPOINT, failpoint
from fastmq.storage.files cimport PATH_SIZE_MAX, open_file, write_all
from fastmq.storage.journal cimport journal_checkpointed, journal_tell, journal_wait
from fastmq.storage.posix cimport O_CREAT, O_RDWR, atomic_store, pthread_mutex_lock, pthread_mutex_unlock, snprintf
from fastmq.storage.units cimport UNIT_FREE, units_run
from fastmq.wire.buffer cimport Buffer, buffer_drop_front, buffer_extend, buffer_free, buffer_init


cdef enum:
    PIECE_SIZE = 1048576        # of a checkpoint, written between two looks at the reads
    PUNCH_UNITS = 64            # a free run of so many units is given back to the disk


cdef void write_checkpoint(Extents* x) noexcept nogil:
    """Make the checkpoint durable and trim what it makes superfluous; or give it up, without room; or leave it for later, while a backup
    copies what the last one says."""
    cdef Buffer file
    cdef int lock = -EIO, failed = -EIO
    buffer_init(&file)
    if journal_wait(x.journal, x.needs_durable):        # else it has ended, or is ending
        lock = lock_checkpoint(x)
        if lock == -EAGAIN:
            x.held = True
            return
        failed = lock if lock < 0 else put_checkpoint(x, &file)
    buffer_free(&file)
    pthread_mutex_lock(&x.lock)
    if failed == 0:
        reclaim(x)
        atomic_store(&x.checkpointed, x.position)
    buffer_free(&x.states)
    atomic_store(&x.checkpointing, 0)
    if failed == 0 or failed == -ENOSPC or failed == -EDQUOT:
        extents_full(x, failed != 0)
    pthread_mutex_lock(&x.journal.lock)
    journal_tell(x.journal)
    pthread_mutex_unlock(&x.journal.lock)
    pthread_mutex_unlock(&x.lock)
    if failed == 0:
        punch(x)
    if lock >= 0:
        x.files.close(x.files.self, lock)


cdef int lock_checkpoint(Extents* x) noexcept nogil:
    """Keep backups from copying (storage/log_copy.py): a descriptor, to be closed. -EAGAIN: one copies. Or -errno, as `put_checkpoint`."""
    cdef char[PATH_SIZE_MAX] path
    cdef int lock = -EINTR
    snprintf(path, PATH_SIZE_MAX, b"%s/checkpoint.lock", x.journal.folder)
    while lock == -EINTR:
        lock = x.files.lock(x.files.self, path)
    if lock < 0 and lock != -EAGAIN and lock != -ENOSPC and lock != -EDQUOT:
        extents_fail(x, b"flock", path, lock)
        return -EIO
    return lock


cdef int put_checkpoint(Extents* x, Buffer* file) noexcept nogil:
    """Write it, when all that it rests on is durable. 0, or -errno; what is neither 0 nor want of room was reported."""
    cdef int failed
    pthread_mutex_lock(&x.lock)
    # an extent that it rests on may have been refused after it was begun
    failed = 0 if x.failures == x.needs_heard and describe(x, file) else -ENOSPC
    pthread_mutex_unlock(&x.lock)
    if failed:
        return failed
    failed = extents_sync(x)
    if failed:
        extents_fail(x, b"fdatasync", b"extents", failed)
        return -EIO
    return write_aside(x, file)


cdef bint describe(Extents* x, Buffer* file) noexcept nogil:
    """Under the lock: the head and the map of what it knows. False: no memory."""
    cdef size_t i
    cdef Extent* e = x.freed
    buffer_extend(file, sizeof(CheckpointHead))
    if x.map.entries != NULL:
        for i in range(x.map.mask + 1):
            if x.map.entries[i].key:
                describe_extent(x, file, <Extent*> <size_t> x.map.entries[i].value)
    while e != NULL:
        if e.freed_at >= x.begun:       # after it was begun
            describe_extent(x, file, e)
        e = e.next
    if not file.failed:
        checkpoint_head(file, &x.states, x.position, x.journal.epoch, x.units.size)
    return not file.failed


cdef void describe_extent(Extents* x, Buffer* file, const Extent* e) noexcept nogil:
    """Unless it was written after the checkpoint was begun."""
    if e.born < x.begun:
        checkpoint_add(file, e.number, e.unit, e.size, e.crc)


cdef int write_aside(Extents* x, Buffer* file) noexcept nogil:
    """Write it aside, sync and rename it. 0, or -errno; what is neither 0 nor want of room was reported."""
    cdef char[PATH_SIZE_MAX] aside
    cdef char[PATH_SIZE_MAX] path
    cdef CheckpointHead* head = <CheckpointHead*> file.data
    cdef uint32_t crc
    cdef int fd, failed
    cdef const char* call = b"open"
    snprintf(aside, PATH_SIZE_MAX, b"%s/checkpoint.new", x.journal.folder)
    snprintf(path, PATH_SIZE_MAX, b"%s/checkpoint", x.journal.folder)
    crc = crc32c(0, head + 1, file.size - sizeof(CheckpointHead))
    head.crc = checkpoint_crc(head, crc32c(crc, x.states.data, x.states.size))
    failed = fd = open_file(x.files, aside, O_RDWR | O_CREAT)
    if fd >= 0:
        call = b"pwrite"
        failed = x.files.ftruncate(x.files.self, fd, 0)
        if failed == 0:
            failed = write_pieces(x, fd, file, 0)
        failpoint(MID_CHECKPOINT)
        if failed == 0:
            failed = write_pieces(x, fd, &x.states, file.size)
        if failed == 0:
            call = b"fdatasync"
            failed = x.files.fdatasync(x.files.self, fd)
        x.files.close(x.files.self, fd)
    if failed == -ENOSPC or failed == -EDQUOT:
        x.files.unlink(x.files.self, aside)
        return failed
    if failed == 0:
        failpoint(AFTER_CHECKPOINT_BEFORE_RENAME)
        call = b"rename"
        failed = x.files.rename(x.files.self, aside, path)
    if failed == 0:
        call = b"fsync"
        failed = x.files.sync_folder(x.files.self, x.journal.folder)
    if failed:
        extents_fail(x, call, path, failed)
        return -EIO
    failpoint(AFTER_RENAME_BEFORE_TRIM)
    return 0


cdef int write_pieces(Extents* x, int fd, const Buffer* data, uint64_t offset) noexcept nogil:
    """Write it, and answer reads in between."""
    cdef ReadRequest request
    cdef size_t at = 0, size
    cdef bint reads
    cdef int failed
    while at < data.size:
        size = min(data.size - at, <size_t> PIECE_SIZE)
        failed = write_all(x.files, fd, data.data + at, size, offset + at)
        if failed:
            return failed
        at += size
        pthread_mutex_lock(&x.lock)
        reads = x.reads.size != 0
        if reads:
            request = (<ReadRequest*> x.reads.data)[0]
            buffer_drop_front(&x.reads, sizeof(request))
        pthread_mutex_unlock(&x.lock)
        if reads:
            read_extent(x, &request)
    return 0


cdef void reclaim(Extents* x) noexcept nogil:
    """Under the lock: the checkpoint is durable, so what was freed before it was begun is needed by none; and the journal is trimmed."""
    cdef Extent* e = x.freed
    cdef Extent* following
    x.freed = NULL
    while e != NULL:
        following = e.next
        if e.freed_at < x.begun:
            free_units(x, e)
            forget(e)
        else:
            e.next = x.freed
            x.freed = e
        e = following
    atomic_store(&x.tail_begin, journal_checkpointed(x.journal, x.position))


cdef void punch(Extents* x) noexcept nogil:
    """Give long runs of free units back to the disk. Only this thread takes units, so they stay free meanwhile."""
    cdef uint64_t at = 0, end, dirty
    while True:
        pthread_mutex_lock(&x.lock)
        end = units_run(&x.units, &at, &dirty)
        pthread_mutex_unlock(&x.lock)
        if end == at:
            return
        if dirty >= PUNCH_UNITS and x.fd >= 0:
            if x.files.punch(x.files.self, x.fd, at * x.units.size, (end - at) * x.units.size) < 0:
                return                  # a file system that cannot: the room stays the file's
            pthread_mutex_lock(&x.lock)
            memset(x.units.states.data + at, UNIT_FREE, <size_t> (end - at))
            pthread_mutex_unlock(&x.lock)
        at = end
