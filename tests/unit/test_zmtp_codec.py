"""The ZMTP codec: frames and commands as bytes, whole and byte by byte, hostile ones too."""

from __future__ import annotations

import struct

import pytest
from client_script import EXAMPLES
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastmq.wire.zmtp import ZmtpEvent, ZmtpPeer, ZmtpRole

GREETING = b"\xff" + bytes(7) + b"\x01\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
FRAME_MAX = 1000
SPARE = 2**20                           # ZMTP_MESSAGE_SPARE
PEER = {ZmtpRole.ZMTP_DEALER: b"ROUTER", ZmtpRole.ZMTP_SUB: b"XPUB", ZmtpRole.ZMTP_ROUTER: b"DEALER"}    # a peer that fits the role
TALKERS = [ZmtpRole.ZMTP_DEALER, ZmtpRole.ZMTP_ROUTER]


def command(name: bytes, body: bytes = b"") -> bytes:
    data = bytes([len(name)]) + name + body
    return (struct.pack("!BB", 4, len(data)) if len(data) < 256 else struct.pack("!BQ", 6, len(data))) + data


def frame(data: bytes, more: bool = False, long: bool = False) -> bytes:
    if long or len(data) > 255:
        return struct.pack("!BQ", 2 | more, len(data)) + data
    return struct.pack("!BB", more, len(data)) + data


def ready(kind: bytes = b"ROUTER", extra: bytes = b"") -> bytes:
    return command(b"READY", b"\x0bSocket-Type" + struct.pack("!I", len(kind)) + kind + extra)


def feed(peer: ZmtpPeer, data: bytes, step: int = 0) -> list[list[bytes]]:
    """What the peer makes of the bytes, given whole or in steps; the same either way."""
    if not step:
        return peer.feed(data)
    return [message for at in range(0, len(data), step) for message in peer.feed(data[at : at + step])]


def opened(role: ZmtpRole = ZmtpRole.ZMTP_DEALER) -> ZmtpPeer:
    peer = ZmtpPeer(role, FRAME_MAX)
    peer.feed(GREETING + ready(PEER[role]))
    assert peer.opened
    peer.take_output()
    return peer


def test_greeting_announces_version_3_0_and_null() -> None:
    assert ZmtpPeer().take_output() == GREETING


@pytest.mark.parametrize("role", TALKERS)
@pytest.mark.parametrize("step", [0, 1, 7])
def test_greeting_is_answered_with_ready(step: int, role: ZmtpRole) -> None:
    peer = ZmtpPeer(role, FRAME_MAX)
    peer.take_output()
    feed(peer, GREETING, step)
    assert not peer.opened
    assert peer.take_output() == command(b"READY", b"\x0bSocket-Type\0\0\0\6" + role.name[5:].encode() + b"\x08Identity\0\0\0\0")
    feed(peer, ready(PEER[role]), step)
    assert (peer.opened, peer.error) == (True, 0)


@pytest.mark.parametrize("kind", [b"XPUB", b"PUB"])
def test_sub_accepts_publishers(kind: bytes) -> None:
    peer = ZmtpPeer(ZmtpRole.ZMTP_SUB)
    peer.feed(GREETING + ready(kind))
    assert peer.opened
    assert b"Socket-Type\0\0\0\3SUB" in peer.take_output()


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("kind", [b"DEALER", b"REQ", b"ROUTER"])
def test_router_accepts_who_sends_requests(kind: bytes, step: int) -> None:
    peer = ZmtpPeer(ZmtpRole.ZMTP_ROUTER, FRAME_MAX)
    assert feed(peer, GREETING + ready(kind, b"\x08Identity\0\0\0\x02me") + frame(b"r"), step) == [[b"r"]]
    assert (peer.opened, peer.error) == (True, 0)


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("kind", [b"REP", b"PUB", b"SUB", b"XPUB", b"XSUB", b"PUSH", b"PULL", b"PAIR", b"DEALERS", b"dealer", b"RE", b""])
def test_router_refuses_all_others(kind: bytes, step: int) -> None:
    peer = ZmtpPeer(ZmtpRole.ZMTP_ROUTER, FRAME_MAX)
    assert feed(peer, GREETING + ready(kind) + frame(b"r"), step) == []
    assert (peer.opened, peer.error, peer.text) == (False, ZmtpEvent.ZMTP_SOCKET_TYPE, kind.decode())


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("minor", [0, 1, 9])
def test_later_minor_versions_are_spoken_to(step: int, minor: int) -> None:
    peer = ZmtpPeer()
    feed(peer, GREETING[:11] + bytes([minor]) + GREETING[12:] + ready(), step)
    assert peer.opened


