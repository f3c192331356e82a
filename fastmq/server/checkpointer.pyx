"""Checkpoints and extents of a worker (see checkpointer.pxd)."""
import select

from libc.errno cimport ENOSPC
from libc.stdint cimport int64_t, uint32_t, uint64_t

from fastmq.model.pieces cimport EXTENT_COUNTER_BITS, ExtentWrite
from fastmq.model.ageing cimport AGE_DONE, AGE_MORE, AGE_WAITS
from fastmq.model.shard cimport Shard
from fastmq.server.fifo cimport fifo_add, fifo_take
from fastmq.storage.log cimport SHARD_TOPOLOGY, EntryHead, ExtentRead, Log
from fastmq.wire.buffer cimport buffer_add, buffer_clear, buffer_free, buffer_init, buffer_pad8
from fastmq.wire.limits cimport SHARDS_MAX


cdef enum:
    RETRY_NS = 1000000000           # after an extent or a checkpoint found no room
    AGE_STEPS_MAX = 4               # calls of Shard.age in a turn
    PENDING_SIZE_MAX = 67108864     # bytes of extents that are being written: more become cold only when those are


cdef class Checkpointer:
    """`tail_size_max`: bytes of journal behind the last checkpoint after which the next one is made; `memory_mark`: of messages."""

    def __cinit__(self):
        buffer_init(&self.blob)
        buffer_init(&self.states)

    def __init__(self, log: Log, desk: object, tail_size_max: int, memory_mark: int) -> None:
        self.log = log
        self.desk = desk
        self.tail_size_max = tail_size_max
        self.memory_mark = memory_mark

    def __dealloc__(self):
        buffer_free(&self.blob)
        buffer_free(&self.states)

    def make(self) -> None:
        """Make a checkpoint now, and wait for it; nothing else goes on. Raises what has made that fail."""
        self.active = True
        self.at = 0
        self.position = self.log.appended
        while self.active and not self.failed:
            self.step(0)
            if not self.active and self.not_before_ns:
                raise OSError(ENOSPC, "there is no room for a checkpoint", getattr(self.log, "folder", ""))
        while self.log.look() >= 0 and self.log.checkpointing and not (self.log.failed or self.failed):
            self.take_extents(0)
            select.select([self.log.fileno()], [], [], 0.1)
        if self.log.failed:
            raise self.log.error
        if self.failed:
            raise self.error or MemoryError()

    cdef void measure(self) noexcept nogil:
        """How much memory the messages take: at each tick, and while it is too much."""
        cdef uint64_t memory = 0
        cdef int i
        for i in range(SHARDS_MAX):
            if self.shard_of[i] != NULL:
                memory += (<Shard> self.shard_of[i]).memory()
        self.memory = memory

    cdef bint keep(self, Shard shard) noexcept nogil:
        """Give the log what a shard has written for it."""
        if not self.log.append(shard.state.index, shard.state.records.data, shard.state.records.size):
            self.failed = True
        shard.records_taken(self.log.appended)
        if shard.state.hidden.size:
            fifo_add(&self.hiding, shard.state.index)
        return not self.failed

    cdef void show(self, uint64_t durable) noexcept nogil:
        cdef uint32_t left = self.hiding.count, shard
        while left:
            left -= 1
            shard = fifo_take(&self.hiding)
            if (<Shard> self.shard_of[shard]).durable_up_to(durable):
                fifo_add(self.touched, shard)
            if (<Shard> self.shard_of[shard]).state.hidden.size:
                fifo_add(&self.hiding, shard)

    cdef bint grant(self, Shard shard) noexcept nogil:
        """Give the log what a shard wishes of it."""
        cdef ExtentWrite* writes = <ExtentWrite*> shard.state.extents.writes.data
        cdef const uint64_t* reads = <const uint64_t*> shard.state.extents.reads.data
        cdef const uint64_t* frees = <const uint64_t*> shard.state.extents.frees.data
        cdef size_t i
        for i in range(shard.state.extents.writes.size // sizeof(ExtentWrite)):
            if not self.log.extent_write(writes[i].number, &writes[i].payload):
                self.failed = True
        for i in range(shard.state.extents.reads.size // sizeof(uint64_t)):
            if not self.log.extent_read(reads[i]):
                self.failed = True
            self.reads += 1
        for i in range(shard.state.extents.frees.size // sizeof(uint64_t)):
            self.log.extent_free(frees[i])
        if not self.failed:                                 # else the payloads are freed with the shard
            buffer_clear(&shard.state.extents.writes)
        buffer_clear(&shard.state.extents.reads)
        buffer_clear(&shard.state.extents.frees)
        self.pending = True
        return not self.failed

    cdef bint turn(self, int64_t now_ns) noexcept nogil:
        cdef bint more = False
        if self.pending:
            self.log.peek()                                 # what it says to others is for them to hear
            self.take_extents(now_ns)
            self.pending = self.reads != 0 or self.log.extent_pending != 0 or self.log.checkpointing
        if self.active:
            more = self.step(now_ns)
        elif self.log.tail_size > self.tail_size_max and not self.log.checkpointing and now_ns >= self.not_before_ns:
            self.active = True
            self.at = 0
            self.position = self.log.appended
            more = True
        if self.memory > self.memory_mark and now_ns >= self.not_before_ns and self.log.extent_pending < PENDING_SIZE_MAX:
            more = self.age() or more
        return more and not self.failed

    cdef void take_extents(self, int64_t now_ns) noexcept nogil:
        """Extents that were read, and those that could not be written."""
        cdef ExtentRead read
        cdef PyObject* at
        cdef int result
        while self.log.extent_next(&read):
            at = self.shard_of[read.number >> EXTENT_COUNTER_BITS]
            if read.error == 0:
                self.reads -= 1
                result = (<Shard> at).extent_arrived(read.number, read.payload.data, read.payload.size)
            elif read.error == ENOSPC:
                result = (<Shard> at).extent_failed(read.number, read.payload.data, read.payload.size)
                self.abandon(now_ns + RETRY_NS)
            else:
                result = -1
            buffer_free(&read.payload)
            if result != 0:
                self.failed = True
            fifo_add(self.touched, <uint32_t> (read.number >> EXTENT_COUNTER_BITS))

    cdef bint step(self, int64_t now_ns) noexcept nogil:
        """A part of the checkpoint. Whether there is more to do at once."""
        cdef int result
        while self.at < SHARDS_MAX and self.shard_of[self.at] == NULL:
            self.at += 1
        if self.at == SHARDS_MAX:
            self.active = False
            if self.desk is not None:
                self.add_topology()
            if not self.failed and not self.log.checkpoint(self.position, &self.states):
                self.failed = True
            buffer_free(&self.states)
            self.pending = True
            return False
        if not self.begun:
            if (<Shard> self.shard_of[self.at]).state.records.size and not self.keep(<Shard> self.shard_of[self.at]):
                return False
            buffer_clear(&self.blob)
            buffer_add(&self.blob, &self.log.appended, sizeof(uint64_t))
            (<Shard> self.shard_of[self.at]).snapshot_begin(&self.blob)
            self.begun = True
        result = (<Shard> self.shard_of[self.at]).snapshot_step(&self.blob)
        if self.blob.failed or (has_wishes(<Shard> self.shard_of[self.at]) and not self.grant(<Shard> self.shard_of[self.at])):
            self.failed = True
            return False
        if result == AGE_WAITS:
            return False                                    # until the log has more
        if result == AGE_DONE:
            self.begun = False
            return self.finish((<uint64_t*> self.blob.data)[0], self.at)
        if result != AGE_MORE:
            self.abandon(now_ns + RETRY_NS)
        return result == AGE_MORE

    cdef bint finish(self, uint64_t position, uint32_t shard) noexcept nogil:
        """The blob in hand is whole."""
        cdef EntryHead head
        head.size = <uint32_t> self.blob.size
        head.shard = <unsigned short> shard
        head.zero = 0
        buffer_add(&self.states, &head, sizeof(head))
        buffer_add(&self.states, self.blob.data, self.blob.size)
        buffer_pad8(&self.states)
        if position < self.position:
            self.position = position
        if self.states.failed:
            self.failed = True
        self.at += 1
        return not self.failed

    cdef void add_topology(self) noexcept with gil:
        cdef bytes packed
        try:
            packed = self.desk.checkpoint()
            buffer_clear(&self.blob)
            buffer_add(&self.blob, &self.log.appended, sizeof(uint64_t))
            buffer_add(&self.blob, <const char*> packed, len(packed))
            self.finish(self.log.appended, SHARD_TOPOLOGY)
        except Exception as error:
            self.error = error
            self.failed = True

    cdef void abandon(self, int64_t not_before_ns) noexcept nogil:
        """The checkpoint in hand cannot be finished."""
        self.not_before_ns = not_before_ns
        if self.active:
            if self.begun:
                (<Shard> self.shard_of[self.at]).snapshot_abandon()
            buffer_free(&self.states)
            self.active = self.begun = False

    cdef bint age(self) noexcept nogil:
        """Let some of what is longest become cold. Whether there is more."""
        cdef int steps = 0, looked = 0
        self.measure()
        if self.memory <= self.memory_mark:
            return False
        while steps < AGE_STEPS_MAX and looked < SHARDS_MAX:
            if self.shard_of[self.aged] == NULL or (self.active and self.begun and self.aged == self.at):
                looked += 1
                self.aged = (self.aged + 1) % SHARDS_MAX
                continue
            steps += 1
            if (<Shard> self.shard_of[self.aged]).age() != AGE_MORE:
                looked += 1
                self.aged = (self.aged + 1) % SHARDS_MAX
            elif has_wishes(<Shard> self.shard_of[self.aged]) and not self.grant(<Shard> self.shard_of[self.aged]):
                return False
        if looked == SHARDS_MAX:
            self.memory = 0                                 # nothing is worth it, until the next tick
        return looked < SHARDS_MAX
