"""One shard: the unit of ownership, order and state. A state machine without I/O, clock, disk or randomness (see
shard.pxd)."""
cimport cython
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memset

from fastmq._core cimport ring_free
from fastmq.model.ageing cimport AGE_LEAST_BYTES, AGE_LEAVE_BYTES, AGE_SPOILED, AGE_STEP_BYTES, age_longest
from fastmq.model.attend cimport consumer_cancel, garbage_step, session_end
from fastmq.model.cold cimport cold_arrived, cold_failed
from fastmq.model.compact cimport compact_step
from fastmq.model.deliver cimport pump_queues
from fastmq.model.dump cimport dump_outstanding, dump_publishers, dump_queue, dump_sessions
from fastmq.model.effects cimport EffectHead, effects_clear, effects_free, effects_init, effects_next
from fastmq.model.gets cimport gets_answer
from fastmq.model.keeping cimport hidden_show, hidden_stamp, keeping_end
from fastmq.model.members cimport Consumer, Outstanding, Queue, Session, queue_ready, session_free
from fastmq.model.outstanding cimport outstanding_free, outstanding_init
from fastmq.model.pieces cimport EXTENT_SIZE, ExtentWrite, extents_free, extents_init, pieces_free
from fastmq.model.publish cimport publish_run, publishers_tick
from fastmq.model.publishers cimport publishers_free, publishers_init
from fastmq.model.replay cimport replay
from fastmq.model.requests cimport handle_attach, handle_consume, handle_get, handle_publish, handle_queue
from fastmq.model.requests cimport handle_session_end, handle_settle, queue_counts, reply
from fastmq.model.shard_records cimport LEVEL_DURABLE, LEVEL_NONE
from fastmq.model.snapshot cimport snapshot_end, snapshot_go_on, snapshot_open
from fastmq.model.state cimport COMPACT_SLACK_BYTES, PUMP_COUNT_MAX, Garbage, Segment, ShardState, Waiting
from fastmq.model.state cimport done_flush, marks_exact, unused_tick
from fastmq.model.store cimport store_free, store_init
from fastmq.wire.buffer cimport Buffer, buffer_add, buffer_clear, buffer_extend, buffer_free, buffer_init
from fastmq.wire.idmap cimport idmap_free, idmap_init
from fastmq.wire.limits cimport DELIVERY_SIZE_MAX
from fastmq.wire.link cimport L_ATTACH_SHARD, L_CANCEL, L_CONSUME, L_DELIVER, L_GET, L_PUBLISH, L_QUEUE_COUNTS, L_QUEUE_DECLARE
from fastmq.wire.link cimport L_QUEUE_DELETE, L_QUEUE_PURGE, L_SESSION_END, L_SETTLE
from fastmq.wire.link cimport LinkCancel, LinkCounts, LinkDeliver, LinkRun

from fastmq.errors import FastMQError


class BadRecord(FastMQError):
    """A shard's records are damaged, or were not written by this state."""

    code = "bad-record"


