"""A table of file calls on files in memory. For tests; built by them.

`noted` lists what was done, in order, each inode by its number:
("open", path, inode, created), ("write", inode, offset, bytes), ("size", inode, size), ("sync", inode), ("rename", old, new, inode),
("unlink", path), ("sync_folder",), and what the test itself notes. `fail_at` fails the N-th call that can fail, with `fail_with`: an errno, or
SHORT, which lets a write do half of its work and anything else fail with EIO. Who opens a file with O_DIRECT and writes anything but whole
sectors from aligned memory gets EINVAL, as from a kernel.
"""
import os

from libc.errno cimport EAGAIN, EBADF, EEXIST, EINVAL, EIO, ENOENT, ENOSPC
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcpy

from fastmq.storage.file_log cimport FileLog
from fastmq.storage.files cimport FileCalls, Files, open_file, write_all
from fastmq.storage.journal cimport QUICK_COUNT_LARGE
from fastmq.storage.log cimport ExtentRead, Log
from fastmq.wire.buffer cimport Buffer, buffer_add, buffer_free, buffer_init

SHORT = -1
SECTOR_SIZE = 512


cdef class Inode:
    cdef public int number
    cdef public object data             # bytearray, or bytes that a first write copies

    def __init__(self, number, data=b""):
        self.number = number
        self.data = data


cdef class MemoryDisk(Files):
    """`paths`: the files that are there already, path -> bytes."""
    cdef public dict paths              # path -> Inode
    cdef public list noted
    cdef public list inodes
    cdef dict handles
    cdef set direct                     # descriptors
    cdef int next_fd
    cdef public int count               # calls so far
    cdef public int fail_at
    cdef public int fail_with
    cdef public str failed_call
    cdef public object room             # bytes that files may still grow by
    cdef public dict broken             # call -> the errno that each such call answers
    cdef public object before           # told the name of each call; it may take its time
    cdef public bint shared             # locks are shared by somebody: nobody gets one alone
    cdef public bint records
    cdef public bint does_sync          # False: a table without fdatasync
    cdef public bint does_sync_folder   # False: one without the folder's sync
    cdef public bint syncs_late         # True: a sync is done when the next one is asked for, as if confirms left before it

    def __init__(self, paths=None):
        self.noted, self.handles, self.direct, self.inodes = [], {}, set(), []
        self.paths = {}
        for path, data in (paths or {}).items():
            self.paths[path] = self.new_inode(data)
        self.next_fd = 1000
        self.fail_at = -1
        self.room = 1 << 40
        self.broken = {}
        self.records = self.does_sync = self.does_sync_folder = True
        cdef FileCalls* c = &self.calls
        c.self = <void*> self
        c.open, c.close, c.size, c.pwrite, c.pread = disk_open, disk_close, disk_size, disk_pwrite, disk_pread
        c.read_ahead = disk_read_ahead
        c.fdatasync, c.fallocate, c.ftruncate, c.rename = disk_fdatasync, disk_fallocate, disk_ftruncate, disk_rename
        c.unlink, c.sync_folder, c.punch, c.lock = disk_unlink, disk_sync_folder, disk_punch, disk_lock

    cdef Inode new_inode(self, data):
        cdef Inode inode = Inode(len(self.inodes), data)
        self.inodes.append(inode)
        return inode

    cdef int fault(self, str call):
        """What the call is to answer instead of doing its work; 0: nothing."""
        if self.before is not None:
            self.before(call)
        self.count += 1
        if self.count != self.fail_at:
            return -<int> self.broken.get(call, 0)
        self.failed_call = call
        return SHORT if self.fail_with == SHORT else -self.fail_with

    cdef void note(self, tuple what):
        if self.records:
            self.noted.append(what)

    def names(self, folder):
        return sorted(os.path.basename(path) for path in self.paths)

    def make_folder(self, folder):
        pass

    def contents(self):
        return {path: bytes((<Inode> inode).data) for path, inode in self.paths.items()}


cdef inline int refused(int fault) noexcept:
    return -EIO if fault == SHORT else fault


