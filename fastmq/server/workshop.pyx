"""A worker without its process: shards, topology, log and links, and what one turn does with them (payloads: workshop.pxd).

Owns: the shards of one worker, shard T on worker 0, the log, the worker's end of each link. Rules: a turn reads a bounded number of messages
from every link, hands each to its shards, collects what they want sent, pumps, and sends: outcomes and deliveries of one session as one
message each, whatever shards they come from, replies behind the deliveries made before them; while a link is congested nothing is pumped, and
outcomes grow in place; an outcome that waits for the log leaves, before anything else of a turn, when what was submitted with it is durable:
those in `flying` of the ports wait for one position, those since then in `filling` for the next; no Python object is made in a turn, but for
shard T. No clock, no waiting: WorkerLoop and the simulation drive it. Runs in workers, on one thread, without the GIL.

    links --read--> handle -> shards --collect--> replies, outcomes, L_UNUSED ...  -> parcels of each front-end --> links --> bells
                              shards --pump-----> deliveries                       /
"""
import types

from fastmq.model.effects cimport Effects, effects_clear, effects_next
from fastmq.model.regions cimport UNIT_SIZE
from fastmq.model.shard cimport HANDLE_NO_MEMORY, Shard
from fastmq.net.arena cimport ArenaMemory
from fastmq.net.ring cimport Link
from fastmq.server.checkpointer cimport Checkpointer, has_wishes
from fastmq.server.fifo cimport fifo_add, fifo_take
from fastmq.server.lender cimport Lender
from fastmq.server.outgoing cimport (
    Outgoing, Parcel, outgoing_add_delivery, outgoing_add_outcome, outgoing_parcel, outgoing_take_outcomes, parcel_has_deliveries,
)
from fastmq.server.port cimport port_free, port_init, port_send_counts, port_send_deliveries, port_send_delivery, port_send_outcomes
from fastmq.storage.log cimport RECORDS_DURABLE, Log
from fastmq.wire.buffer cimport buffer_clear, buffer_extend, buffer_free, buffer_init
from fastmq.wire.limits cimport DELIVERY_SIZE_MAX
from fastmq.wire.link cimport (
    L_DELIVER, L_HANDBACK, L_LOANS_BACK, L_OUTCOME, L_PUBLISH, L_REGION_DONE, L_SESSION_END, L_SHARD_COUNTS, L_TOPOLOGY, L_UNUSED,
    LinkDeliver, LinkOutcome, LinkPublish, LinkPublishEntry, LinkQueueRequest,
)

from fastmq.errors import FastMQError
from fastmq.server.recovery import recover, take_over


cdef enum:
    READ_COUNT_MAX = 64         # messages read from one link in a turn,
    READ_SIZE_MAX = 4194304     # and about how many bytes
    CONGESTED_SIZE = 1048576    # bytes waiting for a ring: no more deliveries are made
    HELD_SIZE_MAX = 2097152     # bytes of effects that deliveries may gather before they are sent
    EFFECTS_KEEP_SIZE = 262144  # an emptied effects buffer larger than this is given back
    LONE_COUNT = 4              # messages, a batch of publishes is one, since somebody waited for the log: then that is little
    LOG_LINGER_NS = 10000000    # what nobody waits for is given to the log after so long


