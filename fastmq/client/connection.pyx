"""Sockets, threads and the helper of a client: see connection.pxd."""
cimport cython
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint8_t, uint64_t

from fastmq.client.peer cimport BREAK_ENDED, NEVER, WAIT_SENT, WAIT_UP, Peer, reason_of
from fastmq.client.posix cimport (
    MSG_DONTWAIT, MSG_MORE, MSG_NOSIGNAL, POLLIN, POLLOUT, SHUT_RDWR, SHUT_WR, block_signals, clock_ns, cond_init, cond_wait_ns, is_again,
    is_interrupted, poll_ns, pollfd, pthread_cond_broadcast, pthread_cond_destroy, pthread_mutex_destroy, pthread_mutex_init, read, recv, send,
    shutdown, write,
)
from fastmq.wire.zmtp cimport zmtp_drop_sent, zmtp_next_part, zmtp_read_room, zmtp_received, zmtp_sent, zmtp_unsent

import os

from fastmq.errors import Closed, ConnectionFailed, TimedOut


@cython.final
cdef class Connection:
    """A socket with its Peer. Python sees only what the helper thread needs."""

    def __cinit__(self, Peer peer, double patience):
        pthread_mutex_init(&self.mutex, NULL)
        cond_init(&self.changed)
        self.peer = peer
        self.fd = -1
        self.wake_fd = -1
        self.dormant = True
        self.patience_ns = <uint64_t> (patience * 1e9)
        self.address = ""
        self.problem = ""

    def __dealloc__(self):
        pthread_cond_destroy(&self.changed)
        pthread_mutex_destroy(&self.mutex)

    # ---- what callers do

    cdef void poke(self, uint64_t when) noexcept nogil:
        cdef uint8_t one = 1
        if self.wake_fd >= 0 and self.helper_wakes_ns > when + SLACK_NS:
            self.helper_wakes_ns = when
            write(self.wake_fd, &one, 1)

    cdef void linger(self) noexcept nogil:
        if self.linger_ns == 0:
            self.linger_ns = clock_ns() + LINGER_NS
            self.lingers += 1
            self.poke(self.linger_ns)

    cdef bint expects_company(self) noexcept nogil:
        return self.published_ns and clock_ns() < self.published_ns + COMPANY_NS

    cdef void send_out(self, uint64_t now) noexcept nogil:
        """Send what the socket takes now; the helper sends the rest when it can."""
        cdef ssize_t size
        cdef size_t part_size
        cdef const uint8_t* part
        if self.fd < 0 or self.cut:
            return
        while zmtp_unsent(&self.peer.z):
            part = zmtp_next_part(&self.peer.z, &part_size)
            size = send(self.fd, part, part_size, MSG_DONTWAIT | MSG_NOSIGNAL | (MSG_MORE if self.peer.z.attached_size > part_size else 0))
            if size >= 0:
                zmtp_sent(&self.peer.z, <size_t> size)
                if zmtp_unsent(&self.peer.z) == 0:
                    self.peer.flush_rest(now)               # what had to wait for a large body to leave
                    if self.peer.broken:
                        self.lose(self.peer.broken, now)
                        return
            elif is_again():
                zmtp_drop_sent(&self.peer.z, OUT_KEPT_MAX)
                self.poke(now)
                return
            elif not is_interrupted():
                self.lose(BREAK_ENDED, now)
                return

    cdef void receive(self, uint64_t now) noexcept nogil:
        """Read what is there, as far as one turn goes, and send what that made due."""
        cdef uint8_t* at
        cdef ssize_t size
        cdef size_t room
        cdef int _i
        cdef bint heard = False
        for _i in range(READS_MAX):
            if self.fd < 0 or self.cut or not self.peer.wants_input():
                break
            at = zmtp_read_room(&self.peer.z, READ_SIZE, &room)
            size = recv(self.fd, at, room, MSG_DONTWAIT) if at != NULL else 0
            if size > 0:
                heard = True
                zmtp_received(&self.peer.z, <size_t> size)
                self.peer.digest(now)
                if self.peer.broken:
                    self.lose(self.peer.broken, now)
                if <size_t> size < room:
                    break
            elif size == 0:
                self.lose(BREAK_ENDED, now)
            elif is_again():
                break
            elif not is_interrupted():
                self.lose(BREAK_ENDED, now)
        if heard:
            if self.lost_ns and self.peer.met(WAIT_UP, 0):
                self.lost_ns = 0
                self.poke(0)
            self.send_out(now)
            if self.waiting:
                pthread_cond_broadcast(&self.changed)

    cdef void lose(self, int why, uint64_t now) noexcept nogil:
        """The connection is gone: those who poll it wake, and the helper makes a new one."""
        if self.cut or self.fd < 0:
            return
        self.cut = True
        if why == BREAK_ENDED:
            self.peer.ended()
        else:
            self.peer.break_off(why)
        self.peer.stop(now)
        shutdown(self.fd, SHUT_RDWR)
        self.linger_ns = 0
        if self.lost_ns == 0:
            self.lost_ns = now
        if self.waiting:
            pthread_cond_broadcast(&self.changed)
        self.poke(0)

    cdef void push(self) noexcept nogil:
        cdef uint64_t now = clock_ns()
        self.lock()
        self.linger_ns = 0
        self.peer.flush(now)
        if self.peer.broken:
            self.lose(self.peer.broken, now)
        self.send_out(now)
        if not self.reading:
            self.reads += 1
            self.receive(now)
            if self.helper_wakes_ns > now + REARM_NS:
                self.poke(now + REARM_NS)
        self.unlock()

    cdef int wait(self, int what, uint64_t which, uint64_t deadline, uint64_t begun) noexcept nogil:
        cdef uint64_t now
        cdef int result
        cdef bint impatient = what & IMPATIENT != 0
        what &= IMPATIENT - 1
        self.lock()
        self.published_ns = 0
        while True:
            if self.peer.met(what, which):
                result = WAITED
                break
            if self.closed:
                result = WAITED_CLOSED
                break
            now = clock_ns()
            if now >= deadline:
                result = WAITED_TIMEOUT
                break
            if impatient and (self.cut or self.fd < 0):
                result = WAITED_LOST
                break
            if deadline == NEVER and self.lost_ns and now - max(self.lost_ns, begun) >= self.patience_ns:
                result = WAITED_LOST
                break
            if not self.peer.flush_due(now):
                self.linger_ns = 0
            elif self.linger_ns == 0:
                self.linger()
            if self.peer.broken:
                self.lose(self.peer.broken, now)
            self.send_out(now)
            if what == WAIT_SENT and self.peer.met(what, which):
                continue                                    # nothing need come in for it
            if self.fd >= 0 and not self.cut and not self.reading and self.peer.wants_input():
                if not self.wait_reading(min(deadline - now, <uint64_t> NAP_NS)):
                    result = WAITED_SIGNAL
                    break
            else:
                self.waiting += 1
                cond_wait_ns(&self.changed, &self.mutex, <int64_t> min(deadline - now, <uint64_t> CHECK_NS))
                self.waiting -= 1
                if not self.peer.met(what, which):
                    result = WAITED_SIGNAL
                    break
        self.unlock()
        return result

    cdef bint wait_reading(self, uint64_t timeout_ns) noexcept nogil:
        """Poll and read as the one reader, with the mutex given up meanwhile; False: a signal came."""
        cdef pollfd event
        cdef int ready
        cdef uint64_t now
        event.fd = self.fd
        event.events = <short> (POLLIN | POLLOUT if zmtp_unsent(&self.peer.z) else POLLIN)
        event.revents = 0
        self.reading = True
        self.unlock()
        ready = poll_ns(&event, 1, <int64_t> timeout_ns)
        if ready < 0:
            ready = -1 if is_interrupted() else 0
        self.lock()
        self.reading = False
        self.reads += 1
        now = clock_ns()
        if ready > 0 and self.fd == event.fd and not self.cut:
            if event.revents & POLLOUT:
                self.send_out(now)
            if event.revents & ~POLLOUT:
                self.receive(now)
        if self.waiting:
            pthread_cond_broadcast(&self.changed)           # one of them reads from now on
        if self.cut or self.helper_wakes_ns > now + REARM_NS:
            self.poke(0 if self.cut else now + REARM_NS)
        return ready >= 0

    cdef int wait_for(self, int what, uint64_t which, uint64_t deadline) except -1:
        cdef int result
        cdef uint64_t begun = clock_ns()
        while True:
            with nogil:
                result = self.wait(what, which, deadline, begun)
            if result != WAITED_SIGNAL:
                return result
            PyErr_CheckSignals()

    def fail(self, int waited, str late):
        """Raise what a Waited other than WAITED means; `late` is the sentence for a time-out."""
        if waited == WAITED_CLOSED:
            raise Closed("the client was closed")
        if waited == WAITED_LOST or self.lost_ns:
            why = self.why_broken
            problem = (why[1] if why else self.problem) or "it was lost"
            raise ConnectionFailed(f"no connection to the fastmq broker at {self.address}: {problem}")
        raise TimedOut(late)

    # ---- what the helper does

    cdef uint64_t turn(self, pollfd* event, uint64_t now) noexcept nogil:
        """What is due now; sets what to poll for, returns when to look again."""
        cdef uint64_t due
        event.fd = -1
        event.events = 0
        event.revents = 0
        if self.fd < 0 or self.cut or self.closed:
            return NEVER
        due = self.peer.tick(now)
        if self.linger_ns and self.linger_ns <= now:
            self.linger_ns = 0
            self.peer.flush(now)
        if self.peer.broken:
            self.lose(self.peer.broken, now)
            return 0
        self.send_out(now)
        if self.linger_ns:
            due = min(due, self.linger_ns)
        if self.lingers != self.lingers_seen:               # there may be more of it: looking again is cheaper than being poked
            self.lingers_seen = self.lingers
            due = min(due, now + LINGER_NS)
        event.fd = self.fd
        if zmtp_unsent(&self.peer.z):
            event.events = <short> POLLOUT
        if self.reading:
            pass                                            # its reader tells when it leaves, unless that is looked for anyhow
        elif self.reads != self.reads_seen:
            self.reads_seen = self.reads
            due = min(due, now + REARM_NS)
        elif self.peer.wants_input():
            event.events |= <short> POLLIN
        return due

    def attach(self, int fd):
        """Use this connected socket, which is the connection's from now on (it is closed by `detach`)."""
        cdef uint64_t now = clock_ns()
        with nogil:
            self.lock()
            self.fd = fd
            self.cut = self.closed                          # closed meanwhile: `detach` gives it back
            self.dormant = False
            if self.lost_ns == 0:
                self.lost_ns = now
            if not self.closed:
                self.peer.start(now)
                self.send_out(now)
            pthread_cond_broadcast(&self.changed)
            self.poke(0)
            self.unlock()

    def detach(self):
        """The socket to close when the connection is cut and nobody polls it, or -1."""
        cdef int fd = -1
        with nogil:
            self.lock()
            if self.cut and not self.reading:
                fd = self.fd
                self.fd = -1
                self.cut = False
            self.unlock()
        return fd

    def want(self):
        """A connection is wanted: the helper makes it."""
        with nogil:
            self.lock()
            self.dormant = False
            if self.lost_ns == 0:
                self.lost_ns = clock_ns()
            self.helper_wakes_ns = NEVER
            self.poke(0)
            self.unlock()

    def nudge(self):
        """Send what waits."""
        with nogil:
            self.push()

    def cut_off(self):
        """End the connection there is; the helper makes a new one unless the client is closed."""
        with nogil:
            self.lock()
            self.lose(BREAK_ENDED, clock_ns())
            self.unlock()

    def finish(self):
        """Everything was sent: say so to the other side and wait until it has read that, so that closing loses nothing."""
        cdef uint64_t until = clock_ns() + FINISH_NS
        cdef uint64_t now
        cdef pollfd event
        cdef uint8_t[4096] dropped
        cdef ssize_t size = 1
        with nogil:
            self.lock()
            event.fd = -1 if self.cut or self.reading else self.fd
            event.events = <short> POLLIN
            if event.fd >= 0:
                self.reading = True
                shutdown(event.fd, SHUT_WR)
            self.unlock()
            now = clock_ns()
            while event.fd >= 0 and size > 0 and now < until and poll_ns(&event, 1, <int64_t> (until - now)) > 0:
                size = recv(event.fd, dropped, sizeof(dropped), MSG_DONTWAIT)
                now = clock_ns()
            self.lock()
            if event.fd >= 0:
                self.reading = False
            self.unlock()

    def close(self):
        """End it for good; waiting calls end with Closed."""
        with nogil:
            self.lock()
            self.closed = True
            self.lose(BREAK_ENDED, clock_ns())
            pthread_cond_broadcast(&self.changed)
            self.helper_wakes_ns = NEVER
            self.poke(0)
            self.unlock()

    @property
    def is_dormant(self):
        return self.dormant

    @property
    def why_broken(self):
        """(code, sentence): why the connection there was had to be cut; None while it is good."""
        cdef bytes said = b"", text
        cdef int broken
        self.lock()
        broken = self.peer.broken
        text = <bytes> self.peer.z.text
        if self.peer.said.size:
            said = <bytes> self.peer.said.data[:self.peer.said.size]
        self.unlock()
        return reason_of(broken, said, text)

    def abandon(self):
        """In the child of a fork: forget the parent's connection without a word on it. Its mutex may be held by a thread that is not here."""
        pthread_mutex_init(&self.mutex, NULL)
        cond_init(&self.changed)
        self.closed = True
        self.wake_fd = -1
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def pause(self, double seconds):
        """The helper is not to make a connection before that."""
        self.retry_ns = clock_ns() + <uint64_t> (seconds * 1e9)

    @property
    def is_closed(self):
        return self.closed


