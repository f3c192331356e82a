"""One end of the link between a front-end and a worker: rings in shared memory and doorbells.

Owns its half of two single-producer single-consumer rings (drawn in ring.pxd). Rules: nothing here ever blocks; what does not fit waits in
`pending`, in order, and is bounded by the windows of those who send; a pointer from `receive` is valid until the next `receive` or `release`;
one message is begun at a time. A link lives as long as both its ends: nothing in it is ever recovered. Both ends trust each other.
Runs in front-ends and workers.

Sleeping: who wants to sleep says so in shared memory, then looks once more (`prepare_sleep`); who has written or read looks after that
(`ring_bell`). Both are sequentially consistent, so at least one of the two sees the other, and no wake-up is lost.
"""
import os

from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from fastmq.wire.buffer cimport (
    buffer_add, buffer_clear, buffer_drop_front, buffer_extend, buffer_free, buffer_init, buffer_reserve,
)
from fastmq.wire.link cimport LinkHead

from fastmq.errors import FastMQError


cdef extern from *:
    """
    #include <stdint.h>
    #include <sys/mman.h>
    #include <unistd.h>
    static inline uint64_t fmq_load64(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    static inline void fmq_store64(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
    static inline uint32_t fmq_load32(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
    static inline void fmq_store32(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }
    static inline uint32_t fmq_swap32(uint32_t *p, uint32_t v) { return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); }
    static inline void fmq_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
    """
    uint64_t fmq_load64(const uint64_t* p) noexcept nogil
    void fmq_store64(uint64_t* p, uint64_t v) noexcept nogil
    uint32_t fmq_load32(const uint32_t* p) noexcept nogil
    void fmq_store32(uint32_t* p, uint32_t v) noexcept nogil
    uint32_t fmq_swap32(uint32_t* p, uint32_t v) noexcept nogil
    void fmq_fence() noexcept nogil

cdef extern from "sys/mman.h" nogil:
    void* mmap(void* addr, size_t length, int prot, int flags, int fd, long offset)
    int munmap(void* addr, size_t length)
    int PROT_READ, PROT_WRITE, MAP_SHARED
    void* MAP_FAILED

cdef extern from "unistd.h" nogil:
    ssize_t read(int fd, void* buf, size_t count)
    ssize_t write(int fd, const void* buf, size_t count)


cdef enum:
    RINGS_AT = 2 * sizeof(RingCtl)
    PAD = 0xffff                    # kinds that never leave this file
    PIECE = 0xfffe
    PENDING_KEEP = 1 << 20          # an emptied waiting list larger than this is given back


cdef struct PieceHead:
    LinkHead whole                  # head of the message that travels in pieces
    uint32_t first                  # 1: the first piece
    uint32_t padding


cdef inline size_t padded(size_t size) noexcept nogil:
    return (size + 7) & ~<size_t> 7


def link_size(ring_size: int) -> int:
    """Bytes of the memory that holds both rings."""
    return RINGS_AT + 2 * ring_size


def make_link_fds(ring_size: int) -> tuple[int, int, int]:
    """A fresh link: (memfd of both rings, eventfd that wakes the front-end, eventfd that wakes the worker). The caller closes them."""
    memfd = os.memfd_create("fastmq-link", os.MFD_CLOEXEC)
    os.ftruncate(memfd, link_size(ring_size))
    flags = os.EFD_CLOEXEC | os.EFD_NONBLOCK
    return memfd, os.eventfd(0, flags), os.eventfd(0, flags)


cdef class LinkMemory:
    def __cinit__(self, int memfd, size_t size):
        self.size = size
        self.mapped = memfd >= 0
        if self.mapped:
            self.base = <uint8_t*> mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0)
            if self.base == <uint8_t*> MAP_FAILED:
                self.base = NULL
                raise OSError(errno, os.strerror(errno))
        else:
            self.base = <uint8_t*> calloc(1, size)
            if self.base == NULL:
                raise MemoryError

    def __dealloc__(self):
        if self.base != NULL:
            if self.mapped:
                munmap(self.base, self.size)
            else:
                free(self.base)


