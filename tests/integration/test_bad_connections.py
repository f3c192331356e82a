"""Bad ZMTP, hostile subscriptions and floods: each ends or bounds its own connection, and nobody else sees anything of it."""

import os
import socket
import struct

import pytest
from attacker import GREETING, MB, Bare, Growth, Watch, Wire, command, command_port, frame, packed, ready, record, row_of
from waiting import wait_until

import fastmq
from fastmq.wire.limits import Limit
from fastmq.wire.verbs import Verb

# ---- ZMTP

def ports(broker):
    return {"commands": command_port(broker), "events": broker.events_port}


def mechanism(name):
    return GREETING[:12] + name.ljust(20, b"\0") + GREETING[32:]


STRANGE = {
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + bytes(100), "redis": b"*1\r\n$4\r\nPING\r\n" * 10,
    "tls": b"\x16\x03\x01\x02\x00" + bytes(300),
    "zeros": bytes(1000), "ones": b"\xff" * 1000, "PLAIN": mechanism(b"PLAIN"), "CURVE": mechanism(b"CURVE"), "unknown": mechanism(b"XYZZY"),
    "as server": GREETING[:32] + b"\1" + bytes(31) + ready(), "no READY": GREETING + command(b"HELLO", b"x" * 10),
    "READY cut": GREETING + command(b"READY", b"\x0bSocket-Type\0\0\0\x20DEALER"), "READY of 2^32": GREETING + b"\x06" + b"\0\0\0\1\0\0\0\0",
    "frame of 2^63": GREETING + ready() + b"\x02" + b"\x7f" + b"\xff" * 7, "frame of 2^64": GREETING + ready() + b"\x02" + b"\xff" * 8,
    "frame before READY": GREETING + frame(b"x" * 100), "odd flags": GREETING + ready() + b"\xf8\x05hello",
    "ERROR": GREETING + command(b"ERROR", b"\xff"),
    "name of 255": GREETING + frame(b"\xffREADY", 4), "empty command": GREETING + frame(b"", 4), "as PULL": GREETING + ready(b"PULL"),
    "identity too long": GREETING + ready(identity=b"x" * 300), "subscribe to nothing": GREETING + ready(b"SUB") + command(b"SUBSCRIBE"),
    "PING cut": GREETING + ready() + command(b"PING", b"\0"), "PING long": GREETING + ready() + command(b"PING", b"\0\1" + b"x" * 200),
}  # fmt: skip


