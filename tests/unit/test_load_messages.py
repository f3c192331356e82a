"""Numbered messages of a load: one that is lost, doubled or changed is told."""

import pytest

from fastmq.cli.messages import Kept, Tally, check_exactly_once, check_together, payloads
from fastmq.cli.sides import Void

SIZE = 64
SENT = payloads(10, SIZE)


@pytest.mark.parametrize(("received", "told"), [
    (SENT[:4] + SENT[5:], "1 of 10 messages were lost"),
    (SENT + SENT[3:4], "message 3 came twice"),
    ([*SENT[:9], SENT[9][:-1] + b"!"], "message 9 came with another body"),
    ([*SENT[:9], SENT[9][:-1]], "message 9 came with another body"),
    (SENT[:9] + payloads(1, SIZE, 10), "came that was not sent"),
    ([*SENT, b"hello"], "came that was not sent"),
    ([], "10 of 10 messages were lost"),
])
def test_message_lost_doubled_or_changed_makes_a_run_void(received, told):
    with pytest.raises(Void, match=told):
        check_exactly_once(received, 10, SIZE)


def test_messages_out_of_order_are_counted():
    assert check_exactly_once(SENT, 10, SIZE) == {"disordered": 0}
    assert check_exactly_once(SENT[5:] + SENT[:5], 10, SIZE) == {"disordered": 1}


def test_messages_are_counted_from_the_first():
    assert check_exactly_once(payloads(5, SIZE, 100), 5, SIZE, 100) == {"disordered": 0}
    with pytest.raises(Void, match="message 102 came twice"):
        check_exactly_once([*payloads(5, SIZE, 100), *payloads(1, SIZE, 102)], 5, SIZE, 100)


def packed(bodies):
    tally = Tally(10, SIZE)
    tally.add(bodies)
    return tally.packed()


@pytest.mark.parametrize(("one", "other", "told"), [
    (SENT[:7], SENT[7:], ""),
    (SENT[::2], SENT[1::2], ""),
    (SENT[:7], SENT[6:], "1 of 10 messages came to two consumers"),
    (SENT[:7], SENT[8:], "1 of 10 messages were lost"),
    (SENT[:7], [], "3 of 10 messages were lost"),
])
def test_tallies_of_consumers_are_compared(one, other, told):
    if told:
        with pytest.raises(Void, match=told):
            check_together([packed(one), packed(other)], 10)
    else:
        check_together([packed(one), packed(other)], 10)


def test_sizes_of_bodies_that_are_not_kept_are_added_up():
    kept = Kept(1000)
    kept.bodies, kept.bytes = [body[:10] for body in SENT], 10 * 1000
    assert kept.check(10) == {"disordered": 0}
    kept.bytes -= 1
    with pytest.raises(Void, match="9999 bytes, not 1000 each"):
        kept.check(10)
