"""The file log (see file_log.pxd)."""
import os

cimport cython
from libc.errno cimport EIO
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from fastmq.storage.checkpoint cimport Checkpoint, CheckpointExtent
from fastmq.storage.checkpoint_writer cimport write_checkpoint
from fastmq.storage.extents cimport (
    Extents, extents_add, extents_checkpoint, extents_free, extents_next, extents_read, extents_release,
    extents_start, extents_stop, extents_write,
)
from fastmq.storage.blocks cimport blocks_init
from fastmq.storage.files cimport FileCalls, open_file, read_all, write_all
from fastmq.storage.journal cimport (
    SPARES_MAX, Segment, Spare, journal_append, journal_checkpointed, journal_start, journal_stop, journal_submit,
    journal_trim, journal_write_here,
)
from fastmq.storage.journal_reader cimport JournalReader, SegmentFile
from fastmq.storage.keeper cimport keep_house
from fastmq.storage.log cimport RECORDS_DURABLE, ExtentRead
from fastmq.storage.posix cimport (
    EFD_CLOEXEC, EFD_NONBLOCK, O_DIRECT, O_RDWR, atomic_load, bell_quiet, close, cond_init, eventfd, pthread_cond_destroy,
    pthread_mutex_destroy, pthread_mutex_init,
)
from fastmq.storage.units cimport units_grow
from fastmq.wire.buffer cimport Buffer, buffer_add

from fastmq.errors import FastMQError, JournalDamaged


cdef enum:
    SEGMENT_SIZE = 67108864
    SEGMENT_SIZE_MIN = 8192
    EXTENT_UNIT_SIZE = 65536


