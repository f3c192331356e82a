# The nouns of a shard and how they hang together: queues, consumers, sessions, outstanding messages.
#
# Owns: the memory of each. Rules: a message is ready (in its queue's ring, or in its heap once it came back) or
# outstanding (in the table by tag), never both; a ready one may be cold: in an extent, and not in memory until its turn
# comes (model/cold.pxd), and what follows it waits. What is ready goes out by its sequence. An outstanding message is in
# the list of its session and in that of its queue, both ascending by tag; a consumer that was cancelled lives until its
# last message is settled. No Python object, no I/O; runs in the worker, without the GIL.
#
#                      ring: never delivered, by sequence                             Session (sid)
#       Queue -------- heap: older than the ring; came back, or was read back            |  consumers, by number
#         |  | \------ pieces: older than the ring; in extents, cold ones nowhere else    |  the getter, number 0
#         |  +-- consumers: all; those with room, in turn ---------------- Consumer -----+
#         +----- outstanding messages --- Outstanding (tag) --- its consumer ------------+  outstanding messages
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memset

from fastmq._core cimport Ring, Slot, ring_free, ring_init, ring_place, ring_size
from fastmq.model.pieces cimport Pieces, pieces_init
from fastmq.model.store cimport Chunk
from fastmq.wire.idmap cimport IdMap, idmap_free, idmap_get, idmap_init, idmap_put, idmap_remove


cdef extern from *:
    void prefetch "__builtin_prefetch"(const void* address) noexcept nogil

cdef extern from "<stdlib.h>":
    void* aligned_alloc(size_t alignment, size_t size) noexcept nogil


cdef struct Returned:               # a message that came back, or was read back
    Slot slot
    uint64_t seq
    uint32_t deliveries             # so far
    uint32_t stamp                  # see Ageing.generation


cdef struct Queue:                  # the fields that each message needs fill its first four cache lines
    Ring ring                       # ready, never delivered
    uint64_t seq_base               # sequence of a message in the ring: this + its place, modulo 2^64
    uint64_t visible                # only what has a lower sequence may be delivered: the lower of durable_end and marked_end
    Chunk* tail                     # where the next message's bytes go; NULL: nowhere yet
    uint64_t ready_bytes
    uint32_t returned_count
    uint32_t open_count
    uint32_t dirty                  # in the list of queues that pump looks at
    uint32_t kept                   # the log has its persistent messages
    Pieces pieces                   # of what lies in extents
    uint64_t marked_end             # after a death the log will say of what has a lower sequence that it may have been delivered
    uint64_t mark                   # up to here, included, that has been written, durable or not
    uint64_t unacknowledged
    Outstanding* first              # outstanding messages
    Outstanding* last
    Consumer* open_first            # those with room, who is next first
    Consumer* open_last
    Queue* dirty_next
    Queue* dirty_previous
    Returned* returned              # a heap by sequence; all are older than the ring
    uint64_t id
    uint32_t flags                  # QueueFlag
    uint32_t index                  # in the shard's array
    uint64_t durable_end            # the log has what has a lower sequence for good
    Consumer* consumers             # all
    uint32_t returned_room
    uint32_t consumer_count
    uint32_t exclusive              # its only consumer wants to stay alone
    uint32_t gets                   # GETs that wait for its next message to be read back
    int64_t unused_at_ns            # auto-delete: when it lost its last consumer
    uint64_t unused_sid             # whose that was; 0: it has consumers, or never had one
    uint32_t unused_frontend
    uint32_t listed                 # in the list of live queues of the attachment in hand
    uint64_t ahead_seq              # first message of what was asked for last: it is being delivered, so ask for what follows
    uint64_t recovered_mark         # `mark` when all records had been applied: what is cold up to here may have been delivered
    uint64_t age_end                # up to here, excluded, the snapshot in hand needs everything to be in extents,
    uint64_t told_end               # and up to here, excluded, it tells of the pieces already
    IdMap counts                    # of cold ones, or while records are applied: sequence -> 1 + deliveries, where `mark` does not imply it
    Queue* unused_next
    Queue* unused_previous


