# From queues to consumers: whose turn it is, what a delivery carries, GET.
#
# Rules: what came back, or was read back, goes out before the ring, oldest first, and never before an older one that is
# cold still; a queue's ready messages are dealt in equal blocks to
# the consumers that have room, in turn, and who got less than his block is first the next time; a pump does bounded
# work. Messages of one session are gathered into deliveries of at most DELIVERY_SIZE_MAX bytes of records, consecutive
# tags that agree in all a client is told into one run, adjacent bytes into one copy. A delivery's effect points to the
# bytes where they lie: it is sent before anything else happens to the shard. A record in the arena goes alone, and only
# its place is told. What is hidden waits for the log. In the worker, without the GIL.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from fastmq._core cimport Ring, Slot, ring_at, ring_pop_front, ring_size
from fastmq.model.ageing cimport age_taken
from fastmq.model.effects cimport effects_begin
from fastmq.model.members cimport Consumer, Outstanding, Queue, Returned, Session
from fastmq.model.members cimport consumer_fits, consumer_has_room, consumer_open, consumer_shut, queue_deliverable
from fastmq.model.members cimport queue_prefetch_front, returned_pop
from fastmq.model.outstanding cimport outstanding_add
from fastmq.model.regions cimport Hold, regions_lend
from fastmq.model.shard_records cimport C_DELIVER, LEVEL_ALL, ChangeDeliver, record_add
from fastmq.model.state cimport PUMP_DELIVERIES_MAX, Delivery, Segment, ShardState, count_note, mark_write, queue_calm
from fastmq.model.state cimport queue_show, queue_wake, queue_want
from fastmq.model.store cimport Name, slot_name, slot_size, slot_timestamp_ms, store_bytes, store_chunk
from fastmq.wire.buffer cimport Buffer, buffer_add, buffer_clear, buffer_extend, buffer_pad8
from fastmq.wire.link cimport L_DELIVER, L_REPLY, QUEUE_DURABLE, RECORD_SHARED_MIN, LinkDeliver, LinkReply, LinkRun


cdef inline const Slot* queue_peek(Queue* q) noexcept nogil:
    """The next message that may be delivered, or NULL."""
    if q.returned_count:
        return &q.returned[0].slot if q.returned[0].seq < q.pieces.cold_seq and q.returned[0].seq < q.marked_end else NULL
    if q.seq_base + q.ring.first >= q.visible or q.pieces.cold_count:
        return NULL
    return ring_at(&q.ring, 0)


cdef inline Outstanding* queue_take(ShardState* s, Queue* q, Consumer* c) noexcept nogil:
    """The next message of a queue that has one, now outstanding at the consumer; NULL when there is no memory."""
    cdef Outstanding* e = outstanding_add(&s.outstanding)
    cdef Session* session = c.session
    cdef Returned back
    if e == NULL:
        s.failed = True
        return NULL
    if q.returned_count:
        returned_pop(q, &back)
        if s.ageing.sweeping == q:
            age_taken(s, q, &back)
        e.slot = back.slot
        e.seq = back.seq
        e.deliveries = back.deliveries + 1
        if e.deliveries > 1 or e.seq <= q.mark:
            count_note(s, q, &e.slot, e.seq, e.deliveries)
    else:
        e.seq = q.seq_base + q.ring.first
        ring_pop_front(&q.ring, &e.slot)
        e.deliveries = 1
    if e.seq > q.mark and q.kept:                           # a GET, which did not wait for the mark
        mark_write(s, q, e.seq)
    e.queue = q
    e.consumer = c
    e.next = NULL
    e.previous = session.last
    if session.last != NULL:
        session.last.next = e
    else:
        session.first = e
    session.last = e
    e.queue_next = NULL
    e.queue_previous = q.last
    if q.last != NULL:
        q.last.queue_next = e
    else:
        q.first = e
    q.last = e
    q.ready_bytes -= slot_size(&e.slot)
    q.unacknowledged += 1
    session.outstanding += 1
    c.outstanding += 1
    c.bytes += slot_size(&e.slot)
    return e


