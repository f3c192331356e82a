"""The open publishes of a connection: see publishes.pxd."""
from cpython.ref cimport PyObject
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset

from fastmq.wire.blocks cimport blocks_free, blocks_give, blocks_take
from fastmq.wire.buffer cimport buffer_add, buffer_clear, buffer_free, buffer_init
from fastmq.wire.msgpack cimport (
    Reader, mp_array, mp_bin, mp_nil, mp_read_str, mp_skip, mp_str, mp_tag, mp_take, mp_uint, reader_init,
)
from fastmq.wire.records cimport Record, record_read
from fastmq.wire.verbs cimport PUBLISH
from fastmq.wire.zmtp cimport Zmtp, zmtp_attach, zmtp_frame_head

cdef extern from "Python.h":
    void Py_INCREF(PyObject* object) nogil
    void Py_DECREF(PyObject* object)


cdef enum:
    BLOCK_SIZE = 2 * BATCH_SIZE_MAX


cdef void publishes_init(Publishes* p) noexcept nogil:
    memset(p, 0, sizeof(Publishes))
    p.next_seq = 1
    p.batch_messages = BATCH_RECORDS_MAX


cdef void publishes_free(Publishes* p) noexcept nogil:
    while p.head != p.tail:
        batch_free(p, p.ring[p.head & p.mask])
        p.head += 1
    with gil:
        publishes_drop(p.dropped)
    blocks_free(&p.blocks)
    free(p.ring)
    buffer_free(&p.failed)
    buffer_free(&p.header)
    publishes_init(p)


# ---- adding

cdef bint publishes_room(Publishes* p, uint64_t size) noexcept nogil:
    if p.open_messages == 0:
        return True
    if p.ready:
        return (p.sent_messages + p.unsent_messages < p.window_messages
                and p.sent_bytes + p.unsent_bytes + size <= p.window_bytes)
    return p.open_messages < p.limit_messages and p.open_bytes + size <= p.limit_bytes


cdef bint publishes_wide(Publishes* p, uint64_t size) noexcept nogil:
    return publishes_room(p, size) and (
        not p.ready or p.open_messages == 0 or p.window_messages - p.sent_messages - p.unsent_messages >= p.batch_messages)


cdef inline uint32_t str_head(uint32_t size) noexcept nogil:
    return 1 if size < 32 else 2 if size < 0x100 else 3 if size < 0x10000 else 5


cdef inline uint32_t bin_head(uint32_t size) noexcept nogil:
    return 2 if size < 0x100 else 3 if size < 0x10000 else 5


cdef inline uint8_t* put_big(uint8_t* at, uint8_t tag, uint32_t value, int size) noexcept nogil:
    cdef int i
    at[0] = tag
    for i in range(size):
        at[1 + i] = <uint8_t> (value >> (8 * (size - 1 - i)))
    return at + 1 + size


cdef uint64_t publishes_add(Publishes* p, const char* exchange, uint8_t exchange_size, uint8_t flags, const char* key, uint8_t key_size,
                            const void* properties, uint32_t properties_size, const void* body, uint32_t body_size,
                            PyObject* owner) noexcept nogil:
    """Add one record to the last batch, or to a new one; its sequence, or PUBLISH_FULL or PUBLISH_NO_MEMORY and nothing changed."""
    cdef uint64_t size = <uint64_t> 1 + str_head(key_size) + key_size + bin_head(body_size) + body_size
    cdef Batch* b
    cdef uint8_t* at
    size += properties_size if properties_size else 1
    if not publishes_room(p, size):
        return PUBLISH_FULL
    if body_size < BORROWED_MIN:
        owner = NULL
    b = publishes_last(p) if p.gathering else NULL
    if (b == NULL or owner != NULL or b.records.size + size > BATCH_SIZE_MAX or b.count >= BATCH_RECORDS_MAX or b.flags != flags
            or b.exchange_size != exchange_size or exchange_size and memcmp(b.exchange, exchange, exchange_size) != 0):
        b = batch_new(p, exchange, exchange_size, flags, size - body_size if owner != NULL else size, owner)
        if b == NULL:
            return PUBLISH_NO_MEMORY
    at = b.records.data + b.records.size
    at[0] = 0x93
    at += 1
    if key_size < 32:
        at[0] = 0xa0 | key_size
        at += 1
    else:
        at = put_big(at, 0xd9, key_size, 1)
    memcpy(at, key, key_size)
    at += key_size
    if properties_size:
        memcpy(at, properties, properties_size)
        at += properties_size
    else:
        at[0] = 0xc0
        at += 1
    if body_size < 0x100:
        at = put_big(at, 0xc4, body_size, 1)
    elif body_size < 0x10000:
        at = put_big(at, 0xc5, body_size, 2)
    else:
        at = put_big(at, 0xc6, body_size, 4)
    if owner != NULL:
        b.body = <const uint8_t*> body
        b.body_size = body_size
        p.gathering = False
        b.records.size = <size_t> size - body_size
    else:
        memcpy(at, body, body_size)
        b.records.size += <size_t> size
    b.count += 1
    b.open += 1
    p.open_messages += 1
    p.open_bytes += size
    p.unsent_messages += 1
    p.unsent_bytes += size
    p.next_seq += 1
    return p.next_seq - 1


