"""The Python face of records.pxd: what the broker sees in a records frame. The hot path uses the .pxd."""
from libc.stdint cimport uint8_t

from fastmq.wire.msgpack cimport Reader, mp_skip, reader_init
from fastmq.wire.records cimport (
    RECORD_GOOD, RECORD_KEY_NOT_UTF8, RECORD_KEY_TOO_LONG, RECORD_MALFORMED, RECORD_PROPERTIES_TOO_LARGE, Record, record_read, utf8_valid,
)

REASONS = {
    RECORD_MALFORMED: "not [routing key str, properties map or nil, body bin]",
    RECORD_KEY_TOO_LONG: "the routing key is longer than 255 bytes",
    RECORD_PROPERTIES_TOO_LARGE: "the properties are larger than 128 KiB",
    RECORD_KEY_NOT_UTF8: "the routing key is not UTF-8 without NUL",
}


def split_records(bytes data) -> list[tuple[bytes, bytes, bytes]]:
    """(routing key, properties as msgpack or b"", body) of each record in `data`.

    Raises ValueError, naming the record by its index from 0, at the first that is not as docs/protocol.md says.
    """
    cdef Reader reader
    cdef Record record
    cdef int error
    cdef const uint8_t* at = <const uint8_t*> <const char*> data
    reader_init(&reader, at, len(data))
    found = []
    while reader.at < reader.end:
        error = record_read(&reader, &record)
        if error == RECORD_GOOD and not utf8_valid(record.routing_key, record.routing_key_size):
            error = RECORD_KEY_NOT_UTF8
        if error != RECORD_GOOD:
            raise ValueError(f"record {len(found)}: {REASONS.get(error)}")
        found.append((
            (<const char*> record.routing_key)[:record.routing_key_size],
            (<const char*> record.properties)[:record.properties_size],
            (<const char*> record.body)[:record.body_size],
        ))
    return found


def value_size(bytes data) -> int:
    """Bytes of the first msgpack value in `data`, or -1 where there is none that the broker would pass over."""
    cdef Reader reader
    reader_init(&reader, <const char*> data, len(data))
    mp_skip(&reader)
    return -1 if reader.error else len(data) - (reader.end - reader.at)


def is_utf8(bytes data) -> bool:
    """Whether the broker takes `data` for a name: UTF-8 without NUL."""
    return utf8_valid(<const uint8_t*> <const char*> data, len(data))