# ---- gathering a delivery

cdef inline bint delivery_run(ShardState* s, Delivery* d, Consumer* c, Outstanding* e) noexcept nogil:
    """Begin a run with this message; False when there is no memory."""
    cdef LinkRun* run = <LinkRun*> buffer_extend(&d.runs, sizeof(LinkRun))
    cdef Name* name = &s.store.names.items[slot_name(&e.slot)]
    if run == NULL:
        return False
    memset(run, 0, sizeof(LinkRun))
    run.epoch = s.epoch
    run.first_n = e.tag
    run.timestamp_ms = slot_timestamp_ms(&e.slot)
    run.consumer = c.number
    run.deliveries = e.deliveries
    run.exchange_size = <uint16_t> name.size
    run.shard = s.index
    if d.runs.size > sizeof(LinkRun) and d.name == slot_name(&e.slot):
        run.exchange_offset = (run - 1).exchange_offset
    else:
        run.exchange_offset = <uint32_t> d.names.size
        buffer_add(&d.names, name.data, name.size)
        d.name = slot_name(&e.slot)
    return not d.names.failed


cdef inline void delivery_add(ShardState* s, Delivery* d, Consumer* c, Outstanding* e) noexcept nogil:
    """One more message; the delivery has room for it and is to the consumer's session."""
    cdef const uint8_t* data = store_bytes(&s.store, &e.slot)
    cdef uint32_t size = slot_size(&e.slot)
    cdef LinkRun* run = NULL
    cdef Segment* segment = NULL
    if d.runs.size:
        run = <LinkRun*> (d.runs.data + d.runs.size) - 1
        segment = <Segment*> (d.segments.data + d.segments.size) - 1
    if (run == NULL or run.consumer != c.number or run.first_n + run.count != e.tag or run.deliveries != e.deliveries
            or run.timestamp_ms != slot_timestamp_ms(&e.slot) or d.name != slot_name(&e.slot)):
        if not delivery_run(s, d, c, e):
            s.failed = True
            return
        run = <LinkRun*> (d.runs.data + d.runs.size) - 1
    run.count += 1
    run.size += size
    d.size += size
    if segment != NULL and segment.data + segment.size == data:
        segment.size += size
        return
    segment = <Segment*> buffer_extend(&d.segments, sizeof(Segment))
    if segment == NULL:
        s.failed = True
        return
    segment.data = data
    segment.size = size


cdef inline size_t delivery_head_size(const Delivery* d) noexcept nogil:
    """Bytes of the message that carries it, without the records."""
    return sizeof(LinkDeliver) + d.runs.size + ((d.names.size + 7) & ~<size_t> 7)


