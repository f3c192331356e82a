"""Live subscriptions as the main thread of a front-end sees them: which patterns are active, and the events for them.

Owns: the active patterns with their counts, and its end of the link to the XPUB thread (server/events.pyx). Rules: a record goes out once for
each distinct active pattern that matches it; one turn makes one event for each pattern, or several of at most EVENT_SIZE_MAX (a record is
never cut); what the XPUB thread cannot take now is dropped and counted, and n goes on, so that subscribers see the gap. Runs in front-ends.

A subscription is `vhost NUL exchange NUL kind NUL pattern NUL`, kind `e` (exact) or `t` (topic).
"""
cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset

from fastmq.net.ring cimport Link
from fastmq.wire.buffer cimport buffer_add, buffer_clear, buffer_free, buffer_init
from fastmq.wire.limits cimport EVENT_SIZE_MAX, NAME_SIZE_MAX
from fastmq.wire.msgpack cimport mp_array, mp_uint

from fastmq._core import TopicTrie


cdef enum:
    JOINED_MAX = 4096                   # bytes of records from which on an event leaves by itself


SUBSCRIPTION_SIZE_MAX = 3 * NAME_SIZE_MAX + 5
WAITING_MAX = 8 * 1024 * 1024           # bytes that may wait for the XPUB thread beside what is in the ring


def make_subscription(vhost: str, exchange: str, kind: str, pattern: str) -> bytes:
    """The bytes to which a SUB socket subscribes."""
    return f"{vhost}\0{exchange}\0{kind}\0{pattern}\0".encode()


def split_subscription(bytes subscription) -> tuple[bytes, bytes, bytes, bytes] | None:
    """(vhost, exchange, kind, pattern), or None if a subscription is not well formed."""
    parts = subscription.split(b"\0")
    if len(parts) != 5 or parts[4] or parts[2] not in (b"e", b"t") or len(subscription) > SUBSCRIPTION_SIZE_MAX:
        return None
    vhost, exchange, kind, pattern = parts[:4]
    if not vhost or max(len(vhost), len(exchange), len(pattern)) > NAME_SIZE_MAX:
        return None
    try:
        subscription.decode()
    except UnicodeDecodeError:
        return None
    return vhost, exchange, kind, pattern


