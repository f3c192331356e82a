# Who has which part of a worker's arena.
#
# Owns: no memory but its own lists; the arena's bytes belong to net/arena.pxd. Rules: a region is a run of whole units; it is written from its
# start on by one who has it, a front-end or the worker itself, and is free again when nobody writes into it and nothing in it is held; a Hold
# keeps its bytes, for a message that lies there or for a delivery that a front-end has not given back. The loans of a front-end that died are
# void. Free units that were not needed for a while (units_cool), and what lies between the last holds of a region (regions_cool), is to be
# given back. No Python object, no I/O; runs in the worker, without the GIL.
#
#       arena   | unit | unit | unit | unit ...          unit: COLD  free, takes no memory
#                <- region -> <region>                         WARM  free, takes memory
#                 hold  hold     hold                          USED  in a region
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, qsort
from libc.string cimport memset

from fastmq.wire.buffer cimport Buffer, buffer_add, buffer_clear, buffer_free, buffer_init
from fastmq.wire.idmap cimport IdMap, idmap_free, idmap_get, idmap_init, idmap_put, idmap_remove


cdef enum:
    UNIT_SIZE = 4194304             # bytes
    UNIT_COLD = 0
    UNIT_WARM = 1
    UNIT_USED = 2
    WRITER_NONE = -1
    WRITER_SELF = -2                # the worker
    PAGE_SIZE = 4096
    ALIGNMENT = 64                  # of a record
    COOL_REGIONS_MAX = 64           # regions that one regions_cool looks at


cdef struct Hold:                   # bytes that must stay
    Region* region
    Hold* next                      # of the region, in no order
    Hold* previous
    uint64_t offset
    uint64_t size


cdef struct Region:
    uint64_t offset
    uint32_t units
    int32_t writer                  # front-end, or WRITER_NONE, WRITER_SELF
    bint is_warm                    # it took memory when it was taken
    uint64_t used                   # bytes that WRITER_SELF has given out
    Hold* holds
    uint64_t live                   # bytes of those
    uint64_t cooled                 # `live` when it was looked at last
    Region* next                    # of all regions
    Region* previous


cdef struct Loan:                   # of a record to a front-end
    Hold hold
    uint32_t frontend


cdef struct Span:
    uint64_t offset
    uint64_t size


cdef struct Regions:
    uint8_t* base
    uint64_t unit_size              # UNIT_SIZE, smaller in tests
    uint32_t unit_count
    uint8_t* states                 # of the units
    Region** of_unit                # NULL: none
    uint32_t warm                   # units
    uint32_t warm_least             # since the last units_cool
    uint32_t looked                 # units below this one were tried last
    Region* first                   # all regions
    Region* cooling                 # which regions_cool looks at next
    Region* own                     # into which the worker writes; NULL: none
    uint64_t own_used               # of that, at the last regions_cool
    IdMap loans                     # number -> Loan*
    uint64_t last_loan
    Buffer scratch                  # Span[], of the region being cooled


