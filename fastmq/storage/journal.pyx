"""The journal's threads (see journal.pxd; the format is in segments.pxd)."""
from libc.errno cimport EDQUOT, EINTR, ENOSPC, EOPNOTSUPP
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset, strncpy

from fastmq.storage.failpoints cimport (
    AFTER_ROLL, AFTER_SYNC_BEFORE_CONFIRM, AFTER_WRITE_BEFORE_SYNC, BEFORE_WRITE, MID_RECYCLE, MID_ROLL, MID_WRITE, armed, failpoint,
)
from fastmq.storage.files cimport PATH_SIZE_MAX, open_file, write_all
from fastmq.storage.log cimport EntryHead
from fastmq.storage.posix cimport (
    ECANCELED, O_CREAT, O_EXCL, O_RDWR, atomic_store, bell_ring, cond_wait_ns, pthread_cond_broadcast, pthread_cond_signal,
    pthread_cond_wait, pthread_join, pthread_mutex_lock, pthread_mutex_unlock, random_bytes, snprintf, start_thread,
)
from fastmq.storage.segments cimport (
    BATCH_MARK, BYTE_ORDER_MARK, FORMAT_VERSION, SEGMENT_HEAD_SIZE, SEGMENT_MARK, SEGMENT_RECYCLED, BatchHead, SegmentHead, batch_crc,
    segment_crc,
)
from fastmq.wire.buffer cimport buffer_add, buffer_clear, buffer_drop_front, buffer_extend, buffer_free


cdef enum:
    FIRST_SEGMENT_SIZE = 1048576        # of the first segment of each life: a start does not wait for a large one
    GROWTH = 8                          # how much larger than the one before a segment is, up to the full size
    BUFFER_KEEP_SIZE = 33554432         # a batch's buffer larger than this is given back
    TAIL_SIZE_MAX = 65536               # bytes of an unfinished turn that are moved so that the turns before it can leave
    ZEROS_SIZE = 1048576
    BARE_BATCH_SIZE = 131072            # batches of this size gain nothing by zeros: then a segment is only reserved
    FULL_RETRY_NS = 100000000           # without room: how often it is tried again

cdef enum Task:
    TASK_BATCH, TASK_NEWS, TASK_END


cdef void segment_path(char* path, const char* folder, uint64_t number) noexcept nogil:
    snprintf(path, PATH_SIZE_MAX, b"%s/journal-%016llx", folder, <unsigned long long> number)


cdef void spare_path(char* path, const char* folder, uint64_t serial) noexcept nogil:
    snprintf(path, PATH_SIZE_MAX, b"%s/spare-%016llx", folder, <unsigned long long> serial)


# ---- the worker's side

cdef bint journal_append(Journal* j, uint32_t shard, const uint8_t* data, size_t size) noexcept nogil:
    """Copy an entry behind the others of the batch that fills. False: no memory, nothing is changed."""
    cdef size_t padded = (size + 7) & ~<size_t> 7
    cdef size_t before, need
    cdef uint8_t* at
    cdef EntryHead* head
    pthread_mutex_lock(&j.lock)
    before = j.fill.size
    need = sizeof(EntryHead) + padded + (0 if before else sizeof(BatchHead))
    at = buffer_extend(&j.fill, need)
    if at == NULL:
        j.fill.failed = False
        pthread_mutex_unlock(&j.lock)
        return False
    at += 0 if before else sizeof(BatchHead)
    head = <EntryHead*> at
    head.size = <uint32_t> size
    head.shard = <unsigned short> shard
    head.zero = 0
    memcpy(at + sizeof(EntryHead), data, size)
    memset(at + sizeof(EntryHead) + size, 0, padded - size)
    j.fill_count += 1
    pthread_mutex_unlock(&j.lock)
    return True


cdef void journal_submit(Journal* j) noexcept nogil:
    """All that was appended may go."""
    pthread_mutex_lock(&j.lock)
    j.mark = j.fill.size
    j.mark_count = j.fill_count
    if j.idle:
        pthread_cond_signal(&j.work)
    pthread_mutex_unlock(&j.lock)


cdef void journal_trim(Journal* j, uint64_t position) noexcept nogil:
    pthread_mutex_lock(&j.lock)
    if position > j.trimmed:
        j.trimmed = position
        pthread_cond_signal(&j.house)
    pthread_mutex_unlock(&j.lock)


cdef int journal_start(Journal* j) noexcept nogil:
    """Start both threads; errno, or 0. `journal_stop` is owed either way."""
    cdef int failed
    if j.spare_count == 0:
        want(j, 0)
    failed = start_thread(&j.writer, write_batches, j)
    if failed == 0:
        j.threads = 1
        failed = start_thread(&j.keeper, keep_house, j)
        if failed == 0:
            j.threads = 2
    return failed


