"""One session of a client, without I/O: what the broker says. See core.pxd."""
cimport cython
from cpython.ref cimport PyObject
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from fastmq.client.deliveries cimport (
    CONSUMER_ACTIVE, CONSUMER_CLOSING, CONSUMER_ENDED, CONSUMER_STARTING, RUN_TAKEN_MIN, ConsumerState, Run, consumer_add, consumer_end,
    consumer_forget_void, run_exchange, run_free, run_read, settles_ack,
)
from fastmq.client.peer cimport BREAK_NO_MEMORY, BREAK_PROTOCOL, BREAK_SESSION
from fastmq.client.publishes cimport (
    BATCH_RECORDS_MAX, PUBLISH_NO_MEMORY, WINDOW_BATCHES, publishes_add, publishes_advance, publishes_confirm, publishes_detach, publishes_drop,
    publishes_floor, publishes_refuse, publishes_restart, publishes_sent_up_to,
)
from fastmq.client.requests cimport (
    REQUEST_DONE, REQUEST_FAILED, REQUEST_WAITING, Request, request_fail, request_write, requests_find, requests_remove,
)
from fastmq.client.session cimport (
    AGE_MAX_NS, CONSUME_RETRY_NS, PHASE_GREETED, PHASE_LEAVING, PHASE_UP, Session,
)
from fastmq.wire.buffer cimport buffer_add, buffer_clear
from fastmq.wire.msgpack cimport (
    Reader, mp_read_array, mp_read_bin, mp_read_nil, mp_read_str, mp_read_u32, mp_read_uint, mp_skip, reader_init,
)
from fastmq.wire.records cimport Record, record_read
from fastmq.wire.verbs cimport (
    CANCELLED, CLOSING, CONFIRM, DELIVER, ERROR, GET, MANDATORY, REPLY, RESEND, WELCOME,
)
from fastmq.wire.zmtp cimport zmtp_frame, zmtp_take_block

import msgpack


cdef inline bint is_code(const uint8_t* code, uint32_t size, const char* name, uint32_t name_size) noexcept nogil:
    return size == name_size and memcmp(code, name, size) == 0


cdef inline bint is_passing(const uint8_t* code, uint32_t size) noexcept nogil:
    """Whether an answer says that the same request will be possible again by itself."""
    return is_code(code, size, b"unavailable", 11) or is_code(code, size, b"closing-down", 12)


cdef inline bint is_session_code(const uint8_t* code, uint32_t size) noexcept nogil:
    return (is_code(code, size, b"no-session", 10) or is_code(code, size, b"bad-incarnation", 15) or is_code(code, size, b"stale", 5))


