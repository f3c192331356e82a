# Publishing into a shard: deciding a run of records, and putting them into queues.
#
# Rules: a decision is all of its queues or none; a sequence taken before is dropped and confirmed, one that is not
# above the highest decided and was not taken is refused `late`, a higher one is decided (design section 4). Where there
# is a log, persistent messages of durable queues are neither confirmed nor delivered before it has them for good: the
# outcome waits for the log, and the messages are hidden until then. Records were checked by the front-end; here their
# lengths are read again, within bounds, and with a log whether they are persistent. Runs in the worker, without the GIL.
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from fastmq._core cimport Slot, ring_push_back
from fastmq.model.effects cimport effects_hold, effects_refuse
from fastmq.model.members cimport Queue, queue_next_seq
from fastmq.model.publishers cimport Publisher, publisher_has, publisher_take, publisher_trim, publishers_forget
from fastmq.model.publishers cimport publishers_use
from fastmq.model.shard_records cimport C_DECIDE, C_FORGET, C_KEEP, C_TAKE, C_TAKEN, LEVEL_ALL, ChangeDecide
from fastmq.model.shard_records cimport ChangeSession, ChangeTake, ChangeTaken, KeptQueue, record_add, record_begin
from fastmq.model.state cimport TICK_COUNT_MAX, ShardState, hide, mark_write, queue_find, queue_show, queue_wake
from fastmq.model.store cimport Chunk, NAME_NONE, SLOT_KEPT, chunk_data, name_take, store_large, store_open
from fastmq.model.store cimport store_open_large
from fastmq.model.store cimport tail_open
from fastmq.wire.buffer cimport buffer_add, buffer_clear, buffer_extend
from fastmq.wire.link cimport QUEUE_DURABLE
from fastmq.wire.msgpack cimport Reader, mp_read_nil, mp_skip, reader_init
from fastmq.wire.records cimport record_is_persistent
from fastmq.wire.verbs cimport BAD_REQUEST, DISK_FULL, LATE, NO_QUEUE, OK


cdef inline uint32_t record_length(const uint8_t* at, const uint8_t* end) noexcept nogil:
    """The bytes of the record at `at`; 0 when it does not end before `end`, or is none. The short forms, most of all,
    in a few steps."""
    cdef const uint8_t* start = at
    cdef Reader r
    if end - at >= 6 and at[0] == 0x93 and 0xa0 <= at[1] <= 0xbf and end - at >= 6 + (at[1] & 31):
        at += 2 + (at[1] & 31)
        if at[0] == 0xc0:
            if at[1] == 0xc4:
                at += 3 + <size_t> at[2]
                return <uint32_t> (at - start) if at <= end else 0
            if at[1] == 0xc5 and end - at >= 4:
                at += 4 + ((<size_t> at[2] << 8) | at[3])
                return <uint32_t> (at - start) if at <= end else 0
    if end - start < 4 or start[0] != 0x93:
        return 0
    reader_init(&r, start + 1, <size_t> (end - start) - 1)
    mp_skip(&r)
    if not mp_read_nil(&r):
        mp_skip(&r)
    mp_skip(&r)
    return 0 if r.error else <uint32_t> (r.at - start)


cdef inline uint32_t* records_measure(ShardState* s, const uint8_t* records, uint32_t size,
                                      uint32_t count) noexcept nogil:
    """The lengths of `count` records that fill `size` bytes exactly; NULL when they do not."""
    cdef const uint8_t* at = records
    cdef const uint8_t* end = records + size
    cdef uint32_t* sizes
    cdef uint32_t i
    if count > size:                        # before anything is allocated
        return NULL
    buffer_clear(&s.sizes)
    sizes = <uint32_t*> buffer_extend(&s.sizes, count * sizeof(uint32_t))
    if sizes == NULL:
        s.failed = True
        return NULL
    for i in range(count):
        sizes[i] = record_length(at, end)
        if sizes[i] == 0:
            return NULL
        at += sizes[i]
    return sizes if at == end else NULL


