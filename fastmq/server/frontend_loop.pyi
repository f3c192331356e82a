"""The part of a front-end's process that runs without the GIL."""
from typing import Any

import zmq

from fastmq.server.sessions import Sessions

MONITORED: int

class FrontendLoop:
    accepted: int
    accept_failed: int

    def __init__(self, sessions: Sessions, router: zmq.Socket[Any], monitor: zmq.Socket[Any]) -> None: ...
    def look_at(self, control: int, bells: list[int]) -> None: ...
    def work(self, until_ns: int, until_idle: bool = False, soon_ns: int | None = None) -> None: ...
