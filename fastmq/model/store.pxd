# The bytes of a shard's messages: chunks, and the names of the exchanges they came through.
#
# Owns: all chunks and names of one shard. A record lies in a chunk exactly as it was published; several chunks belong
# to a queue, one of them (the tail) takes what is published next, so that consecutive messages of a queue are
# consecutive bytes. A chunk goes when its last message goes. A large record has a chunk of its own, whose bytes lie in
# the worker's arena (model/regions.pxd) where there is one. No Python object, no I/O; runs in the worker, without the
# GIL.
#
#   Slot (24 bytes)    a: chunk << 32 | offset       b: size << 32 | SLOT_KEPT | name       c: timestamp_ms
#
#   Chunk              | head | record | record | gone   | record |  free  |
#                              <----------- used ----------------> <- room
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset

from fastmq._core cimport Slot
from fastmq.model.regions cimport Hold, Regions, hold_enter, hold_leave, regions_contain, regions_place
from fastmq.wire.idmap cimport IdMap, idmap_free, idmap_get, idmap_init, idmap_put, idmap_remove
from fastmq.wire.link cimport RECORD_SHARED_MIN


cdef enum:
    CHUNK_SIZE_FIRST = 512          # bytes of a small queue's chunk, its head included
    CHUNK_SIZE_MAX = 65536          # of a busy queue's
    CHUNKS_SPARE_MAX = 4            # chunks of full size that a shard keeps for the next need
    NAME_NONE = 0xffffffff          # no memory for a name
    NAMES_MAX = 0x7fffffff          # of one shard


cdef extern from *:
    """
    #define SLOT_KEPT 0x80000000u
    """
    const uint32_t SLOT_KEPT        # in `b`: the log has the message, a persistent one in a durable queue


cdef struct Chunk:
    uint32_t index                  # its place in Store.places
    uint32_t used                   # bytes written
    uint32_t room                   # bytes behind this head
    uint32_t messages               # that still lie here
    uint32_t live                   # bytes of those
    uint32_t is_tail                # some queue writes here: `used` may grow
    uint8_t* data                   # behind this head, or in the arena
    Hold* hold                      # what keeps it there; NULL: it lies behind this head


cdef struct Name:
    uint8_t* data
    uint64_t uses                   # messages that came through this exchange
    uint64_t hash
    uint32_t size
    uint32_t next                   # 1 + the next name of the same hash, or the next free place; 0: none


cdef struct Names:
    Name* items
    uint32_t count                  # places ever used
    uint32_t room
    uint32_t free                   # 1 + the first free place; 0: none
    uint32_t last                   # the name asked for last: kept even when unused; NAME_NONE: none
    IdMap by_hash                   # hash -> 1 + place


cdef struct Store:
    uint64_t* places                # Chunk* by index, or a free place: 1 + (1 + next free) * 2
    uint32_t count                  # places ever used
    uint32_t room
    uint32_t free                   # 1 + the first free place; 0: none
    uint32_t chunk_size_max         # CHUNK_SIZE_MAX, smaller in tests
    uint32_t spares
    Chunk* spare[CHUNKS_SPARE_MAX]
    uint64_t chunk_bytes            # of all chunks in use, heads included
    uint64_t live_bytes             # of all messages
    Names names
    Regions* regions                # of the worker's arena; NULL: there is none


# ---- slots

cdef inline uint32_t slot_chunk(const Slot* slot) noexcept nogil:
    return <uint32_t> (slot.a >> 32)


cdef inline uint32_t slot_offset(const Slot* slot) noexcept nogil:
    return <uint32_t> slot.a


cdef inline uint32_t slot_size(const Slot* slot) noexcept nogil:
    return <uint32_t> (slot.b >> 32)


cdef inline uint32_t slot_name(const Slot* slot) noexcept nogil:
    return <uint32_t> slot.b & ~SLOT_KEPT


cdef inline bint slot_is_kept(const Slot* slot) noexcept nogil:
    return (slot.b & SLOT_KEPT) != 0


