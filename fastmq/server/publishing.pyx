"""The way of a publish through a front-end: records frame -> routes -> one message for each worker.

Owns: the route cache and the batch in hand. Rules: records of which one is malformed are refused all of them, before anything is taken; after
that each has a fate of its own; a run of equal routing keys is looked up once and costs one entry for each of its queues; the bytes of
records are copied once, into the link; a worker that is down is owed nothing: its publishes stay open until it is attached again and the
client sends them anew; a large record goes alone, through the worker's arena. No Python object is made, unless a route is not in the cache.
Runs in front-ends.
"""

cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from fastmq.server.accounts cimport (
    account_add, account_allows, account_answer, account_advance, account_begin, account_reserve,
)
from fastmq.server.live cimport Span
from fastmq.server.routes cimport Destination
from fastmq.server.workers cimport padded
from fastmq.wire.buffer cimport buffer_add, buffer_clear, buffer_extend, buffer_free, buffer_init
from fastmq.wire.limits cimport BATCH_COUNT_MAX, MESSAGE_SIZE_MAX, NAME_SIZE_MAX
from fastmq.wire.link cimport L_PUBLISH, RECORD_SHARED_MIN, LinkPublish, LinkPublishEntry
from fastmq.wire.msgpack cimport Reader, mp_read_bin, reader_init
from fastmq.wire.records cimport (
    RECORD_GOOD, RECORD_MALFORMED, RECORD_PROPERTIES_TOO_LARGE, Record, record_begins, record_read, utf8_valid,
)
from fastmq.wire.verbs cimport BAD_REQUEST, INTERNAL, LIMIT, MANDATORY, OVER_WINDOW, TOO_LARGE, UNROUTABLE

from fastmq.server.log import Log

log = Log("front-end")


cdef enum:
    SEQUENCE_MAX = 4611686018427387904
    SCRATCH_KEEP = 4 * 1024 * 1024      # a scratch buffer larger than this is given back after the batch


