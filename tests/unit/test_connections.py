"""The connections of a front-end, on real sockets in one process."""

from __future__ import annotations

import random
import socket
import struct

import pytest
from client_script import GREETING, frame
from connected import BUFFER_SIZE, BULK_MIN, MB, READY, Client, End, body, opened, ping, pong
from front_desk import record

from fastmq.wire.link import LinkKind
from fastmq.wire.verbs import Verb

BELOW_BULK = 280_000                    # larger than SEND_AT_ONCE, and not for the bulk thread


# ---- requests

def test_request_split_at_every_byte_is_one_request(end: End) -> None:
    client = end.client()
    for cut in range(1, len(client.request(Verb.GET, 1, end.queue))):
        request = client.request(Verb.GET, cut, end.queue)
        before = end.sessions.received
        client.unsent += request[:cut]
        end.several()
        assert (len(client.unsent), end.sessions.received) == (0, before)
        client.unsent += request[cut:]
        client.take(Verb.REPLY, cut)
        assert end.sessions.received == before + 1


def test_request_of_two_frames_split_at_every_byte_is_one_publish(end: End) -> None:
    client = end.client()
    cut, rest = 1, bytearray(b"..")
    while len(rest) > 1:
        client.publish(record(end.queue))
        rest, client.unsent = client.unsent[cut:], client.unsent[:cut]
        end.several()
        assert end.desk.published(1) == []
        client.unsent = rest.copy()
        assert end.taken(1) == [(client.sequence, record(end.queue))]
        cut += 1


@pytest.mark.parametrize("count", [2, 200])
def test_requests_in_one_segment_are_as_many_requests_in_order(end: End, count: int) -> None:
    client = end.client()
    before = end.sessions.received
    client.unsent += b"".join(client.request(Verb.GET, number, end.queue) for number in range(1, count + 1))
    for number in range(1, count + 1):
        client.take(Verb.REPLY, number)
    assert end.sessions.received == before + count


def test_handshake_and_requests_in_one_segment_are_understood(end: End) -> None:
    client = Client(end)
    client.say_hello()
    client.take(Verb.WELCOME)


def test_handshake_byte_by_byte_is_understood(end: End) -> None:
    client = Client(end, handshake=False)
    for byte in GREETING + READY:
        client.unsent.append(byte)
        end.pump()
    client.hello()
    assert client.is_served()


def test_user_of_the_broker_is_let_in_over_an_abstract_socket() -> None:
    with opened(unix=True) as end:
        client = end.client()
        client.publish(record(end.queue, body(MB)))
        assert end.taken(1) == [(1, record(end.queue, body(MB)))]
        assert client.is_served()


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", GREETING + READY.replace(b"DEALER", b"PUSHER"), GREETING + READY + b"\xff"])
def test_peer_that_is_no_client_is_closed(end: End, data: bytes) -> None:
    other, stranger = end.client(), Client(end, handshake=False)
    stranger.unsent += data
    end.until(lambda: stranger.ended)
    assert end.connections.count == 1
    assert other.is_served()


def test_requests_wait_until_the_front_end_serves() -> None:
    with opened(attach=False) as end:
        client = Client(end)
        client.say_hello()
        end.several()
        assert (end.sessions.received, client.answers) == (0, [])
        assert b"READY" in client.heard
        end.desk.attach(0)
        client.take(Verb.WELCOME)


# ---- connections end

@pytest.mark.parametrize("last", [1, BULK_MIN + 10_000, 3 * MB])
def test_end_of_a_connection_is_heard_after_everything_that_came_over_it(any_end: End, last: int) -> None:
    end = any_end
    client = end.client()
    end.desk.clear()
    records = [record(end.queue, bytes([n])) for n in range(200)] + [record(end.queue, body(last))]     # more than are judged at once
    for each in records:
        client.publish(each)
    client.close()
    ended: list[int] = []

    def heard() -> bool:
        ended.extend(at for at, message in enumerate(end.desk.inbox[1]) if message[0] == LinkKind.L_SESSION_END)
        return bool(ended)

    end.until(heard)
    assert {message[0] for message in list(end.desk.inbox[1])[ended[0] :]} <= {LinkKind.L_SESSION_END, LinkKind.L_REGION_DONE}
    assert [each for _, each in end.taken(len(records))] == records
    assert end.connections.count == 0
    assert not end.sessions.is_connected(client.sid)


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("size", [1000, BELOW_BULK, 2 * MB])
def test_client_that_goes_while_it_is_sent_something_leaves_nothing(end: End, size: int, reset: bool) -> None:
    client, other = end.client(), end.client()
    client.reads = False
    for n in range(3):
        end.deliver(client, n + 1, record("q", body(size)))
    end.several()
    if reset:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    end.until(lambda: end.connections.count == 1)
    end.loans_come_back()
    assert (end.connections.blocked, end.connections.lent) == (0, 0)
    assert other.is_served()