@pytest.mark.parametrize("role", TALKERS)
@pytest.mark.parametrize("step", [0, 1])
def test_messages_of_short_and_long_frames(step: int, role: ZmtpRole) -> None:
    peer = opened(role)
    big = bytes(range(256)) * 3
    data = frame(b"") + frame(b"one") + frame(b"head", more=True) + frame(big)
    data += frame(b"x", more=True, long=True) + frame(b"", True) + frame(b"z")
    assert feed(peer, data, step) == [[b""], [b"one"], [b"head", big], [b"x", b"", b"z"]]
    assert peer.error == 0


@pytest.mark.parametrize("role", TALKERS)
@pytest.mark.parametrize("step", [0, 1])
def test_commands_may_stand_between_the_frames_of_a_message(step: int, role: ZmtpRole) -> None:
    peer = opened(role)
    ping = command(b"PING", b"\0\x96ctx")
    assert feed(peer, frame(b"a", more=True) + ping + frame(b"b"), step) == [[b"a", b"b"]]
    assert peer.take_output() == command(b"PONG", b"ctx")


@pytest.mark.parametrize("step", [0, 1])
def test_frames_of_a_router_s_message_beyond_three_are_only_counted(step: int) -> None:
    peer = opened(ZmtpRole.ZMTP_ROUTER)
    ping = command(b"PING", b"\0\0ctx")
    data = frame(b"a", True) + frame(b"b", True) + ping + frame(b"c", True) + frame(b"d", True) + ping + frame(b"x" * 300)
    assert feed(peer, data + frame(b"next"), step) == [[b"a", b"b", b"c"], [b"next"]]
    assert peer.error == 0
    assert peer.take_output() == 2 * command(b"PONG", b"ctx")


@pytest.mark.parametrize("step", [0, 1000, 4096])
@pytest.mark.parametrize("between", [frame(b"x" * 500, True), command(b"NOVELTY", b"x" * 500)], ids=["frames", "commands"])
def test_router_s_message_larger_than_its_limit_is_refused(between: bytes, step: int) -> None:
    fitting = (FRAME_MAX + SPARE) // len(between) - 1
    for count, error in ((fitting, 0), (fitting + 3, ZmtpEvent.ZMTP_TOO_LARGE)):
        peer = opened(ZmtpRole.ZMTP_ROUTER)
        messages = feed(peer, frame(b"first", True) + between * count + frame(b"last") + frame(b"next"), step)
        assert peer.error == error
        assert [message[0] for message in messages] == ([] if error else [b"first", b"next"])
        assert peer.buffered_size <= 4 * SPARE


@pytest.mark.parametrize("step", [0, 1])
def test_router_s_frame_larger_than_its_limit_is_refused_before_it_comes(step: int) -> None:
    peer = opened(ZmtpRole.ZMTP_ROUTER)
    assert feed(peer, frame(b"x" * FRAME_MAX) + b"\x02" + struct.pack("!Q", FRAME_MAX + 1), step) == [[b"x" * FRAME_MAX]]
    assert peer.error == ZmtpEvent.ZMTP_TOO_LARGE


@pytest.mark.parametrize("role", TALKERS)
def test_ping_is_answered_with_its_context(role: ZmtpRole) -> None:
    peer = opened(role)
    peer.feed(command(b"PING", b"\0\0") + command(b"PING", b"\0\1" + b"0123456789abcdef"))
    assert peer.take_output() == command(b"PONG") + command(b"PONG", b"0123456789abcdef")


def test_pings_are_not_answered_while_the_peer_does_not_read() -> None:
    peer = opened()
    for _ in range(300):
        peer.feed(command(b"PING", b"\0\0" + b"x" * 16) * 1000)
    assert len(peer.take_output()) < 2**20 + 100


def test_unknown_commands_are_passed_over() -> None:
    assert opened().feed(command(b"PONG", b"ctx") + command(b"NOVELTY", b"x" * 300) + frame(b"m")) == [[b"m"]]


