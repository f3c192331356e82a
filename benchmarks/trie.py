"""Lookups in a TopicTrie of a million distinct patterns of four words, no key twice, with about ten results each."""

import random
from collections.abc import Sequence
from functools import partial
from itertools import product
from time import perf_counter
from typing import Any

from harness import Figures, Line, Load, Missing, Run, Stage

from fastmq._core import TopicTrie
from fastmq.cli.sides import Void

PATTERNS = 1_000_000
KEYS = 100_000  # looked up in each run
CHECK_EACH = 50  # of so many keys the results of one are compared with what they must be
WORDS = 4
SEED = 1


class Patterns:
    """A random share of all patterns over one vocabulary and `*`: so many words that a key matches about 10 of its 16 patterns."""

    def __init__(self, count: int) -> None:
        size = 1
        while (size + 2) ** WORDS * 10 <= 16 * count:
            size += 1
        self.words = [*(b"word-%x" % number for number in range(size)), b"*"]
        seeded = random.Random(SEED)
        self.numbers = set(seeded.sample(range(len(self.words) ** WORDS), count))
        self.trie = TopicTrie()
        for number in self.numbers:
            self.trie.add(b".".join(self.words[index] for index in digits(number, size + 1)), number)
        self.keys_left = seeded.sample(range(size**WORDS), size**WORDS)

    def keys(self, count: int) -> list[tuple[int, ...]]:
        """Keys, as the numbers of their words, that were not given out before."""
        size = len(self.words) - 1
        found, self.keys_left = self.keys_left[:count], self.keys_left[count:]
        if len(found) < count:
            raise Void("there are not so many different keys: fewer rounds")
        return [digits(number, size) for number in found]

    def join(self, key: tuple[int, ...]) -> bytes:
        return b".".join(self.words[index] for index in key)

    def check(self, key: tuple[int, ...], ids: Sequence[int]) -> None:
        """Raise Void unless these are the patterns that match the key."""
        size = len(self.words)
        pairs = [(index, size - 1) for index in key]
        expected = {sum(index * size**place for place, index in enumerate(one)) for one in product(*pairs)} & self.numbers
        if sorted(ids) != sorted(expected):
            raise Void(f"the key {self.join(key)!r} has the results {sorted(ids)}, not {sorted(expected)}")


def digits(number: int, base: int) -> tuple[int, ...]:
    found = []
    for _ in range(WORDS):
        number, digit = divmod(number, base)
        found.append(digit)
    return tuple(found)


def in_c(patterns: Patterns, count: int) -> Figures:
    """Ids as C has them: one call for all keys."""
    keys = patterns.keys(count)
    names = list(map(patterns.join, keys))
    match_many: Any = patterns.trie.match_many  # type: ignore[attr-defined]
    started = perf_counter()
    ids, ends = match_many(names)
    seconds = perf_counter() - started
    for number in range(0, count, CHECK_EACH):
        patterns.check(keys[number], ids[ends[number - 1] if number else 0 : ends[number]])
    return {"lookups_s": count / seconds, "results": len(ids) / count}


def in_python(patterns: Patterns, count: int) -> Figures:
    """A list for each key."""
    keys = patterns.keys(count)
    names = list(map(patterns.join, keys))
    match = patterns.trie.match
    results = 0
    started = perf_counter()
    for name in names:
        results += len(match(name))
    seconds = perf_counter() - started
    for key, name in zip(keys[::CHECK_EACH], names[::CHECK_EACH], strict=True):
        patterns.check(key, match(name))
    return {"lookups_s": count / seconds, "results": results / count}


def lookups(stage: Stage) -> dict[str, Run]:
    if not hasattr(TopicTrie, "match_many"):
        raise Missing("this version has no TopicTrie.match_many")
    patterns, count = Patterns(stage.count(PATTERNS, 10_000)), stage.count(KEYS)
    return {"ids in C": partial(in_c, patterns, count), "Python list": partial(in_python, patterns, count)}


LOADS_OF_TRIE = (
    Load(
        "trie", "a million topic patterns", lookups,
        (
            Line("lookups/s", "lookups_s", "ids in C", bound=500_000),
            Line("lookups/s", "lookups_s", "Python list", bound=200_000),
            Line("results of a lookup", "results", "ids in C"),
        ),
    ),
)  # fmt: skip
