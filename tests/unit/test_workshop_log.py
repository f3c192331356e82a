"""server/workshop.pyx with a log whose disk is full, or fails: what is refused, what goes on, and that nobody is told what is not durable."""

import errno
import select
import threading

import msgpack
import pytest
from disk import disk
from stand_in import EPOCH, StandIn, make_workshop, record
from waiting import wait_until

from fastmq.storage.file_log import FileLog
from fastmq.wire.link import LinkKind
from fastmq.wire.verbs import Code, Verb

PUBLISHER, CONSUMER = 11, 22
KEPT, BRIEF = 100, 101              # a durable queue, and one that is not


class Bench:
    """A worker with one shard, T, and a log of segments of 64 KiB on a disk in memory, and its front-end."""

    def __init__(self, **settings: int) -> None:
        self.disk = disk().MemoryDisk()
        self.log = FileLog("/log", files=self.disk, segment_size=65536)
        self.workshop = make_workshop(1, self.log, settings=settings, topology=True)
        self.frontend = StandIn(self.workshop)
        self.frontend.declare(0, KEPT)
        self.frontend.declare(0, BRIEF, flags=0)
        self.frontend.turn()
        self.sequence = 0

    def until(self, kind):
        """Turns until a message of this kind comes; its value."""
        return wait_until(lambda: [value for found, value in self.frontend.turn() if found == kind], what=f"{kind!r} comes")[0]

    def publish(self, *records: bytes, queue: int = KEPT):
        """The outcome of publishes: what is held and what is refused, and why."""
        self.frontend.publish(PUBLISHER, 1, [(self.sequence + 1, [queue], 0, list(records))])
        self.sequence += len(records)
        return self.until(LinkKind.L_OUTCOME)

    def fill(self) -> None:
        """Publish until the log wants its second segment, for which there is no room; half of the first one is left."""
        self.publish(record("q", b"first"))
        self.disk.broken = {"fallocate": errno.ENOSPC}
        for _ in range(60):
            outcome = self.publish(record("q", b"x" * 300))
            assert outcome.held or outcome.refused[0][2] == Code.DISK_FULL
        wait_until(lambda: self.frontend.turn() is not None and self.workshop.log.full, what="the log is full")

    def empty(self) -> None:
        """Make room."""
        self.disk.broken = {}
        wait_until(lambda: self.frontend.turn() is not None and not self.workshop.log.full, what="there is room")

    def ask(self, verb: Verb, *fields):
        """The code of T's answer."""
        self.frontend.topology(verb, PUBLISHER, *fields)
        return self.until(LinkKind.L_REPLY).code


@pytest.fixture
def bench():
    made = Bench()
    yield made
    made.log.close()


def test_sync_that_ends_in_the_middle_of_a_turn_is_heard_though_the_turn_looks_for_a_checkpoint():
    bench = Bench(checkpoint_tail_size=1000)
    bench.disk.shared = True                                    # somebody copies: the checkpoint stays in hand
    bench.publish(record("q", b"x" * 2000))
    wait_until(lambda: bench.frontend.turn() is not None and bench.log.checkpointing, what="a checkpoint waits")
    syncing, sync = threading.Semaphore(0), threading.Semaphore(0)
    bench.disk.before = lambda call: call == "fdatasync" and (syncing.release(), sync.acquire(timeout=10))
    bench.frontend.topology(Verb.DECLARE_QUEUE, PUBLISHER, "new", {})
    bench.frontend.publish(PUBLISHER, 2, [(2, [KEPT], 0, [record("q", b"a")])])
    bench.frontend.turn()
    assert syncing.acquire(timeout=10)
    bench.frontend.publish(PUBLISHER, 2, [(3, [KEPT], 0, [record("q", b"b")])])
    bench.frontend.turn()
    told = bench.workshop.desk.durable_up_to

    def tell(position: int) -> None:
        """The second sync ends while the desk is told of the first."""
        told(position)
        sync.release()
        assert select.select([bench.log.fileno()], [], [], 10)[0]

    bench.workshop.desk.durable_up_to = tell
    sync.release()
    last, woken = [], True
    while not last or last[-1].held[-1][1] < 3:
        assert woken, "the worker sleeps, and the log has what it waits for"
        busy = bench.workshop.turn_once(bench.frontend.now_ms * 1_000_000, bench.frontend.now_ms)
        last += [value for kind, value in bench.frontend.read() if kind == LinkKind.L_OUTCOME]
        woken = busy or bool(select.select([bench.log.fileno()], [], [], 1)[0])
    bench.disk.before, bench.disk.shared = None, False
    sync.release(100)
    bench.log.close()


def transient(body: bytes) -> bytes:
    return msgpack.packb(["q", {"persistent": False}, body])


