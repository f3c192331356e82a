"""The file `checkpoint` (see checkpoint.pxd)."""
import os

from libc.stdint cimport int64_t, uint8_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from fastmq.storage.crc32c cimport crc32c
from fastmq.storage.files cimport FileCalls, open_file, read_all
from fastmq.storage.log cimport entries_fit, entry_next
from fastmq.storage.posix cimport O_RDONLY
from fastmq.storage.segments cimport BYTE_ORDER_MARK
from fastmq.wire.buffer cimport buffer_add

from fastmq.errors import JournalDamaged


cdef class Checkpoint:
    """The checkpoint in `folder`; false where there is none. Raises JournalDamaged and OSError."""

    def __cinit__(self, files: Files, folder: str):
        cdef FileCalls* calls = &files.calls
        cdef int64_t size, got
        cdef int fd
        path = os.path.join(folder, "checkpoint")
        if "checkpoint" not in files.names(folder):
            return
        fd = open_file(calls, os.fsencode(path), O_RDONLY)
        if fd < 0:
            raise OSError(-fd, os.strerror(-fd), path)
        size = calls.size(calls.self, fd)
        self.data = <unsigned char*> malloc(max(size, 0) + 1)
        got = read_all(calls, fd, self.data, <size_t> size, 0) if self.data != NULL and size >= 0 else size
        calls.close(calls.self, fd)
        if self.data == NULL:
            raise MemoryError
        if got < 0:
            raise OSError(-got, os.strerror(-got), path)
        self._check(path, got)

    def __dealloc__(self):
        free(self.data)

    def _check(self, path: str, size: int) -> None:
        cdef CheckpointHead* h = <CheckpointHead*> self.data
        cdef size_t behind
        cdef BatchView entries
        fault = ""
        if size < <int64_t> sizeof(CheckpointHead) or h.mark != CHECKPOINT_MARK:
            fault = "is not a checkpoint of fastmq, or is damaged"
        elif h.byte_order != BYTE_ORDER_MARK:
            fault = "was written on a machine of the other byte order, or is damaged"
        elif h.version != CHECKPOINT_VERSION:
            fault = f"has format version {h.version}, and this fastmq reads {CHECKPOINT_VERSION}; or it is damaged"
        else:
            behind = <size_t> size - sizeof(CheckpointHead)
            if (
                h.extent_count > behind // sizeof(CheckpointExtent)
                or h.extent_count * sizeof(CheckpointExtent) + h.entries_size != behind
                or h.crc != checkpoint_crc(h, crc32c(0, self.data + sizeof(CheckpointHead), behind))
            ):
                fault = "is damaged"
        if fault:
            raise JournalDamaged(f"{path} {fault}; what it kept is only there and in a backup", path, 0)
        self.head = h
        self.extents = <const CheckpointExtent*> (h + 1)
        self.view(&entries)
        if not entries_fit(entries.entries, entries.size, entries.count):
            raise JournalDamaged(f"{path} is damaged; what it kept is only there and in a backup", path, 0)

    cdef void view(self, BatchView* out) noexcept nogil:
        """Its entries, for as long as this lives."""
        out.first = 0
        out.count = self.head.entry_count
        out.entries = <const uint8_t*> (self.extents + self.head.extent_count)
        out.size = <size_t> self.head.entries_size

    def __bool__(self) -> bool:
        return self.head != NULL

    @property
    def position(self) -> int:
        return self.head.position if self.head != NULL else 0

    @property
    def epoch(self) -> int:
        return self.head.epoch if self.head != NULL else 0

    @property
    def extent_count(self) -> int:
        return self.head.extent_count if self.head != NULL else 0

    @property
    def places(self) -> list[tuple[int, int, int, int]]:
        """Of each extent: number, offset in the file `extents`, size, CRC."""
        cdef size_t i
        return [(self.extents[i].number, self.extents[i].unit * self.head.unit_size, self.extents[i].size, self.extents[i].crc)
                for i in range(self.extent_count)]

    @property
    def entry_count(self) -> int:
        return self.head.entry_count if self.head != NULL else 0


cdef void checkpoint_add(Buffer* file, uint64_t number, uint64_t unit, uint64_t size, uint32_t crc) noexcept nogil:
    """An extent that it knows."""
    cdef CheckpointExtent known
    known.number = number
    known.unit = unit
    known.size = size
    known.crc = crc
    known.zero = 0
    buffer_add(file, &known, sizeof(known))


cdef void checkpoint_head(Buffer* file, const Buffer* entries, uint64_t position, uint64_t epoch, uint32_t unit_size) noexcept nogil:
    """Fill the head, all but its CRC. `entries`: those that will follow."""
    cdef CheckpointHead* head = <CheckpointHead*> file.data
    cdef const uint8_t* entry = entries.data
    memset(head, 0, sizeof(CheckpointHead))
    head.mark = CHECKPOINT_MARK
    head.version = CHECKPOINT_VERSION
    head.byte_order = BYTE_ORDER_MARK
    head.position = position
    head.epoch = epoch
    head.extent_count = (file.size - sizeof(CheckpointHead)) // sizeof(CheckpointExtent)
    head.entries_size = entries.size
    head.unit_size = unit_size
    while entry < entries.data + entries.size:
        entry = entry_next(entry)
        head.entry_count += 1


cdef uint32_t checkpoint_crc(const CheckpointHead* head, uint32_t behind) noexcept nogil:
    """Of the head, after that of what is behind it."""
    return crc32c(behind, head, sizeof(CheckpointHead) - sizeof(uint32_t))
