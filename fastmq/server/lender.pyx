"""What a worker lends of its arena (see lender.pxd)."""
from libc.stdint cimport uint64_t

from fastmq.model.regions cimport (
    Span, regions_cool, regions_count, regions_free, regions_frontend_gone, regions_init, regions_returned, regions_written,
    units_cool,
)
from fastmq.server.port cimport port_lend
from fastmq.wire.buffer cimport buffer_clear, buffer_free, buffer_init
from fastmq.wire.link cimport L_LOANS_BACK, LinkRegion


cdef class Lender:
    """`arena`: None, and large records are copied. `region_size`: bytes, which tests want small. Raises MemoryError."""

    def __cinit__(self):
        buffer_init(&self.cooled)

    def __dealloc__(self):
        buffer_free(&self.cooled)
        regions_free(&self.regions)

    def __init__(self, arena: ArenaMemory | None, region_size: int) -> None:
        self.arena = arena
        if not regions_init(&self.regions, arena.base if arena is not None else NULL, arena.size if arena is not None else 0, region_size):
            raise MemoryError

    cdef bint message(self, uint32_t frontend, const LinkHead* head, const uint8_t* payload) noexcept nogil:
        cdef Port* port = &self.ports[frontend]
        cdef size_t i
        if head.kind == L_LOANS_BACK:
            for i in range(head.size // sizeof(uint64_t)):
                regions_returned(&self.regions, (<const uint64_t*> payload)[i])
            return True
        regions_written(&self.regions, (<const LinkRegion*> payload).offset, frontend)
        port.lent -= 1
        return port_lend(port, &self.regions, frontend, (<const LinkRegion*> payload).is_warm) >= 0

    cdef void frontend_gone(self, uint32_t frontend) noexcept nogil:
        regions_frontend_gone(&self.regions, frontend)

    cdef void tick(self, uint64_t now_ns) noexcept nogil:
        cdef size_t i
        cdef Span* spans
        buffer_clear(&self.cooled)
        regions_cool(&self.regions, &self.cooled)
        if now_ns >= self.cooled_ns + COOL_NS:
            self.cooled_ns = now_ns
            units_cool(&self.regions, &self.cooled)
        spans = <Span*> self.cooled.data
        for i in range(self.cooled.size // sizeof(Span)):
            self.arena.punch(spans[i].offset, spans[i].size)
        self.fill()

    cdef void fill(self) noexcept nogil:
        cdef int n
        for n in range(self.port_count):
            while self.ports[n].link != NULL and self.ports[n].lent < REGIONS_LENT and port_lend(&self.ports[n], &self.regions, n, False) > 0:
                pass

    def counts(self) -> dict[str, int]:
        """What the arena is used for: regions, those of them that are being written, loans, warm units."""
        cdef uint32_t written = 0, regions = regions_count(&self.regions, &written)
        return {"regions": regions, "written": written, "loans": self.regions.loans.count, "warm": self.regions.warm}
