"""One shard: the unit of ownership, order and state. What Python may touch of it: tests, the simulation, and cold paths."""
from enum import IntEnum
from typing import Any

from fastmq.errors import FastMQError

class HandleResult(IntEnum):
    HANDLE_OK = 0
    HANDLE_MALFORMED = -1
    HANDLE_UNKNOWN = -2
    HANDLE_NO_MEMORY = -3

class BadRecord(FastMQError):
    """A shard's records are damaged, or were not written by this state."""

class Shard:
    """One shard's state machine. Link messages in, effects and records out."""

    def __init__(
        self,
        index: int,
        epoch: int,
        *,
        record_level: int = 0,
        resume_ns: int = 30_000_000_000,
        publisher_keep_ns: int = 3_600_000_000_000,
        publishers_max: int = 10_000,
        chunk_size_max: int = 65536,
        ring_block_shift: int = 0,
        span_free: int = 64,
        delivery_size_max: int = 262144,
        pump_count_max: int = 4096,
        compact_slack_bytes: int = 4194304,
    ) -> None: ...
    def handle(self, frontend: int, kind: int, payload: bytes, now_ms: int, now_ns: int) -> None: ...
    def frontend_gone(self, frontend: int, now_ns: int) -> None: ...
    def tick(self, now_ns: int) -> None: ...
    def pump(self, now_ns: int) -> bool: ...
    def take_effects(self) -> list[tuple[int, int, int, bytes]]: ...
    def take_records(self) -> bytes: ...
    def take_counts(self) -> dict[int, tuple[int, int, int]]: ...
    def stats(self) -> dict[str, int]: ...
    def stamp(self, position: int) -> None: ...
    def durable_up_to(self, position: int) -> bool: ...
    def recovered(self) -> None: ...
    def apply(self, records: bytes, now_ns: int = 0) -> None: ...
    def dump(self) -> dict[str, Any]: ...