cdef struct Consumer:
    uint32_t number                 # as the client chose; 0: the session's GETs
    uint32_t window_messages
    uint64_t window_bytes
    uint64_t bytes                  # outstanding
    uint32_t outstanding
    uint8_t closed                  # cancelled; goes when nothing is outstanding
    uint8_t is_open                 # in its queue's list of those with room
    uint8_t exclusive
    uint8_t padding
    Session* session
    Queue* queue                    # NULL once closed
    Consumer* open_next             # of the queue, those with room
    Consumer* open_previous
    Consumer* next                  # of the queue, all
    Consumer* previous


cdef struct Session:
    uint64_t sid
    uint32_t frontend
    uint32_t hello                  # incarnation of its last HELLO
    IdMap consumers                 # number -> Consumer*, not closed
    Consumer getter
    Outstanding* first              # ascending by tag
    Outstanding* last
    uint32_t outstanding
    uint32_t gets                   # that wait


cdef struct Outstanding:
    Slot slot
    uint64_t seq
    uint64_t tag
    Queue* queue
    Consumer* consumer
    uint32_t deliveries             # this one included
    uint32_t padding
    Outstanding* next               # of the session; of the free ones
    Outstanding* previous
    Outstanding* queue_next
    Outstanding* queue_previous


# ---- memory asked for before it is needed: messages of many queues lie far apart, and waiting for one place after the
# other is most of the work then

cdef inline void* lines_new(size_t size) noexcept nogil:
    """Zeros that begin with a cache line, for `free`; NULL when there is no memory."""
    cdef void* at
    size = (size + 63) & ~<size_t> 63
    at = aligned_alloc(64, size)
    if at != NULL:
        memset(at, 0, size)
    return at


cdef inline void prefetch_lines(const void* at, size_t size) noexcept nogil:
    cdef size_t i
    for i in range(0, size, 64):
        prefetch(<const uint8_t*> at + i)


cdef inline void queue_prefetch_front(Queue* q) noexcept nogil:
    """The next message of a queue, where it is in the ring."""
    if ring_size(&q.ring):
        prefetch(ring_place(&q.ring, q.ring.first))


# ---- messages that came back

cdef inline bint returned_push(Queue* q, const Slot* slot, uint64_t seq, uint32_t deliveries,
                               uint32_t stamp) noexcept nogil:
    """False, and nothing changed, when there is no memory."""
    cdef uint32_t room, i, parent
    cdef Returned* heap
    if q.returned_count == q.returned_room:
        room = q.returned_room * 2 if q.returned_room else 4
        heap = <Returned*> realloc(q.returned, room * sizeof(Returned))
        if heap == NULL:
            return False
        q.returned = heap
        q.returned_room = room
    heap = q.returned
    i = q.returned_count
    q.returned_count += 1
    while i:
        parent = (i - 1) // 2
        if heap[parent].seq <= seq:
            break
        heap[i] = heap[parent]
        i = parent
    heap[i].slot = slot[0]
    heap[i].seq = seq
    heap[i].deliveries = deliveries
    heap[i].stamp = stamp
    return True


cdef inline void returned_pop(Queue* q, Returned* out) noexcept nogil:
    """Take the oldest. There is one."""
    cdef Returned* heap = q.returned
    cdef Returned* moved
    cdef uint32_t count = q.returned_count - 1, i = 0, child = 1
    out[0] = heap[0]
    q.returned_count = count
    if count == 0:
        free(heap)
        q.returned = NULL
        q.returned_room = 0
        return
    moved = &heap[count]
    while child < count:
        if child + 1 < count and heap[child + 1].seq < heap[child].seq:
            child += 1
        if moved.seq <= heap[child].seq:
            break
        heap[i] = heap[child]
        i = child
        child = 2 * i + 1
    heap[i] = moved[0]


# ---- queues

cdef inline Queue* queue_new(uint64_t id, uint32_t flags) noexcept nogil:
    cdef Queue* q = <Queue*> lines_new(sizeof(Queue))
    if q != NULL:
        q.id = id
        q.flags = flags
        q.visible = q.durable_end = q.marked_end = <uint64_t> -1
        ring_init(&q.ring)
        idmap_init(&q.counts)
        pieces_init(&q.pieces)
    return q


cdef inline uint64_t queue_ready(const Queue* q) noexcept nogil:
    return ring_size(&q.ring) + q.returned_count + q.pieces.cold_count


cdef inline uint64_t queue_next_seq(const Queue* q) noexcept nogil:
    """The sequence of the message that is put into it next."""
    return q.seq_base + q.ring.end


