# One ZMTP connection of a client as its cores see it: what both kinds (commands, events) share.
#
# Owns the ZMTP state and why the connection must be cut. Rules: no I/O, no clock, no GIL; whoever drives a Peer calls `start` when the
# transport is connected, puts received bytes into `z` and calls `digest`, sends what is in `z.out`, and calls `stop` when the transport
# is gone, or when `broken` is not 0 (and cuts it). Runs in client processes, under the mutex of the connection.
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmq.wire.blocks cimport Blocks
from fastmq.wire.buffer cimport Buffer
from fastmq.wire.zmtp cimport Zmtp


cdef enum:
    FRAME_SIZE_IN_MAX = 138412032           # bytes of a frame from the broker: its largest record and what goes with it
    HANDSHAKE_NS = 5000000000               # from the connection to READY
    IDLE_NS = 5000000000                    # after which blocks that only large messages need are given back
    SILENCE_NS = 15000000000                # without a byte from the broker, which pings every 5 s
    NEVER = 0x7fffffffffffffff


# Why a connection must be cut: a ZmtpEvent below 0, or one of these.
cpdef enum Break:
    BREAK_NONE = 0
    BREAK_SILENT = -20                      # nothing came for SILENCE_NS
    BREAK_HANDSHAKE = -21                   # nothing like ZMTP came for HANDSHAKE_NS
    BREAK_PROTOCOL = -22                    # the broker sent what the protocol does not allow
    BREAK_REFUSED = -23                     # HELLO was refused, as `said` says
    BREAK_SESSION = -24                     # the broker does not know this session on this connection any more
    BREAK_ENDED = -25                       # the other side closed the connection
    BREAK_NO_MEMORY = -26
    BREAK_UNWELCOME = -27                   # the other side closed the connection during the handshake


# What a caller waits for, with the number that `which` is then.
cdef enum Wait:
    WAIT_UP = 1                             # the session, or the handshake of an events connection, is agreed
    WAIT_REQUEST = 2                        # a request's number: it has its answer
    WAIT_ROOM = 3                           # bytes of a record: the window takes it
    WAIT_OUTCOME = 4                        # a sequence: it and those before it have outcomes
    WAIT_RUN = 5                            # a consumer's number: a run waits, or none will come
    WAIT_CONSUMING = 6                      # a consumer's number: CONSUME has its answer
    WAIT_CLOSED = 7                         # a consumer's number: it has ended
    WAIT_SENT = 8                           # nothing waits to be sent
    WAIT_EVENT = 9                          # a subscription's number: an event waits, or none will come
    WAIT_ACTIVE = 10                        # a subscription's number: it is active
    WAIT_WIDE = 11                          # bytes of a record: the window takes it, and a batch more


cdef class Peer:
    cdef Zmtp z
    cdef Blocks blocks                      # of z, used again
    cdef int broken                         # a Break or ZmtpEvent; 0: the connection is good, or there is none
    cdef bint started
    cdef uint64_t started_ns
    cdef uint64_t heard_ns                  # when bytes were digested last
    cdef uint64_t large_ns                  # when a large message came last
    cdef uint64_t generation                # raised by every start: what belongs to an earlier one is stale
    cdef Buffer said                        # msgpack [code, text]: what the broker said when it refused; kept until the next refusal

    cdef void start(self, uint64_t now) noexcept nogil
    cdef void stop(self, uint64_t now) noexcept nogil
    cdef void digest(self, uint64_t now) noexcept nogil
    cdef uint64_t tick(self, uint64_t now) noexcept nogil           # what time makes due; the time of the next call
    cdef bint wants_input(self) noexcept nogil
    cdef void flush(self, uint64_t now) noexcept nogil              # put what waits into z.out
    cdef void flush_rest(self, uint64_t now) noexcept nogil         # all of z.out has been sent: go on with what waited for that
    cdef bint flush_due(self, uint64_t now) noexcept nogil      # somebody is going to wait: flush what cannot linger; True: the rest lingers
    cdef bint met(self, int what, uint64_t which) noexcept nogil    # whether what a caller waits for (a Wait) is there
    cdef void break_off(self, int why) noexcept nogil
    cdef void ended(self) noexcept nogil                            # the other side closed the connection
    cdef void refuse(self, const uint8_t* code, uint32_t code_size, const uint8_t* text, uint32_t text_size) noexcept nogil
    # for the kinds:
    cdef void on_opened(self, uint64_t now) noexcept nogil          # ZMTP is agreed
    cdef void on_message(self, uint64_t now) noexcept nogil         # z.frame[0 .. z.frames - 1]


cdef tuple reason_of(int broken, bytes said, bytes text)
