"""The part of a front-end's process that runs without the GIL: frames between libzmq and the sessions, and sleep between turns.

Owns: the requests being read, the accept counts, the list of what poll looks at. Rules: a connection is named by its descriptor and how often
that has been accepted; the monitor is read after requests were received and before they are judged, so that it knows their connections; one
that has ended is ended here when ROUTER has nothing left that was sent over it; nobody is waited for but in poll; each source gets its share of
a turn. libzmq's descriptors are edges: it sleeps only after a turn in which nothing was found anywhere. Runs in front-ends, on the main thread.
"""
cimport cython
from libc.errno cimport EAGAIN, EINTR
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

import zmq

from fastmq.net.libzmq cimport (
    ZMQ_DONTWAIT, ZMQ_SNDMORE, ZMQ_SRCFD, socket_of, zmq_errno, zmq_msg_close, zmq_msg_data, zmq_msg_get, zmq_msg_init,
    zmq_msg_init_data, zmq_msg_init_size, zmq_msg_more, zmq_msg_recv, zmq_msg_send, zmq_msg_size, zmq_msg_t,
)
from fastmq.net.arena cimport Borrowed, arena_give_back
from fastmq.net.ring cimport Link
from fastmq.server.session cimport (
    Frame, Meter, Session, fmq_meter_add, fmq_meter_get, frame_free, meter_drop, session_drop_first,
)
from fastmq.wire.buffer cimport buffer_add, buffer_drop_front, buffer_free, buffer_init
from fastmq.wire.link cimport LinkHead


cdef enum:
    SOCKET_ITEMS = 3                    # those of `items` that come before the bells
    COPY_MAX = 512                      # bytes of a frame that is copied into libzmq's message; larger ones are handed over
    CONTROL_TURNS = 64                  # busy turns between two looks at the control socket
    SUSPECT_NS = 50000000               # under load that never ends a suspect is not waited for longer; what is late is answered no-session
    IN_LIBZMQ_MAX = 16777216            # bytes of one session that libzmq may hold; then its client is slow
    SENT = 0
    SEND_WAITS = 1                      # the client takes no more for now
    SEND_LOST = 2                       # its connection is gone


MONITORED = zmq.EVENT_ACCEPTED | zmq.EVENT_ACCEPT_FAILED | zmq.EVENT_DISCONNECTED
cdef uint16_t EVENT_ACCEPTED = zmq.EVENT_ACCEPTED
cdef uint16_t EVENT_ACCEPT_FAILED = zmq.EVENT_ACCEPT_FAILED
cdef uint16_t EVENT_DISCONNECTED = zmq.EVENT_DISCONNECTED


cdef inline uint64_t monotonic_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <uint64_t> now.tv_sec * 1000000000 + <uint64_t> now.tv_nsec


cdef struct Given:                      # a block that libzmq holds
    Meter* meter                        # of the session that it belongs to; NULL: of none
    size_t size
    Borrowed* borrowed                  # it lies in a worker's arena; NULL: it is malloc'ed


cdef void release(void* data, void* hint) noexcept nogil:
    """libzmq has let go of a block; called on its thread."""
    cdef Given* given = <Given*> hint
    if given.meter != NULL:
        meter_drop(given.meter, given.size)
    if given.borrowed != NULL:
        arena_give_back(given.borrowed)
    else:
        free(data)
    free(given)


cdef inline int message_of(zmq_msg_t* message, uint8_t** data, size_t size, Meter* meter, Borrowed** borrowed) noexcept nogil:
    """Make a libzmq message of a block, malloc'ed or borrowed, which is libzmq's then and NULL here, or still ours where it was copied.

    -1: no memory.
    """
    cdef Given* given
    if size > COPY_MAX:
        given = <Given*> malloc(sizeof(Given))
        if given == NULL or zmq_msg_init_data(message, data[0], size, release, given) != 0:
            free(given)
            return -1
        given.meter = meter
        given.size = size
        given.borrowed = borrowed[0]
        borrowed[0] = NULL
        if meter != NULL:
            fmq_meter_add(&meter.size, size)
            fmq_meter_add(&meter.holders, 1)
        data[0] = NULL
        return 0
    if zmq_msg_init_size(message, size) != 0:
        return -1
    memcpy(zmq_msg_data(message), data[0], size)
    return 0


