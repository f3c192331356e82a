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
#   pieces      which messages lie in which extent        extents    the payload of an extent
#   ageing      copied into extents                       cold       back into memory
#   gets        GETs that wait for what is cold           snapshot   the state as records, for a checkpoint
#   requests    link messages, with their payloads        chill      what was read back, cold again
#
# With a log the worker also carries out wishes, each turn, in this order, and clears the lists (`state.extents`):
#
#   writes   ExtentWrite[]   Log.extent_write(number, &payload): takes the payload over; then the list is cleared. When it could
#                            not be written: extent_failed, with that payload
#   reads    uint64_t[]      Log.extent_read(number); what comes: extent_arrived, or extent_failed where it was not written
#   frees    uint64_t[]      Log.extent_free(number); one that failed, or that no checkpoint knows, may be among them
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

    # Bytes that messages take, or nearly.
    cdef uint64_t memory(self) noexcept nogil

    # Nothing more will be delivered: write down what was.
    cpdef void rest(self) noexcept nogil

    # An extent that was asked for has come; the bytes are copied. HANDLE_MALFORMED: it does not hold what the shard's pieces say,
    # and the worker must end. One that nobody needs any more changes nothing. Then collect, pump.
    cdef int extent_arrived(self, uint64_t number, const uint8_t* data, size_t size) noexcept nogil

    # An extent could not be written for want of room: its payload, as it was given, so that its messages lie in memory again (the
    # log has them still: nothing of it was trimmed). A snapshot in hand is spoiled, and so must be a checkpoint that was given to
    # the log after that extent. Do not call `age` before there is room again. Results as of extent_arrived. Then collect, pump.
    cdef int extent_failed(self, uint64_t number, const uint8_t* data, size_t size) noexcept nogil

    # Memory is short: let some of the longest queue become cold, at most about 64 KiB in a call. AGE_MORE: call again, while memory
    # is short; AGE_DONE: nothing is left that is worth it. Look at the wishes after each call; memory falls when they are written.
    cpdef int age(self) noexcept nogil

    # A snapshot for a checkpoint of the log. `snapshot_begin` appends what is of one moment to `out` (the caller looks at out.failed); all
    # records of before have been taken and appended to the log: the position of the last of them is the blob's. Then snapshot_step,
    # with the same `out`, at most about 64 KiB copied or 2,048 pieces told in a call, and look at the wishes after each call:
    #   AGE_MORE      call again
    #   AGE_WAITS     call again when the log has more for good (durable_up_to): something is hidden still
    #   AGE_DONE      `out` is whole; when the writes wished so far have been given to the log, Log.checkpoint may be called
    #   AGE_SPOILED   an extent failed, or no snapshot was begun: forget `out`; begin anew when there is room
    # `recover` of `out`, then of the records appended since snapshot_begin, on an empty shard, gives what was kept.
    cdef void snapshot_begin(self, Buffer* out) noexcept nogil
    cdef int snapshot_step(self, Buffer* out) noexcept nogil
    cpdef void snapshot_abandon(self) noexcept nogil

    # Append a LinkCounts for each queue.
    cdef void counts(self, Buffer* out) noexcept nogil


cdef inline Effects* shard_effects(Shard shard) noexcept nogil:
    """What the shard wants sent."""
    return &shard.state.effects
