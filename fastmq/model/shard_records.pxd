# The records of a shard: every change of its state, compact. `Shard.apply` of all of them, on an empty shard, gives the
# same state.
#
# Rules: a record says what was decided, never what was asked, and holds no time but a message's; what follows from it
# by the state alone (which messages a delivery took, what a settlement reopens) is not repeated: the same functions do
# it again. Native byte order; the log frames and checks them. Runs in the worker, without the GIL.
#
#       | RecordHead: size, kind, durable | struct of the kind | what the kind lists behind it, each part padded to 8 |
#
# At LEVEL_DURABLE only what is to survive the worker is written: durable queues that are not exclusive, persistent
# messages in them, what publishers have decided and taken. Tags, sessions and consumers mean nothing after a death, so
# these records name a message by its queue and its sequence there (KEEP and what follows; model/keeping.pxd).
#
# To change a record: change its struct here, its writer in the function that makes the change, its case in
# replay.pxd, and the oracle tests (tests/unit/test_shard_oracle.py, test_shard_durable.py), which fail when any of them
# is forgotten; a record of LEVEL_DURABLE also as docs/durability.md says, because old ones lie on disks.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from fastmq.wire.buffer cimport Buffer, buffer_extend


cdef struct RecordHead:
    uint32_t size           # bytes behind this head, a multiple of 8
    uint16_t kind           # RecordKind
    uint16_t durable        # 1: concerns a durable queue, or a publisher


cdef enum:                  # how much is written
    LEVEL_NONE = 0
    LEVEL_ALL = 1           # the whole state, tags and consumers too
    LEVEL_DURABLE = 2


cpdef enum RecordKind:
    C_QUEUE = 1             # ChangeQueue: declared, or its flags changed
    C_QUEUE_DELETE = 2      # ChangeQueue
    C_PURGE = 3             # ChangeQueue
    C_UNUSED = 4            # ChangeQueue: that it lost its last consumer has been told
    C_TAKE = 5              # ChangeTake, queues u64[], exchange, records: a publish was taken
    C_DECIDE = 6            # ChangeDecide: refused, or seen before: the publisher's numbers moved
    C_FORGET = 7            # ChangeSession: a publisher is forgotten
    C_SESSION = 8           # ChangeSession: a session is known
    C_SESSION_END = 9       # ChangeSession: its consumers go, what is outstanding in it goes back
    C_CONSUME = 10          # ChangeConsume
    C_CANCEL = 11           # ChangeConsume: sid and consumer
    C_DELIVER = 12          # ChangeDeliver: the next `count` messages of a queue got the next tags
    C_SETTLE = 13           # ChangeSettle: what is outstanding of these tags in this session is settled
    # at LEVEL_DURABLE instead of C_TAKE, C_PURGE, C_DELIVER and C_SETTLE
    C_KEEP = 14             # ChangeTake, KeptQueue[], exchange, records: a publish of persistent messages was taken
    C_TAKEN = 15            # ChangeTaken: one without any that is kept
    C_DONE = 16             # ChangeDone: these messages of a queue are no more
    C_MARK = 17             # ChangeCount: a queue's messages up to this sequence, and no others, may have been delivered once
    C_COUNT = 18            # ChangeCount: one message has been delivered so often
    # in a snapshot only, with C_QUEUE and C_COUNT (model/snapshot.pxd)
    C_PLACE = 19            # ChangePlace: where a queue's sequences are
    C_PUBLISHER = 20        # ChangePublisher, LinkRange[]: a publisher's numbers, all of them
    C_PIECE = 21            # ChangePiece: these messages of a queue lie in this extent
    C_EXTENTS = 22          # u64: the highest number that an extent has had


cdef struct ChangeQueue:
    uint64_t queue
    uint32_t flags
    uint32_t padding


cdef struct ChangeTake:
    uint64_t sid
    uint64_t floor
    uint64_t first_seq
    uint64_t timestamp_ms
    uint32_t count
    uint32_t queues
    uint32_t exchange_size
    uint32_t records_size


cdef struct KeptQueue:
    uint64_t queue
    uint64_t seq            # of the first of these messages there
    uint32_t marked         # 1: they may have been delivered, as C_MARK would say
    uint32_t padding


cdef struct ChangeTaken:
    uint64_t sid
    uint64_t floor
    uint64_t first
    uint64_t last


cdef struct ChangeDone:
    uint64_t queue
    uint64_t first
    uint64_t last


cdef struct ChangeCount:
    uint64_t queue
    uint64_t seq
    uint32_t deliveries     # C_COUNT
    uint32_t padding


cdef struct ChangePlace:
    uint64_t queue
    uint64_t next_seq
    uint64_t mark


cdef struct ChangePublisher:
    uint64_t sid
    uint64_t floor
    uint64_t highest
    uint64_t count          # ranges


cdef struct ChangePiece:
    uint64_t queue
    uint64_t extent
    uint64_t first
    uint64_t last


cdef struct ChangeDecide:
    uint64_t sid
    uint64_t floor
    uint64_t highest


cdef struct ChangeSession:
    uint64_t sid
    uint32_t frontend
    uint32_t hello          # C_SESSION; C_SESSION_END: 1 for BYE, 0 where it vanished


cdef struct ChangeConsume:
    uint64_t sid
    uint64_t queue
    uint64_t window_bytes
    uint32_t consumer
    uint32_t window_messages
    uint32_t exclusive
    uint32_t padding


cdef struct ChangeDeliver:
    uint64_t sid
    uint64_t queue
    uint64_t first_tag
    uint32_t consumer       # 0: a GET
    uint32_t count
    uint32_t turn_kept      # 1: the queue ran out before the consumer had its share: it is next in turn again
    uint32_t padding


cdef struct ChangeSettle:
    uint64_t sid
    uint64_t first
    uint64_t last
    uint32_t action         # SettleAction; 0: acknowledged
    uint32_t padding


cdef inline uint8_t* record_begin(Buffer* records, uint16_t kind, bint durable, size_t size) noexcept nogil:
    """Where `size` bytes behind the head are to be written, padding already zero; NULL (and `failed` set) when there is
    no memory."""
    cdef size_t padded = (size + 7) & ~<size_t> 7
    cdef RecordHead* head = <RecordHead*> buffer_extend(records, sizeof(RecordHead) + padded)
    if head == NULL:
        return NULL
    head.size = <uint32_t> padded
    head.kind = kind
    head.durable = durable
    if padded != size:
        memset(<uint8_t*> (head + 1) + size, 0, padded - size)
    return <uint8_t*> (head + 1)


cdef inline void record_add(Buffer* records, uint16_t kind, bint durable, const void* change,
                            size_t size) noexcept nogil:
    cdef uint8_t* at = record_begin(records, kind, durable, size)
    if at != NULL:
        memcpy(at, change, size)
