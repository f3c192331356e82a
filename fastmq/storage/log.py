"""The Log: where a worker writes the records of all its shards, so that they can be applied again after its death.

Owns: the interface, and the log that keeps nothing. Rules: positions rise by one a record, from 1, over all shards;
one append is in flight at a time, and the next batch fills meanwhile; a failed write or sync is never tried again: the
answer is `UNKNOWN` and the owner stops; what was answered `DURABLE` is read again after any death.
Process: worker; a log that has a journal thread keeps it to itself.
"""
from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple


class RecordLevel(enum.IntEnum):
    """Which records a shard has to make for its log."""

    NONE = 0            # none: nothing is ever read again
    ALL = 1


class AppendOutcome(enum.Enum):
    """What became of an append."""

    PENDING = enum.auto()       # not known yet: `fileno` becomes readable, then ask `completed`
    DURABLE = enum.auto()       # everything up to the position survives any death
    FENCED = enum.auto()        # another owner has a higher epoch: nothing was written, this owner stops
    UNKNOWN = enum.auto()       # it may be written or not: this owner stops, whoever opens the log next will see


class Appended(NamedTuple):
    outcome: AppendOutcome
    position: int               # of the last record of the batch; with FENCED and UNKNOWN of the last one known durable


class LogRecord(NamedTuple):
    position: int
    shard: int
    record: bytes


class Log(ABC):
    """One worker's log. All calls come from one thread, and none of them waits for a disk but `open` and `read`."""

    record_level: RecordLevel

    @abstractmethod
    def open(self, epoch: int) -> int:
        """Become the owner, with an epoch above every earlier one, and fence those off; the last durable position."""

    @abstractmethod
    def append(self, records: Sequence[tuple[int, bytes]]) -> Appended:
        """Begin to write [(shard, record)...] as one batch: after a death all of it is there or none.

        The answer may be PENDING; until it is known no other append may begin. The records may be let go on return.
        """

    @abstractmethod
    def completed(self) -> Appended:
        """The answer to the last append, which stays PENDING until it is known. Never blocks."""

    @abstractmethod
    def fileno(self) -> int:
        """A descriptor that becomes readable when a PENDING append is answered; -1: this log never answers PENDING."""

    @abstractmethod
    def read(self, position: int) -> Iterator[LogRecord]:
        """The durable records from `position` on, in order. Those that were trimmed are passed over."""

    @abstractmethod
    def tail(self, position: int, on_durable: Callable[[Sequence[LogRecord]], None]) -> Callable[[], None]:
        """Call `on_durable` with the records from `position`, then with each durable batch; returns what ends that."""

    @abstractmethod
    def trim(self, position: int) -> None:
        """Records below `position` are not needed any more: their room may be used again."""

    @abstractmethod
    def checkpoint(self, position: int, states: Sequence[tuple[int, bytes]]) -> Appended:
        """Keep [(shard, state)...], each the whole of a shard as the records below `position` made it.

        It replaces the last checkpoint and is answered like an append. `read` from `position` continues it.
        """

    @abstractmethod
    def close(self) -> None:
        """Stop writing. What was appended and not answered stays UNKNOWN."""


class NullLog(Log):
    """The log of a broker without a data directory: wants no records, keeps none, and answers at once."""

    record_level = RecordLevel.NONE

    def __init__(self) -> None:
        self._position = 0

    def open(self, epoch: int) -> int:
        return self._position

    def append(self, records: Sequence[tuple[int, bytes]]) -> Appended:
        self._position += len(records)
        return self.completed()

    def completed(self) -> Appended:
        return Appended(AppendOutcome.DURABLE, self._position)

    def fileno(self) -> int:
        return -1

    def read(self, position: int) -> Iterator[LogRecord]:
        return iter(())

    def tail(self, position: int, on_durable: Callable[[Sequence[LogRecord]], None]) -> Callable[[], None]:
        return _nothing

    def trim(self, position: int) -> None:
        pass

    def checkpoint(self, position: int, states: Sequence[tuple[int, bytes]]) -> Appended:
        return self.completed()

    def close(self) -> None:
        pass


def _nothing() -> None:
    pass