cdef inline void queue_put(ShardState* s, Queue* q, const uint8_t* records, const uint32_t* sizes, uint32_t count,
                           uint64_t size, uint32_t name, uint64_t timestamp_ms) noexcept nogil:
    """Append messages. What fits into one chunk is copied at once, however many they are."""
    cdef uint32_t large = store_large(&s.store), i, used = 0, free_bytes = 0, fresh = 0
    cdef uint64_t place = 0, left = size
    cdef const uint8_t* at = records        # what is not copied yet starts here
    cdef size_t pending = 0
    cdef Chunk* chunk = q.tail
    cdef Slot slot
    slot.c = timestamp_ms
    if chunk != NULL:
        used = chunk.used
        free_bytes = chunk.room - used
        place = <uint64_t> chunk.index << 32
    for i in range(count):
        if sizes[i] > free_bytes or sizes[i] > large:
            if pending:
                chunk_write(chunk, at, pending, fresh)
                at += pending
                pending = 0
                fresh = 0
            if sizes[i] > large:
                if not put_large(s, q, at, sizes[i], name, timestamp_ms):
                    return
                at += sizes[i]
                left -= sizes[i]
                continue
            if not tail_open(&s.store, &q.tail, q.ready_bytes if q.ready_bytes > left else left):
                s.failed = True
                return
            chunk = q.tail
            used = 0
            free_bytes = chunk.room
            place = <uint64_t> chunk.index << 32
        slot.a = place | used
        slot.b = (<uint64_t> sizes[i] << 32) | name
        if ring_push_back(&q.ring, &slot) < 0:
            s.failed = True
            return
        used += sizes[i]
        free_bytes -= sizes[i]
        pending += sizes[i]
        left -= sizes[i]
        fresh += 1
    if pending:
        chunk_write(chunk, at, pending, fresh)
    s.store.live_bytes += size
    q.ready_bytes += size
    queue_wake(s, q)


cdef inline void chunk_write(Chunk* chunk, const uint8_t* records, size_t size, uint32_t count) noexcept nogil:
    memcpy(chunk_data(chunk) + chunk.used, records, size)
    chunk.used += <uint32_t> size
    chunk.live += <uint32_t> size
    chunk.messages += count


cdef inline bint put_large(ShardState* s, Queue* q, const uint8_t* record, uint32_t size, uint32_t name,
                           uint64_t timestamp_ms) noexcept nogil:
    """Append a message with a chunk of its own, without copying it where it lies in the arena already."""
    cdef Chunk* chunk = store_open_large(&s.store, record, size)
    cdef Slot slot
    if chunk == NULL:
        chunk = store_open(&s.store, size)
    if chunk == NULL:
        s.failed = True
        return False
    if chunk.data == record:
        chunk.used = chunk.live = size
        chunk.messages = 1
    else:
        chunk_write(chunk, record, size, 1)
    slot.a = <uint64_t> chunk.index << 32
    slot.b = (<uint64_t> size << 32) | name
    slot.c = timestamp_ms
    if ring_push_back(&q.ring, &slot) < 0:
        s.failed = True
        return False
    return True


cdef inline void publish_take(ShardState* s, Publisher* p, uint64_t first, uint32_t count, const uint64_t* queues,
                              uint32_t queue_count, const uint8_t* exchange, uint32_t exchange_size,
                              const uint8_t* records, const uint32_t* sizes, uint32_t size,
                              uint64_t timestamp_ms) noexcept nogil:
    """Take new sequences into queues that are there."""
    cdef uint32_t name = name_take(&s.store.names, exchange, exchange_size, <uint64_t> count * queue_count)
    cdef bint durable = False
    cdef uint32_t i
    cdef Queue* q
    cdef uint8_t* at
    if name == NAME_NONE or not publisher_take(p, first, first + count - 1):
        s.failed = True
        return
    for i in range(queue_count):
        q = queue_find(s, queues[i])
        durable |= q.flags & QUEUE_DURABLE
        queue_put(s, q, records, sizes, count, size, name, timestamp_ms)
    s.published += count
    if s.level != LEVEL_ALL:
        return
    at = record_begin(&s.records, C_TAKE, durable, sizeof(ChangeTake) + <size_t> queue_count * 8
                      + ((exchange_size + 7) & ~<size_t> 7) + size)
    if at == NULL:
        return
    take_write(<ChangeTake*> at, p, first, count, queue_count, exchange_size, size, timestamp_ms)
    at += sizeof(ChangeTake)
    memcpy(at, queues, queue_count * sizeof(uint64_t))
    at += queue_count * sizeof(uint64_t)
    if exchange_size:
        memset(at + (exchange_size & ~<size_t> 7), 0, 8 if exchange_size & 7 else 0)
        memcpy(at, exchange, exchange_size)
        at += (exchange_size + 7) & ~<size_t> 7
    memcpy(at, records, size)


