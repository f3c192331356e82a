"""The protocol core of a front-end, without I/O: requests of clients and messages of workers in, frames and link messages out.

Owns: through its parts everything that a front-end knows; it is an Outbox (frames to be sent) and a Membership (the life of sessions), and has
Publishing, Settling, LivePatterns, Requests. Rules: no client byte can make it fail; every refusal has a code; PUBLISH, SETTLE, outcomes and
deliveries make no Python object; everything that grows has a bound. The re-send rule is that of docs/protocol.md. Runs in front-ends.

A turn of whoever drives it (server/frontend_loop.pyx; tests and the simulation from Python):

    tick(now) ... receive(...) for each request, pump() or from_worker(...) for each link message ... take_output()
"""
import os

cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from fastmq.net.arena cimport ArenaView, Borrowed
from fastmq.net.ring cimport Link
from fastmq.server.accounts cimport account_advance, account_answer, account_came, account_open, account_trim
from fastmq.server.live cimport E_ACTIVE
from fastmq.server.posix cimport monotonic_ns
from fastmq.server.publishing cimport (
    PUBLISH_BAD_COUNT, PUBLISH_BAD_EXCHANGE, PUBLISH_BAD_FLAGS, PUBLISH_BAD_SEQUENCE, PUBLISH_DONE, PUBLISH_NO_MEMORY,
    PublishRequest,
)
from fastmq.server.session cimport Address, address_same, session_deliver, session_deliver_borrowed
from fastmq.server.settling cimport SETTLE_BAD, SETTLE_DONE, SETTLE_NO_MEMORY, SETTLE_TOO_LARGE
from fastmq.server.workers cimport Workers, padded
from fastmq.wire.limits cimport BATCH_COUNT_MAX, HEADER_SIZE_MAX, NAME_SIZE_MAX, SETTLE_RANGES_MAX
from fastmq.wire.link cimport (
    L_DELIVER, L_OUTCOME, L_REGION, LinkDeliver, LinkHead, LinkOutcome, LinkRange, LinkRefusal, LinkRegion, LinkRun,
)
from fastmq.wire.msgpack cimport (
    Reader, mp_read_array, mp_read_bin, mp_read_str, mp_read_u32, mp_read_uint, reader_init,
)
from fastmq.wire.verbs cimport (
    BAD_INCARNATION, BAD_REQUEST, BYE, CLOSING_DOWN, HELLO, INTERNAL, LIMIT, NO_SESSION, PUBLISH, SETTLE, STALE, TOO_LARGE,
)

from fastmq.errors import NUMBER_OF_CODE, TEXT_OF_NUMBER, FastMQError
from fastmq.server.log import Log
from fastmq.server.requests import Requests, shape_of

log = Log("front-end")


cdef enum:
    TICK_NS = 100000000
    PUMP_ALL = 0x7fffffff
    COLD_NS = 1000000                   # of a turn, for one worker's messages to Python
    WAITING_SHARE = 4                   # what waits for clients that do not read may take this part of the front-end's memory
    OUTCOMES_SPARE = 4096               # refusals beside those that the window bounds which may wait for a client that does not read


