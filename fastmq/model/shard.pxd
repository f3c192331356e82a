# One shard: the unit of ownership, order and state. A state machine without I/O, clock, disk or randomness.
#
# Owns: its ShardState. Rules: everything that happens to it comes through a method below, with the time; everything it
# wants done lies in `state.effects` (walk it with effects.effects_next, then effects_clear), the records of every
# change in `state.records` (then buffer_clear); after `state.failed` (no memory) the effects must not be sent and the
# worker must end. One thread at a time, no GIL needed. Worker.
#
#   store       message bytes, exchange names             publish    decide a run of records, put it into queues
#   members     queue, consumer, session, outstanding     deliver    whose turn, runs and deliveries, GET
#   outstanding by delivery tag                           settle     ack, nack, reject, release
#   publishers  decided and taken sequences               attend     sessions, consumers and queues come and go
#   effects     what is to be sent                        compact    copy out of sparse chunks
#   shard_records  every change                           state      all of it together, and what they share
#   replay      records applied again                     keeping    those of the log, and what waits for it
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from fastmq.model.effects cimport Effects
from fastmq.model.state cimport ShardState
from fastmq.wire.buffer cimport Buffer


cpdef enum HandleResult:
    HANDLE_OK = 0
    HANDLE_MALFORMED = -1       # the payload is not what its kind says: nothing was changed
    HANDLE_UNKNOWN = -2         # this kind is not for a shard: nothing was changed
    HANDLE_NO_MEMORY = -3       # state.failed: the worker must end


cdef class Shard:
    cdef ShardState state

    # One link message from a front-end. now_ms: wall clock, stamped on what it publishes; now_ns: monotonic. Returns a
    # HandleResult. An L_PUBLISH may hold other shards' entries: they are passed over. L_SHARD_COUNTS is the worker's: see
    # counts.
    cdef int handle_message(self, uint32_t frontend, uint16_t kind, const uint8_t* payload, size_t size, int64_t now_ms,
                            int64_t now_ns) noexcept nogil

    # One decision: `count` records of `size` bytes together, with sequences first_seq and up, to all of the queues or
    # none. The outcome is an effect. Bytes are copied. Publishers age by the now_ns of the last call that had one.
    cdef void publish(self, uint32_t frontend, uint64_t sid, uint64_t floor, uint64_t first_seq, uint32_t count,
                      const uint64_t* queues, uint32_t queue_count, const uint8_t* exchange, uint32_t exchange_size,
                      const uint8_t* records, uint32_t size, int64_t now_ms) noexcept nogil

    # The front-end died: its sessions end, publishers are kept.
    cpdef void frontend_gone(self, uint32_t frontend, int64_t now_ns) noexcept nogil

    # Now and then (once a second will do): forget publishers, report unused auto-delete queues. Bounded work.
    cpdef void tick(self, int64_t now_ns) noexcept nogil

    # Once a turn, after everything that was read was handled: deliver, and go on with jobs. Bounded work; True: call
    # again soon.
    cpdef bint pump(self, int64_t now_ns) noexcept nogil

    # `state.records` has been copied: forget it. `position`: where it ends in the log, 0: there is none.
    cdef void records_taken(self, uint64_t position) noexcept nogil

    # The log has everything up to this position for good: what was hidden until then may be delivered. Whether that is
    # anything; then pump.
    cpdef bint durable_up_to(self, uint64_t position) noexcept nogil

    # Apply consecutive records of a log or of another shard; HANDLE_MALFORMED: one is damaged, and the state is worth
    # nothing. After the last ones of a log: recovered.
    cdef int recover(self, const uint8_t* records, size_t size, int64_t now_ns) noexcept nogil
    cpdef void recovered(self) noexcept nogil

    # Nothing more will be delivered: write down what was.
    cpdef void rest(self) noexcept nogil

    # Append a LinkCounts for each queue.
    cdef void counts(self, Buffer* out) noexcept nogil


cdef inline Effects* shard_effects(Shard shard) noexcept nogil:
    """What the shard wants sent."""
    return &shard.state.effects
