"""The links of a front-end to its workers, and which worker has which shard.

Owns: the front-end's end of each link. Rules: what is written to a worker that is down is dropped, and said to be; links are flushed and bells
rung once a turn. Runs in front-ends.
"""
cimport cython
from cpython.ref cimport PyObject
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy

from fastmq.net.ring cimport Link
from fastmq.wire.link cimport (
    LinkAttach, LinkCancel, LinkCancelled, LinkConsume, LinkCounts, LinkQueue, LinkQueueRequest, LinkReply, LinkToken,
)


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
        for i in range(self.shards):
            self.of_shard[i] = of_shards[i]

    def attach(self, int worker, Link link not None) -> None:
        """The worker is reached through `link` from now on."""
        self.detach(worker)
        self._links[worker] = link
        self.links[worker] = <PyObject*> link
        self.up |= <uint32_t> 1 << worker

    def detach(self, int worker) -> None:
        """The worker is down: its link, and what is in it, is forgotten."""
        if not 0 <= worker < self.count:
            raise ValueError(f"there is no worker {worker}")
        self.links[worker] = NULL
        self._links[worker] = None
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