@pytest.mark.parametrize("port", ["commands", "events"])
def test_strange_bytes_harm_nobody(broker, watch, port):
    growth = Growth(watch)
    wires = []
    for data in STRANGE.values():
        for cut in {len(data), len(data) // 2, len(data) - 1}:
            wires.append(wire := Wire(ports(broker)[port]))
            wire.send(data[:cut])
    watch.check()
    for wire in wires:
        wire.socket.close()
    growth.stays_below(20 * MB, timeout=2)


def test_silence_ends_a_handshake_after_5_s_and_brings_a_ping(broker, watch):
    """Connections that stop somewhere in their greeting are dropped; one that has said READY is asked whether it lives."""
    with Wire(command_port(broker), b"DEALER") as greeted:
        wires = {(name, cut): Wire(port) for name, port in ports(broker).items() for cut in (0, 1, 10, 11, 12, 40, 64, 70)}
        for (_, cut), wire in wires.items():
            wire.send((GREETING + ready())[:cut])
        took = {which: wire.closed_within(7) for which, wire in wires.items()}
        for wire in wires.values():
            wire.socket.close()
        assert 4 < max(took.values()) < 6, took
        wait_until(lambda: greeted.read() and b"\x04PING" in greeted.heard, timeout=7, what="a PING")


def test_greeting_and_request_byte_by_byte_are_understood(broker, watch):
    hello = packed(Verb.HELLO, b"", 0, 1, "/", "slow", 0, {})
    with Wire(command_port(broker)) as wire:
        for byte in GREETING + ready():
            wire.send(bytes([byte]))
        wait_until(lambda: wire.read() and b"READY" in wire.heard, what="READY")    # before it libzmq takes nothing more
        for byte in frame(hello):
            wire.send(bytes([byte]))
        wait_until(lambda: wire.read() and b"tcp://" in wire.heard, what="WELCOME")


@pytest.mark.parametrize(("port", "kind", "size"), [
    ("commands", b"DEALER", Limit.FRAME_SIZE_MAX + 1), ("commands", b"DEALER", 2**62), ("events", b"SUB", 2000), ("events", b"SUB", 2**40),
])  # fmt: skip
def test_frame_above_the_limit_closes_the_connection_before_it_is_read(broker, watch, port, kind, size):
    growth = Growth(watch)
    with Wire(ports(broker)[port], kind) as wire:
        wire.send(b"\x02" + struct.pack(">Q", size) + b"x" * 1000)
        assert wire.closed_within(5) < 2
    growth.stays_below(5 * MB)


def test_endless_commands_are_answered_and_forgotten(broker, watch):
    growth = Growth(watch)
    with Wire(command_port(broker), b"DEALER") as wire:
        for _ in range(200):
            wire.send(command(b"PING", b"\0\x10" + b"x" * 16) * 50)
            wire.read()
        for _ in range(200):
            if not wire.send(command(b"NONSENSE", b"x" * 1000) * 50):
                break
    growth.stays_below(10 * MB)


@pytest.mark.long
def test_connection_that_answers_no_heartbeat_is_ended(broker, watch):
    with Wire(command_port(broker), b"DEALER") as wire:
        assert 10 < wire.closed_within(30) < 25
        assert b"\x04PING" in wire.heard


def test_connections_by_the_thousand_that_come_and_go(broker, watch):
    growth = Growth(watch)
    pid = watch.pids["frontend", 0]
    descriptors = len(os.listdir(f"/proc/{pid}/fd"))
    for _ in range(10):
        wires = [Wire(port) for port in ports(broker).values() for _ in range(50)]
        for n, wire in enumerate(wires):
            wire.send((GREETING + ready(b"SUB" if n >= 50 else b"DEALER"))[: n * 2])
        for wire in wires:
            wire.socket.close()
    wait_until(lambda: len(os.listdir(f"/proc/{pid}/fd")) <= descriptors + 2, timeout=8, what="the descriptors are given back")
    growth.stays_below(20 * MB)


# ---- live subscriptions

def subscription(pattern, exchange="amq.topic", kind="t", vhost="/"):
    return "\0".join((vhost, exchange, kind, pattern, "")).encode()


BAD_SUBSCRIPTIONS = [
    b"", b"/", b"/\0", b"/\0amq.topic\0t\0", b"/\0amq.topic\0t\0a", b"/\0amq.topic\0t\0a\0x", b"/\0amq.topic\0g\0#\0",
    b"/\0amq.topic\0\0#\0", b"\0amq.topic\0t\0#\0", b"\0\0\0\0", b"\0" * 300, b"\xff" * 300, b"/\0amq.topic\0t\0\xff\xfe\0",
    subscription("x" * 256), subscription("#", exchange="x" * 256), subscription("#", vhost="x" * 256), os.urandom(700),
]  # fmt: skip


def test_subscriptions_that_are_not_well_formed_bring_nothing(broker, watch, bare):
    with Wire(broker.events_port, b"SUB") as wire:
        for bad in BAD_SUBSCRIPTIONS:
            wire.send(frame(b"\x01" + bad) + frame(b"\x00" + bad) + command(b"SUBSCRIBE", bad) + command(b"CANCEL", bad))
            wire.send(frame(b"\x02" + bad) + frame(bad) + frame(b"\x01" + bad, 1) + frame(bad))
        wire.send(frame(b"\x01" + subscription("good.#")))
        wait_until(lambda: wire.read() and b"good.#" in wire.heard, what="the first event of the one that is")
        bare.publish(record("good.bye"), exchange="amq.topic")
        bare.publish(record("bad.bye"), exchange="amq.topic")
        wait_until(lambda: b"good.bye" in wire.heard or wire.read(), what="the event")
        assert b"bad.bye" not in wire.heard
    wait_until(lambda: bare.ok(Verb.STATUS, {})["counters"]["live_patterns"] == 0, what="nothing is left of it")


def test_patterns_by_the_thousand_come_and_go(broker, watch, bare):
    for _ in range(3):
        with Wire(broker.events_port, b"SUB") as wire:
            for n in range(2000):
                wire.send(frame(b"\x01" + subscription(f"many.{n}.#")))
            wait_until(lambda: bare.ok(Verb.STATUS, {})["counters"]["live_patterns"] == 2000, what="they are active")
            bare.publish(*[record(f"many.{n}.x") for n in range(100)], exchange="amq.topic")
        wait_until(lambda: bare.ok(Verb.STATUS, {})["counters"]["live_patterns"] == 0, what="they are gone")


def test_who_subscribes_without_end_to_what_is_not_possible_is_shut_down(broker, watch):
    """libzmq keeps each subscription, accepted or not, at some 30 KiB: 200,000 of them would be 6 GB."""
    growth = Growth(watch)
    began = len(watch.times)
    with fastmq.connect(broker.url) as mq, mq.subscribe("news.#", "amq.topic", "topic", timeout=10) as events:
        for _ in range(5):
            with Wire(broker.events_port, b"SUB") as wire:
                for _ in range(800):
                    if not wire.send(b"".join(frame(b"\x01" + os.urandom(760)) for _ in range(50))):
                        break
                else:
                    pytest.fail("40,000 were taken")
            mq.publish("news.today", b"x", exchange="amq.topic")
            assert next(events).body == b"x"
    growth.stays_below(60 * MB)
    assert watch.percentile(since=began) < max(0.1, 10 * watch.calm)


def test_subscribers_that_go_at_once_leave_no_pattern(broker, watch, bare):
    for n in range(200):
        with Wire(broker.events_port, b"SUB") as wire:
            wire.send(b"".join(frame(b"\x01" + subscription(f"gone.{n}.{k}")) for k in range(n % 50)))
            if n % 2:
                wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")       # with a reset
    wait_until(lambda: bare.ok(Verb.STATUS, {})["counters"]["live_patterns"] == 0, timeout=5, what="nothing is left of them")


# ---- floods

class Deaf(Wire):
    """A session on a connection that sends, and reads nothing but its WELCOME."""

    def __init__(self, broker):
        super().__init__(command_port(broker), b"DEALER")
        self.session, self.incarnation = b"", 0
        self.ask(Verb.HELLO, 1, "/", "deaf", 0, {})
        wait_until(lambda: self.read() and b"tcp://" in self.heard, what="WELCOME")
        at = self.heard.rindex(b"\xc4\x10") + 2
        self.session, self.incarnation = self.heard[at : at + 16], 1

    def ask(self, *request, times=1):
        return self.send(frame(packed(request[0], self.session, self.incarnation, *request[1:])) * times)


def too_slow(watch):
    return watch.client.status()["counters"]["clients_too_slow"]


def test_requests_without_reading_any_answer_stay_bounded(broker, watch):
    """Answers wait up to the mark, then the session ends; whoever reads his answers sees nothing of it."""
    growth = Growth(watch)
    began = len(watch.times)
    ended = too_slow(watch)
    with Deaf(broker) as deaf, Deaf(broker) as unknown:
        wait_until(lambda: not deaf.ask(Verb.GET, 1, "x" * 255, times=1000) or too_slow(watch) > ended, what="its session has ended")
        unknown.session = os.urandom(16)
        for _ in range(50):
            unknown.ask(Verb.GET, 1, "x" * 255, times=1000)
        watch.check()
        growth.stays_below(60 * MB)
        assert watch.percentile(since=began) < max(0.1, 10 * watch.calm)


@pytest.fixture(scope="module")
def small():
    """A front-end with little memory, of which a quarter may wait for clients that do not read."""
    with fastmq.Broker(workers=1, frontend_memory_max=2**29) as broker:
        watch = Watch(broker)
        yield broker, watch
        watch.stop()


def test_settling_what_was_never_read_brings_no_more_than_the_memory_allows(small):
    """Tags can be guessed: nack everything, get it again, and so on, without reading a byte of it."""
    broker, watch = small
    growth, grown = Growth(watch), []
    with Bare(broker) as bare, Deaf(broker) as deaf:
        bare.ok(Verb.DECLARE_QUEUE, "again", {})
        bare.publish(*[record("again", bytes(100_000))] * 50)
        bare.outcome()
        _, shard, epoch, *_ = bare.ok(Verb.GET, "again")
        deaf.ask(Verb.CONSUME, 1, 1, "again", 1000, 0, {})

        def settled_again():
            deaf.ask(Verb.SETTLE, [[shard, epoch, 0, [], [[1, 2**63, 1]]]])
            grown.append(growth.now()["frontend", 0])
            return too_slow(watch)

        wait_until(settled_again, timeout=30, what="its session has ended")
    assert max(grown) < 250 * MB
    watch.check()


def test_status_of_many_queues_without_reading_brings_no_more_than_the_memory_allows(small):
    broker, watch = small
    with Bare(broker) as bare:
        for n in range(1000):
            bare.send(Verb.DECLARE_QUEUE, n, f"{n}-".ljust(255, "x"), {"exclusive": True})
        assert {bare.receive()[0] for _ in range(1000)} == {Verb.REPLY}
        ended = too_slow(watch)
        growth, grown = Growth(watch), []
        with Deaf(broker) as deaf:
            def asked_again():
                deaf.ask(Verb.STATUS, 1, {}, times=50)
                grown.append(growth.now()["frontend", 0])
                return too_slow(watch) > ended

            wait_until(asked_again, timeout=30, what="its session has ended")
        assert max(grown) < 250 * MB
        bare.send(Verb.BYE)
    watch.check()


def test_status_asked_by_the_thousand_holds_up_nobody(broker, watch, bare):
    for n in range(1000):
        bare.send(Verb.DECLARE_QUEUE, n, f"status{n}", {"exclusive": True})
    assert {bare.receive()[0] for _ in range(1000)} == {Verb.REPLY}
    began = len(watch.times)
    for n in range(1000):
        bare.send(Verb.STATUS, n, {})
    answers = [bare.receive() for _ in range(1000)]
    assert [answer[3] for answer in answers if answer[0] == Verb.REPLY] == list(range(1000))
    wait_until(lambda: len(watch.times) > began + 20)
    assert max(watch.times[began:]) < 1, "a round trip of somebody else's waited for all of it"
    bare.send(Verb.BYE)


def test_consumers_by_the_thousand_reach_their_limit(broker, watch, bare):
    growth = Growth(watch)
    bare.ok(Verb.DECLARE_QUEUE, "crowd", {})
    count = Limit.CONSUMERS_MAX + 100
    codes = {}
    for first in range(1, count + 1, 500):
        numbers = range(first, min(first + 500, count + 1))
        for number in numbers:
            bare.send(Verb.CONSUME, number, number, "crowd", 1, 0, {})
        for _ in numbers:
            answer = bare.receive()
            code = answer[4] if answer[0] == Verb.ERROR else None
            codes[code] = codes.get(code, 0) + 1
    assert codes == {None: Limit.CONSUMERS_MAX, "limit": 100}
    assert row_of(bare, "crowd")["consumers"] == Limit.CONSUMERS_MAX
    assert bare.ok(Verb.DELETE_QUEUE, "crowd", {}) == 0
    assert bare.refused(Verb.CANCEL, 1) == "no-consumer"
    growth.stays_below(60 * MB, timeout=3)


def test_requests_without_an_answer_reach_their_limit(bare):
    for n in range(5000):
        bare.send(Verb.DECLARE_QUEUE, n, f"flood{n % 50}", {})
    answers = [bare.receive() for _ in range(5000)]
    assert {answer[0] for answer in answers} <= {Verb.REPLY, Verb.ERROR}
    assert {answer[4] for answer in answers if answer[0] == Verb.ERROR} <= {"limit"}
    for n in range(50):
        bare.ok(Verb.DELETE_QUEUE, f"flood{n}", {})
