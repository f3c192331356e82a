"""Extents, and the thread that writes them and checkpoints (see extents.pxd; the latter are in checkpoint_writer.pyx)."""
from libc.errno cimport EDQUOT, EIO, ENOENT, ENOMEM, ENOSPC
from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from fastmq.storage.crc32c cimport crc32c
from fastmq.storage.failpoints cimport AFTER_EXTENT, MID_EXTENT, armed, failpoint
from fastmq.storage.files cimport PATH_SIZE_MAX, open_file, read_all, write_all
from fastmq.storage.journal cimport journal_fail, journal_tell
from fastmq.storage.posix cimport (
    EBADMSG, O_CREAT, O_RDWR, atomic_load, atomic_store, cond_wait_ns, pthread_cond_broadcast, pthread_cond_signal, pthread_cond_wait,
    pthread_join, pthread_mutex_lock, pthread_mutex_unlock, snprintf, start_thread,
)
from fastmq.storage.units cimport units_claim, units_count, units_release, units_take
from fastmq.wire.buffer cimport buffer_add, buffer_drop_front, buffer_extend, buffer_free, buffer_init
from fastmq.wire.idmap cimport idmap_find, idmap_free, idmap_get, idmap_put, idmap_remove


cdef enum:
    SYNC_SIZE = 8388608         # bytes of extents after which they are synced: so that a checkpoint finds little to do
    PROBE_SIZE = 4194304        # without room: it is there again when there is room for so much,
    FULL_RETRY_NS = 100000000   # which is tried so often
    HELD_RETRY_NS = 50000000    # while a backup holds a checkpoint back: how often it is tried, where nothing else is to be done

cdef enum Task:
    TASK_READ, TASK_WRITE, TASK_CHECKPOINT, TASK_PROBE, TASK_END


# ---- the worker's side

cdef bint extents_write(Extents* x, uint64_t number, Buffer* payload) noexcept nogil:
    """False: no memory, nothing is changed."""
    cdef Extent* e = <Extent*> calloc(1, sizeof(Extent))
    if e == NULL:
        return False
    e.number = number
    e.size = payload.size
    pthread_mutex_lock(&x.lock)
    if not idmap_put(&x.map, number, <uint64_t> <size_t> e):
        pthread_mutex_unlock(&x.lock)
        free(e)
        return False
    e.payload = payload[0]
    buffer_init(payload)
    e.state = EXTENT_WAITS
    e.born = x.begun
    if x.last == NULL:
        x.first = e
    else:
        x.last.next = e
    x.last = e
    x.writes += 1
    atomic_store(&x.pending, x.pending + e.size)
    pthread_cond_signal(&x.work)
    pthread_mutex_unlock(&x.lock)
    return True


cdef bint extents_read(Extents* x, uint64_t number) noexcept nogil:
    """What is still in memory is answered from there. False: no memory."""
    cdef ExtentRead answer
    cdef ReadRequest request
    cdef Extent* e
    cdef bint done
    pthread_mutex_lock(&x.lock)
    e = <Extent*> <size_t> idmap_get(&x.map, number, 0)
    if e != NULL and e.state == EXTENT_LIES:
        request.number = number
        request.unit = e.unit
        request.size = e.size
        request.crc = e.crc
        buffer_add(&x.reads, &request, sizeof(request))
        done = not x.reads.failed
        x.reads.failed = False
        pthread_cond_signal(&x.work)
    else:
        memset(&answer, 0, sizeof(answer))
        answer.number = number
        if e == NULL:
            answer.error = ENOENT
        else:
            buffer_add(&answer.payload, e.payload.data, e.payload.size)
        done = not answer.payload.failed and add_done(x, &answer)
        if not done:
            buffer_free(&answer.payload)
    pthread_mutex_unlock(&x.lock)
    return done


cdef bint extents_next(Extents* x, ExtentRead* out) noexcept nogil:
    if atomic_load(&x.done_count) == 0:
        return False
    pthread_mutex_lock(&x.lock)
    out[0] = (<ExtentRead*> x.done.data)[0]
    buffer_drop_front(&x.done, sizeof(ExtentRead))
    atomic_store(&x.done_count, x.done_count - 1)
    if out.error == ENOSPC:
        x.failures_heard += 1
    pthread_mutex_unlock(&x.lock)
    return True