cdef Batch* batch_new(Publishes* p, const char* exchange, uint8_t exchange_size, uint8_t flags, uint64_t size, PyObject* owner) noexcept nogil:
    """An empty batch at the end of the ring, with room for a first record of `size` bytes; NULL, and nothing changed: no memory.

    With an owner that is the only one, without its body.
    """
    cdef Batch* b
    if p.gathering:
        batch_close(p, publishes_last(p))
    if (p.ring == NULL or p.tail - p.head > p.mask) and not ring_grow(p):
        return NULL
    b = <Batch*> malloc(sizeof(Batch))
    if b == NULL:
        return NULL
    buffer_init(&b.records)
    b.body = NULL
    b.body_size = 0
    b.owner = owner
    if owner != NULL:
        b.records.room = <size_t> size
        b.records.data = <uint8_t*> malloc(b.records.room)
    else:
        b.records.data = blocks_take(&p.blocks, <size_t> (size if size > BLOCK_SIZE else BLOCK_SIZE), &b.records.room)
    if b.records.data == NULL:
        free(b)
        return NULL
    if owner != NULL:
        Py_INCREF(owner)
    b.first_seq = p.next_seq
    b.sent_ns = 0
    b.decided = NULL
    b.count = b.open = b.sent = b.sent_size = 0
    b.flags = flags
    b.exchange_size = exchange_size
    memcpy(b.exchange, exchange, exchange_size)
    p.ring[p.tail & p.mask] = b
    p.tail += 1
    p.gathering = True
    return b


cdef bint ring_grow(Publishes* p) noexcept nogil:
    cdef uint64_t room = (p.mask + 1) * 2 if p.ring != NULL else 64
    cdef uint64_t i
    cdef Batch** ring = <Batch**> malloc(room * sizeof(Batch*))
    if ring == NULL:
        return False
    i = p.head
    while i != p.tail:
        ring[i & (room - 1)] = p.ring[i & p.mask]
        i += 1
    free(p.ring)
    p.ring = ring
    p.mask = room - 1
    return True


cdef void batch_close(Publishes* p, Batch* b) noexcept nogil:
    """No more records: a block that is mostly empty is exchanged for one that fits, so that many small batches cost what they hold."""
    cdef uint8_t* data
    p.gathering = False
    if b.records.room >= BLOCK_SIZE and b.records.size * 4 < b.records.room:
        data = <uint8_t*> malloc(b.records.size)
        if data != NULL:
            memcpy(data, b.records.data, b.records.size)
            blocks_give(&p.blocks, b.records.data, b.records.room)
            b.records.data = data
            b.records.room = b.records.size


cdef void publishes_drop(Batch* dropped):
    cdef Batch* following
    while dropped != NULL:
        following = dropped.next
        Py_DECREF(dropped.owner)
        free(dropped)
        dropped = following


cdef void batch_free(Publishes* p, Batch* b) noexcept nogil:
    if b.records.room >= BLOCK_SIZE:
        blocks_give(&p.blocks, b.records.data, b.records.room)
    else:
        free(b.records.data)
    free(b.decided)
    if b.owner == NULL:
        free(b)
    else:
        b.next = p.dropped
        p.dropped = b


# ---- sending

cdef inline bint is_decided(Batch* b, uint32_t index) noexcept nogil:
    return b.decided != NULL and b.decided[index >> 3] >> (index & 7) & 1


cdef uint64_t publishes_floor(Publishes* p) noexcept nogil:
    cdef Batch* b
    cdef uint32_t i = 0
    if p.head == p.tail:
        return p.next_seq
    b = p.ring[p.head & p.mask]
    if b.decided != NULL:
        while i < b.count and b.decided[i >> 3] >> (i & 7) & 1:
            i += 8 if i & 7 == 0 and b.decided[i >> 3] == 0xff else 1
    return b.first_seq + i


