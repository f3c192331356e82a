"""Open publishes: batches, outcomes by range, windows, and what is sent again after WELCOME and RESEND."""

from __future__ import annotations

import gc
import sys

import pytest
from client_script import EXAMPLES, Script
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmq.wire.verbs import Verb

HOUR_NS = 3600 * 10**9


def publish(script: Script, count: int, size: int = 2, exchange: str = "") -> list[int]:
    sequences = [script.core.publish("k", b"%02d" % (i % 100) + bytes(size - 2), exchange) for i in range(count)]
    assert None not in sequences
    return sequences  # type: ignore[return-value]


@pytest.mark.parametrize("step", [0, 1])
def test_records_of_one_exchange_and_flags_are_one_batch(step: int) -> None:
    script = Script(step)
    publish(script, 2)
    publish(script, 2, exchange="logs")
    script.core.publish("k", b"x", "logs", mandatory=True)
    publish(script, 1)
    headers = [header for header, _ in script.sent()]
    assert headers == [
        [Verb.PUBLISH, 1, 1, 1, 2, "", 0],
        [Verb.PUBLISH, 1, 1, 3, 2, "logs", 0],
        [Verb.PUBLISH, 1, 1, 5, 1, "logs", 1],
        [Verb.PUBLISH, 1, 1, 6, 1, "", 0],
    ]


def test_properties_stand_in_the_record_and_nil_when_all_are_default() -> None:
    script = Script()
    script.core.publish("a", b"1")
    script.core.publish("b", b"2", message_id="id", priority=3, headers={"x": [1, None]})
    ((_, records),) = script.sent()
    assert records == [["a", None, b"1"], ["b", {"message_id": "id", "priority": 3, "headers": {"x": [1, None]}}, b"2"]]


@pytest.mark.parametrize("size", [0, 1, 31, 32, 255, 256, 65535, 65536, 200_000])
def test_bodies_and_keys_of_every_size_class(size: int) -> None:
    script = Script(window=(10, 2**24))
    key = "k" * min(size, 255)
    assert script.core.publish(key, bytes(size)) == 1
    ((_, records),) = script.sent()
    assert records == [[key, None, bytes(size)]]


def test_a_batch_ends_at_64_kib_and_1000_records() -> None:
    script = Script(window=(5000, 2**24))
    publish(script, 2500)
    assert [len(sequences) for _, sequences, _ in script.publishes()] == [1000, 1000, 500]
    script = Script(window=(5000, 2**24))
    publish(script, 100, 1500)
    assert [len(sequences) for _, sequences, _ in script.publishes()] == [43, 43, 14]


def test_a_large_body_without_an_outcome_goes_with_its_client() -> None:
    script, body = Script(), bytes(100_000)
    before = sys.getrefcount(body)
    for _ in range(3):
        script.core.publish("k", body)
    script.sent()
    assert sys.getrefcount(body) == before + 3
    del script
    gc.collect()
    assert sys.getrefcount(body) == before


def test_up_to_confirms_all_but_exceptions_and_the_floor_follows() -> None:
    script = Script()
    publish(script, 10)
    script.sent()
    script.confirm(5, [[8, 9]], [[2, 3, "no-queue", "none"]])
    assert (script.core.open_count, script.core.floor, script.core.confirmed_count) == (3, 6, 5)
    assert [failure[:2] for failure in script.core.take_failures()] == [[2, "no-queue"], [3, "no-queue"]]
    publish(script, 1)
    assert script.sent()[0][0] == [Verb.PUBLISH, 1, 6, 11, 1, "", 0]
    script.confirm(11)
    assert (script.core.open_count, script.core.floor) == (0, 12)


def test_failures_tell_what_was_published_each_once() -> None:
    script = Script()
    script.core.publish("a.b", b"1", "logs", message_id="m1")
    script.core.publish("c", b"2", "logs")
    script.sent()
    script.confirm(0, [], [[1, 2, "unroutable", "nobody"]])
    script.confirm(2, [], [[1, 2, "unroutable", "nobody"]])
    assert script.core.take_failures() == [[1, "unroutable", "nobody", "logs", "a.b", "m1"], [2, "unroutable", "nobody", "logs", "c", None]]
    assert script.core.take_failures() == []


