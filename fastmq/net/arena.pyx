"""A worker's arena: shared memory for bodies that are too large to be copied through rings (see arena.pxd)."""
import os

cimport cython
from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport calloc, free, malloc


cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <fcntl.h>
    #include <stdint.h>
    #include <sys/mman.h>
    #include <unistd.h>
    #include <linux/falloc.h>
    #ifndef MADV_POPULATE_WRITE
    #define MADV_POPULATE_WRITE 23
    #endif
    static inline int fmq_arena_populate(void *at, size_t size) {
        uintptr_t start = (uintptr_t) at & ~(uintptr_t) 4095;
        return madvise((void *) start, size + ((uintptr_t) at - start), MADV_POPULATE_WRITE);
    }
    static inline int fmq_arena_punch(int fd, uint64_t at, uint64_t size) {
        return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t) at, (off_t) size);
    }
    """
    int fmq_arena_populate(void* at, size_t size) noexcept nogil
    int fmq_arena_punch(int fd, uint64_t at, uint64_t size) noexcept nogil

cdef extern from "sys/mman.h" nogil:
    void* mmap(void* addr, size_t length, int prot, int flags, int fd, long offset)
    int munmap(void* addr, size_t length)
    int PROT_READ, PROT_WRITE, MAP_SHARED, MAP_NORESERVE
    void* MAP_FAILED

cdef extern from "unistd.h" nogil:
    int close(int fd)


def make_arena_fd(size: int) -> int:
    """A memfd of `size` bytes, of which none takes memory before it is written. The caller closes it."""
    memfd = os.memfd_create("fastmq-arena", os.MFD_CLOEXEC)
    os.ftruncate(memfd, size)
    return memfd


cdef uint8_t* map_arena(int memfd, size_t size) except NULL:
    cdef void* base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, memfd, 0)
    if base == MAP_FAILED:
        raise OSError(errno, os.strerror(errno))
    return <uint8_t*> base


@cython.final
cdef class ArenaMemory:
    """The worker's mapping of `memfd`, which may be closed afterwards."""

    def __cinit__(self, int memfd):
        self.fd = -1
        self.size = os.fstat(memfd).st_size
        self.base = map_arena(memfd, self.size)
        self.fd = os.dup(memfd)

    def __dealloc__(self):
        if self.base != NULL:
            munmap(self.base, self.size)
        if self.fd >= 0:
            close(self.fd)

    cdef void punch(self, uint64_t offset, uint64_t size) noexcept nogil:
        """Give the memory of these bytes back: they read as 0 afterwards. What a kernel refuses stays as it is."""
        fmq_arena_punch(self.fd, offset, size)

    def fileno(self) -> int:
        """The descriptor of the file, for as long as this lives."""
        return self.fd

    @property
    def resident_size(self) -> int:
        """Bytes that take memory."""
        return os.fstat(self.fd).st_blocks * 512


cdef void arena_prepare(uint8_t* at, size_t size) noexcept nogil:
    """Take the memory for these bytes at once, not page by page. A kernel that cannot (before Linux 5.14) leaves that to the writing."""
    fmq_arena_populate(at, size)


# ---- a front-end's end

cdef void arena_hold(ArenaMap* m) noexcept nogil:
    m.holders += 1


cdef void arena_let_go(ArenaMap* m) noexcept nogil:
    m.holders -= 1
    if m.holders == 0:
        munmap(m.base, m.size)
        free(m)


cdef void arena_give_back(Borrowed* borrowed) noexcept nogil:
    """The bytes are read no more; `borrowed` must not be used any more."""
    cdef ArenaMap* m = borrowed.map
    if m.closed:                            # the worker is gone: nobody asks for it any more
        free(borrowed)
        arena_let_go(m)
        return
    borrowed.next = m.returned
    m.returned = borrowed


@cython.final
cdef class ArenaView:
    """A front-end's mapping of `memfd`, which may be closed afterwards."""

    def __cinit__(self, int memfd):
        cdef size_t size = os.fstat(memfd).st_size
        self.map = <ArenaMap*> calloc(1, sizeof(ArenaMap))
        if self.map == NULL:
            raise MemoryError
        try:
            self.map.base = map_arena(memfd, size)
        except OSError:
            free(self.map)
            self.map = NULL
            raise
        self.map.size = size
        self.map.holders = 1

    def __dealloc__(self):
        cdef Borrowed* b
        cdef Borrowed* following
        if self.map == NULL:
            return
        self.map.closed = True
        b = self.map.returned
        while b != NULL:
            following = b.next
            arena_give_back(b)
            b = following
        arena_let_go(self.map)

    cdef Borrowed* borrow(self, uint64_t loan) noexcept nogil:
        """A record that a delivery has lent; NULL when there is no memory."""
        cdef Borrowed* b = <Borrowed*> malloc(sizeof(Borrowed))
        if b != NULL:
            b.next = NULL
            b.map = self.map
            b.loan = loan
            arena_hold(self.map)
        return b

    cdef Borrowed* take_returned(self) noexcept nogil:
        """What has come back since the last call, linked by `next`; each is to be given to `forget`."""
        cdef Borrowed* b = self.map.returned
        self.map.returned = NULL
        return b

    cdef void forget(self, Borrowed* borrowed) noexcept nogil:
        """The worker has been told."""
        free(borrowed)
        arena_let_go(self.map)
