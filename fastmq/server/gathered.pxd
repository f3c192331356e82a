# Frames as the pieces of memory that one system call sends: the bodies from where they lie, what ZMTP puts before them from here.
#
# Owns: the heads. Rules: a frame of which a part has left already (`sent`) goes on from there. Runs in front-ends, without the GIL.
from libc.stdint cimport uint8_t

from fastmq.server.posix cimport iovec
from fastmq.server.session cimport Frame
from fastmq.wire.zmtp cimport zmtp_put_head


cdef enum:
    PARTS_MAX = 64                      # pieces of memory in one send
    BULK_MIN = 131072                   # bytes of a frame that are worth another thread, but for deliveries of small messages
    BULK_GATHERED_MIN = 294912          # which are smaller than this


cdef struct Gathered:                   # the pieces of one send
    iovec[PARTS_MAX] parts
    uint8_t[PARTS_MAX][16] heads
    int count
    size_t size


cdef inline size_t head_size(size_t size) noexcept nogil:
    return 2 if size < 256 else 9


cdef inline size_t size_on_wire(const Frame* f) noexcept nogil:
    """Bytes of a frame with what ZMTP puts before its parts."""
    cdef size_t size = head_size(f.header_size) + f.header_size
    return size + head_size(f.records_size) + f.records_size if f.records != NULL else size


cdef inline bint is_bulk(const Frame* f) noexcept nogil:
    """Whether enough of a frame is left to be sent by the bulk thread."""
    return size_on_wire(f) >= f.sent + <size_t> (BULK_MIN if f.borrowed != NULL else BULK_GATHERED_MIN)


cdef inline void gather_part(Gathered* g, const void* data, size_t size, size_t* skip) noexcept nogil:
    if skip[0] >= size:
        skip[0] -= size
        return
    g.parts[g.count].iov_base = <uint8_t*> data + skip[0]
    g.parts[g.count].iov_len = size - skip[0]
    g.size += size - skip[0]
    g.count += 1
    skip[0] = 0


cdef inline void gather(Gathered* g, Frame* f, size_t size_max) noexcept nogil:
    """What is left of `f` and of the frames behind it up to a large one, about `size_max` bytes at most."""
    cdef size_t skip = f.sent, left
    cdef uint8_t* head
    g.count = 0
    g.size = 0
    while f != NULL and g.count + 4 <= PARTS_MAX and g.size < size_max and (g.count == 0 or not is_bulk(f)):
        head = g.heads[g.count]
        gather_part(g, head, zmtp_put_head(head, f.header_size, f.records != NULL), &skip)
        gather_part(g, f.header, f.header_size, &skip)
        if f.records != NULL:
            head = g.heads[g.count]
            gather_part(g, head, zmtp_put_head(head, f.records_size, False), &skip)
            gather_part(g, f.records, f.records_size, &skip)
        skip = 0
        f = f.next
    if g.size > size_max and g.count:
        left = min(g.size - size_max, g.parts[g.count - 1].iov_len - 1)
        g.parts[g.count - 1].iov_len -= left
        g.size -= left