cdef void extents_release(Extents* x, uint64_t number) noexcept nogil:
    """The worker does not need it any more."""
    cdef Extent* e
    pthread_mutex_lock(&x.lock)
    e = <Extent*> <size_t> idmap_get(&x.map, number, 0)
    if e != NULL:
        idmap_remove(&x.map, number)
        e.freed = True
        e.freed_at = x.begun
        if e.state == EXTENT_LIES:
            drop(x, e)
    pthread_mutex_unlock(&x.lock)


cdef bint extents_checkpoint(Extents* x, uint64_t position, Buffer* states, uint64_t appended) noexcept nogil:
    """False: one is being written."""
    pthread_mutex_lock(&x.lock)
    if x.checkpointing:
        pthread_mutex_unlock(&x.lock)
        return False
    atomic_store(&x.checkpointing, 1)
    x.states = states[0]
    buffer_init(states)
    x.position = position
    x.needs_durable = appended
    x.needs_written = x.writes
    x.needs_heard = x.failures_heard
    x.begun += 1
    pthread_cond_signal(&x.work)
    pthread_mutex_unlock(&x.lock)
    return True


cdef bint extents_add(Extents* x, uint64_t number, uint64_t unit, uint64_t size, uint32_t crc) noexcept nogil:
    """Before the start: an extent that the checkpoint knows. False: no memory, or its units are another's."""
    cdef Extent* e
    if not units_claim(&x.units, unit, units_count(&x.units, size)):
        return False
    e = <Extent*> calloc(1, sizeof(Extent))
    if e == NULL or idmap_find(&x.map, number) != NULL or not idmap_put(&x.map, number, <uint64_t> <size_t> e):
        free(e)
        return False
    e.number = number
    e.unit = unit
    e.size = size
    e.crc = crc
    e.state = EXTENT_LIES
    x.bytes = x.units.used * x.units.size
    x.begun = 1                         # it was there before
    return True


cdef int extents_start(Extents* x, void (*write_checkpoint)(Extents*) noexcept nogil) noexcept nogil:
    cdef int failed
    x.write_checkpoint = write_checkpoint
    failed = start_thread(&x.thread, work, x)
    x.is_started = failed == 0
    return failed


cdef void extents_stop(Extents* x) noexcept nogil:
    """What is not yet written is dropped: the journal has it. Before the journal's end."""
    if not x.is_started:
        return
    pthread_mutex_lock(&x.lock)
    x.closing = True
    pthread_cond_broadcast(&x.work)
    pthread_mutex_unlock(&x.lock)
    pthread_mutex_lock(&x.journal.lock)
    x.journal.unwatched = True
    pthread_cond_broadcast(&x.journal.watch)
    pthread_mutex_unlock(&x.journal.lock)
    pthread_join(x.thread, NULL)
    x.is_started = False