cdef uint64_t publishes_sent_up_to(Publishes* p) noexcept nogil:
    cdef Batch* b
    if p.send == p.tail:
        return p.next_seq - 1
    b = p.ring[p.send & p.mask]
    return b.first_seq + b.sent - 1


cdef void publishes_restart(Publishes* p, uint64_t now, uint64_t age_max_ns) noexcept nogil:
    """A new incarnation: all that is open is unsent again, except what was first sent longer ago than shards remember: that is `unknown`."""
    cdef uint64_t i = p.head
    cdef Batch* b
    while i != p.tail:
        b = p.ring[i & p.mask]
        if b.sent_ns and now > b.sent_ns and now - b.sent_ns > age_max_ns:
            publishes_refuse(p, b.first_seq, b.first_seq + b.count - 1, <const uint8_t*> b"unknown", 7, <const uint8_t*>
                             b"its outcome did not come within the time for which the broker remembers a publisher", 83)
        i += 1
    publishes_advance(p)
    p.sent_messages = 0
    p.sent_bytes = 0
    p.outstanding = 0
    p.unsent_messages = p.open_messages
    p.unsent_bytes = 0
    p.send = p.head
    i = p.head
    while i != p.tail:
        b = p.ring[i & p.mask]
        b.sent = 0 if b.open else b.count
        b.sent_size = 0 if b.open else <uint32_t> batch_size(b)
        p.unsent_bytes += open_size(b)
        i += 1


cdef uint64_t open_size(Batch* b) noexcept nogil:
    """Bytes of the batch's records without an outcome."""
    cdef Reader r
    cdef Record record
    cdef uint64_t size = 0
    cdef uint32_t i
    if b.open == 0 or b.decided == NULL or b.body != NULL:
        return batch_size(b) if b.open else 0
    memset(&record, 0, sizeof(Record))
    reader_init(&r, b.records.data, b.records.size)
    for i in range(b.count):
        record_read(&r, &record)
        if not is_decided(b, i):
            size += record.size
    return size


cdef void publishes_write(Publishes* p, Zmtp* out, const uint8_t* session, uint64_t incarnation, uint64_t now) noexcept nogil:
    """Write PUBLISH messages for what is unsent, in order, as far as the window reaches."""
    cdef Batch* b
    if not p.ready:
        return
    while p.send != p.tail:
        b = p.ring[p.send & p.mask]
        if b.open == 0:
            pass
        elif batch_size(b) >= ATTACHED_MIN and out.attached != NULL and not p.copying:
            p.blocked = True
            return
        elif b.decided == NULL and b.sent == 0 and (fits(p, b.count, batch_size(b)) or b.body != NULL and p.outstanding == 0):
            if p.gathering and p.send + 1 == p.tail:
                batch_close(p, b)
            write_run(p, b, out, session, incarnation, 0, b.count, 0, <uint32_t> batch_size(b))
            account_sent(p, b, b.count, batch_size(b), now)
        elif b.body != NULL:
            return
        elif not write_rest(p, b, out, session, incarnation, now):
            return
        p.send += 1


cdef inline bint fits(Publishes* p, uint32_t count, uint64_t size) noexcept nogil:
    return p.sent_messages + count <= p.window_messages and p.sent_bytes + size <= p.window_bytes


cdef void account_sent(Publishes* p, Batch* b, uint32_t count, uint64_t size, uint64_t now) noexcept nogil:
    b.sent += count
    b.sent_size += <uint32_t> size
    if b.sent_ns == 0:
        b.sent_ns = now if now else 1
    p.sent_messages += count
    p.sent_bytes += size
    p.outstanding += count
    p.unsent_messages -= count
    p.unsent_bytes -= size
    if b.first_seq + b.sent - 1 > p.sent_seq_max:
        p.sent_seq_max = b.first_seq + b.sent - 1


