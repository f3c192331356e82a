"""The journal: what the worker calls, and the writer (see journal.pxd; the format is in segments.pxd)."""
from libc.errno cimport ENOSPC
from libc.string cimport memcpy, memset, strncpy

from fastmq.storage.blocks cimport blocks_begin, blocks_free, blocks_write
from fastmq.storage.failpoints cimport (
    AFTER_ROLL, AFTER_SYNC_BEFORE_CONFIRM, AFTER_WRITE_BEFORE_SYNC, BEFORE_WRITE, MID_ROLL, MID_WRITE, armed, failpoint,
)
from fastmq.storage.files cimport PATH_SIZE_MAX
from fastmq.storage.log cimport EntryHead
from fastmq.storage.posix cimport (
    atomic_store, bell_ring, cond_wait_ns, monotonic_ns, pthread_cond_broadcast, pthread_cond_signal, pthread_cond_wait, pthread_join,
    pthread_mutex_lock, pthread_mutex_unlock, random_bytes, snprintf, start_thread,
)
from fastmq.storage.segments cimport (
    BATCH_MARK, BYTE_ORDER_MARK, FORMAT_VERSION, SEGMENT_HEAD_SIZE, SEGMENT_MARK, SEGMENT_RECYCLED, BatchHead, SegmentHead, batch_crc,
    segment_crc,
)
from fastmq.wire.buffer cimport buffer_add, buffer_clear, buffer_extend, buffer_free


cdef enum:
    FIRST_SEGMENT_SIZE = 1048576        # of the first segment of each life: a start does not wait for a large one
    GROWTH = 4                          # how much larger than the one before a segment is, up to the full size
    BUFFER_KEEP_SIZE = 33554432         # a batch's buffer larger than this is given back
    WRITE_HERE_MAX = 131072             # bytes of a batch that the worker may write itself,
    WRITE_HERE_SMALL = 8192             # and of one with which it is not asked how quick the disk is on average
    TOOK_MAX_NS = 400000                # that average, at most: two wakes saved are worth no more
    TOOK_WEIGHT = 16                    # the last batch counts one part of so many
    QUICK_NS = 1000000                  # a write and its sync that took less were quick
    BARE_BATCH_SIZE = 131072            # batches of this size gain nothing by zeros: then a segment is only reserved
    NEWS_NS = 10000000                  # for so long nothing was submitted when an empty batch is written: the next one would wait for it

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


cdef bint journal_write_here(Journal* j) noexcept nogil:
    """As `journal_submit`, but this thread writes and syncs, if the writer has nothing to do, the batch is no large one, and the disk has
    been quick of late; False: it did not, and nothing is submitted."""
    cdef bint mine
    pthread_mutex_lock(&j.lock)
    mine = (j.idle and j.named and j.failure.error == 0 and j.fill.size <= WRITE_HERE_MAX and j.offset + j.fill.size <= j.segment.size
            and j.quick >= QUICK_COUNT)
    if mine and j.fill.size > WRITE_HERE_SMALL:
        mine = j.quick >= QUICK_COUNT_LARGE and j.took_ns <= TOOK_MAX_NS
    if mine:
        j.mark = j.fill.size
        j.mark_count = j.fill_count
        mine = take_fill(j)
        j.lent = mine
    pthread_mutex_unlock(&j.lock)
    if mine:
        write_batch(j)
        give_back(j)
    return mine


cdef void give_back(Journal* j) noexcept nogil:
    """The writer's place is the writer's again. It owes news of what was written here."""
    pthread_mutex_lock(&j.lock)
    j.lent = False
    if not j.dozes:
        pthread_cond_signal(&j.work)
    pthread_mutex_unlock(&j.lock)


cdef void journal_trim(Journal* j, uint64_t position) noexcept nogil:
    pthread_mutex_lock(&j.lock)
    if position > j.trimmed:
        j.trimmed = position
        pthread_cond_signal(&j.house)
    pthread_mutex_unlock(&j.lock)


cdef int journal_start(Journal* j, void* (*keep_house)(void*) noexcept nogil) noexcept nogil:
    """Start the writer, and the keeper's `keep_house`; errno, or 0. `journal_stop` is owed either way."""
    cdef int failed
    if j.spare_count == 0:
        journal_want(j, 0)
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
    blocks_free(&j.blocks)


cdef void journal_tell(Journal* j) noexcept nogil:
    """Under the lock: something new is said. The bell first: a worker that sees the number finds the bell rung."""
    bell_ring(j.bell)
    atomic_store(&j.rung, j.rung + 1)


cdef void journal_fail(Journal* j, const char* call, const char* path, int error) noexcept nogil:
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
    pthread_cond_broadcast(&j.watch)
    journal_tell(j)
    pthread_mutex_unlock(&j.lock)


cdef void fail_segment(Journal* j, const char* call, int error) noexcept nogil:
    cdef char[PATH_SIZE_MAX] path
    segment_path(path, j.folder, j.segment.number)
    journal_fail(j, call, path, error)


cdef bint journal_wait(Journal* j, uint64_t position) noexcept nogil:
    """Until `position` is durable. False: the journal failed, or `unwatched` is set."""
    cdef bint done
    pthread_mutex_lock(&j.lock)
    j.watched = position
    while j.durable < position and not j.failure.error and not j.unwatched:
        pthread_cond_wait(&j.watch, &j.lock)
    j.watched = 0
    done = j.durable >= position and not j.failure.error
    pthread_mutex_unlock(&j.lock)
    return done


