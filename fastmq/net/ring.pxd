# One end of the link between a front-end and a worker: two byte rings in shared memory, one for each direction, and two doorbells.
#
# The memory, made by the supervisor (memfd) or by Link.pair (private, for tests):
#
#     0         192           384                384 + size               384 + 2 size
#     +---------+-------------+------------------+------------------------+
#     | RingCtl | RingCtl     | ring to worker   | ring to front-end      |
#     +---------+-------------+------------------+------------------------+
#
# A ring holds messages, LinkHead + payload, padded to 8 bytes, never across its end: what is left there is passed over (PAD). A message larger
# than a quarter of a ring travels in pieces (PIECE) and is put together by the receiver. `head` and `tail` count bytes for ever.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from fastmq.wire.buffer cimport Buffer
from fastmq.wire.link cimport LinkHead


cdef struct RingCtl:
    uint64_t head               # bytes written; the producer's
    uint32_t producer_waits     # set by the producer when bytes wait and it goes to sleep; cleared by who rings for it
    uint32_t pad0
    uint64_t[6] pad1
    uint64_t tail               # bytes read; the consumer's
    uint32_t consumer_sleeps    # set by the consumer when it goes to sleep; cleared by who rings for it
    uint32_t pad2
    uint64_t[6] pad3
    uint64_t[8] pad4


cdef class LinkMemory:
    """The mapping that holds both rings; given back when the last Link on it goes."""
    cdef uint8_t* base
    cdef size_t size
    cdef bint mapped


cdef class Link:
    cdef LinkMemory memory
    cdef readonly size_t ring_size
    cdef readonly size_t piece_max      # bytes of payload that travel in one piece
    cdef readonly int own_bell          # eventfd that wakes this end; -1: none
    cdef int other_bell
    # sending
    cdef RingCtl* out
    cdef uint8_t* out_data
    cdef uint64_t out_head              # out.head as it will be after commit
    cdef uint64_t out_tail_seen         # out.tail when it was last read
    cdef uint64_t begun                 # bytes of the ring that the message begun takes, its passed-over end included; 0: it waits in `pending`
    cdef size_t pending_begun           # where the message begun starts in `pending`
    cdef Buffer pending                 # messages that did not fit, from pending_at
    cdef size_t pending_at
    cdef size_t pieces_sent             # bytes of the first pending message that have left in pieces
    # receiving
    cdef RingCtl* incoming
    cdef uint8_t* in_data
    cdef uint64_t in_tail               # what incoming.tail will be after release
    cdef uint64_t in_head_seen
    cdef uint64_t in_held               # bytes of the ring that the message in hand takes
    cdef Buffer assembled               # a message that comes in pieces
    cdef LinkHead assembled_head
    cdef bint assembled_in_hand
    cdef bint out_of_memory             # a large message could not be put together: the link is of no more use

    cdef uint8_t* begin(self, uint16_t kind, uint16_t shard, size_t size) noexcept nogil
    cdef void commit(self) noexcept nogil
    cdef void cancel(self) noexcept nogil
    cdef int add(self, uint16_t kind, uint16_t shard, const void* data, size_t size) noexcept nogil
    cdef bint receive(self, LinkHead* head, const uint8_t** payload) noexcept nogil
    cdef void release(self) noexcept nogil
    cdef bint flush(self) noexcept nogil
    cdef size_t waiting(self) noexcept nogil
    cdef void ring_bell(self) noexcept nogil
    cdef bint prepare_sleep(self) noexcept nogil
    cdef void awake(self) noexcept nogil
    cdef void stay_awake(self) noexcept nogil
    # private
    cdef uint8_t* room(self, size_t need, uint64_t* taken) noexcept nogil
    cdef bint flush_large(self, LinkHead* head, const uint8_t* payload) noexcept nogil
    cdef void forget_sent(self) noexcept nogil
