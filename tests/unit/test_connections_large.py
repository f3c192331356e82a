"""Large frames on the connections of a front-end: read into a worker's arena or beside it, and what becomes of them when somebody goes."""

from __future__ import annotations

import gc
import random
from collections.abc import Sequence

import pytest
from client_script import frame
from connected import BULK_MIN, MB, Client, End, body, mappings, opened, ping
from front_desk import record

from fastmq.wire.verbs import Verb

WINDOW_BYTES = 6 * MB
SIZES = [17_000, 17_500, 65_000, 66_000, 200_000, BULK_MIN - 100, BULK_MIN, BULK_MIN + 9000, 400_000, MB, 3 * MB, 4 * MB, 4_250_000, 6 * MB]


@pytest.mark.parametrize("seed", range(3))
def test_large_frames_in_pieces_of_random_sizes_arrive_unchanged(any_end: End, seed: int) -> None:
    end = any_end
    rnd = random.Random(seed)
    clients = [end.client() for _ in range(2)]
    want: dict[int, list[bytes]] = {client.sid: [] for client in clients}
    got: dict[int, list[bytes]] = {client.sid: [] for client in clients}
    for client in clients:
        for n, size in enumerate(rnd.sample(SIZES, 5) + [rnd.randrange(2 * MB) for _ in range(3)] + [10]):
            each = record(end.queue, body(size, n), {"type": "t"} if n % 2 else None)
            want[client.sid].append(each)
            client.publish(each)

    def come() -> bool:
        for client in clients:
            client.send_some(rnd.choice([1, 9, 1000, 10_000, 300_000]))
        for sid, _, _, entries in end.desk.published(1):
            got[sid] += [records for *_, records in entries]
        return all(len(got[sid]) == len(want[sid]) for sid in want)

    end.until(come)
    assert got == want
    assert end.connections.lent == 0
    assert all(client.is_served() for client in clients)
    end.connections.rest()
    assert end.connections.held_size < 20_000, "idle connections hold next to nothing"


def test_large_frame_that_is_no_record_is_refused_and_the_connection_lives(any_end: End) -> None:
    end = any_end
    client = end.client()
    client.publish(b"\xc1" * MB)
    assert [refusal[:3] for refusal in client.take(Verb.CONFIRM)[5]] == [[1, 1, "bad-request"]]
    good = record(end.queue, body(MB))
    client.publish(good[:-1] + good[:1], good)                          # two of them: not for a place in the arena
    end.taken(1)
    client.publish(good)
    assert end.taken(1) == [(4, good)]


def test_request_with_a_large_third_frame_is_refused_once_it_has_come(end: End) -> None:
    client = end.client()
    client.unsent += client.request(Verb.PUBLISH, 1, 1, 1, "", 0, records=b"x")[:-3] + frame(b"x", more=True) + frame(body(MB))
    assert client.take(Verb.ERROR)[4] == "bad-request"
    assert client.is_served()


def hear(client: Client) -> None:
    """Take in what the client was told of its window."""
    for answer in [answer for answer in client.answers if answer[0] == Verb.CONFIRM]:
        client.answers.remove(answer)
        assert answer[7] >= client.told_bytes, "a window never goes back"
        client.told_bytes = answer[7]


