# The state of one shard, and what its parts share: finding queues and sessions, the list of queues to look at, moving
# one message.
#
# Owns: everything in ShardState. Rules: a function changes the state, writes the record of that change when `level`
# asks for records, and leaves what is to be said in `effects`; `failed` is set where memory ran out in the middle of a
# change: the shard's state is then worth nothing, and its worker ends and is started again, as after any death. No
# Python object, no I/O, no clock; in the worker, without the GIL.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memset

from fastmq._core cimport Ring, Slot, ring_free, ring_init, ring_init_sized, ring_pop_front, ring_size
from fastmq.model.effects cimport Effects, effects_begin, effects_free, effects_init
from fastmq.model.members cimport Consumer, Outstanding, Queue, Returned, Session
from fastmq.model.members cimport consumer_has_room, consumer_open, consumer_shut, queue_new
from fastmq.model.members cimport queue_next_seq, queue_visible, returned_push
from fastmq.model.members cimport session_free, session_is_idle, session_new
from fastmq.model.outstanding cimport OutstandingTable, outstanding_free, outstanding_init, outstanding_remove
from fastmq.model.pieces cimport Extent, Extents, Pieces, extent_close, extents_free, extents_init, pieces_drop, pieces_find
from fastmq.model.publishers cimport Publishers, publishers_free, publishers_init
from fastmq.model.shard_records cimport C_COUNT, C_DONE, C_MARK, C_QUEUE, C_SESSION, C_UNUSED, LEVEL_ALL, LEVEL_DURABLE
from fastmq.model.shard_records cimport ChangeCount, ChangeDone, ChangeQueue, ChangeSession, record_add
from fastmq.model.store cimport Store, slot_is_kept, slot_size, store_drop, store_free, store_init, tail_detach
from fastmq.wire.buffer cimport Buffer, buffer_add, buffer_extend, buffer_free, buffer_init
from fastmq.wire.idmap cimport IdMap, idmap_free, idmap_get, idmap_init, idmap_put, idmap_remove
from fastmq.wire.limits cimport DELIVERY_SIZE_MAX
from fastmq.wire.link cimport L_UNUSED, QUEUE_AUTO_DELETE, QUEUE_DURABLE, QUEUE_EXCLUSIVE, LinkQueueRequest
from fastmq.wire.verbs cimport NACK, RELEASE


cdef extern from *:
    bint unlikely(bint condition) noexcept nogil    # Cython's


cdef enum:
    ACK = 0                     # beside SettleAction: settled, done with
    FORGET = -1                 # its queue was deleted
    GARBAGE_STEP_COUNT = 4096   # messages of purged queues given back in one pump
    COMPACT_STEP_COUNT = 512    # slots looked at in one pump
    COMPACT_SLACK_BYTES = 4194304
    PUMP_COUNT_MAX = 4096       # messages delivered in one pump,
    PUMP_DELIVERIES_MAX = 4     # and about how many full deliveries of them
    TICK_COUNT_MAX = 256        # publishers and queues that one tick handles
    MARK_AHEAD_COUNT = 4096     # messages of a queue that are marked ahead


cdef struct Garbage:            # messages of a purged or deleted queue, to be dropped little by little
    Ring ring
    Returned* returned
    uint32_t returned_count
    uint32_t padding
    Pieces pieces
    Garbage* next


cdef struct Segment:            # bytes of one chunk, part of a delivery
    const uint8_t* data
    size_t size


cdef struct Delivery:           # a delivery to one session, being gathered
    Session* session            # NULL: nothing gathered
    Buffer runs                 # LinkRun[]
    Buffer names
    Buffer segments             # Segment[]
    size_t size                 # of the records
    uint32_t name               # of the last run's exchange
    uint32_t padding


cdef struct Compaction:         # copying messages out of sparse chunks
    bint active
    uint32_t phase              # 0: the ring of outstanding messages, 1: their stragglers, 2: queues
    uint64_t at                 # tag, place in the map, or index of the queue
    uint64_t at_returned        # within that queue's heap
    uint64_t beyond             # waste that the last job could not help


cdef struct Hidden:             # messages that may be delivered only when the log has their records for good
    uint64_t queue
    uint64_t end_seq            # up to here, excluded
    uint64_t position           # of the log; 0: it has not been given the records yet
    bint taken                  # that they were published
    bint marked                 # that they may have been delivered


cdef struct Waiting:            # a GET whose message is being read back
    uint64_t token
    uint64_t sid
    uint64_t queue
    uint32_t frontend
    uint32_t padding


