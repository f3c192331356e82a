"""A front-end's connections under everything at once, from a seed: no stream is torn, nothing is changed, nothing is left."""

from __future__ import annotations

import os
import random
import struct

import pytest
from connected import Client, End, opened, ping
from front_desk import record

from fastmq.wire.link import LinkKind
from fastmq.wire.verbs import Verb

SEEDS = int(os.environ.get("FASTMQ_EXAMPLES", "400")) // 100
SIZES = [10, 1000, 20_000, 70_000, 250_000, 280_000, 300_000, 1_000_000, 4_300_000]


class Storm:
    """Three clients of one front-end, whose worker 1 dies now and then. What is published and delivered is told apart by its first bytes."""

    def __init__(self, end: End, seed: int) -> None:
        self.end, self.rnd = end, random.Random(seed)
        self.bytes = self.rnd.randbytes(5_000_000)
        self.made: dict[bytes, bytes] = {}                              # the first bytes of a body -> record
        self.published: list[bytes] = []                                # as worker 1 got them
        self.lent_to = 0                                                # of the arena's half for deliveries
        self.loans: set[int] = set()
        self.loan = 0
        self.clients = [self.connect() for _ in range(3)]

    def connect(self) -> Client:
        client = Client(self.end)
        client.reads = False
        client.say_hello()
        return client

    def make(self) -> bytes:
        name = struct.pack("<Q", len(self.made))
        at = self.rnd.randrange(600_000)
        self.made[name] = record(self.end.queue, name + self.bytes[at : at + self.rnd.choice(SIZES)])
        return self.made[name]

    def is_made(self, data: bytes) -> bool:
        """Whether these are records that were made, unchanged."""
        head = record(self.end.queue, b"")[:-2]
        at = 0
        while at < len(data):
            name_at = at + len(head) + {0xC4: 2, 0xC5: 3, 0xC6: 5}[data[at + len(head)]]
            found = self.made[data[name_at : name_at + 8]]
            if data[at : at + len(found)] != found:
                return False
            at += len(found)
        return True

    # ---- what happens

    def step(self) -> None:
        client = self.rnd.choice(self.clients)
        action = self.rnd.choices([self.publish, self.deliver, self.read, self.ping, self.hello, self.move, self.cut, self.kill],
                                  [5, 5, 8, 2, 1, 0.3, 0.3, 0.2])[0]
        action(client)
        for each in self.clients:
            self.hear(each)
        if self.rnd.random() < 0.7:
            self.end.pump()
        self.hear_workers()

    def publish(self, client: Client) -> None:
        if client.session and len(client.unsent) < 10_000_000:
            client.publish(self.make())

    def deliver(self, client: Client) -> None:
        if not client.session or self.lent_to > 400_000_000:
            return
        made = self.make()
        if len(made) < 17_408 or (len(made) < 600_000 and self.rnd.random() < 0.5):
            self.end.desk.deliver(1, client.sid, client.incarnation, (1, 1, [made], 1, ""))
            return
        self.loan += 1
        self.loans.add(self.loan)
        self.end.desk.deliver_lent(1, client.sid, client.incarnation, 1, made, self.loan, self.lent_to)
        self.lent_to += len(made)

    def read(self, client: Client) -> None:
        client.read_some(self.rnd.choice([1, 100, 10_000, 300_000, 2_000_000]))

    def ping(self, client: Client) -> None:
        client.unsent += ping(0, b"c")

    def hello(self, client: Client) -> None:
        if client.session:
            client.say_hello()
            client.incarnation += 1

    def move(self, client: Client) -> None:
        """The session of another connection comes to this one; that one gets a new session."""
        other = self.rnd.choice(self.clients)
        if other is not client and other.session and client.session:
            client.session, client.incarnation = other.session, other.incarnation
            self.hello(client)
            other.session, other.incarnation = b"", 0
            other.say_hello()

    def cut(self, client: Client) -> None:
        if self.rnd.random() < 0.5:
            client.socket.setsockopt(*LINGER)
        client.socket.close()
        self.end.clients.remove(client)
        self.clients.remove(client)
        self.clients.append(self.connect())

    def kill(self, _: Client) -> None:
        self.hear_workers()
        self.end.desk.kill(1)
        self.loans.clear()
        for _ in range(self.rnd.randrange(3)):
            self.end.pump()
        self.end.desk.attach(1)
        self.lent_to = 0

    # ---- what is heard

    def hear(self, client: Client) -> None:
        for verb, _, incarnation, *fields in client.answers:
            if verb == Verb.WELCOME:
                client.session, client.incarnation, client.sequence = fields[0], max(client.incarnation, incarnation), 0
            elif verb == Verb.RESEND:
                client.incarnation, client.sequence = max(client.incarnation, incarnation), 0
            elif verb == Verb.DELIVER:
                assert self.is_made(fields[-1])
        client.answers.clear()

    def hear_workers(self) -> None:
        for sid, _, _, entries in self.end.desk.published(1):
            for first, _, _, _, records in entries:
                assert self.is_made(records)
                self.published.append(records)
                self.end.desk.outcome(1, sid, held=[(first, first)])
        for _, payload in self.end.desk.sent(1, LinkKind.L_LOANS_BACK):
            self.loans -= {loan for (loan,) in struct.iter_unpack("<Q", payload)}

    def calm_down(self) -> None:
        """Everybody reads, and sends what there is to be sent."""
        for client in self.clients:
            client.reads = True

        quiet = [0]                                                     # turns in a row

        def is_calm() -> bool:
            connections = self.end.connections
            busy = any(client.unsent or client.answers for client in self.clients) or connections.lent or connections.blocked or self.loans
            quiet[0] = 0 if busy else quiet[0] + 1
            for client in self.clients:
                self.hear(client)
            self.hear_workers()
            return quiet[0] > 10

        self.end.until(is_calm, "nothing is under way", timeout=20)


LINGER = (1, 13, struct.pack("ii", 1, 0))                               # SOL_SOCKET, SO_LINGER: the end is a reset


@pytest.mark.fuzz
@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_stream_is_torn_and_nothing_is_left_whatever_happens(seed: int) -> None:
    with opened(region_size=[2**22, 2**23, 0][seed % 3] or 2**16) as end:
        storm = Storm(end, seed)
        for _ in range(400):
            storm.step()
        storm.calm_down()
        assert len(storm.published) > 5
        for client in storm.clients:
            client.session, client.incarnation = b"", 0
            client.hello()
            assert client.is_served()
        assert end.connections.count == 3
        end.several()
        end.connections.rest()
        assert end.connections.held_size < 30_000
