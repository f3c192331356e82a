"""The events connection of a client, without I/O: see events.pxd."""
cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy

from fastmq.client.peer cimport BREAK_NO_MEMORY, BREAK_PROTOCOL, FRAME_SIZE_IN_MAX, WAIT_ACTIVE, WAIT_EVENT, Peer
from fastmq.wire.buffer cimport Buffer, buffer_add, buffer_free
from fastmq.wire.idmap cimport idmap_free, idmap_get, idmap_init, idmap_put, idmap_remove
from fastmq.wire.msgpack cimport Reader, mp_array, mp_bin, mp_read_array, mp_read_u32, mp_read_uint, mp_uint, reader_init
from fastmq.wire.records cimport RECORD_GOOD, Record, record_read
from fastmq.wire.zmtp cimport ZMTP_STATE_OPEN, ZMTP_SUB, zmtp_frame, zmtp_init, zmtp_ping, zmtp_subscribe


cdef uint64_t hash_of(const uint8_t* name, size_t size) noexcept nogil:
    cdef uint64_t h = 0xcbf29ce484222325
    cdef size_t i
    for i in range(size):
        h = (h ^ name[i]) * <uint64_t> 0x100000001b3
    return h | 1                                            # a key of an IdMap is not 0


@cython.final
cdef class EventsCore(Peer):
    """Live subscriptions over one connection, without I/O."""

    def __cinit__(self):
        zmtp_init(&self.z, ZMTP_SUB, FRAME_SIZE_IN_MAX, &self.blocks)
        idmap_init(&self.topics)
        idmap_init(&self.subscribers)
        self.next_number = 1

    def __dealloc__(self):
        cdef size_t i
        cdef Subscriber* s
        if self.subscribers.entries != NULL:
            for i in range(self.subscribers.mask + 1):
                if self.subscribers.entries[i].key:
                    s = <Subscriber*> <size_t> self.subscribers.entries[i].value
                    drop_events(s)
                    free(s)
        if self.topics.entries != NULL:
            for i in range(self.topics.mask + 1):
                if self.topics.entries[i].key:
                    free_topics(<Topic*> <size_t> self.topics.entries[i].value)
        idmap_free(&self.topics)
        idmap_free(&self.subscribers)

    # ---- the connection

    cdef void on_opened(self, uint64_t now) noexcept nogil:
        cdef size_t i
        cdef Topic* topic
        self.ping_ns = now + PING_NS
        if self.topics.count == 0:
            return
        for i in range(self.topics.mask + 1):
            if self.topics.entries[i].key:
                topic = <Topic*> <size_t> self.topics.entries[i].value
                while topic != NULL:
                    zmtp_subscribe(&self.z, topic.name.data, topic.name.size, True)
                    topic = topic.same_hash

    cdef void stop(self, uint64_t now) noexcept nogil:
        cdef size_t i
        cdef Topic* topic
        Peer.stop(self, now)
        if self.topics.entries == NULL:
            return
        for i in range(self.topics.mask + 1):
            if self.topics.entries[i].key:
                topic = <Topic*> <size_t> self.topics.entries[i].value
                while topic != NULL:
                    topic.active = False
                    topic = topic.same_hash

    cdef uint64_t tick(self, uint64_t now) noexcept nogil:
        cdef uint64_t due = Peer.tick(self, now)
        if self.started and self.z.state == ZMTP_STATE_OPEN:
            if now >= self.ping_ns:
                zmtp_ping(&self.z)
                self.ping_ns = now + PING_NS
            due = min(due, self.ping_ns)
        return due

    cdef bint wants_input(self) noexcept nogil:
        return not self.full

    cdef bint met(self, int what, uint64_t which) noexcept nogil:
        cdef Subscriber* s
        if what == WAIT_EVENT or what == WAIT_ACTIVE:
            s = self.subscriber(which)
            return s == NULL or s.ended or (s.first != NULL if what == WAIT_EVENT else s.active)
        return Peer.met(self, what, which)

    # ---- subscriptions

    cdef Subscriber* subscriber(self, uint64_t number) noexcept nogil:
        return <Subscriber*> <size_t> idmap_get(&self.subscribers, number, 0) if number else NULL

    cdef Topic* topic(self, const uint8_t* name, size_t size) noexcept nogil:
        cdef Topic* topic = <Topic*> <size_t> idmap_get(&self.topics, hash_of(name, size), 0)
        while topic != NULL and (topic.name.size != size or memcmp(topic.name.data, name, size) != 0):
            topic = topic.same_hash
        return topic

    cdef Subscriber* add(self, const uint8_t* name, size_t size, uint64_t accepted) noexcept nogil:
        """A new subscription; its topic is subscribed to if it is the first."""
        cdef Topic* topic = self.topic(name, size)
        cdef Subscriber* s = <Subscriber*> calloc(1, sizeof(Subscriber))
        if s == NULL:
            return NULL
        s.number = self.next_number
        if not idmap_put(&self.subscribers, s.number, <uint64_t> <size_t> s):
            free(s)
            return NULL
        if topic == NULL:
            topic = <Topic*> calloc(1, sizeof(Topic))
            if topic != NULL:
                topic.hash = hash_of(name, size)
                topic.same_hash = <Topic*> <size_t> idmap_get(&self.topics, topic.hash, 0)
                buffer_add(&topic.name, name, size)
            if topic == NULL or topic.name.failed or not idmap_put(&self.topics, topic.hash, <uint64_t> <size_t> topic):
                if topic != NULL:
                    buffer_free(&topic.name)
                free(topic)
                idmap_remove(&self.subscribers, s.number)
                free(s)
                return NULL
            if self.started and self.z.state == ZMTP_STATE_OPEN:
                zmtp_subscribe(&self.z, name, size, True)
        topic.accepted = accepted
        self.next_number += 1
        s.topic = topic
        s.active = topic.active
        s.next = topic.subscribers
        topic.subscribers = s
        return s

    cdef bint remove(self, Subscriber* s) noexcept nogil:
        """End and free a subscription; the topic goes with its last one."""
        cdef Topic* topic = s.topic
        cdef Topic* before
        cdef Subscriber** at = &topic.subscribers
        while at[0] != s:
            at = &at[0].next
        at[0] = s.next
        idmap_remove(&self.subscribers, s.number)
        while s.first != NULL:
            free(self.take(s))
        free(s)
        if topic.subscribers != NULL:
            return False
        if self.started and self.z.state == ZMTP_STATE_OPEN:
            zmtp_subscribe(&self.z, topic.name.data, topic.name.size, False)
        before = <Topic*> <size_t> idmap_get(&self.topics, topic.hash, 0)
        if before == topic:
            idmap_remove(&self.topics, topic.hash)
            if topic.same_hash != NULL:
                idmap_put(&self.topics, topic.hash, <uint64_t> <size_t> topic.same_hash)
        else:
            while before.same_hash != topic:
                before = before.same_hash
            before.same_hash = topic.same_hash
        buffer_free(&topic.name)
        free(topic)
        return True

    cdef EventRun* take(self, Subscriber* s) noexcept nogil:
        cdef EventRun* run = s.first
        if run == NULL:
            return NULL
        s.first = run.next
        if s.first == NULL:
            s.last = NULL
        self.waiting_bytes -= run.size
        if self.full and self.waiting_bytes < EVENTS_SIZE_MAX // 2:
            self.full = False
        return run

    # ---- events

    cdef void on_message(self, uint64_t now) noexcept nogil:
        if not self.on_event():
            self.break_off(BREAK_PROTOCOL)

    cdef bint on_event(self) noexcept nogil:
        """[topic, [epoch, n, count], records]; False: it is not that."""
        cdef Reader r
        cdef Record record
        cdef Topic* topic
        cdef const uint8_t* records
        cdef uint64_t epoch, n
        cdef uint32_t count, _i
        if self.z.frames < 2:
            return False
        reader_init(&r, zmtp_frame(&self.z, 1), self.z.frame[1].size)
        if mp_read_array(&r) < 3:
            return False
        epoch = mp_read_uint(&r)
        n = mp_read_uint(&r)
        count = mp_read_u32(&r)
        if r.error or count and self.z.frames != 3:
            return False
        topic = self.topic(zmtp_frame(&self.z, 0), self.z.frame[0].size)
        if topic == NULL:
            return True                                     # cancelled a moment ago
        self.count_gap(topic, epoch, n, count)
        if count == 0:
            return True
        records = zmtp_frame(&self.z, 2)
        reader_init(&r, records, self.z.frame[2].size)
        for _i in range(count):
            if record_read(&r, &record) != RECORD_GOOD:
                return False
        if r.at != r.end:
            return False
        if not self.keep(topic, records, self.z.frame[2].size, count):
            self.break_off(BREAK_NO_MEMORY)
        return True

    cdef void count_gap(self, Topic* topic, uint64_t epoch, uint64_t n, uint32_t count) noexcept nogil:
        cdef uint64_t lost = 0
        cdef Subscriber* s = topic.subscribers
        if topic.known:
            if epoch != topic.epoch or n < topic.next_n:
                lost = 1                                    # counted anew: by another process, or because nobody had subscribed meanwhile
            else:
                lost = n - topic.next_n
        topic.known = True
        topic.active = True
        topic.epoch = epoch
        topic.next_n = n + count
        while s != NULL:
            if s.active:
                s.lost += lost
            s.active = True
            s = s.next

    cdef bint keep(self, Topic* topic, const uint8_t* records, size_t size, uint32_t count) noexcept nogil:
        cdef Subscriber* s = topic.subscribers
        cdef EventRun* run
        while s != NULL:
            run = <EventRun*> malloc(sizeof(EventRun) + size)
            if run == NULL:
                return False
            run.next = NULL
            run.size = size
            run.at = 0
            run.count = count
            run.taken = 0
            memcpy(<uint8_t*> run + sizeof(EventRun), records, size)
            if s.last == NULL:
                s.first = run
            else:
                s.last.next = run
            s.last = run
            self.waiting_bytes += size
            s = s.next
        if self.waiting_bytes >= EVENTS_SIZE_MAX:
            self.full = True
        return True

    # ---- for Python: the simulation, tests, the helper thread

    def subscribe(self, bytes topic, uint64_t accepted=1):
        """A new subscription; its number."""
        cdef Subscriber* s = self.add(topic, len(topic), accepted)
        if s == NULL:
            raise MemoryError
        return s.number

    def unsubscribe(self, uint64_t number):
        """End one; True if it was its topic's last."""
        cdef Subscriber* s = self.subscriber(number)
        return s != NULL and self.remove(s)

    cdef void write_topics(self, Buffer* out) noexcept nogil:
        """msgpack [topic, session in which it was accepted] each"""
        cdef Topic* topic
        cdef size_t i
        if self.topics.count == 0:
            return
        for i in range(self.topics.mask + 1):
            topic = <Topic*> <size_t> self.topics.entries[i].value if self.topics.entries[i].key else NULL
            while topic != NULL:
                mp_array(out, 2)
                mp_bin(out, topic.name.data, <uint32_t> topic.name.size)
                mp_uint(out, topic.accepted)
                topic = topic.same_hash

    cdef void accept(self, const uint8_t* name, size_t size, uint64_t accepted) noexcept nogil:
        """The broker took SUBSCRIBE for it in this session."""
        cdef Topic* topic = self.topic(name, size)
        if topic != NULL:
            topic.accepted = accepted

    def status(self, uint64_t number):
        """(active, lost, bytes waiting of all subscriptions)"""
        cdef Subscriber* s = self.subscriber(number)
        return s.active, s.lost, self.waiting_bytes

    def take_events(self, uint64_t number):
        """[(routing key, properties as msgpack or b"", body)...]"""
        cdef Subscriber* s = self.subscriber(number)
        cdef EventRun* run = self.take(s)
        cdef Reader r
        cdef Record record
        cdef uint32_t _i
        found = []
        while run != NULL:
            reader_init(&r, <uint8_t*> run + sizeof(EventRun), run.size)
            for _i in range(run.count):
                if record_read(&r, &record) == RECORD_GOOD:
                    found.append((record.routing_key[:record.routing_key_size].decode(errors="replace"),
                                  record.properties[:record.properties_size], record.body[:record.body_size]))
            free(run)
            run = self.take(s)
        return found


cdef void drop_events(Subscriber* s) noexcept nogil:
    cdef EventRun* run
    while s.first != NULL:
        run = s.first
        s.first = run.next
        free(run)


cdef void free_topics(Topic* topic) noexcept nogil:
    cdef Topic* following
    while topic != NULL:
        following = topic.same_hash
        buffer_free(&topic.name)
        free(topic)
        topic = following