def test_confirms_of_what_was_never_sent_do_nothing() -> None:
    script = Script(window=(3, 2**20))
    publish(script, 3)
    assert script.publishes() != []
    script.confirm(2**62, [[4, 2**63]], [[4, 9, "no-queue", ""]])
    assert script.core.open_count == 0
    publish(script, 1)
    script.say(Verb.CONFIRM, 4, [[4, 4]], [[4, 4, "no-queue", ""]], 0, 0)
    assert script.core.open_count == 1
    assert script.core.take_failures() == []


def test_a_full_window_takes_no_more_until_it_is_raised() -> None:
    script = Script(window=(3, 2**20))
    publish(script, 3)
    assert script.core.publish("k", b"x") is None
    assert script.publishes()[0][1] == [1, 2, 3]
    script.confirm(1, window=(3, 2**20))
    assert script.core.publish("k", b"x") is None
    script.confirm(1, window=(4, 2**20))
    assert script.core.publish("k", b"x") == 4
    assert script.core.publish("k", b"x") is None


def test_the_window_counts_bytes_of_records_and_never_goes_back() -> None:
    script = Script(window=(100, 60))
    assert script.core.publish("k", bytes(20)) == 1  # 26 bytes of record
    assert script.core.publish("k", bytes(20)) == 2
    assert script.core.publish("k", bytes(20)) is None
    script.sent()
    script.confirm(0, window=(100, 30))
    script.confirm(0, window=(100, 78))
    assert script.core.publish("k", bytes(20)) == 3
    assert script.core.window == ((2, 100), (52, 78))


def test_one_message_larger_than_the_window_is_taken_when_none_is_outstanding() -> None:
    script = Script(window=(10, 50))
    assert script.core.publish("k", bytes(1000)) == 1
    assert script.core.publish("k", b"") is None
    assert script.publishes() == [(1, [1], [bytes(1000)])]
    script.confirm(1, window=(11, 1056))
    assert script.core.publish("k", bytes(1000)) == 2


def test_resend_sends_all_open_publishes_again_in_order_new_ones_behind() -> None:
    script = Script()
    publish(script, 6)
    script.sent()
    script.confirm(1, [[4, 4]])
    script.incarnation = 2
    script.say(Verb.RESEND, *script.window)
    assert script.core.publish("new", b"n") == 7
    assert [(incarnation, sequences) for incarnation, sequences, _ in script.publishes()] == [(2, [2, 3]), (2, [5, 6]), (2, [7])]
    script.confirm(7)
    assert script.core.open_count == 0


def test_resend_goes_as_far_as_the_window_reaches() -> None:
    script = Script(window=(6, 2**20))
    publish(script, 6)
    script.sent()
    script.incarnation = 2
    script.say(Verb.RESEND, 4, 2**20)
    assert script.publishes() == [(2, [1, 2, 3, 4], [b"00", b"01", b"02", b"03"])]
    assert script.core.publish("k", b"x") is None
    script.confirm(2, window=(5, 2**20))
    assert script.publishes() == [(2, [5], [b"04"])]
    script.confirm(5, window=(5, 2**20))  # nothing outstanding: one is always allowed
    assert script.publishes() == [(2, [6], [b"05"])]
    script.confirm(6, window=(7, 2**20))
    assert script.core.publish("k", b"x") == 7


def test_resend_that_is_known_already_changes_nothing() -> None:
    script = Script()
    publish(script, 2)
    script.sent()
    script.say(Verb.RESEND, *script.window, incarnation=1)
    assert script.sent() == []
    assert script.core.current_incarnation == 1


def test_a_window_of_an_earlier_incarnation_is_not_taken() -> None:
    script = Script(window=(2, 2**20))
    publish(script, 2)
    script.sent()
    script.incarnation = 2
    script.say(Verb.RESEND, 2, 2**20)
    script.sent()
    script.confirm(1, window=(99, 2**20), incarnation=1)
    assert script.core.window[0] == (2, 2)
    assert script.core.open_count == 1


def test_publishes_wait_for_the_session_within_the_last_window() -> None:
    script = Script(window=(5, 2**20))
    publish(script, 2)
    script.sent()
    script.disconnect()
    publish(script, 3)
    assert script.core.publish("k", b"x") is None
    assert script.connect()[1:3] == [script.session, 2]
    script.welcome(2)
    assert [(incarnation, sequences) for incarnation, sequences, _ in script.publishes()] == [(2, [1, 2]), (2, [3, 4, 5])]


