"""ZMTP 3.x: the codec of zmtp.pxd, and `ZmtpPeer`, the same for Python (tests, the simulation)."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from fastmq.wire.blocks cimport Blocks, blocks_free, blocks_give, blocks_take
from fastmq.wire.buffer cimport (
    Buffer, buffer_add, buffer_clear, buffer_drop_front, buffer_extend, buffer_free, buffer_init, buffer_reserve,
)

cdef enum:
    GREETING_SIZE = 64
    FLAG_MORE = 1
    FLAG_LONG = 2
    FLAG_COMMAND = 4


cdef void zmtp_init(Zmtp* z, int role, size_t frame_size_max, Blocks* blocks) noexcept nogil:
    memset(z, 0, sizeof(Zmtp))
    z.blocks = blocks
    z.role = role
    z.frame_size_max = frame_size_max
    z.state = ZMTP_STATE_FAILED


cdef void zmtp_free(Zmtp* z) noexcept nogil:
    buffer_free(&z.received)
    buffer_free(&z.out)


cdef void zmtp_start(Zmtp* z) noexcept nogil:
    cdef uint8_t* at
    buffer_clear(&z.received)
    zmtp_drop_unsent(z)
    z.at = 0
    z.wanted = 0
    z.after_large = False
    z.state = ZMTP_STATE_GREETING
    z.error = 0
    z.frames = 0
    z.whole = False
    z.text[0] = 0
    z.ttl_ms = 0
    # signature FF 00.. 01 7F, version 3.0, mechanism NULL padded to 20 bytes, as-server 0, filler
    at = buffer_extend(&z.out, GREETING_SIZE)
    if at == NULL:
        fail(z, ZMTP_NO_MEMORY)
        return
    memset(at, 0, GREETING_SIZE)
    at[0] = 0xff
    at[8] = 1
    at[9] = 0x7f
    at[10] = 3
    memcpy(at + 12, b"NULL", 4)


cdef int fail(Zmtp* z, int error) noexcept nogil:
    z.state = ZMTP_STATE_FAILED
    z.error = error
    return error


cdef void set_text(Zmtp* z, const uint8_t* at, size_t size) noexcept nogil:
    cdef size_t i
    if size > ZMTP_TEXT_MAX:
        size = ZMTP_TEXT_MAX
    for i in range(size):
        z.text[i] = <char> at[i] if 32 <= at[i] < 127 else 63       # '?'
    z.text[size] = 0


cdef uint8_t* zmtp_room(Zmtp* z, size_t size) noexcept nogil:
    drop_digested(z)
    return buffer_reserve(&z.received, size)


cdef uint8_t* zmtp_read_room(Zmtp* z, size_t size, size_t* room) noexcept nogil:
    cdef uint8_t* at
    drop_digested(z)
    if z.wanted < z.received.size + ZMTP_WHOLE_MIN and (z.wanted <= z.received.size or z.received.room < z.wanted or z.received.room <= size):
        room[0] = ZMTP_HEAD_SIZE if z.after_large else size
        z.after_large = False
        return buffer_reserve(&z.received, room[0])
    make_whole_room(z)
    at = buffer_reserve(&z.received, 1)
    room[0] = min(z.received.room, z.wanted) - z.received.size
    return at


cdef uint8_t* zmtp_shared_room(Zmtp* z, size_t size, size_t* room) noexcept nogil:
    drop_digested(z)
    if z.wanted < z.received.size + ZMTP_WHOLE_MIN:
        if z.received.room - z.received.size < size and not make_room(z, max(z.received.size + size, 4 * size)):
            return NULL
        room[0] = ZMTP_HEAD_SIZE if z.after_large else z.received.room - z.received.size
        z.after_large = False
    else:
        make_whole_room(z)
        if buffer_reserve(&z.received, 1) == NULL:
            return NULL
        room[0] = min(z.received.room, z.wanted) - z.received.size
    return z.received.data + z.received.size


cdef bint zmtp_begun(Zmtp* z, const uint8_t** begun, size_t* size, size_t* total) noexcept nogil:
    cdef size_t head = 9
    if z.wanted == 0 or z.received.size < z.at + head or z.received.data[z.at] != FLAG_LONG:
        return False
    begun[0] = z.received.data + z.at + head
    size[0] = z.received.size - z.at - head
    total[0] = z.wanted - z.at - head
    return True


cdef void zmtp_pass_over(Zmtp* z) noexcept nogil:
    z.received.size = 0
    z.at = 0
    z.wanted = 0
    z.frames = 0
    z.whole = False
    z.after_large = True


cdef void zmtp_rest(Zmtp* z) noexcept nogil:
    cdef Buffer kept
    drop_digested(z)
    if z.received.data == NULL or z.received.size > z.received.room // 4 or z.wanted > z.received.room // 2:
        return
    buffer_init(&kept)
    if z.received.size:
        buffer_add(&kept, z.received.data, z.received.size)
        if kept.failed:
            return
    blocks_give(z.blocks, z.received.data, z.received.room)
    z.received = kept


cdef void drop_digested(Zmtp* z) noexcept nogil:
    """What is digested goes, except the frames of a message that is not complete yet."""
    cdef size_t start = z.at, i
    if z.whole:
        z.whole = False
        z.frames = 0
    if z.frames:
        start = z.frame[0].at
    if start:
        buffer_drop_front(&z.received, start)
        z.at -= start
        z.wanted -= start if z.wanted else 0
        for i in range(min(<size_t> z.frames, <size_t> ZMTP_FRAMES_MAX)):
            z.frame[i].at -= start
    if z.received.size == 0 and z.received.room > ZMTP_KEPT_MAX:
        blocks_give(z.blocks, z.received.data, z.received.room)
        buffer_init(&z.received)


cdef void make_whole_room(Zmtp* z) noexcept nogil:
    """Room for the rest of a large frame at once, so that it is not moved while it grows; for a very large one as much as has come, again."""
    cdef size_t size = min(z.wanted, max(2 * z.received.size, <size_t> ZMTP_TRUSTED_MAX))
    if size > z.received.room:
        make_room(z, size)                              # whoever needs room says so


cdef bint make_room(Zmtp* z, size_t size) noexcept nogil:
    """A block of `size` bytes instead of the one there is; False: no memory, and nothing is changed."""
    cdef size_t room = 0
    cdef uint8_t* data = blocks_take(z.blocks, size, &room)
    if data == NULL:
        return False
    if z.received.size:
        memcpy(data, z.received.data, z.received.size)
    blocks_give(z.blocks, z.received.data, z.received.room)
    z.received.data = data
    z.received.room = room
    return True


cdef uint8_t* zmtp_take_block(Zmtp* z, size_t* room) noexcept nogil:
    cdef uint8_t* block = z.received.data
    cdef size_t left = z.received.size - z.at
    cdef Buffer rest
    buffer_init(&rest)
    rest.data = blocks_take(z.blocks, max(left, <size_t> ZMTP_HEAD_SIZE), &rest.room)
    if rest.data == NULL:
        return NULL
    memcpy(rest.data, block + z.at, left)
    rest.size = left
    room[0] = z.received.room
    z.received = rest
    z.after_large = True
    z.at = 0
    z.wanted = 0
    z.frames = 0
    z.whole = False
    return block


cdef void zmtp_drop_unsent(Zmtp* z) noexcept nogil:
    buffer_clear(&z.out)
    z.out_at = 0
    z.attached = NULL
    z.attached_size = 0


cdef void zmtp_received(Zmtp* z, size_t size) noexcept nogil:
    z.received.size += size


cdef int zmtp_next(Zmtp* z) noexcept nogil:
    cdef int event
    if z.whole:
        z.whole = False
        z.frames = 0
    if z.state == ZMTP_STATE_GREETING:
        event = read_greeting(z)
        if event != ZMTP_OPENED:
            return event
    if z.state == ZMTP_STATE_FAILED:
        return z.error if z.error else ZMTP_MALFORMED
    while True:
        event = read_frame(z)
        if event != ZMTP_OPENED or z.state == ZMTP_STATE_FAILED:
            return event
        if z.state == ZMTP_STATE_HANDSHAKE:
            z.state = ZMTP_STATE_OPEN
            return ZMTP_OPENED


cdef int read_greeting(Zmtp* z) noexcept nogil:
    """ZMTP_OPENED when the greeting is complete and good, and our READY is in `out`."""
    cdef const uint8_t* at = z.received.data
    cdef size_t size = z.received.size
    if size >= 1 and at[0] != 0xff or size >= 10 and not at[9] & 1:
        return fail(z, ZMTP_NOT_ZMTP)
    if size >= 11 and at[10] < 3:
        return fail(z, ZMTP_OLD_VERSION)
    if size >= 32 and memcmp(at + 12, b"NULL\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 20) != 0:
        size = 0
        while size < 20 and at[12 + size]:
            size += 1
        set_text(z, at + 12, size)
        return fail(z, ZMTP_MECHANISM)
    if size < GREETING_SIZE:
        return ZMTP_WAIT
    z.at = GREETING_SIZE
    z.state = ZMTP_STATE_HANDSHAKE
    if z.role == ZMTP_DEALER:
        command(z, b"\x05READY\x0bSocket-Type\0\0\0\x06DEALER\x08Identity\0\0\0\0", 41)
    elif z.role == ZMTP_ROUTER:
        command(z, b"\x05READY\x0bSocket-Type\0\0\0\x06ROUTER\x08Identity\0\0\0\0", 41)
    else:
        command(z, b"\x05READY\x0bSocket-Type\0\0\0\x03SUB", 25)
    return ZMTP_OPENED


cdef void command(Zmtp* z, const void* body, uint8_t size) noexcept nogil:
    cdef uint8_t[2] head
    head[0] = FLAG_COMMAND
    head[1] = size
    buffer_add(&z.out, head, 2)
    buffer_add(&z.out, body, size)


cdef int read_frame(Zmtp* z) noexcept nogil:
    """The next frame: ZMTP_MESSAGE when it completes a message, ZMTP_OPENED after READY and after any other command or part."""
    cdef const uint8_t* at = z.received.data + z.at
    cdef size_t size = z.received.size - z.at, head = 2, limit = z.frame_size_max
    cdef uint64_t length = 0
    cdef int i
    cdef uint8_t flags
    while True:
        if size < 1:
            return ZMTP_WAIT
        flags = at[0]
        if flags > 7 or flags & FLAG_COMMAND and flags & FLAG_MORE:
            return fail(z, ZMTP_MALFORMED)
        if z.state == ZMTP_STATE_HANDSHAKE and not flags & FLAG_COMMAND:
            return fail(z, ZMTP_MALFORMED)
        head = 9 if flags & FLAG_LONG else 2
        if size < head:
            return ZMTP_WAIT
        length = at[1]
        if flags & FLAG_LONG:
            for i in range(2, 9):
                length = (length << 8) | at[i]
        limit = ZMTP_COMMAND_SIZE_MAX if flags & FLAG_COMMAND else z.frame_size_max
        if length > limit:
            return fail(z, ZMTP_TOO_LARGE)
        if not flags & FLAG_COMMAND and z.frames >= ZMTP_FRAMES_MAX and z.role != ZMTP_ROUTER:
            return fail(z, ZMTP_TOO_MANY_FRAMES)
        if z.frames and z.at - z.frame[0].at + length > z.frame_size_max + ZMTP_MESSAGE_SPARE:
            return fail(z, ZMTP_TOO_LARGE)
        if size - head < length:
            z.wanted = z.at + head + <size_t> length
            return ZMTP_WAIT
        z.wanted = 0
        z.at += head + <size_t> length
        if flags & FLAG_COMMAND:
            return read_command(z, at + head, <size_t> length)
        if z.frames < ZMTP_FRAMES_MAX:
            z.frame[z.frames].at = z.at - <size_t> length
            z.frame[z.frames].size = <size_t> length
        z.frames += 1
        if not flags & FLAG_MORE:
            z.whole = True
            return ZMTP_MESSAGE
        at += head + <size_t> length
        size -= head + <size_t> length


cdef int read_command(Zmtp* z, const uint8_t* at, size_t size) noexcept nogil:
    cdef size_t name
    cdef uint8_t[32] pong
    if size < 1 or at[0] == 0 or at[0] > size - 1:
        return fail(z, ZMTP_MALFORMED)
    name = at[0]
    if name == 5 and memcmp(at + 1, b"ERROR", 5) == 0:
        if size > 7:
            set_text(z, at + 7, size - 7)
        return fail(z, ZMTP_REFUSED)
    if z.state == ZMTP_STATE_HANDSHAKE:
        if name != 5 or memcmp(at + 1, b"READY", 5) != 0:
            return fail(z, ZMTP_MALFORMED)
        return read_ready(z, at + 6, size - 6)
    if name == 4 and memcmp(at + 1, b"PING", 4) == 0:
        if size < 7:
            return fail(z, ZMTP_MALFORMED)
        z.ttl_ms = ((<uint32_t> at[5] << 8) | at[6]) * 100
        if zmtp_unsent(z) < ZMTP_OUT_MAX:
            size -= 7                                   # behind the name, two bytes of TTL and the context
            if size > ZMTP_PONG_SIZE_MAX:
                return fail(z, ZMTP_MALFORMED)
            memcpy(pong, b"\x04PONG", 5)
            memcpy(pong + 5, at + 7, size)
            command(z, pong, <uint8_t> (5 + size))
    return ZMTP_OPENED                                  # PONG, and what later versions may say: passed over


cdef int read_ready(Zmtp* z, const uint8_t* at, size_t size) noexcept nogil:
    """The properties of READY: (name size 1, name, value size 4, value)..."""
    cdef size_t name, value
    cdef bint good = False
    while size:
        name = at[0]
        if name == 0 or size < 1 + name + 4:
            return fail(z, ZMTP_MALFORMED)
        value = (<size_t> at[1 + name] << 24) | (<size_t> at[2 + name] << 16) | (<size_t> at[3 + name] << 8) | at[4 + name]
        if value > size - (1 + name + 4):
            return fail(z, ZMTP_MALFORMED)
        if name == 11 and same_name(at + 1, b"socket-type", 11):
            set_text(z, at + 16, value)
            if z.role == ZMTP_DEALER:
                good = value == 6 and memcmp(at + 16, b"ROUTER", 6) == 0
            elif z.role == ZMTP_ROUTER:
                good = (value == 6 and (memcmp(at + 16, b"DEALER", 6) == 0 or memcmp(at + 16, b"ROUTER", 6) == 0)
                        or value == 3 and memcmp(at + 16, b"REQ", 3) == 0)
            else:
                good = value == 4 and memcmp(at + 16, b"XPUB", 4) == 0 or value == 3 and memcmp(at + 16, b"PUB", 3) == 0
        at += 1 + name + 4 + value
        size -= 1 + name + 4 + value
    return ZMTP_OPENED if good else fail(z, ZMTP_SOCKET_TYPE)


cdef bint same_name(const uint8_t* at, const char* lower, size_t size) noexcept nogil:
    """Names of properties are compared without regard to case."""
    cdef size_t i
    for i in range(size):
        if (at[i] | 0x20 if 65 <= at[i] <= 90 else at[i]) != <uint8_t> lower[i]:
            return False
    return True


cdef size_t zmtp_put_head(uint8_t* head, uint64_t size, bint more) noexcept nogil:
    cdef int i
    if size < 256:
        head[0] = FLAG_MORE if more else 0
        head[1] = <uint8_t> size
        return 2
    head[0] = (FLAG_MORE if more else 0) | FLAG_LONG
    for i in range(8):
        head[1 + i] = <uint8_t> (size >> (8 * (7 - i)))
    return 9


cdef void zmtp_frame_head(Buffer* out, uint64_t size, bint more) noexcept nogil:
    cdef uint8_t[ZMTP_HEAD_MAX] head
    buffer_add(out, head, zmtp_put_head(head, size, more))


cdef void zmtp_ping(Zmtp* z) noexcept nogil:
    """Ask the peer for a sign of life; the TTL (0) asks nothing of it."""
    if z.state == ZMTP_STATE_OPEN:
        command(z, b"\x04PING\0\0", 7)


cdef void zmtp_subscribe(Zmtp* z, const void* topic, size_t size, bint subscribe) noexcept nogil:
    """The message of ZMTP 3.0 that subscribes to a topic, or cancels that."""
    cdef uint8_t first = 1 if subscribe else 0
    zmtp_frame_head(&z.out, size + 1, False)
    buffer_add(&z.out, &first, 1)
    buffer_add(&z.out, topic, size)


cdef bytes zmtp_take_unsent(Zmtp* z):
    cdef size_t size
    cdef const uint8_t* part
    parts = []
    while zmtp_unsent(z):
        part = zmtp_next_part(z, &size)
        parts.append(<bytes> part[:size])
        zmtp_sent(z, size)
    return b"".join(parts)


cdef class ZmtpPeer:
    """One end of a ZMTP connection for Python, without I/O.

    `feed(bytes)` returns the messages that are complete, each a list of frames; `take_output()` the bytes to send. After hostile input
    `error` is a negative ZmtpEvent, and feeding does nothing. Not for the per-message path.
    """

    cdef Zmtp z
    cdef Blocks blocks
    cdef readonly bint opened

    def __cinit__(self, int role=ZMTP_DEALER, size_t frame_size_max=1 << 20):
        zmtp_init(&self.z, role, frame_size_max, &self.blocks)
        zmtp_start(&self.z)

    def __dealloc__(self):
        zmtp_free(&self.z)
        blocks_free(&self.blocks)

    @property
    def error(self):
        """The ZmtpEvent that ended the connection, or 0."""
        return self.z.error

    @property
    def text(self):
        """What the peer said or named when it was refused."""
        return (<bytes> self.z.text).decode("ascii")

    @property
    def buffered_size(self):
        """Bytes of memory held for what was received."""
        return self.z.received.room

    def feed(self, const uint8_t[::1] data):
        cdef uint8_t* at
        cdef int event, i
        messages = []
        if data.shape[0]:
            at = zmtp_room(&self.z, data.shape[0])
            if at == NULL:
                raise MemoryError
            memcpy(at, &data[0], data.shape[0])
            zmtp_received(&self.z, data.shape[0])
        while True:
            event = zmtp_next(&self.z)
            if event == ZMTP_OPENED:
                self.opened = True
            elif event == ZMTP_MESSAGE:
                messages.append([zmtp_frame(&self.z, i)[:self.z.frame[i].size] for i in range(min(self.z.frames, ZMTP_FRAMES_MAX))])
            else:
                return messages

    def send(self, frames):
        """Queue one message."""
        for i, frame in enumerate(frames):
            zmtp_frame_head(&self.z.out, len(frame), i + 1 < len(frames))
            buffer_add(&self.z.out, <const char*> (<bytes> frame), len(frame))

    def subscribe(self, bytes topic, bint subscribe=True):
        zmtp_subscribe(&self.z, <const char*> topic, len(topic), subscribe)

    def ping(self):
        zmtp_ping(&self.z)

    def take_output(self):
        return zmtp_take_unsent(&self.z)
