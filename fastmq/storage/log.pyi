"""The log's interface, and the log that keeps nothing. What Python may touch of it; workers call the rest without the GIL."""
from collections.abc import Iterator
from enum import IntEnum

class RecordLevel(IntEnum):
    RECORDS_NONE = 0
    RECORDS_ALL = 1
    RECORDS_DURABLE = 2

class LogShard(IntEnum):
    SHARD_TOPOLOGY = 0xFFFF

class LogReader(Iterator[tuple[int, int, bytes]]):
    def check(self) -> None: ...
    def __next__(self) -> tuple[int, int, bytes]: ...

class Log:
    record_level: int
    appended: int
    submitted: int
    durable: int
    failed: bool
    full: bool
    checkpointed: int
    checkpointing: bool
    tail_size: int
    extent_bytes: int
    extent_pending: int

    def __init__(self, record_level: int = RecordLevel.RECORDS_NONE) -> None: ...
    @property
    def error(self) -> OSError | None: ...
    def add(self, shard: int, records: bytes) -> None: ...
    def write_extent(self, number: int, payload: bytes) -> None: ...
    def make_durable(self) -> None: ...
    def open(self, epoch: int, reader: LogReader | None = None) -> int: ...
    def fileno(self) -> int: ...
    def read(self, position: int = 1) -> LogReader: ...
    def trim(self, position: int) -> None: ...
    def close(self) -> None: ...
