"""A crowd: many clients in one process, bare DEALER sockets, so that a thousand cost little. python -m fastmq.cli.crowd crowd ARGUMENTS

All are connected and have their session before the side is ready; then some of them publish, each at most `window` messages without an
outcome, in frames of `batch`, and the others only stay.
"""

from __future__ import annotations

import resource
from typing import Any

import msgpack
import zmq

from fastmq.cli.messages import payloads
from fastmq.cli.sides import Gate, Void, run_side
from fastmq.client.url import parse_url
from fastmq.wire.verbs import Verb

VERSION = 1
WELCOME_MS = 30_000
CONFIRM_MS = 30_000
DESCRIPTORS_OF_CLIENT = 4


class Member:
    """One client."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], url: str) -> None:
        address = parse_url(url)
        self.socket = context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.connect(f"{'ipc' if url.startswith('fastmq+unix:') else 'tcp'}://{address}")
        self.socket.send(msgpack.packb([Verb.HELLO, b"", 0, VERSION, address.vhost, "crowd", 0, {}]))
        self.session: Any = None
        self.batches: list[tuple[int, bytes]] = []  # number of messages, their records
        self.next = 0  # of batches
        self.sequence = self.floor = 1

    def read_welcome(self) -> None:
        if not self.socket.poll(WELCOME_MS):
            raise Void("no WELCOME came")
        verb, _, self.incarnation, *fields = msgpack.unpackb(self.socket.recv())
        if verb != Verb.WELCOME:
            raise Void(f"no WELCOME, but {fields}")
        self.session = fields[0]

    def publish(self, window: int) -> None:
        """Send as many batches as the window allows."""
        while self.next < len(self.batches):
            count, records = self.batches[self.next]
            if self.sequence - self.floor + count > window:
                return
            header = [Verb.PUBLISH, self.session, self.incarnation, self.floor, self.sequence, count, "", 0]
            self.socket.send_multipart([msgpack.packb(header), records])
            self.sequence += count
            self.next += 1

    def read(self) -> int:
        """Take a CONFIRM; how many messages have their outcome now that had none."""
        verb, _, _, *fields = msgpack.unpackb(self.socket.recv())
        if verb != Verb.CONFIRM:
            raise Void(f"a client was answered {fields}")
        up_to, _, exceptions = fields[:3]
        if exceptions:
            raise Void(f"messages were refused: {exceptions[0]}")
        before, self.floor = self.floor, max(self.floor, up_to + 1)
        return self.floor - before

    @property
    def done(self) -> bool:
        return self.next == len(self.batches) and self.floor == self.sequence


def crowd(
    gate: Gate, url: str, queue: str, clients: int, active: int, count: int, size: int, window: int, batch: int, first: int = 0,
    steps: int = 1,
) -> None:  # fmt: skip
    """Of `clients`, `active` publish `count` messages between them."""
    members = connect(url, clients)
    records = [msgpack.packb([queue, None, body]) for body in payloads(count, size, first)]
    for number, start in enumerate(range(0, count, batch)):
        part = records[start : start + batch]
        members[number % active].batches.append((len(part), b"".join(part)))
    poller = zmq.Poller()
    of_socket = {member.socket: member for member in members[:active]}
    for socket in of_socket:
        poller.register(socket, zmq.POLLIN)
    gate.ready()
    for member in of_socket.values():
        member.publish(window)
    left, told = sum(not member.done for member in of_socket.values()), 0
    while left:
        readable = poller.poll(CONFIRM_MS)
        if not readable:
            raise Void("no outcome came")
        for socket, _ in readable:
            member = of_socket[socket]
            told += member.read()
            member.publish(window)
            left -= member.done
        if steps > 1 and told * steps >= count:
            gate.report(progress=told / count)
            told = 0
    gate.report(done=True)
    gate.wait_end()
    for member in members:
        member.socket.close()


def connect(url: str, clients: int) -> list[Member]:
    """So many clients with a session each."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard < clients * DESCRIPTORS_OF_CLIENT:
        raise Void(f"{clients} clients need about {clients * DESCRIPTORS_OF_CLIENT} descriptors; the system allows {hard}")
    context = zmq.Context()
    context.max_sockets = clients + 1
    members = [Member(context, url) for _ in range(clients)]
    for member in members:
        member.read_welcome()
    return members


if __name__ == "__main__":
    run_side(globals())
