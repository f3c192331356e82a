"""A shard does what a simple one in plain Python does, and its records rebuild it, whatever happens to it."""
from __future__ import annotations

import os
import random
from collections import Counter

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from shard_driver import EPOCH, TINY, Driver, Told, record
from shard_oracle import Oracle, Queue, comparable

from fastmq.wire.link import LinkKind

RESUME_NS, KEEP_NS, PUBLISHERS_MAX = 50, 90, 3
QUEUES = st.integers(1, 4)
SIDS = st.integers(101, 104)
FRONTENDS = st.integers(0, 1)
FLAGS = st.sampled_from([0, 1, 4, 5])
SIZES = st.sampled_from([0, 1, 20, 60, 110, 130, 140, 500])        # 128 bytes is a large message with TINY


class ShardMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.driver = Driver(resume_ns=RESUME_NS, publisher_keep_ns=KEEP_NS, publishers_max=PUBLISHERS_MAX, **TINY)
        self.oracle = Oracle(RESUME_NS, KEEP_NS, PUBLISHERS_MAX)
        self.body = 0

    # ---- publishing

    @rule(sid=SIDS, frontend=FRONTENDS, queues=st.sets(QUEUES, min_size=1), sizes=st.lists(SIZES, min_size=1, max_size=12),
          step=st.integers(-8, 2), floor=st.integers(0, 12), exchange=st.sampled_from([b"", b"logs", b"a much longer name"]))
    def publish(self, sid: int, frontend: int, queues: set[int], sizes: list[int], step: int, floor: int, exchange: bytes) -> None:
        publisher = self.oracle.publishers.get(sid)
        first = max(1, (publisher.highest if publisher else 0) + 1 + step)
        records = []
        for size in sizes:
            self.body += 1
            records.append(record(b"%06d" % self.body + b"x" * size, properties={"headers": {"n": size}} if size == 20 else None))
        floor = max(0, first - floor)
        outcome = self.oracle.publish(sid, floor, first, sorted(queues), records, exchange, self.driver.now_ms, self.driver.now_ns)
        self.driver.publish(sid, first, sorted(queues), records, floor=floor, exchange=exchange, frontend=frontend)
        told = self.driver.told()
        found = [(seq, 0) for where, who, low, high in told.held for seq in range(low, high + 1) if (where, who) == (frontend, sid)]
        found += [(seq, code) for where, who, low, high, code in told.refused for seq in range(low, high + 1)
                  if (where, who) == (frontend, sid)]
        assert sorted(found) == outcome

    @rule(ms=st.integers(0, 2), ns=st.integers(0, 60))
    def time_passes(self, ms: int, ns: int) -> None:
        self.driver.now_ms += ms
        self.driver.now_ns += ns
        self.oracle.tick(self.driver.now_ns)
        self.driver.shard.tick(self.driver.now_ns)
        self.told_unused(self.driver.told())

    # ---- delivering

    @rule()
    def pump(self) -> None:
        told = self.driver.pump()
        for message in told.delivered:
            self.oracle.delivered(message)
        assert all(count == 1 or size <= TINY["delivery_size_max"] for count, size in told.deliveries)
        self.oracle.at_rest()

    @rule(sid=SIDS, frontend=FRONTENDS, queue=QUEUES)
    def get(self, sid: int, frontend: int, queue: int) -> None:
        hello = self.oracle.sessions.get(sid, (0, 1))[1]
        code, messages = self.driver.get(sid, queue, hello=hello, frontend=frontend)
        if code == 0:
            self.oracle.enter(sid, frontend, hello, self.driver.now_ns)
            assert bool(messages) == bool(self.oracle.queues[queue].ready)
            for message in messages:
                self.oracle.got(sid, queue, message)
            self.oracle.leave(sid)
        else:
            assert queue not in self.oracle.queues or any(c.exclusive and c.queue == queue for c in self.oracle.consumers.values())
        self.told_unused(self.driver.last)

    # ---- settling

    @precondition(lambda self: self.oracle.outstanding)
    @rule(pick=st.integers(0, 100), count=st.integers(1, 6), action=st.integers(0, 3), up_to=st.booleans())
    def settle(self, pick: int, count: int, action: int, up_to: bool) -> None:
        tags = sorted(self.oracle.outstanding)
        tag = tags[pick % len(tags)]
        sid = self.oracle.outstanding[tag][1].sid
        span = (tag, tag + count - 1)
        self.settled(sid, EPOCH, tag if up_to else 0, [span] if action == 0 and not up_to else [],
                     [(*span, action)] if action else [])

    @rule(sid=SIDS, epoch=st.sampled_from([EPOCH, EPOCH, EPOCH - 1]), up_to=st.integers(0, 60),
          ranges=st.lists(st.tuples(st.integers(0, 60), st.sampled_from([0, 3, 64, 10**6, 2**63])), max_size=4),
          exceptions=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 4), st.integers(1, 3)), max_size=3))
    def settle_anything(self, sid: int, epoch: int, up_to: int, ranges: list[tuple[int, int]],
                        exceptions: list[tuple[int, int, int]]) -> None:
        self.settled(sid, epoch, up_to, [(first, first + more - (more == 3) * 4) for first, more in ranges if first or more != 3],
                     [(first, first + more, action) for first, more, action in exceptions])

    def settled(self, sid: int, epoch: int, up_to: int, ranges: list[tuple[int, int]], exceptions: list[tuple[int, int, int]]) -> None:
        frontend = self.oracle.sessions.get(sid, (0, 0))[0]
        self.oracle.settle(sid, epoch, up_to, ranges, exceptions)
        self.driver.settle(sid, epoch=epoch, up_to=up_to, ranges=ranges, exceptions=exceptions, frontend=frontend)

    # ---- coming and going

    @rule(sid=SIDS, frontend=FRONTENDS, again=st.sampled_from([0, 0, 0, 1]), number=st.integers(1, 3), queue=QUEUES,
          messages=st.integers(0, 6), size=st.sampled_from([0, 100, 300, 10**6]), exclusive=st.sampled_from([False] * 5 + [True]))
    def consume(self, sid: int, frontend: int, again: int, number: int, queue: int, messages: int, size: int, exclusive: bool) -> None:
        hello = self.oracle.sessions.get(sid, (0, 1))[1] + again
        code = self.oracle.consume(frontend, sid, hello, number, queue, messages, size, exclusive, self.driver.now_ns)
        assert self.driver.consume(sid, number, queue, messages=messages, size=size, hello=hello, exclusive=exclusive,
                                   frontend=frontend) == code
        self.told_unused(self.driver.last)

    @rule(sid=SIDS, frontend=FRONTENDS, number=st.integers(1, 3))
    def cancel(self, sid: int, frontend: int, number: int) -> None:
        assert self.driver.cancel(sid, number, frontend=frontend) == self.oracle.cancel(frontend, sid, number)
        self.told_unused(self.driver.last)

    @rule(sid=SIDS, bye=st.booleans())
    def session_ends(self, sid: int, bye: bool) -> None:
        frontend = self.oracle.sessions.get(sid, (0, 0))[0]
        self.oracle.end(sid, bye, self.driver.now_ns)
        self.driver.end(sid, bye=bye, frontend=frontend)
        self.told_unused(self.driver.told())

    @rule(frontend=FRONTENDS)
    def frontend_dies(self, frontend: int) -> None:
        gone = [sid for sid, session in self.oracle.sessions.items() if session[0] == frontend]
        waiting = {number for number, queue in self.oracle.queues.items() if queue.unused[0]}
        for sid in gone:
            self.oracle.end(sid, False, self.driver.now_ns)
        self.driver.shard.frontend_gone(frontend, self.driver.now_ns)
        queues = self.driver.shard.dump()["queues"]
        for number, queue in self.oracle.queues.items():
            if queue.unused[0] and number not in waiting:                           # whose was the last consumer is open
                assert queues[number]["unused"][0] in gone
                queue.unused = (*queues[number]["unused"], queue.unused[2])

    # ---- queues

    @rule(queue=QUEUES, flags=FLAGS)
    def declare(self, queue: int, flags: int) -> None:
        if queue in self.oracle.queues:
            flags = self.oracle.queues[queue].flags
        self.oracle.queues.setdefault(queue, Queue(flags))
        assert self.driver.request(LinkKind.L_QUEUE_DECLARE, 0, queue, flags=flags) == (0, self.oracle.counts(queue))

    @precondition(lambda self: self.oracle.queues)
    @rule(queue=QUEUES, kind=st.sampled_from([LinkKind.L_QUEUE_DELETE, LinkKind.L_QUEUE_PURGE, LinkKind.L_QUEUE_COUNTS]))
    def ask(self, queue: int, kind: LinkKind) -> None:
        code, counts = self.driver.request(kind, 0, queue)
        if queue not in self.oracle.queues:
            assert (code, counts) == (10, None)
            return
        expected = self.oracle.counts(queue)
        if kind == LinkKind.L_QUEUE_DELETE:
            assert counts == expected._replace(affected=expected.ready)
            assert sorted(self.driver.last.cancelled) == self.oracle.delete(queue)
        elif kind == LinkKind.L_QUEUE_PURGE:
            assert counts == expected._replace(affected=expected.ready, ready=0)
            self.oracle.queues[queue].ready.clear()
        else:
            assert counts == expected

    @rule(queues=st.sets(QUEUES, min_size=2))
    def attach(self, queues: set[int]) -> None:
        live = {queue: self.oracle.queues[queue].flags if queue in self.oracle.queues else 0 for queue in queues}
        dropped = [queue for queue in self.oracle.queues if queue not in live]
        told = [row for queue in dropped for row in self.oracle.delete(queue)]
        for queue, flags in live.items():
            self.oracle.queues.setdefault(queue, Queue(flags))
        self.driver.attach(live)
        assert sorted(self.driver.told().cancelled) == sorted(told)

    # ---- the comparison

    @rule()
    def rebuilt_from_records(self) -> None:
        other = self.driver.rebuilt()
        assert other.dump() == self.driver.shard.dump()
        stale = self.driver.shard.stats()["stale_settles"]
        assert stale == self.oracle.stale
        self.oracle.stale = 0
        self.driver.shard = other                                                   # and on with the rebuilt one,
        for publisher in self.oracle.publishers.values():                           # whose times begin anew
            publisher.used_ns = self.driver.now_ns
        for queue in self.oracle.queues.values():
            queue.unused = (*queue.unused[:2], self.driver.now_ns)

    def told_unused(self, told: Told) -> None:
        assert sorted(told.unused) == sorted(self.oracle.unused)
        self.oracle.unused.clear()

    @invariant()
    def equal(self) -> None:
        assert comparable(self.driver.shard.dump()) == self.oracle.dump()
        assert self.driver.shard.stats()["stale_settles"] == self.oracle.stale

    def teardown(self) -> None:
        for sid in list(self.oracle.sessions):
            self.session_ends(sid, True)
        self.driver.attach({})
        self.driver.pump()
        stats = self.driver.shard.stats()
        assert (stats["chunk_bytes"], stats["live_bytes"], stats["outstanding"], stats["sessions"]) == (0, 0, 0, 0)