@cython.final
cdef class ClientCore(Session):
    """The protocol of one session without I/O: bytes in (`feed`), bytes out (`take_output`), `now` in nanoseconds as a parameter."""

    cdef void on_message(self, uint64_t now) noexcept nogil:
        """[verb, public half of the session, incarnation, fields...] and perhaps records."""
        cdef Reader r, records
        cdef uint32_t fields, verb, sid_size = 0
        cdef uint64_t incarnation
        cdef const uint8_t* sid
        reader_init(&r, zmtp_frame(&self.z, 0), self.z.frame[0].size)
        if self.z.frames == 2:
            reader_init(&records, zmtp_frame(&self.z, 1), self.z.frame[1].size)
        else:
            reader_init(&records, r.end, 0)
        fields = mp_read_array(&r)
        verb = mp_read_u32(&r)
        sid = mp_read_bin(&r, &sid_size)
        incarnation = mp_read_uint(&r)
        if r.error or fields < 3 or self.z.frames > 2:
            self.break_off(BREAK_PROTOCOL)
        elif verb != WELCOME and verb != ERROR and verb != CLOSING and (
                self.phase < PHASE_UP or sid_size != 8 or memcmp(sid, self.session, 8) != 0):
            self.strange += 1
        elif not self.dispatch(verb, incarnation, &r, fields - 3, &records, now) or r.error:
            self.break_off(BREAK_PROTOCOL)

    cdef bint dispatch(self, uint32_t verb, uint64_t incarnation, Reader* r, uint32_t fields, Reader* records, uint64_t now) noexcept nogil:
        """False: it is not what the protocol allows. Later versions may append fields; an unknown verb is passed over."""
        if verb == DELIVER:
            return fields >= 1 and self.on_deliver(r, records)
        if verb == CONFIRM:
            return fields >= 5 and self.on_confirm(incarnation, r, now)
        if verb == REPLY:
            return fields >= 2 and self.on_reply(r, records, now)
        if verb == ERROR:
            return fields >= 3 and self.on_error(incarnation, r, now)
        if verb == WELCOME:
            return fields >= 6 and self.on_welcome(incarnation, r, now)
        if verb == RESEND:
            return fields >= 2 and self.on_resend(incarnation, r, now)
        if verb == CANCELLED:
            return fields >= 3 and self.on_cancelled(r)
        if verb == CLOSING:
            if self.phase == PHASE_UP:
                self.phase = PHASE_LEAVING
                self.publishes.ready = False
        else:
            self.strange += 1
        return True

    cdef bint on_welcome(self, uint64_t incarnation, Reader* r, uint64_t now) noexcept nogil:
        """session, version, limits, window in messages, in bytes, events endpoint"""
        cdef uint32_t session_size = 0, endpoint_size = 0
        cdef uint64_t messages, size
        cdef const uint8_t* session = mp_read_bin(r, &session_size)
        cdef const uint8_t* endpoint
        cdef Request* request
        cdef ConsumerState* c
        cdef size_t i
        mp_skip(r)
        mp_skip(r)
        messages = mp_read_uint(r)
        size = mp_read_uint(r)
        endpoint = mp_read_str(r, &endpoint_size)
        if r.error or session_size != 16:
            return False
        if self.phase != PHASE_GREETED or self.session_known and (
                incarnation != self.incarnation or memcmp(session, self.session, 16) != 0):
            self.strange += 1
            return True
        if not self.session_known:
            self.sessions += 1
        memcpy(self.session, session, 16)
        self.session_known = True
        self.incarnation = incarnation
        self.phase = PHASE_UP
        self.welcomes += 1
        buffer_clear(&self.endpoint)
        buffer_add(&self.endpoint, endpoint, endpoint_size)
        self.publishes.limit_messages = messages
        self.publishes.limit_bytes = size
        self.publishes.batch_messages = max(1, min(messages // WINDOW_BATCHES, BATCH_RECORDS_MAX))
        self.begin_incarnation(messages, size, now)
        self.flush_before(now)                          # what was published before it was asked goes before it
        request = self.requests.first
        while request != NULL:
            if request.state == REQUEST_WAITING and not request.sent:
                request_write(request, &self.header, &self.z.out, self.session, self.incarnation)
            request = request.next
        if self.consumers.count:
            for i in range(self.consumers.mask + 1):
                c = <ConsumerState*> <size_t> self.consumers.entries[i].value
                if self.consumers.entries[i].key and c.phase == CONSUMER_STARTING:
                    self.consume_again(c, now)
        return True

    cdef void begin_incarnation(self, uint64_t window_messages, uint64_t window_bytes, uint64_t now) noexcept nogil:
        self.publishes.window_messages = window_messages
        self.publishes.window_bytes = window_bytes
        self.publishes.ready = self.phase == PHASE_UP
        publishes_restart(&self.publishes, now, AGE_MAX_NS)

    cdef bint on_confirm(self, uint64_t incarnation, Reader* r, uint64_t now) noexcept nogil:
        """up_to, [[first, last]...], [[first, last, code, text]...], window in messages, in bytes"""
        cdef uint64_t up_to = mp_read_uint(r), first, last, messages, size
        cdef uint32_t count = mp_read_array(r), _i
        cdef Reader ranges = r[0]
        for _i in range(count):
            mp_skip(r)
        if r.error or not self.on_refusals(r):          # refusals first: `up_to` and the ranges may reach over them
            return False
        for _i in range(count):
            if mp_read_array(&ranges) != 2:
                return False
            first = mp_read_uint(&ranges)
            last = mp_read_uint(&ranges)
            if ranges.error or first > last:
                return False
            if not publishes_confirm(&self.publishes, first, last):
                self.break_off(BREAK_NO_MEMORY)
        messages = mp_read_uint(r)
        size = mp_read_uint(r)
        if r.error:
            return False
        up_to = min(up_to, publishes_sent_up_to(&self.publishes))
        if not publishes_confirm(&self.publishes, 0, up_to):
            self.break_off(BREAK_NO_MEMORY)
        publishes_advance(&self.publishes)
        if incarnation == self.incarnation:
            self.publishes.window_messages = max(self.publishes.window_messages, messages)
            self.publishes.window_bytes = max(self.publishes.window_bytes, size)
        self.flush(now)
        return True

    cdef bint on_refusals(self, Reader* r) noexcept nogil:
        cdef uint32_t count = mp_read_array(r), _i, code_size = 0, text_size = 0
        cdef uint64_t first, last
        cdef const uint8_t* code
        cdef const uint8_t* text
        for _i in range(count):
            if mp_read_array(r) != 4:
                return False
            first = mp_read_uint(r)
            last = mp_read_uint(r)
            code = mp_read_str(r, &code_size)
            text = mp_read_str(r, &text_size)
            if r.error or first > last:
                return False
            if not publishes_refuse(&self.publishes, first, last, code, code_size, text, text_size):
                self.break_off(BREAK_NO_MEMORY)
        return not r.error

    cdef bint on_resend(self, uint64_t incarnation, Reader* r, uint64_t now) noexcept nogil:
        """window in messages, in bytes: all that is open is to be sent again, in the incarnation of this message. Tags stay valid."""
        cdef uint64_t messages = mp_read_uint(r), size = mp_read_uint(r)
        if r.error:
            return False
        if incarnation > self.incarnation:
            self.incarnation = incarnation
            self.begin_incarnation(messages, size, now)
            self.flush(now)
        else:
            self.strange += 1
        return True

    cdef bint on_deliver(self, Reader* r, Reader* records) noexcept nogil:
        """[run...] with the records of all of them; what a consumer that has gone does not want goes back unseen."""
        cdef uint32_t count = mp_read_array(r), _i
        cdef size_t size = records.end - records.at
        cdef bint taken = count == 1 and size >= RUN_TAKEN_MIN and 2 * size >= self.z.received.size
        cdef bint malformed = False, at_once = False
        cdef ConsumerState* c
        cdef Run* run
        for _i in range(count):
            run = run_read(r, records, not taken, &self.run_home, &malformed)
            if malformed:
                return False
            if run != NULL and taken:
                run.block = zmtp_take_block(&self.z, &run.block_room)
                self.large_ns = self.heard_ns
            if run == NULL or taken and run.block == NULL:
                run_free(run)
                self.break_off(BREAK_NO_MEMORY)
                return True
            run.generation = self.generation
            c = self.consumer(run.consumer)
            if c == NULL or c.phase >= CONSUMER_CLOSING:
                self.release_run(run)
                at_once = True
                continue
            consumer_forget_void(c, run.epoch)          # the worker was restarted, and its window is whole again
            # Acknowledged on arrival, but only as much as one prefetch ahead of the application: the local buffer stays bounded.
            run.acked = c.auto_ack and (c.first == NULL or (
                c.waiting_messages + run.count <= c.window_messages and c.waiting_bytes + run.size <= c.window_bytes))
            if run.acked:
                at_once = True
                settles_ack(&self.settles, run.shard, run.epoch, run.first_n, run.first_n + run.count - 1)
            if not consumer_add(c, run):
                self.release_run(run)
                return False
        if at_once or self.settles.most >= self.settle_due:
            self.flush_settles()
        return records.at == records.end

    cdef bint on_reply(self, Reader* r, Reader* records, uint64_t now) noexcept nogil:
        """request, result"""
        cdef Request* request = requests_find(&self.requests, mp_read_uint(r))
        cdef const uint8_t* result = r.at
        cdef Reader run = r[0]
        cdef bint malformed = False
        mp_skip(r)
        if r.error:
            return False
        if request == NULL or request.state != REQUEST_WAITING:
            self.strange += 1
            return True
        if request.verb == GET and not mp_read_nil(&run):
            request.run = run_read(&run, records, True, &self.run_home, &malformed)
            if malformed:
                return False
            if request.run == NULL:
                self.break_off(BREAK_NO_MEMORY)
                return True
            request.run.generation = self.generation
        request.state = REQUEST_DONE
        buffer_add(&request.answer, result, r.at - result)
        self.on_answer(request, now)
        return True

    cdef bint on_error(self, uint64_t incarnation, Reader* r, uint64_t now) noexcept nogil:
        """request or nil, code, text"""
        cdef uint64_t number = 0
        cdef uint32_t code_size = 0, text_size = 0
        cdef const uint8_t* code
        cdef const uint8_t* text
        cdef Request* request
        if not mp_read_nil(r):
            number = mp_read_uint(r)
        code = mp_read_str(r, &code_size)
        text = mp_read_str(r, &text_size)
        if r.error:
            return False
        if number == 0:
            self.on_session_error(incarnation, code, code_size, text, text_size, now)
            return True
        request = requests_find(&self.requests, number)
        if self.phase < PHASE_UP or request == NULL or request.state != REQUEST_WAITING:
            self.strange += 1
        elif is_session_code(code, code_size):
            self.break_off(BREAK_SESSION)               # the request is repeated in the next session
        else:
            request_fail(request, code, code_size, text, text_size)
            self.on_answer(request, now)
        return True

    cdef void on_session_error(self, uint64_t incarnation, const uint8_t* code, uint32_t code_size,
                               const uint8_t* text, uint32_t text_size, uint64_t now) noexcept nogil:
        """Before WELCOME it answers HELLO, which stands alone on its connection. Later a session that has gone wrong begins on a new one."""
        if self.phase == PHASE_GREETED:
            if is_code(code, code_size, b"stale", 5):
                self.incarnation = max(self.incarnation, min(incarnation, <uint64_t> 1 << 62))
                self.say_hello(now)
            elif is_code(code, code_size, b"no-session", 10) and self.session_known:
                self.session_known = False
                self.say_hello(now)
            else:
                self.refuse(code, code_size, text, text_size)
        elif is_session_code(code, code_size):
            if not is_code(code, code_size, b"stale", 5) or incarnation > self.incarnation:     # else RESEND has told it already
                self.break_off(BREAK_SESSION)
        else:
            self.strange += 1

    cdef void on_answer(self, Request* request, uint64_t now) noexcept nogil:
        if request.consumer:
            self.on_consumer_answer(request, now)
            requests_remove(&self.requests, request)
        elif request.forgotten:
            if request.run != NULL:
                self.release_run(request.run)
                request.run = NULL
                self.flush_settles()
            requests_remove(&self.requests, request)

    cdef void on_consumer_answer(self, Request* request, uint64_t now) noexcept nogil:
        cdef ConsumerState* c = self.consumer(request.consumer)
        cdef Reader r
        cdef uint32_t code_size = 0, text_size = 0
        cdef const uint8_t* code
        cdef const uint8_t* text
        if c == NULL or c.request != request.number:
            return
        c.request = 0
        if c.phase == CONSUMER_CLOSING:
            consumer_end(c, NULL, 0, NULL, 0)
        elif request.state == REQUEST_DONE:
            c.phase = CONSUMER_ACTIVE
        else:
            reader_init(&r, request.answer.data, request.answer.size)
            mp_read_array(&r)
            code = mp_read_str(&r, &code_size)
            text = mp_read_str(&r, &text_size)
            if is_passing(code, code_size):
                c.retry_ns = now + CONSUME_RETRY_NS
                self.consume_at(c.retry_ns)
            else:
                consumer_end(c, code, code_size, text, text_size)
        self.sweep_consumers()

    cdef bint on_cancelled(self, Reader* r) noexcept nogil:
        """consumer, code, text: the broker ended it."""
        cdef ConsumerState* c = self.consumer(mp_read_u32(r))
        cdef uint32_t code_size = 0, text_size = 0
        cdef const uint8_t* code = mp_read_str(r, &code_size)
        cdef const uint8_t* text = mp_read_str(r, &text_size)
        if r.error:
            return False
        if c != NULL and c.phase != CONSUMER_ENDED:
            consumer_end(c, code, code_size, text, text_size)
            self.sweep_consumers()
        return True

    # ---- for Python: the simulation, tests, and the asyncio client

    def publish(self, str routing_key, bytes body, str exchange="", uint64_t now=0, *, bint mandatory=False, **properties):
        """Publish; the sequence, or None when the window is full. Sent by the next take_output."""
        cdef bytes key = routing_key.encode(), name = exchange.encode(), raw
        cdef uint64_t sequence
        raw = msgpack.packb(properties) if properties else b""
        sequence = publishes_add(&self.publishes, name, <uint8_t> len(name), MANDATORY if mandatory else 0, key, <uint8_t> len(key),
                                 <const char*> raw, len(raw), <const char*> body, len(body), <PyObject*> body)
        publishes_drop(self.publishes.dropped)
        self.publishes.dropped = NULL
        if sequence == PUBLISH_NO_MEMORY:
            raise MemoryError
        return sequence or None

    def request(self, uint32_t verb, fields, uint64_t now=0):
        """Ask; the request's number. `fields` are those behind it."""
        cdef Request* request = self.ask(verb)
        cdef bytes raw
        if request == NULL:
            raise MemoryError
        for field in fields:
            raw = msgpack.packb(field)
            buffer_add(&request.fields, <const char*> raw, len(raw))
            request.fields_count += 1
        self.asked(request, now)
        return request.number

    def answer(self, uint64_t number):
        """None while there is none; then once (result, delivery or None), or (None, code, text) for a refusal."""
        cdef Request* request = requests_find(&self.requests, number)
        if request == NULL or request.state == REQUEST_WAITING:
            return None
        value = msgpack.unpackb(<bytes> request.answer.data[:request.answer.size], unicode_errors="replace", strict_map_key=False)
        answer = (None, *value) if request.state == REQUEST_FAILED else (value, run_tuples(request.run) if request.run != NULL else None)
        requests_remove(&self.requests, request)
        return answer

    def abandon(self, uint64_t number):
        """Nobody waits for this answer any more."""
        self.forget(number)

    def begin_consumer(self, str queue, uint32_t prefetch=500, uint64_t window_bytes=1 << 26, bint auto_ack=False, uint64_t now=0):
        """Begin a consumer; its number."""
        cdef bytes name = queue.encode()
        cdef ConsumerState* c = self.consume(name, len(name), prefetch, window_bytes, auto_ack, now)
        if c == NULL:
            raise MemoryError
        return c.number

    def end_consumer(self, uint32_t number, uint64_t now=0):
        cdef ConsumerState* c = self.consumer(number)
        if c != NULL:
            self.close_consumer(c, now)

    def consumer_phase(self, uint32_t number):
        """(phase, [code, text] or None)"""
        cdef ConsumerState* c = self.consumer(number)
        if c == NULL:
            return CONSUMER_ENDED, None
        return c.phase, msgpack.unpackb(<bytes> c.ended.data[:c.ended.size], unicode_errors="replace") if c.ended.size else None

    def take_deliveries(self, uint32_t number):
        """What waits for the consumer: [(shard, epoch, n, generation, deliveries, exchange, routing key, properties, body, timestamp_ms)...]"""
        cdef ConsumerState* c = self.consumer(number)
        cdef Run* run
        found = []
        while c != NULL:
            run = self.take_run(c)
            if run == NULL:
                break
            found += run_tuples(run)
            run_free(run)
        return found

    def settle_tag(self, uint32_t shard, uint64_t epoch, uint64_t n, int action, uint64_t generation):
        """Settle a delivery: action 0 acknowledges, others are SettleAction. True: enough is settled to send it."""
        return self.settle(shard, epoch, n, action, generation)

    def take_output(self, uint64_t now):
        """Everything that can be sent now."""
        self.flush(now)
        out = self.take_unsent()
        while self.publishes.blocked:
            self.flush_rest(now)
            out += self.take_unsent()
        publishes_detach(&self.publishes)
        return out

    def take_failures(self):
        """Failed publishes, each once: [[sequence, code, text, exchange, routing key, message id or None]...]"""
        unpacker = msgpack.Unpacker(unicode_errors="replace")
        unpacker.feed(<bytes> self.publishes.failed.data[:self.publishes.failed.size] if self.publishes.failed.size else b"")
        buffer_clear(&self.publishes.failed)
        self.publishes.failures = 0
        return list(unpacker)

    def goodbye(self, uint64_t now=0):
        """Queue BYE behind all that can be sent."""
        self.bye(now)

    @property
    def state(self):
        """The Phase."""
        return self.phase

    @property
    def open_count(self):
        """Publishes without an outcome."""
        return self.publishes.open_messages

    @property
    def outstanding_count(self):
        """Publishes sent in this incarnation, without an outcome."""
        return self.publishes.outstanding

    @property
    def confirmed_count(self):
        return self.publishes.confirmed

    @property
    def floor(self):
        return publishes_floor(&self.publishes)

    @property
    def last_sequence(self):
        return self.publishes.next_seq - 1

    @property
    def current_incarnation(self):
        return self.incarnation

    @property
    def session_id(self):
        """The 16 bytes of the session id, b"" without a session."""
        return (<const char*> self.session)[:16] if self.session_known else b""

    @property
    def events_endpoint(self):
        return (<bytes> self.endpoint.data[:self.endpoint.size]).decode(errors="replace") if self.endpoint.size else ""

    @property
    def window(self):
        """((messages sent, that may be sent), (bytes sent, that may be sent)) in this incarnation."""
        return ((self.publishes.sent_messages, self.publishes.window_messages), (self.publishes.sent_bytes, self.publishes.window_bytes))


cdef run_tuples(Run* run):
    cdef Reader r
    cdef Record record
    cdef uint32_t i
    found = []
    exchange = (<bytes> run_exchange(run)[:run.exchange_size]).decode(errors="replace")
    reader_init(&r, run.records, run.size)
    for i in range(run.count):
        record_read(&r, &record)
        found.append((run.shard, run.epoch, run.first_n + i, run.generation, run.deliveries, exchange,
                      (<bytes> record.routing_key[:record.routing_key_size]).decode(errors="replace"),
                      msgpack.unpackb(<bytes> record.properties[:record.properties_size]) if record.properties_size else None,
                      <bytes> record.body[:record.body_size], run.timestamp_ms))
    run.taken = run.count
    return found