@cython.final
cdef class Helper:
    """The helper thread's loop over both connections of a client; returns to Python only for what needs it."""

    def __cinit__(self, Connection commands, Connection events):
        self.commands = commands
        self.events = events
        self.wake_read, self.wake_write = os.pipe()
        os.set_blocking(self.wake_read, False)
        os.set_blocking(self.wake_write, False)
        commands.wake_fd = self.wake_write
        events.wake_fd = self.wake_write

    def __dealloc__(self):
        for connection in (self.commands, self.events):
            (<Connection> connection).lock()
            (<Connection> connection).wake_fd = -1
            (<Connection> connection).unlock()
        os.close(self.wake_read)
        os.close(self.wake_write)

    def block_signals(self):
        """For the helper thread: signals go to the application's threads."""
        block_signals()

    def run(self):
        """Run until something needs Python: a HelperCall."""
        cdef int result
        with nogil:
            result = self.run_loop()
        return result

    cdef int run_loop(self) noexcept nogil:
        cdef pollfd[3] events
        cdef uint64_t now, due
        cdef uint8_t[64] drained
        cdef int call
        while True:
            now = clock_ns()
            due = now + HELPER_NAP_NS
            call = self.look(self.commands, &events[0], now, &due, HELPER_COMMANDS)
            if call < 0:
                call = self.look(self.events, &events[1], now, &due, HELPER_EVENTS if self.was_up else HELPER_NOTHING)
            if call >= 0:
                return call
            events[2].fd = self.wake_read
            events[2].events = <short> POLLIN
            events[2].revents = 0
            poll_ns(events, 3, <int64_t> (due - now) if due > now else 0)
            if events[2].revents:
                while read(self.wake_read, drained, 64) == 64:
                    pass
            self.serve(self.commands, &events[0])
            self.serve(self.events, &events[1])

    cdef int look(self, Connection c, pollfd* event, uint64_t now, uint64_t* due, int lost) noexcept nogil:
        """One connection before the helper sleeps: a HelperCall, or -1 to go on."""
        cdef int call = -1
        cdef uint64_t wanted
        c.lock()
        wanted = c.turn(event, now)
        if wanted < due[0]:
            due[0] = wanted
        c.helper_wakes_ns = due[0]
        if c.closed:
            call = HELPER_CLOSE
        elif c.cut and not c.reading or c.fd < 0 and not c.dormant:
            if lost == HELPER_COMMANDS:
                self.was_up = False
            if now >= c.retry_ns:
                call = lost
            else:
                due[0] = min(due[0], c.retry_ns)
                c.helper_wakes_ns = due[0]
        elif lost == HELPER_COMMANDS:
            if c.lost_ns:
                self.was_up = False
            elif not self.was_up:
                self.was_up = True
                call = HELPER_WELCOME
        c.unlock()
        return call

    cdef void serve(self, Connection c, pollfd* event) noexcept nogil:
        """After the sleep: read and send what became possible."""
        cdef uint64_t now
        if event.fd < 0 or event.revents == 0:
            return
        c.lock()
        c.wakes += 1
        if c.fd == event.fd and not c.cut:
            now = clock_ns()
            if event.revents & POLLOUT:
                c.send_out(now)
            if event.revents & ~POLLOUT and not c.reading:
                c.receive(now)
        c.unlock()
