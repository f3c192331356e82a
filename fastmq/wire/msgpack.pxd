# msgpack without Python objects: what the hot path writes and reads of https://github.com/msgpack/msgpack/blob/master/spec.md
#
# Rules: a Reader never reads past `end`; the first thing that is not what was asked for sets `error` and every later read fails, so that a
# parser checks once, at the end; a skip is bounded in depth and by the bytes that are there, whatever sizes the bytes claim. Ext types are
# refused. Runs in every process, without the GIL. Values that are not on the hot path go through the msgpack package (wire.values).
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from fastmq.wire.buffer cimport Buffer, buffer_add, buffer_extend, buffer_reserve


# ---- writing

cdef inline void mp_byte(Buffer* b, uint8_t value) noexcept nogil:
    cdef uint8_t* at = buffer_extend(b, 1)
    if at != NULL:
        at[0] = value


cdef inline void mp_big(Buffer* b, uint8_t tag, uint64_t value, int size) noexcept nogil:
    """A tag and `size` bytes of `value`, most significant first."""
    cdef uint8_t* at = buffer_extend(b, size + 1)
    cdef int i
    if at == NULL:
        return
    at[0] = tag
    for i in range(size):
        at[1 + i] = <uint8_t> (value >> (8 * (size - 1 - i)))


cdef inline void mp_nil(Buffer* b) noexcept nogil:
    mp_byte(b, 0xc0)


cdef inline void mp_bool(Buffer* b, bint value) noexcept nogil:
    mp_byte(b, 0xc3 if value else 0xc2)


cdef inline void mp_uint(Buffer* b, uint64_t value) noexcept nogil:
    if value < 0x80:
        mp_byte(b, <uint8_t> value)
    elif value < 0x100:
        mp_big(b, 0xcc, value, 1)
    elif value < 0x10000:
        mp_big(b, 0xcd, value, 2)
    elif value <= <uint64_t> 0xffffffffU:
        mp_big(b, 0xce, value, 4)
    else:
        mp_big(b, 0xcf, value, 8)


cdef inline void mp_array(Buffer* b, uint32_t count) noexcept nogil:
    if count < 16:
        mp_byte(b, <uint8_t> (0x90 | count))
    elif count < 0x10000:
        mp_big(b, 0xdc, count, 2)
    else:
        mp_big(b, 0xdd, count, 4)


cdef inline void mp_map(Buffer* b, uint32_t count) noexcept nogil:
    if count < 16:
        mp_byte(b, <uint8_t> (0x80 | count))
    elif count < 0x10000:
        mp_big(b, 0xde, count, 2)
    else:
        mp_big(b, 0xdf, count, 4)


cdef inline void mp_str(Buffer* b, const void* data, uint32_t size) noexcept nogil:
    if size < 32:
        mp_byte(b, <uint8_t> (0xa0 | size))
    elif size < 0x100:
        mp_big(b, 0xd9, size, 1)
    elif size < 0x10000:
        mp_big(b, 0xda, size, 2)
    else:
        mp_big(b, 0xdb, size, 4)
    buffer_add(b, data, size)


cdef inline void mp_bin_head(Buffer* b, uint32_t size) noexcept nogil:
    if size < 0x100:
        mp_big(b, 0xc4, size, 1)
    elif size < 0x10000:
        mp_big(b, 0xc5, size, 2)
    else:
        mp_big(b, 0xc6, size, 4)


cdef inline void mp_bin(Buffer* b, const void* data, uint32_t size) noexcept nogil:
    mp_bin_head(b, size)
    buffer_add(b, data, size)


# ---- reading

cdef struct Reader:
    const uint8_t* at
    const uint8_t* end
    bint error


cdef inline void reader_init(Reader* r, const void* data, size_t size) noexcept nogil:
    r.at = <const uint8_t*> data
    r.end = r.at + size
    r.error = False


cdef inline uint64_t mp_take(Reader* r, int size) noexcept nogil:
    """`size` bytes as a number, most significant first."""
    cdef uint64_t value = 0
    cdef int i
    if r.end - r.at < size:
        r.error = True
        r.at = r.end
        return 0
    for i in range(size):
        value = (value << 8) | r.at[i]
    r.at += size
    return value


cdef inline uint8_t mp_tag(Reader* r) noexcept nogil:
    """The next byte, consumed; 0xc1 (which msgpack never uses) and an error when there is none."""
    if r.error or r.at >= r.end:
        r.error = True
        return 0xc1
    r.at += 1
    return (r.at - 1)[0]


cdef inline bint mp_read_nil(Reader* r) noexcept nogil:
    """True, and consumed, if the next value is nil; else nothing is consumed."""
    if not r.error and r.at < r.end and r.at[0] == 0xc0:
        r.at += 1
        return True
    return False


cdef inline uint64_t mp_read_uint(Reader* r) noexcept nogil:
    cdef uint8_t tag = mp_tag(r)
    if tag < 0x80:
        return tag
    if tag == 0xcc:
        return mp_take(r, 1)
    if tag == 0xcd:
        return mp_take(r, 2)
    if tag == 0xce:
        return mp_take(r, 4)
    if tag == 0xcf:
        return mp_take(r, 8)
    cdef uint64_t value
    if 0xd0 <= tag <= 0xd3:                 # a signed form: other encoders choose it for positive numbers too
        value = mp_take(r, 1 << (tag - 0xd0))
        if value >> ((8 << (tag - 0xd0)) - 1):
            r.error = True
        return value
    r.error = True
    return 0