cdef inline bint regions_init(Regions* r, uint8_t* base, uint64_t size, uint64_t unit_size) noexcept nogil:
    """False: no memory. `base` NULL: there is no arena, and nothing is ever given out."""
    memset(r, 0, sizeof(Regions))
    idmap_init(&r.loans)
    buffer_init(&r.scratch)
    r.base = base
    r.unit_size = unit_size
    r.unit_count = <uint32_t> (size // unit_size) if base != NULL else 0
    r.states = <uint8_t*> calloc(r.unit_count + 1, 1)
    r.of_unit = <Region**> calloc(r.unit_count + 1, sizeof(Region*))
    return r.states != NULL and r.of_unit != NULL


cdef inline void regions_free(Regions* r) noexcept nogil:
    """Forget everything; holds of messages are their owners'."""
    cdef Region* region
    cdef size_t i
    if r.loans.entries != NULL:
        for i in range(r.loans.mask + 1):
            if r.loans.entries[i].key:
                free(<Loan*> r.loans.entries[i].value)
    while r.first != NULL:
        region = r.first
        r.first = region.next
        free(region)
    idmap_free(&r.loans)
    buffer_free(&r.scratch)
    free(r.states)
    free(r.of_unit)
    memset(r, 0, sizeof(Regions))


# ---- regions

cdef inline uint32_t units_find(Regions* r, uint32_t count, uint8_t wanted) noexcept nogil:
    """The first of `count` free units beside each other, a single one rather of the state `wanted`; unit_count: there are none."""
    cdef uint32_t i, found = 0
    if count == 1 and (wanted == UNIT_COLD or r.warm):
        for i in range(r.unit_count):
            if r.states[i] == wanted:
                return i
    for i in range(r.unit_count):
        found = found + 1 if r.states[i] != UNIT_USED else 0
        if found == count:
            return i + 1 - count
    return r.unit_count


cdef inline Region* regions_take(Regions* r, uint64_t size, int32_t writer, uint8_t wanted) noexcept nogil:
    """A region of at least `size` bytes for this writer, rather of WARM or COLD units; NULL when the arena has none, or there is no memory."""
    cdef uint32_t count = <uint32_t> ((size + r.unit_size - 1) // r.unit_size) if size <= r.unit_count * r.unit_size else r.unit_count + 1
    cdef uint32_t at = units_find(r, count, wanted) if count <= r.unit_count else r.unit_count
    cdef Region* region
    cdef uint32_t i
    if at == r.unit_count:
        return NULL
    region = <Region*> calloc(1, sizeof(Region))
    if region == NULL:
        return NULL
    for i in range(at, at + count):
        if r.states[i] == UNIT_WARM:
            region.is_warm = True
            r.warm -= 1
        r.states[i] = UNIT_USED
        r.of_unit[i] = region
    if r.warm < r.warm_least:
        r.warm_least = r.warm
    region.offset = at * r.unit_size
    region.units = count
    region.writer = writer
    region.next = r.first
    if r.first != NULL:
        r.first.previous = region
    r.first = region
    return region


cdef inline void region_leave(Regions* r, Region* region) noexcept nogil:
    """Give it back if it is of no more use."""
    cdef uint32_t at = <uint32_t> (region.offset // r.unit_size), i
    if region.holds != NULL or region.writer != WRITER_NONE:
        return
    for i in range(at, at + region.units):
        r.states[i] = UNIT_WARM
        r.of_unit[i] = NULL
    r.warm += region.units
    if r.cooling == region:
        r.cooling = region.next
    if region.previous != NULL:
        region.previous.next = region.next
    else:
        r.first = region.next
    if region.next != NULL:
        region.next.previous = region.previous
    free(region)


cdef inline void regions_written(Regions* r, uint64_t offset, int32_t writer) noexcept nogil:
    """This writer is done with its region that begins at `offset`."""
    cdef uint32_t at = <uint32_t> (offset // r.unit_size)
    cdef Region* region = r.of_unit[at] if at < r.unit_count else NULL
    if region != NULL and region.offset == offset and region.writer == writer:
        region.writer = WRITER_NONE
        region_leave(r, region)


cdef inline uint32_t regions_count(const Regions* r, uint32_t* written) noexcept nogil:
    """How many regions there are, and how many of them somebody writes into."""
    cdef Region* region = r.first
    cdef uint32_t count = 0
    written[0] = 0
    while region != NULL:
        count += 1
        written[0] += region.writer != WRITER_NONE
        region = region.next
    return count


# ---- holds

cdef inline bint regions_contain(const Regions* r, const uint8_t* at) noexcept nogil:
    return r.base != NULL and at >= r.base and at < r.base + r.unit_count * r.unit_size


cdef inline void hold_enter(Regions* r, Hold* hold, uint64_t offset, uint64_t size) noexcept nogil:
    """Keep these bytes, which lie in a region."""
    cdef Region* region = r.of_unit[offset // r.unit_size]
    hold.region = region
    hold.offset = offset
    hold.size = size
    hold.previous = NULL
    hold.next = region.holds
    if region.holds != NULL:
        region.holds.previous = hold
    region.holds = hold
    region.live += size


cdef inline void hold_leave(Regions* r, Hold* hold) noexcept nogil:
    """Keep them no more. The Hold's own memory is its owner's."""
    cdef Region* region = hold.region
    if hold.previous != NULL:
        hold.previous.next = hold.next
    else:
        region.holds = hold.next
    if hold.next != NULL:
        hold.next.previous = hold.previous
    region.live -= hold.size
    region_leave(r, region)


cdef inline void regions_close_own(Regions* r) noexcept nogil:
    """The worker writes into its region no more."""
    if r.own != NULL:
        r.own.writer = WRITER_NONE
        region_leave(r, r.own)
        r.own = NULL


cdef inline uint8_t* regions_place(Regions* r, uint64_t size) noexcept nogil:
    """Where the worker itself may put a record of so many bytes, which it then holds; NULL: the arena has no room."""
    cdef Region* region = r.own
    cdef uint64_t at
    if region == NULL or region.units * r.unit_size - region.used < size:
        region = regions_take(r, size, WRITER_SELF, UNIT_WARM)
        if region == NULL:
            return NULL
        regions_close_own(r)
        r.own = region
    at = region.offset + region.used
    region.used += (size + ALIGNMENT - 1) & ~<uint64_t> (ALIGNMENT - 1)
    if region.used > region.units * r.unit_size:
        region.used = region.units * r.unit_size
    return r.base + at


# ---- loans

cdef inline uint64_t regions_lend(Regions* r, const Hold* hold, uint32_t frontend) noexcept nogil:
    """Lend held bytes to a front-end, which are then held for it too; the loan's number, 0: no memory."""
    cdef Loan* loan = <Loan*> malloc(sizeof(Loan))
    if loan == NULL:
        return 0
    if not idmap_put(&r.loans, r.last_loan + 1, <uint64_t> loan):
        free(loan)
        return 0
    r.last_loan += 1
    loan.frontend = frontend
    hold_enter(r, &loan.hold, hold.offset, hold.size)
    return r.last_loan


cdef inline void regions_returned(Regions* r, uint64_t number) noexcept nogil:
    """A loan has come back."""
    cdef Loan* loan = <Loan*> idmap_get(&r.loans, number, 0) if number else NULL
    if loan != NULL:
        idmap_remove(&r.loans, number)
        hold_leave(r, &loan.hold)
        free(loan)


cdef inline void regions_frontend_gone(Regions* r, uint32_t frontend) noexcept nogil:
    """Its loans are void, and it writes no more."""
    cdef Region* region = r.first
    cdef Region* following
    cdef size_t i
    buffer_clear(&r.scratch)                                # their numbers: removing moves the map's entries
    if r.loans.entries != NULL:
        for i in range(r.loans.mask + 1):
            if r.loans.entries[i].key and (<Loan*> r.loans.entries[i].value).frontend == frontend:
                buffer_add(&r.scratch, &r.loans.entries[i].key, sizeof(uint64_t))
    for i in range(r.scratch.size // sizeof(uint64_t)):
        regions_returned(r, (<uint64_t*> r.scratch.data)[i])
    while region != NULL:
        following = region.next
        if region.writer == <int32_t> frontend:
            region.writer = WRITER_NONE
            region_leave(r, region)
        region = following


# ---- giving memory back

cdef inline int compare_spans(const void* a, const void* b) noexcept nogil:
    cdef uint64_t x = (<const Span*> a).offset
    cdef uint64_t y = (<const Span*> b).offset
    return (x > y) - (x < y)


cdef inline void span_add(Buffer* out, uint64_t start, uint64_t end) noexcept nogil:
    """The whole pages between."""
    cdef Span span
    start = (start + PAGE_SIZE - 1) & ~<uint64_t> (PAGE_SIZE - 1)
    end &= ~<uint64_t> (PAGE_SIZE - 1)
    if start < end:
        span.offset = start
        span.size = end - start
        buffer_add(out, &span, sizeof(Span))


cdef inline void region_cool(Regions* r, Region* region, Buffer* out) noexcept nogil:
    """What lies between the holds of a region of which less than half is held."""
    cdef uint64_t at = region.offset, end = region.offset + region.units * r.unit_size
    cdef Hold* hold = region.holds
    cdef Span* spans
    cdef Span held
    cdef size_t i
    if region.writer != WRITER_NONE or region.live * 2 >= region.units * r.unit_size or region.cooled == region.live:
        return
    region.cooled = region.live
    buffer_clear(&r.scratch)
    while hold != NULL:
        held.offset = hold.offset
        held.size = hold.size
        buffer_add(&r.scratch, &held, sizeof(Span))
        hold = hold.next
    if r.scratch.failed:
        return
    spans = <Span*> r.scratch.data
    qsort(spans, r.scratch.size // sizeof(Span), sizeof(Span), compare_spans)
    for i in range(r.scratch.size // sizeof(Span)):
        if spans[i].offset > at:
            span_add(out, at, spans[i].offset)
        if spans[i].offset + spans[i].size > at:
            at = spans[i].offset + spans[i].size
    span_add(out, at, end)


cdef inline void regions_cool(Regions* r, Buffer* out) noexcept nogil:
    """Now and then: append to `out` the Spans between holds whose memory is to be given back."""
    cdef uint32_t i
    if r.own != NULL and r.own.used == r.own_used:          # it has lain idle
        regions_close_own(r)
    r.own_used = r.own.used if r.own != NULL else 0
    for i in range(COOL_REGIONS_MAX):
        if r.cooling == NULL:
            r.cooling = r.first
            if i or r.cooling == NULL:
                return
        region_cool(r, r.cooling, out)
        r.cooling = r.cooling.next


cdef inline void units_cool(Regions* r, Buffer* out) noexcept nogil:
    """Once in a while: append to `out` an eighth of the units that were free since the last time. The next burst finds most of them."""
    cdef uint32_t left = (r.warm_least + 7) // 8, i = r.unit_count
    while left and i:
        i -= 1
        if r.states[i] == UNIT_WARM:
            r.states[i] = UNIT_COLD
            r.warm -= 1
            left -= 1
            span_add(out, i * r.unit_size, (i + 1) * r.unit_size)
    r.warm_least = r.warm
