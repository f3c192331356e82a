"""Whatever a crash leaves of a journal: all that was told durable is read again, nothing is invented, the order is kept.

The states are made from the recorded file calls of a log in memory (tests/disk/crashes.py). The same suite must report a loss for a log whose
files are not synced, whose folder is not, and which confirms before the sync.
"""

import random

import pytest
from conftest import LONG
from disk import disk
from disk.crashes import Wreckage, Writer

from fastmq.errors import FastMQError
from fastmq.storage.file_log import FileLog
from fastmq.storage.journal_reader import JournalReader

STATES = 100_000 if LONG else 5_000
SEGMENT_SIZE = 8192
FOLDER = "/log"


class Lost(AssertionError):
    """A state that breaks a promise."""


class Suite:
    """Runs of a log, and the crash states of each; some of those are where the next run begins."""

    def __init__(self, seed: int, **table) -> None:
        self.rnd = random.Random(seed)
        self.table = table
        self.count = 0

    def run(self, paths: dict[str, bytes], entries: list, epoch: int, generations: int) -> None:
        """Write to the log on a disk that holds `paths`, crash everywhere, and go on from some of the crashes."""
        files = disk().MemoryDisk(paths)
        for name, value in self.table.items():
            setattr(files, name, value)
        writer = Writer(FileLog(FOLDER, files=files, segment_size=SEGMENT_SIZE, needs_checkpoint=False), self.rnd, entries)
        writer.open(files, epoch)
        writer.write(self.rnd.randint(5, 60))
        writer.close()
        wreckage, told, trimmed = Wreckage(paths), 0, max(self.trimmed, 0)
        goes_on = self.rnd.sample(range(len(files.noted)), 2) if generations else []
        for at, call in enumerate(files.noted):
            if call[0] == "told":
                told = call[1]
            elif call[0] == "trim":
                trimmed = max(trimmed, call[1])
            wreckage.step(call)
            for _ in range(3):
                state = wreckage.sample(self.rnd)
                self.check(state, entries, told, trimmed)
            if at in goes_on:
                before = self.trimmed
                self.trimmed = trimmed
                kept = entries[: self.check(state, entries, told, trimmed)]
                self.run(state, kept, epoch + self.rnd.randint(1, 3), generations - 1)
                self.trimmed = before

    trimmed = 0

    def check(self, state: dict[str, bytes], entries: list, told: int, trimmed: int) -> int:
        """Read what is left; the last position."""
        self.count += 1
        files = disk().MemoryDisk(state)
        try:
            reader = JournalReader(files, FOLDER)
            got = list(reader)
        except FastMQError as error:
            raise Lost(f"refused after a crash: {error}") from error
        first, last = reader.first, reader.expected - 1
        expected = [(position, *entries[position - 1]) for position in range(first, last + 1)] if last <= len(entries) else None
        if last < told:
            raise Lost(f"position {told} was told durable, and {last} is the last that is there")
        if got != expected:
            raise Lost(f"positions {first} to {last} are not what was written")
        if first > trimmed + 1:
            raise Lost(f"position {first} is the first that is there, and only {trimmed} was trimmed")
        return last

    def states(self, count: int) -> None:
        """At least so many states."""
        while self.count < count:
            self.trimmed = 0
            self.run({}, [], 1, 2)


def test_every_crash_keeps_what_was_told_durable():
    suite = Suite(4)
    suite.states(STATES)
    assert suite.count >= STATES


@pytest.mark.parametrize(("attribute", "value"), [("does_sync", False), ("does_sync_folder", False), ("syncs_late", True)])
def test_suite_reports_a_loss_where_a_sync_is_missing(attribute, value):
    with pytest.raises(Lost):
        Suite(4, **{attribute: value}).states(STATES)
