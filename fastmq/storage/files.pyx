"""The table of file calls, as the system has them (see files.pxd)."""
import os

from libc.stdint cimport intptr_t
from libc.stdlib cimport free, malloc

from fastmq.storage.posix cimport close, dup, pread, pthread_detach, pthread_t, start_thread


cdef enum:
    AHEAD_SIZE = 262144                 # bytes of one read ahead


cdef extern from * nogil:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <fcntl.h>
    #include <stdint.h>
    #include <stdio.h>
    #include <linux/falloc.h>
    #include <sys/file.h>
    #include <sys/stat.h>
    #include <unistd.h>

    #define SAID(call) __extension__ ({ int64_t said = (call); said < 0 ? (int64_t) -errno : said; })

    /* Where a file system, or a disk, takes no O_DIRECT, the file is as any other. An `open` that asks for it and is refused has made
       the file, so it is asked for afterwards. */
    static int files_open(void *self, const char *path, int flags) {
        int fd = open(path, (flags & ~O_DIRECT) | O_CLOEXEC, 0600);
        if (fd < 0) return -errno;
        if (flags & O_DIRECT) fcntl(fd, F_SETFL, flags | O_DIRECT);
        return fd;
    }
    static int files_close(void *self, int fd) { return (int) SAID(close(fd)); }
    static int64_t files_size(void *self, int fd) {
        struct stat found;
        return fstat(fd, &found) < 0 ? -errno : (int64_t) found.st_size;
    }
    /* A large write is a short one, and the disk begins at once: without that the sync that follows has everything to do, and where
       the kernel preempts nobody (PREEMPT_NONE) each of the two holds a core for milliseconds. Errors of the disk are the next sync's. */
    #define PIECE_SIZE (1 << 20)
    #define BEGUN_SIZE (1 << 18)        /* from which on the disk begins at once */
    static int64_t files_pwrite(void *self, int fd, const uint8_t *data, size_t size, uint64_t offset) {
        ssize_t done = pwrite(fd, data, size < PIECE_SIZE ? size : PIECE_SIZE, (off_t) offset);
        if (done < 0 && (errno == EINVAL || errno == EOPNOTSUPP)) {
            int refused = errno, flags = fcntl(fd, F_GETFL);
            if (flags < 0 || !(flags & O_DIRECT) || fcntl(fd, F_SETFL, flags & ~O_DIRECT) < 0) return -refused;
            done = pwrite(fd, data, size < PIECE_SIZE ? size : PIECE_SIZE, (off_t) offset);
        }
        if (done < 0) return -errno;
        if (done >= BEGUN_SIZE) sync_file_range(fd, (off_t) offset, done, SYNC_FILE_RANGE_WRITE);
        return done;
    }
    static int64_t files_pread(void *self, int fd, uint8_t *data, size_t size, uint64_t offset) {
        return SAID(pread(fd, data, size, (off_t) offset));
    }
    static int files_fdatasync(void *self, int fd) { return (int) SAID(fdatasync(fd)); }
    static int files_fallocate(void *self, int fd, uint64_t size) { return (int) SAID(fallocate(fd, 0, 0, (off_t) size)); }
    static int files_punch(void *self, int fd, uint64_t offset, uint64_t size) {
        return (int) SAID(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t) offset, (off_t) size));
    }
    static int files_ftruncate(void *self, int fd, uint64_t size) { return (int) SAID(ftruncate(fd, (off_t) size)); }
    static int files_rename(void *self, const char *old, const char *new) { return (int) SAID(rename(old, new)); }
    static int files_unlink(void *self, const char *path) { return (int) SAID(unlink(path)); }
    static int files_sync_folder(void *self, const char *path) {
        int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC), failed;
        if (fd < 0) return -errno;
        failed = fsync(fd) < 0 ? -errno : 0;
        close(fd);
        return failed;
    }
    static int files_lock(void *self, const char *path) {
        int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600), failed;
        if (fd < 0) return -errno;
        failed = flock(fd, LOCK_EX | LOCK_NB) < 0 ? -errno : 0;
        if (failed) close(fd);
        return failed ? failed : fd;
    }
    """
    int files_open(void* self, const char* path, int flags) noexcept
    int files_close(void* self, int fd) noexcept
    int64_t files_size(void* self, int fd) noexcept
    int64_t files_pwrite(void* self, int fd, const uint8_t* data, size_t size, uint64_t offset) noexcept
    int64_t files_pread(void* self, int fd, uint8_t* data, size_t size, uint64_t offset) noexcept
    int files_fdatasync(void* self, int fd) noexcept
    int files_fallocate(void* self, int fd, uint64_t size) noexcept
    int files_punch(void* self, int fd, uint64_t offset, uint64_t size) noexcept
    int files_ftruncate(void* self, int fd, uint64_t size) noexcept
    int files_rename(void* self, const char* old, const char* new) noexcept
    int files_unlink(void* self, const char* path) noexcept
    int files_sync_folder(void* self, const char* path) noexcept
    int files_lock(void* self, const char* path) noexcept


cdef void* read_to_the_end(void* argument) noexcept nogil:
    """A thread that reads a file, so that its pages are in memory when they are asked for: new memory costs more than what is done with it."""
    cdef int fd = <int> <intptr_t> argument
    cdef void* dropped = malloc(AHEAD_SIZE)
    cdef uint64_t at = 0
    cdef int64_t got = AHEAD_SIZE if dropped != NULL else 0
    while got > 0:
        got = pread(fd, dropped, AHEAD_SIZE, <int64_t> at)
        at += <uint64_t> max(got, 0)
    free(dropped)
    close(fd)
    return NULL


cdef void files_read_ahead(void* self, int fd) noexcept nogil:
    """Without a thread, or a descriptor for it, the file is read all the same."""
    cdef pthread_t thread
    cdef int copy = dup(fd)
    if copy >= 0:
        if start_thread(&thread, read_to_the_end, <void*> <intptr_t> copy):
            close(copy)
        else:
            pthread_detach(thread)


cdef class Files:
    """The system's own files."""

    def __cinit__(self):
        self.calls = FileCalls(
            self=NULL, open=files_open, close=files_close, size=files_size, pwrite=files_pwrite, pread=files_pread,
            read_ahead=files_read_ahead, fdatasync=files_fdatasync, fallocate=files_fallocate, punch=files_punch, ftruncate=files_ftruncate,
            rename=files_rename, unlink=files_unlink, sync_folder=files_sync_folder, lock=files_lock)

    def names(self, folder: str) -> list[str]:
        """The names in a folder, sorted."""
        return sorted(os.listdir(folder))

    def make_folder(self, folder: str) -> None:
        """Make it unless it is there, so that it survives; only its last part may be missing."""
        if os.path.isdir(folder):
            return
        os.mkdir(folder, 0o700)
        parent = os.open(os.path.dirname(os.path.abspath(folder)), os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)
