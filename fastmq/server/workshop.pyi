"""A worker without its process. What Python may touch of it: the worker's shell, tests and the simulation."""
from collections.abc import Callable, Sequence
from typing import Any

from fastmq.model.shard import Shard
from fastmq.model.topology_shard import TopologyShard
from fastmq.net.arena import ArenaMemory
from fastmq.net.ring import Link
from fastmq.storage.log import Log

class Workshop:
    failed: bool
    handled: int
    shards: list[Shard | None]
    topology: TopologyShard | None
    log: Log

    def __init__(
        self,
        epoch: int,
        shards: list[int],
        settings: dict[str, Any],
        *,
        log: Log,
        old_logs: Sequence[str] = ...,
        now_ns: int = 0,
        progress: Callable[[int], None] | None = None,
        topology: bool = False,
        frontends: Sequence[int] = (),
        salt: bytes = b"",
        arena: ArenaMemory | None = None,
        region_size: int = ...,
        **shard_options: int,
    ) -> None: ...
    def attach(self, frontend: int, link: Link) -> None: ...
    def detach(self, frontend: int, now_ns: int) -> None: ...
    def rest(self) -> None: ...
    def tick(self, now_ns: int) -> None: ...
    def arena_counts(self) -> dict[str, int]: ...
    def turn_once(self, now_ns: int, now_ms: int) -> bool: ...
    def check(self) -> None: ...
    @property
    def waiting_bytes(self) -> int: ...
