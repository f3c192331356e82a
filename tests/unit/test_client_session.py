"""HELLO and its answers, requests, consumers and settlements of the client's core, against a scripted broker."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from client_script import SESSION, Script, frames_of, record

from fastmq.client.core import ClientCore
from fastmq.client.deliveries import ConsumerPhase
from fastmq.client.session import Phase
from fastmq.wire.limits import Limit
from fastmq.wire.verbs import SettleAction, Verb

SECOND_NS = 10**9
OTHER = b"another!" + b"proof..."


def run(consumer: int, first_n: int, count: int, shard: int = 3, epoch: int = 7, deliveries: int = 1, exchange: str = "") -> list[Any]:
    return [consumer, shard, epoch, first_n, count, deliveries, exchange, 1700000000000]


def deliver(script: Script, *runs: list[Any], body: bytes = b"body") -> None:
    count = sum(each[4] for each in runs)
    script.say(Verb.DELIVER, list(runs), records=record("key", body) * count)


def consuming(script: Script, prefetch: int = 10, auto_ack: bool = False, size: int = 2**26) -> int:
    number = script.core.begin_consumer("q", prefetch, size, auto_ack)
    ((header, _),) = script.sent()
    assert header == [Verb.CONSUME, script.incarnation, header[2], number, "q", prefetch, size, {}]
    script.say(Verb.REPLY, header[2], None)
    assert script.core.consumer_phase(number) == (ConsumerPhase.CONSUMER_ACTIVE, None)
    return number


# ---- HELLO


@pytest.mark.parametrize("step", [0, 1])
def test_first_hello_is_empty_and_welcome_gives_the_session(step: int) -> None:
    script = Script(step, welcome=False)
    assert script.connect() == [Verb.HELLO, b"", 0, 1, "/", "me", 0, {}]
    script.welcome()
    assert (script.core.state, script.core.session_id, script.core.current_incarnation) == (Phase.PHASE_UP, SESSION, 1)
    assert script.core.window == ((0, 100), (0, 2**20))
    assert script.core.events_endpoint == "tcp://127.0.0.1:7401"


def test_hello_after_a_break_carries_the_next_incarnation() -> None:
    script = Script()
    for incarnation in (2, 3, 4):
        script.disconnect()
        assert script.connect()[1:3] == [SESSION, incarnation]
    script.welcome(4)
    assert (script.core.state, script.core.sessions, script.core.welcomes) == (Phase.PHASE_UP, 1, 2)


def test_stale_hello_is_said_again_above_the_current_incarnation() -> None:
    script = Script()
    script.disconnect()
    script.connect()
    script.incarnation = 9
    script.say(Verb.ERROR, None, "stale", "")
    ((hello, _),) = script.sent()
    assert hello[:2] == [Verb.HELLO, 10]
    script.welcome(10)
    assert script.core.state == Phase.PHASE_UP


def test_a_broker_that_always_says_stale_is_given_up() -> None:
    script = Script()
    script.disconnect()
    script.connect()
    for _ in range(20):
        script.say(Verb.ERROR, None, "stale", "")
    assert script.core.why_broken is not None
    assert script.core.why_broken[0] == "bad-protocol"


def test_welcome_of_another_incarnation_is_passed_over() -> None:
    script = Script()
    script.disconnect()
    script.connect()
    script.welcome(1)
    assert script.core.state == Phase.PHASE_GREETED
    script.welcome(2)
    assert script.core.state == Phase.PHASE_UP


def test_no_session_begins_a_new_one_with_sequences_going_on() -> None:
    script = Script()
    script.core.publish("k", b"1")
    script.core.publish("k", b"2")
    script.sent()
    script.confirm(1)
    script.disconnect()
    script.connect()
    script.say(Verb.ERROR, None, "no-session", "", incarnation=2)
    ((hello, _),) = script.decode(script.core.take_output(script.now))
    assert hello[:3] == [Verb.HELLO, b"", 0]
    script.session = OTHER
    script.welcome(1)
    assert script.core.session_id == OTHER
    assert script.publishes() == [(1, [2], [b"2"])]
    assert script.core.publish("k", b"3") == 3
    assert script.core.sessions == 2


def test_refused_hello_says_why() -> None:
    script = Script(welcome=False)
    script.connect()
    script.say(Verb.ERROR, None, "no-vhost", "there is no virtual host 'x'", sid=b"")
    assert script.core.why_broken == ("no-vhost", "there is no virtual host 'x'")


@pytest.mark.parametrize("code", ["no-session", "bad-incarnation"])
def test_a_lost_session_is_begun_again_on_a_new_connection(code: str) -> None:
    script = Script()
    script.core.publish("k", b"1")
    script.sent()
    script.say(Verb.ERROR, None, code, "")
    assert script.core.why_broken is not None
    assert script.core.why_broken[0] == "no-session"
    script.disconnect()
    assert script.connect()[1:3] == [SESSION, 2]
    script.welcome(2)
    assert script.publishes() == [(2, [1], [b"1"])]


def test_stale_that_resend_has_told_already_is_passed_over() -> None:
    script = Script()
    script.incarnation = 2
    script.say(Verb.RESEND, 100, 2**20)
    script.say(Verb.ERROR, None, "stale", "")
    assert (script.core.why_broken, script.core.strange) == (None, 0)
    script.say(Verb.ERROR, None, "stale", "", incarnation=3)
    assert script.core.why_broken is not None


def test_messages_of_another_session_are_passed_over() -> None:
    script = Script()
    script.core.publish("k", b"1")
    script.sent()
    script.say(Verb.CONFIRM, 1, [], [], 9, 9, sid=OTHER[:8])
    assert (script.core.open_count, script.core.strange, script.core.why_broken) == (1, 1, None)


def test_silence_and_a_handshake_that_never_ends_break_the_connection() -> None:
    script = Script(welcome=False)
    script.core.connected(script.now)
    assert script.core.run(script.now) == script.now + 5 * SECOND_NS
    script.core.run(script.now + 5 * SECOND_NS)
    assert script.core.why_broken is not None
    assert script.core.why_broken[0] == "not-zeromq"
    script = Script()
    script.core.run(script.now + 14 * SECOND_NS)
    assert script.core.why_broken is None
    script.core.run(script.now + 15 * SECOND_NS)
    assert script.core.why_broken == ("silent", "the broker was silent for 15 s")


def test_closing_broker_is_settled_with_but_asked_nothing_new() -> None:
    script = Script()
    number = consuming(script)
    deliver(script, run(number, 1, 1))
    script.say(Verb.CLOSING, "closing-down", "stopping")
    script.core.publish("k", b"1")
    script.core.request(Verb.STATUS, [{}])
    for shard, epoch, n, generation, *_ in script.core.take_deliveries(number):
        script.core.settle_tag(shard, epoch, n, 0, generation)
    assert script.verbs() == [Verb.SETTLE]
    script.disconnect()
    script.connect()
    script.welcome(2)
    assert script.verbs() == [Verb.PUBLISH, Verb.STATUS, Verb.CONSUME]


def test_bye_goes_behind_everything_else() -> None:
    script = Script()
    script.core.publish("k", b"1")
    script.core.goodbye()
    assert script.verbs() == [Verb.PUBLISH, Verb.BYE]


# ---- requests


@pytest.mark.parametrize("step", [0, 1])
def test_answers_find_their_requests_in_any_order(step: int) -> None:
    script = Script(step)
    one = script.core.request(Verb.DECLARE_QUEUE, ["a", {}])
    other = script.core.request(Verb.STATUS, [{}])
    assert [header for header, _ in script.sent()] == [[Verb.DECLARE_QUEUE, 1, one, "a", {}], [Verb.STATUS, 1, other, {}]]
    script.say(Verb.REPLY, other, {"queues": []})
    assert script.core.answer(one) is None
    script.say(Verb.ERROR, one, "precondition-failed", "it is durable")
    assert script.core.answer(other) == ({"queues": []}, None)
    assert script.core.answer(one) == (None, "precondition-failed", "it is durable")
    assert script.core.answer(one) is None


def test_a_request_goes_behind_what_was_published_before_it() -> None:
    script = Script()
    script.core.publish("k", b"1")
    script.core.request(Verb.STATUS, [{}])
    script.core.publish("k", b"2")
    assert script.verbs() == [Verb.PUBLISH, Verb.STATUS, Verb.PUBLISH]


def test_after_a_break_too_a_request_goes_behind_what_was_published_before_it() -> None:
    script = Script()
    script.core.publish("q", b"open")
    script.sent()
    script.disconnect()
    script.core.publish("q", b"new")
    script.core.request(Verb.GET, ["q"])
    script.connect()
    script.welcome(2)
    assert script.verbs() == [Verb.PUBLISH, Verb.PUBLISH, Verb.GET]


def test_harmless_requests_are_repeated_and_others_have_an_unknown_outcome() -> None:
    script = Script()
    verbs = [Verb.DECLARE_QUEUE, Verb.PURGE_QUEUE, Verb.DELETE_QUEUE, Verb.BIND, Verb.GET]
    numbers = [script.core.request(verb, ["x"]) for verb in verbs]
    script.sent()
    script.disconnect()
    late = script.core.request(Verb.PURGE_QUEUE, ["never sent"])
    script.connect()
    script.welcome(2)
    assert [header[:3] for header, _ in script.sent()] == [
        [Verb.DECLARE_QUEUE, 2, numbers[0]],
        [Verb.BIND, 2, numbers[3]],
        [Verb.GET, 2, numbers[4]],
        [Verb.PURGE_QUEUE, 2, late],
    ]
    for number in numbers[1:3]:
        answer = script.core.answer(number)
        assert answer is not None
        assert answer[:2] == (None, "unknown")


def test_an_abandoned_get_gives_its_message_back() -> None:
    script = Script()
    number = script.core.request(Verb.GET, ["q"])
    script.sent()
    script.core.abandon(number)
    script.say(Verb.REPLY, number, run(0, 5, 1), records=record("k", b"x"))
    assert [header for header, _ in script.sent()] == [[Verb.SETTLE, 1, [[3, 7, 0, [], [[5, 5, SettleAction.RELEASE]]]]]]
    assert script.core.answer(number) is None


def test_get_brings_a_message_or_none() -> None:
    script = Script()
    number = script.core.request(Verb.GET, ["q"])
    script.say(Verb.REPLY, number, run(0, 5, 1, exchange="logs"), records=record("k", b"x", {"priority": 3}))
    answer = script.core.answer(number)
    assert answer is not None
    assert answer[1][0][:3] == (3, 7, 5)
    assert answer[1][0][5:9] == ("logs", "k", {"priority": 3}, b"x")
    number = script.core.request(Verb.GET, ["q"])
    script.say(Verb.REPLY, number, None)
    assert script.core.answer(number) == (None, None)


# ---- consumers


@pytest.mark.parametrize("step", [0, 1])
def test_deliveries_go_to_their_consumers(step: int) -> None:
    script = Script(step)
    one, other = consuming(script), consuming(script)
    deliver(script, run(one, 1, 2), run(other, 9, 1, shard=5, deliveries=2, exchange="logs"), run(one, 3, 1))
    found = script.core.take_deliveries(one)
    assert [delivery[2] for delivery in found] == [1, 2, 3]
    generation = script.core.current_generation
    assert script.core.take_deliveries(other) == [(5, 7, 9, generation, 2, "logs", "key", None, b"body", 1700000000000)]
    assert script.core.take_deliveries(one) == []


def test_settlements_are_ranges_of_each_shard_and_epoch() -> None:
    script = Script()
    number = consuming(script, 100)
    deliver(script, run(number, 1, 6), run(number, 1, 2, shard=4))
    found = script.core.take_deliveries(number)
    actions = [0, 0, SettleAction.NACK, SettleAction.NACK, SettleAction.REJECT, 0, 0, 0]
    for (shard, epoch, n, generation, *_), action in zip(found, actions, strict=True):
        script.core.settle_tag(shard, epoch, n, action, generation)
    ((header, _),) = script.sent()
    assert header == [
        Verb.SETTLE,
        1,
        [[3, 7, 0, [[1, 2], [6, 6]], [[3, 4, SettleAction.NACK], [5, 5, SettleAction.REJECT]]], [4, 7, 0, [[1, 2]], []]],
    ]
    assert script.sent() == []


def test_half_of_the_smallest_prefetch_makes_a_settle_due() -> None:
    script = Script()
    number = consuming(script, 10)
    consuming(script, 500)
    deliver(script, run(number, 1, 10))
    found = script.core.take_deliveries(number)
    due = [script.core.settle_tag(shard, epoch, n, 0, generation) for shard, epoch, n, generation, *_ in found]
    assert due == [False] * 4 + [True] * 6


def test_half_of_a_prefetch_is_counted_for_each_shard_where_a_session_has_many_queues() -> None:
    script = Script()
    numbers = [consuming(script, 10) for _ in range(8)]
    found = []
    for shard, number in enumerate(numbers):
        deliver(script, run(number, 1, 5, shard))
        found += script.core.take_deliveries(number)
    found.sort(key=lambda tag: tag[2])                  # one of each queue in turn
    due = [script.core.settle_tag(shard, epoch, n, 0, generation) for shard, epoch, n, generation, *_ in found]
    assert due == [False] * 32 + [True] * 8             # only the fifth of a queue opens half of its window
    ((header, _),) = script.sent()
    assert header[2] == [[shard, 7, 0, [[1, 5]], []] for shard in range(8)]


@pytest.mark.parametrize("size", [5, 1500, 5000])
def test_a_run_that_waits_is_untouched_while_others_come_and_go(size: int) -> None:
    script = Script()
    slow, busy = consuming(script, 100), consuming(script, 100)
    for n in range(1, 101):                             # runs of both lie in the same blocks, which are used again
        script.say(
            Verb.DELIVER, [run(slow, n, 1), run(busy, n, 2, shard=4)],
            records=b"".join(record("key", (b"%s %d" % (name, n)).ljust(size)) for name in (b"slow", b"busy", b"busy")),
        )  # fmt: skip
        assert [tag[8].split() for tag in script.core.take_deliveries(busy)] == [[b"busy", b"%d" % n]] * 2
    assert [tag[8].split() for tag in script.core.take_deliveries(slow)] == [[b"slow", b"%d" % n] for n in range(1, 101)]
    assert script.core.take_deliveries(slow) == []


def test_auto_ack_is_sent_on_arrival_but_only_a_prefetch_ahead() -> None:
    script = Script()
    number = consuming(script, 4, auto_ack=True)
    deliver(script, run(number, 1, 4))
    ((header, _),) = script.sent()
    assert header[2] == [[3, 7, 0, [[1, 4]], []]]
    deliver(script, run(number, 5, 4))
    assert script.sent() == []
    assert len(script.core.take_deliveries(number)) == 8
    ((header, _),) = script.sent()
    assert header[2] == [[3, 7, 0, [[5, 8]], []]]


@pytest.mark.parametrize("body", [b"body", bytes(30)])
def test_an_auto_ack_consumer_that_does_not_read_never_holds_more_than_two_prefetches(body: bytes) -> None:
    script = Script()
    number = consuming(script, 10, auto_ack=True, size=400)
    outstanding, at = 0, 1
    for count in (9, 10, 10, 10):           # as a broker delivers that keeps to the window
        count = min(count, 10 - outstanding)
        if count:
            deliver(script, run(number, at, count), body=body)
            outstanding, at = outstanding + count, at + count
        for header, _ in script.sent():
            outstanding -= sum(last - first + 1 for first, last in header[2][0][3])
    assert script.core.why_broken is None
    assert [tag[2] for tag in script.core.take_deliveries(number)] == list(range(1, at)) == list(range(1, 20))


@pytest.mark.parametrize("auto_ack", [False, True])
def test_a_worker_that_was_restarted_may_fill_the_window_again(auto_ack: bool) -> None:
    script = Script()
    number = consuming(script, 4, auto_ack)
    for epoch in (7, 8, 9):
        for first in (1, 5) if auto_ack and epoch == 7 else (1,):
            deliver(script, run(number, first, 4, epoch=epoch))
    assert script.core.why_broken is None
    kept = [(tag[1], tag[2]) for tag in script.core.take_deliveries(number)]
    acknowledged = [(7, n) for n in range(1, 5)] if auto_ack else []
    assert kept == acknowledged + [(9, n) for n in range(1, 5)]     # what the dead workers wait for no more is not shown


def test_a_broker_that_delivers_beyond_the_window_is_cut() -> None:
    script = Script()
    number = consuming(script, 4)
    deliver(script, run(number, 1, 4))
    assert script.core.why_broken is None
    deliver(script, run(number, 5, 1))
    assert script.core.why_broken is not None


def test_one_delivery_larger_than_the_byte_window_is_taken() -> None:
    script = Script()
    number = consuming(script, 4, size=100)
    deliver(script, run(number, 1, 1), body=bytes(2**21))
    assert script.core.why_broken is None
    deliver(script, run(number, 2, 1), body=bytes(2**21))
    assert script.core.why_broken is not None


def test_closing_cancels_then_releases_what_was_not_seen() -> None:
    script = Script()
    number = consuming(script)
    deliver(script, run(number, 1, 3))
    script.core.end_consumer(number)
    (cancel, _), (settle, _) = script.sent()
    assert cancel == [Verb.CANCEL, 1, cancel[2], number]
    assert settle[2] == [[3, 7, 0, [], [[1, 3, SettleAction.RELEASE]]]]
    deliver(script, run(number, 4, 2))
    ((settle, _),) = script.sent()
    assert settle[2] == [[3, 7, 0, [], [[4, 5, SettleAction.RELEASE]]]]
    script.say(Verb.REPLY, cancel[2], None)
    assert script.core.consumer_phase(number) == (ConsumerPhase.CONSUMER_ENDED, None)


@pytest.mark.parametrize(("count", "shards", "settles"), [(32_766, 1, 1), (32_767, 1, 1), (32_768, 1, 2), (32_768, 3, 2), (75_000, 2, 3)])
def test_more_settlements_than_the_broker_takes_at_once_are_several_settles(count: int, shards: int, settles: int) -> None:
    """Tags as scattered and as large as they become: each SETTLE keeps to the limits, each tag is settled once and as it was meant."""
    script = Script()
    numbers = [consuming(script, Limit.CONSUMER_WINDOW_MAX) for _ in range(2)]
    wanted = {}
    for start in range(0, count, 1000):
        tags = [(3 + n * shards // count, 2**61 + 2 * n) for n in range(start, min(start + 1000, count))]
        deliver(script, *(run(numbers[start // 1000 % 2], n, 1, shard=shard, epoch=2**61) for shard, n in tags), body=b"")
    for shard, epoch, n, generation, *_ in (delivery for number in numbers for delivery in script.core.take_deliveries(number)):
        wanted[shard, n] = n // 2 % 3
        script.core.settle_tag(shard, epoch, n, wanted[shard, n], generation)
    settled = {}
    headers = [header for header, in frames_of(script.core.take_output(script.now))]
    assert len(headers) == settles
    for header in headers:
        assert len(header) <= Limit.HEADER_SIZE_MAX
        groups = msgpack.unpackb(header)[3]
        assert sum(1 + len(ranges) + len(exceptions) for _, _, _, ranges, exceptions in groups) <= Limit.SETTLE_RANGES_MAX
        for shard, epoch, up_to, ranges, exceptions in groups:
            assert (epoch, up_to) == (2**61, 0)
            assert ranges or exceptions
            for first, last, action in [*((*each, 0) for each in ranges), *exceptions]:
                assert first == last
                assert (shard, first) not in settled
                settled[shard, first] = action
    assert settled == wanted
    assert script.sent() == []


def test_deliveries_for_nobody_are_released() -> None:
    script = Script()
    deliver(script, run(77, 1, 1))
    assert script.sent()[0][0][2] == [[3, 7, 0, [], [[1, 1, SettleAction.RELEASE]]]]


def test_consumers_begin_again_after_a_break_and_old_tags_are_stale() -> None:
    script = Script()
    number = consuming(script)
    deliver(script, run(number, 1, 3))
    (held,) = script.core.take_deliveries(number)[:1]
    deliver(script, run(number, 4, 1))
    script.disconnect()
    assert script.core.take_deliveries(number) == []
    script.connect()
    script.welcome(2)
    ((header, _),) = script.sent()
    assert [header[0], *header[3:]] == [Verb.CONSUME, number, "q", 10, 2**26, {}]
    script.say(Verb.REPLY, header[2], None)
    script.core.settle_tag(held[0], held[1], held[2], 0, held[3])
    assert (script.sent(), script.core.stale_settles) == ([], 1)
    deliver(script, run(number, 5, 1))
    assert len(script.core.take_deliveries(number)) == 1


def test_resend_leaves_consumers_and_tags_as_they_are() -> None:
    script = Script()
    number = consuming(script)
    deliver(script, run(number, 1, 1))
    script.incarnation = 2
    script.say(Verb.RESEND, 100, 2**20)
    (held,) = script.core.take_deliveries(number)
    script.core.settle_tag(held[0], held[1], held[2], 0, held[3])
    assert script.sent() == [([Verb.SETTLE, 2, [[3, 7, 0, [[1, 1]], []]]], [])]


def test_consume_is_repeated_while_its_worker_is_away() -> None:
    script = Script()
    number = script.core.begin_consumer("q")
    ((header, _),) = script.sent()
    script.say(Verb.ERROR, header[2], "unavailable", "")
    due = script.core.run(script.now)
    assert due == script.now + SECOND_NS // 20
    assert script.sent() == []
    script.now = due
    script.core.run(script.now)
    ((header, _),) = script.sent()
    script.say(Verb.REPLY, header[2], None)
    assert script.core.consumer_phase(number) == (ConsumerPhase.CONSUMER_ACTIVE, None)


@pytest.mark.parametrize("how", ["refused", "cancelled"])
def test_refused_and_cancelled_consumers_end_with_a_reason(how: str) -> None:
    script = Script()
    number = script.core.begin_consumer("q")
    ((header, _),) = script.sent()
    if how == "refused":
        script.say(Verb.ERROR, header[2], "no-queue", "none")
    else:
        script.say(Verb.REPLY, header[2], None)
        script.say(Verb.CANCELLED, number, "no-queue", "none")
    assert script.core.consumer_phase(number) == (ConsumerPhase.CONSUMER_ENDED, ["no-queue", "none"])


def test_names_may_be_as_long_as_they_are() -> None:
    core = ClientCore("v" * 255, "n" * 300)
    core.connected(1)
    assert core.publish("k" * 255, b"", "e" * 255) is not None
