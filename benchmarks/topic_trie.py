"""Lookups a second in a TopicTrie of a million patterns of four words, each lookup another key: python benchmarks/topic_trie.py

Three kinds of words: `even`, all as frequent; `skewed`, as in a text; `levels`, another vocabulary at each place (10, 100, 1,000 and
100 words). The first column are ids in C, the second a Python list for each key; then the results a lookup and the memory.
"""

import argparse
import itertools
import random
import sys
import time
from collections.abc import Iterator

from fastmq._core import TopicTrie

WORDS = 4
CASES = ["even:60:0.06:0", "even:100:0.15:0", "even:100:0.08:0.003", "even:1000:0.1:0.01", "even:10000:0.1:0.02", "skewed:1000:0.05:0",
         "levels:0:0.1:0.003"]


class Vocabulary:
    """What the words at each place are, and how frequent."""

    def __init__(self, kind: str, size: int) -> None:
        sizes = (10, 100, 1000, 100) if kind == "levels" else (size,) * WORDS
        weights = [[1 / (rank + 1) if kind == "skewed" else 1.0 for rank in range(count)] for count in sizes]
        self.words = [[b"%s-%x" % (b"abcd"[place:place + 1] if kind == "levels" else b"word", n) for n in range(len(each))]
                      for place, each in enumerate(weights)]
        self.cumulative = [list(itertools.accumulate(each)) for each in weights]

    def draw(self, seeded: random.Random, count: int) -> Iterator[tuple[bytes, ...]]:
        return zip(*(seeded.choices(words, cum_weights=cumulative, k=count)
                     for words, cumulative in zip(self.words, self.cumulative, strict=True)), strict=True)


def make_patterns(seeded: random.Random, vocabulary: Vocabulary, count: int, stars: float, hashes: float) -> list[bytes]:
    """Distinct patterns; `stars` and `hashes` are the shares of the words that are wildcards, before what is drawn twice is left out."""
    found: dict[bytes, None] = {}
    for _ in range(40):
        for words in vocabulary.draw(seeded, count):
            drawn = (seeded.random() for _ in range(WORDS))
            found[b".".join(b"*" if d < stars else b"#" if d < stars + hashes else word
                            for d, word in zip(drawn, words, strict=True))] = None
        if len(found) >= count:
            return list(found)[:count]
    raise SystemExit(f"so few words do not make {count} patterns")


def measure(patterns: list[bytes], keys: list[bytes], rounds: int) -> str:
    trie = TopicTrie()
    for number, pattern in enumerate(patterns):
        trie.add(pattern, number)
    in_c, in_python, share = [], [], len(keys) // (2 * rounds)
    results = 0
    for n in range(rounds):
        part = keys[2 * n * share:(2 * n + 1) * share]
        began = time.perf_counter()
        ids, _ = trie.match_many(part)
        in_c.append(share / (time.perf_counter() - began))
        results += len(ids)
        part = keys[(2 * n + 1) * share:(2 * n + 2) * share]
        began = time.perf_counter()
        for key in part:
            trie.match(key)
        in_python.append(share / (time.perf_counter() - began))
    in_c.sort()
    in_python.sort()
    return (f"{in_c[rounds // 2] / 1e6:7.2f} {in_python[rounds // 2] / 1e6:7.2f}   ({in_c[0] / 1e6:.2f}-{in_c[-1] / 1e6:.2f},"
            f" {in_python[0] / 1e6:.2f}-{in_python[-1] / 1e6:.2f}) {results / share / rounds:8.1f} {trie.memory_size / 2**20:7.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patterns", type=int, default=1_000_000)
    parser.add_argument("--keys", type=int, default=600_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("cases", nargs="*", help="kind:vocabulary:share of *:share of #, for example even:100:0.1:0.01")
    given = parser.parse_args()
    cases = given.cases or CASES
    print(f"{'case':<24} {'M/s, C':>7} {'list':>7}   (least-most) {'results':>16} {'MiB':>7}")
    for case in cases:
        kind, size, stars, hashes = case.split(":")
        seeded = random.Random(given.seed)
        vocabulary = Vocabulary(kind, int(size))
        patterns = make_patterns(seeded, vocabulary, given.patterns, float(stars), float(hashes))
        keys = [b".".join(words) for words in vocabulary.draw(seeded, given.keys)]
        print(f"{case:<24} {measure(patterns, keys, given.rounds)}", flush=True)
        del patterns, keys


if __name__ == "__main__":
    sys.exit(main())
