"""RingQueue against a plain list of places, with blocks so small that every test grows, wraps and shrinks."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmq._core import RingQueue, fail_allocations_after

SLOT_SIZE = 24
BLOCK_SIZES = [2, 4, 8, 32]


class Oracle:
    """The same queue as a list of places; None is a removed one."""

    def __init__(self):
        self.places = []

    def trim(self):
        while self.places and self.places[0] is None:
            self.places.pop(0)
        while self.places and self.places[-1] is None:
            self.places.pop()

    def push_back(self, *entry):
        self.places.append(entry)

    def push_front(self, *entry):
        self.places.insert(0, entry)

    def pop_front(self):
        entry = self.places.pop(0)
        self.trim()
        return entry

    def pop_back(self):
        entry = self.places.pop()
        self.trim()
        return entry

    def remove(self, i):
        was = self.places[i]
        self.places[i] = None
        self.trim()
        return was is not None


def assert_same(queue, oracle):
    assert len(queue) == sum(place is not None for place in oracle.places)
    assert queue.span == len(oracle.places)
    assert [queue.get(i) for i in range(queue.span)] == oracle.places


def apply(target, operation, entry):
    """One operation; what it returns, or the kind of its exception."""
    name, where = operation
    try:
        if name.startswith("push"):
            return getattr(target, name)(*entry)
        if name == "remove":
            span = target.span if isinstance(target, RingQueue) else len(target.places)
            return target.remove(where % span) if span else None
        return getattr(target, name)()
    except IndexError:
        return IndexError


OPERATIONS = st.tuples(
    st.sampled_from(["push_back", "push_back", "push_front", "pop_front", "pop_back", "remove", "remove"]),
    st.integers(0, 2**16),
)


@given(st.sampled_from(BLOCK_SIZES), st.lists(OPERATIONS, max_size=300))
def test_ring_queue_does_what_a_list_does(block_slots, operations):
    queue, oracle = RingQueue(block_slots=block_slots), Oracle()
    for n, operation in enumerate(operations):
        entry = (n, 2**64 - 1 - n, n * n)
        assert apply(queue, operation, entry) == apply(oracle, operation, entry)
        assert len(queue) == sum(place is not None for place in oracle.places)
    assert_same(queue, oracle)


@pytest.mark.parametrize("block_slots", [*BLOCK_SIZES, 4096])
@pytest.mark.parametrize("back_first", [True, False])
def test_long_queue_keeps_order_while_it_breathes(block_slots, back_first):
    """Phases of growth and shrinking, 2,000 to 20,000 operations each, so that the directory doubles and wraps."""
    seeded, oracle, queue = random.Random(block_slots), Oracle(), RingQueue(block_slots=block_slots)
    size = min(20_000, block_slots * 500)
    n = 0
    for growth in [0.9, 0.1, 0.7, 0.5, 0.2, 0.95, 0.0]:
        for _ in range(size // 4):
            n += 1
            push = seeded.random() < growth
            back = (seeded.random() < 0.95) == (back_first == push)
            name = ("push" if push else "pop") + ("_back" if back else "_front")
            assert apply(queue, (name, 0), (n, 0, 0)) == apply(oracle, (name, 0), (n, 0, 0))
        assert_same(queue, oracle)


@pytest.mark.parametrize("block_slots", [*BLOCK_SIZES, 4096])
def test_queue_goes_round_the_directory_at_constant_length(block_slots):
    queue = RingQueue(block_slots=block_slots)
    length = block_slots * 3 + 1
    for n in range(length):
        queue.push_back(n)
    size = queue.memory_size
    for n in range(length, length + block_slots * 40):
        queue.push_back(n)
        assert queue.pop_front() == (n - length, 0, 0)
        assert queue.memory_size <= size + 2 * (block_slots * SLOT_SIZE + 16) + 64
    assert [queue.get(i)[0] for i in range(length)] == list(range(block_slots * 40, block_slots * 40 + length))


@given(st.sampled_from(BLOCK_SIZES), st.lists(OPERATIONS, max_size=60), st.integers(0, 3))
@settings(max_examples=300)
def test_operation_without_memory_changes_nothing(block_slots, operations, allocations):
    queue, oracle = RingQueue(block_slots=block_slots), Oracle()
    for n, operation in enumerate(operations):
        fail_allocations_after(allocations if n % 2 else 0)
        try:
            result = apply(queue, operation, (n, 0, 0))
        except MemoryError:
            result = MemoryError
        finally:
            fail_allocations_after(-1)
        if result is not MemoryError:
            assert apply(oracle, operation, (n, 0, 0)) == result
        assert_same(queue, oracle)


def test_new_queue_has_no_memory_and_a_short_one_little():
    queue = RingQueue()
    assert queue.memory_size == 0
    for n in range(3):
        queue.push_back(n)
    assert queue.memory_size <= 512


def test_drained_queue_gives_its_memory_back():
    queue = RingQueue()
    for n in range(100_000):
        queue.push_back(n)
    assert queue.memory_size >= 100_000 * SLOT_SIZE
    while len(queue) > 10_000:
        queue.pop_front()
    assert queue.memory_size <= 6 * 4096 * SLOT_SIZE
    while len(queue) > 5:
        queue.pop_back()
    assert queue.memory_size <= 64 * SLOT_SIZE
    queue.clear()
    assert queue.memory_size == 0


def test_removed_middle_gives_its_blocks_back_and_keeps_indexes():
    queue = RingQueue()
    for n in range(100_000):
        queue.push_back(n)
    for i in range(1, 99_999):
        assert queue.remove(i)
    assert len(queue) == 2
    assert queue.span == 100_000
    assert queue.memory_size <= 4 * 4096 * SLOT_SIZE
    assert queue.get(0) == (0, 0, 0)
    assert queue.get(50_000) is None
    assert queue.get(99_999) == (99_999, 0, 0)
    assert not queue.remove(50_000)
    assert queue.pop_back() == (99_999, 0, 0)
    assert queue.span == 1


def test_pop_passes_over_removed_places():
    queue = RingQueue(block_slots=4)
    for n in range(50):
        queue.push_back(n)
    for i in range(1, 49):
        queue.remove(i)
    assert queue.pop_front() == (0, 0, 0)
    assert queue.span == 1
    assert queue.pop_front() == (49, 0, 0)
    assert len(queue) == 0


def test_queue_at_a_blocks_edge_keeps_one_spare_block():
    queue = RingQueue()
    for n in range(4096 * 2):
        queue.push_back(n)
    queue.push_back(1)
    size = queue.memory_size
    fail_allocations_after(0)
    try:
        for _ in range(1000):
            queue.pop_back()
            queue.push_back(1)
    finally:
        fail_allocations_after(-1)
    assert queue.memory_size == size


def test_block_that_is_used_again_is_given_back_again():
    queue = RingQueue(block_slots=4)
    for n in range(12):
        queue.push_back(n)
    for i in range(4, 8):
        queue.remove(i)             # their block is the spare one now
    for n in range(12, 20):
        queue.push_back(n)          # and is used again, for the places from 12 to 15
    for i in range(12, 16):
        queue.remove(i)
    fail_allocations_after(0)
    try:
        queue.push_back(20)
    finally:
        fail_allocations_after(-1)
    assert [queue.get(i) for i in (3, 7, 11, 15, 19, 20)] == [(3, 0, 0), None, (11, 0, 0), None, (19, 0, 0), (20, 0, 0)]


@pytest.mark.parametrize("block_slots", [0, 1, 3, 4095, 131072])
def test_block_size_that_is_no_power_of_two_is_refused(block_slots):
    with pytest.raises(ValueError):
        RingQueue(block_slots=block_slots)


def test_wrong_entries_and_places_are_refused():
    queue = RingQueue()
    with pytest.raises(ValueError):
        queue.push_back(2**64 - 1)
    with pytest.raises(OverflowError):
        queue.push_back(-1)
    with pytest.raises(IndexError):
        queue.pop_front()
    with pytest.raises(IndexError):
        queue.get(0)
    with pytest.raises(IndexError):
        queue.remove(0)
