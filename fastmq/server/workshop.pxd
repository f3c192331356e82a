# What a worker holds, without I/O but its links: its shards, on worker 0 the topology's shard T, the log, a link for each front-end.
#
# The hot messages are the structs of wire/link.pxd. Those of the topology carry msgpack, and are defined here:
#
#   L_TOPOLOGY, to worker 0:  LinkToken, then one msgpack array. Its first element is a number for a request, a str for a notice.
#     request   [verb, sid, vhost, fields...]   verb: DECLARE_EXCHANGE, DELETE_EXCHANGE, DECLARE_QUEUE, DELETE_QUEUE, BIND, UNBIND; the
#                                               fields as in docs/protocol.md, without the request number and what follows the fields
#               -> L_RECORD for each record it made, to every front-end, then L_REPLY to the one that asked: LinkReply{token, code} and
#                  msgpack: with code OK the result of TopologyShard.request ({"id", "name", "shard"} of a queue declared or deleted,
#                  {"id", "name"} of an exchange, nil), with any other code a sentence (str)
#     notices   ["claim", sid]                  the session lives at this front-end (it said HELLO)            token 0, no answer;
#               ["release", sid]                its connection has ended: resume_s begins                      what they delete
#               ["forget", sid]                 it said BYE                                                    comes as L_RECORD
#               ["consumed", queue]             an auto-delete queue has a consumer through this front-end
#               ["unused", queue]               L_UNUSED came for this queue
#   L_HANDBACK, to worker 0:  msgpack [number, records] as Topology.snapshot() gives it; [0, []] from a front-end that knows nothing. Sent
#                             once on each new link to worker 0, after its L_SNAPSHOT came, and after the notices "claim" and "consumed" for
#                             all sessions with exclusive queues and all auto-delete queues with consumers at this front-end.
#   L_SNAPSHOT, from worker 0: msgpack [number, records]: first of all on a new link; again when T has become ready, or has merged. Number 0:
#                             T waits for handbacks. A front-end takes over one whose number is above its own.
#   L_RECORD, from worker 0:  msgpack [number, kind, fields...]: a record (model/topology.py), in ascending order; one not above a front-end's
#                             number is in the snapshot that it has taken over already.
#
# L_SHARD_COUNTS is answered by one L_REPLY: LinkReply and LinkCounts[] of all queues of all shards of the worker.
from cpython.ref cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from fastmq.model.effects cimport EffectHead
from fastmq.model.shard cimport Shard
from fastmq.server.checkpointer cimport Checkpointer
from fastmq.server.fifo cimport Fifo
from fastmq.server.lender cimport Lender
from fastmq.server.port cimport Port
from fastmq.storage.log cimport Log
from fastmq.wire.buffer cimport Buffer
from fastmq.wire.limits cimport SHARDS_MAX
from fastmq.wire.link cimport LinkHead, LinkOutcome


cdef enum:
    FRONTENDS_MAX = 8           # of one broker


cdef class Workshop:
    cdef readonly bint failed       # it is of no more use: `check` raises why
    cdef object error               # what Python code raised in a turn
    cdef readonly list shards       # Shard, by number; None: another worker's
    cdef readonly object topology   # TopologyShard, None but on worker 0
    cdef readonly object desk       # TopologyDesk, like it
    cdef readonly Log log
    cdef list links                 # Link by front-end, None
    cdef PyObject* shard_of[SHARDS_MAX]
    cdef Port[FRONTENDS_MAX] ports
    cdef Lender lender              # of the arena
    cdef Fifo touched               # something has happened to them: effects are to be collected, then they are pumped
    cdef Fifo eager                 # pump has more to do
    cdef Fifo held                  # deliveries in parcels point into their effects
    cdef size_t held_size           # bytes of those effects and of the records that they point to
    cdef Buffer queues              # of the decision in hand
    cdef bint outcomes_wait         # outcomes of the turn before found no room: no delivery is made before they have left
    cdef readonly uint64_t handled  # messages from front-ends
    cdef bint keeps                 # the log does
    cdef Checkpointer checkpointer  # None: the log keeps nothing
    cdef bint full                  # it has no room, as shards and T know it
    cdef uint64_t durable           # log position up to which outcomes have been let go
    cdef bint log_is_urgent         # somebody waits for what fills
    cdef bint filling_waits         # outcomes do
    cdef bint desk_waits            # somebody at the desk does
    cdef uint64_t urgent_handled    # `handled` when somebody waited for the log before
    cdef uint64_t flying_position   # what those in `flying` wait for
    cdef readonly int64_t log_due_ns    # when what fills is given to it although nobody does; 0: nothing fills, or somebody waits
    cdef int64_t now_ns
    cdef int64_t now_ms

    cdef bint turn(self, int64_t now_ns, int64_t now_ms) noexcept nogil
    cdef bint prepare_sleep(self) noexcept nogil
    cdef void awake(self) noexcept nogil
    # private
    cdef bint read_links(self) noexcept nogil
    cdef void handle(self, uint32_t frontend, const LinkHead* head, const uint8_t* payload) noexcept nogil
    cdef void publish(self, uint32_t frontend, const uint8_t* payload) noexcept nogil
    cdef void collect_outcome(self, uint32_t shard) noexcept nogil
    cdef void add_outcome(self, const EffectHead* effect, const LinkOutcome* outcome) noexcept nogil
    cdef void keep(self, Shard shard) noexcept nogil
    cdef void submit_log(self) noexcept nogil
    cdef void write_log_here(self) noexcept nogil
    cdef void hear_log(self) noexcept nogil
    cdef void fly(self) noexcept nogil
    cdef void land(self) noexcept nogil
    cdef void tell_full(self) noexcept nogil
    cdef void tell_desk(self) noexcept with gil
    cdef void heed_desk(self)
    cdef bint owes_log(self) noexcept nogil
    cdef void collect(self, uint32_t shard) noexcept nogil
    cdef void deliver(self, Port* port, const uint8_t* payload) noexcept nogil
    cdef void say(self, const EffectHead* effect, const uint8_t* payload) noexcept nogil
    cdef bint pump(self) noexcept nogil
    cdef bint is_congested(self) noexcept nogil
    cdef bint owes_outcomes(self) noexcept nogil
    cdef void send_deliveries(self) noexcept nogil
    cdef void send_outcomes(self) noexcept nogil
    cdef void send(self) noexcept nogil
    cdef void fail(self) noexcept nogil
    cdef void topology_message(self, uint32_t frontend, uint16_t kind, const uint8_t* payload, size_t size) noexcept with gil