cdef inline uint32_t mp_read_u32(Reader* r) noexcept nogil:
    cdef uint64_t value = mp_read_uint(r)
    if value > <uint64_t> 0xffffffffU:
        r.error = True
        return 0
    return <uint32_t> value


cdef inline uint32_t mp_read_array(Reader* r) noexcept nogil:
    """The number of elements. One that the bytes left cannot hold is an error."""
    cdef uint8_t tag = mp_tag(r)
    cdef uint64_t count = 0
    if 0x90 <= tag <= 0x9f:
        count = tag & 15
    elif tag == 0xdc:
        count = mp_take(r, 2)
    elif tag == 0xdd:
        count = mp_take(r, 4)
    else:
        r.error = True
    if count > <uint64_t> (r.end - r.at):
        r.error = True
    return 0 if r.error else <uint32_t> count


cdef inline uint32_t mp_read_map(Reader* r) noexcept nogil:
    """The number of pairs of the map whose head is read; 0 and `error` when there is none."""
    cdef uint8_t tag = mp_tag(r)
    if 0x80 <= tag <= 0x8f:
        return tag & 0x0f
    if tag == 0xde:
        return <uint32_t> mp_take(r, 2)
    if tag == 0xdf:
        return <uint32_t> mp_take(r, 4)
    r.error = True
    return 0


cdef inline const uint8_t* mp_read_bytes(Reader* r, uint64_t size) noexcept nogil:
    cdef const uint8_t* at = r.at
    if r.error or size > <uint64_t> (r.end - r.at):
        r.error = True
        return NULL
    r.at += size
    return at


cdef inline const uint8_t* mp_read_str(Reader* r, uint32_t* size) noexcept nogil:
    """The bytes of a str (UTF-8 is not checked here) and their number; NULL on error."""
    cdef uint8_t tag = mp_tag(r)
    size[0] = 0
    if 0xa0 <= tag <= 0xbf:
        size[0] = tag & 31
    elif tag == 0xd9:
        size[0] = <uint32_t> mp_take(r, 1)
    elif tag == 0xda:
        size[0] = <uint32_t> mp_take(r, 2)
    elif tag == 0xdb:
        size[0] = <uint32_t> mp_take(r, 4)
    else:
        r.error = True
    return mp_read_bytes(r, size[0])


cdef inline const uint8_t* mp_read_bin(Reader* r, uint32_t* size) noexcept nogil:
    """The bytes of a bin and their number; NULL on error."""
    cdef uint8_t tag = mp_tag(r)
    size[0] = 0
    if tag == 0xc4:
        size[0] = <uint32_t> mp_take(r, 1)
    elif tag == 0xc5:
        size[0] = <uint32_t> mp_take(r, 2)
    elif tag == 0xc6:
        size[0] = <uint32_t> mp_take(r, 4)
    else:
        r.error = True
    return mp_read_bytes(r, size[0])


cdef enum:
    SKIP_DEPTH_MAX = 16         # nesting of a value that is passed over


cdef inline void mp_skip(Reader* r) noexcept nogil:
    """Pass over one value of any type but ext, nested at most SKIP_DEPTH_MAX deep."""
    cdef uint64_t[17] left
    cdef int depth = 0
    cdef uint8_t tag
    cdef uint64_t count
    left[0] = 1
    while True:
        while left[depth] == 0:
            if depth == 0:
                return
            depth -= 1
        left[depth] -= 1
        tag = mp_tag(r)
        if r.error:
            return
        count = 0
        if tag < 0x80 or tag >= 0xe0 or tag == 0xc0 or tag == 0xc2 or tag == 0xc3:
            continue
        elif tag < 0x90:
            count = 2 * <uint64_t> (tag & 15)
        elif tag < 0xa0:
            count = tag & 15
        elif tag < 0xc0:
            mp_read_bytes(r, tag & 31)
            continue
        elif tag <= 0xc6 and tag >= 0xc4:
            mp_read_bytes(r, mp_take(r, 1 << (tag - 0xc4)))
            continue
        elif tag == 0xca:
            mp_take(r, 4)
            continue
        elif tag == 0xcb:
            mp_take(r, 8)
            continue
        elif 0xcc <= tag <= 0xcf:
            mp_take(r, 1 << (tag - 0xcc))
            continue
        elif 0xd0 <= tag <= 0xd3:
            mp_take(r, 1 << (tag - 0xd0))
            continue
        elif 0xd9 <= tag <= 0xdb:
            mp_read_bytes(r, mp_take(r, 1 << (tag - 0xd9)))
            continue
        elif tag == 0xdc or tag == 0xdd:
            count = mp_take(r, 2 << (tag - 0xdc))
        elif tag == 0xde or tag == 0xdf:
            count = 2 * mp_take(r, 2 << (tag - 0xde))
        else:
            r.error = True                  # ext, or 0xc1
            return
        if r.error or count > <uint64_t> (r.end - r.at) or depth == SKIP_DEPTH_MAX:
            r.error = True
            return
        if count:
            depth += 1
            left[depth] = count