@cython.final
cdef class Publishing:
    """`resolve(vhost, exchange, key)` answers what the cache does not know; exchange and key are UTF-8 bytes."""

    def __cinit__(self, Workers workers not None, LivePatterns live not None, resolve):
        buffer_init(&self.runs)
        buffer_init(&self.sizes)
        memset(self.parcels, 0, sizeof(self.parcels))
        self.workers = workers
        self.live = live
        self.resolve = resolve
        self.routes = RouteCache()

    def __dealloc__(self):
        cdef int i
        buffer_free(&self.runs)
        buffer_free(&self.sizes)
        for i in range(WORKERS_MAX):
            buffer_free(&self.parcels[i].entries)
            buffer_free(&self.parcels[i].pieces)

    cdef int publish(
        self, Session* s, const PublishRequest* p, const uint8_t* records, size_t records_size
    ) noexcept nogil:
        """Take one PUBLISH of the session's current incarnation. A PublishResult; except PUBLISH_DONE nothing is taken."""
        cdef int result = self.check(s, p)
        cdef size_t i
        cdef int worker
        cdef uint32_t touched = 0, workers
        cdef KeyRun* run
        cdef Route* route
        if result == PUBLISH_DONE:
            result = self.split(s, p, records, records_size)
        if (result == PUBLISH_DONE or result == PUBLISH_BAD_RECORDS) and not account_reserve(&s.account, p.count):
            result = PUBLISH_NO_MEMORY
        if result != PUBLISH_DONE and result != PUBLISH_BAD_RECORDS:
            return result
        if s.account.head == 0:
            account_begin(&s.account, p.floor)
        if result == PUBLISH_BAD_RECORDS:
            self.refuse_all(s, p, records_size)
            return PUBLISH_DONE
        self.lost = 0
        for i in range(self.runs.size // sizeof(KeyRun)):
            run = <KeyRun*> self.runs.data + i
            if run.code:
                self.enter(s, p, run, 0, run.code)
                continue
            route = self.route(s.vhost, p, run)
            if route == NULL:
                self.enter(s, p, run, 0, INTERNAL)
                continue
            if route.code:
                self.enter(s, p, run, 0, route.code)
                continue
            if route.count == 0:
                if p.flags & MANDATORY:
                    self.enter(s, p, run, 0, UNROUTABLE)
                    continue
                self.unroutable += run.count
            workers = route.workers
            touched |= workers
            if not self.address(s, p, run, route, records):
                workers = 0
                result = PUBLISH_NO_MEMORY
            if not self.enter(s, p, run, workers, LIMIT if result == PUBLISH_NO_MEMORY else 0):
                continue
            self.published += run.count
            self.watch(s, p, run, route)
        account_advance(&s.account)
        for worker in range(self.workers.count):
            if touched >> worker & 1 and (not self.send(s, p, worker, records) or self.lost >> worker & 1):
                account_answer(&s.account, p.first_seq, p.first_seq + p.count - 1, <uint32_t> 1 << worker, LIMIT)
                account_advance(&s.account)
        self.live.publish(records, <uint32_t*> self.sizes.data)
        if s.live_seq < p.first_seq + p.count - 1:
            s.live_seq = p.first_seq + p.count - 1
        return PUBLISH_DONE

    cdef int check(self, Session* s, const PublishRequest* p) noexcept nogil:
        """Whether the fields of the header are possible."""
        if p.count == 0 or p.count > BATCH_COUNT_MAX:
            return PUBLISH_BAD_COUNT
        if p.flags & ~<uint32_t> MANDATORY:
            return PUBLISH_BAD_FLAGS
        if p.exchange_size > NAME_SIZE_MAX or not utf8_valid(p.exchange, p.exchange_size):
            return PUBLISH_BAD_EXCHANGE
        if p.floor == 0 or p.first_seq < p.floor or p.first_seq > SEQUENCE_MAX or p.first_seq <= s.account.last_seq:
            return PUBLISH_BAD_SEQUENCE
        return PUBLISH_DONE

    cdef int split(
        self, Session* s, const PublishRequest* p, const uint8_t* records, size_t records_size
    ) noexcept nogil:
        """Read the records: sizes, and runs of those with the same key and fate."""
        cdef Reader reader
        cdef Record record
        cdef KeyRun* run = NULL
        cdef KeyRun fresh
        cdef uint32_t* sizes
        cdef uint32_t code, size, i, body_size
        cdef uint64_t entered = 0, bytes = 0
        cdef int error
        buffer_clear(&self.runs)
        buffer_clear(&self.sizes)
        sizes = <uint32_t*> buffer_extend(&self.sizes, p.count * sizeof(uint32_t))
        if sizes == NULL:
            return PUBLISH_NO_MEMORY
        reader_init(&reader, records, records_size)
        for i in range(<uint32_t> p.count):
            error = record_read(&reader, &record)
            code = 0
            if error == RECORD_PROPERTIES_TOO_LARGE:
                mp_read_bin(&reader, &body_size)
                if reader.error:
                    error = RECORD_MALFORMED
            if error == RECORD_MALFORMED:
                return PUBLISH_BAD_RECORDS
            size = <uint32_t> (reader.at - record.start)
            sizes[i] = size
            bytes += size
            if not account_allows(&s.account, entered, bytes):      # first: so refusals of other kinds are bounded by the window
                code = OVER_WINDOW
                self.over_window += 1
            elif error != RECORD_GOOD or size > MESSAGE_SIZE_MAX:
                code = TOO_LARGE
            entered += 1
            if (
                run != NULL and run.code == code and size < RECORD_SHARED_MIN and not run.is_large
                and (code or (run.key_size == record.routing_key_size
                              and memcmp(run.key, record.routing_key, run.key_size) == 0))
            ):
                run.count += 1
                run.size += size
                continue
            if code == 0 and not utf8_valid(record.routing_key, record.routing_key_size):
                code = BAD_REQUEST
            fresh.key = record.routing_key
            fresh.key_size = record.routing_key_size
            fresh.code = code
            fresh.index = i
            fresh.count = 1
            fresh.offset = <uint32_t> (record.start - records)
            fresh.size = size
            fresh.is_large = size >= RECORD_SHARED_MIN and code == 0
            buffer_add(&self.runs, &fresh, sizeof(KeyRun))
            if self.runs.failed:
                return PUBLISH_NO_MEMORY
            run = <KeyRun*> (self.runs.data + self.runs.size - sizeof(KeyRun))
        if reader.at != reader.end:
            return PUBLISH_BAD_RECORDS
        return PUBLISH_DONE

    cdef void refuse_all(self, Session* s, const PublishRequest* p, size_t records_size) noexcept nogil:
        """The records cannot be read: every sequence that the header counts is refused."""
        cdef uint32_t i
        for i in range(<uint32_t> p.count):
            account_add(&s.account, p.first_seq + i, <uint32_t> records_size if i == 0 else 0, 0, BAD_REQUEST)
        self.refused += p.count
        account_advance(&s.account)

    # ---- routes

    cdef Route* route(self, uint32_t vhost, const PublishRequest* p, const KeyRun* run) noexcept nogil:
        """The route of a run; NULL when it could not be found out."""
        cdef Route* route = self.routes.find(vhost, p.exchange, p.exchange_size, run.key, run.key_size)
        return route if route != NULL else self.resolve_route(vhost, p, run)

    cdef Route* resolve_route(self, uint32_t vhost, const PublishRequest* p, const KeyRun* run) noexcept with gil:
        """Ask the topology, and remember the answer."""
        try:
            code, destinations, patterns = self.resolve(
                vhost, (<const char*> p.exchange)[:p.exchange_size], (<const char*> run.key)[:run.key_size])
            return self.routes.add(
                vhost, p.exchange, p.exchange_size, run.key, run.key_size, code, destinations, patterns)
        except Exception:
            log.exception("a route could not be found out")
            return NULL

    # ---- a run on its way

    cdef bint enter(
        self, Session* s, const PublishRequest* p, const KeyRun* run, uint32_t workers, uint32_t code
    ) noexcept nogil:
        """Enter a run into the session's account; True unless it is refused."""
        cdef const uint32_t* sizes = <const uint32_t*> self.sizes.data
        cdef uint32_t i
        for i in range(run.index, run.index + run.count):
            account_add(&s.account, p.first_seq + i, sizes[i], workers, code)
        if code:
            self.refused += run.count
        return code == 0

    cdef bint address(
        self, Session* s, const PublishRequest* p, const KeyRun* run, const Route* route, const uint8_t* records
    ) noexcept nogil:
        """Give a run to each of its workers, once; False when there is no memory."""
        cdef const Destination* to = route.destinations
        cdef uint32_t left = route.count, count
        cdef bint good = True
        while left:
            count = 1
            while count < left and to[count].worker == to.worker:
                count += 1
            if self.workers.links[to.worker] == NULL:
                pass
            elif not run.is_large or not self.share(s, p, run, to, count, records):
                good = self.add_to_parcel(p, run, to, count) and good
            to += count
            left -= count
        return good

    cdef bint add_to_parcel(
        self, const PublishRequest* p, const KeyRun* run, const Destination* to, uint32_t count
    ) noexcept nogil:
        """Add a run that goes to `count` queues of one worker to its parcel; False when there is no memory."""
        cdef Parcel* parcel = &self.parcels[to.worker]
        cdef Piece* last = NULL
        cdef Piece piece
        cdef LinkPublishEntry entry
        cdef uint32_t i
        if parcel.pieces.size:
            last = <Piece*> (parcel.pieces.data + parcel.pieces.size - sizeof(Piece))
        if last != NULL and last.offset + last.size == run.offset:
            last.size += run.size
        else:
            piece.offset = run.offset
            piece.size = run.size
            buffer_add(&parcel.pieces, &piece, sizeof(Piece))
        entry.first_seq = p.first_seq + run.index
        entry.count = run.count
        entry.offset = parcel.records_size
        entry.size = run.size
        entry.padding = 0
        parcel.records_size += run.size
        for i in range(count):
            entry.queue = to[i].queue
            entry.shard = to[i].shard
            buffer_add(&parcel.entries, &entry, sizeof(LinkPublishEntry))
        return not parcel.entries.failed and not parcel.pieces.failed

    cdef bint share(
        self, Session* s, const PublishRequest* p, const KeyRun* run, const Destination* to, uint32_t count, const uint8_t* records
    ) noexcept nogil:
        """Copy a large record into the arena of its worker, and tell it where, behind what the parcel holds; False: it goes with the parcel."""
        cdef uint64_t offset = 0
        cdef const uint8_t* record = records + run.offset
        cdef uint8_t* place
        if self.is_placed(to.worker, record, run.size):
            place = self.placed.at
            offset = self.placed.offset
            self.placed = NULL
        else:
            place = self.workers.place(to.worker, run.size, &offset)
        cdef LinkPublishEntry* entry
        cdef LinkPublish* head
        cdef uint8_t* at
        cdef uint32_t i
        if place == NULL:
            return False
        if not self.send(s, p, to.worker, records):
            self.lost |= <uint32_t> 1 << to.worker      # what the parcel held
            return False
        at = self.begin(s, p, to.worker, count * sizeof(LinkPublishEntry), 0)
        if at == NULL:
            return False
        if place != record:
            memcpy(place, record, run.size)
        head = <LinkPublish*> at
        head.is_shared = True
        head.shared_at = offset
        entry = <LinkPublishEntry*> (at + sizeof(LinkPublish) + padded(p.exchange_size))
        for i in range(count):
            entry[i].first_seq = p.first_seq + run.index
            entry[i].queue = to[i].queue
            entry[i].count = 1
            entry[i].offset = 0
            entry[i].size = run.size
            entry[i].shard = to[i].shard
            entry[i].padding = 0
        self.workers.commit(to.worker)
        return True

    cdef inline bint is_placed(self, int worker, const uint8_t* record, uint64_t size) noexcept nogil:
        cdef const Placement* p = self.placed
        return p != NULL and p.at == record and p.size == size and p.worker == worker and p.link == self.workers.link_number[worker]

    cdef bint place(
        self, Session* s, const PublishRequest* p, const uint8_t* record, size_t size, size_t total, Placement* placement
    ) noexcept nogil:
        cdef Record found
        cdef KeyRun run
        cdef Route* route
        cdef uint32_t i
        if (p.count != 1 or self.check(s, p) != PUBLISH_DONE or not RECORD_SHARED_MIN <= total <= MESSAGE_SIZE_MAX
                or not account_allows(&s.account, 0, total) or not record_begins(record, size, total, &found)
                or not utf8_valid(found.routing_key, found.routing_key_size)):
            return False
        memset(&run, 0, sizeof(KeyRun))
        run.key = found.routing_key
        run.key_size = found.routing_key_size
        route = self.route(s.vhost, p, &run)
        if route == NULL or route.code or route.count == 0:
            return False
        for i in range(1, route.count):
            if route.destinations[i].worker != route.destinations[0].worker:
                return False
        return self.workers.reserve(route.destinations[0].worker, total, placement)

    cdef void watch(self, Session* s, const PublishRequest* p, const KeyRun* run, const Route* route) noexcept nogil:
        """Note which live patterns match a run. What is sent again was seen by them before."""
        cdef const uint32_t* sizes = <const uint32_t*> self.sizes.data
        cdef uint32_t i, skip = 0
        cdef Span span
        if route.patterns_count == 0 or s.live_seq >= p.first_seq + run.index + run.count - 1:
            return
        span.index = run.index
        span.count = run.count
        span.offset = run.offset
        span.size = run.size
        if s.live_seq >= p.first_seq + run.index:
            skip = <uint32_t> (s.live_seq - p.first_seq - run.index + 1)
            for i in range(skip):
                span.offset += sizes[span.index + i]
                span.size -= sizes[span.index + i]
            span.index += skip
            span.count -= skip
        for i in range(route.patterns_count):
            self.live.add_span(route.patterns[i], &span)

    cdef uint8_t* begin(self, Session* s, const PublishRequest* p, int worker, size_t entries_size, uint32_t records_size) noexcept nogil:
        """Begin an L_PUBLISH, whose entries and records are still to be written; NULL when there is no memory."""
        cdef size_t head_size = sizeof(LinkPublish) + padded(p.exchange_size)
        cdef uint8_t* at = self.workers.begin(worker, L_PUBLISH, 0, head_size + entries_size + records_size)
        cdef LinkPublish* head = <LinkPublish*> at
        if at != NULL:
            memset(head, 0, sizeof(LinkPublish))
            head.sid = s.sid
            head.floor = p.floor
            head.entries = <uint32_t> (entries_size // sizeof(LinkPublishEntry))
            head.exchange_size = p.exchange_size
            head.records_size = records_size
            memcpy(at + sizeof(LinkPublish), p.exchange, p.exchange_size)
            memset(at + sizeof(LinkPublish) + p.exchange_size, 0, padded(p.exchange_size) - p.exchange_size)
        return at

    cdef bint send(self, Session* s, const PublishRequest* p, int worker, const uint8_t* records) noexcept nogil:
        """Write one worker's parcel into its link, and empty it; False when there is no memory."""
        cdef Parcel* parcel = &self.parcels[worker]
        cdef size_t entries_size = parcel.entries.size, i
        cdef const Piece* pieces = <const Piece*> parcel.pieces.data
        cdef uint8_t* at
        cdef bint good = True
        if entries_size and not parcel.entries.failed and not parcel.pieces.failed:
            at = self.begin(s, p, worker, entries_size, parcel.records_size)
            good = at != NULL
            if good:
                at += sizeof(LinkPublish) + padded(p.exchange_size)
                memcpy(at, parcel.entries.data, entries_size)
                at += entries_size
                for i in range(parcel.pieces.size // sizeof(Piece)):
                    memcpy(at, records + pieces[i].offset, pieces[i].size)
                    at += pieces[i].size
                self.workers.commit(worker)
        parcel.records_size = 0
        if parcel.entries.room > SCRATCH_KEEP:
            buffer_free(&parcel.entries)
        if parcel.pieces.room > SCRATCH_KEEP:
            buffer_free(&parcel.pieces)
        buffer_clear(&parcel.entries)
        buffer_clear(&parcel.pieces)
        return good
