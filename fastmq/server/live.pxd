# Live subscriptions as the main thread of a front-end sees them: which patterns are active, and the events for them.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from fastmq.net.ring cimport Link
from fastmq.wire.buffer cimport Buffer


cpdef enum EventKind:           # messages between the main thread and the XPUB thread
    # to the XPUB thread
    E_EVENT = 1                 # EventHead, subscription, header, records: an event's three frames
    # from it
    E_ACTIVE = 2                # subscription: it has one subscriber more; answered with an event of zero records
    E_UNUSED = 3                # subscription: it has no subscriber any more


cdef struct EventHead:
    uint32_t subscription_size
    uint32_t header_size
    uint64_t records_size


cdef struct Pattern:
    uint8_t* subscription       # malloc'ed; NULL: this place is free
    uint32_t subscription_size
    uint32_t touched            # it has spans: records of the batch in hand match
    uint64_t n                  # number of the next event record, from 1
    Buffer spans                # Span[]
    Buffer joined               # small events of this turn, which leave as one
    uint32_t joined_count       # their records


cdef struct Span:               # consecutive records of the batch in hand
    uint32_t index              # of the first, in the batch
    uint32_t count
    uint32_t offset             # of the first, in the records frame
    uint32_t size


cdef class LivePatterns:
    cdef Pattern* table
    cdef readonly uint32_t room
    cdef readonly uint64_t epoch
    cdef readonly int patterns_max
    cdef Link link                          # to the XPUB thread; None: there is none
    cdef Buffer touched                     # uint32_t[]: patterns with spans
    cdef Buffer scratch                     # header of the event being made
    cdef Buffer joining                     # uint32_t[]: patterns with joined events
    cdef uint64_t waiting_max               # bytes that may wait for the XPUB thread
    cdef dict _numbers                      # subscription -> index
    cdef dict _retired                      # subscription that nobody has now -> number of its next event, as far as kept
    cdef list _free
    cdef dict _exact                        # (vhost, exchange, key) -> index
    cdef dict _topic                        # (vhost, exchange) -> TopicTrie
    cdef readonly uint64_t events_sent      # records, for each pattern that they match
    cdef readonly uint64_t events_dropped

    cdef uint32_t _place(self) except? 0xffffffff
    cdef bint add_span(self, uint32_t pattern, const Span* span) noexcept nogil
    cdef void publish(self, const uint8_t* records, const uint32_t* sizes) noexcept nogil
    cdef void end_turn(self) noexcept nogil
    cdef void add_event(self, uint32_t number, const Span* spans, uint32_t count, uint64_t size, const uint8_t* records) noexcept nogil
    cdef void send_joined(self, Pattern* pattern) noexcept nogil
    cdef void send_event(
        self, Pattern* pattern, const Span* spans, uint32_t count, uint64_t size, const uint8_t* records
    ) noexcept nogil
