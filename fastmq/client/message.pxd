# What the application receives: a Message from a queue, an Event from a live subscription.
#
# Owns copies of a record's parts as Python objects; nothing of the connection's memory is kept alive by one. Rules: no allocation that may
# run the garbage collector (it could run code that wants the mutex); properties are decoded when they are asked for. Runs in client processes.
from libc.stdint cimport uint32_t, uint64_t

from fastmq.client.connection cimport Connection
from fastmq.client.deliveries cimport Run
from fastmq.wire.records cimport Record


cdef class Message:
    cdef readonly bytes body
    cdef readonly str routing_key
    cdef readonly str exchange
    cdef bytes raw                      # properties as msgpack; None: all are default
    cdef dict decoded                   # the same, once asked for
    cdef Connection origin              # where it is settled
    cdef uint64_t epoch
    cdef uint64_t n
    cdef uint64_t generation
    cdef uint64_t timestamp_ms
    cdef uint32_t deliveries
    cdef uint32_t shard
    cdef bint settled

    cdef int settle(self, int action) except -1
    cdef dict properties(self)


cdef class Event:
    cdef readonly bytes body
    cdef readonly str routing_key
    cdef readonly str exchange
    cdef bytes raw
    cdef dict decoded

    cdef dict properties(self)


cdef Message message_next(Run* run, Connection origin, str exchange, str last_key)
cdef str text_of(const void* data, size_t size)
cdef str key_of(Record* record, str last)
cdef bytes raw_of(Record* record)
