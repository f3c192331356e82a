"""What a worker says and does while it reads its log."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from disk import disk
from waiting import wait_until

from fastmq.config import Config
from fastmq.errors import FastMQError, JournalDamaged
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


def filled(files: Any, rounds: int, epoch: int = 1) -> int:
    """A log with segments of 8 KiB; the position of its last entry."""
    log = FileLog("/log", files=files, segment_size=8192, needs_checkpoint=False)
    log.open(epoch)
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


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize("fault", ["damage", "beginning", "owner"])
def test_recovery_refuses_and_changes_nothing(fault: str) -> None:
    files = disk().MemoryDisk()
    filled(files, 200, epoch=2 if fault == "owner" else 1)
    paths = files.contents()
    first, second = sorted(paths)[:2]
    error, text = JournalDamaged, "is damaged at offset 4096"
    if fault == "damage":
        paths[second] = flipped(paths[second], 4096 + 100)
    elif fault == "beginning":
        del paths[first]
        text = "the journal begins with position"
    else:
        error, text = FastMQError, "has had an owner of epoch 2"
    again = disk().MemoryDisk(paths)
    with pytest.raises(error, match=text):
        recovered(again)
    assert again.contents() == paths and not again.noted


def test_what_has_changed_since_it_was_applied_is_not_made_durable() -> None:
    """The kernel may have dropped a page that a failed sync did not write: what is there now is something else."""
    files = disk().MemoryDisk()
    filled(files, 20)
    paths = files.contents()
    last = max(path for path in paths if "journal" in path)
    end = paths[last].rindex(b"19" * 50) + 100
    again = disk().MemoryDisk({**paths, last: paths[last][:end] + bytes(len(paths[last]) - end)})           # no news behind the last batch
    log = FileLog("/log", files=again, segment_size=8192)
    reader = log.read()
    assert reader.read_all() == 20
    again.paths[last].data = flipped(bytes(again.paths[last].data), end - 1)
    with pytest.raises(OSError, match="Input/output error"):
        log.open(2, reader)
    assert not again.noted


def test_recovery_cuts_a_tear_and_goes_on_behind_it() -> None:
    files = disk().MemoryDisk()
    filled(files, 20)
    paths = files.contents()
    last = max(path for path in paths if "journal" in path)
    end = paths[last].rindex(b"19" * 50)
    paths[last] = flipped(paths[last][:end] + bytes(len(paths[last]) - end), end - 1)       # the last batch is torn, no news behind it
    said: list[str] = []
    log = recovered(disk().MemoryDisk(paths), needs_checkpoint=False, say=said.append)
    assert log.durable == 19 and "bytes are cut" in said[0]
    log.add(0, b"goes on")
    log.make_durable()
    assert log.durable == 20
    log.close()


def test_another_number_of_workers_refuses_a_journal_that_ends_before_its_checkpoint(tmp_path: Path) -> None:
    old, new = str(tmp_path / "old"), str(tmp_path / "new")
    log = FileLog(old)
    log.open(1)
    log.add(ELSEWHERE, b"whatever")
    log.make_durable()
    assert disk().checkpoint(log, log.durable, [])
    wait_until(lambda: disk().look(log) and log.checkpointed == 1, what="the checkpoint")
    log.close()
    for path in Path(old).glob("journal-*"):
        path.unlink()
    with pytest.raises(JournalDamaged, match="the journal ends with position"):
        Workshop(2, [0], Config().to_map(), log=FileLog(new), old_logs=[old])
