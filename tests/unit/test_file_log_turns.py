"""The file log's two sides: what the worker appends and submits, and what the journal's thread makes durable meanwhile."""

import random

from disk import disk
from disk.crashes import Writer

from fastmq.storage.file_log import FileLog

LARGE = 1_000_000


def test_turn_that_follows_holds_up_nothing_however_large_it_is():
    """It submits nothing before it has heard of the turn before. Ten times, because the thread may be quicker than the test."""
    files = disk().MemoryDisk()
    writer = Writer(FileLog("/log", files=files), random.Random(1), [])
    append, submit, large = disk().append, disk().submit, bytes(LARGE)
    writer.open(files, 1)
    for position in range(1, 21, 2):
        append(writer.log, 0, b"small")
        submit(writer.log)
        append(writer.log, 0, large)
        writer.wait(position)
        assert writer.told == position
        submit(writer.log)
        writer.wait(position + 1)
    writer.log.close()
    again = FileLog("/log", files=files)
    assert again.open(2) == 20
    assert [len(data) for _, _, data in again.read()] == [5, LARGE] * 10
    again.close()
