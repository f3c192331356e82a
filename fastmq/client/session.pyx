"""What a client says in its session, without I/O: see session.pxd."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmq.client.deliveries cimport (
    CONSUMER_ACTIVE, CONSUMER_CLOSING, CONSUMER_ENDED, CONSUMER_STARTING, SETTLE_RANGES_DUE, ConsumerState, Run, consumer_drop,
    consumer_end, consumer_forget_void, consumer_free, consumer_new, consumer_take, home_leave, run_free, settles_ack, settles_clear,
    settles_except, settles_free, settles_release, settles_write,
)
from fastmq.client.peer cimport (
    BREAK_NO_MEMORY, BREAK_PROTOCOL, FRAME_SIZE_IN_MAX, WAIT_CLOSED, WAIT_CONSUMING, WAIT_OUTCOME, WAIT_REQUEST, WAIT_ROOM, WAIT_RUN,
    WAIT_UP, WAIT_WIDE, Peer,
)
from fastmq.client.publishes cimport (
    publishes_detach, publishes_floor, publishes_free, publishes_init, publishes_room, publishes_wide, publishes_write,
)
from fastmq.client.requests cimport (
    REQUEST_WAITING, Request, request_fail, request_write, requests_find, requests_free, requests_init, requests_new, requests_remove,
)
from fastmq.wire.blocks cimport blocks_give
from fastmq.wire.buffer cimport buffer_add, buffer_clear, buffer_free
from fastmq.wire.idmap cimport idmap_free, idmap_get, idmap_init, idmap_put, idmap_remove
from fastmq.wire.limits cimport CONSUMER_WINDOW_MAX, PROTOCOL_VERSION
from fastmq.wire.msgpack cimport mp_array, mp_bin, mp_map, mp_str, mp_uint
from fastmq.wire.verbs cimport BYE, CANCEL, CONSUME, DELETE_EXCHANGE, DELETE_QUEUE, HELLO, PURGE_QUEUE
from fastmq.wire.zmtp cimport ZMTP_DEALER, zmtp_frame_head, zmtp_init


cdef enum:
    NO_EPOCH = 0                            # no process has it


cdef class Session(Peer):
    """What a client says: the base of ClientCore, which reads the answers."""

    def __cinit__(self, str vhost="/", str name=""):
        cdef bytes raw
        zmtp_init(&self.z, ZMTP_DEALER, FRAME_SIZE_IN_MAX, &self.blocks)
        publishes_init(&self.publishes)
        requests_init(&self.requests)
        idmap_init(&self.consumers)
        self.next_consumer = 1
        self.settle_due = CONSUMER_WINDOW_MAX
        raw = vhost.encode()
        buffer_add(&self.vhost, <const char*> raw, len(raw))
        raw = name.encode()
        buffer_add(&self.name, <const char*> raw, len(raw))

    def __dealloc__(self):
        cdef size_t i
        if self.consumers.entries != NULL:
            for i in range(self.consumers.mask + 1):
                if self.consumers.entries[i].key:
                    consumer_free(<ConsumerState*> <size_t> self.consumers.entries[i].value)
        idmap_free(&self.consumers)
        publishes_free(&self.publishes)
        requests_free(&self.requests)
        settles_free(&self.settles)
        home_leave(self.run_home)
        buffer_free(&self.vhost)
        buffer_free(&self.name)
        buffer_free(&self.header)
        buffer_free(&self.endpoint)

    # ---- the connection's beginning and end

    cdef void start(self, uint64_t now) noexcept nogil:
        Peer.start(self, now)
        self.phase = PHASE_HANDSHAKE
        self.hellos = 0

    cdef void stop(self, uint64_t now) noexcept nogil:
        """What was sent may be done or not: publishes, consumers and harmless requests are repeated in the next session, others end."""
        cdef Request* request = self.requests.first
        cdef Request* next_request
        cdef ConsumerState* c
        cdef size_t i
        Peer.stop(self, now)
        publishes_detach(&self.publishes)
        self.phase = PHASE_DOWN
        self.publishes.ready = False
        settles_clear(&self.settles)
        while request != NULL:
            next_request = request.next
            if request.consumer or request.forgotten:
                requests_remove(&self.requests, request)
            elif request.sent and request.state == REQUEST_WAITING and request.verb in (PURGE_QUEUE, DELETE_QUEUE, DELETE_EXCHANGE):
                request_fail(request, <const uint8_t*> b"unknown", 7, <const uint8_t*>
                             b"the connection was lost before the answer came; it may have been done", 69)
            else:
                request.sent = False
            request = next_request
        if self.consumers.entries == NULL:
            return
        for i in range(self.consumers.mask + 1):
            if self.consumers.entries[i].key:
                c = <ConsumerState*> <size_t> self.consumers.entries[i].value
                consumer_forget_void(c, NO_EPOCH)           # what an auto-ack consumer was given is nobody else's any more
                c.retry_ns = 0
                if c.phase == CONSUMER_CLOSING:
                    consumer_end(c, NULL, 0, NULL, 0)
                elif c.phase != CONSUMER_ENDED:
                    c.phase = CONSUMER_STARTING
                    c.request = 0
        self.sweep_consumers()

    cdef void on_opened(self, uint64_t now) noexcept nogil:
        self.phase = PHASE_GREETED
        self.say_hello(now)

    cdef void say_hello(self, uint64_t now) noexcept nogil:
        """[HELLO, session, incarnation, version, vhost, client name, heartbeat_s, wishes]: empty and 0 for a new session, else the next one."""
        self.hellos += 1
        if self.hellos > STALE_HELLOS_MAX:
            self.break_off(BREAK_PROTOCOL)
            return
        self.incarnation = self.incarnation + 1 if self.session_known else 0
        buffer_clear(&self.header)
        mp_array(&self.header, 8)
        mp_uint(&self.header, HELLO)
        mp_bin(&self.header, self.session, 16 if self.session_known else 0)
        mp_uint(&self.header, self.incarnation)
        mp_uint(&self.header, PROTOCOL_VERSION)
        mp_str(&self.header, self.vhost.data, <uint32_t> self.vhost.size)
        mp_str(&self.header, self.name.data, <uint32_t> self.name.size)
        mp_uint(&self.header, HEARTBEAT_S)
        mp_map(&self.header, 0)
        zmtp_frame_head(&self.z.out, self.header.size, False)
        buffer_add(&self.z.out, self.header.data, self.header.size)

    cdef void bye(self, uint64_t now) noexcept nogil:
        """The clean end of the session: what it held goes back, what is exclusive to it ends."""
        if self.phase < PHASE_UP:
            return
        self.flush_before(now)
        buffer_clear(&self.header)
        mp_array(&self.header, 3)
        mp_uint(&self.header, BYE)
        mp_bin(&self.header, self.session, 16)
        mp_uint(&self.header, self.incarnation)
        zmtp_frame_head(&self.z.out, self.header.size, False)
        buffer_add(&self.z.out, self.header.data, self.header.size)

    cdef uint64_t tick(self, uint64_t now) noexcept nogil:
        cdef uint64_t due = Peer.tick(self, now)
        cdef ConsumerState* c
        cdef size_t i
        if self.consume_ns and self.consume_ns <= now and self.phase == PHASE_UP:
            self.consume_ns = 0
            for i in range(self.consumers.mask + 1 if self.consumers.count else 0):
                c = <ConsumerState*> <size_t> self.consumers.entries[i].value
                if self.consumers.entries[i].key == 0 or c.retry_ns == 0:
                    continue
                if c.retry_ns <= now:
                    self.consume_again(c, now)
                else:
                    self.consume_at(c.retry_ns)
        return min(due, self.consume_ns) if self.consume_ns and self.phase == PHASE_UP else due

    cdef void consume_at(self, uint64_t when) noexcept nogil:
        if self.consume_ns == 0 or when < self.consume_ns:
            self.consume_ns = when

    cdef bint met(self, int what, uint64_t which) noexcept nogil:
        cdef Request* request
        cdef ConsumerState* c
        if what == WAIT_RUN or what == WAIT_CONSUMING or what == WAIT_CLOSED:
            c = self.consumer(<uint32_t> which)
            if c == NULL or c.phase == CONSUMER_ENDED:
                return True
            return what == WAIT_RUN and c.first != NULL or what == WAIT_CONSUMING and c.phase != CONSUMER_STARTING
        if what == WAIT_ROOM:
            return publishes_room(&self.publishes, which)
        if what == WAIT_WIDE:
            return publishes_wide(&self.publishes, which)
        if what == WAIT_OUTCOME:
            return self.publishes.head == self.publishes.tail or publishes_floor(&self.publishes) > which
        if what == WAIT_REQUEST:
            request = requests_find(&self.requests, which)
            return request == NULL or request.state != REQUEST_WAITING
        if what == WAIT_UP:
            return self.phase == PHASE_UP
        return Peer.met(self, what, which)

    # ---- what the application does

    cdef void flush(self, uint64_t now) noexcept nogil:
        if self.phase == PHASE_UP and self.publishes.unsent_messages:
            publishes_write(&self.publishes, &self.z, self.session, self.incarnation, now)
        if self.settles.ranges:
            self.flush_settles()
        if self.z.out.failed or self.publishes.broken:
            self.publishes.broken = False
            self.break_off(BREAK_NO_MEMORY)

    cdef void flush_before(self, uint64_t now) noexcept nogil:
        self.publishes.copying = True
        self.flush(now)
        self.publishes.copying = False

    cdef void flush_rest(self, uint64_t now) noexcept nogil:
        cdef bint blocked = self.publishes.blocked
        publishes_detach(&self.publishes)
        if blocked:
            self.flush(now)

    cdef bint flush_due(self, uint64_t now) noexcept nogil:
        if self.settles.most >= self.settle_due or self.settles.ranges >= SETTLE_RANGES_DUE:
            self.flush(now)
            return False
        if self.publishes.unsent_messages or self.publishes.broken or self.z.out.failed:
            self.flush(now)
        return self.settles.ranges != 0

    cdef void flush_settles(self) noexcept nogil:
        if self.settles.failed:
            self.settles.failed = False
            self.break_off(BREAK_NO_MEMORY)             # the tags that were lost go back when the session says HELLO again
        if self.publishes.blocked and self.phase >= PHASE_UP:
            return                                      # behind what was published before it: flush_rest goes on
        if self.phase >= PHASE_UP:
            settles_write(&self.settles, &self.header, &self.z.out, self.session, self.incarnation)
        else:
            settles_clear(&self.settles)

    cdef bint settle(self, uint32_t shard, uint64_t epoch, uint64_t n, int action, uint64_t generation) noexcept nogil:
        if generation != self.generation or self.phase < PHASE_UP:
            self.stale_settles += 1
            return False
        if action == 0:
            settles_ack(&self.settles, shard, epoch, n, n)
        else:
            settles_except(&self.settles, shard, epoch, n, n, action)
        return (self.settles.most >= self.settle_due and self.settle_due > 1) or self.settles.ranges >= SETTLE_RANGES_DUE

    cdef Request* ask(self, uint32_t verb) noexcept nogil:
        return requests_new(&self.requests, verb)

    cdef void asked(self, Request* request, uint64_t now) noexcept nogil:
        """The request's fields are complete: send it behind what was published before it, or keep it for the next session."""
        if self.phase == PHASE_UP:
            self.flush_before(now)
            request_write(request, &self.header, &self.z.out, self.session, self.incarnation)
            if self.z.out.failed:
                self.break_off(BREAK_NO_MEMORY)

    cdef void forget(self, uint64_t number) noexcept nogil:
        cdef Request* request = requests_find(&self.requests, number)
        if request != NULL:
            if request.run != NULL:
                self.release_run(request.run)
                request.run = NULL
            if request.state == REQUEST_WAITING and request.sent:
                request.forgotten = True
            else:
                requests_remove(&self.requests, request)

    # ---- consumers

    cdef ConsumerState* consumer(self, uint32_t number) noexcept nogil:
        return <ConsumerState*> <size_t> idmap_get(&self.consumers, number, 0) if number else NULL

    cdef ConsumerState* consume(self, const char* queue, size_t queue_size, uint32_t window_messages, uint64_t window_bytes,
                                bint auto_ack, uint64_t now) noexcept nogil:
        """A new consumer; CONSUME goes now, or with the next session. Its outcome is its phase."""
        cdef ConsumerState* c = consumer_new(self.next_consumer, queue, queue_size, window_messages, window_bytes, auto_ack)
        if c == NULL:
            return NULL
        if not idmap_put(&self.consumers, c.number, <uint64_t> <size_t> c):
            consumer_free(c)
            return NULL
        self.next_consumer += 1
        self.set_settle_due()
        if self.phase == PHASE_UP:
            self.consume_again(c, now)
        return c

    cdef void consume_again(self, ConsumerState* c, uint64_t now) noexcept nogil:
        """[CONSUME, .., consumer, queue, window in messages, in bytes, options]"""
        cdef Request* request = self.ask(CONSUME)
        c.retry_ns = 0
        if request == NULL:
            self.break_off(BREAK_NO_MEMORY)
            return
        request.consumer = c.number
        request.fields_count = 5
        mp_uint(&request.fields, c.number)
        mp_str(&request.fields, c.queue.data, <uint32_t> c.queue.size)
        mp_uint(&request.fields, c.window_messages)
        mp_uint(&request.fields, c.window_bytes)
        mp_map(&request.fields, 0)
        c.request = request.number
        self.asked(request, now)

    cdef Run* take_run(self, ConsumerState* c) noexcept nogil:
        """The consumer's oldest waiting run, acknowledged if that is its way; the caller's from now on. NULL: none."""
        cdef Run* run = consumer_take(c)
        if run != NULL and c.auto_ack and not run.acked:
            settles_ack(&self.settles, run.shard, run.epoch, run.first_n, run.first_n + run.count - 1)
            run.acked = True
        return run

    cdef void release_run(self, Run* run) noexcept nogil:
        if run.generation == self.generation and self.phase >= PHASE_UP:
            settles_release(&self.settles, run)
        self.free_run(run)

    cdef void free_run(self, Run* run) noexcept nogil:
        if run != NULL:
            blocks_give(&self.blocks, run.block, run.block_room)
            run.block = NULL
            run_free(run)

    cdef void close_consumer(self, ConsumerState* c, uint64_t now) noexcept nogil:
        """CANCEL first, so that what is released does not come back at once; what waits is released behind it."""
        cdef Request* request
        cdef Run* run
        if c.phase >= CONSUMER_CLOSING:
            return
        if self.phase != PHASE_UP or (c.phase == CONSUMER_STARTING and c.request == 0):
            consumer_drop(c)
            consumer_end(c, NULL, 0, NULL, 0)
            return
        request = self.ask(CANCEL)
        if request == NULL:
            self.break_off(BREAK_NO_MEMORY)
            return
        request.consumer = c.number
        request.fields_count = 1
        mp_uint(&request.fields, c.number)
        c.phase = CONSUMER_CLOSING
        c.request = request.number
        self.asked(request, now)
        run = consumer_take(c)
        while run != NULL:
            self.release_run(run)
            run = consumer_take(c)
        if self.settles.ranges:
            self.flush_settles()

    cdef void drop_consumer(self, ConsumerState* c, uint64_t now) noexcept nogil:
        c.held = False
        self.close_consumer(c, now)
        if c.phase == CONSUMER_ENDED:
            idmap_remove(&self.consumers, c.number)
            consumer_free(c)
            self.set_settle_due()

    cdef void sweep_consumers(self) noexcept nogil:
        """Free those that have ended and that nobody holds."""
        cdef ConsumerState* c
        cdef size_t i = 0
        while self.consumers.count and i <= self.consumers.mask:
            c = <ConsumerState*> <size_t> self.consumers.entries[i].value
            if self.consumers.entries[i].key and c.phase == CONSUMER_ENDED and not c.held:
                idmap_remove(&self.consumers, c.number)
                consumer_free(c)
                i = 0                                   # removing moves entries, and may shrink the map
            else:
                i += 1
        self.set_settle_due()

    cdef void set_settle_due(self) noexcept nogil:
        cdef ConsumerState* c
        cdef size_t i
        self.settle_due = CONSUMER_WINDOW_MAX
        if self.consumers.count == 0:
            return
        for i in range(self.consumers.mask + 1):
            if self.consumers.entries[i].key:
                c = <ConsumerState*> <size_t> self.consumers.entries[i].value
                if c.phase <= CONSUMER_ACTIVE:
                    self.settle_due = min(self.settle_due, (c.window_messages + 1) // 2)
