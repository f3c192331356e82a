"""The connections of clients to one front-end."""
import socket

from fastmq.server.sessions import Sessions

class Connections:
    count: int
    blocked: int
    accepted: int
    accept_failed: int

    def __init__(self, sessions: Sessions, listeners: list[tuple[socket.socket, bool]], room_max: int) -> None: ...
    def look_at(self, control: int, bells: list[int]) -> None: ...
    def rest(self) -> None: ...
    def stop_listening(self) -> None: ...