def test_more_connections_than_there_is_room_for_wait_until_others_go() -> None:
    with opened(room_max=2) as end:
        clients = [Client(end) for _ in range(4)]
        end.several()
        assert (end.connections.count, end.connections.accept_failed > 0) == (2, True)
        served = []
        for _ in clients:
            end.until(lambda: any(client.heard and client not in served for client in clients), "another one is accepted")
            served.append(next(client for client in clients if client.heard and client not in served))
            served[-1].hello()
            assert end.connections.count <= 2
            served[-1].close()
        end.until(lambda: end.connections.count == 0)
        assert end.connections.accepted == 4


def test_room_that_is_full_has_refused_nobody_yet() -> None:
    with opened(room_max=2) as end:
        clients = [end.client() for _ in range(2)]
        end.several()
        assert all(client.is_served() for client in clients)
        assert end.connections.accept_failed == 0
        third = Client(end)
        end.several()
        assert end.connections.accept_failed > 0
        clients[0].close()
        end.until(lambda: third.heard)


# ---- time

@pytest.mark.parametrize("said", [b"", GREETING[:5], GREETING, GREETING + READY[:-1]], ids=["nothing", "some", "greeting", "most"])
def test_handshake_that_does_not_end_is_ended(end: End, said: bytes) -> None:
    other, client = end.client(), Client(end, handshake=False)
    client.unsent += said
    end.several()
    end.later(4.5)
    assert (client.ended, end.connections.count) == (False, 2)
    client.unsent += said[:1] if len(said) == 5 else b""                # a little more now and then is no handshake
    end.later(0.6)
    end.until(lambda: client.ended)
    assert end.connections.count == 1
    assert other.is_served()


@pytest.mark.long
def test_handshake_that_does_not_end_is_ended_after_its_time(end: End) -> None:
    client = Client(end, handshake=False)
    end.several()
    with pytest.raises(AssertionError, match="not within"):
        end.until(lambda: client.ended, "too early", timeout=4.5)
    end.until(lambda: client.ended, timeout=1)


def test_ping_is_sent_when_nothing_was_for_a_while_and_its_answer_is_a_sign_of_life(end: End) -> None:
    client = end.client()
    assert b"PING" not in client.heard
    for _ in range(4):
        end.later(5.1)
        assert client.heard.endswith(ping())
    assert client.is_served()
    client.reads = False
    end.later(5.1)
    end.later(5.1)
    end.later(5.1)
    assert end.connections.count == 0
    assert not end.sessions.is_connected(client.sid)


def test_ping_is_answered_with_its_context_between_requests_and_inside_of_one(end: End) -> None:
    client = end.client()
    client.unsent += ping(0, b"one")
    client.publish(record(end.queue))
    at = client.unsent.rindex(frame(record(end.queue)))
    client.unsent[at:at] = ping(0, b"two")
    end.taken(1)
    end.until(lambda: pong(b"one") + pong(b"two") in client.heard)


def test_ttl_of_a_peer_bounds_its_silence(end: End) -> None:
    client, other = end.client(), end.client()
    client.unsent += ping(ttl_ms=2000)
    end.until(lambda: pong() in client.heard)
    end.later(1.7)
    assert not client.ended
    client.unsent += ping(ttl_ms=2000)
    end.several()
    end.later(1.7)
    assert not client.ended
    end.later(0.4)
    end.until(lambda: client.ended)
    assert other.is_served()


def test_client_that_takes_a_large_frame_slowly_is_not_silent(end: End) -> None:
    """It cannot be pinged in the middle of a frame, so it has nothing to answer."""
    client = end.client()
    client.reads = False
    size = 4 * MB
    end.deliver(client, 1, record("q", body(size)))
    read = [0]

    def more() -> bool:
        read[-1] += client.read_some(BUFFER_SIZE)
        return read[-1] > 6 * BUFFER_SIZE                               # more than was under way when time passed

    while sum(read) < size - 8 * BUFFER_SIZE:
        end.until(more)
        end.later(4)
        assert end.connections.count == 1, f"{sum(read)} bytes had come"
        read.append(0)
    client.reads = True
    assert client.take(Verb.DELIVER)[-1] == record("q", body(size))


# ---- clients that do not read

def deliver_mixed(end: End, client: Client) -> list[bytes]:
    """Deliver small records and some of 1 MiB; all of them."""
    records = []
    for n in range(40):
        records.append(record("q", body(MB if n % 5 == 3 else 50 + n, n)))
        end.deliver(client, n + 1, records[-1])
    return records


def delivered(client: Client) -> bytes:
    return b"".join(answer[-1] for answer in client.answers if answer[0] == Verb.DELIVER)


