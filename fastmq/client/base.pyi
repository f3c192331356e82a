from typing import Any

from fastmq.client.connection import Connection
from fastmq.client.message import Message
from fastmq.errors import Failure

class ClientBase:
    """What of the client is on the way of a message."""

    timeout: float
    _commands: Connection
    _events: Connection
    def _start(self, vhost: str, name: str, timeout: float) -> None: ...
    def publish(
        self,
        routing_key: str,
        body: bytes | bytearray | memoryview,
        exchange: str = "",
        *,
        headers: dict[str, Any] | None = None,
        persistent: bool = True,
        mandatory: bool = False,
        priority: int = 0,
        message_id: str | None = None,
        correlation_id: str | None = None,
        reply_to: str | None = None,
        content_type: str | None = None,
        timeout: float | None = None,
    ) -> int: ...
    def flush(self, timeout: float | None = 10.0) -> None: ...
    def _take_failures(self) -> list[Failure]: ...
    def _ask(
        self, verb: int, fields: list[Any], deadline_ns: int, impatient: bool = False
    ) -> tuple[tuple[str, str] | None, Any, Message | None]: ...
    def _wait_up(self, deadline_ns: int) -> bool: ...
    def _say_bye(self) -> None: ...
    def _topics(self) -> list[bytes]: ...
    def _accepted(self, topic: bytes, welcomes: int) -> None: ...
    @property
    def _welcomes(self) -> int: ...
    @property
    def _events_endpoint(self) -> str: ...
    @property
    def _why_broken(self) -> tuple[str, str] | None: ...
    @property
    def session_id(self) -> str: ...
    @property
    def stale_settlements(self) -> int: ...
    @staticmethod
    def _deadline(timeout: float) -> int: ...