def test_own_messages_and_subscriptions() -> None:
    peer = opened(ZmtpRole.ZMTP_SUB)
    peer.send([b"a" * 300, b"b"])
    peer.subscribe(b"topic")
    peer.subscribe(b"topic", False)
    peer.ping()
    out = frame(b"a" * 300, more=True) + frame(b"b") + frame(b"\x01topic") + frame(b"\x00topic") + command(b"PING", b"\0\0")
    assert peer.take_output() == out
    assert peer.take_output() == b""


def test_two_peers_understand_each_other() -> None:
    one, other = ZmtpPeer(ZmtpRole.ZMTP_SUB), ZmtpPeer(ZmtpRole.ZMTP_SUB)
    other.feed(one.take_output())
    one.feed(other.take_output())
    other.feed(one.take_output())
    assert other.error == ZmtpEvent.ZMTP_SOCKET_TYPE
    assert other.text == "SUB"


@pytest.mark.parametrize("step", [0, 1])
def test_dealer_and_router_understand_each_other(step: int) -> None:
    one, other = ZmtpPeer(ZmtpRole.ZMTP_DEALER), ZmtpPeer(ZmtpRole.ZMTP_ROUTER)
    messages: dict[ZmtpPeer, list[list[bytes]]] = {one: [], other: []}
    for _ in range(3):
        for source, target in ((one, other), (other, one)):
            messages[target] += feed(target, source.take_output(), step)
    assert one.opened and other.opened
    one.send([b"request", b"x" * 1000])
    assert feed(other, one.take_output(), step) == [[b"request", b"x" * 1000]]
    other.send([b"answer"])
    assert feed(one, other.take_output(), step) == [[b"answer"]]
    assert messages == {one: [], other: []}


HOSTILE = [
    (b"HTTP/1.1 400 Bad Request\r\n\r\n", ZmtpEvent.ZMTP_NOT_ZMTP),
    (b"-ERR unknown command\r\n", ZmtpEvent.ZMTP_NOT_ZMTP),
    (b"\xff" + bytes(8) + b"\x00", ZmtpEvent.ZMTP_NOT_ZMTP),
    (GREETING[:10] + b"\x01\x00", ZmtpEvent.ZMTP_OLD_VERSION),
    (GREETING[:12] + b"PLAIN".ljust(20, b"\0") + bytes(32), ZmtpEvent.ZMTP_MECHANISM),
    (GREETING[:12] + b"CURVE".ljust(20, b"\0") + bytes(32), ZmtpEvent.ZMTP_MECHANISM),
    (GREETING + frame(b"early"), ZmtpEvent.ZMTP_MALFORMED),
    (GREETING + command(b"PING", b"\0\0"), ZmtpEvent.ZMTP_MALFORMED),
    (GREETING + ready(b"PUB"), ZmtpEvent.ZMTP_SOCKET_TYPE),
    (GREETING + command(b"READY"), ZmtpEvent.ZMTP_SOCKET_TYPE),
    (GREETING + command(b"READY", b"\x0bSocket-Type\0\0\0\xff"), ZmtpEvent.ZMTP_MALFORMED),
    (GREETING + command(b"READY", b"\x00"), ZmtpEvent.ZMTP_MALFORMED),
    (GREETING + command(b"READY", b"\x0bSock"), ZmtpEvent.ZMTP_MALFORMED),
    (GREETING + command(b"ERROR", b"\x07go away"), ZmtpEvent.ZMTP_REFUSED),
    (GREETING + command(b"ERROR"), ZmtpEvent.ZMTP_REFUSED),
    (GREETING + b"\x04\x00", ZmtpEvent.ZMTP_MALFORMED),
    (GREETING + b"\x04\x02\x05R", ZmtpEvent.ZMTP_MALFORMED),
    (GREETING + b"\x06" + struct.pack("!Q", 2**63), ZmtpEvent.ZMTP_TOO_LARGE),
    (GREETING + ready() + b"\x02" + struct.pack("!Q", FRAME_MAX + 1), ZmtpEvent.ZMTP_TOO_LARGE),
    (GREETING + ready() + b"\x02" + b"\xff" * 8, ZmtpEvent.ZMTP_TOO_LARGE),
    (GREETING + ready() + b"\x08\x00", ZmtpEvent.ZMTP_MALFORMED),
    (GREETING + ready() + b"\xff", ZmtpEvent.ZMTP_MALFORMED),
    (GREETING + ready() + b"\x05\x05\x04PING", ZmtpEvent.ZMTP_MALFORMED),
    (GREETING + ready() + command(b"PING", b"\0"), ZmtpEvent.ZMTP_MALFORMED),
    (GREETING + ready() + command(b"PING", b"\0\0" + b"x" * 17), ZmtpEvent.ZMTP_MALFORMED),
    (GREETING + ready() + frame(b"", True) * 3 + frame(b""), ZmtpEvent.ZMTP_TOO_MANY_FRAMES),
    (GREETING + ready() + command(b"ERROR", b"\x04\xff\x00\nx"), ZmtpEvent.ZMTP_REFUSED),
]


