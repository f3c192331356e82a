"""Every file call that fails, one after the other: never a wrong durable position; the log says that it failed or is full, or goes on."""

import errno
import random

import pytest
from disk import disk
from disk.crashes import Wreckage, Writer

from fastmq.storage.file_log import FileLog
from fastmq.storage.journal_reader import JournalReader

FOLDER, SEGMENT_SIZE = "/log", 8192


def life(files, paths, entries, seed) -> tuple[Writer, str]:
    """One owner: opens, writes, trims, closes; what it came to."""
    writer = Writer(FileLog(FOLDER, files=files, segment_size=SEGMENT_SIZE, needs_checkpoint=False), random.Random(seed), entries)
    try:
        writer.open(files, 2)
    except OSError:
        return writer, "not opened"
    for at in range(20):
        writer.append()
        writer.wait(len(entries))
        if at in (12, 16):
            writer.note("trim", writer.told - 3)
            writer.log.trim(writer.told - 3)
    writer.close()
    if writer.log.failed:
        assert writer.log.error.errno and writer.log.error.filename.startswith(FOLDER)
        return writer, "failed"
    assert writer.told == len(entries)
    return writer, "goes on"


def start() -> tuple[dict[str, bytes], list]:
    """A journal of a few segments to begin with."""
    entries = []
    files = disk().MemoryDisk()
    writer = Writer(FileLog(FOLDER, files=files, segment_size=SEGMENT_SIZE, needs_checkpoint=False), random.Random(1), entries)
    writer.open(files, 1)
    while len(files.paths) < 4:
        writer.append()
        writer.wait(len(entries))
    writer.close()
    return files.contents(), entries


@pytest.mark.parametrize("fault", [errno.EIO, errno.ENOSPC, errno.EINTR, -1], ids=["EIO", "ENOSPC", "EINTR", "short"])
def test_every_failing_call_leaves_what_was_told_durable(fault):
    paths, before = start()
    outcomes, at, failed = {}, 0, True
    while failed:
        at += 1
        files = disk().MemoryDisk(paths)
        files.fail_at, files.fail_with = at, fault
        entries = list(before)
        writer, outcome = life(files, paths, entries, at)
        failed = files.failed_call is not None
        outcomes.setdefault(outcome, []).append(files.failed_call)
        wreckage = Wreckage(paths)
        for call in files.noted:
            wreckage.step(call)
        rnd = random.Random(at)
        for state in [wreckage.sample(rnd) for _ in range(4)]:
            reader = JournalReader(disk().MemoryDisk(state), FOLDER)
            got = list(reader)
            assert got == [(position, *entries[position - 1]) for position in range(reader.first, reader.expected)], (at, files.failed_call)
            assert reader.expected - 1 >= max(writer.told, 0), (at, files.failed_call)
    assert at > 60
    assert "goes on" in outcomes
    if fault == errno.EIO:              # which call is the N-th depends on how the two threads take turns: only what is frequent is asked for
        assert {"pwrite", "fdatasync", "sync_folder"} <= set(outcomes["failed"])
        assert {"open", "pread", "size"} <= set(outcomes["not opened"])
    if fault in (-1, errno.EINTR):
        assert {"pwrite", "pread"} <= set(outcomes["goes on"])


def test_log_without_room_is_full_and_goes_on_when_there_is_room():
    entries = []
    files = disk().MemoryDisk()
    writer = Writer(FileLog(FOLDER, files=files, segment_size=SEGMENT_SIZE, needs_checkpoint=False), random.Random(1), entries)
    writer.open(files, 1)
    writer.append()
    writer.wait(len(entries))
    files.room = 0
    while not writer.log.full:
        if writer.append():
            writer.wait_for_news()
    assert not writer.log.failed
    files.room = 1 << 30
    writer.wait(len(entries))
    while writer.log.full:
        writer.wait_for_news()
    writer.close()
    assert not writer.log.failed
    assert writer.told == len(entries)


def test_full_log_can_be_closed():
    files = disk().MemoryDisk()
    files.room = 0
    writer = Writer(FileLog(FOLDER, files=files, segment_size=SEGMENT_SIZE, needs_checkpoint=False), random.Random(1), [])
    writer.open(files, 1)
    writer.append()
    writer.close()
    assert writer.log.failed and writer.log.error.errno == errno.ENOSPC
    assert not files.contents()
