"""What a front-end has to send: frames of sessions, in order, and frames that belong to no session.

Owns: the sessions' memory and the lists in which they wait for their turn. Rules: what a client does not take waits for it alone, holds up
nobody else, and is bounded: past REPLIES_WAITING_MAX frames that are not deliveries the session ends; outcomes are told at most once a turn;
an answer to a request that belongs to no session goes to the connection it came from. Runs in front-ends.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

import msgpack

from fastmq.server.session cimport (
    CODES,
    REPLIES_WAITING_MAX, address_same, frame_free, frame_make, list_add, list_add_first, list_take, session_append, session_confirm,
    session_drop_first, session_finish_delivery, session_free, session_header, session_take_first, write_run,
)
from fastmq.server.workers cimport padded
from fastmq.wire.buffer cimport buffer_add, buffer_free, buffer_init
from fastmq.wire.idmap cimport idmap_free, idmap_get
from fastmq.wire.link cimport LinkDeliver, LinkRun
from fastmq.wire.msgpack cimport mp_array, mp_bin, mp_nil, mp_str, mp_uint
from fastmq.wire.verbs cimport CANCELLED, CLOSING, ERROR, REPLY

from fastmq.errors import CODE_OF_NUMBER, TEXT_OF_NUMBER


cdef extern from "<sys/socket.h>" nogil:
    int shutdown(int fd, int how)
    int SHUT_RDWR


cdef enum:
    STRAYS_MAX = 4096                   # frames without a session that may wait in one turn
    LATER_MS = 2                        # see RANGES_WAIT_NS
    TEXT_SIZE_MAX = 1024                # bytes of an error's sentence


cdef bytes short_text(str text):
    """The sentence of an error, cut where it would be long, packed."""
    raw = text.encode("utf-8", "replace")
    return msgpack.packb(text if len(raw) <= TEXT_SIZE_MAX else raw[:TEXT_SIZE_MAX].decode("utf-8", "ignore") + "...")


cdef class Outbox:
    """Frames of sessions on their way out. `Sessions` is one."""

    def __cinit__(self, *args, **kwargs):
        cdef int number
        cdef bytes code, text
        self._codes_kept = []
        if max(CODE_OF_NUMBER) >= CODES:
            raise ValueError("session.pxd has too few CODES")
        for number in CODE_OF_NUMBER:
            code = CODE_OF_NUMBER[number].encode()
            text = TEXT_OF_NUMBER[number].encode()
            self._codes_kept += [code, text]
            self.codes[number].code = code
            self.codes[number].code_size = len(code)
            self.codes[number].text = text
            self.codes[number].text_size = len(text)

    def __dealloc__(self):
        cdef size_t i
        cdef Frame* f
        cdef Session* s
        self.retry_later()
        s = list_take(&self.ready)
        while s != NULL:                        # those that have ended stand in no map any more
            s.listed = False
            self.free_if_ended(s)
            s = list_take(&self.ready)
        if self.by_sid.entries != NULL:
            for i in range(self.by_sid.mask + 1):
                if self.by_sid.entries[i].key:
                    session_free(<Session*> <size_t> self.by_sid.entries[i].value)
        idmap_free(&self.by_sid)
        f = self.next_stray()
        while f != NULL:
            frame_free(f)
            f = self.next_stray()

    cdef Session* find(self, uint64_t sid) noexcept nogil:
        """The session of this public half, or NULL."""
        return <Session*> <size_t> idmap_get(&self.by_sid, sid, 0) if sid else NULL

    # ---- what is sent

    cdef void list_ready(self, Session* s) noexcept nogil:
        if not s.listed and not s.waiting:
            s.listed = True
            list_add(&self.ready, s)

    cdef void list_delivery(self, Session* s) noexcept nogil:
        """Its consumer waits for this, perhaps somebody behind that too: it goes before outcomes."""
        if not s.listed and not s.waiting:
            s.listed = True
            list_add_first(&self.ready, s)

    cdef void free_if_ended(self, Session* s) noexcept nogil:
        if s.ended and not s.listed and not s.later:
            session_free(s)

    cdef Session* next_ready(self) noexcept nogil:
        """A session that has frames to be sent, taken off the list; NULL when there is none. What the client does not take: `hold`."""
        cdef Session* s = list_take(&self.ready)
        while s != NULL:
            s.listed = False
            if not s.ended and s.address.fd >= 0:
                if not session_finish_delivery(s):
                    self.out_of_memory = True
                if s.account.due and not s.account.telling and not session_confirm(s, self.codes, self.now_ns, self.closing):
                    self.out_of_memory = True
                if s.account.due and not s.account.telling and not s.later:
                    s.later = True
                    s.next_later = self.later
                    self.later = s
                if s.first != NULL:
                    return s
            self.free_if_ended(s)
            s = list_take(&self.ready)
        return NULL

    cdef void sent(self, Session* s) noexcept nogil:
        """All frames of a session from `next_ready` have left."""
        if s.account.due and not s.later:
            self.list_ready(s)

    cdef void hold(self, Session* s) noexcept nogil:
        """A session from `next_ready` whose client takes no more until `release`."""
        s.waiting = True

    cdef void release(self, Session* s) noexcept nogil:
        """The client takes something again."""
        s.waiting = False
        self.list_ready(s)

    cdef void retry_later(self) noexcept nogil:
        """Tell what was to be told a little later."""
        cdef Session* s = self.later
        cdef Session* after
        self.later = NULL
        while s != NULL:
            after = s.next_later
            s.later = False
            self.list_ready(s)
            s = after

    cdef int wait_at_most(self) noexcept nogil:
        """Milliseconds after which `retry_later` should be called; -1: it has nothing to do."""
        return LATER_MS if self.later != NULL else -1

    cdef void bound_waiting(self, uint64_t size_max) noexcept nogil:
        """End the sessions for which most waits until it is no more than `size_max` bytes in all."""
        cdef uint64_t total, size, largest
        cdef Session* s
        cdef Session* worst
        cdef size_t i
        while True:
            total = 0
            largest = 0
            worst = NULL
            for i in range(self.by_sid.mask + 1 if self.by_sid.count else 0):
                s = <Session*> <size_t> self.by_sid.entries[i].value
                if self.by_sid.entries[i].key == 0 or s.address.fd < 0:
                    continue
                size = s.frames_size + s.records.size
                total += size
                if size > largest:
                    largest = size
                    worst = s
            if total <= size_max or worst == NULL:
                return
            self.end_slow(worst)

    cdef void end_slow(self, Session* s) noexcept nogil:
        """The client does not read: end its session, and its connection."""
        self.too_slow += 1
        if self.cuts_connections:
            shutdown(s.address.fd, SHUT_RDWR)
        self.lose(s)

    cdef void lose(self, Session* s) noexcept with gil:
        self.vanish(s)

    cdef void vanish(self, Session* s):
        """End what a session does on its connection, which is gone or is not to be served; `Sessions` does it."""

    cdef Frame* next_stray(self) noexcept nogil:
        """A frame that belongs to no session, the caller's from now on; NULL when there is none."""
        cdef Frame* f = self.strays
        if f != NULL:
            self.strays = f.next
            self.strays_count -= 1
        return f

    cdef void add_frame(self, Session* s, Buffer* header, Buffer* records) noexcept nogil:
        """Queue a frame behind everything that waits for the session, and take what the buffers hold."""
        cdef Frame* f = frame_make(header, records) if s.address.fd >= 0 and session_finish_delivery(s) else NULL
        if f == NULL:
            self.out_of_memory = self.out_of_memory or s.address.fd >= 0
            buffer_free(header)
            if records != NULL:
                buffer_free(records)
            return
        session_append(s, f)
        self.list_ready(s)
        if s.replies > REPLIES_WAITING_MAX:
            self.end_slow(s)

    cdef void add_stray(self, const Source* source, Buffer* header) noexcept nogil:
        cdef Frame* f = frame_make(header, NULL) if self.strays_count < STRAYS_MAX else NULL
        if f == NULL:
            self.strays_dropped += 1
            buffer_free(header)
            return
        f.address = source.address
        self.append_stray(f)

    cdef void append_stray(self, Frame* f) noexcept nogil:
        if self.strays == NULL:
            self.strays = f
        else:
            self.strays_last.next = f
        self.strays_last = f
        self.strays_count += 1

    cdef void keep_begun(self, Session* s) noexcept nogil:
        """Of what waits for the session only the frame of which a part has left is still sent: its connection may live on."""
        cdef Frame* f
        if s.first != NULL and s.first.sent:
            f = session_take_first(s)
            f.address = s.address
            self.append_stray(f)

    cdef void error_head(
        self, Session* s, const Source* source, uint32_t code, uint64_t incarnation, Buffer* header
    ) noexcept nogil:
        """[ERROR, public half, incarnation, request number or nil, code, and the text is still to come."""
        cdef uint8_t[8] public
        cdef int i
        for i in range(8):
            public[i] = <uint8_t> (source.sid >> (56 - 8 * i))
        buffer_init(header)
        mp_array(header, 6)
        mp_uint(header, ERROR)
        mp_bin(header, public, 8 if source.readable and source.has_session else 0)
        mp_uint(header, incarnation if source.readable else 0)
        if source.has_number:
            mp_uint(header, source.number)
        else:
            mp_nil(header)
        mp_str(header, self.codes[code].code, self.codes[code].code_size)

    cdef void add_error(self, Session* s, const Source* source, Buffer* header) noexcept nogil:
        """Send it to whom sent the request in hand: in order with the session's frames, if it is the session's connection."""
        if s != NULL and address_same(&s.address, &source.address):
            self.add_frame(s, header, NULL)
        else:
            self.add_stray(source, header)

    cdef void answer_code(self, Session* s, const Source* source, uint32_t code, uint64_t incarnation) noexcept nogil:
        """ERROR with the general text of a code, for no certain request; `s` NULL: outside any session."""
        cdef Buffer header
        if s != NULL and s.waiting:
            return                      # its client does not read, and what it missed by this it learns from the next answer
        self.error_head(s, source, code, incarnation, &header)
        mp_str(&header, self.codes[code].text, self.codes[code].text_size)
        self.add_error(s, source, &header)

    cdef void refuse(self, Session* s, const Source* source, int code, str text):
        """As `answer_code`, with a sentence of its own."""
        cdef Buffer header
        cdef bytes sentence = short_text(text)
        self.error_head(s, source, code, s.incarnation if s != NULL else source.incarnation, &header)
        buffer_add(&header, <const char*> sentence, len(sentence))
        self.add_error(s, source, &header)

    cdef void say(self, Session* s, int verb, int fields, bytes packed):
        """A frame [verb, public half, incarnation, and these fields, packed one behind the other]."""
        cdef Buffer header
        buffer_init(&header)
        session_header(s, &header, verb, fields)
        buffer_add(&header, <const char*> packed, len(packed))
        self.add_frame(s, &header, NULL)

    cdef void flush_outcomes(self, Session* s) noexcept nogil:
        """Tell all that is decided, before the account is voided or the session ends."""
        if s.account.due and s.address.fd >= 0:
            if not session_finish_delivery(s) or not session_confirm(s, self.codes, self.now_ns, True):
                self.out_of_memory = True
            self.list_ready(s)

    # ---- answers to requests, from Python (server/requests.py). `hello`: the session's when it asked; after another HELLO nobody waits

    def answer(self, sid: int, hello: int, request: int, result) -> None:
        """REPLY."""
        cdef Session* s = self.find(sid)
        if s != NULL and s.hello == hello:
            self.say(s, REPLY, 2, msgpack.packb(request) + msgpack.packb(result))

    def answer_packed(self, sid: int, hello: int, request: int, bytes result) -> None:
        """REPLY, with a result that is msgpack already."""
        cdef Session* s = self.find(sid)
        if s != NULL and s.hello == hello:
            self.say(s, REPLY, 2, msgpack.packb(request) + result)

    def answer_message(self, sid: int, hello: int, request: int, bytes payload) -> None:
        """REPLY to a GET: `payload` is what stands behind LinkReply: LinkDeliver with one run, or none."""
        cdef Session* s = self.find(sid)
        cdef const LinkDeliver* head = <const LinkDeliver*> <const char*> payload
        cdef const LinkRun* run = <const LinkRun*> (head + 1)
        cdef const uint8_t* names
        cdef Buffer header, records
        if s == NULL or s.hello != hello:
            return
        if <size_t> len(payload) < sizeof(LinkDeliver) or head.runs == 0:
            self.say(s, REPLY, 2, msgpack.packb(request) + b"\xc0")
            return
        names = <const uint8_t*> (run + 1)
        buffer_init(&header)
        buffer_init(&records)
        session_header(s, &header, REPLY, 2)
        mp_uint(&header, request)
        write_run(&header, run, names + run.exchange_offset)
        buffer_add(&records, names + padded(head.names_size), head.records_size)
        self.add_frame(s, &header, &records)

    def answer_error(self, sid: int, hello: int, request: int | None, code: str, text: str) -> None:
        """ERROR for a request."""
        cdef Session* s = self.find(sid)
        if s != NULL and s.hello == hello:
            self.say(s, ERROR, 3, msgpack.packb(request) + msgpack.packb(code) + short_text(text))

    def tell_cancelled(self, sid: int, consumer: int, code: str, text: str) -> None:
        """CANCELLED: a consumer has ended, not by its client's wish."""
        cdef Session* s = self.find(sid)
        if s != NULL:
            self.say(s, CANCELLED, 3, msgpack.packb(consumer) + msgpack.packb(code) + short_text(text))

    def close_sessions(self) -> None:
        """Tell every client what its publishes have come to, and that this broker is stopping."""
        cdef size_t i
        cdef Session* s
        for i in range(self.by_sid.mask + 1 if self.by_sid.count else 0):
            s = <Session*> <size_t> self.by_sid.entries[i].value
            if self.by_sid.entries[i].key and s.address.fd >= 0:
                self.flush_outcomes(s)
                self.say(s, CLOSING, 2, msgpack.packb("closing-down") + msgpack.packb("the broker is stopping"))

    def is_connected(self, sid: int) -> bool:
        """Whether a session is known and has a connection."""
        cdef Session* s = self.find(sid)
        return s != NULL and s.address.fd >= 0

    # ---- for tests and the simulation

    def take_frames(self, refuse=()) -> list[tuple[tuple[int, int], bytes, bytes | None]]:
        """(address, header, records or None) of all frames; those for an address in `refuse` wait, as if its client did not read."""
        cdef Session* s
        cdef Frame* f
        found = []
        cdef size_t i
        self.retry_later()
        for i in range(self.by_sid.mask + 1 if self.by_sid.count else 0):
            if self.by_sid.entries[i].key and (<Session*> <size_t> self.by_sid.entries[i].value).waiting:
                self.release(<Session*> <size_t> self.by_sid.entries[i].value)
        s = self.next_ready()
        while s != NULL:
            address = s.address.fd, s.address.number
            if address in refuse:
                self.hold(s)
            else:
                while s.first != NULL:
                    found.append((address, _header_of(s.first), _records_of(s.first)))
                    session_drop_first(s)
                self.sent(s)
            s = self.next_ready()
        f = self.next_stray()
        while f != NULL:
            found.append(((f.address.fd, f.address.number), _header_of(f), _records_of(f)))
            frame_free(f)
            f = self.next_stray()
        return found


cdef bytes _header_of(Frame* f):
    return (<const char*> f.header)[:f.header_size]


cdef object _records_of(Frame* f):
    return (<const char*> f.records)[:f.records_size] if f.records != NULL else None
