"""The links of a front-end to its workers, the arenas of those, and which worker has which shard.

Owns: the front-end's end of each link and arena. Rules: what is written to a worker that is down is dropped, and said to be; links are flushed
and bells rung once a turn; a region that was lent is written from its start on and handed back when the next record does not fit, or when it
has lain idle, and all its places are filled; without room in a region a record is copied through the link as smaller ones are. Runs in
front-ends.
"""
cimport cython
from cpython.ref cimport PyObject
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from fastmq.net.arena cimport ArenaView, Borrowed, arena_hold, arena_let_go, arena_prepare
from fastmq.net.ring cimport Link
from fastmq.wire.link cimport (
    L_LOANS_BACK, L_REGION_DONE, LinkAttach, LinkCancel, LinkCancelled, LinkConsume, LinkCounts, LinkQueue, LinkQueueRequest, LinkRegion,
    LinkReply,
    LinkToken,
)


cdef enum:
    LOANS_AT_ONCE = 64                          # in one message
    IDLE_NS = 5000000000                        # after which a region is handed back
    PREPARED_MIN = 65536                        # bytes of a record for which memory is taken at once
    LEAVING_MAX = 2                             # regions whose places are long in being filled: then no more are reserved


def link_sizes() -> dict[str, int]:
    """Bytes of the structs of wire/link.pxd that Python packs and reads, for the test that compares."""
    return {
        "LinkQueueRequest": sizeof(LinkQueueRequest), "LinkQueue": sizeof(LinkQueue), "LinkAttach": sizeof(LinkAttach),
        "LinkToken": sizeof(LinkToken), "LinkConsume": sizeof(LinkConsume), "LinkCancel": sizeof(LinkCancel),
        "LinkReply": sizeof(LinkReply), "LinkCounts": sizeof(LinkCounts), "LinkCancelled": sizeof(LinkCancelled),
    }