@cython.final
cdef class Shard:
    """One shard's state machine. Link messages in, effects and records out; see shard.pxd for what it owns and keeps.

    Keyword arguments: `record_level` 0 writes no records, 1 all of them, 2 those that are to survive; `resume_ns` how long an auto-delete queue
    waits for consumers that vanished; `publisher_keep_ns`, `publishers_max` how long and how many publishers are
    remembered. The last ones are for tests."""

    def __cinit__(self, uint16_t index, uint64_t epoch, *, uint32_t record_level=0, int64_t resume_ns=30_000_000_000,
                  int64_t publisher_keep_ns=3_600_000_000_000, uint32_t publishers_max=10_000,
                  uint32_t chunk_size_max=65536, uint8_t ring_block_shift=0, uint64_t span_free=64,
                  uint64_t delivery_size_max=DELIVERY_SIZE_MAX, uint32_t pump_count_max=PUMP_COUNT_MAX,
                  uint64_t compact_slack_bytes=COMPACT_SLACK_BYTES, uint64_t extent_size_max=EXTENT_SIZE,
                  uint64_t age_step_bytes=AGE_STEP_BYTES, uint64_t age_leave_bytes=AGE_LEAVE_BYTES,
                  uint64_t age_least_bytes=AGE_LEAST_BYTES):
        cdef ShardState* s = &self.state
        memset(s, 0, sizeof(ShardState))
        s.index = index
        s.epoch = epoch
        s.level = record_level
        s.keeps = record_level == LEVEL_DURABLE
        s.resume_ns = resume_ns
        s.publisher_keep_ns = publisher_keep_ns
        s.publishers_max = publishers_max or 1
        s.pump_count_max = pump_count_max or 1
        s.delivery_size_max = delivery_size_max
        s.compact_slack_bytes = compact_slack_bytes
        s.ring_block_shift = ring_block_shift
        s.age_step_bytes = age_step_bytes
        s.age_leave_bytes = age_leave_bytes
        s.age_least_bytes = age_least_bytes
        extents_init(&s.extents, index)
        s.extents.size_max = extent_size_max
        store_init(&s.store)
        s.store.chunk_size_max = max(chunk_size_max, 512)
        outstanding_init(&s.outstanding)
        s.outstanding.span_free = max(span_free, 1)
        publishers_init(&s.publishers)
        idmap_init(&s.queue_of)
        idmap_init(&s.sessions)
        effects_init(&s.effects)
        buffer_init(&s.records)
        buffer_init(&s.hidden)
        buffer_init(&s.sizes)
        buffer_init(&s.delivery.runs)
        buffer_init(&s.delivery.names)
        buffer_init(&s.delivery.segments)

    def __dealloc__(self):
        state_free(&self.state)

    cdef int handle_message(self, uint32_t frontend, uint16_t kind, const uint8_t* payload, size_t size, int64_t now_ms,
                            int64_t now_ns) noexcept nogil:
        cdef ShardState* s = &self.state
        cdef const LinkCancel* cancel = <const LinkCancel*> payload
        cdef int result
        s.now_ns = now_ns
        if kind == L_PUBLISH:
            result = handle_publish(s, frontend, payload, size, now_ms)
        elif kind == L_SETTLE:
            result = handle_settle(s, frontend, payload, size)
        elif kind == L_CONSUME:
            result = handle_consume(s, frontend, payload, size)
        elif kind == L_CANCEL:
            result = -1
            if size >= sizeof(LinkCancel):
                reply(s, frontend, cancel.token, consumer_cancel(s, frontend, cancel.sid, cancel.consumer), NULL)
                result = 0
        elif kind == L_GET:
            result = handle_get(s, frontend, payload, size)
        elif kind == L_SESSION_END:
            result = handle_session_end(s, frontend, payload, size)
        elif kind == L_ATTACH_SHARD:
            result = handle_attach(s, payload, size)
        elif kind == L_QUEUE_DECLARE or kind == L_QUEUE_DELETE or kind == L_QUEUE_PURGE or kind == L_QUEUE_COUNTS:
            result = handle_queue(s, frontend, kind, payload, size)
        else:
            result = HANDLE_UNKNOWN
        if s.gets.size:
            gets_answer(s)
        done_flush(s)
        return HANDLE_NO_MEMORY if state_failed(s) else result

    cdef void publish(self, uint32_t frontend, uint64_t sid, uint64_t floor, uint64_t first_seq, uint32_t count,
                      const uint64_t* queues, uint32_t queue_count, const uint8_t* exchange, uint32_t exchange_size,
                      const uint8_t* records, uint32_t size, int64_t now_ms) noexcept nogil:
        publish_run(&self.state, frontend, sid, floor, first_seq, count, queues, queue_count, exchange, exchange_size,
                    records, size, <uint64_t> now_ms)
        state_failed(&self.state)

    cpdef void frontend_gone(self, uint32_t frontend, int64_t now_ns) noexcept nogil:
        cdef ShardState* s = &self.state
        cdef Buffer found
        cdef Session* session
        cdef size_t i
        s.now_ns = now_ns
        if s.sessions.entries == NULL:
            return
        buffer_init(&found)
        for i in range(s.sessions.mask + 1):
            if s.sessions.entries[i].key:
                session = <Session*> s.sessions.entries[i].value
                if session.frontend == frontend:
                    buffer_add(&found, &session, sizeof(Session*))
        for i in range(found.size // sizeof(Session*)):
            session_end(s, (<Session**> found.data)[i], False)
        if found.failed:
            s.failed = True
        buffer_free(&found)
        if s.gets.size:
            gets_answer(s)

    cpdef void tick(self, int64_t now_ns) noexcept nogil:
        self.state.now_ns = now_ns
        publishers_tick(&self.state)
        unused_tick(&self.state)

    cpdef bint pump(self, int64_t now_ns) noexcept nogil:
        cdef ShardState* s = &self.state
        cdef bint more
        s.now_ns = now_ns
        if s.garbage != NULL:
            garbage_step(s)
        if s.gets.size:
            gets_answer(s)
        compact_step(s)                     # before deliveries point to where messages lie
        more = pump_queues(s)
        state_failed(s)
        return more or s.garbage != NULL or s.compaction.active

    cdef void counts(self, Buffer* out) noexcept nogil:
        cdef uint32_t i
        cdef LinkCounts* at
        for i in range(self.state.queue_count):
            at = <LinkCounts*> buffer_extend(out, sizeof(LinkCounts))
            if at != NULL:
                queue_counts(self.state.queues[i], 0, at)

    cdef void records_taken(self, uint64_t position) noexcept nogil:
        buffer_clear(&self.state.records)
        if position:
            hidden_stamp(&self.state, position)

    cpdef bint durable_up_to(self, uint64_t position) noexcept nogil:
        return hidden_show(&self.state, position)

    cdef int recover(self, const uint8_t* records, size_t size, int64_t now_ns) noexcept nogil:
        cdef ShardState* s = &self.state
        cdef uint32_t level = s.level
        cdef int result
        s.now_ns = now_ns
        s.level = LEVEL_NONE
        s.replaying = True
        result = replay(s, records, size)
        s.level = level
        s.replaying = False
        effects_clear(&s.effects)
        return HANDLE_NO_MEMORY if state_failed(s) else result

    cdef uint64_t memory(self) noexcept nogil:
        return self.state.store.chunk_bytes + self.state.queue_count * sizeof(Queue)

    cpdef void rest(self) noexcept nogil:
        marks_exact(&self.state)

    cpdef void recovered(self) noexcept nogil:
        keeping_end(&self.state)

    cdef int extent_arrived(self, uint64_t number, const uint8_t* data, size_t size) noexcept nogil:
        cdef ShardState* s = &self.state
        cdef int result = cold_arrived(s, number, data, size)
        if s.gets.size:
            gets_answer(s)
        return HANDLE_NO_MEMORY if state_failed(s) else result

    cdef int extent_failed(self, uint64_t number, const uint8_t* data, size_t size) noexcept nogil:
        cdef ShardState* s = &self.state
        cdef int result = cold_failed(s, number, data, size)
        if s.gets.size:
            gets_answer(s)
        return HANDLE_NO_MEMORY if state_failed(s) else result

    cpdef int age(self) noexcept nogil:
        cdef int result = age_longest(&self.state)
        state_failed(&self.state)
        return result

    cdef void snapshot_begin(self, Buffer* out) noexcept nogil:
        snapshot_open(&self.state, out)

    cdef int snapshot_step(self, Buffer* out) noexcept nogil:
        cdef int result = snapshot_go_on(&self.state, out)
        if result == AGE_SPOILED:
            snapshot_end(&self.state)
        state_failed(&self.state)
        return result

    cpdef void snapshot_abandon(self) noexcept nogil:
        snapshot_end(&self.state)

    # ---- Python

    def handle(self, uint32_t frontend, uint16_t kind, bytes payload not None, int64_t now_ms, int64_t now_ns):
        """One link message. Raises ValueError where the payload is malformed or the kind is not for a shard (nothing
        changed then)."""
        cdef const uint8_t* data = payload
        cdef size_t size = len(payload)
        cdef int result
        with nogil:
            result = self.handle_message(frontend, kind, data, size, now_ms, now_ns)
        if result == HANDLE_NO_MEMORY:
            raise MemoryError
        if result != HANDLE_OK:
            why = "malformed" if result == HANDLE_MALFORMED else "not for a shard"
            raise ValueError(f"link message of kind {kind}: {why}")

    def take_effects(self):
        """[(frontend, kind, shard, payload)...] since the last call."""
        cdef size_t at = 0
        cdef const uint8_t* payload = NULL
        cdef const EffectHead* head
        cdef list found = []
        while True:
            head = effects_next(&self.state.effects, &at, &payload)
            if head == NULL:
                break
            whole = payload[:head.head.size] if head.head.kind != L_DELIVER else delivery_bytes(<const LinkDeliver*> payload)
            found.append((head.frontend, head.head.kind, head.head.shard, whole))
        effects_clear(&self.state.effects)
        return found

    def take_records(self):
        """The records since the last call."""
        cdef bytes found = self.state.records.data[:self.state.records.size] if self.state.records.size else b""
        self.records_taken(0)
        return found

    def take_counts(self):
        """{queue: (ready, unacknowledged, consumers)}."""
        cdef uint32_t i
        cdef Queue* q
        cdef dict found = {}
        for i in range(self.state.queue_count):
            q = self.state.queues[i]
            found[q.id] = (queue_ready(q), q.unacknowledged, q.consumer_count)
        return found

    def stats(self):
        """Counters and sizes, by name."""
        cdef ShardState* s = &self.state
        return {
            "published": s.published, "delivered": s.delivered, "settled": s.settled, "stale_settles": s.stale_settles,
            "duplicates": s.duplicates, "publishers": s.publishers.by_sid.count, "sessions": s.sessions.count,
            "queues": s.queue_count, "outstanding": s.outstanding.count, "live_bytes": s.store.live_bytes,
            "chunk_bytes": s.store.chunk_bytes, "span": s.outstanding.next_tag - s.outstanding.base,
            "stragglers": s.outstanding.stragglers.count, "moved": s.moved, "extents": s.extents.by_number.count,
            "gets": s.gets.size // sizeof(Waiting),
        }

    def apply(self, bytes records not None, int64_t now_ns=0):
        """Make the changes that `records` (of take_records, whole) tell of. Raises BadRecord; the state is then worth
        nothing."""
        cdef int result = self.recover(records, len(records), now_ns)
        if result == HANDLE_NO_MEMORY:
            raise MemoryError
        if result != 0:
            raise BadRecord("a record of this shard is damaged, or belongs to another state")

    def begin_snapshot(self):
        """What a snapshot begins with."""
        cdef Buffer out
        buffer_init(&out)
        self.snapshot_begin(&out)
        return buffer_take(&out)

    def step_snapshot(self):
        """(an AgeResult, what follows what there is)."""
        cdef Buffer out
        buffer_init(&out)
        result = self.snapshot_step(&out)
        return result, buffer_take(&out)

    def take_wishes(self):
        """([(number, payload) to be written ...], [number to be read ...], [number to be freed ...]) since the last call."""
        cdef ShardState* s = &self.state
        cdef ExtentWrite* writes = <ExtentWrite*> s.extents.writes.data
        cdef uint64_t* reads = <uint64_t*> s.extents.reads.data
        cdef uint64_t* frees = <uint64_t*> s.extents.frees.data
        cdef size_t i
        written = [(writes[i].number, buffer_take(&writes[i].payload)) for i in range(s.extents.writes.size // sizeof(ExtentWrite))]
        read = [reads[i] for i in range(s.extents.reads.size // sizeof(uint64_t))]
        freed = [frees[i] for i in range(s.extents.frees.size // sizeof(uint64_t))]
        buffer_clear(&s.extents.writes)
        buffer_clear(&s.extents.reads)
        buffer_clear(&s.extents.frees)
        return written, read, freed

    def filling(self):
        """(number, payload so far) of the extent that is being filled; the number is 0 where there is none."""
        cdef ShardState* s = &self.state
        if s.extents.filling == NULL:
            return 0, b""
        return s.extents.filling.number, s.extents.payload.data[:s.extents.payload.size]

    def give_extent(self, uint64_t number, bytes payload not None):
        """An extent that was asked for."""
        if self.extent_arrived(number, payload, len(payload)) != 0:
            raise BadRecord(f"extent {number} does not hold what it has to")

    def refuse_extent(self, uint64_t number, bytes payload not None):
        """An extent that was not written."""
        if self.extent_failed(number, payload, len(payload)) != 0:
            raise BadRecord(f"extent {number} does not hold what it has to")

    def stamp(self, uint64_t position):
        """The records that were taken end at this position of the log, not 0."""
        hidden_stamp(&self.state, position)

    def dump(self):
        """The whole state as plain Python values: equal for equal states. Times of use are no part of it, their order
        is."""
        cdef ShardState* s = &self.state
        return {
            "index": s.index,
            "epoch": s.epoch,
            "next_tag": s.outstanding.next_tag,
            "queues": {s.queues[i].id: dump_queue(s, s.queues[i]) for i in range(s.queue_count)},
            "sessions": dump_sessions(s),
            "outstanding": dump_outstanding(s),
            "publishers": dump_publishers(s),
        }


cdef bytes delivery_bytes(const LinkDeliver* head):
    """The message that a delivery's effect becomes."""
    cdef size_t head_size = sizeof(LinkDeliver) + head.runs * sizeof(LinkRun) + head.names_size
    cdef const uint8_t* at = <const uint8_t*> head
    cdef const Segment* segment = <const Segment*> (at + head_size)
    cdef size_t left = 0 if head.loan else head.records_size
    cdef list parts = [at[:head_size]]
    while left:
        parts.append(segment.data[:segment.size])
        left -= segment.size
        segment += 1
    return b"".join(parts)


cdef bytes buffer_take(Buffer* b):
    """The buffer's bytes; its memory is given back."""
    cdef bytes found = b.data[:b.size] if b.size else b""
    if b.failed:
        raise MemoryError
    buffer_free(b)
    return found


cdef bint state_failed(ShardState* s) noexcept nogil:
    """Whether memory ran out, here or in a buffer."""
    if s.effects.buffer.failed or s.records.failed or s.extents.failed or s.extents.reads.failed:
        s.failed = True
    return s.failed


cdef void state_free(ShardState* s) noexcept nogil:
    cdef Garbage* garbage
    cdef Queue* q
    cdef Consumer* c
    cdef Session* session
    cdef size_t i
    s.level = 0
    if s.sessions.entries != NULL:
        for i in range(s.sessions.mask + 1):    # consumers that only outstanding messages keep, then sessions
            if s.sessions.entries[i].key:
                session = <Session*> s.sessions.entries[i].value
                while session.first != NULL:
                    state_free_message(session)
                session_free(session)
    for i in range(s.queue_count):
        q = s.queues[i]
        while q.consumers != NULL:
            c = q.consumers
            q.consumers = c.next
            free(c)
        ring_free(&q.ring)
        free(q.returned)
        idmap_free(&q.counts)
        pieces_free(&q.pieces)
        free(q)
    free(s.queues)
    while s.garbage != NULL:
        garbage = s.garbage
        s.garbage = garbage.next
        ring_free(&garbage.ring)
        free(garbage.returned)
        pieces_free(&garbage.pieces)
        free(garbage)
    outstanding_free(&s.outstanding)
    store_free(&s.store)
    publishers_free(&s.publishers)
    idmap_free(&s.queue_of)
    idmap_free(&s.sessions)
    effects_free(&s.effects)
    buffer_free(&s.records)
    buffer_free(&s.hidden)
    buffer_free(&s.sizes)
    buffer_free(&s.gets)
    buffer_free(&s.ageing.counts)
    extents_free(&s.extents)
    buffer_free(&s.delivery.runs)
    buffer_free(&s.delivery.names)
    buffer_free(&s.delivery.segments)


cdef void state_free_message(Session* session) noexcept nogil:
    """Forget the first outstanding message; its memory goes with the table."""
    cdef Outstanding* e = session.first
    session.first = e.next
    e.consumer.outstanding -= 1
    if e.consumer.closed and e.consumer.outstanding == 0:
        free(e.consumer)