cdef bint write_rest(Publishes* p, Batch* b, Zmtp* out, const uint8_t* session, uint64_t incarnation, uint64_t now) noexcept nogil:
    """Write the batch's unsent records without an outcome, one PUBLISH for each unbroken run; False: the window ends before the batch."""
    cdef Reader r
    cdef Record record
    cdef uint32_t first = b.sent, first_at = b.sent_size
    cdef bint whole = True
    if p.gathering and p.send + 1 == p.tail:
        if p.outstanding and not fits(p, 1, 0):
            return False
        batch_close(p, b)
    memset(&record, 0, sizeof(Record))
    reader_init(&r, b.records.data + b.sent_size, b.records.size - b.sent_size)
    while b.sent < b.count:
        record_read(&r, &record)
        if is_decided(b, b.sent):
            write_run(p, b, out, session, incarnation, first, b.sent - first, first_at, b.sent_size - first_at)
            b.sent += 1
            b.sent_size += record.size
            first, first_at = b.sent, b.sent_size
        elif p.outstanding and not fits(p, 1, record.size):
            whole = False
            break
        else:
            account_sent(p, b, 1, record.size, now)
    write_run(p, b, out, session, incarnation, first, b.sent - first, first_at, b.sent_size - first_at)
    return whole


cdef void write_run(Publishes* p, Batch* b, Zmtp* out, const uint8_t* session, uint64_t incarnation,
                    uint32_t first, uint32_t count, uint32_t at, uint32_t size) noexcept nogil:
    """One PUBLISH: [verb, session, incarnation, floor, first sequence, count, exchange, flags] and the records."""
    if count == 0:
        return
    buffer_clear(&p.header)
    mp_array(&p.header, 8)
    mp_uint(&p.header, PUBLISH)
    mp_bin(&p.header, session, 16)
    mp_uint(&p.header, incarnation)
    mp_uint(&p.header, publishes_floor(p))
    mp_uint(&p.header, b.first_seq + first)
    mp_uint(&p.header, count)
    mp_str(&p.header, b.exchange, b.exchange_size)
    mp_uint(&p.header, b.flags)
    if p.header.failed:
        p.broken = True
        return
    zmtp_frame_head(&out.out, p.header.size, True)
    buffer_add(&out.out, p.header.data, p.header.size)
    zmtp_frame_head(&out.out, size, False)
    if b.body != NULL:
        buffer_add(&out.out, b.records.data, b.records.size)
        if out.attached == NULL:
            zmtp_attach(out, b.body, b.body_size)
            p.attached = b
        else:
            buffer_add(&out.out, b.body, b.body_size)
    elif size >= ATTACHED_MIN and out.attached == NULL:
        zmtp_attach(out, b.records.data + at, size)
        p.attached = b
    else:
        buffer_add(&out.out, b.records.data + at, size)


# ---- outcomes

cdef uint64_t batch_of(Publishes* p, uint64_t seq) noexcept nogil:
    """Index of the batch with the sequence, which lies between the first and the last one's."""
    cdef uint64_t low = p.head, high = p.tail - 1, middle
    while low < high:
        middle = low + (high - low + 1) // 2
        if p.ring[middle & p.mask].first_seq <= seq:
            low = middle
        else:
            high = middle - 1
    return low


cdef bint publishes_confirm(Publishes* p, uint64_t first, uint64_t last) noexcept nogil:
    """Those of first..last that are open and were sent succeeded; False: no memory, and some are still open."""
    cdef uint64_t i
    cdef Batch* b
    if p.head == p.tail:
        return True
    if first < p.ring[p.head & p.mask].first_seq:
        first = p.ring[p.head & p.mask].first_seq
    if last > p.sent_seq_max:
        last = p.sent_seq_max
    if first > last:
        return True
    i = batch_of(p, first)
    while i != p.tail:
        b = p.ring[i & p.mask]
        if b.first_seq > last:
            break
        if first <= b.first_seq and b.first_seq + b.count - 1 <= last and b.sent == b.count:
            p.open_messages -= b.open
            p.outstanding -= b.open
            p.confirmed += b.open
            b.open = 0
        elif not confirm_part(p, b, first, last):
            return False
        i += 1
    return True


cdef bint confirm_part(Publishes* p, Batch* b, uint64_t first, uint64_t last) noexcept nogil:
    cdef uint32_t i = <uint32_t> (first - b.first_seq) if first > b.first_seq else 0
    cdef uint32_t end = <uint32_t> (last - b.first_seq) + 1 if last - b.first_seq < b.count else b.count
    while i < end:
        if b.open and not is_decided(b, i):
            if not decide(p, b, i):
                return False
            p.confirmed += 1
        i += 1
    return True


