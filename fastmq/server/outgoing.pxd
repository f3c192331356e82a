# What one turn of a worker has for one front-end, put together by session: one outcome, one delivery frame, whatever shards they come from.
#
# Owns: a Parcel for each session that has something to be sent. Rules: decided ranges are given out ascending, joined where they meet; a
# sequence that one shard holds and another refuses is refused; an outcome may stay here over turns and grow in place (while the ring is full,
# or the log is not as far), a delivery points into the turn's effects and leaves with it. No Python object, no I/O; without the GIL.
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, qsort, realloc
from libc.string cimport memcmp, memcpy, memset

from fastmq.model.state cimport Segment
from fastmq.wire.buffer cimport Buffer, buffer_add, buffer_extend, buffer_free, buffer_init
from fastmq.wire.idmap cimport IdMap, idmap_free, idmap_get, idmap_init, idmap_put, idmap_remove
from fastmq.wire.link cimport LinkDeliver, LinkOutcome, LinkRange, LinkRefusal, LinkRun


cdef struct Parcel:
    uint64_t sid
    Parcel* next                # the next that has something, or the next spare one
    Buffer held                 # LinkRange[]
    Buffer refused              # LinkRefusal[]
    Buffer deliveries           # const LinkDeliver*[]: payloads of L_DELIVER in the turn's effects, Segments instead of records
    uint64_t records_size       # of those
    uint64_t names_size
    uint32_t runs
    uint32_t hello
    bint unordered              # `held` is not ascending


cdef struct Outgoing:
    IdMap by_sid                # sid -> Parcel*
    Parcel* first               # in the order in which they got something
    Parcel* last
    Parcel* spare
    size_t waiting              # deliveries in all parcels
    bint failed                 # no memory


cdef inline void outgoing_init(Outgoing* o) noexcept nogil:
    memset(o, 0, sizeof(Outgoing))
    idmap_init(&o.by_sid)


cdef inline void parcel_free(Parcel* p) noexcept nogil:
    buffer_free(&p.held)
    buffer_free(&p.refused)
    buffer_free(&p.deliveries)
    free(p)


cdef inline void outgoing_free(Outgoing* o) noexcept nogil:
    cdef Parcel* p
    while o.first != NULL:
        p = o.first
        o.first = p.next
        parcel_free(p)
    while o.spare != NULL:
        p = o.spare
        o.spare = p.next
        parcel_free(p)
    idmap_free(&o.by_sid)


cdef inline Parcel* outgoing_parcel(Outgoing* o, uint64_t sid) noexcept nogil:
    """The session's parcel; NULL, and `failed` set, when there is no memory."""
    cdef Parcel* p
    if o.last != NULL and o.last.sid == sid:
        return o.last
    p = <Parcel*> idmap_get(&o.by_sid, sid, 0)
    if p != NULL:
        return p
    p = o.spare
    if p != NULL:
        o.spare = p.next
    else:
        p = <Parcel*> malloc(sizeof(Parcel))
        if p == NULL:
            o.failed = True
            return NULL
        memset(p, 0, sizeof(Parcel))
        buffer_init(&p.held)
        buffer_init(&p.refused)
        buffer_init(&p.deliveries)
    if not idmap_put(&o.by_sid, sid, <uint64_t> p):
        p.next = o.spare
        o.spare = p
        o.failed = True
        return NULL
    p.sid = sid
    p.next = NULL
    p.unordered = False
    if o.last == NULL:
        o.first = p
    else:
        o.last.next = p
    o.last = p
    return p


cdef inline void outgoing_leave(Outgoing* o, Parcel* before, Parcel* p) noexcept nogil:
    """Forget a parcel with nothing left in it; `before` is the one that stands before it, NULL: it is the first."""
    idmap_remove(&o.by_sid, p.sid)
    if before == NULL:
        o.first = p.next
    else:
        before.next = p.next
    if o.last == p:
        o.last = before
    if p.held.room + p.refused.room + p.deliveries.room > 65536:
        parcel_free(p)
    else:
        p.next = o.spare
        o.spare = p


# ---- outcomes

cdef inline bint parcel_has_outcome(const Parcel* p) noexcept nogil:
    return p.held.size != 0 or p.refused.size != 0


