"""What every child of the supervisor does first: tie its life to the supervisor's, then read what it is to be.

Owns: nothing. Rules: a child ends when the supervisor does, by two ways that do not need each other: the kernel kills it (PR_SET_PDEATHSIG;
the supervisor starts children from its main thread, so its thread's end is its process's end), and its control socket ends. SIGINT and SIGTERM
are blocked by the supervisor before it starts a child (a terminal and service managers send them to everybody): children stop when told.
Freed memory is kept while there is work (a page that comes anew from the kernel costs more than copying it) and given back at rest.
Runs in front-ends and workers, and later other children.
"""
import os
import sys

from libc.stdint cimport uint64_t

from fastmq.server.control import Control


cdef extern from "<signal.h>" nogil:
    int SIGKILL

cdef extern from "<sys/prctl.h>" nogil:
    int prctl(int option, ...)
    int PR_SET_PDEATHSIG, PR_SET_NAME


cdef extern from "<malloc.h>" nogil:
    int mallopt(int what, int value)
    int malloc_trim(size_t pad)
    int M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD


cdef extern from *:
    """
    #include <sched.h>
    #include <stdint.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    static inline void fmq_short_slices(uint64_t slice_ns) {
        struct { uint32_t size, policy; uint64_t flags; int32_t nice; uint32_t priority; uint64_t runtime, deadline, period; } wanted = {
            48, SCHED_OTHER, 0, 0, 0, 0, 0, 0};
        wanted.runtime = slice_ns;
        syscall(SYS_sched_setattr, 0, &wanted, 0);
    }
    """
    void fmq_short_slices(uint64_t slice_ns) noexcept nogil


cdef enum:
    SLICE_NS = 100000                   # of CPU time in a row: who asks for less is served sooner (Linux 6.12), and a broker's turns are short
    KEPT_SIZE_MAX = 67108864            # bytes of freed memory kept at the end of the heap
    HEAP_BLOCK_MAX = 33554432           # larger blocks are the kernel's at once


def give_back_memory() -> None:
    """Give freed memory back to the kernel: for a process that has nothing to do."""
    malloc_trim(0)


def begin(role: str) -> tuple[Control, dict, list[int]]:
    """The control socket, whose number is the first argument of this program, and the `start` message with its descriptors.

    Exits when the supervisor has gone.
    """
    prctl(PR_SET_PDEATHSIG, <unsigned long> SIGKILL)
    fmq_short_slices(SLICE_NS)          # its threads inherit it; an older kernel passes it over
    mallopt(M_ARENA_MAX, 1)             # what libzmq's threads allocate is freed by others: one heap for all
    mallopt(M_MMAP_THRESHOLD, HEAP_BLOCK_MAX)
    mallopt(M_TRIM_THRESHOLD, KEPT_SIZE_MAX)
    control = Control.inherited(int(sys.argv[1]))
    try:
        start, descriptors = control.wait()
    except EOFError:
        raise SystemExit(1) from None
    assert start["op"] == "start"
    if os.getppid() != start["supervisor"]:         # it died before prctl
        raise SystemExit(1)
    cdef bytes name = f"fastmq-{role}{start['index']}".encode()[:15]
    prctl(PR_SET_NAME, <const char*> name)
    return control, start, descriptors