cdef bint decide(Publishes* p, Batch* b, uint32_t index) noexcept nogil:
    """The record, which had none, has an outcome; False: no memory, nothing changed."""
    cdef Record record
    if b.decided == NULL:
        b.decided = <uint8_t*> calloc((b.count + 7) // 8, 1)
        if b.decided == NULL:
            return False
    b.decided[index >> 3] |= <uint8_t> (1 << (index & 7))
    b.open -= 1
    p.open_messages -= 1
    if index < b.sent:
        p.outstanding -= 1
    else:
        p.unsent_messages -= 1
        if b.body != NULL:
            p.unsent_bytes -= batch_size(b)
        else:
            record_at(b, index, &record)
            p.unsent_bytes -= record.size
    return True


cdef void record_at(Batch* b, uint32_t index, Record* record) noexcept nogil:
    cdef Reader r
    cdef uint32_t _i
    memset(record, 0, sizeof(Record))
    reader_init(&r, b.records.data, b.records.size)
    for _i in range(index + 1):
        record_read(&r, record)


cdef bint publishes_refuse(Publishes* p, uint64_t first, uint64_t last, const uint8_t* code, uint32_t code_size,
                           const uint8_t* text, uint32_t text_size) noexcept nogil:
    """Those of first..last that are open and were sent failed, and are kept for the next flush; False: no memory."""
    cdef uint64_t i
    cdef uint32_t index, end
    cdef Batch* b
    cdef Reader r
    cdef Record record
    if p.head == p.tail:
        return True
    if first < p.ring[p.head & p.mask].first_seq:
        first = p.ring[p.head & p.mask].first_seq
    if last > p.sent_seq_max:
        last = p.sent_seq_max
    if first > last:
        return True
    i = batch_of(p, first)
    while i != p.tail:
        b = p.ring[i & p.mask]
        if b.first_seq > last:
            break
        end = <uint32_t> (last - b.first_seq) + 1 if last - b.first_seq < b.count else b.count
        memset(&record, 0, sizeof(Record))
        reader_init(&r, b.records.data, b.records.size)
        for index in range(end):
            record_read(&r, &record)                        # of one whose body is borrowed: all that stands before it
            if b.first_seq + index >= first and b.open and not is_decided(b, index):
                if not decide(p, b, index):
                    return False
                p.refused += 1
                add_failure(p, b, b.first_seq + index, &record, code, code_size, text, text_size)
        i += 1
    return not p.failed.failed


cdef void add_failure(Publishes* p, Batch* b, uint64_t seq, Record* record, const uint8_t* code, uint32_t code_size,
                      const uint8_t* text, uint32_t text_size) noexcept nogil:
    cdef const uint8_t* message_id
    cdef uint32_t size
    mp_array(&p.failed, 6)
    mp_uint(&p.failed, seq)
    mp_str(&p.failed, code, code_size)
    mp_str(&p.failed, text, min(text_size, <uint32_t> FAILURE_TEXT_MAX))
    mp_str(&p.failed, b.exchange, b.exchange_size)
    mp_str(&p.failed, record.routing_key, record.routing_key_size)
    message_id = find_message_id(record, &size)
    if message_id != NULL:
        mp_str(&p.failed, message_id, size)
    else:
        mp_nil(&p.failed)
    p.failures += 1


cdef const uint8_t* find_message_id(Record* record, uint32_t* size) noexcept nogil:
    """The value of message_id among a record's properties, which this client wrote; NULL: there is none."""
    cdef Reader r
    cdef uint8_t tag
    cdef uint64_t left
    cdef const uint8_t* name
    if record.properties_size == 0:
        return NULL
    reader_init(&r, record.properties, record.properties_size)
    tag = mp_tag(&r)
    left = tag & 15 if tag < 0x90 else mp_take(&r, 2 if tag == 0xde else 4)
    while left and not r.error:
        name = mp_read_str(&r, size)
        if name != NULL and size[0] == 10 and memcmp(name, b"message_id", 10) == 0:
            return mp_read_str(&r, size)
        mp_skip(&r)
        left -= 1
    return NULL


cdef void publishes_advance(Publishes* p) noexcept nogil:
    cdef Batch* b
    while p.head != p.tail:
        b = p.ring[p.head & p.mask]
        if b.open or b == p.attached:
            break
        if p.gathering and p.head + 1 == p.tail:
            if b.count == 0:
                break
            p.gathering = False
        p.open_bytes -= batch_size(b)
        batch_free(p, b)
        p.head += 1
    if p.send < p.head:
        p.send = p.head


cdef void publishes_detach(Publishes* p) noexcept nogil:
    if p.attached != NULL:
        p.attached = NULL
        publishes_advance(p)                            # it may have its outcome already
    p.blocked = False
