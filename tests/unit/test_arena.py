"""Bodies over 16 KiB go through a worker's arena: one copy in, none out, and nothing of it is kept that nobody needs."""

from collections.abc import Callable

import pytest
from world import Client, World

from fastmq.client.deliveries import ConsumerPhase
from fastmq.wire.verbs import Verb

LARGE = 20_000


class Desk:
    """A publisher and a consumer of one queue on worker 1, in a world without faults."""

    def __init__(self) -> None:
        self.world = World(1)
        self.publisher, self.consumer = Client(self.world, "publisher"), Client(self.world, "consumer")
        self.world.clients += [self.publisher, self.consumer]
        self.worker = self.world.workers[1]
        self.queue = self.world.queue_on(1, "q")
        self.ask(Verb.DECLARE_QUEUE, [self.queue, {}])
        self.number = self.consume(self.queue)
        self.rest(lambda: self.consumer.core.consumer_phase(self.number)[0] == ConsumerPhase.CONSUMER_ACTIVE)

    def rest(self, until: Callable[[], object]) -> None:
        assert self.world.rest(lambda: bool(until())), "stuck"

    def ask(self, verb: int, fields: list) -> None:
        self.rest(lambda: self.consumer.wire is not None and self.world.settled())
        pending = self.consumer.core.request(verb, fields, self.world.now)
        self.rest(lambda: self.consumer.core.answer(pending) is not None)

    def consume(self, queue: str, window: int = 6) -> int:
        return self.consumer.core.begin_consumer(queue, window, now=self.world.now)

    def publish(self, body: bytes, key: str = "", exchange: str = "") -> None:
        core, found = self.publisher.core, []

        def sent() -> bool:
            if not found:
                found.extend([sequence] if (sequence := core.publish(key or self.queue, body, exchange, self.world.now)) else [])
            return bool(found)

        self.rest(sent)

    def take(self, count: int, number: int = 0) -> list[tuple]:
        taken: list[tuple] = []
        self.rest(lambda: taken.extend(self.consumer.core.take_deliveries(number or self.number)) or len(taken) >= count)
        return taken

    def settle(self, deliveries: list[tuple], action: int = 0) -> None:
        for shard, epoch, n, generation, *_ in deliveries:
            self.consumer.core.settle_tag(shard, epoch, n, action, generation)

    def cool(self, ticks: int = 56) -> int:
        """Let the worker and the front-end give back what they do not need, in ticks of a busy worker; the arena's bytes that take memory."""
        self.rest(lambda: not self.consumer.wire.requests and self.consumer.act() is None and not self.consumer.wire.requests)
        for _ in range(ticks):
            self.world.now += 250_000_000
            self.world.sessions.tick(self.world.now)
            self.world.sessions.take_output()
            self.worker.workshop.turn_once(self.world.now, self.world.now // 1_000_000)
            self.worker.workshop.tick(self.world.now)
            self.world.sessions.pump_all()
        return self.worker.arena.resident_size


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_large_body_arrives_as_published_through_the_arena(desk: Desk) -> None:
    bodies = [bytes([number]) * LARGE for number in range(3)]
    for body in bodies:
        desk.publish(body)
    taken = desk.take(3)
    assert [delivery[8] for delivery in taken] == bodies
    assert desk.worker.arena.resident_size >= 3 * LARGE


def test_memory_is_given_back_once_settled(desk: Desk) -> None:
    for number in range(9):                         # more than the regions lent hold
        desk.publish(bytes([number]) * LARGE)
        desk.settle(desk.take(1))
    assert desk.cool() == 0


def test_memory_is_given_back_little_by_little(desk: Desk) -> None:
    for number in range(60):
        desk.publish(bytes([number]) * LARGE)
    for _ in range(10):
        desk.settle(desk.take(6))
    taken = desk.cool(0)
    kept = desk.cool(9)                             # two and a quarter seconds: what comes again soon takes no new memory
    assert 0.5 * taken < kept < taken


def test_one_body_that_stays_keeps_only_its_own_pages(desk: Desk) -> None:
    for number in range(3):
        desk.publish(bytes([number]) * LARGE)
    taken = desk.take(3)
    desk.settle(taken[:1])
    desk.settle(taken[2:])
    assert 0 < desk.cool() <= LARGE + 2 * 4096


def test_body_goes_on_when_the_arena_is_full(desk: Desk) -> None:
    other = desk.world.queue_on(1, "full")
    desk.ask(Verb.DECLARE_QUEUE, [other, {}])
    bodies = [bytes([number]) * LARGE for number in range(30)]      # the arena holds 5 regions of 3
    for body in bodies:
        desk.publish(body, other)
    number = desk.consume(other)
    found = []
    while len(found) < len(bodies):
        taken = desk.take(1, number)
        desk.settle(taken)
        found += [delivery[8] for delivery in taken]
    assert found == bodies
    desk.cool()
    assert desk.worker.workshop.arena_counts()["written"] == 4, "once it has been full, the front-end gets no regions any more"


@pytest.mark.parametrize("size", [17_300, 17_400, 17_408, 65_000, 65_536, 70_000, 200_000])
def test_body_of_any_size_arrives(desk: Desk, size: int) -> None:
    desk.publish(b"x" * size)
    assert desk.take(1)[0][8] == b"x" * size


def test_body_that_comes_back_is_lent_again(desk: Desk) -> None:
    desk.publish(b"y" * LARGE)
    desk.settle(desk.take(1), 1)                    # nack
    again = desk.take(1)
    assert again[0][8] == b"y" * LARGE
    assert again[0][4] == 2
    desk.settle(again)
    assert desk.cool() == 0


def test_one_body_in_two_queues_is_copied_once(desk: Desk) -> None:
    other = desk.world.queue_on(1, "r")
    desk.ask(Verb.DECLARE_QUEUE, [other, {}])
    desk.ask(Verb.DECLARE_EXCHANGE, ["fan", "fanout", {}])
    for queue in (desk.queue, other):
        desk.ask(Verb.BIND, ["queue", queue, "fan", "", {}])
    number = desk.consume(other)
    desk.publish(b"z" * LARGE, "k", "fan")
    first, second = desk.take(1), desk.take(1, number)
    assert first[0][8] == second[0][8] == b"z" * LARGE
    assert desk.worker.arena.resident_size < 2 * LARGE
    desk.settle(first)
    assert desk.cool() > 0                          # the other one is still outstanding
    desk.settle(second)
    assert desk.cool() == 0


def test_loans_of_a_front_end_that_died_are_void(desk: Desk) -> None:
    desk.publish(b"w" * LARGE)
    desk.take(1)
    desk.world.kill_frontend()
    again = desk.take(1)
    assert again[0][8] == b"w" * LARGE
    desk.settle(again)
    assert desk.cool() == 0


def test_frame_that_waits_for_its_client_outlives_the_worker(desk: Desk) -> None:
    wire = desk.consumer.wire
    assert wire is not None
    desk.publish(b"v" * LARGE)
    while not desk.world.sessions.counters()["delivered"]:      # and nothing is sent to the consumer meanwhile
        desk.publisher.act()
        desk.world.frontend_reads()
        desk.worker.workshop.turn_once(desk.world.now, desk.world.now // 1_000_000)
        desk.world.sessions.pump_all()
    desk.world.kill_worker(desk.worker)
    desk.worker.arena = None
    frames = [records for address, _, records in desk.world.sessions.take_output() if address == wire.address and records]
    assert [b"v" * LARGE in records for records in frames] == [True]
