# The messages between a front-end and a worker. They never leave the machine: native byte order, every part padded to 8 bytes.
#
# A message is a LinkHead and `size` bytes of payload, which begins with the struct named beside its kind. Sessions are named by their public
# half, queues by the number of the topology record that declared them, consumers by the number that the client chose.
# To change a message: change the struct here; both ends are always of one build.
from libc.stdint cimport uint16_t, uint32_t, uint64_t


cdef enum:
    RECORD_SHARED_MIN = 17408   # bytes of a record that lies in the worker's arena instead of being copied through rings: a body over 16 KiB


cdef struct LinkHead:
    uint32_t size           # bytes of payload, without padding
    uint16_t kind           # LinkKind
    uint16_t shard          # whom it concerns, where it concerns one shard


cpdef enum LinkKind:
    # front-end to worker
    L_PUBLISH = 1           # LinkPublish, exchange, LinkPublishEntry[], records
    L_SETTLE = 2            # LinkSettle, LinkRange[], LinkSettleException[]
    L_CONSUME = 3           # LinkConsume                                     -> L_REPLY
    L_CANCEL = 4            # LinkCancel                                      -> L_REPLY
    L_GET = 5               # LinkQueueRequest                                -> L_REPLY with LinkDeliver behind it (0 or 1 run)
    L_SESSION_END = 6       # LinkSessionEnd, to every shard of the worker: no answer
    L_ATTACH_SHARD = 7      # LinkAttach, LinkQueue[]: the live queues; every other queue that the shard holds is dropped. No answer
    L_QUEUE_DECLARE = 8     # LinkQueueRequest with LinkQueue                 -> L_REPLY (LinkCounts) where token is not 0
    L_QUEUE_DELETE = 9      # LinkQueueRequest                                -> L_REPLY (LinkCounts)
    L_QUEUE_PURGE = 10      # LinkQueueRequest                                -> L_REPLY (LinkCounts)
    L_QUEUE_COUNTS = 11     # LinkQueueRequest                                -> L_REPLY (LinkCounts)
    L_SHARD_COUNTS = 12     # LinkQueueRequest, to the worker: all its queues -> L_REPLY (LinkCounts[])
    L_TOPOLOGY = 13         # LinkToken, msgpack request for T                -> L_REPLY (msgpack), after the records it made
    L_HANDBACK = 14         # msgpack: what this front-end knows of the topology, answer to a first L_SNAPSHOT
    L_REGION_DONE = 15      # LinkRegion: nothing more will be written into it     -> L_REGION, as far as the arena has room
    L_LOANS_BACK = 16       # uint64_t[]: loans that were given back
    # worker to front-end
    L_OUTCOME = 32          # LinkOutcome, LinkRange[] held, LinkRefusal[]
    L_DELIVER = 33          # LinkDeliver, LinkRun[], exchange names, records
    L_REPLY = 34            # LinkReply, payload
    L_CANCELLED = 35        # LinkCancelled: the queue has gone
    L_UNUSED = 36           # LinkQueueRequest: an auto-delete queue lost its last consumer
    L_RECORD = 37           # msgpack: one topology record
    L_SNAPSHOT = 38         # msgpack: the topology as T holds it
    L_REGION = 39           # LinkRegion: a part of the arena that this front-end may write into


cdef struct LinkPublish:
    uint64_t sid
    uint64_t floor          # the client's lowest sequence without an outcome
    uint32_t entries
    uint32_t exchange_size  # bytes of the exchange's name, which follows, padded to 8
    uint32_t records_size
    uint32_t is_shared      # 1: the only record lies in the arena, at `shared_at`, and not in this message
    uint64_t shared_at


# `count` consecutive records, `size` bytes of them, `offset` bytes behind the first record of the message. Entries are sorted by
# (first_seq, shard); those that agree in first_seq, count and shard are one decision of that shard: all of its queues or none.
cdef struct LinkPublishEntry:
    uint64_t first_seq
    uint64_t queue
    uint32_t count
    uint32_t offset
    uint32_t size
    uint16_t shard
    uint16_t padding


cdef struct LinkRange:
    uint64_t first
    uint64_t last           # included


cdef struct LinkSettle:     # the shard stands in the LinkHead
    uint64_t sid
    uint64_t epoch
    uint64_t up_to          # acknowledged up to here, as far as outstanding in this session; 0: nothing
    uint32_t ranges         # acknowledged
    uint32_t exceptions


cdef struct LinkSettleException:
    uint64_t first
    uint64_t last
    uint32_t action         # SettleAction
    uint32_t padding


cdef struct LinkConsume:
    uint64_t token          # 0: no answer is wanted (the front-end attaches the consumer again)
    uint64_t sid
    uint64_t queue
    uint64_t window_bytes
    uint32_t hello          # incarnation of the session's last HELLO: comes back in LinkDeliver
    uint32_t consumer
    uint32_t window_messages
    uint32_t exclusive


cdef struct LinkCancel:
    uint64_t token
    uint64_t sid
    uint32_t consumer
    uint32_t padding


cdef struct LinkQueue:
    uint64_t queue
    uint32_t flags          # QueueFlag
    uint16_t shard
    uint16_t padding


cpdef enum QueueFlag:
    QUEUE_DURABLE = 1
    QUEUE_EXCLUSIVE = 2
    QUEUE_AUTO_DELETE = 4


cdef struct LinkQueueRequest:
    uint64_t token
    uint64_t sid
    uint64_t queue
    uint32_t hello
    uint32_t flags          # QueueFlag, of a declare


cdef struct LinkSessionEnd:
    uint64_t sid
    uint32_t forget         # 1: BYE, forget what the publisher has decided too
    uint32_t padding


cdef struct LinkAttach:     # the shard stands in the LinkHead
    uint32_t queues
    uint32_t padding


cdef struct LinkToken:
    uint64_t token


cdef struct LinkOutcome:
    uint64_t sid
    uint32_t ranges
    uint32_t refusals


cdef struct LinkRefusal:
    uint64_t first
    uint64_t last
    uint32_t code           # Code
    uint32_t padding


cdef struct LinkDeliver:
    uint64_t sid
    uint32_t hello
    uint32_t runs
    uint32_t names_size     # bytes of exchange names behind the runs, padded to 8
    uint32_t records_size
    uint64_t loan           # not 0: the only record lies in the arena, at `shared_at`, and is lent until L_LOANS_BACK names this number
    uint64_t shared_at


# Messages with consecutive tags that agree in everything a client is told beside the record itself.
cdef struct LinkRun:
    uint64_t epoch
    uint64_t first_n
    uint64_t timestamp_ms   # since 1970, when the shard took them
    uint32_t consumer       # 0: the answer to a GET
    uint32_t count
    uint32_t deliveries     # this one included; above 1: redelivered
    uint32_t size           # bytes of its records
    uint32_t exchange_offset  # within the names
    uint16_t exchange_size
    uint16_t shard


cdef struct LinkRegion:
    uint64_t offset         # in the arena
    uint64_t size
    uint32_t is_warm        # lent: it takes memory already. Done: there is more to be written, so the next one had better be warm too
    uint32_t padding


cdef struct LinkReply:
    uint64_t token
    uint32_t code           # Code
    uint32_t size           # bytes of payload behind this


cdef struct LinkCounts:
    uint64_t queue
    uint64_t ready
    uint64_t unacknowledged
    uint32_t consumers
    uint32_t affected       # messages purged, or deleted with the queue


cdef struct LinkCancelled:
    uint64_t sid
    uint32_t consumer
    uint32_t code           # Code