def test_full_disk_refuses_what_is_to_be_durable_and_takes_the_rest_until_there_is_room(bench):
    bench.fill()
    n = bench.sequence
    assert bench.publish(record("q", b"x")).refused == [(n + 1, n + 1, Code.DISK_FULL)]
    assert bench.publish(transient(b"x")).held == [(n + 2, n + 2)]
    assert bench.publish(record("q", b"x"), queue=BRIEF).held == [(n + 3, n + 3)]
    bench.frontend.publish(PUBLISHER, 1, [(n + 4, [KEPT], 0, [transient(b"a"), record("q", b"b"), transient(b"c")])])
    outcomes = bench.frontend.all_of(LinkKind.L_OUTCOME)
    assert sorted(span for outcome in outcomes for span in outcome.held) == [(n + 4, n + 4), (n + 6, n + 6)]
    assert [span for outcome in outcomes for span in outcome.refused] == [(n + 5, n + 5, Code.DISK_FULL)]
    bench.sequence += 3
    bench.empty()
    assert bench.publish(record("q", b"x")).held == [(n + 7, n + 7)]


def test_full_disk_lets_consumers_settlements_and_deletes_go_on_and_refuses_durable_declares(bench):
    assert bench.ask(Verb.DECLARE_QUEUE, "old", {}) == Code.OK
    bench.fill()
    bench.frontend.consume(0, KEPT, CONSUMER)
    count = len(bench.until(LinkKind.L_DELIVER).records)
    assert count > 3
    before = bench.log.appended
    bench.frontend.settle(0, CONSUMER, [(1, count)])
    bench.frontend.turn()
    assert bench.log.appended > before
    assert bench.ask(Verb.DECLARE_QUEUE, "old", {}) == Code.OK          # it is there
    assert bench.ask(Verb.DECLARE_QUEUE, "new", {}) == Code.DISK_FULL
    assert bench.ask(Verb.DECLARE_EXCHANGE, "new", "topic", {}) == Code.DISK_FULL
    assert bench.ask(Verb.DECLARE_EXCHANGE, "brief", "topic", {"durable": False}) == Code.OK
    assert bench.ask(Verb.BIND, "queue", "old", "brief", "", {}) == Code.OK
    assert bench.ask(Verb.DECLARE_QUEUE, "brief", {"durable": False}) == Code.OK
    assert bench.ask(Verb.DELETE_QUEUE, "old", {}) == Code.OK
    assert bench.log.durable > before                                   # in the rest of the segment


def test_who_is_refused_for_want_of_room_does_not_use_it_up(bench):
    bench.fill()
    before = bench.log.appended
    for _ in range(100):
        assert bench.publish(record("q", b"x")).refused
        assert bench.publish(transient(b"x")).held
    assert bench.log.appended == before


@pytest.mark.parametrize("call", ["pwrite", "fdatasync"])
def test_failed_write_or_sync_ends_the_worker_and_nobody_is_told(bench, call):
    assert bench.publish(record("q", b"x")).held == [(1, 1)]
    bench.disk.broken = {call: errno.EIO}
    bench.frontend.publish(PUBLISHER, 1, [(2, [KEPT], 0, [record("q", b"y")])])
    with pytest.raises(OSError, match=call) as failed:
        wait_until(lambda: LinkKind.L_OUTCOME in [kind for kind, _ in bench.frontend.turn()], what="an outcome, which must not come")
    assert failed.value.errno == errno.EIO
    assert bench.workshop.failed
    assert not bench.frontend.read()


def test_failure_that_nobody_waits_for_ends_the_worker_too(bench):
    bench.disk.broken = {"fallocate": errno.EIO}
    while bench.log.durable < 100:              # the next segment is asked for by then
        try:
            bench.publish(record("q", b"x" * 300))
        except OSError:
            break
    with pytest.raises(OSError, match="fallocate"):
        wait_until(lambda: bench.frontend.turn() and False, what="the worker ends")


def test_recovery_goes_on_behind_what_was_not_written_while_the_disk_was_full(bench):
    bench.fill()
    n = bench.sequence
    for sid in range(1000, 1010):               # publishers that the log never hears of, and that are forgotten
        bench.frontend.publish(sid, 1, [(1, [KEPT], 0, [record("q", b"x")])])
    bench.frontend.turn()
    bench.empty()
    bench.workshop.tick(10**16)
    assert bench.publish(record("q", b"after")).held == [(n + 1, n + 1)]
    kept = bench.workshop.shards[0].take_counts()[KEPT][0]
    bench.log.close()
    log = FileLog("/log", files=disk().MemoryDisk(bench.disk.contents()), segment_size=65536)
    again = StandIn(make_workshop(1, log, epoch=EPOCH + 1))
    again.turn()
    assert again.workshop.shards[0].take_counts()[KEPT][0] == kept
    log.close()
