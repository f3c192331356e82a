"""What a worker says and does while it reads its log."""
from __future__ import annotations

from pathlib import Path

from fastmq.config import Config
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