# ---- with a log

cdef inline void queue_hide(ShardState* s, Queue* q, uint64_t first_seq, bint persistent) noexcept nogil:
    """What was put into a kept queue from `first_seq` on is delivered when the log has it, or what stands before it."""
    cdef uint64_t end = queue_next_seq(q)
    cdef bint marked = q.open_count != 0 and q.mark + 1 == first_seq     # it will be delivered as soon as the log has it
    if not persistent and q.durable_end == first_seq and q.marked_end == first_seq:
        q.durable_end = q.marked_end = end
        q.mark = end - 1
        queue_show(s, q)
        return
    if marked:
        q.mark = end - 1
    hide(s, q, end, True, marked)


cdef inline uint32_t persistent_run(const uint8_t* records, const uint32_t* sizes, uint32_t count,
                                    bint* persistent) noexcept nogil:
    """How many of these records agree with the first one in being persistent or not; there is one."""
    cdef uint32_t i
    persistent[0] = record_is_persistent(records, sizes[0])
    for i in range(1, count):
        records += sizes[i - 1]
        if record_is_persistent(records, sizes[i]) != persistent[0]:
            return i
    return count


cdef inline void publish_kept(ShardState* s, Publisher* p, uint64_t first, uint32_t count, const uint64_t* queues,
                              uint32_t queue_count, const uint8_t* exchange, uint32_t exchange_size,
                              const uint8_t* records, const uint32_t* sizes, uint32_t size, uint64_t timestamp_ms,
                              bint persistent) noexcept nogil:
    """Take new sequences, all persistent or none, into queues some of which may be kept; the record for the log."""
    cdef uint32_t name = name_take(&s.store.names, exchange, exchange_size, <uint64_t> count * queue_count)
    cdef uint32_t names = (exchange_size + 7) & ~<uint32_t> 7, kept = 0, i
    cdef uint64_t first_seq
    cdef KeptQueue* places
    cdef KeptQueue* place
    cdef uint8_t* at
    cdef Queue* q
    if name == NAME_NONE or not publisher_take(p, first, first + count - 1):
        s.failed = True
        return
    buffer_clear(&s.delivery.runs)                          # empty between pumps: the KeptQueues
    for i in range(queue_count):
        q = queue_find(s, queues[i])
        first_seq = queue_next_seq(q)
        queue_put(s, q, records, sizes, count, size, name | SLOT_KEPT if q.kept and persistent else name, timestamp_ms)
        if not q.kept:
            continue
        queue_hide(s, q, first_seq, persistent)
        if not persistent:
            if q.mark >= first_seq and q.durable_end <= first_seq:
                mark_write(s, q, q.mark)
            continue
        place = <KeptQueue*> buffer_extend(&s.delivery.runs, sizeof(KeptQueue))
        if place == NULL:
            s.failed = True
            return
        kept += 1
        place.queue = q.id
        place.seq = first_seq
        place.marked = q.mark >= first_seq
        place.padding = 0
    s.published += count
    if kept == 0:
        publish_taken(s, p, first, first + count - 1)
        return
    places = <KeptQueue*> s.delivery.runs.data
    at = record_begin(&s.records, C_KEEP, True, sizeof(ChangeTake) + <size_t> kept * sizeof(KeptQueue) + names + size)
    if at == NULL:
        return
    take_write(<ChangeTake*> at, p, first, count, kept, exchange_size, size, timestamp_ms)
    at += sizeof(ChangeTake)
    memcpy(at, places, kept * sizeof(KeptQueue))
    at += kept * sizeof(KeptQueue)
    if exchange_size:
        memset(at + (exchange_size & ~<uint32_t> 7), 0, names - (exchange_size & ~<uint32_t> 7))
        memcpy(at, exchange, exchange_size)
    memcpy(at + names, records, size)
    buffer_clear(&s.delivery.runs)