cdef inline void outgoing_add_outcome(Outgoing* o, const LinkOutcome* outcome) noexcept nogil:
    """What a shard decided of one session's publishes: the payload of an L_OUTCOME."""
    cdef Parcel* p = outgoing_parcel(o, outcome.sid)
    cdef const LinkRange* more = <const LinkRange*> (outcome + 1)
    cdef const LinkRefusal* refused = <const LinkRefusal*> (more + outcome.ranges)
    cdef LinkRange* last = NULL
    cdef uint32_t i
    if p == NULL:
        return
    for i in range(outcome.ranges):
        if p.held.size:
            last = <LinkRange*> (p.held.data + p.held.size - sizeof(LinkRange))
            if last.first <= more[i].first <= last.last + 1:        # the next ones, or the same for another shard
                if more[i].last > last.last:
                    last.last = more[i].last
                continue
            if more[i].first < last.first:
                p.unordered = True
        buffer_add(&p.held, &more[i], sizeof(LinkRange))
    if outcome.refusals:
        buffer_add(&p.refused, refused, outcome.refusals * sizeof(LinkRefusal))
    if p.held.failed or p.refused.failed:
        o.failed = True


cdef inline void outgoing_take_outcomes(Outgoing* o, Outgoing* other) noexcept nogil:
    """Take over all outcomes of another, which has nothing else and is empty then."""
    cdef Parcel* source
    cdef Parcel* p
    while other.first != NULL:
        source = other.first
        p = outgoing_parcel(o, source.sid)
        if p == NULL:
            return
        if p.held.size and source.held.size:
            p.unordered = True
        p.unordered |= source.unordered
        buffer_add(&p.held, source.held.data, source.held.size)
        buffer_add(&p.refused, source.refused.data, source.refused.size)
        if p.held.failed or p.refused.failed:
            o.failed = True
            return
        source.held.size = source.refused.size = 0
        outgoing_leave(other, NULL, source)


cdef inline int compare_ranges(const void* a, const void* b) noexcept nogil:
    cdef uint64_t x = (<const LinkRange*> a).first
    cdef uint64_t y = (<const LinkRange*> b).first
    return (x > y) - (x < y)


cdef inline int compare_refusals(const void* a, const void* b) noexcept nogil:
    cdef uint64_t x = (<const LinkRefusal*> a).first
    cdef uint64_t y = (<const LinkRefusal*> b).first
    return (x > y) - (x < y)


cdef inline void parcel_join(Parcel* p) noexcept nogil:
    """Make `held` ascending, apart and never adjacent."""
    cdef LinkRange* ranges = <LinkRange*> p.held.data
    cdef size_t count = p.held.size // sizeof(LinkRange)
    cdef size_t kept = 0, i
    qsort(ranges, count, sizeof(LinkRange), compare_ranges)
    for i in range(1, count):
        if ranges[i].first <= ranges[kept].last + 1:
            if ranges[i].last > ranges[kept].last:
                ranges[kept].last = ranges[i].last
        else:
            kept += 1
            ranges[kept] = ranges[i]
    p.held.size = (kept + 1) * sizeof(LinkRange)
    p.unordered = False


cdef inline bint parcel_leave_out_refused(Parcel* p) noexcept nogil:
    """Take the refused sequences out of `held`, and name each once; False when there is no memory."""
    cdef LinkRefusal* refused = <LinkRefusal*> p.refused.data
    cdef size_t refusals = p.refused.size // sizeof(LinkRefusal)
    cdef size_t ranges = p.held.size // sizeof(LinkRange)
    cdef size_t kept = 0, i, j = 0
    cdef LinkRange part
    cdef LinkRange* before
    cdef Buffer left
    qsort(refused, refusals, sizeof(LinkRefusal), compare_refusals)
    for i in range(1, refusals):
        if refused[i].first <= refused[kept].last:
            if refused[i].last <= refused[kept].last:
                continue
            refused[i].first = refused[kept].last + 1
        if refused[i].first == refused[kept].last + 1 and refused[i].code == refused[kept].code:
            refused[kept].last = refused[i].last
            continue
        kept += 1
        refused[kept] = refused[i]
    refusals = kept + 1
    p.refused.size = refusals * sizeof(LinkRefusal)
    if ranges == 0:
        return True
    buffer_init(&left)
    for i in range(ranges):
        part = (<LinkRange*> p.held.data)[i]
        while j < refusals and refused[j].last < part.first:
            j += 1
        while j < refusals and refused[j].first <= part.last:
            if refused[j].first > part.first:
                before = <LinkRange*> buffer_extend(&left, sizeof(LinkRange))
                if before == NULL:
                    break
                before.first = part.first
                before.last = refused[j].first - 1
            part.first = refused[j].last + 1
            if part.first > part.last:
                break                                   # the same refusal may reach into the next range
            j += 1
        if part.first <= part.last:
            buffer_add(&left, &part, sizeof(LinkRange))
    if left.failed:
        buffer_free(&left)
        return False
    buffer_free(&p.held)
    p.held = left
    return True