cdef int disk_open(void* me, const char* path, int flags) noexcept with gil:
    cdef MemoryDisk disk = <MemoryDisk> me
    cdef int fault = disk.fault("open")
    if fault:
        return refused(fault)
    cdef str name = path.decode()
    cdef Inode inode = disk.paths.get(name)
    if inode is None:
        if not flags & os.O_CREAT:
            return -ENOENT
        inode = disk.paths[name] = disk.new_inode(bytearray())
        disk.note(("open", name, inode.number))
    elif flags & os.O_EXCL:
        return -EEXIST
    disk.next_fd += 1
    disk.handles[disk.next_fd] = inode
    if flags & os.O_DIRECT:
        disk.direct.add(disk.next_fd)
    return disk.next_fd


cdef int disk_close(void* me, int fd) noexcept with gil:
    cdef MemoryDisk disk = <MemoryDisk> me
    return 0 if disk.handles.pop(fd, None) is not None else -EBADF


cdef int64_t disk_size(void* me, int fd) noexcept with gil:
    cdef MemoryDisk disk = <MemoryDisk> me
    cdef int fault = disk.fault("size")
    return refused(fault) if fault else len((<Inode> disk.handles[fd]).data)


cdef int64_t disk_pwrite(void* me, int fd, const uint8_t* data, size_t size, uint64_t offset) noexcept with gil:
    cdef MemoryDisk disk = <MemoryDisk> me
    cdef int fault = disk.fault("pwrite")
    if fd in disk.direct and (offset | size | <uint64_t> data) % SECTOR_SIZE:
        return -EINVAL
    if fault == SHORT and size > 1:
        size //= 2
    elif fault:
        return refused(fault)
    cdef Inode inode = disk.handles[fd]
    cdef bytes written = (<const char*> data)[:size]
    if not isinstance(inode.data, bytearray):
        inode.data = bytearray(inode.data)
    if len(inode.data) < offset + size:
        if disk.room < offset + size - len(inode.data):
            return -ENOSPC
        disk.room -= offset + size - len(inode.data)
    if len(inode.data) < offset:
        inode.data.extend(bytes(offset - len(inode.data)))
    inode.data[offset : offset + size] = written
    disk.note(("write", inode.number, offset, written))
    return <int64_t> size


cdef int64_t disk_pread(void* me, int fd, uint8_t* data, size_t size, uint64_t offset) noexcept with gil:
    cdef MemoryDisk disk = <MemoryDisk> me
    cdef int fault = disk.fault("pread")
    if fault == SHORT and size > 1:
        size //= 2
    elif fault:
        return refused(fault)
    cdef bytes found = bytes((<Inode> disk.handles[fd]).data[offset : offset + size])
    memcpy(data, <const char*> found, len(found))
    return len(found)


cdef void disk_read_ahead(void* me, int fd) noexcept nogil:
    """There is nothing to gain."""


cdef int disk_fdatasync(void* me, int fd) noexcept with gil:
    cdef MemoryDisk disk = <MemoryDisk> me
    cdef int fault = disk.fault("fdatasync")
    if fault:
        return refused(fault)
    cdef int number = (<Inode> disk.handles[fd]).number
    if disk.syncs_late:
        disk.note(("sync_late", number))
    elif disk.does_sync:
        disk.note(("sync", number))
    return 0


cdef int resize(MemoryDisk disk, str call, int fd, uint64_t size, bint shrinks):
    cdef int fault = disk.fault(call)
    if fault:
        return refused(fault)
    cdef Inode inode = disk.handles[fd]
    if not isinstance(inode.data, bytearray):
        inode.data = bytearray(inode.data)
    if len(inode.data) < size:
        if disk.room < size - len(inode.data):
            return -ENOSPC
        disk.room -= size - len(inode.data)
        inode.data.extend(bytes(size - len(inode.data)))
    elif shrinks:
        del inode.data[size:]
    disk.note(("size", inode.number, len(inode.data)))
    return 0


cdef int disk_fallocate(void* me, int fd, uint64_t size) noexcept with gil:
    return resize(<MemoryDisk> me, "fallocate", fd, size, False)


cdef int disk_ftruncate(void* me, int fd, uint64_t size) noexcept with gil:
    return resize(<MemoryDisk> me, "ftruncate", fd, size, True)


cdef int disk_punch(void* me, int fd, uint64_t offset, uint64_t size) noexcept with gil:
    cdef MemoryDisk disk = <MemoryDisk> me
    cdef int fault = disk.fault("punch")
    if fault:
        return refused(fault)
    cdef Inode inode = disk.handles[fd]
    if not isinstance(inode.data, bytearray):
        inode.data = bytearray(inode.data)
    size = min(offset + size, len(inode.data)) - min(offset, len(inode.data))
    inode.data[offset : offset + size] = bytes(size)
    disk.note(("write", inode.number, offset, bytes(size)))
    return 0