def test_client_that_reads_nothing_holds_up_nobody_and_gets_everything_in_order_when_it_reads(end: End) -> None:
    client, other = end.client(), end.client()
    client.reads = False
    records = deliver_mixed(end, client)
    for _ in range(20):
        assert other.is_served()
    assert end.connections.blocked + end.connections.lent == 1
    client.wait_for_bytes()
    others = deliver_mixed(end, other)
    end.until(lambda: len(delivered(other)) >= sum(map(len, others)), "what the other one gets")
    client.reads = True
    end.until(lambda: len(delivered(client)) >= sum(map(len, records)), "the rest")
    assert delivered(client) == b"".join(records)
    assert delivered(other) == b"".join(others)
    assert client.is_served()
    runs = [run[3] for answer in client.answers if answer[0] == Verb.DELIVER for run in answer[3]]
    assert runs == list(range(1, 41))
    end.loans_come_back()


def test_client_that_reads_a_little_at_a_time_gets_intact_frames(end: End) -> None:
    client = end.client()
    client.reads = False
    records = deliver_mixed(end, client)
    rnd = random.Random(3)
    size = sum(map(len, records))

    def come() -> bool:
        client.read_some(rnd.choice([1, 100, 5000, 200_000]))
        if rnd.random() < 0.2:
            client.unsent += ping(0, b"c")
        return len(delivered(client)) >= size

    end.until(come)
    assert delivered(client) == b"".join(records)


@pytest.mark.parametrize("ping_first", [False, True])
@pytest.mark.parametrize("taken", [0, 1000, BUFFER_SIZE, 2 * BUFFER_SIZE])
@pytest.mark.parametrize("size", [BELOW_BULK, 4 * MB])
def test_hello_amid_a_large_frame_lets_that_be_finished_before_welcome(end: End, size: int, taken: int, ping_first: bool) -> None:
    client = end.client()
    client.reads = False
    large = record("q", body(size))
    for n in range(3):
        end.deliver(client, n + 1, large)
    client.wait_for_bytes()
    end.several()
    client.read_some(taken)
    assert client.answers == []
    hello = client.request(Verb.HELLO, 1, "/", "test", 5, {}, incarnation=2)
    client.unsent += ping(0, b"amid") + hello if ping_first else hello + ping(0, b"amid")
    client.send_some()                                                  # and, as the front-end sees it, at the same time
    end.several()
    client.reads = True
    welcome = client.take(Verb.WELCOME)
    assert (welcome[2], welcome[3]) == (2, client.session)
    assert 1 <= len(client.answers) <= 3
    assert all(answer[-1] == large for answer in client.answers), "what has begun is whole"
    end.until(lambda: pong(b"amid") in client.heard)
    client.incarnation = 2
    assert client.is_served()
    end.loans_come_back()


@pytest.mark.parametrize("size", [BELOW_BULK, 4 * MB])
def test_bye_amid_a_large_frame_lets_that_be_finished(end: End, size: int) -> None:
    client = end.client()
    client.reads = False
    large = record("q", body(size))
    end.deliver(client, 1, large)
    end.several()
    client.read_some(BUFFER_SIZE)
    client.say(Verb.BYE)
    client.unsent += ping(0, b"amid")
    client.send_some()
    end.several()
    client.reads = True
    client.session = b""
    client.hello()
    assert [answer[-1] for answer in client.answers] == [large]
    assert pong(b"amid") in client.heard


def test_session_that_moves_to_another_connection_amid_a_frame_tears_neither(end: End) -> None:
    old, new = end.client(), end.client(hello=False)
    old.reads = False
    large = record("q", body(BELOW_BULK))
    end.deliver(old, 1, large)
    end.several()
    old.read_some(BUFFER_SIZE)
    new.session, new.incarnation = old.session, 1
    new.say_hello()
    old.unsent += ping(0, b"old")
    new.send_some()
    old.send_some()
    end.several()
    old.reads = True
    assert new.take(Verb.WELCOME)[2] == 2
    assert old.take(Verb.DELIVER)[-1] == large
    end.until(lambda: old.heard.endswith(pong(b"old")))


@pytest.mark.parametrize("size", [BELOW_BULK, 4 * MB])
def test_answer_that_belongs_to_no_session_comes_behind_the_frame_that_has_begun(end: End, size: int) -> None:
    client = end.client()
    client.reads = False
    end.deliver(client, 1, record("q", body(size)))
    end.several()
    session, client.session = client.session, bytes(16)
    client.say(Verb.GET, 1, end.queue)
    client.session = session
    end.several()
    client.reads = True
    end.until(lambda: len(client.answers) == 2)
    assert [answer[0] for answer in client.answers] == [Verb.DELIVER, Verb.ERROR]
    assert client.answers[0][-1] == record("q", body(size))
    assert client.answers[1][4] == "no-session"


def test_pings_of_a_client_that_reads_slowly_take_no_memory(end: End) -> None:
    client = end.client()
    client.reads = False
    for n in range(300):
        client.unsent += ping(0, b"x" * 16) * 4000
        client.send_some()
        end.pump()
        client.read_some(30_000)                                        # so that there is always something left to send
        assert end.connections.held_size < 5 * MB, n
    assert end.connections.blocked == 1