ShardMachine.TestCase.settings = settings(
    max_examples=int(os.environ.get("FASTMQ_EXAMPLES", "150")), stateful_step_count=60, deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
TestShard = ShardMachine.TestCase


def test_dense_random_run_agrees_with_the_oracle_and_reaches_every_edge() -> None:
    """The rules above again, in long runs with much more traffic than hypothesis makes, from a seed."""
    reached: Counter[str] = Counter()
    for seed in range(int(os.environ.get("FASTMQ_SEEDS", "40"))):
        try:
            reached += Counter(dense_run(seed))
        except AssertionError as error:
            raise AssertionError(f"seed {seed}") from error
    assert all(reached[edge] for edge in ("moved", "stragglers", "duplicates", "stale_settles", "rebuilt", "evicted")), reached


def dense_run(seed: int) -> dict[str, int]:
    rnd, machine = random.Random(seed), ShardMachine()
    oracle, reached = machine.oracle, Counter[str]()
    often = rnd.choice([2, 8, 30])                      # how much traffic there is for one event
    for queue in range(1, 5):
        machine.declare(queue, rnd.choice([0, 1, 4, 5]))

    def sid() -> int:
        return rnd.randint(101, 104)

    def event() -> None:
        rnd.choice([
            lambda: machine.declare(rnd.randint(1, 4), rnd.choice([0, 1, 4, 5])),
            lambda: machine.ask(rnd.randint(1, 4), rnd.choice([LinkKind.L_QUEUE_DELETE, LinkKind.L_QUEUE_PURGE, LinkKind.L_QUEUE_COUNTS])),
            lambda: machine.attach(set(rnd.sample(range(1, 5), 3))),
            lambda: machine.session_ends(sid(), rnd.random() < 0.3),
            lambda: machine.frontend_dies(rnd.randint(0, 1)),
            lambda: machine.cancel(sid(), rnd.randint(0, 1), rnd.randint(1, 3)),
            lambda: machine.time_passes(1, rnd.randint(0, 60)),
            lambda: machine.settle_anything(sid(), EPOCH, 0, [(rnd.randint(0, 99), 10**6)], []),
            lambda: machine.rebuilt_from_records(),
            lambda: machine.publish(sid(), 0, {rnd.randint(1, 4), 9}, [1, 2], 0, 3, b""),
        ])()

    def consume() -> None:
        machine.consume(sid(), rnd.randint(0, 1), rnd.random() < 0.05, rnd.randint(1, 3), rnd.randint(1, 4), rnd.randint(0, 40),
                        rnd.choice([0, 400, 10**6]), rnd.random() < 0.05)

    def publish() -> None:
        sizes = [rnd.choice([0, 1, 20, 60, 110, 130, 140, 500]) for _ in range(rnd.randint(1, 25))]
        machine.publish(sid(), rnd.randint(0, 1), set(rnd.sample(range(1, 5), rnd.choice([1, 1, 2]))), sizes,
                        rnd.choice([0, 0, 0, 1, -5, -20]), rnd.choice([0, 10, 30]), rnd.choice([b"", b"a", b"bb"]))

    def settle() -> None:
        if oracle.outstanding:
            machine.settle(rnd.randint(0, 100), rnd.choice([1, 1, 10]), rnd.choice([0, 0, 0, 1, 2, 3]), rnd.random() < 0.2)

    for _ in range(250):
        before = set(oracle.publishers)
        if rnd.randrange(often) == 0:
            event()
        else:
            rnd.choice([consume, publish, publish, machine.pump, settle, settle, settle,
                        lambda: machine.get(sid(), rnd.randint(0, 1), rnd.randint(1, 4))])()
        machine.equal()
        stats = machine.driver.shard.stats()
        for edge in ("moved", "stragglers", "duplicates", "stale_settles"):
            reached[edge] = max(reached[edge], stats[edge])
        reached["evicted"] += bool(before - set(oracle.publishers))
    machine.rebuilt_from_records()
    reached["rebuilt"] += 1
    machine.teardown()
    return reached