@cython.final
cdef class Workers:
    """`of_shards`: the worker of shard 0, 1, ..."""

    def __init__(self, int count, of_shards: list[int]) -> None:
        if not 0 < count <= WORKERS_MAX or not 0 < len(of_shards) <= SHARDS_MAX:
            raise ValueError(f"{count} workers and {len(of_shards)} shards: at most {WORKERS_MAX} and {SHARDS_MAX} are possible")
        if any(not 0 <= worker < count for worker in of_shards):
            raise ValueError("a shard is mapped to a worker that does not exist")
        cdef int i
        self.count = count
        self.shards = len(of_shards)
        self._links = [None] * count
        self._arenas = [None] * count
        for i in range(self.shards):
            self.of_shard[i] = of_shards[i]

    def attach(self, int worker, Link link not None, ArenaView arena=None) -> None:
        """The worker is reached through `link` from now on, and this is its arena; without one everything goes through the link."""
        self.detach(worker)
        self._links[worker] = link
        self.links[worker] = <PyObject*> link
        self._arenas[worker] = arena
        self.arenas[worker] = <PyObject*> arena if arena is not None else NULL
        self.link_number[worker] += 1
        self.up |= <uint32_t> 1 << worker

    def detach(self, int worker) -> None:
        """The worker is down: its link, and what is in it, is forgotten."""
        if not 0 <= worker < self.count:
            raise ValueError(f"there is no worker {worker}")
        self.links[worker] = NULL
        self._links[worker] = None
        self.arenas[worker] = NULL
        self._arenas[worker] = None             # mapped as long as something of it is to be sent, or a place in it to be filled
        self.regions[worker].count = 0
        self.regions[worker].leaving_count = 0
        self.link_number[worker] += 1
        self.up &= ~(<uint32_t> 1 << worker)
        self.written &= self.up

    def link(self, int worker) -> Link | None:
        """The link to a worker, None while it is down."""
        return self._links[worker]

    def is_up(self, int worker) -> bool:
        return self.up >> worker & 1 != 0

    def worker_of(self, int shard) -> int:
        """The worker that has this shard."""
        if not 0 <= shard < self.shards:
            raise IndexError(shard)
        return self.of_shard[shard]

    def shards_of(self, int worker) -> list[int]:
        """The shards of a worker, ascending."""
        return [shard for shard in range(self.shards) if self.of_shard[shard] == worker]

    def send(self, int worker, int kind, int shard, bytes payload) -> bool:
        """Write one message; False when the worker is down."""
        return self.add(worker, kind, shard, <const char*> payload, len(payload))

    cdef uint8_t* begin(self, int worker, uint16_t kind, uint16_t shard, size_t size) noexcept nogil:
        """As Link.begin; NULL also when the worker is down."""
        if self.links[worker] == NULL:
            return NULL
        return (<Link> self.links[worker]).begin(kind, shard, size)

    cdef void commit(self, int worker) noexcept nogil:
        (<Link> self.links[worker]).commit()
        self.written |= <uint32_t> 1 << worker

    cdef bint add(self, int worker, uint16_t kind, uint16_t shard, const void* data, size_t size) noexcept nogil:
        """Write one message; False when the worker is down or there is no memory."""
        cdef uint8_t* at = self.begin(worker, kind, shard, size)
        if at == NULL:
            return False
        if size:
            memcpy(at, data, size)
        self.commit(worker)
        return True

    # ---- the workers' arenas

    cdef void take_region(self, int worker, const LinkRegion* region) noexcept nogil:
        """An L_REGION: write there from now on."""
        cdef Regions* r = &self.regions[worker]
        if r.count + r.leaving_count < REGIONS_MAX and self.arenas[worker] != NULL:
            r.items[r.count].offset = region.offset
            r.items[r.count].size = region.size
            r.items[r.count].used = 0
            r.items[r.count].reserved = 0
            r.items[r.count].is_warm = region.is_warm
            r.count += 1

    cdef uint8_t* place(self, int worker, uint64_t size, uint64_t* offset) noexcept nogil:
        """Where a record of `size` bytes may be written in a worker's arena, and its offset there; NULL: nowhere."""
        cdef Regions* r = &self.regions[worker]
        cdef Lent* region
        cdef uint8_t* at
        while r.count:
            region = &r.items[0]
            if region.size - region.used >= size:
                at = self.cut(worker, region, size, offset)
                if size >= PREPARED_MIN and not region.is_warm:
                    arena_prepare(at, size)
                return at
            if size > region.size:
                return NULL                     # larger than any region
            self.region_done(worker, False)
        return NULL

    cdef uint8_t* cut(self, int worker, Lent* region, uint64_t size, uint64_t* offset) noexcept nogil:
        """The next `size` bytes of a region that has them, and their offset in the arena."""
        offset[0] = region.offset + region.used
        region.used += (size + RECORD_ALIGNMENT - 1) & ~<uint64_t> (RECORD_ALIGNMENT - 1)
        if region.used > region.size:
            region.used = region.size
        self.regions[worker].idle = False
        return (<ArenaView> self.arenas[worker]).map.base + offset[0]

    cdef void region_done(self, int worker, bint idle) noexcept nogil:
        """Hand back the oldest region: the worker lends another one for it, in the place behind the others."""
        cdef Regions* r = &self.regions[worker]
        cdef int i
        if r.items[0].reserved:
            r.leaving[r.leaving_count] = r.items[0]
            r.leaving_count += 1
        else:
            self.hand_back(worker, &r.items[0], not idle)
        r.count -= 1
        for i in range(r.count):
            r.items[i] = r.items[i + 1]

    cdef void hand_back(self, int worker, const Lent* region, bint is_warm) noexcept nogil:
        cdef LinkRegion told
        told.offset = region.offset
        told.size = region.size
        told.is_warm = is_warm
        told.padding = 0
        self.add(worker, L_REGION_DONE, 0, &told, sizeof(told))

    cdef bint reserve(self, int worker, uint64_t size, Placement* placement) noexcept nogil:
        """A place for a record that is still to come, to be given to `release` when it was, or will not be; False: nowhere."""
        cdef Regions* r = &self.regions[worker]
        placement.at = NULL
        if self.links[worker] == NULL or r.leaving_count >= LEAVING_MAX:
            return False
        while r.count and r.items[0].size - r.items[0].used < size:
            if size > r.items[0].size or r.leaving_count >= LEAVING_MAX:
                return False
            self.region_done(worker, False)
        if r.count == 0:
            return False
        placement.at = self.cut(worker, &r.items[0], size, &placement.offset)
        placement.is_cold = not r.items[0].is_warm
        placement.region = r.items[0].offset
        r.items[0].reserved += 1
        placement.size = size
        placement.worker = worker
        placement.link = self.link_number[worker]
        placement.map = (<ArenaView> self.arenas[worker]).map
        arena_hold(placement.map)
        return True

    cdef void release(self, Placement* placement) noexcept nogil:
        """The place is filled, or will not be."""
        cdef Regions* r = &self.regions[placement.worker]
        cdef int i
        if placement.at == NULL:
            return
        placement.at = NULL
        arena_let_go(placement.map)
        if placement.link != self.link_number[placement.worker]:
            return
        for i in range(r.count):
            if r.items[i].offset == placement.region:
                r.items[i].reserved -= 1
                return
        for i in range(r.leaving_count):
            if r.leaving[i].offset != placement.region:
                continue
            r.leaving[i].reserved -= 1
            if r.leaving[i].reserved == 0:
                self.hand_back(placement.worker, &r.leaving[i], True)
                r.leaving_count -= 1
                r.leaving[i] = r.leaving[r.leaving_count]
            return

    cdef const uint8_t* borrow(self, int worker, uint64_t loan, uint64_t offset, Borrowed** borrowed) noexcept nogil:
        """Where the record of a loan lies; `borrowed` is to be given back. NULL: no memory."""
        if self.arenas[worker] == NULL:
            return NULL
        borrowed[0] = (<ArenaView> self.arenas[worker]).borrow(loan)
        return (<ArenaView> self.arenas[worker]).map.base + offset if borrowed[0] != NULL else NULL

    cdef bint return_loan(self, int worker, uint64_t loan) noexcept nogil:
        """Tell a worker that one of its loans is over; False: no memory."""
        return self.add(worker, L_LOANS_BACK, 0, &loan, sizeof(loan))

    cdef void return_loans(self) noexcept nogil:
        """Once a turn: tell the workers which of their loans have been sent."""
        cdef uint64_t[LOANS_AT_ONCE] loans
        cdef Borrowed* b
        cdef Borrowed* following
        cdef int worker, count
        for worker in range(self.count):
            if self.arenas[worker] == NULL:
                continue
            b = (<ArenaView> self.arenas[worker]).take_returned()
            count = 0
            while b != NULL:
                following = b.next
                loans[count] = b.loan
                count += 1
                (<ArenaView> self.arenas[worker]).forget(b)
                b = following
                if count == LOANS_AT_ONCE or b == NULL:
                    self.add(worker, L_LOANS_BACK, 0, loans, count * sizeof(uint64_t))
                    count = 0

    def tick(self, uint64_t now_ns) -> None:
        """Now and then: hand back regions that take memory and have lain idle, for others that take none.

        Not at once: each region that is handed back with something in it is a unit of the arena until that has been consumed.
        """
        cdef int worker
        cdef Regions* r
        cdef Lent first
        cdef int i
        for worker in range(self.count):
            r = &self.regions[worker]
            if not r.idle:
                r.idle = True
                r.idle_since_ns = now_ns
            for _ in range(r.count if now_ns - r.idle_since_ns >= IDLE_NS else 0):
                if r.items[0].used or r.items[0].is_warm:
                    self.region_done(worker, True)
                else:                           # behind the others
                    first = r.items[0]
                    for i in range(1, r.count):
                        r.items[i - 1] = r.items[i]
                    r.items[r.count - 1] = first

    cdef void flush(self) noexcept nogil:
        """End a turn: move what waits into the rings, wake the workers that sleep."""
        cdef int worker
        for worker in range(self.count):
            if self.links[worker] != NULL:
                (<Link> self.links[worker]).flush()
                (<Link> self.links[worker]).ring_bell()
        self.written = 0

    def flush_links(self) -> None:
        """`flush` for Python callers."""
        self.flush()