HOSTILE_TO = [(role, *hostile) for role in TALKERS for hostile in HOSTILE
              if (role, hostile[1]) != (ZmtpRole.ZMTP_ROUTER, ZmtpEvent.ZMTP_TOO_MANY_FRAMES)]      # which it counts


@pytest.mark.parametrize("step", [0, 1, 5])
@pytest.mark.parametrize(("role", "data", "error"), HOSTILE_TO)
def test_hostile_bytes_end_in_an_error_code(role: ZmtpRole, data: bytes, error: ZmtpEvent, step: int) -> None:
    peer = ZmtpPeer(role, FRAME_MAX)
    assert feed(peer, data, step) == []
    assert peer.error == error
    assert peer.text.isprintable()
    assert peer.feed(frame(b"more")) == []
    assert peer.error == error


def test_refusal_is_quoted() -> None:
    peer = ZmtpPeer()
    peer.feed(GREETING + command(b"ERROR", b"\x07go away"))
    assert peer.text == "go away"
    peer = ZmtpPeer()
    peer.feed(GREETING[:12] + b"CURVE".ljust(20, b"\0"))
    assert peer.text == "CURVE"


def test_a_large_claimed_size_allocates_nothing() -> None:
    peer = ZmtpPeer(ZmtpRole.ZMTP_DEALER, 2**40)
    peer.feed(GREETING + ready() + b"\x02" + struct.pack("!Q", 2**39) + b"begin")
    assert peer.error == 0
    assert peer.buffered_size < 4096


def test_memory_of_a_large_message_is_given_back() -> None:
    peer = ZmtpPeer(ZmtpRole.ZMTP_DEALER, 2**24)
    peer.feed(GREETING + ready())
    assert peer.feed(frame(bytes(2**23)))[0][0] == bytes(2**23)
    peer.feed(frame(b"small"))
    assert peer.buffered_size < 2**20


PIECES = st.one_of(
    st.builds(frame, st.binary(max_size=300), st.booleans(), st.booleans()),
    st.builds(command, st.sampled_from([b"PING", b"PONG", b"READY", b"SUBSCRIBE", b"x"]), st.binary(max_size=40)),
    st.binary(max_size=20),
)


@pytest.mark.fuzz
@settings(max_examples=EXAMPLES)
@given(st.lists(PIECES, max_size=6).map(b"".join), st.integers(1, 50), st.sampled_from(TALKERS))
@example(b"\x01\x01a\x00\x01b", 1, ZmtpRole.ZMTP_DEALER)
def test_any_bytes_after_the_handshake_mean_the_same_whole_and_in_pieces(data: bytes, step: int, role: ZmtpRole) -> None:
    whole, pieces, single = opened(role), opened(role), opened(role)
    messages = feed(whole, data)
    assert feed(pieces, data, step) == messages
    assert feed(single, data, 1) == messages
    assert whole.error == pieces.error == single.error <= 0
    assert whole.take_output() == pieces.take_output() == single.take_output()
    assert all(len(message) <= 3 and sum(map(len, message)) <= 3 * FRAME_MAX for message in messages)


@pytest.mark.fuzz
@settings(max_examples=EXAMPLES)
@given(st.integers(0, 90), st.binary(max_size=80), st.integers(1, 20))
def test_any_bytes_in_the_handshake_mean_the_same_whole_and_in_pieces(cut: int, data: bytes, step: int) -> None:
    data = (GREETING + ready())[:cut] + data
    whole, pieces = ZmtpPeer(0, FRAME_MAX), ZmtpPeer(0, FRAME_MAX)
    assert feed(whole, data) == feed(pieces, data, step)
    assert (whole.error, whole.opened, whole.text) == (pieces.error, pieces.opened, pieces.text)
