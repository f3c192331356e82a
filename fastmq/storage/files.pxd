# The table of file calls: everything that the log does with files goes through it, so that tests can record, fake and break each call.
#
# Owns: nothing. Rules: a call returns what the system's does, and -errno where that fails; nobody looks at errno. Short writes and EINTR are
# the caller's (`write_all`, `read_all`); O_DIRECT is given up where it is refused. A call that the real table would not be asked for must
# not be made beside it.
# Runs in workers, on any thread, without the GIL.
from libc.errno cimport EINTR, EIO
from libc.stdint cimport int64_t, uint8_t, uint64_t


cdef enum:
    PATH_SIZE_MAX = 4096


cdef struct FileCalls:
    void* self
    int (*open)(void* self, const char* path, int flags) noexcept nogil             # descriptor; files are made with mode 0600
    int (*close)(void* self, int fd) noexcept nogil
    int64_t (*size)(void* self, int fd) noexcept nogil
    int64_t (*pwrite)(void* self, int fd, const uint8_t* data, size_t size, uint64_t offset) noexcept nogil
    int64_t (*pread)(void* self, int fd, uint8_t* data, size_t size, uint64_t offset) noexcept nogil
    void (*read_ahead)(void* self, int fd) noexcept nogil                           # it will be read to its end: the system may begin
    int (*fdatasync)(void* self, int fd) noexcept nogil
    int (*fallocate)(void* self, int fd, uint64_t size) noexcept nogil              # from 0: the file has at least this size then
    int (*punch)(void* self, int fd, uint64_t offset, uint64_t size) noexcept nogil  # they read as 0, without room
    int (*ftruncate)(void* self, int fd, uint64_t size) noexcept nogil
    int (*rename)(void* self, const char* old, const char* new) noexcept nogil
    int (*unlink)(void* self, const char* path) noexcept nogil
    int (*sync_folder)(void* self, const char* path) noexcept nogil                 # names in it survive
    int (*lock)(void* self, const char* path) noexcept nogil    # descriptor that has the file, made if need be, alone; -EAGAIN: others share it


cdef class Files:
    """The real table; tests have others."""
    cdef FileCalls calls


cdef inline int write_all(FileCalls* files, int fd, const uint8_t* data, size_t size, uint64_t offset) noexcept nogil:
    """Write all of it. 0, or -errno."""
    cdef int64_t done
    while size:
        done = files.pwrite(files.self, fd, data, size, offset)
        if done == -EINTR:
            continue
        if done <= 0:
            return <int> done if done else -EIO
        data += done
        offset += <uint64_t> done
        size -= <size_t> done
    return 0


cdef inline int64_t read_all(FileCalls* files, int fd, uint8_t* data, size_t size, uint64_t offset) noexcept nogil:
    """Read all of it, or up to the end of the file. The number of bytes, or -errno."""
    cdef int64_t done
    cdef size_t got = 0
    while got < size:
        done = files.pread(files.self, fd, data + got, size - got, offset + got)
        if done == -EINTR:
            continue
        if done < 0:
            return done
        if done == 0:
            break
        got += <size_t> done
    return <int64_t> got


cdef inline int open_file(FileCalls* files, const char* path, int flags) noexcept nogil:
    """A descriptor, or -errno."""
    cdef int fd
    while True:
        fd = files.open(files.self, path, flags)
        if fd != -EINTR:
            return fd
