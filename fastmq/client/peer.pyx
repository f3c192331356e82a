"""What both connections of a client share: see peer.pxd."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from fastmq.wire.blocks cimport blocks_free
from fastmq.wire.buffer cimport buffer_clear, buffer_free
from fastmq.wire.msgpack cimport mp_array, mp_str
from fastmq.wire.zmtp cimport (
    ZMTP_MESSAGE, ZMTP_OPENED, ZMTP_STATE_GREETING, ZMTP_STATE_HANDSHAKE, ZMTP_STATE_OPEN, ZMTP_WAIT, zmtp_drop_unsent,
    zmtp_free, zmtp_next, zmtp_received, zmtp_room, zmtp_start, zmtp_take_unsent, zmtp_unsent,
)

import msgpack

REASONS = {
    -1: ("not-zeromq", "what answers there does not speak ZeroMQ's protocol, so it is no fastmq broker"),
    -2: ("not-zeromq", "what answers there speaks ZeroMQ's protocol before version 3"),
    -3: ("mechanism", "the broker wants the security mechanism {text}; this client speaks NULL"),
    -4: ("not-fastmq", "what answers there is a ZeroMQ socket of type {text!r}, not a fastmq broker"),
    -5: ("refused", "the broker refused the connection: {text}"),
    -6: ("bad-zmtp", "the broker sent malformed ZMTP"),
    -7: ("bad-zmtp", "the broker sent a frame larger than the protocol allows"),
    -8: ("bad-zmtp", "the broker sent a message of too many frames"),
    -9: ("no-memory", "there was no memory for what the broker sent"),
    BREAK_SILENT: ("silent", "the broker was silent for 15 s"),
    BREAK_HANDSHAKE: ("not-zeromq", "the connection was accepted, but nothing like a fastmq broker answered"),
    BREAK_PROTOCOL: ("bad-protocol", "the broker sent something that the protocol does not allow"),
    BREAK_SESSION: ("no-session", "the broker does not know this session any more"),
    BREAK_ENDED: ("closed-by-broker", "the broker closed the connection"),
    BREAK_UNWELCOME: ("unwelcome", "the connection was closed during the handshake, as a broker does whose security mechanism is not NULL, "
                      "or something that is no broker"),
    BREAK_NO_MEMORY: ("no-memory", "there was no memory"),
}


cdef tuple reason_of(int broken, bytes said, bytes text):
    """(code, sentence) for a Break or ZmtpEvent, with what the peer said; None for 0."""
    if not broken:
        return None
    if broken == BREAK_REFUSED:
        return tuple(msgpack.unpackb(said, unicode_errors="replace"))
    code, sentence = REASONS.get(broken, ("broken", "the connection broke"))
    return code, sentence.format(text=text.decode("ascii"))


cdef class Peer:
    """The base of ClientCore and EventsCore."""

    def __dealloc__(self):
        zmtp_free(&self.z)
        blocks_free(&self.blocks)
        buffer_free(&self.said)

    cdef void start(self, uint64_t now) noexcept nogil:
        zmtp_start(&self.z)
        self.broken = 0
        self.started = True
        self.started_ns = now
        self.heard_ns = now
        self.generation += 1

    cdef void stop(self, uint64_t now) noexcept nogil:
        self.started = False
        zmtp_drop_unsent(&self.z)

    cdef void digest(self, uint64_t now) noexcept nogil:
        cdef int event
        self.heard_ns = now
        if self.blocks.size and now >= self.large_ns + IDLE_NS:        # a PING comes each 5 s
            blocks_free(&self.blocks)
        while not self.broken:
            event = zmtp_next(&self.z)
            if event == ZMTP_MESSAGE:
                self.on_message(now)
            elif event == ZMTP_WAIT:
                break
            elif event == ZMTP_OPENED:
                self.on_opened(now)
            else:
                self.break_off(event)
        if self.z.out.failed:
            self.break_off(BREAK_NO_MEMORY)

    cdef uint64_t tick(self, uint64_t now) noexcept nogil:
        if not self.started or self.broken:
            return NEVER
        if self.z.state != ZMTP_STATE_OPEN:
            if now >= self.started_ns + HANDSHAKE_NS:
                self.break_off(BREAK_HANDSHAKE)
            return self.started_ns + HANDSHAKE_NS
        if not self.wants_input():
            self.heard_ns = now                             # nobody listens: silence says nothing
        elif now >= self.heard_ns + SILENCE_NS:
            self.break_off(BREAK_SILENT)
        return self.heard_ns + SILENCE_NS

    cdef bint wants_input(self) noexcept nogil:
        return True

    cdef void flush(self, uint64_t now) noexcept nogil:
        pass

    cdef void flush_rest(self, uint64_t now) noexcept nogil:
        pass

    cdef bint flush_due(self, uint64_t now) noexcept nogil:
        self.flush(now)
        return False

    cdef bint met(self, int what, uint64_t which) noexcept nogil:
        if what == WAIT_SENT:
            return zmtp_unsent(&self.z) == 0
        return what == WAIT_UP and self.z.state == ZMTP_STATE_OPEN

    cdef void break_off(self, int why) noexcept nogil:
        if not self.broken:
            self.broken = why

    cdef void ended(self) noexcept nogil:
        if self.z.state == ZMTP_STATE_GREETING or self.z.state == ZMTP_STATE_HANDSHAKE:
            self.break_off(BREAK_UNWELCOME)
        else:
            self.break_off(BREAK_ENDED)

    cdef void refuse(self, const uint8_t* code, uint32_t code_size, const uint8_t* text, uint32_t text_size) noexcept nogil:
        buffer_clear(&self.said)
        mp_array(&self.said, 2)
        mp_str(&self.said, code, code_size)
        mp_str(&self.said, text, text_size)
        self.break_off(BREAK_REFUSED)

    cdef void on_opened(self, uint64_t now) noexcept nogil:
        pass

    cdef void on_message(self, uint64_t now) noexcept nogil:
        pass

    # ---- for Python: the simulation, tests, and the asyncio client

    def connected(self, uint64_t now):
        """The transport is connected: begin the handshake (take_output has the greeting)."""
        self.start(now)

    def disconnected(self, uint64_t now):
        """The transport is gone, or is cut because `broken` says so."""
        self.stop(now)

    def feed(self, const uint8_t[::1] data, uint64_t now):
        """Digest received bytes. Hostile ones end in `broken`, never in an exception."""
        cdef uint8_t* at
        if data.shape[0] and not self.broken:
            at = zmtp_room(&self.z, data.shape[0])
            if at == NULL:
                self.break_off(BREAK_NO_MEMORY)
                return
            memcpy(at, &data[0], data.shape[0])
            zmtp_received(&self.z, data.shape[0])
            self.digest(now)

    def run(self, uint64_t now):
        """Do what time makes due; the time (ns) of the next call."""
        return self.tick(now)

    def take_unsent(self):
        """The bytes to send, which count as sent."""
        return zmtp_take_unsent(&self.z)

    @property
    def why_broken(self):
        """(code, sentence) saying why the connection must be cut; None while it is good."""
        return reason_of(self.broken, <bytes> self.said.data[:self.said.size] if self.said.size else b"", <bytes> self.z.text)

    @property
    def current_generation(self):
        return self.generation
