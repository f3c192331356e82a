"""Reads a journal and judges what it finds (see journal_reader.pxd)."""
import os

cimport cython
from libc.errno cimport EIO, ENOMEM
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy

from fastmq.storage.checkpoint cimport Checkpoint
from fastmq.storage.files cimport PATH_SIZE_MAX, open_file, read_all
from fastmq.storage.journal cimport segment_path
from fastmq.storage.log cimport entries_fit, entry_next
from fastmq.storage.posix cimport O_RDONLY
from fastmq.storage.segments cimport (
    BATCH_MARK, BYTE_ORDER_MARK, FORMAT_VERSION, SEGMENT_HEAD_SIZE, SEGMENT_MARK, SEGMENT_RECYCLED, SegmentHead, batch_begins, batch_crc,
    segment_crc,
)

from fastmq.errors import JournalDamaged


cdef enum:
    WINDOW_SIZE = 1048576


def segment_names(files: Files, folder: str) -> list[str]:
    """The names of the segments in a folder, oldest first."""
    return [name for name in files.names(folder) if name.startswith("journal-") and len(name) == 24]


@cython.no_gc_clear                     # its end closes a file through the table of calls in `files`
cdef class JournalReader(LogReader):
    """The entries of the journal in `folder`, from a position on. Raises JournalDamaged for what the segments' heads show already."""

    def __cinit__(self, files: Files, folder: str, position: int = 1):
        self.fd = -1
        self.files = files
        self.calls = &files.calls
        self.folder = folder
        self.folder_bytes = os.fsencode(folder)
        self.path = self.folder_bytes
        self.start = position
        self.state = READER_READS
        names = segment_names(files, folder)
        self.segments = <SegmentFile*> malloc(sizeof(SegmentFile) * (len(names) + 1))
        if self.segments == NULL:
            raise MemoryError
        for name in names:
            self._read_head(name)
        while self.at + 1 < self.count and self.segments[self.at + 1].first <= self.start:
            self.at += 1                # what lies before is not needed
        self.expected = self.segments[self.at].first if self.count else 1

    def __dealloc__(self):
        self.close_segment()
        free(self.segments)
        free(self.window)

    def begin_with(self, checkpoint: Checkpoint, needs_checkpoint: bool = True) -> None:
        """Give the entries of a checkpoint first. Raises JournalDamaged where the journal begins behind it (`needs_checkpoint`); one that
        ends before it is told by `check`."""
        self.checkpoint = checkpoint
        self.gives_checkpoint = bool(checkpoint)
        if needs_checkpoint and self.first > checkpoint.position + 1:
            raise self._missing(f"begins with position {self.first}, and the checkpoint reaches to {checkpoint.position}")

    def _read_head(self, name: str) -> None:
        """Check a segment's head, and that it follows the one before."""
        cdef SegmentHead head
        cdef SegmentFile* s = &self.segments[self.count]
        cdef int64_t size, got
        cdef bytes path = os.fsencode(os.path.join(self.folder, name))
        cdef int fd = open_file(self.calls, path, O_RDONLY)
        if fd < 0:
            raise OSError(-fd, os.strerror(-fd), name)
        size = self.calls.size(self.calls.self, fd)
        got = read_all(self.calls, fd, <uint8_t*> &head, sizeof(head), 0)
        self.calls.close(self.calls.self, fd)
        if size < 0 or got < 0:
            error = -(size if size < 0 else got)
            raise OSError(error, os.strerror(error), name)
        number = int(name[8:], 16)
        if self.count and number != self.segments[self.count - 1].number + 1:
            missing = self.segments[self.count - 1].number + 1
            raise self._damage(f"journal-{missing:016x}", 0, "is missing")
        if got < <int64_t> sizeof(head) or size < SEGMENT_HEAD_SIZE:
            raise self._damage(name, size, "ends within its head")
        if head.mark != SEGMENT_MARK:
            raise self._damage(name, 0, "is not a segment of a fastmq journal, or its head is damaged")
        if head.byte_order != BYTE_ORDER_MARK:
            raise self._damage(name, 0, "was written on a machine of the other byte order, or its head is damaged")
        if head.version != FORMAT_VERSION:
            raise self._damage(name, 0, f"has format version {head.version}, and this fastmq reads {FORMAT_VERSION}; or its head is damaged")
        if head.crc != segment_crc(&head):
            raise self._damage(name, 0, "has a damaged head")
        if head.number != number:
            raise self._damage(name, 0, f"says that it is segment {head.number:016x}")
        if <uint64_t> size < head.size:
            raise self._damage(name, size, f"is {size:,} bytes long and should be {head.size:,}")
        s.number = head.number
        s.first = head.first
        s.salt = head.salt
        s.size = head.size
        s.epoch = head.epoch
        s.recycled = (head.flags & SEGMENT_RECYCLED) != 0
        self.epoch = max(self.epoch, head.epoch)
        self.count += 1

    def _damage(self, name: str, offset: int, what: str) -> JournalDamaged:
        file = os.path.join(self.folder, name)
        return JournalDamaged(f"{file} {what}; `fastmq journal repair {self.folder}` cuts the journal there, after saying what is lost",
                              file, offset)

    def _missing(self, what: str) -> JournalDamaged:
        return JournalDamaged(f"{self.folder}: the journal {what}; files are missing, which only a backup has", self.folder, 0)

    # ---- the segment that is read

    cdef const uint8_t* look_at(self, uint64_t offset, size_t size) noexcept nogil:
        """These bytes of the segment; void with the next call. NULL: they cannot be read, `state` says so."""
        cdef size_t want
        cdef int64_t got
        cdef uint8_t* grown
        if offset >= self.window_at and offset + size <= self.window_at + self.window_size:
            return self.window + (offset - self.window_at)
        want = size if size > WINDOW_SIZE else WINDOW_SIZE
        if want > self.window_room:
            grown = <uint8_t*> realloc(self.window, want)
            if grown == NULL:
                self.error = ENOMEM
                self.state = READER_ERROR
                return NULL
            self.window = grown
            self.window_room = want
        want = <size_t> min(<uint64_t> want, self.segments[self.at].size - offset)
        self.window_size = 0
        got = read_all(self.calls, self.fd, self.window, want, offset)
        if got < <int64_t> size:
            self.error = -<int> got if got < 0 else EIO
            self.state = READER_ERROR
            return NULL
        self.window_at = offset
        self.window_size = <size_t> got
        return self.window

    cdef bint open_segment(self) noexcept nogil:
        cdef char[PATH_SIZE_MAX] path
        segment_path(path, self.path, self.segments[self.at].number)
        self.fd = open_file(self.calls, path, O_RDONLY)
        if self.fd < 0:
            self.error = -self.fd
            self.state = READER_ERROR
            return False
        self.calls.read_ahead(self.calls.self, self.fd)
        self.window_size = 0
        self.offset = self.doubt = SEGMENT_HEAD_SIZE
        return True

    cdef void close_segment(self) noexcept nogil:
        if self.fd >= 0:
            self.calls.close(self.calls.self, self.fd)
            self.fd = -1

    cdef const BatchHead* good_batch(self, uint64_t offset) noexcept nogil:
        """The batch there, its entries behind it; NULL: none, or a bad one, or it cannot be read (`state`)."""
        cdef const SegmentFile* s = &self.segments[self.at]
        cdef const BatchHead* head
        if offset + sizeof(BatchHead) > s.size:
            return NULL
        head = <const BatchHead*> self.look_at(offset, sizeof(BatchHead))
        if head == NULL or not batch_begins(head, s.size - offset, s.salt):
            return NULL
        head = <const BatchHead*> self.look_at(offset, sizeof(BatchHead) + <size_t> head.size)
        if head == NULL or head.crc != batch_crc(<const uint8_t*> head, head.size, s.salt):
            return NULL
        return head

    cdef bint next_batch(self, BatchView* out) noexcept nogil:
        """The next batch, checked. False: there is no more; `check` then raises if that is not the journal's end."""
        if self.gives_checkpoint:
            self.gives_checkpoint = False
            self.checkpoint.view(out)
            if out.count:
                return True
        while self.state == READER_READS and self.count:
            if self.fd < 0 and not self.open_segment():
                break
            if self.read_batch(out):
                if out.count and out.first + out.count > self.start:
                    if out.first < self.start:
                        skip_entries(out, <uint32_t> (self.start - out.first))
                    return True
            elif self.state == READER_READS:
                self.judge()
        if self.count == 0:
            self.state = READER_END
        return False

    cdef bint read_batch(self, BatchView* out) noexcept nogil:
        """The batch at `offset`. False: no good one is there."""
        cdef const BatchHead* head = self.good_batch(self.offset)
        if head == NULL:
            return False
        if head.first != self.expected or not entries_fit(<const uint8_t*> (head + 1), <size_t> head.size, head.count):
            return False
        out.first = head.first
        out.count = head.count
        out.entries = <const uint8_t*> (head + 1)
        out.size = <size_t> head.size
        if head.durable + 1 >= self.expected:
            self.doubt = self.offset if head.count else self.offset + sizeof(BatchHead)
        self.offset += sizeof(BatchHead) + head.size
        self.expected += head.count
        self.epoch = max(self.epoch, head.epoch)
        return True

    cdef bint sound(self, const uint8_t* data, size_t size) noexcept nogil:
        """Whether these bytes of the last segment are whole batches, as they were when they were read."""
        cdef uint64_t salt = self.segments[self.count - 1].salt
        cdef const BatchHead* head
        while size:
            head = <const BatchHead*> data
            if size < sizeof(BatchHead) or not batch_begins(head, size, salt) or head.crc != batch_crc(data, head.size, salt):
                return False
            data += sizeof(BatchHead) + head.size
            size -= sizeof(BatchHead) + <size_t> head.size
        return True

    # ---- where no good batch follows

    cdef void judge(self) noexcept nogil:
        """The end of a segment, a tear, or damage (the table in journal_reader.pxd)."""
        cdef size_t last = self.count - 1
        cdef size_t at = self.at
        cdef uint64_t offset = self.offset
        cdef bint remains
        if at < last and self.segments[at + 1].first == self.expected:
            self.close_segment()
            self.at += 1
            return
        remains = self.search(offset)
        if self.state == READER_ERROR:
            return
        if at == last and self.claim < self.expected:
            self.state = READER_TEAR if remains else READER_END
            return
        while self.at < last and self.state != READER_ERROR:       # for what is lost: how far anything says it was durable
            self.close_segment()
            self.at += 1
            self.claim = max(self.claim, self.segments[self.at].first - 1)
            if self.open_segment():
                self.search(SEGMENT_HEAD_SIZE)
        self.close_segment()
        self.at = at
        self.offset = offset
        self.state = READER_DAMAGE

    cdef bint search(self, uint64_t offset) noexcept nogil:
        """Whether something was written from `offset` on in this life of the file, as far as that can be told. Good batches there raise
        `claim`."""
        cdef const SegmentFile* s = &self.segments[self.at]
        cdef uint64_t start = offset
        cdef uint64_t mark = BATCH_MARK ^ s.salt
        cdef uint64_t word
        cdef size_t chunk, i
        cdef const uint8_t* data
        cdef const BatchHead* head
        cdef bint remains = False
        self.cut_size = 0
        if offset + sizeof(BatchHead) <= s.size:
            head = <const BatchHead*> self.look_at(offset, sizeof(BatchHead))
            if head == NULL:
                return False
            remains = head.mark == mark or head.first == self.expected
        while offset + 8 <= s.size:
            chunk = <size_t> min(s.size - offset, <uint64_t> WINDOW_SIZE) & ~<size_t> 7
            data = self.look_at(offset, chunk)
            if data == NULL:
                return False
            i = 0
            while i < chunk:
                memcpy(&word, data + i, 8)
                i += 8
                if word == 0:
                    continue
                self.cut_size = offset + i - start
                if word == mark:
                    head = self.good_batch(offset + i - 8)
                    if head != NULL:
                        self.claim = max(self.claim, max(head.durable, head.first - 1))
                    elif self.state == READER_ERROR:
                        return False
                    data = self.look_at(offset, chunk)
                    if data == NULL:
                        return False
            offset += chunk
        if not s.recycled:
            remains = remains or self.cut_size != 0
        return remains

    # ---- from Python

    def check(self) -> None:
        """After the last batch: raises JournalDamaged, or OSError for what could not be read; a tear is no error (see `cut`)."""
        cdef str name = f"journal-{self.segments[self.at].number:016x}" if self.count else ""
        if self.state == READER_ERROR:
            raise OSError(self.error, os.strerror(self.error), os.path.join(self.folder, name))
        if self.state == READER_DAMAGE:
            raise self._damage(name, self.offset, f"is damaged at offset {self.offset}: position {self.expected} cannot be read, and "
                               f"everything up to position {max(self.claim, self.expected)} was durable")
        if self.checkpoint is not None and self.expected <= self.checkpoint.position:
            raise self._missing(f"ends with position {self.expected - 1}, and the checkpoint rests on {self.checkpoint.position}")

    def read_all(self) -> int:
        """Check everything that is left; the position of the last entry. Raises as `check`."""
        cdef BatchView view
        with nogil:
            while self.next_batch(&view):
                pass
        self.check()
        return self.expected - 1

    @property
    def first(self) -> int:
        """The position of the first entry that is kept (of the next one, where there is none)."""
        return self.segments[0].first if self.count else 1

    @property
    def segment_count(self) -> int:
        return self.count

    @property
    def cut(self) -> str:
        """After the last batch: the sentence about a tear; "" where the journal ends cleanly."""
        if self.state != READER_TEAR:
            return ""
        name = f"journal-{self.segments[self.at].number:016x}"
        return (f"{os.path.join(self.folder, name)}: at offset {self.offset} {self.cut_size:,} bytes are cut, which were being written when "
                f"the process died and were never told durable; the journal ends with position {self.expected - 1}")


cdef void skip_entries(BatchView* view, uint32_t count) noexcept nogil:
    """Pass over the first entries."""
    cdef const uint8_t* entries = view.entries
    view.first += count
    view.count -= count
    while count:
        entries = entry_next(entries)
        count -= 1
    view.size -= <size_t> (entries - view.entries)
    view.entries = entries