cdef inline uint8_t* delivery_write_head(Delivery* d, uint64_t sid, uint32_t hello, uint8_t* at) noexcept nogil:
    """Write all but the records to `at`; where those follow."""
    cdef LinkDeliver* head = <LinkDeliver*> at
    buffer_pad8(&d.names)
    head.sid = sid
    head.hello = hello
    head.runs = <uint32_t> (d.runs.size // sizeof(LinkRun))
    head.names_size = <uint32_t> d.names.size
    head.records_size = <uint32_t> d.size
    head.loan = 0
    head.shared_at = 0
    at += sizeof(LinkDeliver)
    if d.runs.size:
        memcpy(at, d.runs.data, d.runs.size)
        at += d.runs.size
    if d.names.size:
        memcpy(at, d.names.data, d.names.size)
        at += d.names.size
    return at


cdef inline void segments_copy(const Segment* segments, size_t count, uint8_t* at) noexcept nogil:
    cdef size_t i
    for i in range(count):
        memcpy(at, segments[i].data, segments[i].size)
        at += segments[i].size


cdef inline void delivery_clear(Delivery* d) noexcept nogil:
    buffer_clear(&d.runs)
    buffer_clear(&d.names)
    buffer_clear(&d.segments)
    d.session = NULL
    d.size = 0


cdef inline void delivery_flush(ShardState* s) noexcept nogil:
    """What is gathered becomes an effect."""
    cdef Delivery* d = &s.delivery
    cdef uint8_t* at
    if d.session == NULL:
        return
    at = effects_begin(&s.effects, d.session.frontend, L_DELIVER, s.index, delivery_head_size(d) + d.segments.size)
    if at == NULL:
        s.failed = True
    else:
        s.pumped_bytes += d.size
        at = delivery_write_head(d, d.session.sid, d.session.hello, at)
        memcpy(at, d.segments.data, d.segments.size)
    delivery_clear(d)


cdef inline void delivery_lend(ShardState* s, Consumer* c, Outstanding* e, const Hold* hold) noexcept nogil:
    """Deliver one message that lies in the arena: its front-end borrows it. Nothing is being gathered."""
    cdef Delivery* d = &s.delivery
    cdef LinkDeliver* head
    cdef uint64_t loan = regions_lend(s.store.regions, hold, c.session.frontend)
    if loan == 0 or not delivery_run(s, d, c, e):
        s.failed = True
        return
    (<LinkRun*> d.runs.data).count = 1
    (<LinkRun*> d.runs.data).size = slot_size(&e.slot)
    d.size = slot_size(&e.slot)
    head = <LinkDeliver*> effects_begin(&s.effects, c.session.frontend, L_DELIVER, s.index, delivery_head_size(d))
    if head == NULL:
        s.failed = True
    else:
        s.pumped_bytes += d.size
        delivery_write_head(d, c.session.sid, c.session.hello, <uint8_t*> head)
        head.loan = loan
        head.shared_at = hold.offset
    delivery_clear(d)


# ---- turns

cdef inline uint64_t pump_room(const ShardState* s) noexcept nogil:
    """Bytes that one pump may still deliver."""
    cdef uint64_t limit = PUMP_DELIVERIES_MAX * s.delivery_size_max, used = s.pumped_bytes + s.delivery.size
    return limit - used if used < limit else 0


cdef inline uint32_t consumer_give(
    ShardState* s, Queue* q, Consumer* c, uint64_t count, uint64_t size
) noexcept nogil:
    """Deliver at most `count` messages to an open consumer, as far as its window reaches and until they have `size`
    bytes; how many it got."""
    cdef Delivery* d = &s.delivery
    cdef uint32_t given = 0
    cdef uint64_t before = c.bytes
    cdef const Slot* slot
    cdef Outstanding* e
    cdef const Hold* hold
    while given < count and c.bytes - before < size:
        slot = queue_peek(q)
        if slot == NULL or not consumer_fits(c, slot_size(slot)):
            break
        hold = store_chunk(&s.store, slot).hold if slot_size(slot) >= RECORD_SHARED_MIN else NULL
        if d.session != c.session or d.size + slot_size(slot) > s.delivery_size_max or hold != NULL:
            delivery_flush(s)
        e = queue_take(s, q, c)
        if e == NULL:
            break
        given += 1
        if s.replaying:
            continue
        if hold != NULL:
            delivery_lend(s, c, e, hold)
        else:
            d.session = c.session
            delivery_add(s, d, c, e)
    s.delivered += given
    return given


cdef inline void consumer_turn(Consumer* c, bint kept) noexcept nogil:
    """It got something: its turn is over, unless it is `kept`."""
    cdef bint room = consumer_has_room(c)
    if kept and room:
        return
    consumer_shut(c)
    if room:
        consumer_open(c)                                    # behind the others


cdef inline uint32_t consumer_deal(
    ShardState* s, Queue* q, Consumer* c, uint64_t block, uint64_t size
) noexcept nogil:
    """An open consumer's turn: at most `block` messages, until they have `size` bytes. It stays the next one
    when the queue ran out before it had them: so a remainder goes to each in turn, and shares are equal however few
    messages come at a time."""
    cdef ChangeDeliver change
    change.first_tag = s.outstanding.next_tag
    change.count = consumer_give(s, q, c, block, size)
    if change.count == 0:
        return 0
    change.turn_kept = change.count < block and queue_peek(q) == NULL
    consumer_turn(c, change.turn_kept)
    if s.level == LEVEL_ALL:
        change.sid = c.session.sid
        change.queue = q.id
        change.consumer = c.number
        change.padding = 0
        record_add(&s.records, C_DELIVER, q.flags & QUEUE_DURABLE, &change, sizeof(change))
    return change.count


cdef inline uint32_t queue_deal(ShardState* s, Queue* q, uint32_t count_max) noexcept nogil:
    """One round: each consumer with room gets an equal block of what is ready, at most `count_max` together, and an
    equal part of the bytes that the pump has room for. How many went out."""
    cdef uint32_t consumers = q.open_count, given = 0
    cdef uint64_t block = (queue_deliverable(q) + consumers - 1) // consumers
    cdef uint64_t share = count_max // consumers, size = pump_room(s) // consumers + 1
    cdef Consumer* c = q.open_first
    cdef Consumer* following
    if share == 0:
        share = 1
    if block > share:
        block = share
    for _ in range(consumers):
        if given >= count_max or queue_peek(q) == NULL or (given and pump_room(s) == 0):
            break
        following = c.open_next                             # at the end of its turn it moves to the end
        given += consumer_deal(s, q, c, block, size)
        c = following
    return given


cdef inline bint pump_queues(ShardState* s) noexcept nogil:
    """Deliver from the queues that have something to deliver, at most pump_count_max messages, as far as its room
    reaches; True: there is more to do."""
    cdef uint32_t left = s.pump_count_max, given
    cdef Queue* q
    s.pumped_bytes = 0
    while s.dirty_first != NULL and left and not s.failed and pump_room(s):
        q = s.dirty_first
        queue_calm(s, q)
        if s.dirty_first != NULL:
            queue_prefetch_front(s.dirty_first)
        if q.open_count == 0:
            continue
        given = queue_deal(s, q, left)
        left -= given if given < left else left
        if q.pieces.cold_count and q.open_count:
            queue_want(s, q)
        if given:
            queue_wake(s, q)            # behind the others, if there is more; where nothing fitted, after a change
    delivery_flush(s)
    return s.dirty_first != NULL


cdef inline bint get_reply(ShardState* s, uint64_t token, uint32_t frontend, Session* session, Queue* q) noexcept nogil:
    """Answer a GET with the queue's next message, outstanding in the session, or with none."""
    cdef Delivery* d = &s.delivery                          # empty between pumps
    cdef ChangeDeliver change
    cdef LinkReply* reply
    cdef Outstanding* e = NULL
    cdef size_t size
    cdef uint8_t* at
    cdef uint64_t marked_end = q.marked_end
    q.visible = q.durable_end                               # a GET does not wait for marks
    q.marked_end = <uint64_t> -1
    if queue_peek(q) != NULL:
        change.first_tag = s.outstanding.next_tag
        e = queue_take(s, q, &session.getter)
        if e == NULL:
            return False
        delivery_add(s, d, &session.getter, e)
        queue_wake(s, q)                                    # the one behind it may fit where this one did not
        s.delivered += 1
        if s.level == LEVEL_ALL:
            change.sid = session.sid
            change.queue = q.id
            change.consumer = 0
            change.count = 1
            change.turn_kept = 0
            change.padding = 0
            record_add(&s.records, C_DELIVER, q.flags & QUEUE_DURABLE, &change, sizeof(change))
    q.marked_end = q.mark + 1 if q.kept and marked_end <= q.mark and e != NULL and e.seq == q.mark else marked_end
    queue_show(s, q)
    size = delivery_head_size(d) + d.size
    reply = <LinkReply*> effects_begin(&s.effects, frontend, L_REPLY, s.index, sizeof(LinkReply) + size)
    if reply == NULL:
        s.failed = True
        return False
    reply.token = token
    reply.code = 0
    reply.size = <uint32_t> size
    at = delivery_write_head(d, session.sid, session.hello, <uint8_t*> (reply + 1))
    segments_copy(<Segment*> d.segments.data, d.segments.size // sizeof(Segment), at)
    delivery_clear(d)
    return True
