"""What a worker says and does while it reads its log."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from disk import disk

from fastmq.config import Config
from fastmq.errors import JournalDamaged
from fastmq.server.workshop import Workshop
from fastmq.storage.file_log import FileLog

ELSEWHERE = 63                  # a shard that the worker does not have


def test_long_recovery_tells_how_far_it_has_come_and_passes_over_other_shards(tmp_path: Path) -> None:
    log = FileLog(str(tmp_path))
    log.open(1)
    for _ in range(3):
        for _ in range(20_000):
            log.add(ELSEWHERE, b"whatever")
        log.make_durable()
    log.close()
    told: list[int] = []
    again = FileLog(str(tmp_path))
    Workshop(2, [0], Config().to_map(), log=again, progress=told.append)
    again.close()
    assert told == [20_000, 40_000]


def filled(files: Any, rounds: int, **options: Any) -> int:
    """A log with segments of 8 KiB; the position of its last entry."""
    log = FileLog("/log", files=files, segment_size=8192, needs_checkpoint=False, **options)
    log.open(1)
    for number in range(rounds):
        log.add(ELSEWHERE, b"%d" % number * 100)
        log.make_durable()
    log.close()
    return rounds


def recovered(files: Any, **options: Any) -> FileLog:
    log = FileLog("/log", files=files, segment_size=8192, **options)
    Workshop(2, [0], Config().to_map(), log=log)
    return log


def test_recovery_reads_the_log_once() -> None:
    files = disk().MemoryDisk()
    position = filled(files, 200)
    calls: list[str] = []
    files.before = calls.append
    FileLog("/log", files=files, segment_size=8192, needs_checkpoint=False).read().read_all()
    once = calls.count("pread")
    calls.clear()
    log = recovered(files, needs_checkpoint=False)
    assert once > 10 and calls.count("pread") <= once + 1           # and what nobody knows to be durable, to be written again
    assert log.durable == position
    log.add(0, b"goes on")
    log.make_durable()
    assert log.durable == position + 1
    log.close()


def test_recovery_refuses_damage_in_the_middle_and_a_journal_without_its_beginning() -> None:
    files = disk().MemoryDisk()
    filled(files, 200)
    paths = files.contents()
    first, second = sorted(paths)[:2]
    damaged = bytearray(paths[second])
    damaged[4096 + 100] ^= 1
    with pytest.raises(JournalDamaged, match="is damaged at offset 4096"):
        recovered(disk().MemoryDisk({**paths, second: bytes(damaged)}), needs_checkpoint=False)
    with pytest.raises(JournalDamaged, match="the journal begins with position"):
        recovered(disk().MemoryDisk({path: data for path, data in paths.items() if path != first}))