cdef inline void take_write(ChangeTake* change, const Publisher* p, uint64_t first, uint32_t count, uint32_t queues,
                            uint32_t exchange_size, uint32_t records_size, uint64_t timestamp_ms) noexcept nogil:
    change.sid = p.sid
    change.floor = p.floor
    change.first_seq = first
    change.timestamp_ms = timestamp_ms
    change.count = count
    change.queues = queues
    change.exchange_size = exchange_size
    change.records_size = records_size


cdef inline void publish_taken(ShardState* s, const Publisher* p, uint64_t first, uint64_t last) noexcept nogil:
    """The record of a publish of which nothing is kept but that it was taken. There is none while the disk is full."""
    cdef ChangeTaken change
    if s.full:
        return
    change.sid = p.sid
    change.floor = p.floor
    change.first = first
    change.last = last
    record_add(&s.records, C_TAKEN, True, &change, sizeof(change))


cdef inline bint any_is_kept(ShardState* s, const uint64_t* queues, uint32_t count) noexcept nogil:
    cdef uint32_t i
    for i in range(count):
        if queue_find(s, queues[i]).kept:
            return True
    return False


cdef inline bint publish_keep(ShardState* s, Publisher* p, uint64_t first, uint32_t count, const uint64_t* queues,
                              uint32_t queue_count, const uint8_t* exchange, uint32_t exchange_size,
                              const uint8_t* records, const uint32_t* sizes, uint32_t size,
                              uint64_t timestamp_ms) noexcept nogil:
    """Take new sequences where there is a log; whether the outcome waits for it."""
    cdef bint kept = any_is_kept(s, queues, queue_count), persistent, waits = False
    cdef uint32_t i, n, length
    while count and not s.failed:
        persistent = False
        n = persistent_run(records, sizes, count, &persistent) if kept else count
        length = 0
        for i in range(n):
            length += sizes[i]
        publish_kept(s, p, first, n, queues, queue_count, exchange, exchange_size, records, sizes, length, timestamp_ms, persistent)
        waits |= persistent
        first += n
        records += length
        sizes += n
        count -= n
    return waits


cdef inline void publish_while_full(ShardState* s, Publisher* p, uint32_t frontend, uint64_t first, uint32_t count,
                                    const uint64_t* queues, uint32_t queue_count, const uint8_t* exchange,
                                    uint32_t exchange_size, const uint8_t* records, const uint32_t* sizes,
                                    uint64_t timestamp_ms) noexcept nogil:
    """Take new sequences into queues some of which are kept, but refuse the persistent ones: the log has no room for
    them. What it has is for settlements, of which there are only as many as there are messages; who is refused again
    and again must not use it up."""
    cdef bint persistent
    cdef uint32_t i, n, length
    while count and not s.failed:
        persistent = False
        n = persistent_run(records, sizes, count, &persistent)
        length = 0
        for i in range(n):
            length += sizes[i]
        if persistent:
            p.highest = first + n - 1
            effects_refuse(&s.effects, frontend, s.index, p.sid, first, p.highest, DISK_FULL)
        else:
            publish_kept(s, p, first, n, queues, queue_count, exchange, exchange_size, records, sizes, length, timestamp_ms, False)
            effects_hold(&s.effects, frontend, s.index, p.sid, first, first + n - 1, False)
        first += n
        records += length
        sizes += n
        count -= n


cdef inline void publish_decided(ShardState* s, Publisher* p) noexcept nogil:
    """The record of a publish of which nothing was taken: the publisher's numbers. There is none while the disk is full."""
    cdef ChangeDecide change
    if s.level and not s.full:
        change.sid = p.sid
        change.floor = p.floor
        change.highest = p.highest
        record_add(&s.records, C_DECIDE, True, &change, sizeof(change))