@cython.no_gc_clear                     # its end uses the table of calls in `files`, and so do its threads
@cython.final
cdef class FileLog(Log):
    """The log in `folder`, which `open` makes if need be. `say`: called with a sentence about what recovery cut.

    For tests: `record_level`; `segment_size`, bytes, a multiple of 4096; `files`, the table of file calls; not `needs_checkpoint`: a journal
    may lack its beginning, which `trim` took; `unit_size` of the extents where there is no checkpoint yet.
    """

    def __cinit__(self):
        self.journal.bell = self.journal.fd = -1
        pthread_mutex_init(&self.journal.lock, NULL)
        cond_init(&self.journal.work)
        cond_init(&self.journal.room)
        cond_init(&self.journal.house)
        cond_init(&self.journal.watch)
        self.extents.fd = -1
        pthread_mutex_init(&self.extents.lock, NULL)
        cond_init(&self.extents.work)

    def __init__(self, folder: str, *, record_level: int = RECORDS_DURABLE, segment_size: int = SEGMENT_SIZE, files: Files | None = None,
                 say: object = None, needs_checkpoint: bool = True, unit_size: int = EXTENT_UNIT_SIZE) -> None:
        super().__init__(record_level)
        if segment_size < SEGMENT_SIZE_MIN or segment_size % 4096:
            raise ValueError(f"a segment has at least {SEGMENT_SIZE_MIN} bytes, and a multiple of 4096")
        self.files = files or Files()
        self.folder = folder
        self.folder_bytes = os.fsencode(folder)
        self.journal.files = &self.files.calls
        self.journal.folder = self.folder_bytes
        self.journal.segment_size = segment_size
        self.extents.files = &self.files.calls
        self.extents.journal = &self.journal
        self.extents.units.size = unit_size
        self.say = say
        self.needs_checkpoint = needs_checkpoint

    def __dealloc__(self):
        with nogil:
            extents_stop(&self.extents)
            journal_stop(&self.journal)
        if self.journal.bell >= 0:
            close(self.journal.bell)
        extents_free(&self.extents)
        pthread_cond_destroy(&self.extents.work)
        pthread_mutex_destroy(&self.extents.lock)
        pthread_cond_destroy(&self.journal.watch)
        pthread_cond_destroy(&self.journal.work)
        pthread_cond_destroy(&self.journal.room)
        pthread_cond_destroy(&self.journal.house)
        pthread_mutex_destroy(&self.journal.lock)

    cdef bint append(self, uint32_t shard, const uint8_t* records, size_t size) noexcept nogil:
        if not journal_append(&self.journal, shard, records, size):
            return False
        self.appended += 1
        return True

    cdef void submit(self) noexcept nogil:
        if self.submitted != self.appended:
            journal_submit(&self.journal)
            self.submitted = self.appended

    cdef bint write_here(self) noexcept nogil:
        if self.submitted == self.appended or not journal_write_here(&self.journal):
            return False
        self.submitted = self.appended
        return True

    cdef uint64_t look(self) noexcept nogil:
        cdef uint64_t rung = atomic_load(&self.journal.rung)
        if rung != self.rung:
            self.rung = rung
            bell_quiet(self.journal.bell)
        return self.peek()

    cdef uint64_t peek(self) noexcept nogil:
        self.failed = atomic_load(&self.journal.failed) != 0
        self.full = atomic_load(&self.journal.full) != 0 or atomic_load(&self.extents.full) != 0
        self.durable = atomic_load(&self.journal.durable)
        self.checkpointing = atomic_load(&self.extents.checkpointing) != 0
        self.checkpointed = atomic_load(&self.extents.checkpointed)     # after `checkpointing`: one that is done counts
        self.tail_size = atomic_load(&self.journal.written) - atomic_load(&self.extents.tail_begin)
        self.extent_bytes = atomic_load(&self.extents.bytes)
        self.extent_pending = atomic_load(&self.extents.pending)
        return self.durable

    cdef bint extent_write(self, uint64_t number, Buffer* payload) noexcept nogil:
        return extents_write(&self.extents, number, payload)

    cdef bint extent_read(self, uint64_t number) noexcept nogil:
        return extents_read(&self.extents, number)

    cdef bint extent_next(self, ExtentRead* out) noexcept nogil:
        return extents_next(&self.extents, out)

    cdef void extent_free(self, uint64_t number) noexcept nogil:
        extents_release(&self.extents, number)

    cdef bint checkpoint(self, uint64_t position, Buffer* states) noexcept nogil:
        return extents_checkpoint(&self.extents, position, states, self.appended)

    @property
    def error(self) -> OSError | None:
        if not atomic_load(&self.journal.failed):
            return None
        number = self.journal.failure.error
        call, name = self.journal.failure.call.decode(), self.journal.failure.name.decode(errors="replace")
        return OSError(number, f"{call}: {os.strerror(number)}", os.path.join(self.folder, name))

    def open(self, epoch: int, reader: JournalReader | None = None) -> int:
        """Read and check what is left of `reader` (of `read`; None: everything), cut a tear, and begin to write with the next entry.

        Raises JournalDamaged, OSError, and FastMQError when another owner had this epoch or a higher one; then nothing was changed.
        """
        if self.was_opened:
            raise FastMQError("a FileLog is opened once")
        if reader is None:
            self.files.make_folder(self.folder)
            reader = self.read()
        position = reader.read_all()
        checkpoint = reader.checkpoint
        highest = max(reader.epoch, checkpoint.epoch)
        if epoch <= highest:
            raise FastMQError(f"the journal in {self.folder} has had an owner of epoch {highest}, and this one has {epoch}", "stale-epoch")
        if reader.cut and self.say is not None:
            self.say(reader.cut)
        if reader.count:
            self._affirm(reader)
        self._take_over(reader)
        self._take_extents(checkpoint)
        self.first = reader.first
        self.journal.epoch = epoch
        self.journal.durable = self.journal.known = position
        self.journal.next_first = position + 1
        self.appended = self.submitted = position
        self.journal.bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        if self.journal.bell < 0:
            raise OSError("no eventfd for the journal")
        if not blocks_init(&self.journal.blocks):
            raise MemoryError
        self.extents.checkpointed = self.checkpointed = checkpoint.position
        self.extents.tail_begin = journal_checkpointed(&self.journal, checkpoint.position)
        self.is_open = self.was_opened = True
        failed = journal_start(&self.journal, keep_house) or extents_start(&self.extents, write_checkpoint)
        if failed:
            self.close()
            raise OSError(failed, "no thread for the journal")
        return self.look()

    def _affirm(self, reader: JournalReader) -> None:
        """Make durable what was read and nothing says is: the owner before may have ended because its sync failed, and then the kernel can
        hold as clean what the disk does not have. The same bytes are written to their places again, and synced."""
        cdef JournalReader r = reader
        cdef FileCalls* calls = &self.files.calls
        cdef SegmentFile* last = &r.segments[r.count - 1]
        cdef size_t size = <size_t> (r.offset - r.doubt)
        cdef bytes path = os.fsencode(os.path.join(self.folder, f"journal-{last.number:016x}"))
        cdef uint8_t* data
        cdef int fd, failed
        fd = open_file(calls, path, O_RDWR)
        if fd < 0:
            raise OSError(-fd, os.strerror(-fd), path.decode(errors="replace"))
        data = <uint8_t*> malloc(size + 1)
        with nogil:
            failed = 0 if data != NULL and read_all(calls, fd, data, size, r.doubt) == <int64_t> size and r.sound(data, size) else -EIO
            if failed == 0:
                failed = write_all(calls, fd, data, size, r.doubt)
            if failed == 0:
                failed = calls.fdatasync(calls.self, fd)
            if failed == 0:
                failed = calls.sync_folder(calls.self, self.journal.folder)
            calls.close(calls.self, fd)
            free(data)
        if failed:
            raise OSError(-failed, os.strerror(-failed), path.decode(errors="replace"))

    def _take_over(self, reader: JournalReader) -> None:
        """The segments that are there are finished; spares of the right size are kept, the others deleted."""
        cdef JournalReader r = reader
        cdef Segment segment
        cdef size_t i
        cdef uint64_t begin = 0
        for i in range(r.count):
            segment.number = r.segments[i].number
            segment.first = r.segments[i].first
            segment.last = (r.segments[i + 1].first if i + 1 < r.count else r.expected) - 1
            segment.size = r.segments[i].size
            segment.begin = begin
            begin += segment.size if i + 1 < r.count else r.offset
            buffer_add(&self.journal.finished, &segment, sizeof(segment))
        if self.journal.finished.failed:
            raise MemoryError
        memset(&self.journal.segment, 0, sizeof(Segment))
        self.journal.segment.number = segment.number if r.count else 0
        self.journal.segment.begin = self.journal.written = begin
        for name in self.files.names(self.folder):
            if name.startswith("spare-"):
                self._take_spare(name)

    def _take_spare(self, name: str) -> None:
        cdef FileCalls* calls = &self.files.calls
        cdef bytes path = os.fsencode(os.path.join(self.folder, name))
        cdef Spare* spare = &self.journal.spares[self.journal.spare_count]
        cdef uint64_t serial = int(name[6:], 16)
        cdef int fd
        self.journal.spare_serial = max(self.journal.spare_serial, serial + 1)
        if self.journal.spare_count < SPARES_MAX:
            fd = open_file(calls, path, O_RDWR | O_DIRECT)
            if fd >= 0 and calls.size(calls.self, fd) == <int64_t> self.journal.segment_size:
                spare.serial = serial
                spare.size = self.journal.segment_size
                spare.fd = fd
                spare.recycled = True
                self.journal.spare_count += 1
                return
            if fd >= 0:
                calls.close(calls.self, fd)
        calls.unlink(calls.self, path)

    def _take_extents(self, checkpoint: Checkpoint) -> None:
        """Those that the checkpoint knows lie where it says; all else in the file is free."""
        cdef Checkpoint c = checkpoint
        cdef Extents* x = &self.extents
        cdef FileCalls* calls = &self.files.calls
        cdef const CheckpointExtent* e
        cdef int64_t size = 0
        cdef size_t i
        path = os.path.join(self.folder, "extents")
        names = self.files.names(self.folder)
        if c.head != NULL:
            x.units.size = c.head.unit_size
        if "checkpoint.new" in names:
            calls.unlink(calls.self, os.fsencode(os.path.join(self.folder, "checkpoint.new")))
        if "extents" in names:
            x.fd = open_file(calls, os.fsencode(path), O_RDWR)
            size = calls.size(calls.self, x.fd) if x.fd >= 0 else x.fd
            if size < 0:
                raise OSError(-size, os.strerror(-size), path)
        for i in range(c.head.extent_count if c.head != NULL else 0):
            e = &c.extents[i]
            if e.unit * x.units.size + e.size > <uint64_t> size or not extents_add(x, e.number, e.unit, e.size, e.crc):
                raise JournalDamaged(f"{path} does not hold the extents of the checkpoint; what it kept is only in a backup", path,
                                     e.unit * x.units.size)
        if size and not units_grow(&x.units, (<uint64_t> size + x.units.size - 1) // x.units.size):
            raise MemoryError

    def fileno(self) -> int:
        return self.journal.bell if self.is_open else -1

    def read(self, position: int = 1) -> JournalReader:
        checkpoint = Checkpoint(self.files, self.folder)
        reader = JournalReader(self.files, self.folder, max(position, checkpoint.position + 1))
        reader.begin_with(checkpoint, self.needs_checkpoint)
        return reader

    def trim(self, position: int) -> None:
        """Segments wholly at or below `position` may be used again."""
        journal_trim(&self.journal, position)

    def close(self) -> None:
        if self.is_open:
            with nogil:
                extents_stop(&self.extents)
                journal_stop(&self.journal)
            self.look()
            extents_free(&self.extents)
            close(self.journal.bell)
            self.journal.bell = -1
            self.is_open = False
