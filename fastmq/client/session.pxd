# One session of a client with a broker, and what the client says in it: the native protocol (docs/protocol.md) without I/O.
#
# Owns the five numbers as the client knows them, the open publishes, requests, consumers and settlements. Rules: no I/O, no clock (`now` is
# nanoseconds of any steady clock), no GIL on the way of a message; what is open is sent again after every new incarnation, in order, new
# publishes behind it; what is said to no session is kept for the next one. Runs in client processes, under its connection's mutex.
#
#   DOWN --start--> HANDSHAKE --ZMTP agreed--> GREETED (HELLO sent) --WELCOME--> UP --CLOSING--> LEAVING      any --stop--> DOWN
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmq.client.deliveries cimport ConsumerState, Run, RunHome, Settles
from fastmq.client.peer cimport Peer
from fastmq.client.publishes cimport Publishes
from fastmq.client.requests cimport Request, Requests
from fastmq.wire.buffer cimport Buffer
from fastmq.wire.idmap cimport IdMap


cdef enum:
    STALE_HELLOS_MAX = 16                   # HELLOs on one connection
    AGE_MAX_NS = 3600000000000              # of a publish that is sent again: shards forget publishers after an hour
    CONSUME_RETRY_NS = 50000000             # between CONSUMEs that are answered `unavailable`
    HEARTBEAT_S = 0                         # this connection sends no PING: the broker does, and its silence is noticed
    MESSAGES_HELD_MAX = 65535


cpdef enum Phase:
    PHASE_DOWN = 0
    PHASE_HANDSHAKE = 1
    PHASE_GREETED = 2
    PHASE_UP = 3
    PHASE_LEAVING = 4                       # the broker is stopping: settle, but publish and ask nothing new


cdef class Session(Peer):
    cdef int phase                          # Phase
    cdef uint8_t[16] session                # public half, proof
    cdef bint session_known
    cdef uint64_t incarnation               # of the last HELLO sent or RESEND received
    cdef int hellos                         # on this connection
    cdef Buffer vhost
    cdef Buffer name
    cdef Buffer header                      # of the message being written
    cdef Buffer endpoint                    # where live events are, as WELCOME says
    cdef Publishes publishes
    cdef Requests requests
    cdef Settles settles
    cdef RunHome* run_home                  # where small runs are put; NULL: in none yet
    cdef IdMap consumers                    # number -> ConsumerState*
    cdef uint32_t next_consumer
    cdef uint64_t consume_ns                # no CONSUME is to be repeated before that; 0: none is
    cdef uint32_t settle_due                # settled messages of one shard that make a SETTLE due: half of the smallest prefetch
    cdef public uint64_t welcomes           # accepted HELLOs
    cdef public uint64_t sessions           # sessions begun
    cdef public uint64_t stale_settles      # settlements of messages from before a break: they did nothing
    cdef public uint64_t strange            # messages of the broker that were passed over

    # what the application does; `flush` puts what waits into z.out
    cdef void flush(self, uint64_t now) noexcept nogil
    cdef void flush_before(self, uint64_t now) noexcept nogil       # what is written to z.out next comes behind all that was published
    cdef bint flush_due(self, uint64_t now) noexcept nogil
    cdef void flush_settles(self) noexcept nogil
    cdef bint settle(self, uint32_t shard, uint64_t epoch, uint64_t n, int action, uint64_t generation) noexcept nogil  # True: a SETTLE is due
    cdef Request* ask(self, uint32_t verb) noexcept nogil           # the caller writes the fields, then calls asked
    cdef void asked(self, Request* request, uint64_t now) noexcept nogil
    cdef void forget(self, uint64_t number) noexcept nogil          # nobody waits for this answer any more
    cdef ConsumerState* consumer(self, uint32_t number) noexcept nogil
    cdef ConsumerState* consume(self, const char* queue, size_t queue_size, uint32_t window_messages, uint64_t window_bytes,
                                bint auto_ack, uint64_t now) noexcept nogil         # NULL: no memory
    cdef Run* take_run(self, ConsumerState* c) noexcept nogil
    cdef void free_run(self, Run* run) noexcept nogil               # its block is used again
    cdef void release_run(self, Run* run) noexcept nogil            # what of it was not handed out goes back unseen; it is freed
    cdef void close_consumer(self, ConsumerState* c, uint64_t now) noexcept nogil
    cdef void drop_consumer(self, ConsumerState* c, uint64_t now) noexcept nogil    # no object points to it any more
    cdef void bye(self, uint64_t now) noexcept nogil

    cdef void say_hello(self, uint64_t now) noexcept nogil
    cdef void consume_at(self, uint64_t when) noexcept nogil        # a CONSUME is to be repeated
    cdef void consume_again(self, ConsumerState* c, uint64_t now) noexcept nogil
    cdef void set_settle_due(self) noexcept nogil
    cdef void sweep_consumers(self) noexcept nogil
