"""The connections of clients to one front-end."""
import socket

from fastmq.server.sessions import Sessions

HANDSHAKE_MS: int
PING_MS: int
SILENCE_MS: int

class Connections:
    count: int
    blocked: int
    lent: int
    accepted: int
    accept_failed: int
    held_back: int
    shed: int

    def __init__(self, sessions: Sessions, listeners: list[tuple[socket.socket, bool]], room_max: int) -> None: ...
    def look_at(self, control: int, bells: list[int]) -> None: ...
    def bound_received(self, size_max: int) -> None: ...
    @property
    def held_size(self) -> int: ...
    def age(self, ns: int) -> None: ...
    def rest(self) -> None: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...
