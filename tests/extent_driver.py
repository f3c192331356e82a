"""Drives a Shard that has a log with extents and checkpoints: a fake of both, with delays and failures."""
from __future__ import annotations

import random
from collections import deque
from typing import Any

import msgpack
from durable_driver import DurableDriver, Run, kept
from shard_driver import EPOCH, SHARD, TINY, Delivered, Told

from fastmq.model.shard import Shard

AGE_DONE, AGE_MORE, AGE_WAITS, AGE_SPOILED = range(4)
TINY_EXTENTS: dict[str, Any] = {**TINY, "extent_size_max": 600, "age_leave_bytes": 200, "age_least_bytes": 100,
                                "age_step_bytes": 200, "publishers_max": 3}


class ExtentDriver(DurableDriver):
    """Extents are kept by number, as the log would; `rnd`: what is written and read may be late, or fail; None: at once."""

    def __init__(self, rnd: random.Random | None = None, **settings: Any) -> None:
        self.rnd = rnd
        self.syncs = rnd is None                                # the log has everything at each pump
        self.written: dict[int, bytes] = {}
        self.numbers: set[int] = set()                          # ever written
        self.failing: dict[int, bytes] = {}                     # not written, and the shard has not been told
        self.reads: deque[int] = deque()
        self.out = b""
        self.begun: int | None = None                           # position of the snapshot in hand
        self.position = 0                                       # of the last checkpoint,
        self.blob = b""                                         # its content
        self.checkpointed: dict[int, bytes] = {}                # and the extents that it knows
        self.gets: dict[int, tuple[int, int]] = {}              # those that wait: session and queue by token
        self.answered: dict[int, Any] = {}
        self.seen: dict[int, set[int]] = {}                     # bodies that were delivered, by queue
        super().__init__(**settings)

    def chance(self, of: float) -> bool:
        return self.rnd is not None and self.rnd.random() < of

    def wishes(self) -> None:
        """Take what the shard wants done with extents."""
        writes, reads, frees = self.shard.take_wishes()
        for number, payload in writes:
            assert number >> 48 == SHARD
            assert number not in self.numbers, "a number is used again"
            assert len(payload) <= 600 + 700 or self.rnd is None
            self.numbers.add(number)
            if self.chance(0.1):
                self.failing[number] = payload
            else:
                self.written[number] = payload
        self.reads.extend(reads)
        for number in frees:
            self.written.pop(number, None)

    def answer_reads(self, count: int = 1 << 30) -> None:
        """Give the shard what it asked for, and take back what could not be written."""
        self.wishes()
        for number, payload in list(self.failing.items()):
            if count > 1 or self.chance(0.5):
                del self.failing[number]
                self.shard.refuse_extent(number, payload)
        while self.reads and count:
            count -= 1
            number = self.reads.popleft()
            if number in self.failing:
                self.shard.refuse_extent(number, self.failing.pop(number))
            elif number in self.written:
                self.shard.give_extent(number, self.written[number])
            self.wishes()
        self.note(self.told())

    def age(self) -> int:
        result = self.shard.age()
        self.wishes()
        return result

    def begin(self) -> None:
        self.log()
        self.begun = len(self.records)
        self.out = self.shard.begin_snapshot()

    def step(self) -> int:
        """Go on with the snapshot; when it is whole, it becomes a checkpoint, unless an extent before it failed."""
        assert self.begun is not None
        result, more = self.shard.step_snapshot()
        self.out += more
        self.wishes()
        if result == AGE_DONE and not self.failing:
            self.position, self.blob, self.checkpointed = self.begun, self.out, dict(self.written)
        if result in (AGE_DONE, AGE_SPOILED):
            self.begun = None
        return result

    def checkpoint(self) -> None:
        self.sync()
        self.begin()
        while self.begun is not None:
            assert self.step() in (AGE_DONE, AGE_MORE)
        assert self.position == len(self.records)

    # what survives

    def kept(self) -> dict[int, dict[int, tuple[Any, ...]]]:
        self.wishes()
        writing = self.shard_filling()
        return kept(self.shard, {**self.written, **self.failing, **writing})

    def shard_filling(self) -> dict[int, bytes]:
        """The payload that is being filled."""
        number, payload = self.shard.filling()
        return {number: payload} if number else {}

    def surviving(self) -> dict[int, bytes]:
        return self.checkpointed

    def recovered(self) -> Shard:
        self.log()
        other = Shard(SHARD, EPOCH + 1, **self.settings)
        if self.blob:
            other.apply(self.blob, self.now_ns)
        other.apply(self.records[self.position:], self.now_ns)
        other.recovered()
        while other.pump(self.now_ns):
            pass
        return other

    def crash(self, other: Shard) -> None:
        """Go on with a shard that was recovered."""
        self.shard = other
        self.written = dict(self.checkpointed)
        self.numbers = set(self.written)
        self.failing.clear()
        self.reads.clear()
        self.gets.clear()
        self.begun = None

    # GETs

    def note(self, told: Told) -> None:
        for _, token, code, value in told.replies:
            assert token in self.gets, "it was answered before, or does not wait"
            del self.gets[token]
            self.answered[token] = code, value
        self.check_order(told.delivered + [message for *_, value in told.replies if isinstance(value, list) for message in value])

    def check_order(self, messages: list[Delivered]) -> None:
        """First deliveries of a queue come in the order in which they were published, which their bodies begin with."""
        if self.rnd is None or not messages:
            return
        outstanding = self.shard.dump()["outstanding"]
        for message in sorted(messages, key=lambda message: message.tag):
            if message.tag in outstanding:
                queue, body = outstanding[message.tag][0], int(msgpack.unpackb(message.record)[2][:5])
                seen = self.seen.setdefault(queue, {0})
                assert body in seen or body > max(seen), f"queue {queue}: {body} after {max(seen)}"
                seen.add(body)

    def pump(self) -> Told:
        if self.syncs:
            self.sync()
            self.shard.pump(self.now_ns)                        # marks
            self.sync()
        told = super().pump()
        self.note(told)
        return told

    def answer(self, frontend: int) -> Any:
        """The reply to the request just sent; None: it waits."""
        self.last = self.told()
        found = [reply for reply in self.last.replies if reply[1] == self.token]
        self.last.replies = [reply for reply in self.last.replies if reply[1] != self.token]
        self.note(self.last)
        self.check_order([message for *_, value in found if isinstance(value, list) for message in value])
        return found[0][2:] if found else None

    def get(self, sid: int, queue: int, *, hello: int = 1, frontend: int = 0) -> Any:
        answer = super().get(sid, queue, hello=hello, frontend=frontend)
        if answer is None:
            self.gets[self.token] = sid, queue
        return answer

    def end(self, sid: int, *, bye: bool = False, frontend: int = 0) -> None:
        super().end(sid, bye=bye, frontend=frontend)
        self.gets = {token: waits for token, waits in self.gets.items() if waits[0] != sid}


class ExtentRun(Run):
    """A random run with ageing, failures and checkpoints; it checks the order of what is delivered."""

    driver: ExtentDriver

    def __init__(self, seed: int) -> None:
        rnd = random.Random(seed + 1)
        super().__init__(seed, ExtentDriver(rnd, **TINY_EXTENTS))
        self.reached: dict[str, int] = {}

    def count(self, what: str) -> None:
        self.reached[what] = self.reached.get(what, 0) + 1

    def step(self) -> None:
        driver = self.driver
        action = self.rnd.randrange(10)
        if action == 0:
            self.count(f"age {driver.age()}")
        elif action == 1:
            if driver.begun is None:
                driver.begin()
            for _ in range(self.rnd.randint(1, 9)):
                if driver.begun is not None:
                    self.count(f"snapshot {driver.step()}")
        elif action < 5:
            self.count("failed") if driver.failing else None
            driver.answer_reads(self.rnd.randint(1, 3))
        else:
            super().step()
        if self.rnd.random() < 0.3:
            driver.pump()
        driver.wishes()
        self.count("waiting GET") if driver.gets else None
