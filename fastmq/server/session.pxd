# One session as the front-end's hot path sees it, and what waits to be sent to its client.
#
# Owns: a Session and its Frames. Rules: frames leave in the order they were made; deliveries that come together leave in one frame; outcomes
# are gathered in the account while earlier frames wait, so that at most one CONFIRM is under way for a client that is slow. What waits is
# bounded: deliveries by the windows of the consumers, outcomes by that of the publisher, the rest by REPLIES_WAITING_MAX.
# Runs in front-ends, without the GIL.
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, qsort

from fastmq.net.arena cimport Borrowed, arena_give_back
from fastmq.server.accounts cimport Account, account_free, account_told
from fastmq.wire.buffer cimport Buffer, buffer_add, buffer_free, buffer_init, buffer_reserve
from fastmq.wire.limits cimport DELIVERY_SIZE_MAX
from fastmq.wire.link cimport LinkRange, LinkRefusal, LinkRun
from fastmq.wire.msgpack cimport mp_array, mp_bin, mp_str, mp_uint
from fastmq.wire.verbs cimport CONFIRM, DELIVER


cdef enum:
    REPLIES_WAITING_MAX = 1024          # frames that are not deliveries; a client that lets more wait loses its session
    RANGES_AT_ONCE = 16                 # more decided ranges than these wait RANGES_WAIT_NS for the gaps between them to close
    RANGES_WAIT_NS = 2000000
    CODES = 27


cdef struct Address:                    # of a connection
    int fd                              # its descriptor, -1: none
    uint32_t number                     # no other connection of this front-end has had both


cdef struct Frame:
    Frame* next
    uint8_t* header                     # malloc'ed
    uint8_t* records                    # malloc'ed, or in a worker's arena; NULL: there is no second frame
    Borrowed* borrowed                  # the loan of that record; NULL: none
    size_t header_size
    size_t records_size
    size_t sent                         # bytes of it, and of what ZMTP puts before them, that have left
    Address address                     # whom a frame without a session goes to
    bint is_delivery
    bint is_confirm


cdef struct Session:
    uint64_t sid                        # public half of the session id
    uint64_t proof                      # its other half
    uint32_t incarnation                # of the last HELLO or RESEND
    uint32_t hello                      # of the last HELLO
    uint32_t vhost                      # number of its virtual host
    Address address                     # the connection of the last HELLO
    uint64_t vanished_ns                # when it went
    size_t frames_size                  # bytes of the frames waiting here
    uint64_t live_seq                   # live subscribers have been sent what was published up to here
    Account account
    uint64_t told_up_to                 # `up_to` of the last CONFIRM
    uint64_t ranges_since_ns            # since when decided ranges wait for the gaps between them to close; 0: none do
    Buffer runs                         # of the delivery being gathered, as they stand in its header
    uint32_t runs_count
    uint32_t replies                    # frames waiting that are not deliveries
    Buffer records                      # of that delivery
    Frame* first                        # frames waiting, oldest first
    Frame* last
    Session* next                       # in the list of those that have something to send
    Session* next_later
    bint listed                         # it has something to send
    bint waiting                        # its client takes no more for now
    bint later                          # it has decided ranges to tell, a little later
    bint ended                          # to be freed once it stands in no list
    bint told_closing                   # it has been told that nothing new is taken


cdef struct SessionList:
    Session* first
    Session* last


cdef struct CodeText:                   # what clients are told for a Code
    const char* code
    const char* text
    uint32_t code_size
    uint32_t text_size


cdef inline bint address_same(const Address* a, const Address* b) noexcept nogil:
    return a.fd == b.fd and a.number == b.number


cdef inline void list_add(SessionList* l, Session* s) noexcept nogil:
    s.next = NULL
    if l.first == NULL:
        l.first = s
    else:
        l.last.next = s
    l.last = s


cdef inline void list_add_first(SessionList* l, Session* s) noexcept nogil:
    s.next = l.first
    if l.first == NULL:
        l.last = s
    l.first = s


cdef inline Session* list_take(SessionList* l) noexcept nogil:
    """The first, taken out; NULL when there is none."""
    cdef Session* s = l.first
    if s != NULL:
        l.first = s.next
        s.next = NULL
    return s


# ---- frames

cdef inline void frame_free(Frame* f) noexcept nogil:
    free(f.header)
    if f.borrowed != NULL:
        arena_give_back(f.borrowed)
    else:
        free(f.records)
    free(f)


