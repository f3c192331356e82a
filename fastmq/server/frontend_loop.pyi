"""The part of a front-end's process that runs without the GIL."""
from fastmq.server.connections import Connections
from fastmq.server.sessions import Sessions

class FrontendLoop:
    def __init__(self, sessions: Sessions, connections: Connections) -> None: ...
    def work(self, until_ns: int, until_idle: bool = False, soon_ns: int | None = None) -> None: ...
