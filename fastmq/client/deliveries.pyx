"""Runs of deliveries, consumers and settlements of a connection: see deliveries.pxd."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset

from fastmq.wire.buffer cimport Buffer, buffer_add, buffer_clear, buffer_extend, buffer_free, buffer_init
from fastmq.wire.limits cimport SETTLE_RANGES_MAX, SHARDS_MAX
from fastmq.wire.msgpack cimport (
    Reader, mp_array, mp_bin, mp_read_array, mp_read_str, mp_read_u32, mp_read_uint, mp_str, mp_uint,
)
from fastmq.wire.records cimport RECORD_GOOD, Record, record_read
from fastmq.wire.verbs cimport RELEASE, SETTLE
from fastmq.wire.zmtp cimport zmtp_frame_head

cdef extern from *:
    """
    #include <stdint.h>
    static inline uint64_t fmq_users_add(uint64_t *p, uint64_t v) { return __atomic_add_fetch(p, v, __ATOMIC_ACQ_REL); }
    static inline uint64_t fmq_users_get(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    """
    uint64_t fmq_users_add(uint64_t* p, uint64_t v) noexcept nogil
    uint64_t fmq_users_get(const uint64_t* p) noexcept nogil


cdef enum:
    TAG_MAX = 0x3fffffffffffffff        # no broker counts that far; sums of tags cannot overflow
    SETTLE_ENTRIES_MAX = SETTLE_RANGES_MAX >> 1     # of one SETTLE; an entry has at most 26 bytes, so that HEADER_SIZE_MAX is kept too


cdef struct SettlePlace:                # how far the settlements are written
    uint32_t set
    uint32_t range                      # of that set
    uint32_t other


# ---- runs

cdef void home_leave(RunHome* home) noexcept nogil:
    if home != NULL and fmq_users_add(&home.users, <uint64_t> -1) == 0:
        free(home)


cdef Run* run_new(size_t size, RunHome** home) noexcept nogil:
    """A zeroed Run at the head of `size` bytes, which lie in the block `home` where they are few; that is replaced when it is full."""
    cdef RunHome* at = home[0]
    cdef Run* run
    size = (size + 15) & ~<size_t> 15
    if size > RUN_HOME_SHARE:
        run = <Run*> malloc(size)
        if run != NULL:
            memset(run, 0, sizeof(Run))
        return run
    if at != NULL and fmq_users_get(&at.users) == 1:        # all runs in it have gone
        at.used = sizeof(RunHome)
    if at == NULL or RUN_HOME_SIZE - at.used < size:
        home_leave(at)
        home[0] = at = <RunHome*> malloc(RUN_HOME_SIZE)
        if at == NULL:
            return NULL
        at.users = 1
        at.used = sizeof(RunHome)
    run = <Run*> (<uint8_t*> at + at.used)
    at.used += size
    fmq_users_add(&at.users, 1)
    memset(run, 0, sizeof(Run))
    run.home = at
    return run


cdef Run* run_read(Reader* head, Reader* records, bint copied, RunHome** home, bint* malformed) noexcept nogil:
    """The next run: [consumer, shard, epoch, first_n, count, deliveries, exchange, timestamp_ms] of `head` with its records.

    These are copied, or stay where they are and the caller sees to the block they lie in.
    NULL with `malformed` set when it is not that, NULL alone when there is no memory.
    """
    cdef const uint8_t* exchange
    cdef const uint8_t* start
    cdef uint32_t exchange_size = 0, consumer, shard, count, deliveries, _i
    cdef uint64_t epoch, first_n, timestamp_ms
    cdef Record record
    cdef Run* run
    malformed[0] = True
    if mp_read_array(head) != 8:
        return NULL
    consumer = mp_read_u32(head)
    shard = mp_read_u32(head)
    epoch = mp_read_uint(head)
    first_n = mp_read_uint(head)
    count = mp_read_u32(head)
    deliveries = mp_read_u32(head)
    exchange = mp_read_str(head, &exchange_size)
    timestamp_ms = mp_read_uint(head)
    if head.error or shard >= SHARDS_MAX or count == 0 or first_n == 0 or first_n > TAG_MAX or exchange_size > 255:
        return NULL
    start = records.at
    for _i in range(count):
        if record_read(records, &record) != RECORD_GOOD:
            return NULL
    malformed[0] = False
    run = run_new(sizeof(Run) + exchange_size + (records.at - start if copied else 0), home)
    if run == NULL:
        return NULL
    run.consumer = consumer
    run.shard = <uint16_t> shard
    run.epoch = epoch
    run.first_n = first_n
    run.count = count
    run.deliveries = deliveries
    run.timestamp_ms = timestamp_ms
    run.exchange_size = <uint8_t> exchange_size
    run.size = records.at - start
    memcpy(<uint8_t*> run + sizeof(Run), exchange, exchange_size)
    run.records = start
    if copied:
        run.records = <uint8_t*> run + sizeof(Run) + exchange_size
        memcpy(<uint8_t*> run + sizeof(Run) + exchange_size, start, run.size)
    return run


cdef void run_free(Run* run) noexcept nogil:
    if run == NULL:
        return
    free(run.block)
    if run.home != NULL:
        home_leave(run.home)
    else:
        free(run)


cdef const uint8_t* run_exchange(Run* run) noexcept nogil:
    return <uint8_t*> run + sizeof(Run)


# ---- consumers

cdef ConsumerState* consumer_new(uint32_t number, const char* queue, size_t queue_size, uint32_t window_messages,
                                 uint64_t window_bytes, bint auto_ack) noexcept nogil:
    cdef ConsumerState* c = <ConsumerState*> calloc(1, sizeof(ConsumerState))
    if c == NULL:
        return NULL
    c.number = number
    c.window_messages = window_messages
    c.window_bytes = window_bytes
    c.auto_ack = auto_ack
    c.held = True
    buffer_add(&c.queue, queue, queue_size)
    if c.queue.failed:
        free(c)
        return NULL
    return c


cdef void consumer_free(ConsumerState* c) noexcept nogil:
    consumer_drop(c)
    buffer_free(&c.queue)
    buffer_free(&c.ended)
    free(c)


cdef bint consumer_add(ConsumerState* c, Run* run) noexcept nogil:
    # Of what waits, only what is not acknowledged counts against the window that the broker keeps to.
    if run.count > c.window_messages:
        return False
    if not run.acked:
        if c.held_messages + run.count > c.window_messages:
            return False
        if c.held_messages and c.held_bytes + run.size > c.window_bytes + (1 << 20):
            return False
        c.held_messages += run.count
        c.held_bytes += run.size
    if c.last == NULL:
        c.first = run
    else:
        c.last.next = run
    c.last = run
    c.waiting_messages += run.count
    c.waiting_bytes += run.size
    return True


cdef void consumer_forget_void(ConsumerState* c, uint64_t epoch) noexcept nogil:
    cdef Run* run = c.first
    cdef Run* following
    if c.last == NULL or c.last.epoch == epoch:             # a consumer has one queue, a queue one worker
        return
    c.first = c.last = NULL
    c.waiting_messages = c.waiting_bytes = c.held_messages = c.held_bytes = 0
    while run != NULL:
        following = run.next
        run.next = NULL
        if run.acked:
            consumer_add(c, run)
        else:
            run_free(run)
        run = following


cdef Run* consumer_take(ConsumerState* c) noexcept nogil:
    cdef Run* run = c.first
    if run == NULL:
        return NULL
    c.first = run.next
    if c.first == NULL:
        c.last = NULL
    run.next = NULL
    c.waiting_messages -= run.count
    c.waiting_bytes -= run.size
    if not run.acked:
        c.held_messages -= run.count
        c.held_bytes -= run.size
    return run


cdef void consumer_drop(ConsumerState* c) noexcept nogil:
    cdef Run* run = consumer_take(c)
    while run != NULL:
        run_free(run)
        run = consumer_take(c)


cdef void consumer_end(ConsumerState* c, const uint8_t* code, uint32_t code_size, const uint8_t* text, uint32_t text_size) noexcept nogil:
    """No more deliveries will come; code NULL: because the application closed it."""
    c.phase = CONSUMER_ENDED
    c.request = 0
    c.retry_ns = 0
    if code != NULL and c.ended.size == 0:
        mp_array(&c.ended, 2)
        mp_str(&c.ended, code, code_size)
        mp_str(&c.ended, text, text_size)


# ---- settlements

cdef SettleSet* settles_set(Settles* s, uint32_t shard, uint64_t epoch) noexcept nogil:
    """The set of this shard and epoch, made where there is none; NULL: no memory. `of_shard` is a guess."""
    cdef uint32_t i = s.of_shard[shard % SHARDS_MAX], room
    cdef SettleSet* sets
    if i < s.count and s.sets[i].shard == shard and s.sets[i].epoch == epoch:
        return &s.sets[i]
    for i in range(s.count):
        if s.sets[i].shard == shard and s.sets[i].epoch == epoch:
            s.of_shard[shard % SHARDS_MAX] = <uint16_t> i
            return &s.sets[i]
    if s.count == s.room:
        room = s.room * 2 if s.room else 4
        sets = <SettleSet*> realloc(s.sets, room * sizeof(SettleSet))
        if sets == NULL:
            return NULL
        for i in range(s.room, room):
            buffer_init(&sets[i].ranges)
            buffer_init(&sets[i].exceptions)
        s.sets = sets
        s.room = room
    sets = &s.sets[s.count]
    s.of_shard[shard % SHARDS_MAX] = <uint16_t> s.count
    s.count += 1
    sets.shard = shard
    sets.epoch = epoch
    sets.messages = 0
    buffer_clear(&sets.ranges)
    buffer_clear(&sets.exceptions)
    return sets


cdef void settles_except(Settles* s, uint32_t shard, uint64_t epoch, uint64_t first, uint64_t last, int action) noexcept nogil:
    cdef SettleSet* at = settles_set(s, shard, epoch)
    cdef SettleOther* other = NULL
    if at != NULL:
        if at.exceptions.size:
            other = <SettleOther*> (at.exceptions.data + at.exceptions.size) - 1
            if other.last + 1 == first and other.action == <uint64_t> action:
                other.last = last
                settles_count(s, at, last - first + 1)
                return
        other = <SettleOther*> buffer_extend(&at.exceptions, sizeof(SettleOther))
    if other == NULL:
        s.failed = True
        return
    other.first = first
    other.last = last
    other.action = action
    s.ranges += 1
    settles_count(s, at, last - first + 1)


cdef void settles_release(Settles* s, Run* run) noexcept nogil:
    if run.taken < run.count and not run.acked:
        settles_except(s, run.shard, run.epoch, run.first_n + run.taken, run.first_n + run.count - 1, RELEASE)


cdef inline uint32_t settles_take(uint32_t* at, size_t count, uint32_t* room) noexcept nogil:
    """As many of the `count` things from `at` on as there is room for; `at` and `room` are behind them then."""
    cdef uint32_t taken = min(<uint32_t> count - at[0], room[0])
    at[0] += taken
    room[0] -= taken
    return taken


cdef uint32_t settles_fit(const Settles* s, SettlePlace* at) noexcept nogil:
    """Move `at` over what one SETTLE holds; in how many groups that is."""
    cdef uint32_t room = SETTLE_ENTRIES_MAX, groups = 0
    cdef const SettleSet* set
    while at.set < s.count and room > 1:
        set = &s.sets[at.set]
        room -= 1
        groups += 1
        settles_take(&at.range, set.ranges.size // sizeof(SettleRange), &room)
        settles_take(&at.other, set.exceptions.size // sizeof(SettleOther), &room)
        if at.range < set.ranges.size // sizeof(SettleRange) or at.other < set.exceptions.size // sizeof(SettleOther):
            break
        at.set += 1
        at.range = 0
        at.other = 0
    return groups


cdef void settles_group(const SettleSet* set, Buffer* header, const SettlePlace* start, const SettlePlace* end) noexcept nogil:
    """[shard, epoch, up_to, [[first, last]...], [[first, last, action]...]], from one place of the set to the other."""
    cdef const SettleRange* range_ = <const SettleRange*> set.ranges.data
    cdef const SettleOther* other = <const SettleOther*> set.exceptions.data
    cdef uint32_t i
    mp_array(header, 5)
    mp_uint(header, set.shard)
    mp_uint(header, set.epoch)
    mp_uint(header, 0)
    mp_array(header, end.range - start.range)
    for i in range(start.range, end.range):
        mp_array(header, 2)
        mp_uint(header, range_[i].first)
        mp_uint(header, range_[i].last)
    mp_array(header, end.other - start.other)
    for i in range(start.other, end.other):
        mp_array(header, 3)
        mp_uint(header, other[i].first)
        mp_uint(header, other[i].last)
        mp_uint(header, other[i].action)


cdef void settles_write(Settles* s, Buffer* header, Buffer* out, const uint8_t* session, uint64_t incarnation) noexcept nogil:
    """One SETTLE, [verb, session, incarnation, [group...]], or as many as the broker's limits make of it."""
    cdef SettlePlace start, end, stop
    cdef const SettleSet* set
    cdef uint32_t groups, _
    memset(&start, 0, sizeof(SettlePlace))
    end = start
    while True:
        groups = settles_fit(s, &end)
        buffer_clear(header)
        mp_array(header, 4)
        mp_uint(header, SETTLE)
        mp_bin(header, session, 16)
        mp_uint(header, incarnation)
        mp_array(header, groups)
        for _ in range(groups):
            set = &s.sets[start.set]
            stop = end
            if start.set != end.set:
                stop.range = <uint32_t> (set.ranges.size // sizeof(SettleRange))
                stop.other = <uint32_t> (set.exceptions.size // sizeof(SettleOther))
            settles_group(set, header, &start, &stop)
            start.set += 1
            start.range = 0
            start.other = 0
        start = end
        zmtp_frame_head(out, header.size, False)
        buffer_add(out, header.data, header.size)
        if end.set == s.count:
            break
    settles_clear(s)


cdef void settles_clear(Settles* s) noexcept nogil:
    s.count = 0
    s.ranges = 0
    s.most = 0


cdef void settles_free(Settles* s) noexcept nogil:
    cdef uint32_t i
    for i in range(s.room):
        buffer_free(&s.sets[i].ranges)
        buffer_free(&s.sets[i].exceptions)
    free(s.sets)
    memset(s, 0, sizeof(Settles))
