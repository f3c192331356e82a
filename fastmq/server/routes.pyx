"""Where a publish goes, remembered for each (vhost, exchange, routing key).

Owns: the routes. Rules: a route holds until the topology's number or the set of live patterns changes; then all of them are dropped, and made
anew as they are asked for. Clients choose the keys, so the hash is keyed (SipHash-1-3) and the cache is bounded in bytes: when it is full it
is dropped. A pointer to a route is void after `add` or `clear`. Runs in front-ends.
"""
import os

cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy


cdef enum:
    BUCKETS_MIN = 1024
    ROUTES_SIZE_MAX = 64 * 1024 * 1024


cdef struct Sip:
    uint64_t v0
    uint64_t v1
    uint64_t v2
    uint64_t v3


cdef inline uint64_t rotate(uint64_t x, int bits) noexcept nogil:
    return (x << bits) | (x >> (64 - bits))


cdef inline void sip_round(Sip* s) noexcept nogil:
    s.v0 += s.v1
    s.v1 = rotate(s.v1, 13) ^ s.v0
    s.v0 = rotate(s.v0, 32)
    s.v2 += s.v3
    s.v3 = rotate(s.v3, 16) ^ s.v2
    s.v0 += s.v3
    s.v3 = rotate(s.v3, 21) ^ s.v0
    s.v2 += s.v1
    s.v1 = rotate(s.v1, 17) ^ s.v2
    s.v2 = rotate(s.v2, 32)


cdef inline void sip_word(Sip* s, uint64_t word) noexcept nogil:
    s.v3 ^= word
    sip_round(s)
    s.v0 ^= word


cdef inline void sip_bytes(Sip* s, const uint8_t* data, uint32_t size) noexcept nogil:
    """Words of 8 bytes; the last one has the size in its place, so that parts that follow each other cannot be shifted."""
    cdef uint64_t word
    cdef uint32_t i = 0
    while size - i >= 8:
        memcpy(&word, data + i, 8)
        sip_word(s, word)
        i += 8
    word = 0
    if size - i:
        memcpy(&word, data + i, size - i)
    sip_word(s, word | (<uint64_t> (size & 0xff) << 56))