cdef void extents_free(Extents* x) noexcept nogil:
    """Give back all memory, close the file."""
    cdef size_t i
    cdef Extent* e
    while x.first != NULL:              # those that wait and were freed are in no map
        e = x.first
        x.first = e.next
        if e.freed:
            forget(e)
    while x.freed != NULL:
        e = x.freed
        x.freed = e.next
        forget(e)
    if x.map.entries != NULL:
        for i in range(x.map.mask + 1):
            if x.map.entries[i].key:
                forget(<Extent*> <size_t> x.map.entries[i].value)
    idmap_free(&x.map)
    for i in range(x.done.size // sizeof(ExtentRead)):
        buffer_free(&(<ExtentRead*> x.done.data)[i].payload)
    buffer_free(&x.done)
    buffer_free(&x.reads)
    buffer_free(&x.units.states)
    buffer_free(&x.states)
    if x.fd >= 0:
        x.files.close(x.files.self, x.fd)
    x.fd = -1


# ---- under the lock

cdef void forget(Extent* e) noexcept nogil:
    buffer_free(&e.payload)
    free(e)


cdef bint add_done(Extents* x, const ExtentRead* answer) noexcept nogil:
    """False: no memory."""
    buffer_add(&x.done, answer, sizeof(ExtentRead))
    if x.done.failed:
        x.done.failed = False
        return False
    atomic_store(&x.done_count, x.done_count + 1)
    pthread_mutex_lock(&x.journal.lock)
    journal_tell(x.journal)
    pthread_mutex_unlock(&x.journal.lock)
    return True


cdef void drop(Extents* x, Extent* e) noexcept nogil:
    """One that lies there was freed: its units are free, unless a checkpoint was begun with it; then the next one has to be durable."""
    if e.born < x.begun:
        e.next = x.freed
        x.freed = e
    else:
        free_units(x, e)
        forget(e)


cdef void free_units(Extents* x, const Extent* e) noexcept nogil:
    units_release(&x.units, e.unit, units_count(&x.units, e.size))
    atomic_store(&x.bytes, x.units.used * x.units.size)


cdef bint take_units(Extents* x, Extent* e) noexcept nogil:
    """False: no memory."""
    if not units_take(&x.units, units_count(&x.units, e.size), &e.unit):
        return False
    atomic_store(&x.bytes, x.units.used * x.units.size)
    return True


# ---- the thread

cdef void* work(void* argument) noexcept nogil:
    """The thread of extents and checkpoints."""
    cdef Extents* x = <Extents*> argument
    cdef ReadRequest request
    cdef Extent* e
    cdef Task task
    while True:
        e = NULL
        pthread_mutex_lock(&x.lock)
        while True:
            task = next_task(x)
            if task != TASK_END or x.closing or x.journal.failure.error:
                break
            if not x.full and not x.held:
                pthread_cond_wait(&x.work, &x.lock)
                continue
            cond_wait_ns(&x.work, &x.lock, HELD_RETRY_NS if x.held else FULL_RETRY_NS)
            if x.held:
                x.held = False              # it is tried again
            elif next_task(x) == TASK_END and not x.closing:
                task = TASK_PROBE
                break
        if task == TASK_READ:
            request = (<ReadRequest*> x.reads.data)[0]
            buffer_drop_front(&x.reads, sizeof(request))
        elif task == TASK_WRITE:
            e = x.first
            x.first = e.next
            if x.first == NULL:
                x.last = NULL
            e.next = NULL
            e.state = EXTENT_WRITES
        pthread_mutex_unlock(&x.lock)
        x.held = False                      # between two other tasks a checkpoint is tried again
        if task == TASK_READ:
            read_extent(x, &request)
        elif task == TASK_WRITE:
            write_extent(x, e)
        elif task == TASK_CHECKPOINT:
            x.write_checkpoint(x)
        elif task == TASK_PROBE:
            probe(x)
        else:
            return NULL


cdef Task next_task(Extents* x) noexcept nogil:
    """Under the lock: what comes next; TASK_END: nothing."""
    if x.closing or x.journal.failure.error:
        return TASK_END
    if x.reads.size:
        return TASK_READ
    if x.checkpointing and x.written >= x.needs_written and not x.held:
        return TASK_CHECKPOINT
    if x.first != NULL:
        return TASK_WRITE
    return TASK_END


cdef void read_extent(Extents* x, const ReadRequest* request) noexcept nogil:
    cdef ExtentRead answer
    cdef int64_t got
    cdef uint8_t* at
    memset(&answer, 0, sizeof(answer))
    answer.number = request.number
    at = buffer_extend(&answer.payload, <size_t> request.size)
    got = -ENOMEM if at == NULL else read_all(x.files, x.fd, at, <size_t> request.size, request.unit * x.units.size)
    if got < 0:
        answer.error = <int> -got
    elif <uint64_t> got < request.size or crc32c(0, at, <size_t> request.size) != request.crc:
        answer.error = EBADMSG
    if answer.error:
        buffer_free(&answer.payload)
    pthread_mutex_lock(&x.lock)
    if not add_done(x, &answer):
        buffer_free(&answer.payload)
    pthread_mutex_unlock(&x.lock)


cdef void write_extent(Extents* x, Extent* e) noexcept nogil:
    """Write the extent to free units; or refuse it, without room."""
    cdef bint has_units, is_needed
    cdef int failed = 0
    e.crc = crc32c(0, e.payload.data, e.payload.size)
    pthread_mutex_lock(&x.lock)
    is_needed = not e.freed or e.born < x.begun
    has_units = is_needed and take_units(x, e)
    pthread_mutex_unlock(&x.lock)
    if is_needed:
        failed = put_extent(x, e) if has_units else -ENOSPC
        if failed and failed != -ENOSPC and failed != -EDQUOT:
            extents_fail(x, b"pwrite", b"extents", failed)
    pthread_mutex_lock(&x.lock)
    x.written += 1
    atomic_store(&x.pending, x.pending - e.size)
    finish_extent(x, e, has_units, failed)
    if is_needed:
        extents_full(x, failed != 0)
    pthread_mutex_unlock(&x.lock)


cdef void finish_extent(Extents* x, Extent* e, bint has_units, int failed) noexcept nogil:
    """Under the lock: the extent lies there, or is refused, or was not needed any more."""
    cdef ExtentRead answer
    buffer_free(&e.payload)
    if has_units and not failed:
        e.state = EXTENT_LIES
        if e.freed:
            drop(x, e)
        return
    if has_units:
        free_units(x, e)
    if failed:
        x.failures += 1
        if e.freed:
            x.failures_heard += 1       # nobody waits to hear of it; a checkpoint that was begun with it still fails
        else:
            idmap_remove(&x.map, e.number)
            memset(&answer, 0, sizeof(answer))
            answer.number = e.number
            answer.error = ENOSPC
            if not add_done(x, &answer):
                extents_fail(x, b"malloc", b"extents", -ENOMEM)
    free(e)


cdef int put_extent(Extents* x, const Extent* e) noexcept nogil:
    """0, or -errno."""
    cdef uint64_t offset = e.unit * x.units.size
    cdef char[PATH_SIZE_MAX] path
    cdef int failed
    if x.fd < 0:
        snprintf(path, PATH_SIZE_MAX, b"%s/extents", x.journal.folder)
        x.fd = open_file(x.files, path, O_RDWR | O_CREAT)
        if x.fd < 0:
            return x.fd
        # its name is there before a checkpoint's can be
        if x.files.sync_folder(x.files.self, x.journal.folder):
            return -EIO
    if armed == MID_EXTENT:
        write_all(x.files, x.fd, e.payload.data, e.payload.size // 2, offset)
        failpoint(MID_EXTENT)
    failed = write_all(x.files, x.fd, e.payload.data, e.payload.size, offset)
    if failed:
        return failed
    failpoint(AFTER_EXTENT)
    x.unsynced += e.size
    return extents_sync(x) if x.unsynced >= SYNC_SIZE else 0


cdef int extents_sync(Extents* x) noexcept nogil:
    """0, or -errno, which is never ENOSPC: a sync that fails for want of room cannot be tried again either."""
    cdef int failed = x.files.fdatasync(x.files.self, x.fd) if x.unsynced else 0
    if failed:
        return -EIO if failed == -ENOSPC or failed == -EDQUOT else failed
    x.unsynced = 0
    return 0


cdef void extents_fail(Extents* x, const char* call, const char* name, int error) noexcept nogil:
    journal_fail(x.journal, call, name, error)


cdef void extents_full(Extents* x, bint full) noexcept nogil:
    if x.full != <uint64_t> full:
        atomic_store(&x.full, full)
        pthread_mutex_lock(&x.journal.lock)
        journal_tell(x.journal)
        pthread_mutex_unlock(&x.journal.lock)


cdef void probe(Extents* x) noexcept nogil:
    """Without room: find out whether there is some again, which nobody may try otherwise."""
    cdef char[PATH_SIZE_MAX] path
    cdef int fd, failed
    snprintf(path, PATH_SIZE_MAX, b"%s/checkpoint.new", x.journal.folder)
    fd = open_file(x.files, path, O_RDWR | O_CREAT)
    if fd < 0:
        return
    failed = x.files.fallocate(x.files.self, fd, PROBE_SIZE)
    x.files.close(x.files.self, fd)
    x.files.unlink(x.files.self, path)
    if failed == -ENOSPC or failed == -EDQUOT:
        return
    pthread_mutex_lock(&x.lock)
    extents_full(x, False)
    pthread_mutex_unlock(&x.lock)