def ahead(client: Client, size: int = MB, decided: bool = True, among: Sequence[Client] = ()) -> int:
    """How many bytes the client may send beyond what it has, once it has published enough for that to follow what it was told; among the
    small requests of others, if there are any."""
    end, large = client.end, record(client.end.queue, body(size))
    for number in range(min(WINDOW_BYTES // size + 1, 40) if decided else 1):
        if among and number % 3 == 0:
            crowd(among)
        sequence = client.publish(large)
        end.taken(1)
        client.sent_bytes += len(large)
        if decided:
            end.desk.outcome(1, client.sid, held=[(sequence, sequence)])
            end.until(lambda: any(answer[0] == Verb.CONFIRM and answer[3] == client.sequence for answer in client.answers))
        end.several()
        hear(client)
    return client.told_bytes - client.sent_bytes


def crowd(clients: Sequence[Client], times: int = 1) -> None:
    """Small requests of these come, in as many turns."""
    for number in range(times):
        for client in clients:
            client.say(Verb.GET, 1000 + number, client.end.queue)
        clients[0].end.pump()
    for client in clients:
        client.take(Verb.REPLY, 1000 + times - 1)


def is_narrow(room: int, most: int = 2 * MB) -> bool:
    return most // 2 < room < 1.1 * most


@pytest.mark.parametrize("unix", [False, True])
def test_publisher_of_large_records_is_held_back_while_small_requests_of_others_come(unix: bool) -> None:
    with opened(window_bytes=WINDOW_BYTES, unix=unix) as end:
        large, others = end.client(), [end.client() for _ in range(10)]
        end.later(2)
        assert ahead(large) == WINDOW_BYTES
        crowd(others[:7])
        end.later(0.06)
        crowd(others[:7])
        assert ahead(large) == WINDOW_BYTES, "a request now and then is no crowd"
        assert end.connections.held_back == 0
        assert is_narrow(ahead(large, among=others))
        assert end.connections.held_back == WINDOW_BYTES // MB + 1
        assert is_narrow(ahead(large, 2 * MB, among=others), 4 * MB), "two of them may always be on their way"
        end.later(2)
        assert ahead(large, 200_000) == WINDOW_BYTES
        assert is_narrow(ahead(large, 200_000, among=others))
        end.later(2)
        assert ahead(large) == WINDOW_BYTES
        before = end.connections.held_back
        crowd(others)
        end.deliver(large, 1, record(end.queue, body(300_000)))
        end.loans_come_back()
        assert end.connections.held_back == before + 1, "what is delivered moves in small steps too"
        crowd(others)
        assert ahead(others[0], 1000) == WINDOW_BYTES, "who publishes small ones has all of it"


def test_publisher_that_is_held_back_need_not_wait_for_outcomes() -> None:
    with opened(window_bytes=WINDOW_BYTES) as end:
        large, others = end.client(), [end.client() for _ in range(10)]
        assert is_narrow(ahead(large, among=others))
        came = large.sent_bytes
        for count in range(1, 5):
            assert is_narrow(ahead(large, decided=False, among=others)), "there is room for two beyond what has come, though nothing is decided"
            assert large.sent_bytes > came + count * MB
        ahead(large, decided=False, among=others)
        assert large.told_bytes == came + WINDOW_BYTES, "what is without an outcome is bounded as ever"
        end.desk.outcome(1, large.sid, held=[(1, large.sequence)])
        ahead(large, decided=False, among=others)
        end.later(2)
        hear(large)
        decided = came + 5 * len(record(end.queue, body(MB)))
        assert large.told_bytes == decided + WINDOW_BYTES, "and all of it once nobody else comes, though nothing more is sent"


def test_peer_elsewhere_is_not_held_back() -> None:
    with opened(window_bytes=WINDOW_BYTES) as end:
        near, far, others = end.client(), end.client(source="127.0.0.2"), [end.client() for _ in range(10)]
        assert is_narrow(ahead(near, among=others))
        assert ahead(far, among=others) == WINDOW_BYTES, "its window is for the distance"


def test_setting_lets_nobody_be_held_back() -> None:
    with opened(window_bytes=WINDOW_BYTES, narrow_bytes=WINDOW_BYTES) as end:
        large, others = end.client(), [end.client() for _ in range(10)]
        assert ahead(large, among=others) == WINDOW_BYTES
        assert end.connections.held_back == 0


def test_what_is_no_small_request_of_others_makes_no_crowd() -> None:
    with opened(window_bytes=WINDOW_BYTES) as end:
        large, others = end.client(), [end.client() for _ in range(10)]

        def makes_none(*clients: Client) -> bool:
            end.several()
            for client in clients:
                client.answers.clear()
            made = ahead(large) != WINDOW_BYTES
            end.later(2)
            return not made

        assert makes_none(), "who says HELLO asks for nothing yet"
        crowd([large], 20)
        crowd(others[:1])
        assert makes_none(large), "it is its own, and one of another"
        for other in others:
            other.publish(record(end.queue, body(60_000)))
        end.taken(len(others))
        assert makes_none(*others), "these are not small"
        for other in others:
            other.unsent += ping()
        assert makes_none(*others), "heartbeats are no requests"
        strangers = [end.client(hello=False) for _ in range(10)]
        for stranger in strangers:
            stranger.unsent += frame(b"\xc1")
        assert makes_none(*strangers), "who has no session is nobody"
        for number, other in enumerate(others):
            end.deliver(other, 1, record(end.queue, body(300_000, number)))
        end.loans_come_back()
        crowd(others)
        assert makes_none(), "whoever takes large ones settles them"
        crowd(others)
        end.later(0.06)
        crowd([large])
        assert is_narrow(ahead(large)), "and these are one"


def begin_large(end: End, client: Client, size: int = 2 * MB) -> bytes:
    """The client sends half of a large record, which the bulk thread begins to read into the arena; all of it."""
    client.ask(Verb.GET, end.queue)
    large = record(end.queue, body(size))
    client.publish(large)
    kept, client.unsent = client.unsent[len(client.unsent) // 2 :], client.unsent[: len(client.unsent) // 2]
    end.until(lambda: not client.unsent and end.connections.lent == 1)
    end.several()
    client.unsent = kept
    return large


def grow_old(end: End) -> None:
    """The regions have lain idle for long."""
    for _ in range(2):
        end.ticked_ns = max(end.ticked_ns, end.sessions.now_ns) + 6_000_000_000
        end.sessions.tick(end.ticked_ns)
    end.several()


@pytest.mark.parametrize("fate", ["comes", "is cut"])
def test_region_with_a_place_that_is_being_filled_is_handed_back_afterwards(end: End, fate: str) -> None:
    client, other = end.client(), end.client()
    kept = begin_large(end, client)
    unsent, client.unsent = client.unsent, bytearray()
    grow_old(end)
    assert end.regions_done() == 0
    other.publish(record(end.queue, body(20_000)))                      # from another region meanwhile
    assert end.taken(1) == [(1, record(end.queue, body(20_000)))]
    grow_old(end)
    assert end.regions_done() == 1
    if fate == "comes":
        client.unsent = unsent
        assert end.taken(1) == [(1, kept)]
    else:
        client.close()
    end.until(lambda: end.regions_done() == 1)
    end.until(lambda: end.connections.lent == 0)


@pytest.mark.parametrize("after", ["it is down", "another has come"])
def test_worker_that_goes_while_a_large_record_comes_takes_no_connection_with_it(end: End, after: str) -> None:
    client = end.client()
    begin_large(end, client)
    before = mappings()
    end.desk.kill(1)
    if after == "another has come":
        end.desk.attach(1)
    end.several()
    end.until(lambda: end.connections.lent == 0)
    if after == "it is down":
        end.desk.attach(1)
    resend = client.take(Verb.RESEND)
    client.incarnation, client.sequence = resend[2], 0
    large = record(end.queue, body(3 * MB))
    client.publish(large)
    assert end.taken(1) == [(1, large)]
    assert client.is_served()
    gc.collect()
    assert mappings() == before, "the arena of the one that has gone is mapped no more"


def test_connection_that_ends_while_its_worker_is_gone_and_a_large_record_comes(end: End) -> None:
    client, other = end.client(), end.client()
    begin_large(end, client)
    client.unsent.clear()
    before = mappings()
    end.desk.kill(1)
    end.several()
    client.close()
    end.until(lambda: end.connections.count == 1)
    assert (end.connections.lent, mappings()) == (0, before - 2)
    end.desk.attach(1)
    other.take(Verb.RESEND)


def test_stop_amid_large_frames_in_both_directions_leaves_nothing(end: End) -> None:
    client = end.client()
    client.reads = False
    end.deliver(client, 1, record("q", body(4 * MB)))
    client.publish(record(end.queue, body(2 * MB)))
    client.send_some(MB)
    end.until(lambda: end.connections.lent == 2)


def test_who_holds_most_of_what_has_not_come_whole_is_closed_when_that_is_too_much(end: End) -> None:
    client, other = end.client(), end.client()
    client.unsent += client.request(Verb.PUBLISH, 1, 1, 2, "", 0, records=b"x")[:-3] + frame(record(end.queue, body(3 * MB)) * 2)[:MB]
    end.until(lambda: not client.unsent)
    end.connections.bound_received(8 * MB)
    assert end.connections.shed == 0
    end.connections.bound_received(MB)
    assert end.connections.shed == 1
    end.until(lambda: client.ended and end.connections.count == 1)
    assert other.is_served()
