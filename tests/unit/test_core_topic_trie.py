"""TopicTrie against a dictionary of patterns that are matched one by one."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmq._core import TopicTrie, fail_allocations_after


def words_of(text):
    return text.split(b".") if text else []


def matches(pattern, key):
    """Whether a pattern matches, by a table over (words of the pattern, words of the key)."""
    pattern, key = words_of(pattern), words_of(key)
    row = [True] + [False] * len(key)
    for word in pattern:
        if word == b"#":
            following = [row[0]]
            for k in range(len(key)):
                following.append(row[k + 1] or following[k])
        else:
            following = [False] + [row[k] and word in (b"*", key[k]) for k in range(len(key))]
        row = following
    return row[-1]


class Oracle:
    def __init__(self):
        self.pairs = set()

    def add(self, pattern, id):
        new = (pattern, id) not in self.pairs
        self.pairs.add((pattern, id))
        return new

    def remove(self, pattern, id):
        was = (pattern, id) in self.pairs
        self.pairs.discard((pattern, id))
        return was

    def match(self, key):
        return sorted({id for pattern, id in self.pairs if matches(pattern, key)})


LONG_WORD = b"a-word-of-more-than-24-bytes-with-an-end-"
WORDS = [b"a", b"b", b"c", b"", b"*a", b"##", LONG_WORD + b"1", LONG_WORD + b"2"]
PATTERNS = st.lists(st.sampled_from([*WORDS, b"*", b"#", b"*", b"#"]), max_size=5).map(b".".join)
KEYS = st.lists(st.sampled_from([*WORDS, b"*", b"#"]), max_size=6).map(b".".join).map(lambda key: key[:255])
IDS = st.integers(0, 5) | st.just(2**64 - 1)
OPERATIONS = st.tuples(st.sampled_from(["add", "add", "remove"]), PATTERNS, IDS)


@given(st.lists(OPERATIONS, max_size=80), st.lists(KEYS, min_size=1, max_size=20))
@settings(max_examples=400)
def test_trie_matches_what_a_list_of_patterns_matches(operations, keys):
    trie, oracle = TopicTrie(block_slots=8), Oracle()
    for name, pattern, id in operations:
        assert getattr(trie, name)(pattern, id) == getattr(oracle, name)(pattern, id)
        assert len(trie) == len(oracle.pairs)
    for key in keys:
        assert sorted(trie.match(key)) == oracle.match(key)
    for pattern, id in sorted(oracle.pairs):
        assert trie.remove(pattern, id)
    assert len(trie) == 0
    assert trie.memory_size == 0


@pytest.mark.parametrize(("pattern", "key", "matched"), [
    (b"", b"", True), (b"#", b"", True), (b"*", b"", False), (b"", b"a", False),
    (b"a", b"a", True), (b"a", b"A", False), (b"a", b"a.", False), (b"a.*", b"a.", True), (b"*.a", b".a", True),
    (b"a.#", b"a", True), (b"a.#", b"a.b.c", True), (b"a.#", b"ab", False), (b"#.a", b"a", True), (b"#.a", b"b.a.b", False),
    (b"a.#.b", b"a.b", True), (b"a.#.b", b"a.x.y.b", True), (b"#.#", b"", True), (b"#.*", b"", False), (b"*.#", b"a", True),
    (b"*.*", b"a.b", True), (b"*.*", b"a", False), (b"a*", b"ab", False), (b"*", b"*", True), (b"a", b"*", False), (b"a", b"#", False),
])
def test_pattern_matches_key_as_in_rabbitmq(pattern, key, matched):
    trie = TopicTrie()
    trie.add(pattern, 7)
    assert trie.match(key) == ([7] if matched else [])
    assert matches(pattern, key) is matched


def random_pattern(seeded, words):
    picked = (seeded.random() for _ in range(4))
    return b".".join(b"*" if p < 0.1 else b"#" if p < 0.15 else b"w%d" % seeded.randrange(words) for p in picked)


@pytest.mark.parametrize("block_slots", [64, 4096])
def test_large_trie_grows_and_gives_its_memory_back(block_slots):
    """30,000 patterns: segments split, cells fill blocks; in random order they go, and with the last one all memory."""
    seeded, trie = random.Random(7), TopicTrie(block_slots=block_slots)
    patterns = sorted({random_pattern(seeded, 30) for _ in range(30_000)})
    ids = {pattern: n for n, pattern in enumerate(patterns)}
    for pattern, n in ids.items():
        assert trie.add(pattern, n)
    full = trie.memory_size
    keys = [b".".join(b"w%d" % seeded.randrange(30) for _ in range(4)) for _ in range(20)]
    for key in keys:
        assert sorted(trie.match(key)) == [n for pattern, n in ids.items() if matches(pattern, key)]
    seeded.shuffle(patterns)
    kept = patterns[:100]
    for pattern in patterns[100:]:
        assert trie.remove(pattern, ids.pop(pattern))
    assert trie.memory_size < full * 7 // 10      # a block with one cell in use stays
    for key in keys:
        assert sorted(trie.match(key)) == sorted(n for pattern, n in ids.items() if matches(pattern, key))
    for pattern in kept:
        assert trie.remove(pattern, ids[pattern])
    assert trie.memory_size == 0


def test_match_many_has_for_each_key_what_match_has():
    seeded, trie = random.Random(8), TopicTrie(block_slots=8)
    for n in range(2000):
        trie.add(random_pattern(seeded, 6), n)
    keys = [random_pattern(seeded, 7) for _ in range(100)] + [b"", b"nothing.here"]
    ids, ends = trie.match_many(keys)
    for key, begin, end in zip(keys, [0, *ends], ends, strict=False):
        assert sorted(ids[begin:end]) == sorted(trie.match(key))
    assert (len(ends), ends[-1]) == (len(keys), len(ids))
    assert [list(each) for each in trie.match_many([])] == [[], []]
    assert [list(each) for each in TopicTrie().match_many([b"a"])] == [[], [0]]
    with pytest.raises(ValueError):
        trie.match_many([b"a" * 256])
    with pytest.raises(TypeError):
        trie.match_many(["a"])


@pytest.mark.parametrize("count", [1, 2, 3, 31, 32, 33, 63, 64, 65, 100, 5000])
def test_id_under_several_patterns_is_returned_once(count):
    trie = TopicTrie()
    for n in range(count):
        for pattern in (b"#", b"a.*", b"*.b", b"a.b"):
            assert trie.add(pattern, n * 3)
    trie.add(b"#.b", 1)
    assert sorted(trie.match(b"a.b")) == sorted([1, *range(0, count * 3, 3)])
    for n in range(count):
        for pattern in (b"#", b"a.*", b"*.b", b"a.b"):
            assert trie.remove(pattern, n * 3)
    assert trie.match(b"a.b") == [1]


@pytest.mark.parametrize("pattern", [
    b".".join([b"#"] * 127 + [b"a"]), b".".join([b"#", b"*"] * 63 + [b"a"]), b".".join([b"#", b"a"] * 60 + [b"b"]), b"#.#.#.#.a",
])
@pytest.mark.parametrize("key", [b".".join([b"a"] * 128), b".".join([b"a"] * 127 + [b"b"]), b"." * 255])
def test_pattern_of_many_wildcards_is_matched_in_bounded_time(pattern, key):
    """Trying one way after the other would take longer than the universe has lasted."""
    trie = TopicTrie()
    trie.add(pattern, 1)
    for _ in range(100):
        assert trie.match(key) == ([1] if matches(pattern, key) else [])


@pytest.mark.parametrize("count", [63, 64, 65, 200])
def test_many_nodes_that_stay_are_each_reached_once(count):
    """Behind a first `#` every node is reached again at each word of the key; up to 64 are compared, more are stamped."""
    trie, middles = TopicTrie(), [bin(n + 2)[3:] for n in range(count)]            # all short words of 0 and 1
    for n, middle in enumerate(middles):
        assert trie.add(b".".join([b"#", *(b"a" if bit == "0" else b"*" for bit in middle), b"#"]), n)
    assert sorted(trie.match(b".".join([b"a"] * 127))) == list(range(count))
    assert sorted(trie.match(b"a.a")) == [n for n, middle in enumerate(middles) if len(middle) <= 2]


def test_all_short_wildcard_patterns_together_are_matched_in_bounded_time():
    trie, patterns = TopicTrie(), [b""]
    for _ in range(6):
        patterns += [(p + b"." if p else b"") + word for p in patterns for word in (b"#", b"*", b"a")]
    patterns = sorted(set(patterns))
    for n, pattern in enumerate(patterns):
        assert trie.add(pattern, n)
    key = b".".join([b"a"] * 128)
    assert sorted(trie.match(key)) == [n for n, pattern in enumerate(patterns) if matches(pattern, key)]


@given(st.lists(OPERATIONS, max_size=40), KEYS, st.integers(0, 4))
@settings(max_examples=300)
def test_add_without_memory_changes_nothing(operations, key, allocations):
    trie, oracle = TopicTrie(block_slots=8), Oracle()
    for name, pattern, id in operations:
        fail_allocations_after(allocations)
        try:
            result = getattr(trie, name)(pattern, id)
        except MemoryError:
            assert name == "add"
        else:
            assert result == getattr(oracle, name)(pattern, id)
        finally:
            fail_allocations_after(-1)
        assert len(trie) == len(oracle.pairs)
    assert sorted(trie.match(key)) == oracle.match(key)
    for pattern, id in sorted(oracle.pairs):
        assert trie.remove(pattern, id)
    assert trie.memory_size == 0


def test_match_without_memory_raises_and_the_next_one_is_right():
    trie = TopicTrie()
    for n in range(100):
        trie.add(b"#", n)
        trie.add(b"a.#", n)
    failures = 0
    while True:
        fail_allocations_after(failures)
        try:
            trie.match(b"a.b")
            break
        except MemoryError:
            failures += 1
        finally:
            fail_allocations_after(-1)
    assert failures > 3
    assert sorted(trie.match(b"a.b")) == list(range(100))


def test_too_long_and_wrong_arguments_are_refused():
    trie = TopicTrie()
    assert trie.add(b"a" * 255, 1)
    assert trie.match(b"a" * 255) == [1]
    for call in (lambda: trie.add(b"a" * 256, 1), lambda: trie.remove(b"a" * 256, 1), lambda: trie.match(b"a" * 256)):
        with pytest.raises(ValueError):
            call()
    with pytest.raises(TypeError):
        trie.add("a", 1)
    with pytest.raises(TypeError):
        trie.match(None)
    with pytest.raises(OverflowError):
        trie.add(b"a", 2**64)
    with pytest.raises(ValueError):
        TopicTrie(block_slots=9)


def test_cleared_trie_is_empty_and_may_be_used_again():
    trie = TopicTrie(block_slots=8)
    for n in range(500):
        trie.add(LONG_WORD + b"%d.*" % n, n)
        trie.add(b"*.#", n)
    trie.clear()
    assert trie.memory_size == 0
    assert trie.match(b"a") == []
    assert trie.add(b"a", 1)
    assert trie.match(b"a") == [1]