cdef enum AgeStage:             # of a queue in the sweep of a snapshot: all that is kept in it is to lie in extents
    AGE_RING = 0                # the ring becomes cold,
    AGE_OUTSTANDING = 1         # what is outstanding is copied,
    AGE_HEAP = 2                # and what is in the heap


cdef struct Ageing:
    bint snapshot               # one is being made
    bint aged                   # its sweep is over
    bint spoiled                # it is worth nothing: an extent was not written
    uint32_t queue_at           # index of the queue that is being swept,
    Queue* sweeping             # which has begun; NULL: it has not
    AgeStage stage
    uint32_t generation         # of the queue's sweep of its heap: what has it as stamp has been visited
    uint32_t unvisited          # messages there that have not
    uint32_t heap_at            # the next place in the heap to look at
    Outstanding* cursor         # the next outstanding message to be visited
    uint64_t tag_end            # those from here on need no visit
    uint64_t leave              # bytes of the ring that stay in memory, because they are wanted soon
    uint32_t out_at             # index of the queue whose pieces are being written,
    uint32_t look_at            # and of the one that is asked next how long it is
    Buffer counts               # C_COUNT records, which follow the pieces
    uint64_t victim             # the queue that is being aged because memory is short; 0: none
    uint64_t victim_end         # up to here, excluded
    uint64_t victim_left        # bytes, until another is chosen
    uint64_t longest            # the longest queue of those asked so far
    uint64_t longest_bytes


cdef struct ShardState:
    uint16_t index              # number of the shard
    uint32_t level              # how much is written: LEVEL_NONE, LEVEL_ALL, LEVEL_DURABLE
    bint keeps                  # there is a log: what is durable outlives the worker
    bint full                   # and it has no room for more: what is persistent is refused
    uint64_t epoch
    int64_t now_ns              # monotonic, of the last call that had it
    int64_t resume_ns
    int64_t publisher_keep_ns
    uint32_t publishers_max
    uint32_t pump_count_max
    uint64_t delivery_size_max
    uint64_t compact_slack_bytes
    uint8_t ring_block_shift    # of new queues' rings; 0: as _core has it
    bint failed                 # no memory: see above
    bint replaying              # records are being applied: nothing is delivered for real
    Store store
    OutstandingTable outstanding
    Publishers publishers
    Queue** queues              # in no order
    uint32_t queue_count
    uint32_t queue_room
    IdMap queue_of              # id -> Queue*
    IdMap sessions              # sid -> Session*
    Queue* dirty_first          # have messages and consumers with room
    Queue* dirty_last
    Queue* unused_first         # auto-delete queues without consumers, longest first
    Queue* unused_last
    Garbage* garbage
    Compaction compaction
    Delivery delivery
    uint64_t pumped_bytes       # of records, in the pump in hand
    Buffer sizes                # of the records of the publish in hand
    Effects effects
    Buffer records
    ChangeDone done             # the last C_DONE, not written yet because it may grow; queue 0: none
    Buffer hidden               # Hidden[], by position
    size_t hidden_first         # of those, the first that still waits
    Extents extents
    size_t run_at               # where in the payload that is being filled the last run begins; 0: there is none
    Ageing ageing
    uint64_t age_step_bytes     # copied in one step of ageing, about
    uint64_t age_leave_bytes    # see Ageing.leave
    uint64_t age_least_bytes    # what is ready in a queue that is aged because memory is short
    Buffer gets                 # Waiting[], in the order they came
    uint64_t published          # counters
    uint64_t delivered
    uint64_t settled
    uint64_t stale_settles      # tags in settlements that were not outstanding there
    uint64_t duplicates         # publishes that had been taken before
    uint64_t moved              # messages copied out of sparse chunks


# ---- finding

cdef inline Queue* queue_find(ShardState* s, uint64_t id) noexcept nogil:
    return <Queue*> idmap_get(&s.queue_of, id, 0)


cdef inline Session* session_find(ShardState* s, uint64_t sid) noexcept nogil:
    return <Session*> idmap_get(&s.sessions, sid, 0)


# ---- marks: what may have been delivered is known after a death

cdef inline void hide(ShardState* s, Queue* q, uint64_t end_seq, bint taken, bint marked) noexcept nogil:
    """Wait for the log with what is up to here."""
    cdef Hidden* hidden = <Hidden*> buffer_extend(&s.hidden, sizeof(Hidden))
    if hidden == NULL:
        s.failed = True
        return
    hidden.queue = q.id
    hidden.end_seq = end_seq
    hidden.position = 0
    hidden.taken = taken
    hidden.marked = marked


