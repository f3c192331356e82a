# The events connection of a client: live subscriptions over ZMTP in the role SUB, without I/O.
#
# Owns the topics subscribed to, the subscriptions of each, and their events until the application takes them. Rules: no I/O, no clock, no
# GIL; an event of a topic goes to each of its subscriptions; gaps in (epoch, n) are counted; above EVENTS_SIZE_MAX nothing is read until
# half of it is taken; what the broker must not send ends in `broken`. Runs in client processes, under its connection's mutex.
#
#   topic = vhost NUL exchange NUL kind NUL pattern NUL        event = [topic, [epoch, n, count], count records numbered n, n + 1, ...]
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmq.client.peer cimport Peer
from fastmq.wire.buffer cimport Buffer
from fastmq.wire.idmap cimport IdMap


cdef enum:
    EVENTS_SIZE_MAX = 16777216              # bytes of events of all subscriptions that wait for the application
    PING_NS = 5000000000                    # between our PINGs: one whose application does not read is alive all the same


# Events of one subscription as one message brought them; the records follow in the same block.
cdef struct EventRun:
    EventRun* next
    size_t size
    size_t at
    uint32_t count
    uint32_t taken


cdef struct Subscriber:
    Subscriber* next                        # of the same topic
    Topic* topic
    EventRun* first
    EventRun* last
    uint64_t number
    uint64_t lost                           # events that did not come; each break whose length is not known counts as one
    bint active                             # the broker's first event for it has come
    bint ended


cdef struct Topic:
    Topic* same_hash
    Subscriber* subscribers
    uint64_t hash
    uint64_t epoch
    uint64_t next_n                         # the number of the next event of that epoch
    uint64_t accepted                       # the session (ClientCore.welcomes) in which SUBSCRIBE was accepted; 0: in none
    bint known                              # epoch and next_n are
    bint active                             # on this connection
    Buffer name


cdef class EventsCore(Peer):
    cdef IdMap topics                       # hash -> Topic*
    cdef IdMap subscribers                  # number -> Subscriber*
    cdef uint64_t next_number
    cdef uint64_t waiting_bytes
    cdef bint full                          # EVENTS_SIZE_MAX was reached, and half of it not yet taken
    cdef uint64_t ping_ns                   # of the next PING

    cdef Subscriber* subscriber(self, uint64_t number) noexcept nogil
    cdef Topic* topic(self, const uint8_t* name, size_t size) noexcept nogil
    cdef Subscriber* add(self, const uint8_t* name, size_t size, uint64_t accepted) noexcept nogil      # NULL: no memory
    cdef bint remove(self, Subscriber* s) noexcept nogil            # True: it was its topic's last
    cdef EventRun* take(self, Subscriber* s) noexcept nogil         # the oldest events, the caller's from now on (free); NULL: none
    cdef bint on_event(self) noexcept nogil
    cdef bint keep(self, Topic* topic, const uint8_t* records, size_t size, uint32_t count) noexcept nogil
    cdef void count_gap(self, Topic* topic, uint64_t epoch, uint64_t n, uint32_t count) noexcept nogil
    cdef void write_topics(self, Buffer* out) noexcept nogil
    cdef void accept(self, const uint8_t* name, size_t size, uint64_t accepted) noexcept nogil