cdef inline uint64_t slot_timestamp_ms(const Slot* slot) noexcept nogil:
    return slot.c


# ---- names

cdef inline uint64_t name_hash(const uint8_t* data, uint32_t size) noexcept nogil:
    """FNV-1a, never 0."""
    cdef uint64_t value = 0xcbf29ce484222325
    cdef uint32_t i
    for i in range(size):
        value = (value ^ data[i]) * <uint64_t> 0x100000001b3
    return value | 1


cdef inline bint name_is(const Name* name, const uint8_t* data, uint32_t size) noexcept nogil:
    return name.size == size and memcmp(name.data, data, size) == 0


cdef inline void name_remove(Names* names, uint32_t place) noexcept nogil:
    cdef Name* name = &names.items[place]
    cdef uint32_t at = <uint32_t> idmap_get(&names.by_hash, name.hash, 0)
    if at == place + 1:
        if name.next:
            idmap_put(&names.by_hash, name.hash, name.next)         # the key is there: needs no memory
        else:
            idmap_remove(&names.by_hash, name.hash)
    else:
        while names.items[at - 1].next != place + 1:
            at = names.items[at - 1].next
        names.items[at - 1].next = name.next
    free(name.data)
    name.data = NULL
    name.next = names.free
    names.free = place + 1


cdef inline uint32_t name_add(Names* names, const uint8_t* data, uint32_t size, uint64_t hash) noexcept nogil:
    cdef uint32_t place, room
    cdef Name* items
    cdef uint8_t* copy
    cdef Name* name
    if names.free == 0 and names.count == names.room:
        if names.count >= NAMES_MAX:
            return NAME_NONE
        room = names.room * 2 if names.room else 4
        items = <Name*> realloc(names.items, room * sizeof(Name))
        if items == NULL:
            return NAME_NONE
        names.items = items
        names.room = room
    copy = <uint8_t*> malloc(size + 1)
    if copy == NULL:
        return NAME_NONE
    place = names.free - 1 if names.free else names.count
    if not idmap_put(&names.by_hash, hash, place + 1):      # a name of the same hash comes behind this one
        free(copy)
        return NAME_NONE
    name = &names.items[place]
    if names.free:
        names.free = name.next
    else:
        names.count += 1
    memcpy(copy, data, size)
    name.data = copy
    name.size = size
    name.hash = hash
    name.uses = 0
    name.next = 0
    return place


cdef inline uint32_t name_take(Names* names, const uint8_t* data, uint32_t size, uint64_t uses) noexcept nogil:
    """The number of a name that `uses` more messages have; NAME_NONE, and nothing changed, when there is no memory."""
    cdef uint32_t place = names.last, old = names.last, head
    cdef uint64_t hash
    if place == NAME_NONE or not name_is(&names.items[place], data, size):
        hash = name_hash(data, size)
        head = <uint32_t> idmap_get(&names.by_hash, hash, 0)
        place = head - 1
        while place != NAME_NONE and not name_is(&names.items[place], data, size):
            place = names.items[place].next - 1
        if place == NAME_NONE:
            place = name_add(names, data, size, hash)
            if place == NAME_NONE:
                return NAME_NONE
            names.items[place].next = head
        names.last = place
        if old != NAME_NONE and names.items[old].uses == 0:
            name_remove(names, old)
    names.items[place].uses += uses
    return place


cdef inline void name_drop(Names* names, uint32_t place) noexcept nogil:
    """One message less has this name."""
    names.items[place].uses -= 1
    if names.items[place].uses == 0 and place != names.last:
        name_remove(names, place)


# ---- chunks

cdef inline void store_init(Store* store) noexcept nogil:
    memset(store, 0, sizeof(Store))
    store.chunk_size_max = CHUNK_SIZE_MAX
    store.names.last = NAME_NONE
    idmap_init(&store.names.by_hash)