cdef inline void publish_again(ShardState* s, Publisher* p, uint32_t frontend, uint64_t first,
                               uint64_t last) noexcept nogil:
    """Answer sequences that are not above the highest decided."""
    cdef uint64_t until
    while first <= last:
        if publisher_has(p, first, &until):
            until = until if until < last else last
            effects_hold(&s.effects, frontend, s.index, p.sid, first, until, s.keeps)   # its record may be on its way yet
            s.duplicates += until - first + 1
        else:
            until = until if until < last else last
            effects_refuse(&s.effects, frontend, s.index, p.sid, first, until, LATE)
        first = until + 1


cdef inline Publisher* publish_publisher(ShardState* s, uint64_t sid, uint64_t floor) noexcept nogil:
    """The publisher, made if need be, in use now, trimmed; NULL when there is no memory."""
    cdef Publisher* p = publishers_use(&s.publishers, sid, s.now_ns)
    if p == NULL:
        s.failed = True
        return NULL
    publisher_trim(p, floor)
    if s.publishers.by_sid.count > s.publishers_max and not s.replaying:
        publisher_forget(s, s.publishers.oldest)
    return p


cdef inline void publisher_forget(ShardState* s, Publisher* p) noexcept nogil:
    cdef ChangeSession change
    if s.level:
        memset(&change, 0, sizeof(change))
        change.sid = p.sid
        record_add(&s.records, C_FORGET, True, &change, sizeof(change))
    publishers_forget(&s.publishers, p)


cdef inline void publishers_tick(ShardState* s) noexcept nogil:
    """Forget publishers that have been idle for long enough."""
    for _ in range(TICK_COUNT_MAX):
        if s.publishers.oldest == NULL or s.now_ns - s.publishers.oldest.used_ns < s.publisher_keep_ns:
            return
        publisher_forget(s, s.publishers.oldest)


cdef inline void publish_run(ShardState* s, uint32_t frontend, uint64_t sid, uint64_t floor, uint64_t first,
                             uint32_t count, const uint64_t* queues, uint32_t queue_count, const uint8_t* exchange,
                             uint32_t exchange_size, const uint8_t* records, uint32_t size,
                             uint64_t now_ms) noexcept nogil:
    """Decide `count` sequences from `first` on; see Shard.publish."""
    cdef uint64_t last = first + count - 1, known
    cdef uint32_t code = OK, i, skipped
    cdef bint waits = False
    cdef uint32_t* sizes
    cdef Publisher* p
    if count == 0 or first == 0 or last < first or sid == 0 or last + 1 == 0:
        return                                              # the front-end does not send that
    p = publish_publisher(s, sid, floor)
    if p == NULL:
        return
    if last <= p.highest:
        publish_again(s, p, frontend, first, last)
        publish_decided(s, p)
        return
    sizes = records_measure(s, records, size, count)
    if sizes == NULL:
        code = BAD_REQUEST
    if first <= p.highest:
        known = p.highest - first + 1
        publish_again(s, p, frontend, first, p.highest)
        first += known
        count -= <uint32_t> known
        if sizes != NULL:
            skipped = 0
            for i in range(<uint32_t> known):
                skipped += sizes[i]
            sizes += known
            records += skipped
            size -= skipped
    for i in range(queue_count):
        if queue_find(s, queues[i]) == NULL:
            code = NO_QUEUE
    if code == OK and s.full and any_is_kept(s, queues, queue_count):
        publish_while_full(s, p, frontend, first, count, queues, queue_count, exchange, exchange_size, records, sizes, now_ms)
    elif code == OK and not s.failed:
        if s.keeps:
            waits = publish_keep(s, p, first, count, queues, queue_count, exchange, exchange_size, records, sizes, size, now_ms)
        else:
            publish_take(s, p, first, count, queues, queue_count, exchange, exchange_size, records, sizes, size, now_ms)
        effects_hold(&s.effects, frontend, s.index, sid, first, last, waits)
    else:
        p.highest = last
        effects_refuse(&s.effects, frontend, s.index, sid, first, last, code)
        publish_decided(s, p)