cdef void journal_stop(Journal* j) noexcept nogil:
    """Write what was submitted, end the threads, close the files. It must not be waited for with the GIL."""
    cdef int i
    pthread_mutex_lock(&j.lock)
    j.closing = True
    pthread_cond_broadcast(&j.work)
    pthread_cond_broadcast(&j.room)
    pthread_cond_broadcast(&j.house)
    pthread_mutex_unlock(&j.lock)
    if j.threads > 0:
        pthread_join(j.writer, NULL)
    pthread_mutex_lock(&j.lock)
    j.writer_ended = True
    pthread_cond_broadcast(&j.house)
    pthread_mutex_unlock(&j.lock)
    if j.threads > 1:
        pthread_join(j.keeper, NULL)
    j.threads = 0
    for i in range(j.spare_count):
        j.files.close(j.files.self, j.spares[i].fd)
    j.spare_count = 0
    if j.fd >= 0:
        j.files.close(j.files.self, j.fd)
        j.fd = -1
    buffer_free(&j.fill)
    buffer_free(&j.flight)
    buffer_free(&j.finished)


cdef void tell(Journal* j) noexcept nogil:
    """Something new is said. The bell first: a worker that sees the number finds the bell rung."""
    bell_ring(j.bell)
    atomic_store(&j.rung, j.rung + 1)


cdef void fail(Journal* j, const char* call, const char* path, int error) noexcept nogil:
    """`error`: as a file call returned it. Nothing more becomes durable."""
    cdef const char* name = path
    pthread_mutex_lock(&j.lock)
    if j.failure.error == 0:
        while path[0]:
            if path[0] == c'/':
                name = path + 1
            path += 1
        j.failure.error = -error
        strncpy(j.failure.call, call, sizeof(j.failure.call) - 1)
        strncpy(j.failure.name, name, sizeof(j.failure.name) - 1)
    atomic_store(&j.failed, 1)
    pthread_cond_broadcast(&j.work)
    pthread_cond_broadcast(&j.room)
    pthread_cond_broadcast(&j.house)
    tell(j)
    pthread_mutex_unlock(&j.lock)


cdef void fail_segment(Journal* j, const char* call, int error) noexcept nogil:
    cdef char[PATH_SIZE_MAX] path
    segment_path(path, j.folder, j.segment.number)
    fail(j, call, path, error)


# ---- the writer

cdef void* write_batches(void* argument) noexcept nogil:
    """The writer's thread."""
    cdef Journal* j = <Journal*> argument
    cdef Task task
    while True:
        task = next_task(j)
        if task == TASK_END:
            return NULL
        if task == TASK_BATCH:
            write_batch(j)
        else:
            write_news(j)


cdef Task next_task(Journal* j) noexcept nogil:
    """What to do; waits for it."""
    cdef Task task
    pthread_mutex_lock(&j.lock)
    while True:
        if j.failure.error:
            task = TASK_END
            break
        if take_fill(j):
            task = TASK_BATCH
            break
        if j.known < j.durable and j.fd >= 0 and j.offset + sizeof(BatchHead) <= j.segment.size:
            task = TASK_NEWS
            break
        if j.closing:
            task = TASK_END
            break
        j.idle = True
        pthread_cond_wait(&j.work, &j.lock)
        j.idle = False
    pthread_mutex_unlock(&j.lock)
    return task


cdef bint take_fill(Journal* j) noexcept nogil:
    """Under the lock: all whole turns become the batch in flight. False: there are none, or much of an unfinished turn lies behind them,
    which the next `submit` makes a whole one."""
    cdef size_t tail
    cdef Buffer spare
    if j.mark == 0:
        return False
    tail = j.fill.size - j.mark
    if tail > TAIL_SIZE_MAX and not j.closing:
        return False
    spare = j.flight
    buffer_clear(&spare)
    if tail and not j.closing:
        if buffer_extend(&spare, sizeof(BatchHead)) == NULL:
            return False
        buffer_add(&spare, j.fill.data + j.mark, tail)
        if spare.failed:
            j.flight = spare
            return False
    j.flight = j.fill
    j.flight.size = j.mark
    j.flight_count = j.mark_count
    j.flight_first = j.next_first
    j.next_first += j.mark_count
    j.fill = spare
    j.fill_count -= j.mark_count
    j.mark = 0
    j.mark_count = 0
    return True


