"""What Python may touch of _core; the C interface is in _core.pxd."""

from array import array

class RingQueue:
    """A double-ended queue of entries (a, b, c), three integers from 0 to 2**64 - 1, where `a` is not 2**64 - 1."""

    def __init__(self, *, block_slots: int = 4096) -> None: ...
    def __len__(self) -> int: ...
    @property
    def span(self) -> int:
        """The number of places, those of removed entries too."""
    @property
    def memory_size(self) -> int:
        """Bytes allocated for entries."""
    def push_back(self, a: int, b: int = 0, c: int = 0) -> None:
        """Append an entry. MemoryError changes nothing."""
    def push_front(self, a: int, b: int = 0, c: int = 0) -> None:
        """Put an entry before the first. MemoryError changes nothing."""
    def pop_front(self) -> tuple[int, int, int]:
        """Take the first entry; IndexError when there is none."""
    def pop_back(self) -> tuple[int, int, int]:
        """Take the last entry; IndexError when there is none."""
    def get(self, i: int) -> tuple[int, int, int] | None:
        """The entry at place `i` from the front, None if it was removed; IndexError from `span` on."""
    def remove(self, i: int) -> bool:
        """Remove the entry at place `i`; False when it is removed already. The others keep their places, but removed places before
        the first and behind the last entry disappear. IndexError from `span` on."""
    def clear(self) -> None:
        """Remove all entries and give all memory back."""

class TopicTrie:
    """Topic patterns with ids, integers from 0 to 2**64 - 1; patterns and keys are bytes, of at most 255 (otherwise ValueError)."""

    def __init__(self, *, block_slots: int = 4096) -> None: ...
    def __len__(self) -> int:
        """The number of (pattern, id) pairs."""
    @property
    def memory_size(self) -> int:
        """Bytes allocated, without the ids of patterns with several and the words longer than 24 bytes."""
    def add(self, pattern: bytes, id: int) -> bool:
        """Give a pattern an id; False when it has it already. MemoryError changes nothing."""
    def remove(self, pattern: bytes, id: int) -> bool:
        """Take an id from a pattern; False when it does not have it."""
    def match(self, key: bytes) -> list[int]:
        """The ids of all patterns that match the key, each once, in no order."""
    def match_many(self, keys: list[bytes]) -> tuple[array[int], array[int]]:
        """The ids for many keys, as an array of 64-bit numbers, those of one key behind those of the one before; and where those of
        each key end in it."""
    def clear(self) -> None:
        """Remove everything and give all memory back."""

def fail_allocations_after(count: int) -> None:
    """For tests: let `count` more allocations succeed, then none; -1: all."""
