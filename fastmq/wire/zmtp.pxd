# ZMTP 3.x (https://rfc.zeromq.org/spec/23/), the NULL mechanism, in the roles DEALER, SUB and ROUTER: bytes <-> messages of frames.
#
# Owns the bytes of one connection in both directions. Rules: no I/O, no clock, no GIL; a peer's sizes are limited before anything is
# allocated, and memory grows only as bytes arrive; a large body is not copied: somebody else's bytes can be attached to those that are to be
# sent, and who reads a large message may take the block it lies in; whatever the peer sends ends in a message, a command that is answered
# here, or an error, after which nothing more is read. Version 3.0 is announced, so that subscriptions are messages in both directions.
#
#   zmtp_start -> [zmtp_room, zmtp_received, (zmtp_next -> OPENED | MESSAGE | WAIT | an error)...]... -> zmtp_start or zmtp_free
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmq.wire.blocks cimport Blocks
from fastmq.wire.buffer cimport Buffer, buffer_drop_front, buffer_free


cdef enum:
    ZMTP_FRAMES_MAX = 3                 # frames of a message that are kept; what a ROUTER hears behind them is counted
    ZMTP_MESSAGE_SPARE = 1048576        # bytes by which a message may be larger than its largest frame
    ZMTP_COMMAND_SIZE_MAX = 65536       # bytes of a command: READY, PING, ERROR
    ZMTP_PONG_SIZE_MAX = 16             # bytes of a PING's context that are sent back
    ZMTP_OUT_MAX = 1048576              # bytes waiting to be sent above which a PING is not answered
    ZMTP_KEPT_MAX = 1048576             # bytes of a block that is kept when it is empty
    ZMTP_WHOLE_MIN = 65536              # bytes of a frame that is read up to its end, into a block that is large enough
    ZMTP_HEAD_MAX = 9                   # bytes before a frame
    ZMTP_HEAD_SIZE = 8192               # bytes of the first read where a large frame is likely: what is read of it is copied
    ZMTP_TRUSTED_MAX = 4194304          # bytes that a frame's head makes room for, before more of it has come
    ZMTP_TEXT_MAX = 120                 # bytes kept of what an ERROR command says


cpdef enum ZmtpRole:
    ZMTP_DEALER = 0
    ZMTP_SUB = 1
    ZMTP_ROUTER = 2


cpdef enum ZmtpEvent:
    ZMTP_WAIT = 0                       # more bytes are needed
    ZMTP_OPENED = 1                     # the handshake is complete
    ZMTP_MESSAGE = 2                    # `frames` frames of a message, valid until the next zmtp_room
    ZMTP_NOT_ZMTP = -1                  # the peer does not speak ZMTP
    ZMTP_OLD_VERSION = -2               # it speaks ZMTP before version 3
    ZMTP_MECHANISM = -3                 # it wants another mechanism than NULL, named in `text`
    ZMTP_SOCKET_TYPE = -4               # it is a socket of a type that does not fit the role, named in `text`
    ZMTP_REFUSED = -5                   # it sent an ERROR command, quoted in `text`
    ZMTP_MALFORMED = -6
    ZMTP_TOO_LARGE = -7                 # a frame or command is larger than allowed
    ZMTP_TOO_MANY_FRAMES = -8
    ZMTP_NO_MEMORY = -9


cdef enum ZmtpState:
    ZMTP_STATE_GREETING = 0
    ZMTP_STATE_HANDSHAKE = 1            # greeting read, READY not
    ZMTP_STATE_OPEN = 2
    ZMTP_STATE_FAILED = 3


cdef struct ZmtpFrame:
    size_t at                           # offset in `received`
    size_t size


cdef struct Zmtp:
    Buffer received
    Blocks* blocks                      # for the next large ones; the caller's, which may serve several connections
    Buffer out                          # bytes to send; `out_at` of them have been sent
    size_t out_at
    const uint8_t* attached             # somebody else's bytes to send, not NULL: behind the first `attached_after` bytes of `out`
    size_t attached_after
    size_t attached_size                # that are still to be sent
    size_t at                           # bytes of `received` that are digested
    size_t wanted                       # bytes of `received` that make the frame whole of which the beginning is there; 0: not known
    size_t frame_size_max
    bint after_large                    # the block of the last message was taken: the next one may be large too
    int role                            # ZmtpRole
    int state                           # ZmtpState
    int error                           # ZmtpEvent below 0; 0: none
    int frames                          # of the message being read
    uint32_t ttl_ms                     # after which the peer, so its last PING says, counts a silent connection as lost; 0: never
    bint whole                          # the message in `frame` was handed out: the next one begins
    ZmtpFrame[3] frame
    char[121] text                      # what the peer said, NUL-terminated, printable ASCII