cdef inline void frames_free(Frame* f) noexcept nogil:
    """A frame and those behind it."""
    cdef Frame* following
    while f != NULL:
        following = f.next
        frame_free(f)
        f = following


cdef inline Frame* frame_make(Buffer* header, Buffer* records) noexcept nogil:
    """A frame that owns what the two buffers held (records NULL: none); they are empty then. NULL when there is no memory."""
    cdef Frame* f = <Frame*> calloc(1, sizeof(Frame))
    if f == NULL or header.failed or (records != NULL and records.failed):
        free(f)
        return NULL
    f.header = header.data
    f.header_size = header.size
    buffer_init(header)
    if records != NULL:
        f.records = records.data
        f.records_size = records.size
        buffer_init(records)
    return f


cdef inline void session_append(Session* s, Frame* f) noexcept nogil:
    f.next = NULL
    if s.first == NULL:
        s.first = f
    else:
        s.last.next = f
    s.last = f
    s.frames_size += f.header_size + f.records_size
    if not f.is_delivery:
        s.replies += 1


cdef inline Frame* session_take_first(Session* s) noexcept nogil:
    """The first frame, the caller's from now on."""
    cdef Frame* f = s.first
    s.first = f.next
    f.next = NULL
    s.frames_size -= f.header_size + f.records_size
    if not f.is_delivery:
        s.replies -= 1
    if f.is_confirm:
        s.account.telling = False
    return f


cdef inline void session_drop_first(Session* s) noexcept nogil:
    """The first frame has been sent, or cannot be."""
    frame_free(session_take_first(s))


cdef inline void session_drop_frames(Session* s) noexcept nogil:
    """Forget everything that waits to be sent: the connection is gone."""
    while s.first != NULL:
        session_drop_first(s)
    s.runs_count = 0
    buffer_free(&s.runs)
    buffer_free(&s.records)


cdef inline void session_free(Session* s) noexcept nogil:
    session_drop_frames(s)
    account_free(&s.account)
    free(s)


cdef inline void session_header(Session* s, Buffer* b, uint32_t verb, uint32_t fields) noexcept nogil:
    """The beginning of each header: [verb, public half, incarnation, `fields` more]."""
    cdef uint8_t[8] public
    cdef int i
    for i in range(8):
        public[i] = <uint8_t> (s.sid >> (56 - 8 * i))
    mp_array(b, 3 + fields)
    mp_uint(b, verb)
    mp_bin(b, public, 8)
    mp_uint(b, s.incarnation)


# ---- deliveries

cdef inline void write_run(Buffer* b, const LinkRun* run, const uint8_t* exchange) noexcept nogil:
    """A run as clients see it: [consumer, shard, epoch, first_n, count, deliveries, exchange, timestamp_ms]."""
    mp_array(b, 8)
    mp_uint(b, run.consumer)
    mp_uint(b, run.shard)
    mp_uint(b, run.epoch)
    mp_uint(b, run.first_n)
    mp_uint(b, run.count)
    mp_uint(b, run.deliveries)
    mp_str(b, exchange, run.exchange_size)
    mp_uint(b, run.timestamp_ms)


cdef inline bint session_finish_delivery(Session* s) noexcept nogil:
    """Make a frame of the deliveries gathered; False when there is no memory."""
    cdef Buffer header
    cdef Frame* f
    if s.runs_count == 0:
        return True
    buffer_init(&header)
    buffer_reserve(&header, s.runs.size + 64)
    session_header(s, &header, DELIVER, 1)
    mp_array(&header, s.runs_count)
    buffer_add(&header, s.runs.data, s.runs.size)
    f = NULL if s.runs.failed else frame_make(&header, &s.records)
    if f == NULL:
        buffer_free(&header)
        return False
    f.is_delivery = True
    session_append(s, f)
    s.runs_count = 0
    s.runs.size = 0
    return True


cdef inline bint session_deliver(
    Session* s, const LinkRun* runs, uint32_t count, const uint8_t* names, const uint8_t* records, size_t records_size
) noexcept nogil:
    """Gather deliveries; False when there is no memory."""
    cdef uint32_t i
    if s.records.size + records_size > DELIVERY_SIZE_MAX and not session_finish_delivery(s):
        return False
    for i in range(count):
        write_run(&s.runs, &runs[i], names + runs[i].exchange_offset)
    s.runs_count += count
    buffer_add(&s.records, records, records_size)
    return not s.runs.failed and not s.records.failed


