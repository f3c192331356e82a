"""The connections of clients to one front-end (see connections.pxd)."""
import os

cimport cython
from libc.errno cimport EAGAIN, ECONNABORTED, EINTR, EPROTO, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy, memset

from fastmq.net.arena cimport arena_let_go
from fastmq.server.accounts cimport account_came, account_narrow
from fastmq.server.bulk cimport Bulk, BulkJob
from fastmq.server.crowd cimport CROWD_RECORDS, CROWD_SIZE_MAX, LARGE_KEPT_NS, crowd_heard, crowd_until
from fastmq.server.gathered cimport BULK_MIN
from fastmq.server.posix cimport (
    EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, MSG_DONTWAIT, SHUT_RDWR,
    SOCK_CLOEXEC, SOCK_NONBLOCK, accept4, epoll_change, epoll_create1, epoll_wait, fd_of, geteuid, is_near, is_readable, monotonic_ns,
    number_of, read, recv, set_tcp, shutdown, unacknowledged, user_of,
)
from fastmq.server.posix cimport close as close_fd
from fastmq.server.session cimport Session, frames_free
from fastmq.server.sessions cimport Sessions
from fastmq.wire.blocks cimport blocks_free, blocks_give
from fastmq.wire.buffer cimport buffer_init
from fastmq.wire.limits cimport FRAME_SIZE_MAX
from fastmq.wire.zmtp cimport (
    ZMTP_MESSAGE, ZMTP_OPENED, ZMTP_ROUTER, ZMTP_WAIT, ZMTP_WHOLE_MIN, Zmtp, zmtp_begun, zmtp_frame, zmtp_free, zmtp_init, zmtp_next,
    zmtp_pass_over, zmtp_ping, zmtp_received, zmtp_rest, zmtp_shared_room, zmtp_start, zmtp_unsent,
)

HANDSHAKE_MS = HANDSHAKE_NS // 1000000      # for the socket of live events, which is libzmq's
PING_MS = PING_NS // 1000000
SILENCE_MS = SILENCE_NS // 1000000