@cython.final
cdef class LivePatterns:
    """No pattern yet. `epoch`: this process's, stamps its events. `link`: to the XPUB thread."""

    def __cinit__(self, uint64_t epoch, int patterns_max, Link link=None, uint64_t waiting_max=WAITING_MAX):
        buffer_init(&self.touched)
        buffer_init(&self.scratch)
        buffer_init(&self.joining)
        self.epoch = epoch
        self.patterns_max = patterns_max
        self.link = link
        self.waiting_max = waiting_max
        self._numbers = {}
        self._retired = {}
        self._free = []
        self._exact = {}
        self._topic = {}

    def __dealloc__(self):
        cdef uint32_t i
        for i in range(self.room):
            free(self.table[i].subscription)
            buffer_free(&self.table[i].spans)
            buffer_free(&self.table[i].joined)
        free(self.table)
        buffer_free(&self.joining)
        buffer_free(&self.touched)
        buffer_free(&self.scratch)

    def __len__(self):
        return len(self._numbers)

    def __contains__(self, bytes subscription):
        return subscription in self._numbers

    # ---- the set of active patterns

    def activate(self, bytes subscription) -> bool:
        """A well-formed subscription has one subscriber more: tell its subscribers where they stand. True if it is a new pattern."""
        cdef uint32_t number
        fresh = subscription not in self._numbers
        if fresh:
            number = self._place()
            self.table[number].subscription = <uint8_t*> malloc(len(subscription))
            if self.table[number].subscription == NULL:
                self._free.append(number)
                raise MemoryError
            memcpy(self.table[number].subscription, <const char*> subscription, len(subscription))
            self.table[number].subscription_size = len(subscription)
            self.table[number].n = self._retired.pop(subscription, 1)
            self._numbers[subscription] = number
            vhost, exchange, kind, pattern = split_subscription(subscription)
            if kind == b"e":
                self._exact[vhost, exchange, pattern] = number
            else:
                self._topic.setdefault((vhost, exchange), TopicTrie()).add(pattern, number)
        number = self._numbers[subscription]
        self.send_joined(&self.table[number])
        self.send_event(&self.table[number], NULL, 0, 0, NULL)
        return fresh

    def deactivate(self, bytes subscription) -> bool:
        """A pattern has no subscriber any more. True if it was active."""
        number = self._numbers.pop(subscription, None)
        if number is None:
            return False
        vhost, exchange, kind, pattern = split_subscription(subscription)
        if kind == b"e":
            del self._exact[vhost, exchange, pattern]
        else:
            trie = self._topic[vhost, exchange]
            trie.remove(pattern, number)
            if not len(trie):
                del self._topic[vhost, exchange]
        cdef uint32_t place = number
        self._retired[subscription] = self.table[place].n
        if len(self._retired) > self.patterns_max:
            del self._retired[next(iter(self._retired))]
        free(self.table[place].subscription)
        self.table[place].subscription = NULL
        buffer_free(&self.table[place].spans)
        buffer_free(&self.table[place].joined)
        self.table[place].joined_count = 0
        self._free.append(place)
        return True

    def match(self, bytes vhost, bytes exchange, bytes key) -> list[int]:
        """The active patterns that a message matches."""
        found = []
        if not self._numbers:
            return found
        trie = self._topic.get((vhost, exchange))
        if trie is not None:
            found = trie.match(key)
        exact = self._exact.get((vhost, exchange, key))
        if exact is not None:
            found.append(exact)
        return found

    cdef uint32_t _place(self) except? 0xffffffff:
        """A free place of the table."""
        cdef Pattern* table
        cdef uint32_t room
        if not self._free:
            room = max(16, self.room * 2)
            table = <Pattern*> realloc(self.table, room * sizeof(Pattern))
            if table == NULL:
                raise MemoryError
            memset(table + self.room, 0, (room - self.room) * sizeof(Pattern))
            self.table = table
            self._free.extend(range(self.room, room))
            self.room = room
        return self._free.pop()

    # ---- events

    cdef bint add_span(self, uint32_t pattern, const Span* span) noexcept nogil:
        """These records of the batch in hand match the pattern; False when there is no memory."""
        cdef Pattern* p = &self.table[pattern]
        cdef Span* last
        if not p.touched:
            p.touched = True
            buffer_clear(&p.spans)
            buffer_add(&self.touched, &pattern, sizeof(uint32_t))
        elif p.spans.size:
            last = <Span*> (p.spans.data + p.spans.size) - 1
            if last.index + last.count == span.index and last.offset + last.size == span.offset:
                last.count += span.count
                last.size += span.size
                return True
        buffer_add(&p.spans, span, sizeof(Span))
        return not p.spans.failed and not self.touched.failed

    cdef void publish(self, const uint8_t* records, const uint32_t* sizes) noexcept nogil:
        """Make the events of the batch in hand. `sizes`: of each of its records."""
        cdef uint32_t* touched = <uint32_t*> self.touched.data
        cdef uint32_t t, s, i, spans
        cdef Pattern* pattern
        cdef Span* span
        cdef Span part
        cdef Buffer parts
        cdef uint64_t size
        if self.touched.size == 0:
            return
        buffer_init(&parts)
        for t in range(self.touched.size // sizeof(uint32_t)):
            pattern = &self.table[touched[t]]
            pattern.touched = False
            span = <Span*> pattern.spans.data
            spans = <uint32_t> (pattern.spans.size // sizeof(Span))
            size = 0
            buffer_clear(&parts)
            for s in range(spans):
                part = span[s]
                part.count = 0
                part.size = 0
                for i in range(span[s].count):
                    if size and size + sizes[span[s].index + i] > EVENT_SIZE_MAX:
                        if part.count:
                            buffer_add(&parts, &part, sizeof(Span))
                        self.add_event(touched[t], <Span*> parts.data, <uint32_t> (parts.size // sizeof(Span)), size, records)
                        buffer_clear(&parts)
                        part.offset += part.size
                        part.count = 0
                        part.size = 0
                        size = 0
                    part.count += 1
                    part.size += sizes[span[s].index + i]
                    size += sizes[span[s].index + i]
                if part.count:
                    buffer_add(&parts, &part, sizeof(Span))
            self.add_event(touched[t], <Span*> parts.data, <uint32_t> (parts.size // sizeof(Span)), size, records)
            if pattern.spans.room > 65536:
                buffer_free(&pattern.spans)
        buffer_clear(&self.touched)
        buffer_free(&parts)

    cdef void add_event(self, uint32_t number, const Span* spans, uint32_t count, uint64_t size, const uint8_t* records) noexcept nogil:
        """An event for a pattern: it leaves at once, or with others of this turn where it is small."""
        cdef Pattern* pattern = &self.table[number]
        cdef uint32_t s
        if pattern.joined_count and pattern.joined.size + size > EVENT_SIZE_MAX:
            self.send_joined(pattern)
        if size >= JOINED_MAX or pattern.joined.failed:
            self.send_joined(pattern)
            self.send_event(pattern, spans, count, size, records)
            return
        if pattern.joined_count == 0:
            buffer_add(&self.joining, &number, sizeof(uint32_t))
        for s in range(count):
            buffer_add(&pattern.joined, records + spans[s].offset, spans[s].size)
            pattern.joined_count += spans[s].count

    cdef void end_turn(self) noexcept nogil:
        """Send the events that were joined."""
        cdef uint32_t* joining = <uint32_t*> self.joining.data
        cdef uint32_t i
        for i in range(self.joining.size // sizeof(uint32_t)):
            self.send_joined(&self.table[joining[i]])
        buffer_clear(&self.joining)

    cdef void send_joined(self, Pattern* pattern) noexcept nogil:
        cdef Span all
        if pattern.joined_count == 0:
            return
        all.index = 0
        all.count = pattern.joined_count
        all.offset = 0
        all.size = <uint32_t> pattern.joined.size
        if pattern.joined.failed:
            self.events_dropped += all.count
            pattern.n += all.count
        else:
            self.send_event(pattern, &all, 1, all.size, pattern.joined.data)
        pattern.joined_count = 0
        buffer_clear(&pattern.joined)

    cdef void send_event(
        self, Pattern* pattern, const Span* spans, uint32_t count, uint64_t size, const uint8_t* records
    ) noexcept nogil:
        """Hand one event to the XPUB thread, or drop it if that does not keep up."""
        cdef uint32_t number = 0, s
        cdef EventHead* head
        cdef uint8_t* at = NULL
        for s in range(count):
            number += spans[s].count
        buffer_clear(&self.scratch)
        mp_array(&self.scratch, 3)
        mp_uint(&self.scratch, self.epoch)
        mp_uint(&self.scratch, pattern.n)
        mp_uint(&self.scratch, number)
        pattern.n += number
        if self.link is not None and (self.link.waiting() == 0 or self.link.waiting() + size <= self.waiting_max):
            at = self.link.begin(
                E_EVENT, 0, sizeof(EventHead) + pattern.subscription_size + self.scratch.size + size)
        if at == NULL:
            self.events_dropped += number
            return
        head = <EventHead*> at
        head.subscription_size = pattern.subscription_size
        head.header_size = <uint32_t> self.scratch.size
        head.records_size = size
        at += sizeof(EventHead)
        memcpy(at, pattern.subscription, pattern.subscription_size)
        at += pattern.subscription_size
        memcpy(at, self.scratch.data, self.scratch.size)
        at += self.scratch.size
        for s in range(count):
            memcpy(at, records + spans[s].offset, spans[s].size)
            at += spans[s].size
        self.link.commit()
        self.events_sent += number

    # ---- for tests

    def batch(self, bytes records, sizes: list[int], spans: list[tuple[int, int, int, int, int]]) -> None:
        """One batch: spans are (pattern, index, count, offset, size)."""
        cdef Buffer table
        cdef uint32_t size
        cdef Span span
        buffer_init(&table)
        for size in sizes:
            buffer_add(&table, &size, sizeof(uint32_t))
        for pattern, span.index, span.count, span.offset, span.size in spans:
            self.add_span(pattern, &span)
        self.publish(<const uint8_t*> <const char*> records, <uint32_t*> table.data)
        self.end_turn()
        buffer_free(&table)