cdef void zmtp_init(Zmtp* z, int role, size_t frame_size_max, Blocks* blocks) noexcept nogil
cdef void zmtp_free(Zmtp* z) noexcept nogil
cdef void zmtp_start(Zmtp* z) noexcept nogil                        # a new connection: forget all, write the greeting to `out`
cdef uint8_t* zmtp_room(Zmtp* z, size_t size) noexcept nogil        # where up to `size` received bytes may be put; NULL: no memory
# As zmtp_room, for a read of about `size` bytes; `room`: how many it may be. A large frame is read up to its end, so that its block can be
# given away.
cdef uint8_t* zmtp_read_room(Zmtp* z, size_t size, size_t* room) noexcept nogil
cdef uint8_t* zmtp_take_block(Zmtp* z, size_t* room) noexcept nogil  # of the message handed out, the caller's from now on; NULL: no memory
# As zmtp_read_room, into what room there is: at least `size` bytes, but not past the end of a large frame.
cdef uint8_t* zmtp_shared_room(Zmtp* z, size_t size, size_t* room) noexcept nogil
cdef void zmtp_rest(Zmtp* z) noexcept nogil                         # nothing is read for now: give back what room is not needed until then
# The frame that has only begun, if it is the last one of its message: its first bytes, and how many it will have.
cdef bint zmtp_begun(Zmtp* z, const uint8_t** begun, size_t* size, size_t* total) noexcept nogil
cdef void zmtp_pass_over(Zmtp* z) noexcept nogil                    # its rest was read elsewhere, and its message is done with
cdef void zmtp_received(Zmtp* z, size_t size) noexcept nogil        # so many were put there
cdef int zmtp_next(Zmtp* z) noexcept nogil                          # a ZmtpEvent
cdef void zmtp_frame_head(Buffer* out, uint64_t size, bint more) noexcept nogil     # its `size` bytes must follow
cdef size_t zmtp_put_head(uint8_t* head, uint64_t size, bint more) noexcept nogil   # the same into ZMTP_HEAD_MAX bytes; how many it took
cdef void zmtp_drop_unsent(Zmtp* z) noexcept nogil                  # forget what is to be sent: the connection is gone
cdef bytes zmtp_take_unsent(Zmtp* z)                                # for Python: all of it, which counts as sent
cdef void zmtp_ping(Zmtp* z) noexcept nogil
cdef void zmtp_subscribe(Zmtp* z, const void* topic, size_t size, bint subscribe) noexcept nogil


cdef inline const uint8_t* zmtp_frame(Zmtp* z, int index) noexcept nogil:
    return z.received.data + z.frame[index].at


cdef inline size_t zmtp_unsent(Zmtp* z) noexcept nogil:
    return z.out.size - z.out_at + z.attached_size


cdef inline void zmtp_attach(Zmtp* z, const uint8_t* data, size_t size) noexcept nogil:
    """Send these bytes, which stay where they are until then, behind what is in `out` now. Nothing is attached."""
    z.attached = data
    z.attached_size = size
    z.attached_after = z.out.size


cdef inline const uint8_t* zmtp_next_part(Zmtp* z, size_t* size) noexcept nogil:
    """What is to be sent next, in one piece; its size is 0 when there is nothing."""
    if z.attached == NULL:
        size[0] = z.out.size - z.out_at
    elif z.out_at == z.attached_after:
        size[0] = z.attached_size
        return z.attached
    else:
        size[0] = z.attached_after - z.out_at
    return z.out.data + z.out_at


cdef inline void zmtp_drop_sent(Zmtp* z, size_t kept_max) noexcept nogil:
    """Give back the room of bytes that were sent, if those are more than `kept_max`."""
    if z.out_at > kept_max:
        buffer_drop_front(&z.out, z.out_at)
        z.attached_after -= z.out_at if z.attached != NULL else 0
        z.out_at = 0


cdef inline void zmtp_sent(Zmtp* z, size_t size) noexcept nogil:
    """`size` bytes of that part have been sent."""
    if z.attached != NULL and z.out_at == z.attached_after:
        z.attached += size
        z.attached_size -= size
        if z.attached_size:
            return
        z.attached = NULL
    else:
        z.out_at += size
    if z.out_at >= z.out.size and z.attached == NULL:
        z.out_at = 0
        z.out.size = 0
        if z.out.room > ZMTP_KEPT_MAX:
            buffer_free(&z.out)
