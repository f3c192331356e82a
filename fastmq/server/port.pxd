# A worker's way to one front-end: its link, and what is to be sent through it.
#
# Owns: the three Outgoing. Rules: deliveries leave in the turn that made them; outcomes leave when the log has what they wait for and no ring
# is full, and grow in place until then. No Python object but the link; in workers, without the GIL.
#
#     outcome --waits for the log--> filling --submit--> flying --durable--> outgoing --room in the ring--> link
#             --does not------------------------------------------------->
from cpython.ref cimport PyObject
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmq.model.regions cimport UNIT_COLD, UNIT_WARM, Region, Regions, regions_take
from fastmq.model.shard cimport Shard
from fastmq.net.ring cimport Link
from fastmq.server.outgoing cimport (
    Outgoing, Parcel, outgoing_free, outgoing_init, outgoing_leave, parcel_count_names, parcel_delivery_size, parcel_finish_outcome,
    parcel_has_deliveries, parcel_has_outcome, parcel_write_delivery, parcel_write_outcome,
)
from fastmq.wire.buffer cimport Buffer, buffer_extend, buffer_free, buffer_init
from fastmq.wire.limits cimport SHARDS_MAX
from fastmq.wire.link cimport L_DELIVER, L_OUTCOME, L_REGION, L_REPLY, LinkRegion, LinkReply


cdef struct Port:
    PyObject* link              # Link, borrowed from Workshop.links; NULL: the front-end is not there
    Outgoing outgoing           # what leaves with this turn, or when the ring has room
    Outgoing filling            # outcomes that wait for the log and have no position to wait for yet,
    Outgoing flying             # and those that wait for one
    int lent                    # regions of the arena that it has


cdef inline void port_init(Port* port) noexcept nogil:
    outgoing_init(&port.outgoing)
    outgoing_init(&port.filling)
    outgoing_init(&port.flying)


cdef inline void port_free(Port* port) noexcept nogil:
    """Forget what was to be sent."""
    outgoing_free(&port.outgoing)
    outgoing_free(&port.filling)
    outgoing_free(&port.flying)
    port_init(port)


cdef inline bint port_send_delivery(Port* port, Parcel* parcel) noexcept nogil:
    """Send the deliveries of one parcel; False: no memory."""
    cdef uint8_t* at
    parcel_count_names(parcel)
    at = (<Link> port.link).begin(L_DELIVER, 0, parcel_delivery_size(parcel))
    if at == NULL:
        return False
    parcel_write_delivery(&port.outgoing, parcel, at)
    (<Link> port.link).commit()
    return True


cdef inline bint port_send_deliveries(Port* port) noexcept nogil:
    """Send the deliveries of all parcels; False: no memory."""
    cdef Parcel* before = NULL
    cdef Parcel* parcel = port.outgoing.first
    while parcel != NULL and port.outgoing.waiting:
        if parcel_has_deliveries(parcel) and not port_send_delivery(port, parcel):
            return False
        if parcel_has_outcome(parcel):
            before = parcel
        else:
            outgoing_leave(&port.outgoing, before, parcel)
        parcel = before.next if before != NULL else port.outgoing.first
    return True


cdef inline bint port_send_outcomes(Port* port) noexcept nogil:
    """Send outcomes until a ring is full; False: no memory."""
    cdef Parcel* before = NULL
    cdef Parcel* parcel = port.outgoing.first
    cdef uint8_t* at
    cdef size_t size
    while parcel != NULL and (<Link> port.link).waiting() == 0:
        if parcel_has_outcome(parcel):
            size = parcel_finish_outcome(parcel)
            at = (<Link> port.link).begin(L_OUTCOME, 0, size) if size else NULL
            if at == NULL:
                return False
            parcel_write_outcome(parcel, at)
            (<Link> port.link).commit()
        if parcel_has_deliveries(parcel):
            before = parcel
        else:
            outgoing_leave(&port.outgoing, before, parcel)
        parcel = before.next if before != NULL else port.outgoing.first
    return True


cdef inline int port_lend(Port* port, Regions* regions, uint32_t frontend, bint is_warm) noexcept nogil:
    """Lend the front-end a region of the arena to write into; 1, or 0: there is none, or -1: no memory."""
    cdef Region* region = regions_take(regions, regions.unit_size, frontend, UNIT_WARM if is_warm else UNIT_COLD)
    cdef LinkRegion told
    if region == NULL:
        return 0
    port.lent += 1
    told.offset = region.offset
    told.size = region.units * regions.unit_size
    told.is_warm = region.is_warm
    told.padding = 0
    return 1 if (<Link> port.link).add(L_REGION, 0, &told, sizeof(told)) == 0 else -1


cdef inline bint port_send_counts(Port* port, PyObject** shard_of, uint64_t token) noexcept nogil:
    """Answer L_SHARD_COUNTS: all queues of these shards (SHARDS_MAX, NULL: none); False: no memory."""
    cdef Buffer counts
    cdef LinkReply* reply
    cdef bint sent = False
    cdef int i
    buffer_init(&counts)
    buffer_extend(&counts, sizeof(LinkReply))
    for i in range(SHARDS_MAX):
        if shard_of[i] != NULL:
            (<Shard> shard_of[i]).counts(&counts)
    if not counts.failed:
        reply = <LinkReply*> counts.data
        reply.token = token
        reply.code = 0
        reply.size = <uint32_t> (counts.size - sizeof(LinkReply))
        sent = (<Link> port.link).add(L_REPLY, 0, counts.data, counts.size) == 0
    buffer_free(&counts)
    return sent