cdef class Link:
    """One end of a link. `Link.pair(size)` gives both ends in private memory; `Link.open` one end of shared memory."""

    def __cinit__(self, LinkMemory memory, bint is_worker, int own_bell=-1, int other_bell=-1):
        cdef RingCtl* to_worker = <RingCtl*> memory.base
        cdef RingCtl* to_frontend = to_worker + 1
        self.memory = memory
        self.ring_size = (memory.size - RINGS_AT) // 2
        self.piece_max = self.ring_size // 4 - sizeof(LinkHead) - sizeof(PieceHead)
        self.own_bell = own_bell
        self.other_bell = other_bell
        self.out = to_frontend if is_worker else to_worker
        self.incoming = to_worker if is_worker else to_frontend
        self.out_data = memory.base + RINGS_AT + (self.ring_size if is_worker else 0)
        self.in_data = memory.base + RINGS_AT + (0 if is_worker else self.ring_size)
        self.out_head = self.out.head
        self.in_tail = self.incoming.tail
        buffer_init(&self.pending)
        buffer_init(&self.assembled)

    def __dealloc__(self):
        buffer_free(&self.pending)
        buffer_free(&self.assembled)

    @staticmethod
    def pair(ring_size: int) -> tuple[Link, Link]:
        """(front-end's end, worker's end) in private memory, without doorbells."""
        if ring_size < 1024 or ring_size & (ring_size - 1):
            raise ValueError(f"a ring of {ring_size} bytes: a power of two of at least 1024 is needed")
        memory = LinkMemory(-1, link_size(ring_size))
        return Link(memory, False), Link(memory, True)

    @staticmethod
    def open(memfd: int, own_bell: int, other_bell: int, is_worker: bool) -> Link:
        """This end of a link made by `make_link_fds`. The bells stay open as long as the Link is used; `memfd` may be closed."""
        return Link(LinkMemory(memfd, os.fstat(memfd).st_size), is_worker, own_bell, other_bell)

    # ---- sending

    cdef uint8_t* room(self, size_t need, uint64_t* taken) noexcept nogil:
        """`need` contiguous bytes behind out_head, and how far the head moves for them; NULL when they are not free now."""
        cdef size_t at = self.out_head & (self.ring_size - 1)
        cdef size_t to_end = self.ring_size - at
        cdef size_t skipped = to_end if to_end < need else 0
        taken[0] = skipped + need
        if self.out_head + taken[0] - self.out_tail_seen > self.ring_size:
            self.out_tail_seen = fmq_load64(&self.out.tail)
            if self.out_head + taken[0] - self.out_tail_seen > self.ring_size:
                return NULL
        if skipped:
            (<LinkHead*> (self.out_data + at)).kind = PAD
            (<LinkHead*> (self.out_data + at)).size = <uint32_t> (skipped - sizeof(LinkHead))
            return self.out_data
        return self.out_data + at

    cdef uint8_t* begin(self, uint16_t kind, uint16_t shard, size_t size) noexcept nogil:
        """Where the `size` bytes of a message's payload are to be written, 8-aligned; NULL when there is no memory."""
        cdef size_t need = sizeof(LinkHead) + padded(size)
        cdef uint8_t* at = NULL
        cdef LinkHead* head
        self.begun = 0
        if size <= self.piece_max and self.pending.size == self.pending_at:
            at = self.room(need, &self.begun)
        if at == NULL:
            self.begun = 0
            self.pending_begun = self.pending.size
            at = buffer_extend(&self.pending, need)
            if at == NULL:
                self.pending.failed = False
                return NULL
        head = <LinkHead*> at
        head.size = <uint32_t> size
        head.kind = kind
        head.shard = shard
        return at + sizeof(LinkHead)

    cdef void commit(self) noexcept nogil:
        """The message begun is complete and may be read by the other end."""
        if self.begun:
            self.out_head += self.begun
            self.begun = 0
            fmq_store64(&self.out.head, self.out_head)

    cdef void cancel(self) noexcept nogil:
        """The message begun is forgotten."""
        if not self.begun:
            self.pending.size = self.pending_begun
        self.begun = 0

    cdef int add(self, uint16_t kind, uint16_t shard, const void* data, size_t size) noexcept nogil:
        """Send one message; -1, and nothing sent, when there is no memory."""
        cdef uint8_t* at = self.begin(kind, shard, size)
        if at == NULL:
            return -1
        if size:
            memcpy(at, data, size)
        self.commit()
        return 0

    cdef size_t waiting(self) noexcept nogil:
        """Bytes that have not found room in the ring yet."""
        return self.pending.size - self.pending_at

    cdef bint flush_large(self, LinkHead* head, const uint8_t* payload) noexcept nogil:
        """Send the rest of a large message in pieces as far as they fit; True when all of it has left."""
        cdef size_t part
        cdef uint8_t* at
        cdef uint64_t taken
        cdef LinkHead* piece
        cdef PieceHead* about
        while self.pieces_sent < head.size:
            part = head.size - self.pieces_sent
            if part > self.piece_max:
                part = self.piece_max
            at = self.room(sizeof(LinkHead) + sizeof(PieceHead) + padded(part), &taken)
            if at == NULL:
                return False
            piece = <LinkHead*> at
            piece.size = <uint32_t> (sizeof(PieceHead) + part)
            piece.kind = PIECE
            piece.shard = 0
            about = <PieceHead*> (at + sizeof(LinkHead))
            about.whole = head[0]
            about.first = self.pieces_sent == 0
            memcpy(at + sizeof(LinkHead) + sizeof(PieceHead), payload + self.pieces_sent, part)
            self.pieces_sent += part
            self.out_head += taken
            fmq_store64(&self.out.head, self.out_head)
        self.pieces_sent = 0
        return True

    cdef bint flush(self) noexcept nogil:
        """Move waiting messages into the ring as far as they fit; True when none waits any more."""
        cdef LinkHead* head
        cdef uint8_t* at
        cdef uint64_t taken
        cdef size_t need
        while self.pending_at < self.pending.size:
            head = <LinkHead*> (self.pending.data + self.pending_at)
            need = sizeof(LinkHead) + padded(head.size)
            if head.size > self.piece_max:
                if not self.flush_large(head, self.pending.data + self.pending_at + sizeof(LinkHead)):
                    self.forget_sent()
                    return False
            else:
                at = self.room(need, &taken)
                if at == NULL:
                    self.forget_sent()
                    return False
                memcpy(at, head, need)
                self.out_head += taken
                fmq_store64(&self.out.head, self.out_head)
            self.pending_at += need
        if self.pending_at:
            self.pending_at = 0
            buffer_clear(&self.pending)
            if self.pending.room > PENDING_KEEP:
                buffer_free(&self.pending)
        return True

    cdef void forget_sent(self) noexcept nogil:
        """Under a load that never ends the list is never empty: what has left it goes when it is more than what is left."""
        if self.pending_at > self.pending.size // 2:
            buffer_drop_front(&self.pending, self.pending_at)
            self.pending_at = 0

    # ---- receiving

    cdef void release(self) noexcept nogil:
        """The message in hand has been read."""
        if self.in_held:
            self.in_tail += self.in_held
            self.in_held = 0
            fmq_store64(&self.incoming.tail, self.in_tail)
        if self.assembled_in_hand:
            self.assembled_in_hand = False
            buffer_free(&self.assembled)

    cdef bint receive(self, LinkHead* head, const uint8_t** payload) noexcept nogil:
        """The next whole message, or False; what `payload` points to is valid until the next receive or release."""
        cdef LinkHead* at
        cdef PieceHead* piece
        self.release()
        while True:
            if self.in_tail == self.in_head_seen:
                self.in_head_seen = fmq_load64(&self.incoming.head)
                if self.in_tail == self.in_head_seen:
                    return False
            at = <LinkHead*> (self.in_data + (self.in_tail & (self.ring_size - 1)))
            self.in_held = sizeof(LinkHead) + padded(at.size)
            if at.kind == PAD:
                self.release()
                continue
            if at.kind != PIECE:
                head[0] = at[0]
                payload[0] = <const uint8_t*> (at + 1)
                return True
            piece = <PieceHead*> (at + 1)
            if piece.first:
                buffer_clear(&self.assembled)
                self.assembled_head = piece.whole
                if buffer_reserve(&self.assembled, piece.whole.size) == NULL:
                    self.out_of_memory = True
            buffer_add(&self.assembled, piece + 1, at.size - sizeof(PieceHead))
            self.release()
            if self.assembled.size >= self.assembled_head.size and not self.assembled.failed:
                head[0] = self.assembled_head
                payload[0] = self.assembled.data
                self.assembled_in_hand = True
                return True

    # ---- sleeping

    cdef void ring_bell(self) noexcept nogil:
        """After a turn: wake the other end if it sleeps and there is something to read, or room that it waits for."""
        cdef uint64_t one = 1
        cdef bint ring = False
        fmq_fence()
        if fmq_load32(&self.out.consumer_sleeps) and fmq_load64(&self.out.tail) != self.out_head:
            ring = fmq_swap32(&self.out.consumer_sleeps, 0)
        if fmq_load32(&self.incoming.producer_waits) and (
            fmq_load64(&self.incoming.head) - self.in_tail <= self.ring_size // 2
        ):
            ring = fmq_swap32(&self.incoming.producer_waits, 0) or ring
        if ring and self.other_bell >= 0:
            write(self.other_bell, &one, 8)

    cdef bint prepare_sleep(self) noexcept nogil:
        """True: nothing to do here, the other end will ring own_bell. False: there is something to read, or room for what waits.

        Rings first: who sleeps on room that it has made itself but told nobody of would sleep for ever.
        """
        self.ring_bell()
        fmq_store32(&self.incoming.consumer_sleeps, 1)
        if self.waiting():
            fmq_store32(&self.out.producer_waits, 1)
        fmq_fence()
        if fmq_load64(&self.incoming.head) != self.in_tail + self.in_held:
            return False
        return not self.waiting() or self.out_head - fmq_load64(&self.out.tail) > self.ring_size // 2

    cdef void awake(self) noexcept nogil:
        """This end does not sleep any more: the other need not ring. Drains the bell."""
        cdef uint64_t count
        self.stay_awake()
        if self.own_bell >= 0:
            read(self.own_bell, &count, 8)

    cdef void stay_awake(self) noexcept nogil:
        """`awake`, for who drains the bell when it has rung."""
        if fmq_load32(&self.incoming.consumer_sleeps):
            fmq_store32(&self.incoming.consumer_sleeps, 0)
        if fmq_load32(&self.out.producer_waits):
            fmq_store32(&self.out.producer_waits, 0)

    # ---- from Python: tests, and messages that are rare

    def send(self, int kind, int shard, bytes payload) -> None:
        """Send one message of at most 4 GiB; it waits when the ring is full."""
        if self.add(kind, shard, <const char*> payload, len(payload)):
            raise MemoryError

    def receive_message(self) -> tuple[int, int, bytes] | None:
        """The next message as (kind, shard, payload), or None."""
        cdef LinkHead head
        cdef const uint8_t* payload
        if self.out_of_memory:
            raise FastMQError("a message between front-end and worker was too large for the memory left", "internal")
        if not self.receive(&head, &payload):
            return None
        message = (head.kind, head.shard, (<const char*> payload)[:head.size])
        self.release()
        return message

    def flush_waiting(self) -> bool:
        """`flush` for Python callers."""
        return self.flush()

    @property
    def waiting_bytes(self) -> int:
        """Bytes that have not found room in the ring yet."""
        return self.waiting()

    def ring_other(self) -> None:
        """`ring_bell` for Python callers."""
        self.ring_bell()

    def may_sleep(self) -> bool:
        """`prepare_sleep` for Python callers."""
        return self.prepare_sleep()

    def wake_up(self) -> None:
        """`awake` for Python callers."""
        self.awake()
