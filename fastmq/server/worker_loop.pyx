"""The part of a worker's process that runs without the GIL: turns of its workshop, and sleep between them.

Owns: the list of what poll looks at. Rules: it sleeps only after every link has said that it may; it comes back to Python when the control
socket can be read, when a tick is due, and when the workshop has failed; the control socket is looked at before every sleep and every
CONTROL_TURNS turns. The only place of a worker that waits or asks the time. Runs in workers, on their only thread.
"""
from libc.stdint cimport int64_t, uint64_t
from posix.time cimport CLOCK_MONOTONIC, CLOCK_REALTIME, clock_gettime, timespec

from fastmq.server.workshop cimport FRONTENDS_MAX, Workshop


cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd* items, unsigned long count, int timeout_ms)
    short POLLIN


cdef enum:
    CONTROL_TURNS = 64          # busy turns between two looks at the control socket


cdef inline int64_t clock_ns(int which) noexcept nogil:
    cdef timespec now
    clock_gettime(which, &now)
    return <int64_t> now.tv_sec * 1000000000 + now.tv_nsec


cdef class WorkerLoop:
    cdef Workshop workshop
    cdef pollfd[2 + FRONTENDS_MAX] items
    cdef int item_count

    def __init__(self, workshop: Workshop) -> None:
        self.workshop = workshop

    def look_at(self, control: int, bells: list[int]) -> None:
        """The descriptors that end a sleep: the control socket, and the bells of all links and of the log."""
        self.item_count = 0
        for fd in (control, *bells):
            self.items[self.item_count].fd = fd
            self.items[self.item_count].events = POLLIN
            self.item_count += 1

    def work(self, tick_at_ns: int, until_idle: bool = False, soon_ns: int | None = None) -> bool:
        """Turns and sleep, until the control socket can be read or `tick_at_ns` is reached; with `until_idle` until nothing is left to do.

        Who is busy stops at `soon_ns` already: who sleeps need not wake for what only work makes due. Whether nothing was left to do. Raises
        what has made the workshop fail.
        """
        cdef bint idle
        cdef int64_t until = tick_at_ns
        cdef int64_t soon = tick_at_ns if soon_ns is None else soon_ns
        cdef bint stop_idle = until_idle
        with nogil:
            idle = self.turns(until, stop_idle, soon)
        self.workshop.check()
        return idle

    cdef bint turns(self, int64_t tick_at_ns, bint until_idle, int64_t soon_ns) noexcept nogil:
        cdef int64_t now, until
        cdef bint busy, sleeps, idle = False
        cdef int turns = 0, timeout_ms
        while True:
            now = clock_ns(CLOCK_MONOTONIC)
            busy = self.workshop.turn(now, <uint64_t> (clock_ns(CLOCK_REALTIME) // 1000000))
            if until_idle and not busy:
                idle = not self.workshop.owes_log()
            if now >= tick_at_ns or self.workshop.failed or idle or (busy and now >= soon_ns):
                return idle or (not busy and not until_idle)
            turns += 1
            if busy and turns < CONTROL_TURNS:
                continue
            turns = 0
            sleeps = not busy and self.workshop.prepare_sleep()
            timeout_ms = 0
            if sleeps:
                now = clock_ns(CLOCK_MONOTONIC)         # the turn may have written to the disk
                until = tick_at_ns
                if self.workshop.log_due_ns and self.workshop.log_due_ns < until:
                    until = self.workshop.log_due_ns
                timeout_ms = <int> ((until - now) // 1000000) + 1 if until > now else 0
            poll(self.items, self.item_count, timeout_ms)
            if not busy:
                self.workshop.awake()
            if self.items[0].revents:
                return not busy and not (until_idle and self.workshop.owes_log())