@cython.final
cdef class Connections(Outlet):
    """`listeners`: sockets that listen, and whether only the broker's user, and root, may connect. `room_max`: connections at the same time."""

    def __cinit__(self, Sessions sessions not None, listeners, int room_max):
        self.epoll = epoll_create1(EPOLL_CLOEXEC)
        if self.epoll < 0:
            raise OSError(errno, os.strerror(errno))
        self.sessions = sessions
        sessions.cuts_connections = True
        self.control = -1
        self.next_number = 1
        self.room_max = room_max
        self.narrow_bytes = sessions.config.publish_window_narrow_bytes
        self.holds_back = self.narrow_bytes < sessions.config.publish_window_bytes
        self.bulk = Bulk()
        epoll_change(self.epoll, EPOLL_CTL_ADD, self.bulk.done_bell, 0, EPOLLIN)
        self._bells = []
        self._listeners = []
        if len(listeners) > LISTENERS_MAX:
            raise ValueError("too many listeners")
        for listener, own_user in listeners:
            listener.setblocking(False)
            self._listeners.append(listener)
            self.listeners[self.listener_count] = listener.fileno()
            self.own_user[self.listener_count] = own_user
            self.listener_count += 1
            epoll_change(self.epoll, EPOLL_CTL_ADD, listener.fileno(), 0, EPOLLIN)

    def __dealloc__(self):
        cdef Connection* c
        cdef int fd
        while self.first != NULL:
            c = self.take_first()
            if c.address.fd < 0:
                free(c)
        for fd in range(self.room):
            if self.by_fd[fd] != NULL:
                self.forget(self.by_fd[fd])
        free(self.by_fd)
        blocks_free(&self.blocks)
        if self.epoll >= 0:
            close_fd(self.epoll)

    def look_at(self, int control, bells: list[int]) -> None:
        """The descriptors that end a wait beside connections: the control socket, and the bells of all links. Before one is closed."""
        for bell in self._bells:
            if bell not in bells:
                epoll_change(self.epoll, EPOLL_CTL_DEL, bell, 0, 0)
        for bell in bells:
            if bell not in self._bells:
                epoll_change(self.epoll, EPOLL_CTL_ADD, bell, 0, EPOLLIN)
        self._bells = list(bells)
        if control != self.control:
            self.control = control
            epoll_change(self.epoll, EPOLL_CTL_ADD, control, 0, EPOLLIN)

    def bound_received(self, size_max: int) -> None:
        """Close the connections that hold most of what has not come or left whole until it is no more than `size_max` bytes in all."""
        cdef size_t total, size, largest_size, most = size_max
        cdef Connection* c
        cdef Connection* largest
        cdef int fd
        while True:
            total = 0
            largest_size = 0
            largest = NULL
            for fd in range(self.room):
                c = self.by_fd[fd]
                if c == NULL or c.gone:
                    continue
                size = c.zmtp.received.room + c.zmtp.out.room + c.lent_size
                total += size
                if size > largest_size:
                    largest_size = size
                    largest = c
            if total <= most or largest == NULL:
                return
            self.shed += 1
            self.close(largest)

    @property
    def held_size(self) -> int:
        """Bytes of memory that connections hold, for what has come and for the commands of ZMTP. For tests."""
        cdef size_t total = 0
        cdef int fd
        for fd in range(self.room):
            if self.by_fd[fd] != NULL:
                total += self.by_fd[fd].zmtp.received.room + self.by_fd[fd].zmtp.out.room
        return total

    def age(self, uint64_t ns) -> None:
        """What has happened on connections was so much longer ago; the next turn looks what that means. For tests, which cannot wait."""
        cdef Connection* c
        cdef Session* s
        cdef int fd
        for fd in range(self.room):
            c = self.by_fd[fd]
            if c == NULL:
                continue
            c.accepted_ns -= ns
            c.heard_ns -= ns
            c.pinged_ns -= ns
            c.large_ns -= min(ns, c.large_ns)
            s = self.sessions.find_at(fd)
            if s != NULL:
                s.account.narrow_until_ns -= min(ns, s.account.narrow_until_ns)
        self.crowd.since_ns -= min(ns, self.crowd.since_ns)
        self.crowd.until_ns -= min(ns, self.crowd.until_ns)
        self.crowd.until_but_ns -= min(ns, self.crowd.until_but_ns)
        self.look_at_ns = 0

    def rest(self) -> None:
        """Nothing is to be done: give back the memory that is kept for when there is."""
        blocks_free(&self.blocks)

    def start(self) -> None:
        """Begin the thread for large frames."""
        self.bulk.start()

    def stop(self) -> None:
        """End that thread, and accept nobody any more."""
        self.bulk.stop()
        self.listener_count = 0
        for listener in self._listeners:
            listener.close()

    # ---- what the system tells

    cdef void look(self, int timeout_ms) noexcept nogil:
        """Hear of what can be read or written, waiting for it at most so long."""
        cdef Connection* c
        cdef Address address
        cdef uint64_t count
        cdef uint32_t events
        cdef int i, listener, found = epoll_wait(self.epoll, self.events, EVENTS_AT_ONCE, timeout_ms)
        for i in range(found):
            events = self.events[i].events
            address.fd = fd_of(&self.events[i])
            address.number = number_of(&self.events[i])
            if address.number:
                c = self.find(&address)
                if c == NULL:
                    continue
                if events & EPOLLOUT:
                    self.writable(c)
                if c.paused and events & (EPOLLERR | EPOLLHUP):
                    self.close(c)
                elif events & (EPOLLIN | EPOLLERR | EPOLLHUP):
                    self.list_last(c)
            elif address.fd == self.control:
                self.control_ready = True
            else:
                listener = self.fd_is_listener(address.fd)
                if listener >= 0:
                    self.accept(listener)
                else:
                    read(address.fd, &count, 8)

    cdef int fd_is_listener(self, int fd) noexcept nogil:
        """The index of the listener with this descriptor; -1: none has it."""
        cdef int i
        for i in range(self.listener_count):
            if self.listeners[i] == fd:
                return i
        return -1

    cdef int wait_at_most(self) noexcept nogil:
        """Milliseconds after which `keep_alive` has something to do."""
        cdef uint64_t now = self.sessions.now_ns
        return 0 if self.look_at_ns <= now else <int> ((self.look_at_ns - now) // 1000000) + 1

    # ---- connections come

    cdef void accept(self, int listener) noexcept nogil:
        cdef int fd, i
        for i in range(ACCEPTED_AT_ONCE):
            if self.count >= self.room_max:
                if i == 0:                              # otherwise it is not known whether anybody waits: epoll tells
                    self.accept_failed += 1
                    self.accept_more(False)
                return
            fd = accept4(self.listeners[listener], NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)
            if fd < 0:
                if errno == EINTR or errno == ECONNABORTED or errno == EPROTO:
                    continue
                if errno != EAGAIN:                     # no descriptors, no memory
                    self.accept_failed += 1
                    self.accept_more(False)
                return
            if self.own_user[listener] and user_of(fd) != 0 and user_of(fd) != <long> geteuid():
                close_fd(fd)
            elif not self.add(fd):
                self.accept_failed += 1
                close_fd(fd)

    cdef void accept_more(self, bint more) noexcept nogil:
        """Whether connections are accepted; those who come meanwhile wait."""
        cdef int i
        for i in range(self.listener_count):
            epoll_change(self.epoll, EPOLL_CTL_MOD, self.listeners[i], 0, EPOLLIN if more else 0)
        self.refused_until_ns = 0 if more else self.sessions.now_ns + REFUSED_NS
        if not more:
            self.look_at_ns = min(self.look_at_ns, self.refused_until_ns)

    cdef bint add(self, int fd) noexcept nogil:
        """A connection was accepted; False when there is no memory."""
        cdef Connection* c
        cdef Connection** by_fd
        cdef int room = self.room if self.room else 64
        if fd >= self.room:
            while room <= fd:
                room *= 2
            by_fd = <Connection**> realloc(self.by_fd, room * sizeof(Connection*))
            if by_fd == NULL:
                return False
            memset(by_fd + self.room, 0, (room - self.room) * sizeof(Connection*))
            self.by_fd = by_fd
            self.room = room
        c = <Connection*> calloc(1, sizeof(Connection))
        if c == NULL:
            return False
        c.address.fd = fd
        c.address.number = self.next_number
        zmtp_init(&c.zmtp, ZMTP_ROUTER, FRAME_SIZE_MAX, &self.blocks)
        zmtp_start(&c.zmtp)
        c.interest = EPOLLIN
        if epoll_change(self.epoll, EPOLL_CTL_ADD, fd, c.address.number, c.interest) != 0:
            zmtp_free(&c.zmtp)
            free(c)
            return False
        set_tcp(fd)
        c.near = is_near(fd)
        self.next_number += 1
        if self.next_number == 0:
            self.next_number = 1
        c.accepted_ns = c.heard_ns = c.pinged_ns = self.sessions.now_ns
        self.by_fd[fd] = c
        self.count += 1
        self.handshakes += 1
        self.accepted += 1
        self.look_at_ns = min(self.look_at_ns, self.sessions.now_ns + LOOK_SOON_NS)
        self.send_own(c)
        return True

    # ---- and go

    cdef void close(self, Connection* c) noexcept nogil:
        """It has ended, and all that came over it was judged. `c` must not be used any more."""
        if not c.gone:
            c.gone = True
            self.sessions.lose_connection(&c.address)
            epoll_change(self.epoll, EPOLL_CTL_DEL, c.address.fd, 0, 0)
            if c.reads_bulk or c.writes_bulk:
                shutdown(c.address.fd, SHUT_RDWR)       # the bulk thread lets go of it
        if not c.reads_bulk and not c.writes_bulk:
            self.end(c)

    cdef void end(self, Connection* c) noexcept nogil:
        """Nobody else has anything of it."""
        self.sessions.workers.release(&c.placed)
        self.by_fd[c.address.fd] = NULL
        self.count -= 1
        self.handshakes -= 0 if c.opened else 1
        self.blocked -= 1 if c.blocked else 0
        blocks_give(&self.blocks, c.zmtp.received.data, c.zmtp.received.room)
        buffer_init(&c.zmtp.received)
        self.forget(c)

    cdef void forget(self, Connection* c) noexcept nogil:
        """Give back what it has; itself too, unless it stands in the list."""
        self.drop_own(c)
        if c.placed.at != NULL:                         # only when all ends: nobody is left to be told that the place is free
            arena_let_go(c.placed.map)
        if c.writes_bulk:
            frames_free(c.writing.frame)
            frames_free(c.writing.sent)
        zmtp_free(&c.zmtp)
        close_fd(c.address.fd)
        c.address.fd = -1
        if not c.listed:                                # otherwise when its turn comes
            free(c)

    cdef void list_last(self, Connection* c) noexcept nogil:
        """It may have something to read: its turn comes after that of all others."""
        if c.listed:
            return
        c.listed = True
        c.next = NULL
        if self.first == NULL:
            self.first = c
        else:
            self.last.next = c
        self.last = c

    cdef Connection* take_first(self) noexcept nogil:
        cdef Connection* c = self.first
        self.first = c.next
        c.listed = False
        return c

    cdef void resume(self) noexcept nogil:
        """The front-end serves: those who had to wait for that are read."""
        cdef int fd
        cdef Connection* c
        self.some_paused = False
        for fd in range(self.room):
            c = self.by_fd[fd]
            if c != NULL and c.paused:
                c.paused = False
                c.heard_ns = self.sessions.now_ns
                self.look_for(c)
                self.list_last(c)

    cdef bint took_some(self, Connection* c) noexcept nogil:
        """Whether it has taken something of what it was sent since the last look. No PING comes through while a large frame leaves slowly."""
        cdef int before = c.unacknowledged
        c.unacknowledged = unacknowledged(c.address.fd)
        return c.unacknowledged < before

    cdef void keep_alive(self) noexcept nogil:
        """Now and then: ping those who are there, end those who are not."""
        cdef uint64_t now = self.sessions.now_ns, silence_ns
        cdef Connection* c
        cdef Session* s
        cdef int fd
        if now < self.look_at_ns:
            return
        self.look_at_ns = now + (LOOK_SOON_NS if self.handshakes else LOOK_NS)
        if self.refused_until_ns:
            self.accept_more(True)
        for fd in range(self.room):
            c = self.by_fd[fd]
            if c == NULL or c.paused or c.listed or c.gone:
                continue
            if c.reads_bulk:
                c.heard_ns = max(c.heard_ns, c.reading.heard_ns)
            if c.writes_bulk:
                c.heard_ns = max(c.heard_ns, c.writing.heard_ns)
            if not c.opened:
                if now >= c.accepted_ns + HANDSHAKE_NS:
                    self.close(c)
                continue
            s = self.sessions.find_at(fd)
            if s != NULL and s.account.narrow_until_ns:
                account_came(&s.account, now)
                if s.account.due:
                    self.sessions.list_ready(s)
            silence_ns = SILENCE_NS
            if c.zmtp.ttl_ms:
                silence_ns = min(silence_ns, <uint64_t> c.zmtp.ttl_ms * 1000000)
            if now >= c.heard_ns + silence_ns // 2 and self.took_some(c):
                c.heard_ns = now
            if now >= c.heard_ns + silence_ns and not is_readable(fd):
                self.close(c)
            elif now >= c.pinged_ns + PING_NS and not c.writes_bulk and zmtp_unsent(&c.zmtp) < OUT_WAITING_MAX:
                c.pinged_ns = now
                zmtp_ping(&c.zmtp)
                self.send_own(c)

    # ---- what they say

    cdef bint read_some(self) noexcept nogil:
        """Read and judge, a share of each connection that has something; whether there was anything."""
        cdef Connection* c
        cdef Connection* last = self.last               # who is listed again from here on has had its turn
        cdef size_t size = 0
        cdef uint64_t until_ns = self.sessions.now_ns + READ_NS
        cdef bint found = False, is_last
        if self.some_paused and self.sessions.serving:
            self.resume()
            last = self.last
        while self.first != NULL and size < READ_IN_TURN:
            is_last = self.first == last
            c = self.take_first()
            if c.address.fd < 0:
                free(c)
            elif not c.gone:
                found = True
                if self.read_connection(c, &size):
                    self.list_last(c)
            if is_last or monotonic_ns() > until_ns:
                break
        return found

    cdef bint read_connection(self, Connection* c, size_t* size) noexcept nogil:
        """A connection's share of a turn; whether more of it may be there. It may be closed afterwards."""
        cdef uint8_t* at
        cdef size_t room, total = 0
        cdef ssize_t got
        cdef uint64_t judged = self.judged
        cdef bint is_member = self.sessions.find_at(c.address.fd) != NULL       # a HELLO is nobody's small request
        if c.reads_bulk:
            return False
        if c.more:
            if not self.judge(c):
                return False
            if c.more or c.paused or c.reads_bulk:
                return c.more and not c.paused
        while total < READ_AT_ONCE:
            at = zmtp_shared_room(&c.zmtp, READ_SIZE, &room)
            if at == NULL:
                self.sessions.out_of_memory = True
                return False
            room = min(room, <size_t> READ_AT_ONCE)
            got = recv(c.address.fd, at, room, MSG_DONTWAIT)
            if got <= 0:
                if got < 0 and errno == EINTR:
                    continue
                if got < 0 and errno == EAGAIN:
                    break
                self.close(c)
                return False
            zmtp_received(&c.zmtp, <size_t> got)
            total += <size_t> got
            c.heard_ns = self.sessions.now_ns
            if not self.judge(c):
                return False
            if c.more or c.reads_bulk or <size_t> got < room:
                break
        size[0] += total
        if c.more or c.paused or c.reads_bulk:
            return c.more and not c.paused
        if self.judged != judged and is_member:
            self.heard_small(c, total)
        if total >= READ_AT_ONCE:
            return True
        zmtp_rest(&c.zmtp)
        return False

    cdef void heard_small(self, Connection* c, size_t size) noexcept nogil:
        """Requests of so many bytes have come over a connection in this turn."""
        cdef uint64_t now_ns = self.sessions.now_ns
        if size <= CROWD_SIZE_MAX and now_ns >= c.large_ns + LARGE_KEPT_NS and not c.writes_bulk and self.holds_back:
            crowd_heard(&self.crowd, c.address.number, now_ns)

    cdef bint judge(self, Connection* c) noexcept nogil:
        """Judge the whole requests that have come, some of them where there are many; False: the connection is closed."""
        cdef int event, judged = 0
        cdef uint64_t began_ns = 0
        cdef Zmtp* z = &c.zmtp
        c.more = False
        while True:
            if c.opened and not self.sessions.serving:
                c.more = True
                c.paused = True
                self.some_paused = True
                self.look_for(c)
                break
            event = zmtp_next(z)
            if event == ZMTP_MESSAGE:
                self.sessions.receive_frames(
                    &c.address, z.frames, zmtp_frame(z, 0), z.frame[0].size, zmtp_frame(z, 1) if z.frames > 1 else NULL,
                    z.frame[1].size if z.frames > 1 else 0)
                z.after_large = z.frames > 1 and z.frame[1].size >= ZMTP_WHOLE_MIN
                judged += 1
                if judged == 1:
                    began_ns = monotonic_ns()
                elif judged == JUDGED_AT_ONCE or monotonic_ns() > began_ns + JUDGE_NS:
                    c.more = True
                    break
            elif event == ZMTP_OPENED:
                c.opened = True
                self.handshakes -= 1
            elif event == ZMTP_WAIT:
                if z.wanted >= z.received.size + BULK_MIN and not self.lend_reading(c):
                    return False
                break
            else:
                self.close(c)
                return False
        self.judged += judged
        if zmtp_unsent(z):
            self.send_own(c)
        return True

    # ---- large frames

    cdef bint lend_reading(self, Connection* c) noexcept nogil:
        """Let the bulk thread read the rest of a large frame; False: no memory."""
        cdef BulkJob* job = &c.reading
        cdef Session* s
        job.prepare = False
        if not self.has_place(c):
            job.at = zmtp_shared_room(&c.zmtp, READ_SIZE, &job.left)
            if job.at == NULL:
                self.sessions.out_of_memory = True
                return False
        job.is_read = True
        job.done = 0
        c.reads_bulk = True
        self.look_for(c)
        if self.lend(c, job) and c.near:
            s = self.sessions.find_at(c.address.fd)
            if s != NULL:
                account_narrow(
                    &s.account, max(self.narrow_bytes, CROWD_RECORDS * c.zmtp.wanted), self.sessions.now_ns, crowd_until(&self.crowd))
        return True

    cdef bint has_place(self, Connection* c) noexcept nogil:
        """Whether the frame that has begun is a record to be read right into its worker's arena; its first bytes are there then."""
        cdef Zmtp* z = &c.zmtp
        cdef const uint8_t* begun
        cdef size_t size, total
        if (z.frames != 1 or not zmtp_begun(z, &begun, &size, &total)
                or not self.sessions.place(&c.address, zmtp_frame(z, 0), z.frame[0].size, begun, size, total, &c.placed)):
            return False
        memcpy(c.placed.at, begun, size)
        c.reading.at = c.placed.at + size
        c.reading.left = total - size
        c.reading.prepare = c.placed.is_cold
        return True

    cdef void heard_bulk(self, Connection* c) noexcept nogil:
        """The bulk thread has read what it was to read."""
        cdef Zmtp* z = &c.zmtp
        c.heard_ns = self.sessions.now_ns
        if c.placed.at != NULL:
            self.sessions.publishing.placed = &c.placed
            self.sessions.receive_frames(&c.address, 2, zmtp_frame(z, 0), z.frame[0].size, c.placed.at, c.placed.size)
            self.sessions.publishing.placed = NULL
            self.sessions.workers.release(&c.placed)
            zmtp_pass_over(z)
        else:
            zmtp_received(z, c.reading.done)
            c.more = True
        self.look_for(c)
        self.list_last(c)

    cdef bint take_back(self) noexcept nogil:
        """Go on with what the bulk thread has finished; whether there was anything."""
        cdef BulkJob* job = self.bulk.take()
        cdef BulkJob* following
        cdef Connection* c
        cdef bint found = job != NULL
        while job != NULL:
            following = job.next
            c = <Connection*> job.owner
            c.large_ns = self.sessions.now_ns
            self.lent -= 1
            if not job.is_read:
                c.writes_bulk = False
                c.lent_size = 0
                c.heard_ns = max(c.heard_ns, job.heard_ns)
                frames_free(job.frame)
                frames_free(job.sent)
                if job.error:
                    self.break_off(c)
            else:
                c.reads_bulk = False
            if c.gone:
                self.close(c)
            elif not job.is_read:
                self.writable(c)
            elif job.error:
                self.close(c)
            else:
                self.heard_bulk(c)
            job = following
        return found