cdef inline size_t parcel_finish_outcome(Parcel* p) noexcept nogil:
    """Put the outcome in order; the size of its L_OUTCOME, 0: no memory."""
    if p.unordered:
        parcel_join(p)
    if p.refused.size and not parcel_leave_out_refused(p):
        return 0
    return sizeof(LinkOutcome) + p.held.size + p.refused.size


cdef inline void parcel_write_outcome(Parcel* p, uint8_t* at) noexcept nogil:
    """Write the L_OUTCOME, whose size parcel_finish_outcome gave, and forget it."""
    cdef LinkOutcome* head = <LinkOutcome*> at
    head.sid = p.sid
    head.ranges = <uint32_t> (p.held.size // sizeof(LinkRange))
    head.refusals = <uint32_t> (p.refused.size // sizeof(LinkRefusal))
    at += sizeof(LinkOutcome)
    if p.held.size:
        memcpy(at, p.held.data, p.held.size)
    if p.refused.size:
        memcpy(at + p.held.size, p.refused.data, p.refused.size)
    p.held.size = 0
    p.refused.size = 0


# ---- deliveries

cdef inline bint parcel_has_deliveries(const Parcel* p) noexcept nogil:
    return p.deliveries.size != 0


cdef inline void outgoing_add_delivery(Outgoing* o, Parcel* p, const LinkDeliver* delivery) noexcept nogil:
    """Messages for one session: the payload of an L_DELIVER, which stays where it is until the parcel is written."""
    buffer_add(&p.deliveries, &delivery, sizeof(delivery))
    if p.deliveries.failed:
        o.failed = True
        return
    o.waiting += 1
    p.hello = delivery.hello
    p.runs += delivery.runs
    p.records_size += delivery.records_size
    p.names_size += delivery.names_size


cdef inline size_t parcel_delivery_size(const Parcel* p) noexcept nogil:
    """The most that its L_DELIVER takes."""
    return sizeof(LinkDeliver) + p.runs * sizeof(LinkRun) + p.names_size + p.records_size


cdef inline const uint8_t* delivery_names(const LinkDeliver* d) noexcept nogil:
    return <const uint8_t*> (<const LinkRun*> (d + 1) + d.runs)


cdef inline size_t parcel_count_names(Parcel* p) noexcept nogil:
    """Bytes of names when those that are the same as in the delivery before are written once; `names_size` is set to it."""
    cdef const LinkDeliver** all = <const LinkDeliver**> p.deliveries.data
    cdef size_t i
    p.names_size = 0
    for i in range(p.deliveries.size // sizeof(void*)):
        if i == 0 or not same_names(all[i - 1], all[i]):
            p.names_size += all[i].names_size
    return p.names_size


cdef inline bint same_names(const LinkDeliver* a, const LinkDeliver* b) noexcept nogil:
    return a.names_size == b.names_size and memcmp(delivery_names(a), delivery_names(b), a.names_size) == 0


cdef inline void parcel_write_delivery(Outgoing* o, Parcel* p, uint8_t* at) noexcept nogil:
    """Write the L_DELIVER, whose size parcel_delivery_size gave after parcel_count_names, and forget it."""
    cdef const LinkDeliver** all = <const LinkDeliver**> p.deliveries.data
    cdef size_t count = p.deliveries.size // sizeof(void*)
    cdef LinkDeliver* head = <LinkDeliver*> at
    cdef LinkRun* runs = <LinkRun*> (head + 1)
    cdef uint8_t* names = <uint8_t*> (runs + p.runs)
    cdef uint8_t* records = names + p.names_size
    cdef uint32_t names_at = 0, names_end = 0, j
    cdef const Segment* segment
    cdef size_t i, left
    head.sid = p.sid
    head.hello = p.hello
    head.runs = p.runs
    head.names_size = <uint32_t> p.names_size
    head.records_size = <uint32_t> p.records_size
    head.loan = 0
    head.shared_at = 0
    for i in range(count):
        memcpy(runs, all[i] + 1, all[i].runs * sizeof(LinkRun))
        if i == 0 or not same_names(all[i - 1], all[i]):
            memcpy(names + names_end, delivery_names(all[i]), all[i].names_size)
            names_at = names_end
            names_end += all[i].names_size
        if names_at:
            for j in range(all[i].runs):
                runs[j].exchange_offset += names_at
        runs += all[i].runs
        segment = <const Segment*> (delivery_names(all[i]) + all[i].names_size)
        left = all[i].records_size
        while left:
            memcpy(records, segment.data, segment.size)
            records += segment.size
            left -= segment.size
            segment += 1
    o.waiting -= count
    p.deliveries.size = 0
    p.runs = 0
    p.records_size = 0
    p.names_size = 0