cdef inline void hidden_forget(ShardState* s, uint64_t queue) noexcept nogil:
    """A queue is deleted: what waits for the log concerns no queue that may come to have its number."""
    cdef Hidden* all = <Hidden*> s.hidden.data
    cdef size_t i
    for i in range(s.hidden_first, s.hidden.size // sizeof(Hidden)):
        if all[i].queue == queue:
            all[i].queue = 0


cdef inline void mark_write(ShardState* s, Queue* q, uint64_t seq) noexcept nogil:
    cdef ChangeCount change
    q.mark = seq
    if s.level != LEVEL_DURABLE:
        return
    change.queue = q.id
    change.seq = seq
    change.deliveries = 1
    change.padding = 0
    record_add(&s.records, C_MARK, True, &change, sizeof(change))


cdef inline uint64_t queue_front(const Queue* q) noexcept nogil:
    """The sequence of the message that is delivered next, where there is one."""
    if q.returned_count and q.returned[0].seq < q.pieces.cold_seq:
        return q.returned[0].seq
    return q.pieces.cold_seq if q.pieces.cold_count else q.seq_base + q.ring.first


cdef inline void mark_ahead(ShardState* s, Queue* q) noexcept nogil:
    """Somebody takes what is in a kept queue: write the mark before he gets there, so that he does not wait for each sync."""
    cdef uint64_t front = queue_front(q), end = q.durable_end
    if end > front + MARK_AHEAD_COUNT // 2:
        end = front + MARK_AHEAD_COUNT // 2
    if q.mark + 1 >= end:
        return
    end = q.durable_end if q.durable_end < front + MARK_AHEAD_COUNT else front + MARK_AHEAD_COUNT
    mark_write(s, q, end - 1)
    hide(s, q, end, False, True)


cdef inline void queue_show(ShardState* s, Queue* q) noexcept nogil:
    """The log has more of it."""
    q.visible = q.durable_end if q.durable_end < q.marked_end else q.marked_end
    queue_wake(s, q)


cdef inline void marks_exact(ShardState* s) noexcept nogil:
    """Take back what was marked ahead: nothing more will be delivered."""
    cdef uint64_t delivered
    cdef uint32_t i, j
    cdef Queue* q
    for i in range(s.queue_count):
        q = s.queues[i]
        for j in range(q.returned_count):
            if q.returned[j].deliveries == 0:
                count_note(s, q, &q.returned[j].slot, q.returned[j].seq, 0)
        delivered = (q.pieces.cold_seq if q.pieces.cold_count else q.seq_base + q.ring.first if ring_size(&q.ring) else queue_next_seq(q)) - 1
        if q.kept and q.mark > delivered:
            mark_write(s, q, delivered)
            q.visible = q.marked_end = delivered + 1


# ---- queues that pump looks at

cdef inline void queue_want(ShardState* s, Queue* q) noexcept nogil:
    """Ask for what is cold in a queue that somebody waits for: what it will need when what is being delivered is gone."""
    cdef Extent* extent
    if q.pieces.wanted != NULL or (q.returned_count and q.returned[0].seq < q.ahead_seq):
        return
    q.ahead_seq = q.pieces.cold_seq
    extent = pieces_find(&q.pieces, q.pieces.cold_seq).extent
    q.pieces.wanted = extent
    if extent == s.extents.filling:
        extent_close(&s.extents)
    if not extent.reading:
        extent.reading = 1
        buffer_add(&s.extents.reads, &extent.number, sizeof(uint64_t))


cdef inline void queue_wake(ShardState* s, Queue* q) noexcept nogil:
    """Look at the queue in the next pump, if there is something to do."""
    if q.dirty or q.open_count == 0:
        return
    if q.kept and not s.replaying:
        mark_ahead(s, q)
    if queue_visible(q) + q.pieces.cold_count == 0:
        return
    q.dirty = 1
    q.dirty_next = NULL
    q.dirty_previous = s.dirty_last
    if s.dirty_last != NULL:
        s.dirty_last.dirty_next = q
    else:
        s.dirty_first = q
    s.dirty_last = q


cdef inline void queue_calm(ShardState* s, Queue* q) noexcept nogil:
    """The queue needs no look."""
    if not q.dirty:
        return
    q.dirty = 0
    if q.dirty_previous != NULL:
        q.dirty_previous.dirty_next = q.dirty_next
    else:
        s.dirty_first = q.dirty_next
    if q.dirty_next != NULL:
        q.dirty_next.dirty_previous = q.dirty_previous
    else:
        s.dirty_last = q.dirty_previous


# ---- auto-delete queues without consumers

cdef inline void unused_report(ShardState* s, uint32_t frontend, uint64_t sid, uint64_t queue) noexcept nogil:
    cdef LinkQueueRequest* told = <LinkQueueRequest*> effects_begin(&s.effects, frontend, L_UNUSED, s.index,
                                                                    sizeof(LinkQueueRequest))
    if told != NULL:
        memset(told, 0, sizeof(LinkQueueRequest))
        told.sid = sid
        told.queue = queue


cdef inline void unused_mark(ShardState* s, Queue* q, uint32_t frontend, uint64_t sid) noexcept nogil:
    """Its last consumer vanished: that is told unless one comes back in time."""
    q.unused_sid = sid
    q.unused_frontend = frontend
    q.unused_at_ns = s.now_ns
    q.unused_next = NULL
    q.unused_previous = s.unused_last
    if s.unused_last != NULL:
        s.unused_last.unused_next = q
    else:
        s.unused_first = q
    s.unused_last = q


cdef inline void unused_clear(ShardState* s, Queue* q) noexcept nogil:
    if q.unused_sid == 0:
        return
    q.unused_sid = 0
    if q.unused_previous != NULL:
        q.unused_previous.unused_next = q.unused_next
    else:
        s.unused_first = q.unused_next
    if q.unused_next != NULL:
        q.unused_next.unused_previous = q.unused_previous
    else:
        s.unused_last = q.unused_previous


cdef inline void unused_tick(ShardState* s) noexcept nogil:
    """Tell of queues that have been without a consumer for long enough."""
    cdef ChangeQueue change
    cdef Queue* q
    for _ in range(TICK_COUNT_MAX):
        q = s.unused_first
        if q == NULL or s.now_ns - q.unused_at_ns < s.resume_ns:
            return
        unused_report(s, q.unused_frontend, q.unused_sid, q.id)
        unused_clear(s, q)
        if s.level == LEVEL_ALL:
            memset(&change, 0, sizeof(change))
            change.queue = q.id
            record_add(&s.records, C_UNUSED, q.flags & QUEUE_DURABLE, &change, sizeof(change))


# ---- what the log is told of one message

cdef inline void done_flush(ShardState* s) noexcept nogil:
    """Write the C_DONE that might have grown."""
    if s.done.queue:
        record_add(&s.records, C_DONE, True, &s.done, sizeof(ChangeDone))
        s.done.queue = 0


cdef inline void done_range(ShardState* s, Queue* q, uint64_t first, uint64_t last) noexcept nogil:
    """These messages of a kept queue are no more."""
    if s.done.queue == q.id and s.done.last + 1 == first:
        s.done.last = last
        return
    done_flush(s)
    s.done.queue = q.id
    s.done.first = first
    s.done.last = last


cdef inline void count_note(ShardState* s, Queue* q, const Slot* slot, uint64_t seq, uint32_t deliveries) noexcept nogil:
    """A message has been delivered so often, which its place in the queue does not say."""
    cdef ChangeCount change
    if s.level != LEVEL_DURABLE or not slot_is_kept(slot):
        return
    change.queue = q.id
    change.seq = seq
    change.deliveries = deliveries
    change.padding = 0
    record_add(&s.records, C_COUNT, True, &change, sizeof(change))


# ---- one message

cdef inline void queue_return(ShardState* s, Queue* q, const Slot* slot, uint64_t seq, uint32_t deliveries) noexcept nogil:
    """A message that is in memory, and is older than the ring, waits for its turn."""
    if not returned_push(q, slot, seq, deliveries, s.ageing.generation if s.ageing.sweeping == q else 0):
        s.failed = True


cdef inline void consumer_reopen(ShardState* s, Consumer* c) noexcept nogil:
    """After something was settled at it: it takes its turn again if it has room."""
    if c.queue == NULL or not consumer_has_room(c):
        return
    if not c.is_open:
        consumer_open(c)
    queue_wake(s, c.queue)              # open before, it may not have had room for a message as large as the next


cdef inline void message_settle(ShardState* s, Outstanding* e, int action) noexcept nogil:
    """An outstanding message is outstanding no more: dropped (ACK, REJECT, FORGET) or back in its old place (NACK,
    RELEASE)."""
    cdef Queue* q = e.queue
    cdef Consumer* c = e.consumer
    cdef Session* session = c.session
    if e.previous != NULL:
        e.previous.next = e.next
    else:
        session.first = e.next
    if e.next != NULL:
        e.next.previous = e.previous
    else:
        session.last = e.previous
    if e.queue_previous != NULL:
        e.queue_previous.queue_next = e.queue_next
    else:
        q.first = e.queue_next
    if e.queue_next != NULL:
        e.queue_next.queue_previous = e.queue_previous
    else:
        q.last = e.queue_previous
    if unlikely(s.ageing.cursor == e):
        s.ageing.cursor = e.queue_next
    session.outstanding -= 1
    q.unacknowledged -= 1
    c.outstanding -= 1
    c.bytes -= slot_size(&e.slot)
    if action == NACK or action == RELEASE:
        queue_return(s, q, &e.slot, e.seq, e.deliveries if action == NACK else e.deliveries - 1)
        if action == RELEASE and e.deliveries > 1:          # else it counts as delivered until `marks_exact`: it may be out again at any time
            count_note(s, q, &e.slot, e.seq, e.deliveries - 1)
        q.ready_bytes += slot_size(&e.slot)
        queue_wake(s, q)
    else:
        if s.level == LEVEL_DURABLE and action != FORGET and slot_is_kept(&e.slot):
            done_range(s, q, e.seq, e.seq)
        if unlikely(q.pieces.count != 0) and not pieces_drop(&s.extents, &q.pieces, e.seq, e.seq):
            s.failed = True
        store_drop(&s.store, &q.tail, &e.slot)
    outstanding_remove(&s.outstanding, e)
    if c.closed and c.outstanding == 0:
        free(c)
    elif action != FORGET:
        consumer_reopen(s, c)


# ---- sessions

cdef inline Session* session_make(ShardState* s, uint64_t sid, uint32_t frontend, uint32_t hello) noexcept nogil:
    """A session that is not known yet; NULL when there is no memory."""
    cdef Session* session = session_new(sid, frontend, hello)
    cdef ChangeSession change
    if session == NULL:
        return NULL
    if not idmap_put(&s.sessions, sid, <uint64_t> session):
        session_free(session)
        return NULL
    if s.level == LEVEL_ALL:
        change.sid = sid
        change.frontend = frontend
        change.hello = hello
        record_add(&s.records, C_SESSION, False, &change, sizeof(change))
    return session


cdef inline void session_leave(ShardState* s, Session* session) noexcept nogil:
    """Forget the session if there is nothing to know about it."""
    if session_is_idle(session):
        idmap_remove(&s.sessions, session.sid)
        session_free(session)


# ---- queues

cdef inline Queue* queue_declare(ShardState* s, uint64_t id, uint32_t flags) noexcept nogil:
    """The queue, made when it is new, with these flags; NULL when there is no memory."""
    cdef Queue* q = queue_find(s, id)
    cdef Queue** queues
    cdef uint32_t room
    cdef ChangeQueue change
    if q != NULL and q.flags == flags:
        return q
    if q == NULL:
        if s.queue_count == s.queue_room:
            room = s.queue_room * 2 if s.queue_room else 8
            queues = <Queue**> realloc(s.queues, room * sizeof(Queue*))
            if queues == NULL:
                return NULL
            s.queues = queues
            s.queue_room = room
        q = queue_new(id, flags)
        if q == NULL:
            return NULL
        if not idmap_put(&s.queue_of, id, <uint64_t> q):
            free(q)
            return NULL
        ring_make(s, q, 1)
        q.index = s.queue_count
        s.queues[s.queue_count] = q
        s.queue_count += 1
    q.flags = flags
    queue_keep(s, q)
    if s.level == LEVEL_ALL or (s.level == LEVEL_DURABLE and q.kept):
        change.queue = id
        change.flags = flags
        change.padding = 0
        record_add(&s.records, C_QUEUE, flags & QUEUE_DURABLE, &change, sizeof(change))
    return q


cdef inline void queue_keep(ShardState* s, Queue* q) noexcept nogil:
    """Whether the log has what is persistent in it: an exclusive queue ends with its session, whatever its flags."""
    cdef bint kept = s.keeps and q.flags & (QUEUE_DURABLE | QUEUE_EXCLUSIVE) == QUEUE_DURABLE
    if kept and not q.kept:
        q.visible = q.durable_end = q.marked_end = queue_next_seq(q)
        q.mark = q.marked_end - 1
    elif not kept:
        q.visible = q.durable_end = q.marked_end = <uint64_t> -1
    q.kept = kept


cdef inline void ring_make(ShardState* s, Queue* q, uint64_t next_seq) noexcept nogil:
    """A new ring for the queue, whose first message will have the sequence next_seq."""
    if s.ring_block_shift:
        ring_init_sized(&q.ring, s.ring_block_shift)
    else:
        ring_init(&q.ring)
    q.seq_base = next_seq - q.ring.end
