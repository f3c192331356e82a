"""The part of a front-end's process that runs without the GIL: its turns, and sleep between them.

Owns: the order of a turn. Rules: nobody is waited for but in Connections.look; each source gets its share of a turn; who goes to sleep has
said so on every link, and looked once more. Runs in front-ends, on the main thread.
"""
cimport cython
from libc.stdint cimport uint8_t, uint64_t

from fastmq.net.ring cimport Link
from fastmq.server.posix cimport monotonic_ns
from fastmq.wire.link cimport LinkHead


@cython.final
cdef class FrontendLoop:
    """The turns of one front-end: its sessions, and the connections that these live on."""

    def __cinit__(self, Sessions sessions not None, Connections connections not None):
        self.sessions = sessions
        self.connections = connections

    def work(self, uint64_t until_ns, bint until_idle=False, soon_ns=None) -> None:
        """Turns and sleep, until the control socket can be read or it is `until_ns`; with `until_idle` only until nothing is left to do.

        Who is busy stops at `soon_ns` already: who sleeps need not wake for what only work makes due.
        """
        cdef uint64_t soon = until_ns if soon_ns is None else soon_ns
        with nogil:
            self.turns(until_ns, until_idle, soon)
        if self.sessions.out_of_memory:
            raise MemoryError("the front-end's memory is used up; frontend_memory_max is its limit")

    cdef void turns(self, uint64_t until_ns, bint until_idle, uint64_t soon_ns) noexcept nogil:
        cdef uint64_t now
        cdef int timeout_ms
        cdef bint busy, more, waits
        self.connections.control_ready = False
        while not self.sessions.out_of_memory:
            now = monotonic_ns()
            self.sessions.now_ns = now
            self.connections.keep_alive()
            busy = self.turn()
            more = self.connections.first != NULL or self.sessions.ready.first != NULL
            waits = self.connections.blocked or self.connections.lent
            if now >= until_ns or (busy and now >= soon_ns) or (until_idle and not busy and not more and not waits):
                return
            timeout_ms = 0
            if not more and self.may_sleep():
                timeout_ms = self.sleep_ms(until_ns)
            self.connections.look(timeout_ms)
            if not more:
                self.stay_awake()
            if self.connections.control_ready:
                return

    cdef bint turn(self) noexcept nogil:
        """One look at every source, and everything that comes of it sent; whether anything was found."""
        cdef bint found = self.connections.lent and self.connections.take_back()
        found = self.connections.read_some() or found
        if self.sessions.workers.written:
            self.sessions.workers.flush()   # they begin while the rest of this turn is done
        if self.read_events():
            found = True
        return self.hear_workers() or found

    cdef bint read_events(self) noexcept nogil:
        """Hear what the XPUB thread says about subscriptions."""
        cdef LinkHead head
        cdef const uint8_t* payload
        cdef bint found = False
        if self.sessions.live.link is None:
            return False
        while self.sessions.live.link.receive(&head, &payload):
            found = True
            self.sessions.hear_events(head.kind, payload, head.size)
        return found

    cdef bint hear_workers(self) noexcept nogil:
        """Read what workers have sent, send everything there is to send; whether anything was found."""
        cdef int worker
        cdef bint found = False
        for worker in range(self.sessions.workers.count):
            if self.sessions.pump(worker, PUMP_MESSAGES):
                found = True
        if self.connections.send_all():
            found = True
        self.sessions.workers.return_loans()
        self.sessions.workers.flush()
        if self.sessions.live.link is not None:
            self.sessions.live.end_turn()
            self.sessions.live.link.flush()
            self.sessions.live.link.ring_bell()
        return found

    # ---- sleep

    cdef int sleep_ms(self, uint64_t until_ns) noexcept nogil:
        """How long there is nothing to do, unless somebody says something."""
        cdef uint64_t now = self.sessions.now_ns
        cdef int timeout_ms = <int> ((until_ns - now) // 1000000) + 1
        timeout_ms = min(timeout_ms, self.connections.wait_at_most())
        if self.sessions.wait_at_most() >= 0:
            timeout_ms = min(timeout_ms, self.sessions.wait_at_most())
        return timeout_ms

    cdef bint may_sleep(self) noexcept nogil:
        """Say on every link that this end is going to sleep; False when one of them has something."""
        cdef int worker
        cdef bint sleeps = True
        for worker in range(self.sessions.workers.count):
            if self.sessions.workers.links[worker] != NULL:
                sleeps = (<Link> self.sessions.workers.links[worker]).prepare_sleep() and sleeps
        if self.sessions.live.link is not None:
            sleeps = self.sessions.live.link.prepare_sleep() and sleeps
        return sleeps

    cdef void stay_awake(self) noexcept nogil:
        cdef int worker
        for worker in range(self.sessions.workers.count):
            if self.sessions.workers.links[worker] != NULL:
                (<Link> self.sessions.workers.links[worker]).stay_awake()
        if self.sessions.live.link is not None:
            self.sessions.live.link.stay_awake()
