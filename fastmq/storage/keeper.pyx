"""The journal's keeper: it recycles what was trimmed and makes spares ready (see journal.pxd)."""
from libc.errno cimport EDQUOT, EINTR, ENOSPC, EOPNOTSUPP
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport free

from fastmq.storage.blocks cimport blocks_zeros
from fastmq.storage.failpoints cimport MID_RECYCLE, MID_TRIM, failpoint
from fastmq.storage.files cimport PATH_SIZE_MAX, open_file, write_all
from fastmq.storage.journal cimport (
    SPARES_MAX, Journal, Segment, Spare, journal_fail, journal_tell, segment_path, spare_path,
)
from fastmq.storage.posix cimport (
    ECANCELED, O_CREAT, O_DIRECT, O_EXCL, O_RDWR, atomic_store, cond_wait_ns, pthread_cond_signal, pthread_cond_wait, pthread_mutex_lock,
    pthread_mutex_unlock,
)
from fastmq.wire.buffer cimport buffer_drop_front


cdef enum:
    ZEROS_SIZE = 262144
    PAUSE_NS = 2000000                  # between two writes of zeros, while there is time: the journal's syncs wait for what the disk has to do
    FULL_RETRY_NS = 100000000           # without room: how often it is tried again


cdef void* keep_house(void* argument) noexcept nogil:
    """The keeper's thread: recycles what was trimmed, makes spares."""
    cdef Journal* j = <Journal*> argument
    cdef Segment oldest
    cdef uint64_t size
    pthread_mutex_lock(&j.lock)
    while not j.failure.error:
        if oldest_trimmed(j, &oldest):
            pthread_mutex_unlock(&j.lock)
            recycle(j, &oldest)
            pthread_mutex_lock(&j.lock)
        elif j.wanted and (not j.closing or j.waiting):
            size = j.wanted
            pthread_mutex_unlock(&j.lock)
            make_spare(j, size)
            pthread_mutex_lock(&j.lock)
            if j.full and not j.closing:
                cond_wait_ns(&j.house, &j.lock, FULL_RETRY_NS)
        elif j.writer_ended:
            break
        else:
            pthread_cond_wait(&j.house, &j.lock)
    pthread_mutex_unlock(&j.lock)
    return NULL


cdef bint oldest_trimmed(Journal* j, Segment* oldest) noexcept nogil:
    """Under the lock: take the oldest segment off the list if it is not needed. One segment always stays: it says where positions are."""
    cdef size_t count = j.finished.size // sizeof(Segment)
    if count == 0 or (count == 1 and not j.named):
        return False
    oldest[0] = (<Segment*> j.finished.data)[0]
    if oldest.last > j.trimmed:
        return False
    buffer_drop_front(&j.finished, sizeof(Segment))
    return True


cdef void recycle(Journal* j, const Segment* segment) noexcept nogil:
    """Make a spare of a segment, or delete it. The folder is synced before the next one is touched, so that none is missing in the middle."""
    cdef char[PATH_SIZE_MAX] old
    cdef char[PATH_SIZE_MAX] new
    cdef Spare spare
    cdef int failed
    segment_path(old, j.folder, segment.number)
    spare_path(new, j.folder, j.spare_serial)
    spare.serial = j.spare_serial
    spare.size = segment.size
    spare.recycled = True
    spare.fd = -1
    if j.spare_count < SPARES_MAX and segment.size == j.segment_size:
        j.spare_serial += 1
        failed = j.files.rename(j.files.self, old, new)
        if failed == 0:
            spare.fd = open_file(j.files, new, O_RDWR | O_DIRECT)
            failed = spare.fd if spare.fd < 0 else 0
    else:
        failed = j.files.unlink(j.files.self, old)
    if failed:
        journal_fail(j, b"rename", old, failed)
        return
    failpoint(MID_RECYCLE)
    failed = j.files.sync_folder(j.files.self, j.folder)
    if failed:
        if spare.fd >= 0:
            j.files.close(j.files.self, spare.fd)
        journal_fail(j, b"fsync", j.folder, failed)
        return
    if spare.fd >= 0:
        keep_spare(j, &spare)
    failpoint(MID_TRIM)