@cython.final
cdef class RouteCache:
    """An empty cache of at most `size_max` bytes."""

    def __cinit__(self, size_t size_max=ROUTES_SIZE_MAX):
        self.mask = BUCKETS_MIN - 1
        self.buckets = <Route**> calloc(BUCKETS_MIN, sizeof(Route*))
        if self.buckets == NULL:
            raise MemoryError
        self.size_max = size_max
        seed = os.urandom(16)
        memcpy(self.seed, <const char*> seed, 16)

    def __dealloc__(self):
        if self.buckets != NULL:
            self.clear()
            free(self.buckets)

    cdef uint64_t hash_of(
        self, uint32_t vhost, const uint8_t* exchange, uint32_t exchange_size, const uint8_t* key, uint32_t key_size
    ) noexcept nogil:
        cdef Sip s
        s.v0 = self.seed[0] ^ <uint64_t> 0x736f6d6570736575
        s.v1 = self.seed[1] ^ <uint64_t> 0x646f72616e646f6d
        s.v2 = self.seed[0] ^ <uint64_t> 0x6c7967656e657261
        s.v3 = self.seed[1] ^ <uint64_t> 0x7465646279746573
        sip_word(&s, vhost)
        sip_bytes(&s, exchange, exchange_size)
        sip_bytes(&s, key, key_size)
        s.v2 ^= 0xff
        sip_round(&s)
        sip_round(&s)
        sip_round(&s)
        return s.v0 ^ s.v1 ^ s.v2 ^ s.v3

    cdef Route* find(
        self, uint32_t vhost, const uint8_t* exchange, uint32_t exchange_size, const uint8_t* key, uint32_t key_size
    ) noexcept nogil:
        """The route, or NULL when it is not known."""
        cdef uint64_t hash = self.hash_of(vhost, exchange, exchange_size, key, key_size)
        cdef Route* route = self.buckets[hash & self.mask]
        while route != NULL:
            if (
                route.hash == hash and route.vhost == vhost and route.exchange_size == exchange_size and route.key_size == key_size
                and memcmp(route.name, exchange, exchange_size) == 0 and memcmp(route.name + exchange_size, key, key_size) == 0
            ):
                return route
            route = route.next
        return NULL

    cdef Route* add(
        self, uint32_t vhost, const uint8_t* exchange, uint32_t exchange_size, const uint8_t* key, uint32_t key_size,
        uint32_t code, list destinations, list patterns
    ) except NULL:
        """Remember a route: destinations are (worker, shard, queue), patterns indexes. All other routes are void if the cache was full."""
        cdef size_t size = (
            sizeof(Route) + len(destinations) * sizeof(Destination) + len(patterns) * sizeof(uint32_t) + exchange_size + key_size
        )
        cdef Route* route
        cdef size_t i
        if self.size + size > self.size_max:
            self.clear()
        if self.count > self.mask:
            self._grow()
        route = <Route*> calloc(1, size)
        if route == NULL:
            raise MemoryError
        route.hash = self.hash_of(vhost, exchange, exchange_size, key, key_size)
        route.vhost = vhost
        route.exchange_size = exchange_size
        route.key_size = key_size
        route.code = code
        route.count = len(destinations)
        route.patterns_count = len(patterns)
        route.destinations = <Destination*> (route + 1)
        route.patterns = <uint32_t*> (route.destinations + route.count)
        route.name = <uint8_t*> (route.patterns + route.patterns_count)
        for i, (worker, shard, queue) in enumerate(sorted(destinations)):
            route.destinations[i].queue = queue
            route.destinations[i].shard = shard
            route.destinations[i].worker = worker
            route.workers |= <uint32_t> 1 << <int> worker
        for i, pattern in enumerate(patterns):
            route.patterns[i] = pattern
        memcpy(route.name, exchange, exchange_size)
        memcpy(route.name + exchange_size, key, key_size)
        route.next = self.buckets[route.hash & self.mask]
        self.buckets[route.hash & self.mask] = route
        self.count += 1
        self.size += size
        return route

    def _grow(self) -> None:
        cdef size_t room = (self.mask + 1) * 4, i
        cdef Route** buckets = <Route**> calloc(room, sizeof(Route*))
        cdef Route* route
        cdef Route* next
        if buckets == NULL:
            raise MemoryError
        for i in range(self.mask + 1):
            route = self.buckets[i]
            while route != NULL:
                next = route.next
                route.next = buckets[route.hash & (room - 1)]
                buckets[route.hash & (room - 1)] = route
                route = next
        free(self.buckets)
        self.buckets = buckets
        self.mask = room - 1

    cdef void clear(self) noexcept nogil:
        """Forget all routes."""
        cdef size_t i
        cdef Route* route
        cdef Route* next
        if self.count == 0:
            return
        for i in range(self.mask + 1):
            route = self.buckets[i]
            self.buckets[i] = NULL
            while route != NULL:
                next = route.next
                free(route)
                route = next
        self.count = 0
        self.size = 0

    # ---- for tests

    def put(self, bytes exchange, bytes key, code: int, destinations: list, patterns: list) -> None:
        """`add` for Python callers, in vhost 0."""
        self.add(0, <const uint8_t*> <const char*> exchange, len(exchange), <const uint8_t*> <const char*> key, len(key),
                 code, destinations, patterns)

    def get(self, bytes exchange, bytes key) -> tuple | None:
        """(code, [(worker, shard, queue)...], [pattern...], bits of the workers), or None."""
        cdef Route* route = self.find(
            0, <const uint8_t*> <const char*> exchange, len(exchange), <const uint8_t*> <const char*> key, len(key))
        cdef uint32_t i
        if route == NULL:
            return None
        places = [(route.destinations[i].worker, route.destinations[i].shard, route.destinations[i].queue) for i in range(route.count)]
        return route.code, places, [route.patterns[i] for i in range(route.patterns_count)], route.workers

    def drop(self) -> None:
        """`clear` for Python callers."""
        self.clear()
