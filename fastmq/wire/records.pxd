# A record, the unit of publishing and delivery:  msgpack [routing_key str, properties map or nil, body bin].
#
# The broker checks the shape, reads the routing key, and passes over properties and body by length: their bytes travel untouched.
# A batch is consecutive records. Runs in every process, without the GIL.
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp

from fastmq.wire.limits cimport NAME_SIZE_MAX, PROPERTIES_SIZE_MAX
from fastmq.wire.msgpack cimport (
    Reader, mp_read_array, mp_read_bin, mp_read_map, mp_read_nil, mp_read_str, mp_skip, mp_tag, mp_take, reader_init,
)


cdef struct Record:
    const uint8_t* start            # the record's first byte
    const uint8_t* routing_key
    const uint8_t* properties       # the map's first byte
    const uint8_t* body
    uint32_t size                   # bytes of the whole record
    uint32_t routing_key_size
    uint32_t properties_size        # 0: nil
    uint32_t body_size


cdef enum RecordError:
    RECORD_GOOD = 0
    RECORD_MALFORMED = -1           # not three elements of these types, or the bytes end early
    RECORD_KEY_TOO_LONG = -2
    RECORD_PROPERTIES_TOO_LARGE = -3
    RECORD_KEY_NOT_UTF8 = -4


cdef inline bint utf8_valid(const uint8_t* at, uint32_t size) noexcept nogil:
    """Whether the bytes are UTF-8 without NUL (RFC 3629: shortest form, no surrogates)."""
    cdef uint32_t i = 0, more
    cdef uint8_t c, low, high
    while i < size:
        c = at[i]
        i += 1
        if c < 0x80:
            if c == 0:
                return False
            continue
        low, high = 0x80, 0xbf
        if 0xc2 <= c <= 0xdf:
            more = 1
        elif 0xe0 <= c <= 0xef:
            more = 2
            if c == 0xe0:
                low = 0xa0
            elif c == 0xed:
                high = 0x9f
        elif 0xf0 <= c <= 0xf4:
            more = 3
            if c == 0xf0:
                low = 0x90
            elif c == 0xf4:
                high = 0x8f
        else:
            return False
        if size - i < more or not (low <= at[i] <= high):
            return False
        i += 1
        more -= 1
        while more:
            if at[i] & 0xc0 != 0x80:
                return False
            i += 1
            more -= 1
    return True


cdef inline int record_read_head(Reader* r, Record* record) noexcept nogil:
    """Read what stands before the body of the record at `r`, which is then there; a RecordError."""
    record.start = r.at
    if mp_read_array(r) != 3:
        return RECORD_MALFORMED
    record.routing_key = mp_read_str(r, &record.routing_key_size)
    record.properties = r.at
    record.properties_size = 0
    if not mp_read_nil(r):
        if r.error or r.at >= r.end or not (0x80 <= r.at[0] <= 0x8f or r.at[0] == 0xde or r.at[0] == 0xdf):
            return RECORD_MALFORMED
        mp_skip(r)
        if r.error:
            return RECORD_MALFORMED
        if r.at - record.properties > PROPERTIES_SIZE_MAX:
            return RECORD_PROPERTIES_TOO_LARGE
        record.properties_size = <uint32_t> (r.at - record.properties)
    return RECORD_GOOD


cdef inline int record_read(Reader* r, Record* record) noexcept nogil:
    """Read the record at `r`, which is then behind it; a RecordError."""
    cdef int error = record_read_head(r, record)
    if error != RECORD_GOOD:
        return error
    record.body = mp_read_bin(r, &record.body_size)
    if r.error:
        return RECORD_MALFORMED
    record.size = <uint32_t> (r.at - record.start)
    if record.routing_key_size > NAME_SIZE_MAX:
        return RECORD_KEY_TOO_LONG
    return RECORD_GOOD


cdef inline bint record_begins(const uint8_t* data, size_t size, uint64_t total, Record* record) noexcept nogil:
    """Whether these are the first bytes of a good record of `total` bytes with a body of 64 KiB or more, which begins among them."""
    cdef Reader r
    reader_init(&r, data, size)
    if record_read_head(&r, record) != RECORD_GOOD or record.routing_key_size > NAME_SIZE_MAX or mp_tag(&r) != 0xc6:
        return False
    record.body_size = <uint32_t> mp_take(&r, 4)
    record.body = r.at
    record.size = <uint32_t> total
    return not r.error and <uint64_t> (record.body - data) + record.body_size == total


cdef inline bint record_is_persistent(const uint8_t* data, uint32_t size) noexcept nogil:
    """Whether a record that was found to be one asks to outlive its worker: unless its property `persistent` is false."""
    cdef Reader r
    cdef const uint8_t* key
    cdef uint32_t left, key_size = 0
    reader_init(&r, data, size)
    mp_read_array(&r)
    mp_skip(&r)
    if mp_read_nil(&r):
        return True
    left = mp_read_map(&r)
    while left and not r.error:
        left -= 1
        key = mp_read_str(&r, &key_size)
        if key != NULL and key_size == 10 and memcmp(key, b"persistent", 10) == 0:
            return mp_tag(&r) != 0xc2
        mp_skip(&r)
    return True