cdef inline void store_free(Store* store) noexcept nogil:
    """Give everything back; no slot may be used any more."""
    cdef uint32_t i
    for i in range(store.count):
        if store.places[i] & 1 == 0:
            free((<Chunk*> store.places[i]).hold)
            free(<void*> store.places[i])
    for i in range(store.spares):
        free(store.spare[i])
    for i in range(store.names.count):
        free(store.names.items[i].data)
    free(store.names.items)
    idmap_free(&store.names.by_hash)
    free(store.places)
    store_init(store)


cdef inline Chunk* store_chunk(Store* store, const Slot* slot) noexcept nogil:
    return <Chunk*> store.places[slot.a >> 32]


cdef inline uint8_t* chunk_data(Chunk* chunk) noexcept nogil:
    return chunk.data


cdef inline const uint8_t* store_bytes(Store* store, const Slot* slot) noexcept nogil:
    """A message's record: slot_size bytes, in place until the message is dropped or moved."""
    return chunk_data(store_chunk(store, slot)) + slot_offset(slot)


cdef inline bint store_place(Store* store, Chunk* chunk) noexcept nogil:
    """Give the chunk an index; False when there is no memory."""
    cdef uint64_t* places
    cdef uint32_t room
    if store.free:
        chunk.index = store.free - 1
        store.free = <uint32_t> (store.places[chunk.index] >> 1)
    else:
        if store.count == store.room:
            room = store.room * 2 if store.room else 4
            places = <uint64_t*> realloc(store.places, room * sizeof(uint64_t))
            if places == NULL:
                return False
            store.places = places
            store.room = room
        chunk.index = store.count
        store.count += 1
    store.places[chunk.index] = <uint64_t> chunk
    return True


cdef inline Chunk* store_open(Store* store, uint32_t room) noexcept nogil:
    """An empty chunk of `room` bytes behind the head, which belongs to nobody; NULL when there is no memory."""
    cdef Chunk* chunk
    if room == store.chunk_size_max - sizeof(Chunk) and store.spares:
        store.spares -= 1
        chunk = store.spare[store.spares]
    else:
        chunk = <Chunk*> malloc(sizeof(Chunk) + room)
        if chunk == NULL:
            return NULL
    return chunk if chunk_enter(store, chunk, room, <uint8_t*> (chunk + 1), NULL) else NULL


cdef inline bint chunk_enter(Store* store, Chunk* chunk, uint32_t room, uint8_t* data, Hold* hold) noexcept nogil:
    """Make it an empty chunk of the store; False, and its memory given back, when there is none for that."""
    chunk.used = 0
    chunk.room = room
    chunk.messages = 0
    chunk.live = 0
    chunk.is_tail = 0
    chunk.data = data
    chunk.hold = hold
    if not store_place(store, chunk):
        free(chunk)
        return False
    store.chunk_bytes += sizeof(Chunk) + room
    return True


cdef inline Chunk* store_open_large(Store* store, const uint8_t* record, uint32_t size) noexcept nogil:
    """A chunk in the arena, for one record: where it lies already, or in room for it. NULL: it is to lie elsewhere."""
    cdef uint8_t* data = <uint8_t*> record
    cdef Chunk* chunk
    cdef Hold* hold
    if store.regions == NULL or size < RECORD_SHARED_MIN:
        return NULL
    if not regions_contain(store.regions, record):
        data = regions_place(store.regions, size)
        if data == NULL:
            return NULL
    hold = <Hold*> malloc(sizeof(Hold))
    chunk = <Chunk*> malloc(sizeof(Chunk))
    if hold == NULL or chunk == NULL or not chunk_enter(store, chunk, size, data, hold):
        if hold == NULL:
            free(chunk)
        free(hold)
        return NULL
    hold_enter(store.regions, hold, <uint64_t> (data - store.regions.base), size)
    return chunk


cdef inline uint32_t store_tail_room(Store* store, uint64_t wanted) noexcept nogil:
    """How large a tail is made for a queue that holds, or is about to take, `wanted` bytes."""
    cdef uint64_t size = CHUNK_SIZE_FIRST
    while size < wanted + sizeof(Chunk) and size < store.chunk_size_max:
        size *= 2
    if size > store.chunk_size_max:
        size = store.chunk_size_max
    return <uint32_t> (size - sizeof(Chunk))


