"""What a front-end's connections are told (see outlet.pxd)."""
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint8_t, uint32_t

from fastmq.server.bulk cimport BULK_READ_AT_ONCE, BULK_SENT_AT_ONCE
from fastmq.server.crowd cimport CROWD_STEP, crowd_is_there
from fastmq.server.gathered cimport Gathered, gather, is_bulk, size_on_wire
from fastmq.server.posix cimport EPOLL_CTL_MOD, EPOLLIN, EPOLLOUT, SHUT_RDWR, epoll_change, send_parts, shutdown
from fastmq.server.session cimport address_same, frame_free, session_drop_first, session_take_first
from fastmq.wire.zmtp cimport ZMTP_KEPT_MAX, zmtp_drop_sent, zmtp_next_part, zmtp_sent, zmtp_unsent


cdef class Outlet:
    """The base of Connections, which makes and ends them."""

    cdef Connection* find(self, const Address* address) noexcept nogil:
        """The connection of this address; NULL: it is gone."""
        cdef Connection* c = self.by_fd[address.fd] if 0 <= address.fd < self.room else NULL
        return c if c != NULL and not c.gone and address_same(&c.address, address) else NULL

    cdef void look_for(self, Connection* c) noexcept nogil:
        """Tell epoll what is waited for, where that has changed."""
        cdef uint32_t interest = (0 if c.paused or c.reads_bulk else EPOLLIN) | (EPOLLOUT if c.blocked else 0)
        if interest != c.interest:
            c.interest = interest
            epoll_change(self.epoll, EPOLL_CTL_MOD, c.address.fd, c.address.number, interest)

    # ---- one connection

    cdef bint took_less(self, Connection* c, ssize_t size) noexcept nogil:
        """A send came to nothing: wait until it can, or give the connection up. True: try again."""
        if size < 0 and errno == EINTR:
            return True
        if size < 0 and errno != EAGAIN:
            self.break_off(c)
        elif not c.blocked:
            c.blocked = True
            self.blocked += 1
            self.look_for(c)
        return False

    cdef void break_off(self, Connection* c) noexcept nogil:
        """Nothing can be sent to it any more. What came before that is still read; then it is closed."""
        c.broken = True
        self.drop_own(c)
        shutdown(c.address.fd, SHUT_RDWR)               # what has come can be read, then the end; a peer that only reads no more, too

    cdef void drop_own(self, Connection* c) noexcept nogil:
        while c.first != NULL:
            self.drop_stray(c)

    cdef void drop_stray(self, Connection* c) noexcept nogil:
        """The first frame without a session has been sent, or cannot be."""
        cdef Frame* f = c.first
        c.first = f.next
        c.strays -= 1
        self.strays_waiting -= 1
        frame_free(f)

    cdef bint send_own(self, Connection* c) noexcept nogil:
        """Send the commands of ZMTP and the frames that belong to no session; False when some of that has to wait."""
        cdef Gathered g
        cdef Frame* f
        cdef size_t size
        cdef const uint8_t* part
        cdef ssize_t sent
        if c.begun and (c.first == NULL or not c.first.sent):      # that frame must be whole first
            return False
        while not c.broken and not c.blocked and not c.writes_bulk:
            if c.first == NULL or c.first.sent == 0:
                if zmtp_unsent(&c.zmtp):
                    part = zmtp_next_part(&c.zmtp, &size)
                    g.parts[0].iov_base = <void*> part
                    g.parts[0].iov_len = size
                    sent = send_parts(c.address.fd, g.parts, 1)
                    if sent > 0:
                        zmtp_sent(&c.zmtp, <size_t> sent)
                        zmtp_drop_sent(&c.zmtp, ZMTP_KEPT_MAX)      # it may never be empty
                    elif not self.took_less(c, sent):
                        return False
                    continue
                if c.first == NULL:
                    return True
            f = c.first
            gather(&g, f, SEND_AT_ONCE)
            sent = send_parts(c.address.fd, g.parts, g.count)
            if sent <= 0:
                if not self.took_less(c, sent):
                    return False
                continue
            f.sent += <size_t> sent
            while f != NULL and f.sent >= size_on_wire(f):
                sent = <ssize_t> (f.sent - size_on_wire(f))
                self.drop_stray(c)
                f = c.first
                if f != NULL:
                    f.sent = <size_t> sent
        return c.broken

    cdef bint takes_stray(self, Connection* c) noexcept nogil:
        """Whether one more can be sent at once, or may wait. Who reads nothing uses up nobody else's places."""
        if c.first == NULL and not c.blocked and not c.writes_bulk and not c.begun:
            return True
        return c.strays < STRAYS_OF_ONE_MAX and self.strays_waiting < STRAYS_WAITING_MAX

    cdef void send_stray(self, Frame* f) noexcept nogil:
        """Take a frame that belongs to no session, and send it; one of which a part has left already goes before all others."""
        cdef Connection* c = self.find(&f.address)
        if c == NULL or c.broken or f.sent == 0 and not self.takes_stray(c):
            self.sessions.strays_dropped += 1
            frame_free(f)
            return
        self.strays_waiting += 1
        c.strays += 1
        if c.first == NULL:
            c.last = f
        if f.sent:
            c.begun = False
            f.next = c.first
            c.first = f
        else:
            f.next = NULL
            if c.first == NULL:
                c.first = f
            else:
                c.last.next = f
            c.last = f
        self.send_own(c)

    cdef bint send_session(self, Session* s, size_t* size) noexcept nogil:
        """Send a share of what waits for a session; False when its client takes no more for now."""
        cdef Connection* c = self.find(&s.address)
        cdef Gathered g
        cdef size_t total = 0, left
        cdef ssize_t sent
        if c != NULL and c.writes_bulk:
            return False
        if c != NULL and not s.first.sent and (c.first != NULL or zmtp_unsent(&c.zmtp)) and not self.send_own(c):
            return False
        while s.first != NULL and total < SEND_AT_ONCE:
            if c == NULL or c.broken:
                session_drop_first(s)
                continue
            if is_bulk(s.first):
                self.lend_writing(c, s)
                return False
            gather(&g, s.first, SEND_AT_ONCE - total)
            sent = send_parts(c.address.fd, g.parts, g.count)
            if sent <= 0:
                if self.took_less(c, sent) or c.broken:
                    continue
                return False
            total += <size_t> sent
            left = <size_t> sent
            while s.first != NULL and left:
                if left < size_on_wire(s.first) - s.first.sent:
                    s.first.sent += left
                    break
                left -= size_on_wire(s.first) - s.first.sent
                session_drop_first(s)
            c.begun = s.first != NULL and s.first.sent
            if <size_t> sent < g.size:
                self.took_less(c, 0)
                size[0] += total
                return False
        size[0] += total
        if c != NULL and (c.first != NULL or zmtp_unsent(&c.zmtp)):
            self.send_own(c)
        return True

    cdef bint lend(self, Connection* c, BulkJob* job) noexcept nogil:
        """Let the bulk thread have a direction of a connection; whether it is held back, because small requests of others come."""
        cdef uint64_t now_ns = self.sessions.now_ns
        cdef bint held_back = crowd_is_there(&self.crowd, c.address.number, now_ns)
        job.step = CROWD_STEP if held_back else BULK_READ_AT_ONCE if job.is_read else BULK_SENT_AT_ONCE
        self.held_back += 1 if held_back else 0
        job.owner = c
        job.fd = c.address.fd
        job.error = 0
        job.heard_ns = 0
        c.large_ns = now_ns
        self.lent += 1
        self.bulk.give(job)
        return held_back

    cdef Frame* take_to_lend(self, Connection* c, Session* s) noexcept nogil:
        cdef Frame* f = session_take_first(s)
        c.lent_size += f.records_size if f.borrowed == NULL else 0
        return f

    cdef void lend_writing(self, Connection* c, Session* s) noexcept nogil:
        """Let the bulk thread send the large frames that wait first, which are its own until they were sent."""
        cdef BulkJob* job = &c.writing
        cdef Frame* last = self.take_to_lend(c, s)
        cdef size_t size = size_on_wire(last)
        job.frame = last
        while s.first != NULL and is_bulk(s.first) and size < BULK_SENT_AT_ONCE:
            last.next = self.take_to_lend(c, s)
            last = last.next
            size += size_on_wire(last)
        job.sent = NULL
        job.is_read = False
        c.writes_bulk = True
        c.begun = False
        self.lend(c, job)

    cdef void writable(self, Connection* c) noexcept nogil:
        """It takes something again."""
        cdef Session* s = self.sessions.find_at(c.address.fd)
        if c.blocked:
            c.blocked = False
            self.blocked -= 1
            c.heard_ns = self.sessions.now_ns
        self.send_own(c)
        if s != NULL and s.address.number == c.address.number and not c.blocked:
            self.sessions.release(s)
        self.look_for(c)

    cdef bint send_all(self) noexcept nogil:
        """Send what is to be sent, as far as clients take it, to each its share; whether anything was."""
        cdef Session* s
        cdef Frame* f = self.sessions.next_stray()
        cdef size_t size = 0
        cdef bint found = False
        while f != NULL:
            found = True
            self.send_stray(f)
            f = self.sessions.next_stray()
        self.sessions.retry_later()
        s = self.sessions.next_ready()
        while s != NULL:
            found = True
            if not self.send_session(s, &size):
                self.sessions.hold(s)
            elif s.first == NULL:
                self.sessions.sent(s)
            else:
                self.sessions.list_ready(s)
            if size >= SEND_IN_TURN:
                break
            s = self.sessions.next_ready()
        return found