cdef uint64_t journal_checkpointed(Journal* j, uint64_t position) noexcept nogil:
    """A checkpoint made the entries up to `position` superfluous: their segments may go. The bytes written before those that are left."""
    cdef size_t i
    cdef uint64_t begin
    cdef const Segment* segments
    pthread_mutex_lock(&j.lock)
    begin = j.segment.begin
    segments = <const Segment*> j.finished.data
    for i in range(j.finished.size // sizeof(Segment)):
        if segments[i].last > position:
            begin = segments[i].begin
            break
    if position > j.trimmed:
        j.trimmed = position
        pthread_cond_signal(&j.house)
    pthread_mutex_unlock(&j.lock)
    return begin


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
    cdef int64_t quiet
    pthread_mutex_lock(&j.lock)
    while True:
        if j.failure.error:
            task = TASK_END
            break
        if not j.lent:
            if take_fill(j):
                task = TASK_BATCH
                break
            if owes_news(j):
                quiet = j.wrote_ns + NEWS_NS - monotonic_ns()
                if quiet <= 0 or j.closing:
                    task = TASK_NEWS
                    break
                j.idle = j.dozes = True
                cond_wait_ns(&j.work, &j.lock, quiet)
                j.idle = j.dozes = False
                continue
            if j.closing:
                task = TASK_END
                break
        j.idle = True
        pthread_cond_wait(&j.work, &j.lock)
        j.idle = False
    pthread_mutex_unlock(&j.lock)
    return task


cdef bint owes_news(const Journal* j) noexcept nogil:
    """Whether what was written last is durable, and no batch says so."""
    return j.known < j.durable and j.fd >= 0 and j.offset + sizeof(BatchHead) <= j.segment.size


cdef bint take_fill(Journal* j) noexcept nogil:
    """Under the lock: all whole turns become the batch in flight, and what lies behind them is moved, however much it is: who waits for
    those before it submits nothing. False: there are none, or no memory."""
    cdef size_t tail
    cdef Buffer spare
    if j.mark == 0:
        return False
    tail = j.fill.size - j.mark
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
    cdef size_t half = 0
    cdef int64_t began, ended
    cdef int failed = 0
    if j.fd < 0 or j.offset + size > j.segment.size:
        if not roll(j, size):
            return
    head_batch(j, <BatchHead*> j.flight.data, j.flight_first, j.flight_count, size - sizeof(BatchHead))
    failpoint(BEFORE_WRITE)
    began = monotonic_ns()
    if armed == MID_WRITE:
        half = size // 2
        failed = blocks_write(&j.blocks, j.files, j.fd, j.flight.data, half, j.offset)
        failpoint(MID_WRITE)
    if failed == 0:
        failed = blocks_write(&j.blocks, j.files, j.fd, j.flight.data + half, size - half, j.offset + half)
    if failed:
        fail_segment(j, b"pwrite", failed)
        return
    failpoint(AFTER_WRITE_BEFORE_SYNC)
    failed = j.files.fdatasync(j.files.self, j.fd)
    if failed:
        fail_segment(j, b"fdatasync", failed)
        return
    ended = monotonic_ns()
    j.quick = j.quick + 1 if ended - began < QUICK_NS else 0
    j.took_ns += (ended - began - j.took_ns) // TOOK_WEIGHT
    if not j.named and not name_segment(j):
        return
    failpoint(AFTER_SYNC_BEFORE_CONFIRM)
    j.offset += size
    j.batches += 1
    atomic_store(&j.written, j.written + size)
    j.segment.last = j.flight_first + j.flight_count - 1
    j.known = (<BatchHead*> j.flight.data).durable
    atomic_store(&j.durable, j.segment.last)
    say_durable(j, ended)
    if j.flight.room > BUFFER_KEEP_SIZE:
        buffer_free(&j.flight)
    if j.offset > j.segment.size // 4:
        ask_room(j, 0)


cdef void say_durable(Journal* j, int64_t now_ns) noexcept nogil:
    pthread_mutex_lock(&j.lock)
    j.wrote_ns = now_ns
    if not j.lent:                          # else the worker is here itself, and looks when it is back
        journal_tell(j)
    if j.watched and j.durable >= j.watched:
        pthread_cond_signal(&j.watch)
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
    failed = blocks_write(&j.blocks, j.files, j.fd, <const uint8_t*> &head, sizeof(head), j.offset)
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
    j.segment.begin = j.written
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
    blocks_begin(&j.blocks)
    failed = blocks_write(&j.blocks, j.files, j.fd, head, SEGMENT_HEAD_SIZE, 0)
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
        journal_fail(j, b"rename", old, failed)
        return False
    failpoint(MID_ROLL)
    failed = j.files.sync_folder(j.files.self, j.folder)
    if failed:
        journal_fail(j, b"fsync", j.folder, failed)
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


cdef void journal_want(Journal* j, uint64_t size) noexcept nogil:
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
    j.used = <double> j.offset / <double> j.segment.size
    if j.spare_count == 0 and j.wanted == 0:
        journal_want(j, size)
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
            journal_want(j, size)
        j.waiting = True
        pthread_cond_signal(&j.house)           # no pauses any more
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
        journal_fail(j, b"fallocate", j.folder, -ENOSPC)
    return False