def test_publishes_older_than_an_hour_are_unknown_instead_of_sent_again() -> None:
    script = Script()
    publish(script, 2)
    script.sent()
    script.now += HOUR_NS
    publish(script, 1)
    script.sent()
    script.disconnect()
    publish(script, 1)
    script.now += 10
    script.connect()
    script.welcome(2)
    assert [sequences for _, sequences, _ in script.publishes()] == [[3], [4]]
    assert [failure[:2] for failure in script.core.take_failures()] == [[1, "unknown"], [2, "unknown"]]
    assert script.core.floor == 3


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), st.integers(1, 5), st.integers(0, 2)),
        st.tuples(st.just("confirm"), st.integers(0, 40), st.integers(0, 12)),
        st.tuples(st.just("refuse"), st.integers(0, 40), st.integers(0, 5)),
        st.tuples(st.just("up_to"), st.integers(0, 40), st.just(0)),
        st.tuples(st.just("resend"), st.integers(1, 30), st.just(0)),
        st.tuples(st.just("cut"), st.integers(1, 30), st.just(0)),
        st.tuples(st.just("raise"), st.integers(0, 30), st.just(0)),
    ),
    max_size=40,
)


class Oracle:
    """What must be open, and what may be sent, in the plainest words."""

    def __init__(self) -> None:
        self.open: dict[int, bytes] = {}
        self.failed: list[int] = []
        self.sent_now: set[int] = set()  # in this incarnation
        self.sent_ever: set[int] = set()
        self.count = 0

    def decide(self, sequences: list[int], good: bool, now: bool = False) -> None:
        for sequence in sequences:
            if sequence in self.open and sequence in (self.sent_now if now else self.sent_ever):
                del self.open[sequence]
                if not good:
                    self.failed.append(sequence)


@pytest.mark.fuzz
@settings(max_examples=EXAMPLES)
@given(ACTIONS)
def test_random_outcomes_agree_with_an_oracle(actions: list[tuple[str, int, int]]) -> None:
    script, oracle, window, total, published = Script(window=(20, 2**20)), Oracle(), 20, 0, 0
    for action, a, b in actions:
        if action == "publish":
            for _ in range(a):
                body = b"%d" % published
                sequence = script.core.publish("k", body, "x" * b)
                unsent = len(oracle.open) - len(oracle.open.keys() & oracle.sent_now)
                assert (sequence is None) == (len(oracle.open) > 0 and total + unsent >= window)
                if sequence is not None:
                    published += 1
                    assert sequence == published
                    oracle.open[sequence] = body
        elif action == "confirm":
            script.confirm(0, [[a, a + b]], window=(window, 2**20))
            oracle.decide(list(range(a, a + b + 1)), True)
        elif action == "refuse":
            script.confirm(0, [], [[a, a + b, "late", ""]], window=(window, 2**20))
            oracle.decide(list(range(a, a + b + 1)), False)
        elif action == "up_to":
            end = min((sequence for sequence in oracle.open if sequence not in oracle.sent_now), default=2**60)
            script.confirm(a, window=(window, 2**20))
            oracle.decide([s for s in range(a + 1) if s < end], True, now=True)
        elif action == "raise":
            window += a
            script.confirm(0, window=(window, 2**20))
        else:
            script.incarnation += 1
            window, total, oracle.sent_now = a, 0, set()
            if action == "resend":
                script.say(Verb.RESEND, window, 2**20)
            else:
                script.disconnect()
                assert script.connect()[2] == script.incarnation
                script.window = (window, 2**20)
                script.welcome(script.incarnation)
        for incarnation, sequences, bodies in script.publishes():
            assert incarnation == script.incarnation
            for sequence, body in zip(sequences, bodies, strict=True):
                assert oracle.open[sequence] == body
                before = [s for s in oracle.open if s < sequence]
                assert all(s in oracle.sent_now for s in before)
                assert sequence not in oracle.sent_now
                assert total < window or not (oracle.open.keys() & oracle.sent_now)
                total += 1
                oracle.sent_now.add(sequence)
                oracle.sent_ever.add(sequence)
        left = [s for s in oracle.open if s not in oracle.sent_now]
        assert not left or total >= window
        assert script.core.open_count == len(oracle.open)
        assert script.core.outstanding_count == len(oracle.open.keys() & oracle.sent_now)
        assert script.core.floor == min(oracle.open, default=published + 1)
    assert sorted(failure[0] for failure in script.core.take_failures()) == sorted(oracle.failed)
    assert script.core.why_broken is None
