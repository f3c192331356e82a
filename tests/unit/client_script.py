"""A ClientCore with a scripted broker: what it sends comes out as decoded messages, what the script says goes in, byte by byte if wanted."""

from __future__ import annotations

import os
import struct
from typing import Any

import msgpack

from fastmq.client.core import ClientCore
from fastmq.wire.verbs import Verb

EXAMPLES = int(os.environ.get("FASTMQ_EXAMPLES", "2000"))  # of each parser; `make fuzz` raises it
GREETING = b"\xff" + bytes(7) + b"\x01\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
READY = b"\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06ROUTER"
SESSION = b"publicx!" + b"proof..."


def frame(data: bytes, more: bool = False) -> bytes:
    return (struct.pack("!BB", more, len(data)) if len(data) < 256 else struct.pack("!BQ", 2 | more, len(data))) + data


def record(key: str, body: bytes, properties: dict[str, Any] | None = None) -> bytes:
    return msgpack.packb([key, properties, body])  # type: ignore[no-any-return]


def frames_of(data: bytes) -> list[list[bytes]]:
    """The messages in what a client sent behind its greeting; commands are left out."""
    messages: list[list[bytes]] = []
    frames: list[bytes] = []
    at = 0
    while at < len(data):
        flags = data[at]
        if flags & 2:
            size, at = struct.unpack_from("!Q", data, at + 1)[0], at + 9
        else:
            size, at = data[at + 1], at + 2
        body, at = data[at : at + size], at + size
        if not flags & 4:
            frames.append(body)
            if not flags & 1:
                messages.append(frames)
                frames = []
    assert not frames
    return messages


class Script:
    def __init__(self, step: int = 0, window: tuple[int, int] = (100, 2**20), welcome: bool = True) -> None:
        self.core = ClientCore("/", "me")
        self.step = step
        self.window = window
        self.now = 1000
        self.incarnation = 0
        self.session = SESSION
        if welcome:
            self.connect()
            self.welcome()

    def feed(self, data: bytes) -> None:
        step = self.step or max(1, len(data))
        for at in range(0, len(data), step):
            self.core.feed(data[at : at + step], self.now)

    def connect(self) -> list[Any]:
        """A new connection up to HELLO, which is returned."""
        self.core.connected(self.now)
        assert self.core.take_output(self.now) == GREETING
        self.feed(GREETING + READY)
        out = self.core.take_output(self.now)
        assert out[0] == 4
        (hello,) = [message for message, _ in self.decode(out[2 + out[1] :])]
        assert hello[0] == Verb.HELLO
        return hello

    def disconnect(self) -> None:
        self.core.disconnected(self.now)

    def say(self, verb: int, *fields: Any, records: bytes | None = None, incarnation: int | None = None, sid: bytes | None = None) -> None:
        header = [verb, self.session[:8] if sid is None else sid, self.incarnation if incarnation is None else incarnation, *fields]
        data = frame(msgpack.packb(header), records is not None)
        self.feed(data + (frame(records) if records is not None else b""))

    def welcome(self, incarnation: int = 1) -> None:
        self.incarnation = incarnation
        self.say(Verb.WELCOME, self.session, 1, {"version": "test"}, *self.window, "tcp://127.0.0.1:7401")

    @staticmethod
    def decode(data: bytes) -> list[tuple[list[Any], list[Any]]]:
        """(header, records) of each message."""
        found = []
        for message in frames_of(data):
            unpacker = msgpack.Unpacker(strict_map_key=False)
            unpacker.feed(message[1] if len(message) > 1 else b"")
            found.append((msgpack.unpackb(message[0]), list(unpacker)))
        return found

    def sent(self) -> list[tuple[list[Any], list[Any]]]:
        """What the client sends now: (header without session, records) of each message; each header is checked."""
        found = []
        for header, records in self.decode(self.core.take_output(self.now)):
            assert header[1] == self.core.session_id
            found.append(([header[0], *header[2:]], records))
        return found

    def verbs(self) -> list[int]:
        return [header[0] for header, _ in self.sent()]

    def publishes(self) -> list[tuple[int, list[int], list[bytes]]]:
        """(incarnation, sequences, bodies) of each PUBLISH that the client sends now."""
        found = []
        for header, records in self.sent():
            if header[0] == Verb.PUBLISH:
                _, incarnation, floor, first, count, *_ = header
                assert count == len(records)
                assert floor <= first
                found.append((incarnation, list(range(first, first + count)), [body for _, _, body in records]))
        return found

    def confirm(
        self, up_to: int = 0, ranges: Any = (), exceptions: Any = (), window: tuple[int, int] | None = None, incarnation: int | None = None
    ) -> None:
        self.say(Verb.CONFIRM, up_to, list(ranges), list(exceptions), *(window or self.window), incarnation=incarnation)
