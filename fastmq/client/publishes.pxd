# What a client has published and has no outcome for: gathered in batches, kept as encoded records until the outcome, sent again when asked.
#
# Owns the open publishes' bytes, sequences, the floor and the publisher's window. Rules: no I/O, no clock (`now` is a parameter), no GIL;
# sequences are numbered 1, 2, 3 in the order they are sent; a record is sent in an incarnation only within its window, or alone; nothing
# the broker confirms that was never sent counts. Runs in client processes, under the mutex of the connection.
#
#   batches   head .. send .. tail          a batch is consecutive sequences of one exchange and flags; the last one may still gather
#             |       |       +-- next to make
#             |       +---------- first with records that are not sent in this incarnation
#             +------------------ first with a record that has no outcome
from cpython.ref cimport PyObject
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmq.wire.blocks cimport Blocks
from fastmq.wire.buffer cimport Buffer
from fastmq.wire.zmtp cimport Zmtp


cdef enum:
    BATCH_SIZE_MAX = 65536              # bytes of records above which a batch is complete
    BATCH_RECORDS_MAX = 1000
    WINDOW_BATCHES = 4                  # a batch is at most this part of the window, so that one is on its way while the next fills
    ATTACHED_MIN = 65536                # bytes of records that are sent from where they lie instead of being copied
    BORROWED_MIN = 65536                # bytes of a body that stays where the application has it, which is kept instead
    FAILURES_MAX = 10000                # failures kept for the next flush; above them publishing stops until they are reported
    FAILURE_TEXT_MAX = 1024             # bytes kept of a refusal's text


cdef enum PublishResult:
    PUBLISH_FULL = 0                    # the window is used up: nothing was published
    PUBLISH_NO_MEMORY = 0xffffffffffffffff


cdef struct Batch:
    uint64_t first_seq
    uint64_t sent_ns                    # when a record of it was first sent; 0: never
    Buffer records
    const uint8_t* body                 # of its only record, behind `records`: in `owner`; NULL: all is in `records`
    uint32_t body_size
    PyObject* owner
    Batch* next                         # among those that are done with and still have an owner
    uint8_t* decided                    # a bit for each record that has an outcome; NULL: none has
    uint32_t count
    uint32_t open                       # records without an outcome
    uint32_t sent                       # records at its start that are sent in this incarnation, or had an outcome
    uint32_t sent_size                  # their bytes
    uint8_t flags                       # PublishFlag
    uint8_t exchange_size
    char[256] exchange


cdef struct Publishes:
    Batch** ring                        # room for mask + 1, at index & mask
    uint64_t mask
    uint64_t head
    uint64_t send
    uint64_t tail
    bint gathering                      # the last batch takes more records
    uint64_t next_seq                   # of the next publish
    uint64_t sent_seq_max               # the highest sequence that was ever sent
    uint64_t open_messages              # without an outcome
    uint64_t open_bytes                 # of their batches
    uint64_t unsent_messages            # open and not sent in this incarnation
    uint64_t unsent_bytes
    uint64_t sent_messages              # in this incarnation
    uint64_t sent_bytes
    uint64_t outstanding                # sent in this incarnation and without an outcome
    uint64_t window_messages            # that may be sent in this incarnation, in all
    uint64_t window_bytes
    uint64_t batch_messages             # that are sent whatever is in flight, and that are waited for while the window is full
    uint64_t limit_messages             # that may be open while there is no session: the first window
    uint64_t limit_bytes
    bint ready                          # the session is agreed: batches may be sent
    bint broken                         # memory failed in the middle of something: the connection must be made again
    uint64_t confirmed                  # publishes with success
    uint64_t refused                    # publishes with failure
    uint32_t failures                   # in `failed`: msgpack [sequence, code, text, exchange, routing key, message id or nil] each
    Buffer failed
    Buffer header                       # of the PUBLISH being written
    Batch* attached                     # whose bytes the connection sends from where they lie; NULL: none
    bint copying                        # a large batch does not wait for the attached one: it is copied
    bint blocked                        # a large batch waits until that has been sent
    Blocks blocks                       # for the next batches
    Batch* dropped                      # done with, and with an owner that whoever has the GIL lets go of


cdef void publishes_init(Publishes* p) noexcept nogil
cdef void publishes_free(Publishes* p) noexcept nogil
cdef void publishes_drop(Batch* dropped)                                        # let go of the owners of these, and of themselves; with the GIL
cdef bint publishes_room(Publishes* p, uint64_t size) noexcept nogil            # whether a record of `size` bytes may be published now
cdef bint publishes_wide(Publishes* p, uint64_t size) noexcept nogil            # whether a batch would find room too
cdef uint64_t publishes_add(Publishes* p, const char* exchange, uint8_t exchange_size, uint8_t flags, const char* key, uint8_t key_size,
                            const void* properties, uint32_t properties_size, const void* body, uint32_t body_size,
                            PyObject* owner) noexcept nogil        # of the body, NULL: it is to be copied; with it the GIL is held
cdef uint64_t publishes_floor(Publishes* p) noexcept nogil                      # the lowest sequence without an outcome
cdef uint64_t publishes_sent_up_to(Publishes* p) noexcept nogil                 # all up to here are sent in this incarnation, or have outcomes
cdef void publishes_restart(Publishes* p, uint64_t now, uint64_t age_max_ns) noexcept nogil
cdef void publishes_write(Publishes* p, Zmtp* out, const uint8_t* session, uint64_t incarnation, uint64_t now) noexcept nogil
cdef bint publishes_confirm(Publishes* p, uint64_t first, uint64_t last) noexcept nogil
cdef bint publishes_refuse(Publishes* p, uint64_t first, uint64_t last, const uint8_t* code, uint32_t code_size,
                           const uint8_t* text, uint32_t text_size) noexcept nogil
cdef void publishes_detach(Publishes* p) noexcept nogil                         # nothing is attached any more
cdef void publishes_advance(Publishes* p) noexcept nogil                        # forget leading batches whose records all have outcomes


cdef inline size_t batch_size(const Batch* b) noexcept nogil:
    """Bytes of its records."""
    return b.records.size + b.body_size


cdef inline Batch* publishes_last(Publishes* p) noexcept nogil:
    return p.ring[(p.tail - 1) & p.mask]


cdef inline bint publishes_gathered(Publishes* p) noexcept nogil:
    """Whether enough has gathered to be sent whatever is in flight."""
    return p.unsent_bytes >= BATCH_SIZE_MAX or p.unsent_messages >= p.batch_messages


cdef inline bint publishes_due(Publishes* p) noexcept nogil:
    """Whether what waits is to be sent now: nothing is in flight, or enough has gathered."""
    return p.ready and p.unsent_messages and (p.outstanding == 0 or publishes_gathered(p))
