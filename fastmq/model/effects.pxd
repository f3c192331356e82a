# What a shard wants done: messages to front-ends, gathered in one buffer.
#
# Owns: that buffer. Rules: an effect is never changed once another follows it; outcomes of one session that follow each
# other are one message, adjacent sequences one range. No Python object, no I/O; runs in the worker, without the GIL.
#
#       | EffectHead: frontend, LinkHead | payload, padded to 8 | EffectHead ...
#
# Whoever sends them walks with effects_next and ends with effects_clear.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from fastmq.wire.buffer cimport Buffer, buffer_clear, buffer_extend, buffer_free, buffer_init
from fastmq.wire.link cimport L_OUTCOME, LinkHead, LinkOutcome, LinkRange, LinkRefusal


cdef struct EffectHead:
    uint32_t frontend
    uint32_t waits          # 1: it may leave only when the log has what was written before it for good
    LinkHead head


cdef struct Effects:
    Buffer buffer
    size_t last             # where the last effect begins
    bint is_outcome         # the last effect is an L_OUTCOME, which may grow


cdef inline void effects_init(Effects* effects) noexcept nogil:
    buffer_init(&effects.buffer)
    effects.last = 0
    effects.is_outcome = False


cdef inline void effects_free(Effects* effects) noexcept nogil:
    buffer_free(&effects.buffer)


cdef inline void effects_clear(Effects* effects) noexcept nogil:
    """They have been sent."""
    buffer_clear(&effects.buffer)
    effects.is_outcome = False


cdef inline const EffectHead* effects_next(const Effects* effects, size_t* at, const uint8_t** payload) noexcept nogil:
    """The effect at `at` (0 to begin with), which is then behind it, and its payload; NULL: no more."""
    cdef const EffectHead* found
    if at[0] >= effects.buffer.size:
        return NULL
    found = <const EffectHead*> (effects.buffer.data + at[0])
    payload[0] = effects.buffer.data + at[0] + sizeof(EffectHead)
    at[0] += sizeof(EffectHead) + ((found.head.size + 7) & ~<size_t> 7)
    return found


cdef inline uint8_t* effects_begin(Effects* effects, uint32_t frontend, uint16_t kind, uint16_t shard,
                                   size_t size) noexcept nogil:
    """Where `size` bytes of payload are to be written; NULL (and the buffer's `failed` set) when there is no memory."""
    cdef size_t start = effects.buffer.size
    cdef size_t padded = (size + 7) & ~<size_t> 7
    cdef EffectHead* head = <EffectHead*> buffer_extend(&effects.buffer, sizeof(EffectHead) + padded)
    if head == NULL:
        return NULL
    head.frontend = frontend
    head.waits = 0
    head.head.size = <uint32_t> size
    head.head.kind = kind
    head.head.shard = shard
    if padded != size:
        memset(<uint8_t*> (head + 1) + size, 0, padded - size)
    effects.last = start
    effects.is_outcome = False
    return <uint8_t*> (head + 1)


cdef inline LinkOutcome* effects_outcome(Effects* effects, uint32_t frontend, uint16_t shard,
                                         uint64_t sid, bint waits) noexcept nogil:
    """The outcome at the end of the buffer, if it is this session's, or a new one; NULL when there is no memory."""
    cdef EffectHead* head
    cdef LinkOutcome* outcome
    if effects.is_outcome:
        head = <EffectHead*> (effects.buffer.data + effects.last)
        outcome = <LinkOutcome*> (head + 1)
        if outcome.sid == sid and head.frontend == frontend and head.waits == waits:
            return outcome
    outcome = <LinkOutcome*> effects_begin(effects, frontend, L_OUTCOME, shard, sizeof(LinkOutcome))
    if outcome != NULL:
        outcome.sid = sid
        outcome.ranges = 0
        outcome.refusals = 0
        (<EffectHead*> outcome - 1).waits = waits
        effects.is_outcome = True
    return outcome


cdef inline void* effects_more(Effects* effects, size_t size) noexcept nogil:
    """`size` more bytes, a multiple of 8, at the end of the last effect."""
    cdef void* at = buffer_extend(&effects.buffer, size)
    if at != NULL:
        (<EffectHead*> (effects.buffer.data + effects.last)).head.size += <uint32_t> size
    return at


cdef inline void effects_hold(Effects* effects, uint32_t frontend, uint16_t shard, uint64_t sid, uint64_t first,
                              uint64_t last, bint waits) noexcept nogil:
    """Sequences of a session are held by this shard, or will be when the log has them (`waits`)."""
    cdef LinkOutcome* outcome = effects_outcome(effects, frontend, shard, sid, waits)
    cdef LinkRange* held
    if outcome != NULL and outcome.refusals:                # ranges come before refusals
        effects.is_outcome = False
        outcome = effects_outcome(effects, frontend, shard, sid, waits)
    if outcome == NULL:
        return
    if outcome.ranges:
        held = <LinkRange*> (effects.buffer.data + effects.buffer.size) - 1
        if held.last + 1 == first:
            held.last = last
            return
    held = <LinkRange*> effects_more(effects, sizeof(LinkRange))
    if held != NULL:
        held.first = first
        held.last = last
        outcome = effects_outcome(effects, frontend, shard, sid, waits)     # the buffer may have moved
        outcome.ranges += 1


cdef inline void effects_refuse(Effects* effects, uint32_t frontend, uint16_t shard, uint64_t sid, uint64_t first,
                                uint64_t last, uint32_t code) noexcept nogil:
    """Sequences of a session are refused by this shard, for the reason `code`."""
    cdef LinkOutcome* outcome = effects_outcome(effects, frontend, shard, sid, False)
    cdef LinkRefusal* refused
    if outcome == NULL:
        return
    if outcome.refusals:
        refused = <LinkRefusal*> (effects.buffer.data + effects.buffer.size) - 1
        if refused.last + 1 == first and refused.code == code:
            refused.last = last
            return
    refused = <LinkRefusal*> effects_more(effects, sizeof(LinkRefusal))
    if refused != NULL:
        refused.first = first
        refused.last = last
        refused.code = code
        refused.padding = 0
        outcome = effects_outcome(effects, frontend, shard, sid, False)
        outcome.refusals += 1