cdef inline bint session_deliver_borrowed(
    Session* s, const LinkRun* run, const uint8_t* names, const uint8_t* record, Borrowed* borrowed
) noexcept nogil:
    """Make a frame of one record in a worker's arena, behind what was gathered; False when there is no memory. It takes what was borrowed."""
    cdef Buffer header
    cdef Frame* f = NULL
    buffer_init(&header)
    if session_finish_delivery(s):
        session_header(s, &header, DELIVER, 1)
        mp_array(&header, 1)
        write_run(&header, run, names + run.exchange_offset)
        f = frame_make(&header, NULL)
    if f == NULL:
        buffer_free(&header)
        arena_give_back(borrowed)
        return False
    f.records = <uint8_t*> record
    f.records_size = run.size
    f.borrowed = borrowed
    f.is_delivery = True
    session_append(s, f)
    return True


# ---- outcomes

cdef inline int _compare_ranges(const void* a, const void* b) noexcept nogil:
    cdef uint64_t first = (<const LinkRange*> a).first
    cdef uint64_t other = (<const LinkRange*> b).first
    return -1 if first < other else first > other


cdef inline uint32_t ranges_above(Buffer* held, uint64_t up_to) noexcept nogil:
    """Sort the ranges, join those that touch, drop what is not above `up_to`; how many are left."""
    cdef LinkRange* ranges = <LinkRange*> held.data
    cdef size_t count = held.size // sizeof(LinkRange), kept = 0, i
    for i in range(count):
        if ranges[i].last > up_to:
            ranges[kept] = ranges[i]
            if ranges[kept].first <= up_to:
                ranges[kept].first = up_to + 1
            kept += 1
    count = kept
    if count > 1:
        qsort(ranges, count, sizeof(LinkRange), _compare_ranges)
        kept = 1
        for i in range(1, count):
            if ranges[i].first <= ranges[kept - 1].last + 1:
                if ranges[i].last > ranges[kept - 1].last:
                    ranges[kept - 1].last = ranges[i].last
            else:
                ranges[kept] = ranges[i]
                kept += 1
    held.size = kept * sizeof(LinkRange)
    return <uint32_t> kept


cdef inline bint session_confirm(Session* s, const CodeText* codes, uint64_t now_ns, bint at_once) noexcept nogil:
    """Make a CONFIRM of what is due; False when there is no memory. Many scattered ranges wait a little, unless `at_once`."""
    cdef Account* a = &s.account
    cdef uint32_t ranges = ranges_above(&a.held, a.up_to)
    cdef uint32_t refusals = <uint32_t> (a.refused.size // sizeof(LinkRefusal))
    cdef LinkRange* held = <LinkRange*> a.held.data
    cdef LinkRefusal* refused = <LinkRefusal*> a.refused.data
    cdef Buffer header
    cdef Frame* f
    cdef uint32_t i
    cdef const CodeText* text
    cdef bint postponed = False
    if ranges <= RANGES_AT_ONCE or at_once:
        s.ranges_since_ns = 0
    elif s.ranges_since_ns == 0 or now_ns < s.ranges_since_ns + RANGES_WAIT_NS:
        if s.ranges_since_ns == 0:
            s.ranges_since_ns = now_ns
        postponed = True
        ranges = 0
        if a.up_to == s.told_up_to and refusals == 0:
            return True
    else:
        s.ranges_since_ns = 0
    buffer_init(&header)
    session_header(s, &header, CONFIRM, 5)
    mp_uint(&header, a.up_to)
    mp_array(&header, ranges)
    for i in range(ranges):
        mp_array(&header, 2)
        mp_uint(&header, held[i].first)
        mp_uint(&header, held[i].last)
    mp_array(&header, refusals)
    for i in range(refusals):
        text = &codes[refused[i].code]
        mp_array(&header, 4)
        mp_uint(&header, refused[i].first)
        mp_uint(&header, refused[i].last)
        mp_str(&header, text.code, text.code_size)
        mp_str(&header, text.text, text.text_size)
    account_told(a, postponed, now_ns)
    mp_uint(&header, a.told)
    mp_uint(&header, a.told_bytes)
    s.told_up_to = a.up_to
    f = NULL if a.held.failed or a.refused.failed else frame_make(&header, NULL)
    if f == NULL:
        buffer_free(&header)
        return False
    f.is_confirm = True
    a.telling = True
    session_append(s, f)
    return True
