# The account of a session's publishes: which are without an outcome, which workers owe an answer, what the window allows.
#
# Owns: two blocks of memory for each session. Rules: the first answer of a worker for a sequence counts, and none for a sequence that is not
# open; every publish that was entered is decided exactly once, or voided with the whole account; memory is bounded by the window, however
# long one publish stays open. Runs in front-ends, without the GIL.
#
# Publishes stand in a ring in the order they came, which is the order of their sequences (gaps are those a re-send leaves out):
#
#     stragglers                    ring, by position in the incarnation
#     [seq 7] [seq 19]     ...  tail[open] [decided] [decided] [open] ... head
#
# What is open at the tail while the ring fills up moves to the stragglers, so that one slow shard holds up its own publishes only.
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc

from fastmq.wire.buffer cimport Buffer, buffer_add
from fastmq.wire.link cimport LinkRange, LinkRefusal


cdef struct Open:
    uint64_t seq
    uint32_t workers            # bits of the workers that have still to answer; 0: decided
    uint32_t size               # bytes of its record
    uint32_t code               # what a worker refused it with while others have still to answer, else 0
    uint32_t padding


cdef struct Account:
    Open* ring                  # NULL before the first publish
    uint64_t room               # entries of the ring, a power of two
    uint64_t head               # publishes entered in this incarnation
    uint64_t tail               # position of the lowest that is open in the ring; head: none is
    Open* stragglers            # ascending by sequence, with decided ones among them
    uint64_t stragglers_first   # those before it are of no more interest
    uint64_t stragglers_count   # behind the last
    uint64_t stragglers_room
    uint64_t stragglers_open
    uint64_t last_seq           # of the publish entered last, 0: none in this incarnation
    uint64_t up_to              # no publish up to here is open
    uint64_t bytes              # of the publishes entered in this incarnation
    uint64_t decided            # how many of them have their outcome
    uint64_t decided_bytes
    uint64_t window             # configured: how many may be open
    uint64_t window_bytes
    uint64_t told               # the window as the client was last told: how many it may send in this incarnation
    uint64_t told_bytes
    uint64_t narrow_bytes       # how many more than have come it may send while the window is narrow
    uint64_t narrow_until_ns    # 0: it is not, nor was it when the client was last told
    Buffer held                 # LinkRange[]: decided well since the last account_told, in the order of the answers
    Buffer refused              # LinkRefusal[]: refused since then
    bint due                    # there is something to tell
    bint telling                # what was told has not left yet


cdef enum:
    ACCOUNT_ROOM_MIN = 64
    ACCOUNT_SPARE_MAX = 4096    # an account that is empty gives back what is larger


cdef inline void account_init(Account* a, uint64_t window, uint64_t window_bytes) noexcept nogil:
    """`a` is zeroed memory."""
    a.window = window
    a.window_bytes = window_bytes
    a.told = window
    a.told_bytes = window_bytes


cdef inline void account_free(Account* a) noexcept nogil:
    free(a.ring)
    free(a.stragglers)
    free(a.held.data)
    free(a.refused.data)
    a.ring = NULL
    a.stragglers = NULL
    a.held.data = NULL
    a.refused.data = NULL


cdef inline uint64_t account_open(const Account* a) noexcept nogil:
    """How many publishes are without an outcome."""
    return a.head - a.decided


cdef inline void account_void(Account* a) noexcept nogil:
    """A new incarnation begins: nothing is open, nothing is due, the window is whole."""
    a.head = 0
    a.tail = 0
    a.stragglers_first = 0
    a.stragglers_count = 0
    a.stragglers_open = 0
    a.last_seq = 0
    a.up_to = 0                 # of what it passed some may have been refused, and the client may not have heard of that
    a.bytes = 0
    a.decided = 0
    a.decided_bytes = 0
    a.told = a.window
    a.told_bytes = a.window_bytes
    a.held.size = 0
    a.refused.size = 0
    a.due = False
    a.telling = False


cdef inline void account_narrow(Account* a, uint64_t bytes, uint64_t now_ns, uint64_t until_ns) noexcept nogil:
    """Until then the client is let send only so many bytes more than have come, so that little is on its way. What it was told stays, and so
    does the most that was asked for while the window is narrow."""
    a.narrow_bytes = max(bytes, a.narrow_bytes) if now_ns < a.narrow_until_ns else bytes
    a.narrow_until_ns = until_ns


cdef inline uint64_t account_reach(const Account* a, uint64_t now_ns) noexcept nogil:
    """How many bytes the client may send in all, were it told now."""
    cdef uint64_t reach = a.decided_bytes + a.window_bytes
    if now_ns < a.narrow_until_ns:
        reach = min(reach, a.bytes + a.narrow_bytes)
    return max(reach, a.told_bytes)


