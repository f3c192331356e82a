"""The file log (see file_log.pxd)."""
import os

cimport cython
from libc.errno cimport EIO
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from fastmq.storage.files cimport FileCalls, open_file, read_all, write_all
from fastmq.storage.journal cimport (
    SPARES_MAX, Segment, Spare, journal_append, journal_start, journal_stop, journal_submit, journal_trim,
)
from fastmq.storage.journal_reader cimport JournalReader, SegmentFile
from fastmq.storage.log cimport RECORDS_DURABLE
from fastmq.storage.posix cimport (
    EFD_CLOEXEC, EFD_NONBLOCK, O_RDWR, atomic_load, bell_quiet, close, cond_init, eventfd, pthread_cond_destroy, pthread_mutex_destroy,
    pthread_mutex_init,
)
from fastmq.wire.buffer cimport buffer_add

from fastmq.errors import FastMQError


cdef enum:
    SEGMENT_SIZE = 67108864
    SEGMENT_SIZE_MIN = 8192


@cython.final
cdef class FileLog(Log):
    """The log in `folder`, which is made if need be. `say`: called with a sentence about what recovery cut.

    `record_level`: for tests. `segment_size`: bytes, a multiple of 4096; `files`: the table of file calls; both for tests too.
    """

    def __cinit__(self):
        self.journal.bell = self.journal.fd = -1
        pthread_mutex_init(&self.journal.lock, NULL)
        cond_init(&self.journal.work)
        cond_init(&self.journal.room)
        cond_init(&self.journal.house)

    def __init__(self, folder: str, *, record_level: int = RECORDS_DURABLE, segment_size: int = SEGMENT_SIZE, files: Files | None = None,
                 say: object = None) -> None:
        super().__init__(record_level)
        if segment_size < SEGMENT_SIZE_MIN or segment_size % 4096:
            raise ValueError(f"a segment has at least {SEGMENT_SIZE_MIN} bytes, and a multiple of 4096")
        self.files = files or Files()
        self.folder = folder
        self.folder_bytes = os.fsencode(folder)
        self.journal.files = &self.files.calls
        self.journal.folder = self.folder_bytes
        self.journal.segment_size = segment_size
        self.say = say

    def __dealloc__(self):
        if self.is_open:
            with nogil:
                journal_stop(&self.journal)
            close(self.journal.bell)
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

    cdef uint64_t look(self) noexcept nogil:
        cdef uint64_t rung = atomic_load(&self.journal.rung)
        if rung != self.rung:
            self.rung = rung
            bell_quiet(self.journal.bell)
            self.failed = atomic_load(&self.journal.failed) != 0
            self.full = atomic_load(&self.journal.full) != 0
        self.durable = atomic_load(&self.journal.durable)
        return self.durable

    @property
    def error(self) -> OSError | None:
        if not atomic_load(&self.journal.failed):
            return None
        number = self.journal.failure.error
        call, name = self.journal.failure.call.decode(), self.journal.failure.name.decode(errors="replace")
        return OSError(number, f"{call}: {os.strerror(number)}", os.path.join(self.folder, name))

    def open(self, epoch: int) -> int:
        """Read and check everything, cut a tear, and begin to write with the next entry.

        Raises JournalDamaged, OSError, and FastMQError when another owner had this epoch or a higher one; then nothing was changed.
        """
        cdef JournalReader reader
        if self.is_open:
            raise FastMQError("this log is open already")
        self.files.make_folder(self.folder)
        reader = JournalReader(self.files, self.folder)
        position = reader.read_all()
        if epoch <= reader.epoch:
            raise FastMQError(f"the journal in {self.folder} has had an owner of epoch {reader.epoch}, and this one has {epoch}", "stale-epoch")
        if reader.cut and self.say is not None:
            self.say(reader.cut)
        if reader.count:
            self._affirm(reader)
        self._take_over(reader)
        self.first = reader.first
        self.journal.epoch = epoch
        self.journal.durable = self.journal.known = position
        self.journal.next_first = position + 1
        self.appended = self.submitted = self.durable = position
        self.journal.bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        self.is_open = True
        failed = journal_start(&self.journal)
        if self.journal.bell < 0 or failed:
            self.close()
            raise OSError(failed, "no eventfd or no thread for the journal")
        return position

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
            failed = 0 if data != NULL and read_all(calls, fd, data, size, r.doubt) == <int64_t> size else -EIO
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
        for i in range(r.count):
            segment.number = r.segments[i].number
            segment.first = r.segments[i].first
            segment.last = (r.segments[i + 1].first if i + 1 < r.count else r.expected) - 1
            segment.size = r.segments[i].size
            buffer_add(&self.journal.finished, &segment, sizeof(segment))
        if self.journal.finished.failed:
            raise MemoryError
        memset(&self.journal.segment, 0, sizeof(Segment))
        self.journal.segment.number = segment.number if r.count else 0
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
            fd = open_file(calls, path, O_RDWR)
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

    def fileno(self) -> int:
        return self.journal.bell if self.is_open else -1

    def read(self, position: int = 1) -> JournalReader:
        return JournalReader(self.files, self.folder, position)

    def trim(self, position: int) -> None:
        """Segments wholly at or below `position` may be used again."""
        journal_trim(&self.journal, position)

    def close(self) -> None:
        if self.is_open:
            with nogil:
                journal_stop(&self.journal)
            self.look()
            close(self.journal.bell)
            self.journal.bell = -1
            self.is_open = False