cdef int disk_rename(void* me, const char* old, const char* new) noexcept with gil:
    cdef MemoryDisk disk = <MemoryDisk> me
    cdef int fault = disk.fault("rename")
    if fault:
        return refused(fault)
    if old.decode() not in disk.paths:
        return -ENOENT
    cdef Inode inode = disk.paths.pop(old.decode())
    disk.paths[new.decode()] = inode
    disk.note(("rename", old.decode(), new.decode(), inode.number))
    return 0


cdef int disk_unlink(void* me, const char* path) noexcept with gil:
    cdef MemoryDisk disk = <MemoryDisk> me
    cdef int fault = disk.fault("unlink")
    if fault:
        return refused(fault)
    if disk.paths.pop(path.decode(), None) is None:
        return -ENOENT
    disk.note(("unlink", path.decode()))
    return 0


cdef int disk_sync_folder(void* me, const char* path) noexcept with gil:
    cdef MemoryDisk disk = <MemoryDisk> me
    cdef int fault = disk.fault("sync_folder")
    if fault:
        return refused(fault)
    if disk.does_sync_folder:
        disk.note(("sync_folder",))
    return 0


cdef int disk_lock(void* me, const char* path) noexcept with gil:
    """Locks leave nothing on a disk."""
    cdef MemoryDisk disk = <MemoryDisk> me
    cdef int fault = disk.fault("lock")
    if fault:
        return refused(fault)
    if disk.shared:
        return -EAGAIN
    disk.next_fd += 1
    disk.handles[disk.next_fd] = Inode(-1)
    return disk.next_fd


# ---- the real table

def write_directly(path: str, data: bytes, offset: int) -> None:
    """Write it, from wherever it lies, into a file that is opened with O_DIRECT."""
    files = Files()
    cdef FileCalls* calls = &files.calls
    cdef int fd = open_file(calls, os.fsencode(path), os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    if fd < 0:
        raise OSError(-fd, os.strerror(-fd), path)
    cdef int failed = write_all(calls, fd, data, len(data), offset)
    calls.close(calls.self, fd)
    if failed:
        raise OSError(-failed, os.strerror(-failed), path)


# ---- a log from Python

def append(log: Log, shard: int, data: bytes) -> bool:
    cdef const uint8_t* at = data
    return log.append(shard, at, len(data))


def submit(log: Log) -> None:
    log.submit()


def write_here(log: FileLog) -> bool:
    """The caller writes the batch himself, if the writer has nothing to do: its syncs count as quick."""
    (<FileLog> log).journal.quick = QUICK_COUNT_LARGE
    return log.write_here()


def quick_batches(log: FileLog) -> int:
    """How many batches in a row the disk has taken quickly."""
    return (<FileLog> log).journal.quick


def took_on_average(log: FileLog, int64_t ns) -> None:
    """Have the log believe that batches take so long."""
    (<FileLog> log).journal.took_ns = ns


def look(log: Log) -> int:
    return log.look()


cdef Buffer buffer_of(data: bytes):
    cdef Buffer buffer
    buffer_init(&buffer)
    buffer_add(&buffer, <const char*> data, len(data))
    return buffer


def extent_write(log: Log, number: int, data: bytes) -> bool:
    cdef Buffer payload = buffer_of(data)
    done = log.extent_write(number, &payload)
    assert payload.data == NULL or not done
    return done


def extent_read(log: Log, number: int) -> bool:
    return log.extent_read(number)


def extent_next(log: Log):
    """(number, payload, error), or None."""
    cdef ExtentRead found
    if not log.extent_next(&found):
        return None
    data = (<const char*> found.payload.data)[:found.payload.size] if found.payload.size else b""
    buffer_free(&found.payload)
    return found.number, data, found.error


def extent_free(log: Log, number: int) -> None:
    log.extent_free(number)


def checkpoint(log: Log, position: int, entries) -> bool:
    """`entries`: (shard, blob) each."""
    framed = b"".join(len(blob).to_bytes(4, "little") + shard.to_bytes(2, "little") + b"\0\0" + blob + bytes(-len(blob) % 8)
                      for shard, blob in entries)
    cdef Buffer states = buffer_of(framed)
    done = log.checkpoint(position, &states)
    if not done:
        buffer_free(&states)
    return done
