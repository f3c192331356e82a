"""Properties of published messages: see properties.pxd."""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from fastmq.wire.buffer cimport Buffer, buffer_free, buffer_init
from fastmq.wire.limits cimport PROPERTIES_SIZE_MAX
from fastmq.wire.msgpack cimport mp_array, mp_big, mp_bin, mp_bool, mp_map, mp_nil, mp_str, mp_uint

from fastmq.errors import BadArgument

cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL
    int64_t PyLong_AsLongLongAndOverflow(object number, int* overflow) except? -1
    uint64_t PyLong_AsUnsignedLongLong(object number) except? 0xffffffffffffffff

cdef enum:
    DEPTH_MAX = 14                      # of headers: with the map of properties and theirs that is what the broker reads


cdef int put_text(Buffer* b, str what, text) except -1:
    cdef Py_ssize_t size
    cdef const char* data
    if not isinstance(text, str):
        raise BadArgument(f"{what} must be str, not {type(text).__name__}")
    try:
        data = PyUnicode_AsUTF8AndSize(text, &size)
    except UnicodeEncodeError:
        raise BadArgument(f"{what} cannot be written as UTF-8") from None
    if size > PROPERTIES_SIZE_MAX:
        raise BadArgument(f"{what} has {size} bytes; all properties together may have {PROPERTIES_SIZE_MAX}")
    mp_str(b, data, <uint32_t> size)
    return 0


cdef int put_int(Buffer* b, value) except -1:
    cdef int overflow = 0
    cdef int64_t number = PyLong_AsLongLongAndOverflow(value, &overflow)
    if overflow < 0:
        raise BadArgument(f"headers cannot hold {value}: it has more than 64 bits")
    if overflow > 0:
        try:
            mp_uint(b, PyLong_AsUnsignedLongLong(value))
        except OverflowError:
            raise BadArgument(f"headers cannot hold {value}: it has more than 64 bits") from None
    elif number >= 0:
        mp_uint(b, <uint64_t> number)
    elif number >= -32:
        mp_big(b, <uint8_t> (number & 0xff), 0, 0)
    else:
        mp_big(b, 0xd3, <uint64_t> number, 8)
    return 0


cdef int put_value(Buffer* b, value, int depth) except -1:
    """Any value of headers; raises BadArgument for what the broker does not carry."""
    cdef double real
    cdef uint64_t bits
    if type(value) is str:
        put_text(b, "a str in headers", value)
    elif value is None:
        mp_nil(b)
    elif isinstance(value, bool):
        mp_bool(b, value)
    elif isinstance(value, int):
        put_int(b, value)
    elif isinstance(value, float):
        real = value
        memcpy(&bits, &real, 8)
        mp_big(b, 0xcb, bits, 8)
    elif isinstance(value, bytes):
        if PyBytes_GET_SIZE(value) > PROPERTIES_SIZE_MAX:
            raise BadArgument(f"all properties together may have {PROPERTIES_SIZE_MAX} bytes")
        mp_bin(b, PyBytes_AS_STRING(value), <uint32_t> PyBytes_GET_SIZE(value))
    elif isinstance(value, str):
        put_text(b, "a str in headers", str(value))
    elif depth >= DEPTH_MAX:
        raise BadArgument(f"headers may be nested at most {DEPTH_MAX} deep")
    elif isinstance(value, dict):
        put_map(b, value, depth + 1)
    elif isinstance(value, (list, tuple)):
        items = tuple(value)
        mp_array(b, <uint32_t> min(len(items), 0xffffffff))
        for item in items:
            put_value(b, item, depth + 1)
    else:
        raise BadArgument(f"headers hold None, bool, int, float, str, bytes, lists and dicts, not {type(value).__name__}")
    if b.size > PROPERTIES_SIZE_MAX:
        raise BadArgument(f"the properties are too large: at most {PROPERTIES_SIZE_MAX} bytes are allowed")
    return 0


cdef int put_map(Buffer* b, dict value, int depth) except -1:
    cdef dict pairs = dict(value)       # a copy: nothing that runs meanwhile changes its size
    mp_map(b, <uint32_t> min(len(pairs), 0xffffffff))
    for name, item in pairs.items():
        if not isinstance(name, str):
            raise BadArgument(f"keys in headers must be str, not {type(name).__name__}")
        put_text(b, "a key in headers", str(name))
        put_value(b, item, depth)
    return 0


cdef bytes properties_of(headers, bint persistent, int priority, message_id, correlation_id, reply_to, content_type):
    """The properties that are not default, as msgpack; None if all are. Raises BadArgument."""
    cdef Buffer b
    cdef uint32_t count = (
        (headers is not None) + (not persistent) + (priority != 0) + (message_id is not None) + (correlation_id is not None)
        + (reply_to is not None) + (content_type is not None))
    if count == 0:
        return None
    if not 0 <= priority <= 255:
        raise BadArgument(f"priority={priority} must lie between 0 and 255")
    if headers is not None and not isinstance(headers, dict):
        raise BadArgument(f"headers must be a dict, not {type(headers).__name__}")
    buffer_init(&b)
    try:
        mp_map(&b, count)
        if headers is not None:
            mp_str(&b, b"headers", 7)
            put_map(&b, headers, 1)
        if not persistent:
            mp_str(&b, b"persistent", 10)
            mp_bool(&b, False)
        if priority:
            mp_str(&b, b"priority", 8)
            mp_uint(&b, priority)
        if message_id is not None:
            mp_str(&b, b"message_id", 10)
            put_text(&b, "message_id", message_id)
        if correlation_id is not None:
            mp_str(&b, b"correlation_id", 14)
            put_text(&b, "correlation_id", correlation_id)
        if reply_to is not None:
            mp_str(&b, b"reply_to", 8)
            put_text(&b, "reply_to", reply_to)
        if content_type is not None:
            mp_str(&b, b"content_type", 12)
            put_text(&b, "content_type", content_type)
        if b.failed:
            raise MemoryError
        if b.size > PROPERTIES_SIZE_MAX:
            raise BadArgument(f"the properties have {b.size} bytes; at most {PROPERTIES_SIZE_MAX} are allowed")
        return <bytes> b.data[:b.size]
    finally:
        buffer_free(&b)
