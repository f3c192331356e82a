# Deliveries that wait in the client for the application, and settlements that wait for the broker.
#
# Owns copies of the delivered records, run by run, in the order they came, for each consumer; and ranges of settled tags for each (shard,
# epoch). Rules: no I/O, no clock, no GIL; a run is checked record by record before it is kept; a run that a consumer has taken out is its
# alone; small runs share blocks, so that a DELIVER of many takes few pieces of memory, and a run that waits keeps at most RUN_HOME_SIZE of
# them. Runs in client processes, under the mutex of the connection, except run_free.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from fastmq.wire.buffer cimport Buffer, buffer_extend
from fastmq.wire.limits cimport SHARDS_MAX
from fastmq.wire.msgpack cimport Reader


cdef enum:
    RUN_TAKEN_MIN = 32768               # bytes of records whose block is taken as it came, where they are most of it
    RUN_HOME_SIZE = 16384               # bytes of a block that small runs share,
    RUN_HOME_SHARE = 2048               # and of the largest run in one
    SETTLE_RANGES_DUE = 4096            # ranges and exceptions above which a SETTLE goes at once


cdef struct RunHome:                    # a block of memory for small runs, which follow this head
    uint64_t users                      # runs in it, and 1 while more are put into it; counted atomically: the last one frees it
    uint64_t used                       # bytes, this head included


# Consecutive deliveries of one consumer, as one DELIVER named them; the exchange's name follows in the
# same block, and the records, unless they lie in the block in which they came.
cdef struct Run:
    Run* next
    uint64_t epoch
    uint64_t first_n                    # tag of the first record
    uint64_t timestamp_ms               # since 1970
    uint64_t generation                 # of the connection that brought it: another one makes it stale
    const uint8_t* records
    uint8_t* block                      # that they lie in, the run's own; NULL: they lie behind it
    size_t block_room
    RunHome* home                       # that the run itself lies in; NULL: in memory of its own
    size_t size                         # bytes of the records
    size_t at                           # bytes of those handed out
    uint32_t count
    uint32_t taken                      # records handed out
    uint32_t deliveries                 # this one included
    uint32_t consumer                   # 0: the answer to a GET
    uint16_t shard
    uint8_t exchange_size
    bint acked                          # by an auto-ack consumer, on arrival


cpdef enum ConsumerPhase:
    CONSUMER_STARTING = 0               # CONSUME is to be sent, or was and has no answer
    CONSUMER_ACTIVE = 1
    CONSUMER_CLOSING = 2                # CANCEL was sent: what arrives is released unseen
    CONSUMER_ENDED = 3                  # there are no more deliveries: closed, or refused or cancelled with `code`


cdef struct ConsumerState:
    Run* first                          # waiting runs, oldest first
    Run* last
    uint64_t waiting_messages
    uint64_t waiting_bytes
    uint64_t held_messages              # of those that wait: not acknowledged
    uint64_t held_bytes
    uint64_t window_bytes
    uint64_t request                    # of the CONSUME or CANCEL under way; 0: none
    uint64_t retry_ns                   # when CONSUME is to be repeated; 0: not waiting for that
    uint32_t number
    uint32_t window_messages            # the prefetch
    int phase                           # ConsumerPhase
    bint auto_ack
    bint held                           # a Consumer object points here
    Buffer queue
    Buffer ended                        # msgpack [code, text], empty: ended by closing


cdef struct SettleSet:
    uint64_t epoch
    uint64_t messages                   # in its ranges and exceptions
    uint32_t shard
    Buffer ranges                       # SettleRange[]: acknowledged
    Buffer exceptions                   # SettleOther[]


cdef struct SettleRange:
    uint64_t first
    uint64_t last


cdef struct SettleOther:
    uint64_t first
    uint64_t last
    uint64_t action                     # SettleAction


cdef struct Settles:
    SettleSet* sets
    uint32_t count
    uint32_t room
    uint32_t ranges                     # ranges and exceptions of all sets
    uint64_t most                       # messages in the set with most of them: no queue has more of its consumer's here
    bint failed                         # no memory: some were lost
    uint16_t[SHARDS_MAX] of_shard       # index of the set that the shard's settlements went to last; it may be another's since


cdef Run* run_read(Reader* head, Reader* records, bint copied, RunHome** home, bint* malformed) noexcept nogil
cdef void home_leave(RunHome* home) noexcept nogil                  # NULL: nothing
cdef void run_free(Run* run) noexcept nogil                         # NULL: nothing
cdef const uint8_t* run_exchange(Run* run) noexcept nogil

cdef ConsumerState* consumer_new(uint32_t number, const char* queue, size_t queue_size, uint32_t window_messages,
                                 uint64_t window_bytes, bint auto_ack) noexcept nogil
cdef void consumer_free(ConsumerState* c) noexcept nogil
cdef bint consumer_add(ConsumerState* c, Run* run) noexcept nogil   # False: more than its window
cdef void consumer_forget_void(ConsumerState* c, uint64_t epoch) noexcept nogil     # an earlier worker's that it cannot settle any more
cdef Run* consumer_take(ConsumerState* c) noexcept nogil            # the oldest run, the caller's from now on (free); NULL: none
cdef void consumer_drop(ConsumerState* c) noexcept nogil            # forget what waits
cdef void consumer_end(ConsumerState* c, const uint8_t* code, uint32_t code_size, const uint8_t* text, uint32_t text_size) noexcept nogil

cdef SettleSet* settles_set(Settles* s, uint32_t shard, uint64_t epoch) noexcept nogil
cdef void settles_except(Settles* s, uint32_t shard, uint64_t epoch, uint64_t first, uint64_t last, int action) noexcept nogil
cdef void settles_release(Settles* s, Run* run) noexcept nogil      # what of the run was not handed out goes back unchanged
cdef void settles_write(Settles* s, Buffer* header, Buffer* out, const uint8_t* session, uint64_t incarnation) noexcept nogil
cdef void settles_clear(Settles* s) noexcept nogil
cdef void settles_free(Settles* s) noexcept nogil


cdef inline void settles_count(Settles* s, SettleSet* at, uint64_t messages) noexcept nogil:
    at.messages += messages
    if at.messages > s.most:
        s.most = at.messages


cdef inline void settles_ack(Settles* s, uint32_t shard, uint64_t epoch, uint64_t first, uint64_t last) noexcept nogil:
    """Acknowledge tags first..last: they prolong the last range of their shard and epoch, or begin one."""
    cdef SettleSet* at
    cdef SettleRange* range
    at = settles_set(s, shard, epoch)
    if at == NULL:
        s.failed = True
        return
    settles_count(s, at, last - first + 1)
    if at.ranges.size:
        range = <SettleRange*> (at.ranges.data + at.ranges.size) - 1
        if range.last + 1 == first:
            range.last = last
            return
    range = <SettleRange*> buffer_extend(&at.ranges, sizeof(SettleRange))
    if range == NULL:
        s.failed = True
        return
    range.first = first
    range.last = last
    s.ranges += 1