cdef void keep_spare(Journal* j, const Spare* spare) noexcept nogil:
    pthread_mutex_lock(&j.lock)
    j.spares[j.spare_count] = spare[0]
    j.spare_count += 1
    if spare.size >= j.wanted:
        j.wanted = 0
    set_full(j, False)
    pthread_cond_signal(&j.room)
    pthread_mutex_unlock(&j.lock)


cdef void set_full(Journal* j, bint full) noexcept nogil:
    """Under the lock."""
    if j.full != <uint64_t> full:
        atomic_store(&j.full, full)
        journal_tell(j)


cdef void make_spare(Journal* j, uint64_t size) noexcept nogil:
    """Make a file of this size that is really there, or say that there is no room for it."""
    cdef char[PATH_SIZE_MAX] path
    cdef Spare spare
    cdef int failed
    drop_small_spare(j)
    spare_path(path, j.folder, j.spare_serial)
    spare.serial = j.spare_serial
    j.spare_serial += 1
    spare.size = size
    spare.recycled = False
    spare.fd = open_file(j.files, path, O_RDWR | O_CREAT | O_EXCL | O_DIRECT)
    failed = spare.fd if spare.fd < 0 else fill_spare(j, spare.fd, size)
    if failed == 0:
        keep_spare(j, &spare)
        return
    if spare.fd >= 0:
        j.files.close(j.files.self, spare.fd)
        j.files.unlink(j.files.self, path)
    if failed != -ENOSPC and failed != -EDQUOT:
        if failed != -ECANCELED:
            journal_fail(j, b"fallocate", path, failed)
        return
    pthread_mutex_lock(&j.lock)
    set_full(j, True)
    if j.closing:
        j.wanted = 0
        pthread_cond_signal(&j.room)
    pthread_mutex_unlock(&j.lock)


cdef void drop_small_spare(Journal* j) noexcept nogil:
    """Make place for a larger spare than those that wait."""
    cdef char[PATH_SIZE_MAX] path
    cdef Spare spare
    pthread_mutex_lock(&j.lock)
    if j.spare_count < SPARES_MAX:
        pthread_mutex_unlock(&j.lock)
        return
    j.spare_count -= 1
    spare = j.spares[j.spare_count]
    pthread_mutex_unlock(&j.lock)
    spare_path(path, j.folder, spare.serial)
    j.files.close(j.files.self, spare.fd)
    j.files.unlink(j.files.self, path)      # a spare that stays is found by the next `open`


cdef int fill_spare(Journal* j, int fd, uint64_t size) noexcept nogil:
    """Reserve the room; with zeros in it a sync of a small batch does not have to note that they are gone. 0, or -errno."""
    cdef uint8_t* zeros
    cdef uint64_t at = 0
    cdef int failed = -EINTR
    while failed == -EINTR:
        failed = j.files.fallocate(j.files.self, fd, size)
    if failed == 0 and j.bare:
        return j.files.fdatasync(j.files.self, fd)
    if failed and failed != -EOPNOTSUPP:
        return failed
    zeros = blocks_zeros(ZEROS_SIZE)
    if zeros == NULL:
        return -ENOSPC
    failed = 0
    while at < size and failed == 0:
        failed = write_all(j.files, fd, zeros, <size_t> min(size - at, <uint64_t> ZEROS_SIZE), at)
        at += ZEROS_SIZE
        pthread_mutex_lock(&j.lock)
        if j.closing and not j.waiting:
            failed = -ECANCELED             # nobody needs it any more
        elif at < size and not j.waiting and <double> at / <double> size >= 2 * j.used - 0.5:   # there when three quarters are used
            cond_wait_ns(&j.house, &j.lock, PAUSE_NS)
        pthread_mutex_unlock(&j.lock)
    free(zeros)
    return failed if failed else j.files.fdatasync(j.files.self, fd)
