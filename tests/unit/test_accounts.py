"""server.accounts: open publishes against a plain dictionary, with windows so small that rings wrap, spill and shrink in every run."""

from hypothesis import given, settings
from hypothesis import strategies as st

from fastmq.server.accounts import PublishAccount


class Oracle:
    """The same in plain Python: each publish with the workers that still have to answer, and the window when it is narrow."""

    def __init__(self, window, window_bytes):
        self.window, self.window_bytes = window, window_bytes
        self.narrow_bytes = self.narrow_until = 0
        self.was_narrow = False
        self.void()

    def void(self):
        self.open, self.sizes, self.sent, self.last, self.floor = {}, {}, 0, 0, 1
        self.bytes = self.decided = self.decided_bytes = 0
        self.held, self.refused, self.due = set(), {}, False

    def reach(self, now):
        """How many bytes may be sent in all, but for what was told before."""
        wide = self.decided_bytes + self.window_bytes
        return min(wide, self.bytes + self.narrow_bytes) if now < self.narrow_until else wide

    def came(self, now, told_bytes):
        narrow = now < self.narrow_until
        if self.was_narrow and self.reach(now) > told_bytes and (not narrow or told_bytes < self.bytes + self.narrow_bytes * 3 // 4):
            self.due = True
        self.was_narrow = self.was_narrow and narrow
        return self.due

    def decide(self, seq, code):
        self.due = True
        self.decided += 1
        self.decided_bytes += self.sizes[seq]
        if code:
            self.refused[seq] = code
        else:
            self.held.add(seq)

    def add(self, floor, entries):
        if self.sent == 0:
            self.floor = floor
        for seq, size, workers, code in entries:
            self.sizes[seq] = size
            self.sent += 1
            self.bytes += size
            self.last = seq
            if workers:
                self.open[seq] = [workers, 0]
            else:
                self.decide(seq, code)

    def answer(self, first, last, worker, code):
        for seq in sorted(seq for seq in self.open if first <= seq <= last):
            entry = self.open[seq]
            if entry[0] & worker:
                entry[0] &= ~worker
                entry[1] = entry[1] or code
                if not entry[0]:
                    del self.open[seq]
                    self.decide(seq, entry[1])

    @property
    def up_to(self):
        if self.open:
            return min(self.open) - 1
        return self.last if self.sent else 0


steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 12), st.integers(0, 3), st.integers(0, 7), st.integers(0, 3), st.integers(1, 50)),
        st.tuples(st.just("answer"), st.integers(-30, 2), st.integers(0, 30), st.sampled_from([1, 2, 4]), st.sampled_from([0, 0, 0, 9])),
        st.tuples(st.just("tell")),
        st.tuples(st.just("narrow"), st.integers(1, 500), st.integers(1, 20)),
        st.tuples(st.just("trim")),
        st.tuples(st.just("void")),
    ),
    max_size=80,
)


@settings(max_examples=400)
@given(steps)
def test_account_agrees_with_its_oracle(actions):
    account, oracle = PublishAccount(8, 400), Oracle(8, 400)
    next_seq = 1
    told = (8, 400)
    for now, (kind, *values) in enumerate(actions):
        if kind == "add":
            count, gap, workers, code, size = values
            first = next_seq + gap
            entries = []
            for i in range(count):
                allowed = account.allows(i, size * (i + 1))
                in_window = oracle.sent + i < told[0] and oracle.bytes + size * (i + 1) <= told[1]
                assert allowed == (in_window or (i == 0 and not oracle.open and not oracle.due))
                entries.append((first + i, size, workers if allowed else 0, code if allowed and not workers else 0 if allowed else 8))
            next_seq = first + count
            account.add(first, entries)
            oracle.add(first, entries)
            assert account.came(now) == oracle.came(now, told[1])
        elif kind == "answer":
            back, length, worker, code = values
            first = max(1, next_seq + back)
            account.answer(first, first + length, worker, code)
            oracle.answer(first, first + length, worker, code)
        elif kind == "tell":
            told_bytes = told[1]
            up_to, ranges, refusals, *told = account.tell(now)
            assert up_to == oracle.up_to
            assert {seq for first, last in ranges for seq in range(first, last + 1)} == oracle.held
            assert {seq: code for first, last, code in refusals for seq in range(first, last + 1)} == oracle.refused
            assert told == [oracle.decided + 8, max(told_bytes, oracle.reach(now))]
            oracle.held, oracle.refused, oracle.due = set(), {}, False
        elif kind == "narrow":
            oracle.narrow_bytes = max(values[0], oracle.narrow_bytes) if now < oracle.narrow_until else values[0]
            oracle.narrow_until, oracle.was_narrow = now + values[1], True
            account.narrow(values[0], now, oracle.narrow_until)
        elif kind == "trim":
            account.trim()
        else:
            account.void()
            oracle.void()
            told = (8, 400)
        assert account.open == len(oracle.open)


def test_one_publish_that_stays_open_does_not_make_the_account_grow():
    account = PublishAccount(64, 10**9)
    account.add(1, [(1, 10, 2, 0)])
    for seq in range(2, 100_000):
        account.add(1, [(seq, 10, 1, 0)])
        account.answer(seq, seq, 1)
        if seq % 50 == 0:
            account.tell()
    assert account.open == 1
    assert account.stragglers == 1
    assert account.room <= 1024
    assert account.tell()[0] == 0
    account.answer(1, 1, 2)
    assert account.tell()[:2] == (99_999, [(1, 1)])


def test_outcomes_are_told_once_and_ranges_join():
    account = PublishAccount(64, 10**9)
    account.add(5, [(seq, 10, 1, 0) for seq in range(5, 25)])
    assert account.tell()[0] == 4
    for first, last in ((10, 12), (13, 13), (16, 20), (14, 15)):
        account.answer(first, last, 1)
    account.answer(21, 21, 1, 9)
    assert account.tell()[:3] == (4, [(10, 13), (16, 20), (14, 15)], [(21, 21, 9)])
    account.answer(5, 9, 1)
    assert account.tell()[:3] == (21, [(5, 9)], [])
    account.answer(5, 30, 1)
    assert account.tell()[:3] == (24, [(22, 24)], [])
    account.answer(5, 30, 1)
    assert account.tell()[:3] == (24, [], [])


def test_publish_needs_the_answer_of_each_worker_and_the_first_one_counts():
    account = PublishAccount(64, 10**9)
    account.add(1, [(1, 10, 0b11, 0), (2, 10, 0b11, 0), (3, 10, 0b11, 0)])
    account.answer(1, 3, 0b01)
    account.answer(2, 2, 0b01, 9)
    assert account.tell()[:3] == (0, [], [])
    account.answer(3, 3, 0b10, 9)
    account.answer(1, 2, 0b10)
    assert account.tell()[:3] == (3, [(1, 2)], [(3, 3, 9)])


def test_empty_account_gives_its_memory_back():
    account = PublishAccount(60_000, 10**9)
    account.add(1, [(seq, 10, 1, 0) for seq in range(1, 50_001)])
    assert account.room >= 50_000
    account.trim()
    assert account.room >= 50_000, "not while something is open"
    account.answer(1, 50_000, 1)
    account.trim()
    assert account.room == 0
    account.add(50_001, [(50_001, 10, 1, 0)])
    account.answer(50_001, 50_001, 1)
    assert account.tell()[0] == 50_001