@cython.final
cdef class Sessions(Membership):
    """The sessions of one front-end.

    `config`: config.Config. `epoch`: of this process. `key`: 16 bytes, makes the proofs. `map`: worker of shard 0, 1, ... `events_link`: to
    the XPUB thread. `random(n)` gives n random bytes. Times are nanoseconds of any steady clock, given by `tick`.
    """

    def __init__(
        self, config, *, uint64_t epoch, bytes key not None, int workers, list map not None, Link events_link=None, random=os.urandom,
    ) -> None:
        self.config = config
        self.epoch = epoch
        self._key = key
        self._random = random
        self.workers = Workers(workers, map)
        self.live = LivePatterns(epoch, config.patterns_max, events_link)
        self.requests = Requests(self, config)
        self.publishing = Publishing(self.workers, self.live, self.requests.view.resolve)
        self.settling = Settling(self.workers)

    def __len__(self):
        return self.by_sid.count

    # ---- requests

    cdef void receive_frames(
        self, const Address* address, int frames, const uint8_t* header, size_t header_size, const uint8_t* records, size_t records_size
    ) noexcept nogil:
        """One request, of `frames` frames; of more than two the rest is not looked at."""
        cdef Source source
        cdef Reader r
        cdef int fields
        self.received += 1
        source.address = address[0]
        reader_init(&r, header, header_size if frames > 0 else 0)
        fields = self.read_head(&r, &source)
        if fields < 0 or frames < 1 or frames > 2 or header_size > HEADER_SIZE_MAX:
            if fields > 0:
                self.read_number(&r, &source, fields)
            self.refuse_frames(NULL, &source, frames, header_size)
        elif source.verb == HELLO and frames == 1:
            self.cold_hello(&source, header, header_size)
        elif source.verb == HELLO:
            self.refuse_frames(NULL, &source, frames, 0)
        else:
            self.judge(&source, &r, fields, frames, header, header_size, records, records_size)

    cdef int read_head(self, Reader* r, Source* source) noexcept nogil:
        """Read [verb, session id, incarnation; how many fields follow, or -1 when it is not that."""
        cdef uint32_t count = mp_read_array(r), size = 0
        cdef uint64_t verb = mp_read_uint(r)
        cdef const uint8_t* id
        cdef int i
        source.verb = <uint32_t> min(verb, <uint64_t> 0xffffffff)
        source.sid = 0
        source.proof = 0
        source.has_session = False
        source.readable = False
        source.has_number = False
        id = mp_read_bin(r, &size)
        source.incarnation = mp_read_uint(r)
        if r.error or count < 3 or (size != 16 and (size != 0 or verb != HELLO)):
            return -1
        source.readable = True
        if size == 16:
            source.has_session = True
            for i in range(8):
                source.sid = source.sid << 8 | id[i]
                source.proof = source.proof << 8 | id[8 + i]
        return <int> count - 3

    cdef void read_number(self, Reader* r, Source* source, int fields) noexcept nogil:
        """The request number that follows, where this verb has one: whoever waits for it is answered whatever else the header holds."""
        if fields < 1 or source.verb == HELLO or source.verb == PUBLISH or source.verb == SETTLE or source.verb == BYE:
            return
        source.number = mp_read_uint(r)
        source.has_number = not r.error

    cdef void judge(
        self, Source* source, Reader* r, int fields, int frames, const uint8_t* header, size_t header_size,
        const uint8_t* records, size_t records_size
    ) noexcept nogil:
        """Whether a request belongs to a session as it is now; then it is done."""
        cdef Session* s = self.find(source.sid)
        if s == NULL or s.proof != source.proof:
            self.no_session += 1
            self.answer_code(NULL, source, NO_SESSION, source.incarnation)
        elif source.incarnation < s.hello:
            self.stale += 1
            self.answer_code(s, source, STALE, s.incarnation)
        elif not address_same(&s.address, &source.address):
            self.no_session += 1
            self.answer_code(NULL, source, NO_SESSION, source.incarnation)
        elif source.incarnation > s.incarnation:
            self.bad_incarnation += 1
            self.answer_code(s, source, BAD_INCARNATION, s.incarnation)
        elif source.verb == PUBLISH:
            self.publish(s, source, r, fields, frames, records, records_size)
        elif source.verb == SETTLE and frames == 1:
            self.settle(s, source, r, fields)
        else:
            self.read_number(r, source, fields)
            if frames == 1:
                self.cold(s, source, header, header_size)
            else:
                self.refuse_frames(s, source, frames, 0)

    cdef bint place(
        self, const Address* address, const uint8_t* header, size_t header_size, const uint8_t* record, size_t size, size_t total,
        Placement* placement
    ) noexcept nogil:
        cdef Source source
        cdef PublishRequest p
        cdef Reader r
        cdef Session* s
        cdef int fields
        reader_init(&r, header, header_size)
        fields = self.read_head(&r, &source)
        if fields < 0 or source.verb != PUBLISH or self.closing:
            return False
        s = self.find(source.sid)
        if s == NULL or s.proof != source.proof or source.incarnation != s.incarnation or not address_same(&s.address, address):
            return False
        return self.read_publish(&r, fields, &p) and self.publishing.place(s, &p, record, size, total, placement)

    cdef bint read_publish(self, Reader* r, int fields, PublishRequest* p) noexcept nogil:
        """[..., floor, first_seq, count, exchange, flags]; False: it is not that."""
        p.floor = mp_read_uint(r)
        p.first_seq = mp_read_uint(r)
        p.count = mp_read_uint(r)
        p.exchange = mp_read_str(r, &p.exchange_size)
        p.flags = mp_read_u32(r)
        return not r.error and r.at == r.end and fields == 5

    cdef void publish(
        self, Session* s, const Source* source, Reader* r, int fields, int frames, const uint8_t* records, size_t records_size
    ) noexcept nogil:
        """[..., floor, first_seq, count, exchange, flags] and records."""
        cdef PublishRequest p
        cdef int result
        if source.incarnation < s.incarnation:
            self.stale += 1
            self.answer_code(s, source, STALE, s.incarnation)
            return
        if self.closing:                # it stays open, for the broker that comes after this one
            if not s.told_closing and not s.waiting:
                s.told_closing = True
                self.answer_code(s, source, CLOSING_DOWN, s.incarnation)
            return
        if not self.read_publish(r, fields, &p):
            self.refuse_publish(s, source, -1)
            return
        if frames != 2:
            self.refuse_frames(s, source, frames, 0)
            return
        result = self.publishing.publish(s, &p, records, records_size)
        if result != PUBLISH_DONE:
            self.refuse_publish(s, source, result)
            return
        account_came(&s.account, self.now_ns)
        if s.account.due:
            self.list_ready(s)
            if s.account.refused.size > (2 * s.account.window + OUTCOMES_SPARE) * sizeof(LinkRefusal):
                self.end_slow(s)

    cdef void settle(self, Session* s, const Source* source, Reader* r, int fields) noexcept nogil:
        cdef int result = self.settling.settle(s, r) if fields == 1 else SETTLE_BAD
        if result == SETTLE_NO_MEMORY:
            self.out_of_memory = True
        elif result != SETTLE_DONE:
            self.refuse_settle(s, source, result)

    # ---- what workers say

    cdef int pump(self, int worker, int messages_max) noexcept nogil:
        """Read what a worker has sent, at most so many messages and, where Python is asked, for so long; how many it was."""
        cdef LinkHead head
        cdef const uint8_t* payload
        cdef uint64_t began_ns = 0
        cdef int count = 0
        cdef bint is_cold
        while count < messages_max and self.workers.links[worker] != NULL:
            if not (<Link> self.workers.links[worker]).receive(&head, &payload):
                break
            is_cold = head.kind != L_DELIVER and head.kind != L_OUTCOME and head.kind != L_REGION
            if is_cold and began_ns == 0 and messages_max != PUMP_ALL:
                began_ns = monotonic_ns()
            self.from_link(worker, head.kind, head.shard, payload, head.size)
            count += 1
            if began_ns and is_cold and monotonic_ns() > began_ns + COLD_NS:
                break
        if self.workers.links[worker] != NULL:
            (<Link> self.workers.links[worker]).release()
        return count

    cdef void from_link(self, int worker, uint16_t kind, uint16_t shard, const uint8_t* payload, size_t size) noexcept nogil:
        if kind == L_DELIVER:
            self.deliver(worker, payload)
        elif kind == L_OUTCOME:
            self.outcome(worker, payload)
        elif kind == L_REGION:
            self.workers.take_region(worker, <const LinkRegion*> payload)
        else:
            self.cold_link(worker, kind, shard, payload, size)

    cdef void outcome(self, int worker, const uint8_t* payload) noexcept nogil:
        cdef const LinkOutcome* head = <const LinkOutcome*> payload
        cdef const LinkRange* held = <const LinkRange*> (head + 1)
        cdef const LinkRefusal* refused = <const LinkRefusal*> (held + head.ranges)
        cdef Session* s = self.find(head.sid)
        cdef uint32_t i
        if s == NULL:
            return
        for i in range(head.ranges):
            account_answer(&s.account, held[i].first, held[i].last, <uint32_t> 1 << worker, 0)
        for i in range(head.refusals):
            account_answer(&s.account, refused[i].first, refused[i].last, <uint32_t> 1 << worker, refused[i].code)
        account_advance(&s.account)
        if s.account.due:
            self.list_ready(s)

    cdef void deliver(self, int worker, const uint8_t* payload) noexcept nogil:
        cdef const LinkDeliver* head = <const LinkDeliver*> payload
        cdef const LinkRun* runs = <const LinkRun*> (head + 1)
        cdef const uint8_t* names = <const uint8_t*> (runs + head.runs)
        cdef Session* s = self.find(head.sid)
        cdef const uint8_t* record
        cdef Borrowed* borrowed = NULL
        cdef uint32_t i
        if s == NULL or s.address.fd < 0 or s.hello != head.hello:      # its shard has taken them back, or is about to
            self.deliveries_dropped += head.runs
            if head.loan and not self.workers.return_loan(worker, head.loan):
                self.out_of_memory = True
            return
        for i in range(head.runs):
            self.delivered += runs[i].count
        if head.loan:
            record = self.workers.borrow(worker, head.loan, head.shared_at, &borrowed)
            if record == NULL or not session_deliver_borrowed(s, runs, names, record, borrowed):
                self.out_of_memory = True
        elif not session_deliver(s, runs, head.runs, names, names + padded(head.names_size), head.records_size):
            self.out_of_memory = True
        self.list_delivery(s)

    cdef void cold_link(
        self, int worker, uint16_t kind, uint16_t shard, const uint8_t* payload, size_t size
    ) noexcept with gil:
        try:
            self.requests.from_worker(worker, kind, shard, (<const char*> payload)[:size])
        except Exception:
            log.exception(f"message {kind} of worker {worker}")

    # ---- what is refused, and what is not on the hot path

    cdef void refuse_frames(self, Session* s, const Source* source, int frames, size_t header_size) noexcept with gil:
        self.bad_requests += 1
        if header_size > HEADER_SIZE_MAX:
            self.refuse(s, source, TOO_LARGE, f"the header has {header_size} bytes; {int(HEADER_SIZE_MAX)} are allowed")
        elif frames == 1 and source.verb != PUBLISH:
            self.refuse(s, source, BAD_REQUEST,
                        "the header is not a msgpack array [verb, session id (bin of 16 bytes), incarnation, fields...]")
        elif source.verb == PUBLISH:
            self.refuse(s, source, BAD_REQUEST, f"PUBLISH has two frames, header and records, not {frames}")
        else:
            self.refuse(s, source, BAD_REQUEST, f"the request has {frames} frames; only PUBLISH has a second one, and none a third")

    cdef void refuse_publish(self, Session* s, const Source* source, int result) noexcept with gil:
        self.bad_requests += 1
        if result == PUBLISH_NO_MEMORY:
            self.refuse(s, source, LIMIT, "the front-end has no memory for this PUBLISH; nothing of it was taken")
            return
        self.refuse(s, source, BAD_REQUEST, {
            PUBLISH_BAD_SEQUENCE: f"within an incarnation sequences rise (the last one was {s.account.last_seq}), and none is below its "
                                  f"floor, which is at least 1",
            PUBLISH_BAD_COUNT: f"a PUBLISH holds 1 to {int(BATCH_COUNT_MAX)} records",
            PUBLISH_BAD_FLAGS: "of PUBLISH's flags only 1 (mandatory) is known",
            PUBLISH_BAD_EXCHANGE: f"the exchange's name is not UTF-8 without NUL of at most {int(NAME_SIZE_MAX)} bytes",
        }.get(result, f"PUBLISH is {shape_of(PUBLISH)}"))

    cdef void refuse_settle(self, Session* s, const Source* source, int result) noexcept with gil:
        self.bad_requests += 1
        if result == SETTLE_TOO_LARGE:
            self.refuse(s, source, TOO_LARGE, f"a SETTLE holds at most {int(SETTLE_RANGES_MAX)} groups, ranges and exceptions")
        else:
            self.refuse(s, source, BAD_REQUEST, f"SETTLE is {shape_of(SETTLE)}, with each first not above its last, actions 1 to 3 and "
                                                f"shards below {self.workers.shards}; nothing was settled")

    cdef void cold(self, Session* s, const Source* source, const uint8_t* header, size_t header_size) noexcept with gil:
        """A request that is not on the hot path. The session may be gone afterwards."""
        try:
            request = self.requests.read(source.verb, (<const char*> header)[:header_size])
            if source.verb == BYE:
                self.requests.session_ended(s.sid, forget=True)
                self.end_at_workers(s, True)
                self.forget(s)
            else:
                self.requests.ask(s.sid, s.hello, source.verb, request)
        except FastMQError as error:
            self.bad_requests += 1
            self.refuse(s, source, NUMBER_OF_CODE[error.code], str(error))
        except Exception:
            log.exception(f"request of verb {source.verb}")
            self.refuse(s, source, INTERNAL, TEXT_OF_NUMBER[INTERNAL])

    # ---- from Python: the loop, tests, the simulation

    def receive(
        self, int fd, uint32_t number, bytes header not None, bytes records=None, int frames=0,
    ) -> None:
        """One request: its connection's address, and its frames (`frames`: their number, where it is another)."""
        cdef Address address
        cdef const uint8_t* data = <const uint8_t*> <const char*> records if records is not None else NULL
        if not frames:
            frames = 2 if records is not None else 1
        address.fd = fd
        address.number = number
        self.receive_frames(
            &address, frames, <const uint8_t*> <const char*> header, len(header), data, 0 if records is None else len(records))

    def from_worker(self, int worker, int kind, int shard, bytes payload not None) -> None:
        """One message of a worker, instead of `pump`."""
        self.from_link(worker, kind, shard, <const uint8_t*> <const char*> payload, len(payload))

    def pump_all(self) -> int:
        """Read all that the workers have sent; how many messages it was."""
        return sum([self.pump(worker, PUMP_ALL) for worker in range(self.workers.count)])

    def take_output(self, refuse=()) -> list[tuple[tuple[int, int], bytes, bytes | None]]:
        """End a turn: link messages leave, and what is to be sent to clients is returned: [(address, header, records or None)...].

        Frames for an address in `refuse` wait, as if that client did not read.
        """
        found = self.take_frames(refuse)
        self.workers.return_loans()
        self.workers.flush()
        if self.live.link is not None:
            self.live.end_turn()
            self.live.link.flush()
        return found

    def from_events(self, int kind, bytes subscription not None) -> None:
        """A message of the XPUB thread: a subscription has one subscriber more, or none any more."""
        if self.live.activate(subscription) if kind == E_ACTIVE else self.live.deactivate(subscription):
            self.drop_routes()

    def attach(self, int worker, Link link not None, ArenaView arena=None) -> None:
        """A worker is there, new or for the first time: it gets its shards and consumers, and every session has to send again."""
        self.workers.attach(worker, link, arena)
        self.requests.worker_attached(worker)

    def detach(self, int worker) -> None:
        """A worker is gone. Its open requests are answered; what is published to it stays open until it is attached again."""
        self.workers.detach(worker)
        self.requests.worker_lost(worker)

    cdef void hear_events(self, int kind, const uint8_t* payload, size_t size) noexcept with gil:
        try:
            self.from_events(kind, (<const char*> payload)[:size])
        except Exception:
            log.exception(f"message {kind} of the XPUB thread")

    def drop_routes(self) -> None:
        """The topology or the set of live patterns has changed."""
        self.publishing.routes.clear()

    def tick(self, uint64_t now_ns) -> None:
        """The time. A turn begins with it."""
        cdef size_t i
        self.now_ns = now_ns
        if now_ns < self.tick_at_ns:
            return
        self.tick_at_ns = now_ns + TICK_NS
        self.forget_vanished()
        for i in range(self.by_sid.mask + 1 if self.by_sid.count else 0):
            if self.by_sid.entries[i].key:
                account_trim(&(<Session*> <size_t> self.by_sid.entries[i].value).account)
        self.bound_waiting(self.config.frontend_memory_max // WAITING_SHARE)
        self.workers.tick(now_ns)
        self.requests.tick(now_ns)

    def drain(self) -> None:
        """Take nothing new from now on: no HELLO, no publish, no request but those that end something."""
        self.closing = True

    def is_drained(self) -> bool:
        """Whether everything that was taken has been answered."""
        cdef size_t i
        if self.requests.pending:
            return False
        for i in range(self.by_sid.mask + 1 if self.by_sid.count else 0):
            if self.by_sid.entries[i].key and account_open(&(<Session*> <size_t> self.by_sid.entries[i].value).account):
                return False
        return True

    def counters(self) -> dict[str, int]:
        """What has happened since this process began, for `status`."""
        publishing, live = self.publishing, self.live
        return {
            "sessions": self.by_sid.count, "sessions_refused": self.sessions_refused, "requests": self.received,
            "bad_requests": self.bad_requests, "stale": self.stale, "no_session": self.no_session, "bad_incarnation": self.bad_incarnation,
            "published": publishing.published, "refused": publishing.refused, "over_window": publishing.over_window,
            "unroutable": publishing.unroutable, "delivered": self.delivered, "deliveries_dropped": self.deliveries_dropped,
            "settles_dropped": self.settling.dropped, "clients_too_slow": self.too_slow, "answers_dropped": self.strays_dropped,
            "live_patterns": len(live), "events_sent": live.events_sent,
            "events_dropped": live.events_dropped,
        }