@cython.final
cdef class FrontendLoop:
    """`router`: the bound zmq.Socket; `monitor`: the PAIR socket that its monitor writes to."""

    def __cinit__(self, Sessions sessions not None, router, monitor):
        self.sessions = sessions
        sessions.cuts_connections = True
        self.router_ready = True
        self.monitor_ready = True
        self.router = socket_of(router)
        self.monitor = socket_of(monitor)
        buffer_init(&self.suspects)
        memset(self.items, 0, sizeof(self.items))
        self.items[1].fd = router.getsockopt(zmq.FD)
        self.items[2].fd = monitor.getsockopt(zmq.FD)

    def __dealloc__(self):
        free(self.accepts)
        buffer_free(&self.suspects)

    def look_at(self, control: int, bells: list[int]) -> None:
        """The descriptors that end a sleep beside the sockets: the control socket, and the bells of all links."""
        self.items[0].fd = control
        self.items_count = 3
        for bell in bells:
            self.items[self.items_count].fd = bell
            self.items_count += 1
        for i in range(self.items_count):
            self.items[i].events = POLLIN

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
        cdef int count = 0, timeout_ms
        cdef bint busy
        while not self.sessions.out_of_memory:
            now = monotonic_ns()
            self.sessions.now_ns = now
            busy = self.turn()
            if now >= until_ns or (until_idle and not busy) or (busy and now >= soon_ns):
                return
            count += 1
            if busy and count < CONTROL_TURNS:
                continue
            count = 0
            timeout_ms = 0
            if not busy and self.may_sleep():
                timeout_ms = <int> ((until_ns - now) // 1000000) + 1
                if self.sessions.wait_at_most() >= 0:
                    timeout_ms = min(timeout_ms, self.sessions.wait_at_most())
            self.look(timeout_ms)
            if not busy:
                self.awake()
            if self.items[0].revents:
                return

    cdef void look(self, int timeout_ms) noexcept nogil:
        """Wait in poll, or only look at the sockets."""
        poll(self.items, self.items_count if timeout_ms else SOCKET_ITEMS, timeout_ms)
        if self.items[1].revents:
            self.router_ready = True
        if self.items[2].revents:
            self.monitor_ready = True

    cdef bint turn(self) noexcept nogil:
        """One look at every source, and everything that comes of it sent; whether anything was found."""
        cdef size_t suspects = self.suspects.size // sizeof(Suspect)
        cdef bint drained = False
        cdef bint busy = False
        cdef int count = 0
        if self.sessions.serving and (self.router_ready or suspects):
            count = self.read_requests(&drained)
            self.router_ready = not drained
        if count or self.monitor_ready:
            busy = self.read_monitor() or count > 0
            self.monitor_ready = False
        self.judge_requests(count)
        if self.suspects.size:
            self.end_suspects(suspects, drained)
            busy = True                     # read on until ROUTER has nothing left of theirs
        if self.sessions.workers.written:
            self.sessions.workers.flush()   # they begin while the rest of this turn is done
        if self.read_events():
            busy = True
        return self.hear_workers() or busy

    cdef bint hear_workers(self) noexcept nogil:
        """Read what workers have sent, send everything there is to send; whether anything was found."""
        cdef int worker
        cdef bint found = False
        for worker in range(self.sessions.workers.count):
            if self.sessions.pump(worker, PUMP_MESSAGES):
                found = True
        if self.send_all():
            self.router_ready = True
            found = True
        self.sessions.workers.return_loans()
        self.sessions.workers.flush()
        if self.sessions.live.link is not None:
            self.sessions.live.link.flush()
            self.sessions.live.link.ring_bell()
        return found

    # ---- connections

    cdef uint32_t* accepts_of(self, int fd) noexcept nogil:
        """The accept count of a descriptor; NULL when there is no memory."""
        cdef uint32_t* accepts
        cdef int room = self.accepts_room if self.accepts_room else 256
        if fd >= self.accepts_room:
            while room <= fd:
                room *= 2
            accepts = <uint32_t*> realloc(self.accepts, room * sizeof(uint32_t))
            if accepts == NULL:
                self.sessions.out_of_memory = True
                return NULL
            memset(accepts + self.accepts_room, 0, (room - self.accepts_room) * sizeof(uint32_t))
            self.accepts = accepts
            self.accepts_room = room
        return &self.accepts[fd]

    cdef bint read_monitor(self) noexcept nogil:
        """Read the monitor until it is empty; whether there was anything."""
        cdef zmq_msg_t message
        cdef Suspect suspect
        cdef uint16_t event
        cdef int value
        cdef uint32_t* accepts
        cdef bint found = False
        zmq_msg_init(&message)
        while zmq_msg_recv(&message, self.monitor, ZMQ_DONTWAIT) >= 0:
            found = True
            memcpy(&event, zmq_msg_data(&message), 2)
            memcpy(&value, <uint8_t*> zmq_msg_data(&message) + 2, 4)
            while zmq_msg_more(&message):               # the endpoint, which is always the same
                if zmq_msg_recv(&message, self.monitor, ZMQ_DONTWAIT) < 0:
                    break
            if event == EVENT_ACCEPT_FAILED:
                self.accept_failed += 1
                continue
            if value < 0:
                continue
            accepts = self.accepts_of(value)
            if accepts == NULL:
                break
            if event == EVENT_ACCEPTED:
                accepts[0] += 1
                self.accepted += 1
            elif event == EVENT_DISCONNECTED:
                suspect.fd = value
                suspect.accept_count = accepts[0]
                suspect.since_ns = self.sessions.now_ns
                buffer_add(&self.suspects, &suspect, sizeof(Suspect))
        zmq_msg_close(&message)
        return found

    cdef bint end_suspects(self, size_t count, bint drained) noexcept nogil:
        """End the first `count` suspects. `drained`: ROUTER was empty after they had ended, so nothing of theirs is left to be read."""
        cdef size_t i, ended = 0
        cdef Suspect suspect
        for i in range(count):
            suspect = (<Suspect*> self.suspects.data)[i]
            if not drained and self.sessions.now_ns < suspect.since_ns + SUSPECT_NS:
                break
            self.sessions.lose_connection(suspect.fd, suspect.accept_count)
            ended += 1
        buffer_drop_front(&self.suspects, ended * sizeof(Suspect))
        return ended > 0

    # ---- requests

    cdef bint read_request(self, Request* r, size_t* size) noexcept nogil:
        """Receive one message; False when there is none. What is behind the records is received and forgotten."""
        cdef zmq_msg_t* parts[3]
        cdef zmq_msg_t rest
        cdef int i = 0
        parts[0] = &r.rid
        parts[1] = &r.header
        parts[2] = &r.records
        for i in range(3):
            zmq_msg_init(parts[i])
        r.frames = 0
        if zmq_msg_recv(&r.rid, self.router, ZMQ_DONTWAIT) < 0:
            return False
        size[0] += zmq_msg_size(&r.rid)
        i = 0
        while i < 2 and zmq_msg_more(parts[i]):
            i += 1
            if zmq_msg_recv(parts[i], self.router, ZMQ_DONTWAIT) < 0:
                break
            r.frames += 1
            size[0] += zmq_msg_size(parts[i])
        if i == 2 and zmq_msg_more(parts[2]):
            zmq_msg_init(&rest)
            while zmq_msg_recv(&rest, self.router, ZMQ_DONTWAIT) >= 0:
                r.frames += 1
                if not zmq_msg_more(&rest):
                    break
            zmq_msg_close(&rest)
        return True

    cdef int read_requests(self, bint* drained) noexcept nogil:
        """Receive some requests; how many. `drained`: ROUTER has no more."""
        cdef int count = 0
        cdef size_t size = 0
        while count < REQUESTS_AT_ONCE and size < REQUEST_BYTES_AT_ONCE:
            if not self.read_request(&self.requests[count], &size):
                drained[0] = True
                break
            count += 1
        return count

    cdef void judge_requests(self, int count) noexcept nogil:
        cdef Request* r
        cdef uint32_t* accepts
        cdef int i, fd
        for i in range(count):
            r = &self.requests[i]
            fd = zmq_msg_get(&r.header, ZMQ_SRCFD) if r.frames else -1
            accepts = self.accepts_of(fd) if fd >= 0 else NULL
            self.sessions.receive_frames(
                fd, accepts[0] if accepts != NULL else 0, <const uint8_t*> zmq_msg_data(&r.rid), zmq_msg_size(&r.rid), r.frames,
                <const uint8_t*> zmq_msg_data(&r.header), zmq_msg_size(&r.header),
                <const uint8_t*> zmq_msg_data(&r.records), zmq_msg_size(&r.records))
            zmq_msg_close(&r.rid)
            zmq_msg_close(&r.header)
            zmq_msg_close(&r.records)

    # ---- live subscriptions

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

    # ---- answers

    cdef int send_frame(self, Frame* f, const void* rid, size_t rid_size, Meter* meter) noexcept nogil:
        """Hand one frame to libzmq. `meter`: of its session, NULL: of none."""
        cdef zmq_msg_t message
        cdef Borrowed* none = NULL
        cdef int failed
        if meter != NULL and fmq_meter_get(&meter.size) > IN_LIBZMQ_MAX:
            return SEND_WAITS
        if zmq_msg_init_size(&message, rid_size) != 0:
            self.sessions.out_of_memory = True
            return SEND_LOST
        memcpy(zmq_msg_data(&message), rid, rid_size)
        while zmq_msg_send(&message, self.router, ZMQ_DONTWAIT | ZMQ_SNDMORE) < 0:
            failed = zmq_errno()
            if failed == EINTR:
                continue
            zmq_msg_close(&message)
            return SEND_WAITS if failed == EAGAIN else SEND_LOST
        if message_of(&message, &f.header, f.header_size, meter, &none) != 0:     # the message begun is closed with the process
            self.sessions.out_of_memory = True
            return SEND_LOST
        if zmq_msg_send(&message, self.router, ZMQ_DONTWAIT | (ZMQ_SNDMORE if f.records != NULL else 0)) < 0:
            zmq_msg_close(&message)
        if f.records == NULL:
            return SENT
        if message_of(&message, &f.records, f.records_size, meter, &f.borrowed) != 0:
            self.sessions.out_of_memory = True
            return SEND_LOST
        if zmq_msg_send(&message, self.router, ZMQ_DONTWAIT) < 0:
            zmq_msg_close(&message)
        return SENT

    cdef bint send_all(self) noexcept nogil:
        """Send what is to be sent, as far as clients take it; whether anything was."""
        cdef Session* s
        cdef Frame* f
        cdef int result
        cdef bint found = False
        if self.sessions.wait_at_most() >= 0:
            self.sessions.retry_slow()
        s = self.sessions.next_ready()
        while s != NULL:
            while s.first != NULL:
                result = self.send_frame(s.first, s.rid, s.rid_size, s.meter)
                if result == SEND_WAITS:
                    self.router_ready = True            # trying to send takes libzmq's edge too
                    self.sessions.hold(s)
                    break
                found = True
                if result == SEND_LOST:
                    self.sessions.lost_route(s)
                    break
                session_drop_first(s)
            if s.first == NULL:
                self.sessions.sent(s)
            s = self.sessions.next_ready()
        f = self.sessions.next_stray()
        while f != NULL:
            found = True
            if self.send_frame(f, f.rid, f.rid_size, NULL) != SENT:
                self.sessions.strays_dropped += 1
            frame_free(f)
            f = self.sessions.next_stray()
        return found

    # ---- sleep

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

    cdef void awake(self) noexcept nogil:
        cdef int worker
        for worker in range(self.sessions.workers.count):
            if self.sessions.workers.links[worker] != NULL:
                (<Link> self.sessions.workers.links[worker]).awake()
        if self.sessions.live.link is not None:
            self.sessions.live.link.awake()