cdef void write_batch(Journal* j) noexcept nogil:
    """Make the batch in flight durable, and say so."""
    cdef size_t size = j.flight.size
    cdef int failed
    if j.fd < 0 or j.offset + size > j.segment.size:
        if not roll(j, size):
            return
    head_batch(j, <BatchHead*> j.flight.data, j.flight_first, j.flight_count, size - sizeof(BatchHead))
    failpoint(BEFORE_WRITE)
    if armed == MID_WRITE:
        write_all(j.files, j.fd, j.flight.data, size // 2, j.offset)
        failpoint(MID_WRITE)
    failed = write_all(j.files, j.fd, j.flight.data, size, j.offset)
    if failed:
        fail_segment(j, b"pwrite", failed)
        return
    failpoint(AFTER_WRITE_BEFORE_SYNC)
    failed = j.files.fdatasync(j.files.self, j.fd)
    if failed:
        fail_segment(j, b"fdatasync", failed)
        return
    if not j.named and not name_segment(j):
        return
    failpoint(AFTER_SYNC_BEFORE_CONFIRM)
    j.offset += size
    j.batches += 1
    j.segment.last = j.flight_first + j.flight_count - 1
    j.known = (<BatchHead*> j.flight.data).durable
    atomic_store(&j.durable, j.segment.last)
    tell_locked(j)
    if j.flight.room > BUFFER_KEEP_SIZE:
        buffer_free(&j.flight)
    if j.offset > j.segment.size // 4:
        ask_room(j, 0)


cdef void tell_locked(Journal* j) noexcept nogil:
    pthread_mutex_lock(&j.lock)
    tell(j)
    pthread_mutex_unlock(&j.lock)


cdef void head_batch(Journal* j, BatchHead* head, uint64_t first, uint32_t count, uint64_t size) noexcept nogil:
    """Fill the head in front of the entries."""
    head.mark = BATCH_MARK ^ j.salt
    head.count = count
    head.size = size
    head.first = first
    head.durable = j.durable
    head.epoch = j.epoch
    head.crc = batch_crc(<const uint8_t*> head, size, j.salt)


cdef void write_news(Journal* j) noexcept nogil:
    """An empty batch that says what is durable. It is not synced: who finds it knows that what lies before it was not torn by a death."""
    cdef BatchHead head
    cdef int failed
    head_batch(j, &head, j.durable + 1, 0, 0)
    failed = write_all(j.files, j.fd, <const uint8_t*> &head, sizeof(head), j.offset)
    if failed:
        fail_segment(j, b"pwrite", failed)
        return
    j.offset += sizeof(head)
    j.known = j.durable


# ---- segments

cdef bint roll(Journal* j, size_t size) noexcept nogil:
    """Begin the next segment, with room for a batch of `size` bytes. It gets its name once that is synced. False: failed, or closed."""
    cdef uint8_t[SEGMENT_HEAD_SIZE] head
    cdef SegmentHead* h = <SegmentHead*> head
    cdef Spare spare
    cdef int failed
    if not take_spare(j, size + SEGMENT_HEAD_SIZE, &spare):
        return False
    memset(head, 0, SEGMENT_HEAD_SIZE)
    if not finish_segment(j):
        j.files.close(j.files.self, spare.fd)
        return False
    j.fd = spare.fd
    j.taken_serial = spare.serial
    j.salt = random_bytes()
    j.segment.number += 1
    j.segment.first = j.flight_first
    j.segment.last = j.flight_first - 1
    j.segment.size = spare.size
    j.offset = SEGMENT_HEAD_SIZE
    j.batches = 0
    h.mark = SEGMENT_MARK
    h.version = FORMAT_VERSION
    h.byte_order = BYTE_ORDER_MARK
    h.number = j.segment.number
    h.first = j.segment.first
    h.salt = j.salt
    h.size = spare.size
    h.epoch = j.epoch
    h.flags = SEGMENT_RECYCLED if spare.recycled else 0
    h.crc = segment_crc(h)
    failed = write_all(j.files, j.fd, head, SEGMENT_HEAD_SIZE, 0)
    if failed:
        fail_segment(j, b"pwrite", failed)
    return not failed


cdef bint finish_segment(Journal* j) noexcept nogil:
    """The segment that was written joins the finished ones. False: no memory, which ends the journal as a failed call would."""
    if j.fd < 0:
        return True
    pthread_mutex_lock(&j.lock)
    buffer_add(&j.finished, &j.segment, sizeof(Segment))
    j.named = False
    pthread_mutex_unlock(&j.lock)
    j.files.close(j.files.self, j.fd)
    j.fd = -1
    if j.finished.failed:
        fail_segment(j, b"malloc", -ENOSPC)
        return False
    return True


cdef bint name_segment(Journal* j) noexcept nogil:
    """The spare that was written becomes the segment. False: failed."""
    cdef char[PATH_SIZE_MAX] old
    cdef char[PATH_SIZE_MAX] new
    cdef int failed
    spare_path(old, j.folder, j.taken_serial)
    segment_path(new, j.folder, j.segment.number)
    failed = j.files.rename(j.files.self, old, new)
    if failed:
        fail(j, b"rename", old, failed)
        return False
    failpoint(MID_ROLL)
    failed = j.files.sync_folder(j.files.self, j.folder)
    if failed:
        fail(j, b"fsync", j.folder, failed)
        return False
    failpoint(AFTER_ROLL)
    pthread_mutex_lock(&j.lock)
    j.named = True
    pthread_cond_signal(&j.house)           # those before it may go
    pthread_mutex_unlock(&j.lock)
    return True


cdef int find_spare(Journal* j, uint64_t size) noexcept nogil:
    """Under the lock: the index of a spare of at least this size, -1."""
    cdef int i
    for i in range(j.spare_count):
        if j.spares[i].size >= size:
            return i
    return -1


cdef void want(Journal* j, uint64_t size) noexcept nogil:
    """Under the lock: ask the keeper for the next spare, of at least `size`."""
    cdef uint64_t wanted = min(<uint64_t> FIRST_SEGMENT_SIZE, j.segment_size)
    if j.fd >= 0 or j.segment.size:
        wanted = min(max(wanted, j.segment.size * GROWTH), j.segment_size)
    wanted = max(wanted, (size + 4095) & ~<uint64_t> 4095)
    if wanted > j.wanted:
        j.wanted = wanted
    j.bare = size > BARE_BATCH_SIZE or (j.batches and j.offset // j.batches > BARE_BATCH_SIZE)
    pthread_cond_signal(&j.house)


cdef void ask_room(Journal* j, uint64_t size) noexcept nogil:
    """Have the next segment made ready, if it is not."""
    pthread_mutex_lock(&j.lock)
    if j.spare_count == 0 and j.wanted == 0:
        want(j, size)
    pthread_mutex_unlock(&j.lock)


cdef bint take_spare(Journal* j, uint64_t size, Spare* spare) noexcept nogil:
    """Wait for a spare of at least this size. False: failed, or closed while there is no room."""
    cdef int i
    pthread_mutex_lock(&j.lock)
    while True:
        i = find_spare(j, size)
        if i >= 0 or j.failure.error or (j.closing and j.full):
            break
        if j.wanted < size:
            want(j, size)
        j.waiting = True
        pthread_cond_wait(&j.room, &j.lock)
        j.waiting = False
    if i >= 0 and j.failure.error == 0:
        spare[0] = j.spares[i]
        j.spare_count -= 1
        j.spares[i] = j.spares[j.spare_count]
        pthread_mutex_unlock(&j.lock)
        return True
    pthread_mutex_unlock(&j.lock)
    if i < 0 and j.failure.error == 0:
        fail(j, b"fallocate", j.folder, -ENOSPC)
    return False


# ---- the keeper

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
            spare.fd = open_file(j.files, new, O_RDWR)
            failed = spare.fd if spare.fd < 0 else 0
    else:
        failed = j.files.unlink(j.files.self, old)
    if failed:
        fail(j, b"rename", old, failed)
        return
    failpoint(MID_RECYCLE)
    failed = j.files.sync_folder(j.files.self, j.folder)
    if failed:
        if spare.fd >= 0:
            j.files.close(j.files.self, spare.fd)
        fail(j, b"fsync", j.folder, failed)
        return
    if spare.fd >= 0:
        keep_spare(j, &spare)


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
        tell(j)


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
    spare.fd = open_file(j.files, path, O_RDWR | O_CREAT | O_EXCL)
    failed = spare.fd if spare.fd < 0 else fill_spare(j, spare.fd, size)
    if failed == 0:
        keep_spare(j, &spare)
        return
    if spare.fd >= 0:
        j.files.close(j.files.self, spare.fd)
        j.files.unlink(j.files.self, path)
    if failed != -ENOSPC and failed != -EDQUOT:
        if failed != -ECANCELED:
            fail(j, b"fallocate", path, failed)
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
    zeros = <uint8_t*> calloc(1, ZEROS_SIZE)
    if zeros == NULL:
        return -ENOSPC
    failed = 0
    while at < size and failed == 0:
        failed = write_all(j.files, fd, zeros, <size_t> min(size - at, <uint64_t> ZEROS_SIZE), at)
        at += ZEROS_SIZE
        if j.closing and not j.waiting:
            failed = -ECANCELED             # nobody needs it any more
    free(zeros)
    return failed if failed else j.files.fdatasync(j.files.self, fd)