cdef inline void account_came(Account* a, uint64_t now_ns) noexcept nogil:
    """Where the window is narrow the client may hear of more room before there are outcomes: what it sent has come, or it is so no more."""
    cdef bint narrow = now_ns < a.narrow_until_ns
    if a.narrow_until_ns == 0:
        return
    if (not narrow or a.told_bytes < a.bytes + a.narrow_bytes * 3 // 4) and account_reach(a, now_ns) > a.told_bytes:
        a.due = True
    if not narrow:
        a.narrow_until_ns = 0


cdef inline void account_told(Account* a, bint keep_held, uint64_t now_ns) noexcept nogil:
    """The client is being told what is due (without the ranges in `held`, if they are kept), and the window as it is now."""
    a.told = a.decided + a.window
    a.told_bytes = account_reach(a, now_ns)
    a.refused.size = 0
    a.due = keep_held
    if not keep_held:
        a.held.size = 0


cdef inline void account_trim(Account* a) noexcept nogil:
    """Give back what an account that is empty does not need."""
    if a.head == a.decided and a.room > ACCOUNT_SPARE_MAX:
        free(a.ring)
        free(a.stragglers)
        a.ring = NULL
        a.stragglers = NULL
        a.room = 0
        a.tail = a.head
        a.stragglers_room = 0
        a.stragglers_first = 0
        a.stragglers_count = 0


# ---- outcomes

cdef inline void account_decide(Account* a, uint64_t seq, uint32_t size, uint32_t code) noexcept nogil:
    """The outcome of one publish: `code` 0, or why it is refused."""
    cdef LinkRange* held
    cdef LinkRefusal* refused
    cdef LinkRange new_held
    cdef LinkRefusal new_refused
    a.decided += 1
    a.decided_bytes += size
    a.due = True
    if code == 0:
        if a.held.size:
            held = <LinkRange*> (a.held.data + a.held.size - sizeof(LinkRange))
            if held.last + 1 == seq:
                held.last = seq
                return
        new_held.first = seq
        new_held.last = seq
        buffer_add(&a.held, &new_held, sizeof(LinkRange))
        return
    if a.refused.size:
        refused = <LinkRefusal*> (a.refused.data + a.refused.size - sizeof(LinkRefusal))
        if refused.last + 1 == seq and refused.code == code:
            refused.last = seq
            return
    new_refused.first = seq
    new_refused.last = seq
    new_refused.code = code
    new_refused.padding = 0
    buffer_add(&a.refused, &new_refused, sizeof(LinkRefusal))


cdef inline void account_advance(Account* a) noexcept nogil:
    """Pass the tail and `up_to` over what is decided."""
    while a.tail < a.head and a.ring[a.tail & (a.room - 1)].workers == 0:
        a.tail += 1
    if a.stragglers_open:
        while a.stragglers[a.stragglers_first].workers == 0:
            a.stragglers_first += 1
        a.up_to = a.stragglers[a.stragglers_first].seq - 1
        return
    a.stragglers_first = 0
    a.stragglers_count = 0
    if a.tail < a.head:
        a.up_to = a.ring[a.tail & (a.room - 1)].seq - 1
    elif a.last_seq > a.up_to:
        a.up_to = a.last_seq


cdef inline bint account_answer_one(Account* a, Open* entry, uint32_t worker, uint32_t code) noexcept nogil:
    """One worker's answer to one publish; True if that decides it."""
    if not entry.workers & worker:
        return False
    entry.workers &= ~worker
    if code and not entry.code:
        entry.code = code
    if entry.workers:
        return False
    account_decide(a, entry.seq, entry.size, entry.code)
    return True


cdef inline uint64_t account_find(const Account* a, uint64_t seq) noexcept nogil:
    """Position of the first publish in the ring whose sequence is not below `seq`."""
    cdef uint64_t low = a.tail, high = a.head, middle
    if low == high or a.ring[low & (a.room - 1)].seq >= seq:
        return low
    if seq > a.last_seq:
        return high
    middle = a.last_seq - seq                       # right where there is no gap behind it
    if middle < high - low:
        middle = high - 1 - middle
        if a.ring[middle & (a.room - 1)].seq == seq:
            return middle
    while low < high:
        middle = low + (high - low) // 2
        if a.ring[middle & (a.room - 1)].seq < seq:
            low = middle + 1
        else:
            high = middle
    return low


cdef inline uint64_t account_find_straggler(const Account* a, uint64_t seq) noexcept nogil:
    """Index of the first straggler whose sequence is not below `seq`."""
    cdef uint64_t low = a.stragglers_first, high = a.stragglers_count, middle
    while low < high:
        middle = low + (high - low) // 2
        if a.stragglers[middle].seq < seq:
            low = middle + 1
        else:
            high = middle
    return low


cdef inline void account_answer(Account* a, uint64_t first, uint64_t last, uint32_t worker, uint32_t code) noexcept nogil:
    """The worker whose bit is `worker` has decided these sequences: `code` 0, or why it refused them. `account_advance` is owed."""
    cdef uint64_t i
    cdef Open* entry
    if a.stragglers_open:
        for i in range(account_find_straggler(a, first), a.stragglers_count):
            entry = &a.stragglers[i]
            if entry.seq > last:
                break
            if account_answer_one(a, entry, worker, code):
                a.stragglers_open -= 1
    for i in range(account_find(a, first), a.head):
        entry = &a.ring[i & (a.room - 1)]
        if entry.seq > last:
            break
        account_answer_one(a, entry, worker, code)


# ---- publishes

cdef inline bint _account_grow(Account* a, uint64_t need) noexcept nogil:
    """Make the ring at least `need` entries large."""
    cdef uint64_t room = a.room if a.room else ACCOUNT_ROOM_MIN
    cdef uint64_t i
    cdef Open* ring
    while room < need:
        room *= 2
    ring = <Open*> calloc(room, sizeof(Open))
    if ring == NULL:
        return False
    for i in range(a.tail, a.head):
        ring[i & (room - 1)] = a.ring[i & (a.room - 1)]
    free(a.ring)
    a.ring = ring
    a.room = room
    return True


cdef inline bint _account_spill(Account* a, uint64_t count) noexcept nogil:
    """Move open publishes from the tail to the stragglers until `count` more fit into the ring."""
    cdef uint64_t moved = a.head - a.tail + count - a.room
    cdef uint64_t kept = 0, i, _
    cdef Open* entry
    cdef Open* stragglers
    if a.stragglers_count + moved > a.stragglers_room:          # leave out the decided ones first
        for i in range(a.stragglers_first, a.stragglers_count):
            if a.stragglers[i].workers:
                a.stragglers[kept] = a.stragglers[i]
                kept += 1
        a.stragglers_first = 0
        a.stragglers_count = kept
        if 2 * (kept + moved) > a.stragglers_room:
            stragglers = <Open*> realloc(a.stragglers, 4 * (kept + moved) * sizeof(Open))
            if stragglers == NULL:
                return False
            a.stragglers = stragglers
            a.stragglers_room = 4 * (kept + moved)
    for _ in range(moved):
        entry = &a.ring[a.tail & (a.room - 1)]
        if entry.workers:
            a.stragglers[a.stragglers_count] = entry[0]
            a.stragglers_count += 1
            a.stragglers_open += 1
        a.tail += 1
    return True


cdef inline bint account_reserve(Account* a, uint64_t count) noexcept nogil:
    """Room for `count` more publishes (at most BATCH_COUNT_MAX); False, and nothing changed, when there is no memory."""
    cdef uint64_t need = a.head - a.tail + count
    cdef uint64_t limit
    if need <= a.room:
        return True
    limit = 2 * a.window + count        # more decided publishes than open ones behind an open one: it is a straggler
    if need <= limit or a.room < count:
        return _account_grow(a, need)
    return _account_spill(a, count)


cdef inline bint account_allows(const Account* a, uint64_t more, uint64_t bytes) noexcept nogil:
    """Whether one publish of `bytes` fits the window behind `more` others that are not entered yet (their bytes counted in `bytes`)."""
    if a.head + more < a.told and a.bytes + bytes <= a.told_bytes:
        return True
    return a.head == a.decided and more == 0 and not a.due and not a.telling    # none is open, and its client can know that


cdef inline void account_begin(Account* a, uint64_t floor) noexcept nogil:
    """The first publish of an incarnation is about to be entered: the client has an outcome for all below `floor`."""
    a.up_to = floor - 1


cdef inline void account_add(Account* a, uint64_t seq, uint32_t size, uint32_t workers, uint32_t code) noexcept nogil:
    """Enter a publish that these workers have to answer; none: it is decided, `code` 0 or why it is refused. Room was reserved."""
    cdef Open* entry = &a.ring[a.head & (a.room - 1)]
    entry.seq = seq
    entry.workers = workers
    entry.size = size
    entry.code = 0
    a.head += 1
    a.bytes += size
    a.last_seq = seq
    if workers == 0:
        account_decide(a, seq, size, code)