cdef inline uint64_t queue_deliverable(const Queue* q) noexcept nogil:
    """How many of the ready messages may be delivered, or a few more; 0 only when none may."""
    if q.pieces.cold_count:
        return q.returned_count if q.returned_count and q.returned[0].seq < q.pieces.cold_seq else 0
    return queue_visible(q)


cdef inline uint64_t queue_visible(const Queue* q) noexcept nogil:
    """The same where nothing is cold."""
    cdef uint64_t hidden = queue_next_seq(q) - q.visible if q.visible < queue_next_seq(q) else 0
    return q.returned_count + (ring_size(&q.ring) - hidden if hidden < ring_size(&q.ring) else 0)


# ---- consumers

cdef inline bint consumer_has_room(const Consumer* c) noexcept nogil:
    """Whether a message may be outstanding at it in addition; how large is asked with consumer_fits."""
    return c.outstanding == 0 or (c.outstanding < c.window_messages and c.bytes < c.window_bytes)


cdef inline bint consumer_fits(const Consumer* c, uint32_t size) noexcept nogil:
    return c.outstanding == 0 or (c.outstanding < c.window_messages and c.bytes + size <= c.window_bytes)


cdef inline void consumer_open(Consumer* c) noexcept nogil:
    """It has room: its turn comes behind the others'."""
    cdef Queue* q = c.queue
    c.is_open = 1
    c.open_next = NULL
    c.open_previous = q.open_last
    if q.open_last != NULL:
        q.open_last.open_next = c
    else:
        q.open_first = c
    q.open_last = c
    q.open_count += 1


cdef inline void consumer_shut(Consumer* c) noexcept nogil:
    """It gets nothing for now."""
    cdef Queue* q = c.queue
    c.is_open = 0
    if c.open_previous != NULL:
        c.open_previous.open_next = c.open_next
    else:
        q.open_first = c.open_next
    if c.open_next != NULL:
        c.open_next.open_previous = c.open_previous
    else:
        q.open_last = c.open_previous
    q.open_count -= 1


cdef inline Consumer* consumer_new(Session* session, Queue* q, uint32_t number, uint32_t window_messages,
                                   uint64_t window_bytes, bint exclusive) noexcept nogil:
    """A consumer of the queue, open; NULL, and nothing changed, when there is no memory."""
    cdef Consumer* c = <Consumer*> lines_new(sizeof(Consumer))
    if c == NULL:
        return NULL
    if not idmap_put(&session.consumers, number, <uint64_t> c):
        free(c)
        return NULL
    c.number = number
    c.window_messages = window_messages
    c.window_bytes = window_bytes
    c.exclusive = exclusive
    c.session = session
    c.queue = q
    c.next = q.consumers
    if q.consumers != NULL:
        q.consumers.previous = c
    q.consumers = c
    q.consumer_count += 1
    if exclusive:
        q.exclusive = 1
    consumer_open(c)
    return c


cdef inline void consumer_close(Consumer* c) noexcept nogil:
    """It leaves queue and session, and is freed unless messages are outstanding; then with the last of them."""
    cdef Queue* q = c.queue
    if c.is_open:
        consumer_shut(c)
    if c.previous != NULL:
        c.previous.next = c.next
    else:
        q.consumers = c.next
    if c.next != NULL:
        c.next.previous = c.previous
    q.consumer_count -= 1
    if c.exclusive:
        q.exclusive = 0
    idmap_remove(&c.session.consumers, c.number)
    c.queue = NULL
    c.closed = 1
    if c.outstanding == 0:
        free(c)


# ---- sessions

cdef inline Session* session_new(uint64_t sid, uint32_t frontend, uint32_t hello) noexcept nogil:
    cdef Session* session = <Session*> calloc(1, sizeof(Session))
    if session != NULL:
        session.sid = sid
        session.frontend = frontend
        session.hello = hello
        idmap_init(&session.consumers)
        session.getter.session = session
    return session


cdef inline bint session_is_idle(const Session* session) noexcept nogil:
    """It has neither consumers nor messages, and waits for none: nothing to know about it."""
    return session.consumers.count == 0 and session.outstanding == 0 and session.gets == 0


cdef inline void session_free(Session* session) noexcept nogil:
    idmap_free(&session.consumers)
    free(session)
