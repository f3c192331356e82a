"""Connections that read slowly, not at all, or something else than what they asked for: each gets whole frames, and costs nobody else his."""

import os
import socket

import msgpack
import pytest
from attacker import MB, Growth, Wire, command, command_port, frame, packed, record, row_of
from waiting import wait_until

from fastmq.wire.verbs import Verb
from fastmq.wire.zmtp import ZmtpPeer

CUT = 270_000       # bytes of a body whose frame leaves in two turns: more than SEND_AT_ONCE, less than BULK_MIN


class Talker:
    """A session that reads what it wants to, and takes nothing but ZMTP."""

    def __init__(self, broker, unix=False):
        self.socket = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
        self.socket.settimeout(10)
        self.socket.connect("\0" + broker.unix_url.rpartition("@")[2] if unix else ("127.0.0.1", command_port(broker)))
        self.peer = ZmtpPeer(frame_size_max=2**28)
        self.messages = []
        self.session, self.incarnation = b"", 0
        self.flush()
        while not self.peer.opened:
            self.read()
        self.send(Verb.HELLO, 1, "/", "talker", 0, {})
        self.session, self.incarnation = self.answer(Verb.WELCOME)[3], 1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def add(self, verb, *fields, session=None):
        self.peer.send([packed(verb, self.session if session is None else session, self.incarnation, *fields)])

    def send(self, *request):
        self.add(*request)
        self.flush()

    def flush(self):
        self.socket.sendall(self.peer.take_output())

    def read(self, size=2**20):
        data = self.socket.recv(size)
        assert data, "the broker closed the connection"
        self.messages += self.peer.feed(data)
        assert not self.peer.error
        if not self.messages:
            self.flush()
        return len(data)

    def answer(self, verb):
        while True:
            while self.messages:
                answer = msgpack.unpackb(self.messages.pop(0)[0], strict_map_key=False)
                if answer[0] == verb:
                    return answer
            self.read()


def fill(bare, queue, size, count):
    bare.ok(Verb.DECLARE_QUEUE, queue, {})
    for _ in range(count):
        bare.publish(record(queue, b"y" * size))
    wait_until(lambda: row_of(bare, queue)["messages_ready"] == count)


@pytest.mark.parametrize("stray", [True, False])
def test_session_that_begins_again_in_the_middle_of_a_frame_gets_that_whole(broker, bare, stray):
    """What answers its other requests meanwhile, and its PING, waits for the frame's end."""
    queue = f"cut{stray}"
    fill(bare, queue, CUT, 10)
    for _ in range(30):
        with Talker(broker) as talker:
            talker.send(Verb.CONSUME, 1, 1, queue, 8, 0, {})
            talker.answer(Verb.REPLY)
            talker.read(100_000)
            if stray:
                talker.add(Verb.GET, 1, "q", session=os.urandom(16))
            talker.incarnation += 1
            talker.add(Verb.HELLO, 1, "/", "talker", 0, {})
            talker.peer.ping()
            talker.flush()
            talker.answer(Verb.WELCOME)
            talker.send(Verb.BYE)


def test_message_that_is_taken_slowly_is_not_silence(broker, bare):
    """No PING comes through while it leaves. The TTL of a second makes this a short test."""
    size = 8 * MB
    fill(bare, "slow", size, 1)
    with Talker(broker) as talker:
        talker.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        talker.socket.sendall(command(b"PING", b"\0\x0a"))
        talker.send(Verb.CONSUME, 1, 1, "slow", 1, 0, {})
        got = 0

        def some():
            nonlocal got
            got += talker.read(100_000)
            return got > size

        wait_until(some, timeout=15, interval=0.05)
        assert talker.answer(Verb.DELIVER)


def test_refusals_that_are_not_read_do_not_cost_others_theirs(broker, watch):
    def refused():
        return watch.client.status()["counters"]["answers_dropped"]

    before = refused()
    with Wire(command_port(broker), b"DEALER") as deaf, Wire(command_port(broker), b"DEALER") as other:
        request = frame(packed(Verb.GET, os.urandom(16), 1, 1, "x")) * 5000
        wait_until(lambda: deaf.send(request) and refused() > before + 5000, timeout=30, what="it takes no more")
        other.send(frame(packed(Verb.HELLO, os.urandom(16), 5, 1, "/", "resumes", 0, {})))
        wait_until(lambda: other.read() and b"no-session" in other.heard, what="the refusal")


def test_pongs_of_which_some_always_wait_take_no_memory(broker, watch):
    growth = Growth(watch)
    with Talker(broker, unix=True) as talker:
        pings = command(b"PING", b"\0\0" + b"x" * 16) * 3000
        for _ in range(40):
            talker.socket.sendall(pings)
        for _ in range(2000):
            talker.socket.sendall(pings)
            for _ in range(2):
                talker.socket.recv(30_000)
        growth.stays_below(30 * MB)


def test_client_that_shuts_its_reading_side_is_ended_though_it_goes_on_talking(broker, bare):
    with Talker(broker, unix=True) as talker:
        talker.socket.shutdown(socket.SHUT_RD)
        with pytest.raises(BrokenPipeError):
            wait_until(lambda: talker.send(Verb.STATUS, 1, {}), timeout=5)