cdef inline uint32_t store_large(Store* store) noexcept nogil:
    """A record of more bytes than this has a chunk of its own: a tail is left with at most a quarter unused."""
    return store.chunk_size_max // 4


cdef inline void store_close(Store* store, Chunk* chunk) noexcept nogil:
    """Nothing lies in the chunk any more."""
    store.places[chunk.index] = (<uint64_t> store.free << 1) | 1
    store.free = chunk.index + 1
    store.chunk_bytes -= sizeof(Chunk) + chunk.room
    if chunk.hold != NULL:
        hold_leave(store.regions, chunk.hold)
        free(chunk.hold)
        free(chunk)
    elif chunk.room == store.chunk_size_max - sizeof(Chunk) and store.spares < CHUNKS_SPARE_MAX:
        store.spare[store.spares] = chunk
        store.spares += 1
    else:
        free(chunk)


cdef inline void tail_detach(Store* store, Chunk** tail) noexcept nogil:
    """The queue writes into this tail no more."""
    cdef Chunk* chunk = tail[0]
    if chunk != NULL:
        chunk.is_tail = 0
        tail[0] = NULL
        if chunk.messages == 0:
            store_close(store, chunk)


cdef inline bint tail_open(Store* store, Chunk** tail, uint64_t wanted) noexcept nogil:
    """A fresh tail for a queue; False when there is no memory."""
    tail_detach(store, tail)
    cdef Chunk* chunk = store_open(store, store_tail_room(store, wanted))
    if chunk == NULL:
        return False
    chunk.is_tail = 1
    tail[0] = chunk
    return True


cdef inline Chunk* store_room_for(Store* store, Chunk** tail, uint32_t size, uint64_t wanted) noexcept nogil:
    """The chunk into which a record of `size` bytes goes next, at `used`: the tail or one of its own; NULL when there
    is no memory."""
    if size > store_large(store):
        return store_open(store, size)
    if tail[0] == NULL or tail[0].room - tail[0].used < size:
        if not tail_open(store, tail, wanted if wanted > size else size):
            return NULL
    return tail[0]


cdef inline void store_leave(Store* store, Chunk** tail, const Slot* slot) noexcept nogil:
    """The slot's bytes are used no more. `tail` is that of the slot's queue, or NULL where the queue has gone."""
    cdef Chunk* chunk = store_chunk(store, slot)
    store.live_bytes -= slot_size(slot)
    chunk.live -= slot_size(slot)
    chunk.messages -= 1
    if chunk.messages == 0:
        if chunk.is_tail:               # an idle queue holds no chunk
            tail[0] = NULL
        store_close(store, chunk)


cdef inline void store_drop(Store* store, Chunk** tail, const Slot* slot) noexcept nogil:
    """The message is no more."""
    name_drop(&store.names, slot_name(slot))
    store_leave(store, tail, slot)


cdef inline bint chunk_is_sparse(const Chunk* chunk) noexcept nogil:
    """Whether less than half of it is messages: then they are better copied out."""
    return chunk.live * 2 < chunk.room


cdef inline bint store_move(Store* store, Chunk** tail, Slot* slot, uint64_t wanted) noexcept nogil:
    """Copy a message out of its chunk into its queue's tail and change the slot; False, and nothing changed, without
    memory."""
    cdef Chunk* source = store_chunk(store, slot)
    cdef uint32_t size = slot_size(slot)
    cdef Slot old = slot[0]
    cdef Chunk* target
    if source == tail[0]:
        source.is_tail = 0
        tail[0] = NULL
    target = store_room_for(store, tail, size, wanted)
    if target == NULL:
        return False
    memcpy(chunk_data(target) + target.used, store_bytes(store, slot), size)
    slot.a = (<uint64_t> target.index << 32) | target.used
    target.used += size
    target.live += size
    target.messages += 1
    store.live_bytes += size
    store_leave(store, tail, &old)
    return True