cdef class Workshop:
    """What one worker holds. `settings`: those of fastmq.config.Config, as a map."""

    def __cinit__(self):
        cdef int i
        buffer_init(&self.queues)
        for i in range(FRONTENDS_MAX):
            port_init(&self.ports[i])

    def __dealloc__(self):
        cdef int i
        buffer_free(&self.queues)
        for i in range(FRONTENDS_MAX):
            port_free(&self.ports[i])

    def __init__(self, epoch: int, shards: list[int], settings: dict, *, log: Log, old_logs: object = (), now_ns: int = 0,
                 progress: object = None, topology: bool = False, frontends: object = (), salt: bytes = b"",
                 arena: ArenaMemory | None = None, region_size: int = UNIT_SIZE, **shard_options: int) -> None:
        """`topology`: hold shard T, which waits for the handbacks of `frontends`, those that live already; `salt`: see TopologyShard.

        `old_logs`: folders of those of another number of workers: what concerns this one goes into `log`, which is empty.
        `now_ns`: monotonic; publishers that are recovered were last heard of now. `progress`: see recover.
        `arena`: for large records, None: they are copied. `region_size` and `shard_options`: limits that tests want small (see Shard).
        """
        self.lender = Lender(arena, region_size)
        self.lender.ports = &self.ports[0]
        self.lender.port_count = FRONTENDS_MAX
        options = {"record_level": log.record_level, "resume_ns": int(settings["resume_s"] * 1e9), "publishers_max": settings["publishers_max"],
                   "publisher_keep_ns": int(settings["publisher_keep_s"] * 1e9), **shard_options}
        self.log = log
        self.keeps = log.record_level == RECORDS_DURABLE
        self.links = [None] * FRONTENDS_MAX
        self.shards = [None] * SHARDS_MAX
        for index in shards:
            shard = Shard(index, epoch, **options)
            self.shards[index] = shard
            self.shard_of[<int> index] = <PyObject*> shard
            (<Shard> shard).state.store.regions = &self.lender.regions
        if topology:
            from fastmq.model.topology_shard import TopologyShard
            from fastmq.server.topology_desk import TopologyDesk

            self.topology = TopologyShard(epoch, types.SimpleNamespace(**settings), salt, keeps=log.record_level == RECORDS_DURABLE)
            self.desk = TopologyDesk(self.topology, self.links, log)
        if self.keeps:
            self.checkpointer = Checkpointer(log, self.desk, settings["checkpoint_tail_size"], settings["memory_mark"])
            self.checkpointer.shard_of = self.shard_of
            self.checkpointer.touched = &self.touched
        if old_logs:
            take_over(log, epoch, old_logs, self.shards, self.topology, self.checkpointer, now_ns, progress)
        else:
            recover(log, epoch, self.shards, self.topology, now_ns, progress)
        self.durable = log.durable
        if topology:
            self.topology.begin_handback(frontends)

    # ---- front-ends come and go, time passes: from Python

    def attach(self, frontend: int, link: Link) -> None:
        """A front-end is reached through `link` from now on. Worker 0 sends it T's snapshot first."""
        if self.links[frontend] is not None:
            raise ValueError(f"front-end {frontend} is attached already")
        self.links[frontend] = link
        self.ports[<int> frontend].link = <PyObject*> link
        if self.desk is not None:
            self.desk.attached(frontend)
            self.heed_desk()
        self.ports[<int> frontend].lent = 0
        self.lender.fill()
        link.ring_other()

    def detach(self, frontend: int, now_ns: int) -> None:
        """A front-end has died: its sessions end, its link goes, T waits for it no more. Harmless for one that is not attached."""
        cdef int at = frontend
        self.links[at] = None
        self.ports[at].link = NULL
        port_free(&self.ports[at])
        self.lender.frontend_gone(at)
        for index, shard in enumerate(self.shards):
            if shard is not None:
                shard.frontend_gone(frontend, now_ns)
                fifo_add(&self.touched, index)
        if self.desk is not None:
            self.desk.gone(frontend)
            self.heed_desk()

    def tick(self, now_ns: int) -> None:
        """Now and then (4 times a second, once where there is nothing to do): what is due by time."""
        for index, shard in enumerate(self.shards):
            if shard is not None:
                shard.tick(now_ns)
                fifo_add(&self.touched, index)
        self.lender.tick(now_ns)
        if self.checkpointer is not None:
            self.checkpointer.measure()
        if self.desk is not None:
            self.desk.tick(now_ns)
            self.heed_desk()

    def rest(self) -> None:
        """Nothing more is delivered: the log gets exactly what was."""
        for index, shard in enumerate(self.shards):
            if shard is not None:
                shard.rest()
                fifo_add(&self.touched, index)

    def arena_counts(self) -> dict[str, int]:
        """What the arena is used for: regions, those of them that are being written, loans, warm units."""
        return self.lender.counts()

    def turn_once(self, now_ns: int, now_ms: int) -> bool:
        """One turn; whether there may be more to do at once. For tests and the simulation."""
        cdef bint busy
        cdef int64_t ns = now_ns, ms = now_ms
        with nogil:
            busy = self.turn(ns, ms)
        self.check()
        return busy

    @property
    def waiting_bytes(self) -> int:
        """Bytes that have not found room in the rings to front-ends yet."""
        return sum(link.waiting_bytes for link in self.links if link is not None)

    def check(self) -> None:
        """Raise what has made this workshop fail: its worker ends, and is started again."""
        if self.failed:
            kept = self.checkpointer.error if self.checkpointer is not None else None
            raise self.error or kept or self.log.error or MemoryError("a worker has no memory left")

    # ---- a turn

    cdef bint turn(self, int64_t now_ns, int64_t now_ms) noexcept nogil:
        """Read, handle, deliver, send, ring. True: there may be more to do at once."""
        cdef bint busy, more = False
        cdef uint32_t shard
        cdef int i
        self.now_ns = now_ns
        self.now_ms = now_ms
        for i in range(FRONTENDS_MAX):
            if self.ports[i].link != NULL:
                (<Link> self.ports[i].link).flush()
        if self.keeps:
            self.log.look()
            self.hear_log()
        busy = self.read_links()
        while self.touched.count:
            shard = fifo_take(&self.touched)
            self.collect(shard)
            fifo_add(&self.eager, shard)
        self.send_deliveries()
        if not self.failed:
            if self.outcomes_wait:          # since the turn before: they leave first now, and no delivery before them
                self.send_outcomes()
            more = self.pump()
            if self.keeps:
                more = self.checkpointer.turn(now_ns) or more
                if self.checkpointer.failed:
                    self.fail()
            if not more and self.log.appended != self.log.submitted:
                self.write_log_here()
            if self.log.appended != self.log.submitted:
                self.submit_log()
            self.send()
        return (busy or more or self.touched.count != 0) and not self.failed     # what the log has by now may have touched shards

    cdef void send(self) noexcept nogil:
        """A turn's outcomes behind its deliveries, which somebody is more likely to wait for; then the bells."""
        cdef int i
        self.send_outcomes()
        self.outcomes_wait = self.owes_outcomes()
        for i in range(FRONTENDS_MAX):
            if self.ports[i].link != NULL:
                (<Link> self.ports[i].link).ring_bell()

    cdef bint read_links(self) noexcept nogil:
        """Handle a bounded part of what has come; whether that was anything."""
        cdef LinkHead head
        cdef const uint8_t* payload
        cdef size_t size
        cdef bint busy = False
        cdef int i, count
        for i in range(FRONTENDS_MAX):
            size = 0
            count = 0
            while count < READ_COUNT_MAX and size < READ_SIZE_MAX and self.ports[i].link != NULL:
                if not (<Link> self.ports[i].link).receive(&head, &payload):
                    if (<Link> self.ports[i].link).out_of_memory:
                        self.fail()
                    break
                self.handle(i, &head, payload)
                size += head.size
                count += 1
            if count:
                self.handled += count
                (<Link> self.ports[i].link).release()
                busy = True
        return busy

    cdef void handle(self, uint32_t frontend, const LinkHead* head, const uint8_t* payload) noexcept nogil:
        """One message from a front-end. Who sends it knows which shards are here; what concerns another is passed over."""
        cdef int i
        if head.kind == L_PUBLISH:
            self.publish(frontend, payload)
        elif head.kind == L_SESSION_END:
            for i in range(SHARDS_MAX):
                if self.shard_of[i] != NULL:
                    (<Shard> self.shard_of[i]).handle_message(frontend, head.kind, payload, head.size, self.now_ms, self.now_ns)
                    fifo_add(&self.touched, i)
        elif head.kind == L_TOPOLOGY or head.kind == L_HANDBACK:
            self.topology_message(frontend, head.kind, payload, head.size)
        elif head.kind == L_SHARD_COUNTS:
            if not port_send_counts(&self.ports[frontend], self.shard_of, (<const LinkQueueRequest*> payload).token):
                self.fail()
        elif head.kind == L_LOANS_BACK or head.kind == L_REGION_DONE:
            if not self.lender.message(frontend, head, payload):
                self.fail()
        elif head.shard < SHARDS_MAX and self.shard_of[head.shard] != NULL:
            if (<Shard> self.shard_of[head.shard]).handle_message(
                frontend, head.kind, payload, head.size, self.now_ms, self.now_ns
            ) == HANDLE_NO_MEMORY:
                self.fail()
            fifo_add(&self.touched, head.shard)

    cdef void publish(self, uint32_t frontend, const uint8_t* payload) noexcept nogil:
        """Give each decision of an L_PUBLISH to its shard."""
        cdef const LinkPublish* head = <const LinkPublish*> payload
        cdef const uint8_t* exchange = payload + sizeof(LinkPublish)
        cdef const LinkPublishEntry* entries = <const LinkPublishEntry*> (exchange + ((head.exchange_size + 7) & ~<size_t> 7))
        cdef const uint8_t* records = <const uint8_t*> (entries + head.entries)
        cdef const LinkPublishEntry* e
        cdef uint64_t* queues
        cdef uint32_t first = 0, count, i
        if head.is_shared:
            records = self.lender.regions.base + head.shared_at
        while first < head.entries:
            e = &entries[first]
            count = 1
            while (first + count < head.entries and entries[first + count].first_seq == e.first_seq
                   and entries[first + count].shard == e.shard and entries[first + count].count == e.count):
                count += 1
            first += count
            if e.shard >= SHARDS_MAX or self.shard_of[e.shard] == NULL:
                continue
            buffer_clear(&self.queues)
            queues = <uint64_t*> buffer_extend(&self.queues, count * sizeof(uint64_t))
            if queues == NULL:
                self.fail()
                return
            for i in range(count):
                queues[i] = e[i].queue
            (<Shard> self.shard_of[e.shard]).state.now_ns = self.now_ns
            (<Shard> self.shard_of[e.shard]).publish(
                frontend, head.sid, head.floor, e.first_seq, e.count, queues, count, exchange, head.exchange_size,
                records + e.offset, e.size, self.now_ms)
            self.collect_outcome(e.shard)
            fifo_add(&self.touched, e.shard)

    cdef void collect_outcome(self, uint32_t shard) noexcept nogil:
        """Take what a shard has just decided, if that is all it wants sent: so outcomes come in the order of their sequences, and those of
        different shards join without being sorted."""
        cdef Effects* effects = &(<Shard> self.shard_of[shard]).state.effects
        cdef const EffectHead* effect = <const EffectHead*> effects.buffer.data
        if effects.is_outcome and effects.last == 0 and not effects.buffer.failed:
            if self.ports[effect.frontend].link != NULL:
                self.add_outcome(effect, <const LinkOutcome*> (effect + 1))
            effects_clear(effects)

    cdef void add_outcome(self, const EffectHead* effect, const LinkOutcome* outcome) noexcept nogil:
        """It leaves with this turn, or when the log has what was written so far."""
        cdef Outgoing* outgoing = &self.ports[effect.frontend].outgoing
        if effect.waits:
            outgoing = &self.ports[effect.frontend].filling
            self.log_is_urgent = self.filling_waits = True
        outgoing_add_outcome(outgoing, outcome)
        if outgoing.failed:
            self.fail()

    # ---- the log

    cdef void keep(self, Shard shard) noexcept nogil:
        """Give the log what a shard has written for it."""
        if not self.checkpointer.keep(shard):
            self.fail()
        if shard.state.hidden.size:
            self.log_is_urgent = True

    cdef void submit_log(self) noexcept nogil:
        """Begin to write what was appended, where somebody waits for it or nobody has for long enough; its outcomes wait with it."""
        if not self.log_is_urgent:
            if self.log_due_ns == 0:
                self.log_due_ns = self.now_ns + LOG_LINGER_NS
            if self.now_ns < self.log_due_ns:
                return
        self.log.submit()
        self.log_is_urgent = False
        self.log_due_ns = 0
        self.fly()

    cdef void write_log_here(self) noexcept nogil:
        """Where little has come since somebody waited for the log, as from one client that waits for its confirms, write and sync on this
        thread: two wakes less are a third of what the sync takes (docs/architecture.md)."""
        cdef uint64_t since = self.handled - self.urgent_handled
        if not self.log_is_urgent:
            return
        self.urgent_handled = self.handled
        if since > LONE_COUNT or self.flying_position > self.durable:
            return
        self.send()                         # a transient message would wait for the sync
        if not self.log.write_here():
            return
        self.log_is_urgent = False
        self.log_due_ns = 0
        self.fly()
        self.log.peek()
        self.hear_log()

    cdef void fly(self) noexcept nogil:
        """What was submitted is on its way, and its outcomes with it, unless earlier ones still are."""
        cdef Outgoing other
        cdef int i
        if not self.filling_waits or self.flying_position > self.durable:
            return
        for i in range(FRONTENDS_MAX):
            other = self.ports[i].flying                    # empty
            self.ports[i].flying = self.ports[i].filling
            self.ports[i].filling = other
        self.filling_waits = False
        self.flying_position = self.log.submitted

    cdef void hear_log(self) noexcept nogil:
        """What the log has by now may leave, and be delivered."""
        if self.log.failed:
            self.fail()
            return
        if self.log.full != self.full:
            self.tell_full()
        if self.log.durable == self.durable:
            return
        self.durable = self.log.durable
        self.land()
        if self.filling_waits and self.flying_position <= self.durable:     # they were submitted, but could not fly
            self.log.submit()
            self.fly()
            self.land()
        if self.failed:
            return
        self.send()                         # who waits for them waits no longer than he must
        self.checkpointer.show(self.durable)
        if self.desk_waits:
            self.tell_desk()

    cdef void land(self) noexcept nogil:
        """Outcomes that flew may leave, if the log has what they waited for."""
        cdef int i
        if self.flying_position > self.durable:
            return
        for i in range(FRONTENDS_MAX):
            outgoing_take_outcomes(&self.ports[i].outgoing, &self.ports[i].flying)
            if self.ports[i].outgoing.failed:
                self.fail()

    cdef void tell_full(self) noexcept nogil:
        """The disk is full, or not any more: what is to be durable is refused from now on, or taken again."""
        cdef int i
        self.full = self.log.full
        for i in range(SHARDS_MAX):
            if self.shard_of[i] != NULL:
                (<Shard> self.shard_of[i]).state.full = self.full
        if self.topology is not None:
            with gil:
                self.topology.full = bool(self.full)

    cdef void tell_desk(self) noexcept with gil:
        try:
            self.desk.durable_up_to(self.durable)
            self.desk_waits = self.desk.waits
        except Exception as error:
            self.error = error
            self.failed = True

    cdef void heed_desk(self):
        """Somebody may wait at the desk for the log."""
        self.desk_waits = self.desk.waits
        if self.desk_waits and self.log.appended != self.log.submitted:
            self.log_is_urgent = True

    cdef bint owes_log(self) noexcept nogil:
        """Whether the log does not have everything yet."""
        return self.log.appended != self.durable

    cdef void topology_message(self, uint32_t frontend, uint16_t kind, const uint8_t* payload, size_t size) noexcept with gil:
        """An L_TOPOLOGY or L_HANDBACK."""
        try:
            if self.desk is None:
                raise FastMQError(f"front-end {frontend} takes this worker for worker 0")
            self.desk.message(frontend, kind, (<const char*> payload)[:size], self.now_ns)
            self.heed_desk()
        except Exception as error:
            self.error = error
            self.failed = True

    # ---- what shards want sent

    cdef void collect(self, uint32_t shard) noexcept nogil:
        """Take a shard's effects: outcomes and deliveries into parcels, all else to its link."""
        cdef Effects* effects = &(<Shard> self.shard_of[shard]).state.effects
        cdef const EffectHead* effect
        cdef const uint8_t* payload
        cdef size_t at = 0
        cdef Port* port
        if (<Shard> self.shard_of[shard]).state.failed or effects.buffer.failed:
            self.fail()
            return
        if self.keeps:
            if (<Shard> self.shard_of[shard]).state.records.size:
                self.keep(<Shard> self.shard_of[shard])
            if has_wishes(<Shard> self.shard_of[shard]) and not self.checkpointer.grant(<Shard> self.shard_of[shard]):
                self.fail()
        if effects.buffer.size == 0:
            return
        while True:
            effect = effects_next(effects, &at, &payload)
            if effect == NULL:
                break
            port = &self.ports[effect.frontend]
            if port.link == NULL:
                if effect.head.kind == L_UNUSED:
                    self.say(effect, payload)
            elif effect.head.kind == L_OUTCOME:
                self.add_outcome(effect, <const LinkOutcome*> payload)
            elif effect.head.kind == L_DELIVER and (<const LinkDeliver*> payload).loan == 0:
                self.deliver(port, payload)
            else:
                if port.outgoing.waiting:
                    if not port_send_deliveries(port):
                        self.fail()
                self.say(effect, payload)
            if port.outgoing.failed:
                self.fail()
                return
        fifo_add(&self.held, shard)
        self.held_size += effects.buffer.size

    cdef void say(self, const EffectHead* effect, const uint8_t* payload) noexcept nogil:
        """Send a message as it is. That a queue is unused may be told to T by any front-end."""
        cdef uint32_t frontend = effect.frontend
        cdef int i
        if self.ports[frontend].link == NULL:
            for i in range(FRONTENDS_MAX):
                if self.ports[i].link != NULL:
                    frontend = i
            if self.ports[frontend].link == NULL:
                return
        if (<Link> self.ports[frontend].link).add(effect.head.kind, effect.head.shard, payload, effect.head.size) != 0:
            self.fail()

    cdef void deliver(self, Port* port, const uint8_t* payload) noexcept nogil:
        """Put a delivery into its session's parcel; one that is full, or to an earlier HELLO, leaves first."""
        cdef const LinkDeliver* delivery = <const LinkDeliver*> payload
        cdef Parcel* parcel = outgoing_parcel(&port.outgoing, delivery.sid)
        if parcel == NULL:
            return
        if parcel_has_deliveries(parcel) and (
            parcel.hello != delivery.hello or parcel.records_size + delivery.records_size > DELIVERY_SIZE_MAX
        ):
            if not port_send_delivery(port, parcel):
                self.fail()
        outgoing_add_delivery(&port.outgoing, parcel, delivery)
        self.held_size += delivery.records_size

    cdef bint pump(self) noexcept nogil:
        """Let shards deliver, each in its turn; True: one that may has more to do."""
        cdef uint32_t left = self.eager.count, shard
        while left and not self.failed:
            if self.is_congested():
                break                                       # its bell rings when there is room
            left -= 1
            shard = fifo_take(&self.eager)
            if (<Shard> self.shard_of[shard]).pump(self.now_ns):
                fifo_add(&self.eager, shard)
            self.collect(shard)
            if self.held_size > HELD_SIZE_MAX:
                self.send_deliveries()
        self.send_deliveries()
        return self.eager.count != 0 and not self.is_congested()

    cdef bint is_congested(self) noexcept nogil:
        """Whether a front-end is so far behind that no more deliveries are made. With several front-ends one would hold up the others: then
        shards need to know whose consumers to pass over."""
        cdef size_t limit = 0 if self.outcomes_wait and self.owes_outcomes() else CONGESTED_SIZE
        cdef int i
        for i in range(FRONTENDS_MAX):
            if self.ports[i].link != NULL and (<Link> self.ports[i].link).waiting() > limit:
                return True
        return False

    cdef bint owes_outcomes(self) noexcept nogil:
        """Whether outcomes wait for room in a ring."""
        cdef int i
        for i in range(FRONTENDS_MAX):
            if self.ports[i].outgoing.first != NULL:
                return True
        return False

    # ---- sending

    cdef void send_deliveries(self) noexcept nogil:
        """Send all deliveries, and forget the effects that they lie in."""
        cdef Effects* effects
        cdef int i
        for i in range(FRONTENDS_MAX):
            if self.ports[i].outgoing.waiting:
                if not port_send_deliveries(&self.ports[i]):
                    self.fail()
        while self.held.count:
            effects = &(<Shard> self.shard_of[fifo_take(&self.held)]).state.effects
            effects_clear(effects)
            if effects.buffer.room > EFFECTS_KEEP_SIZE:
                buffer_free(&effects.buffer)
        self.held_size = 0

    cdef void send_outcomes(self) noexcept nogil:
        """Send the outcomes that may leave, unless a ring is full: then they wait and grow together."""
        cdef int i
        for i in range(FRONTENDS_MAX):
            if self.ports[i].outgoing.first != NULL and not port_send_outcomes(&self.ports[i]):
                self.fail()

    cdef void fail(self) noexcept nogil:
        self.failed = True

    # ---- sleeping

    cdef bint prepare_sleep(self) noexcept nogil:
        """Whether every link lets this worker sleep. `awake` is owed either way."""
        cdef int i
        cdef bint may = True
        for i in range(FRONTENDS_MAX):
            if self.ports[i].link != NULL and not (<Link> self.ports[i].link).prepare_sleep():
                may = False
        return may

    cdef void awake(self) noexcept nogil:
        cdef int i
        for i in range(FRONTENDS_MAX):
            if self.ports[i].link != NULL:
                (<Link> self.ports[i].link).awake()
