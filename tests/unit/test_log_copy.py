"""Copies of a log that is written: each is a log that recovers, with all that was durable before and in order."""

import fcntl
import os
import random
import threading
from pathlib import Path

import pytest
from disk import disk
from disk.ageing import Ageing
from waiting import wait_until

from fastmq.errors import FastMQError, JournalDamaged
from fastmq.storage import log_copy
from fastmq.storage.file_log import FileLog
from fastmq.storage.journal_reader import JournalReader
from fastmq.storage.log_copy import copy_log, end_of, needed_segments, share_of, size_of
from fastmq.storage.repair import examine

SEGMENT_SIZE = 8192
COPIES = 25


def store_in(folder: Path, entries: list, epoch: int = 1) -> Ageing:
    store = Ageing(FileLog(str(folder), segment_size=SEGMENT_SIZE, unit_size=512), random.Random(3), entries)
    store.open(disk().MemoryDisk(), epoch)
    return store


def nothing(size: int) -> None:
    pass


def test_each_copy_of_a_log_that_ages_under_it_recovers_with_all_that_was_durable(tmp_path):
    entries: list = []
    store = store_in(tmp_path / "log", entries)
    finish, errors = threading.Event(), []

    def write() -> None:
        try:
            while not finish.is_set():
                store.write(3)
        except BaseException as error:
            errors.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    trimmed = 0
    try:
        for n in range(COPIES):
            copy = tmp_path / f"copy{n}"
            copy.mkdir()
            told = store.told
            copy_log(str(tmp_path / "log"), str(copy), nothing)
            found = examine(str(copy))
            assert found.last >= told and not found.cut
            trimmed += found.first > 1
            store_in(copy, list(entries[: found.last]), 2).close()      # which compares all messages
    finally:
        finish.set()
        writer.join()
    assert not errors, errors
    store.close()
    assert trimmed > COPIES // 2
    assert not store.log.failed


def put(store: Ageing, size: int) -> None:
    message, store.next_message = store.next_message, store.next_message + 1
    store.live[message] = os.urandom(size)
    entry = 1, b"P" + message.to_bytes(8, "little") + store.live[message]
    store.entries.append(entry)
    assert store.kinds.append(store.log, *entry)
    store.kinds.submit(store.log)
    store.wait(len(store.entries))


def test_segment_that_is_recycled_while_it_is_copied_is_not_needed(tmp_path):
    """The checkpoint has all of the last segment; another is begun, and the keeper takes it."""
    entries: list = []
    store = store_in(tmp_path / "log", entries)
    put(store, 100)
    assert store.checkpoint()
    store.wait_checkpointed(len(entries))
    copy = tmp_path / "copy"
    copy.mkdir()
    (last,) = needed_segments(str(tmp_path / "log"), len(entries))
    rolled = []

    def roll(size: int) -> None:
        if not rolled and (copy / last).exists():
            put(store, SEGMENT_SIZE)                                    # which does not fit
            wait_until(lambda: not (tmp_path / "log" / last).exists(), what="the segment is recycled")
            rolled.append(last)

    copy_log(str(tmp_path / "log"), str(copy), roll)
    assert rolled and not (copy / last).exists()
    store.close()
    assert not examine(str(copy)).cut
    store_in(copy, entries, 2).close()


def test_batch_that_was_half_written_when_it_was_read_is_no_damage(tmp_path, monkeypatch):
    entries: list = []
    store = store_in(tmp_path / "log", entries)
    store.append()
    store.wait(len(entries))
    store.append()
    store.wait(len(entries))
    store.close()
    name = needed_segments(str(tmp_path / "log"), 0)[-1]
    path = tmp_path / "log" / name
    whole, end = path.read_bytes(), end_of(str(tmp_path / "log"), name, 0)
    path.write_bytes(whole[:4100] + b"\0" + whole[4101:])               # of the first batch, and the next one knows it durable
    with pytest.raises(JournalDamaged):
        end_of(str(tmp_path / "log"), name, 0)
    looks = []

    def reader(*arguments):
        if looks:                                                       # the second look finds it whole
            path.write_bytes(whole)
        looks.append(1)
        return JournalReader(*arguments)

    monkeypatch.setattr(log_copy, "JournalReader", reader)
    assert end_of(str(tmp_path / "log"), name, 0) == end and len(looks) == 2


def test_copy_ends_where_the_tear_of_a_death_begins(tmp_path):
    entries: list = []
    store = store_in(tmp_path / "log", entries)
    store.append()
    store.wait(len(entries))
    store.close()
    name = needed_segments(str(tmp_path / "log"), 0)[-1]
    with open(tmp_path / "log" / name, "r+b") as file:
        file.seek(end_of(str(tmp_path / "log"), name, 0))
        file.write(os.urandom(100))
    assert examine(str(tmp_path / "log")).cut
    (tmp_path / "copy").mkdir()
    copy_log(str(tmp_path / "log"), str(tmp_path / "copy"), nothing)
    assert not examine(str(tmp_path / "copy")).cut
    store_in(tmp_path / "copy", entries, 2).close()


def test_checkpoint_that_takes_too_long_is_told(tmp_path):
    (tmp_path / "log").mkdir()
    log = str(tmp_path / "log")
    fd = os.open(tmp_path / "log" / "checkpoint.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX)
    with pytest.raises(FastMQError, match="writing a checkpoint") as told, share_of(log, 0.05):
        pass
    assert told.value.code == "busy"
    os.close(fd)
    with share_of(log, 0.05), share_of(log, 0.05):
        pass


def test_missing_segment_is_damage(tmp_path):
    entries: list = []
    store = store_in(tmp_path / "log", entries)
    while len(needed_segments(str(tmp_path / "log"), 0)) < 4:
        store.append()
        store.wait(len(entries))
    store.close()
    for at in (0, 1):
        names = needed_segments(str(tmp_path / "log"), 0)
        os.rename(tmp_path / "log" / names[at], tmp_path / "aside")
        (tmp_path / f"copy{at}").mkdir()
        with pytest.raises(JournalDamaged, match=f"{names[at]} is missing"):
            copy_log(str(tmp_path / "log"), str(tmp_path / f"copy{at}"), nothing)
        os.rename(tmp_path / "aside", tmp_path / "log" / names[at])


def test_size_is_told_of_a_log_whose_segments_go_meanwhile(tmp_path, monkeypatch):
    store = store_in(tmp_path / "log", [])
    store.append()
    store.close()
    log = str(tmp_path / "log")
    size, names = size_of(log), needed_segments(log, 0)
    assert size >= SEGMENT_SIZE
    monkeypatch.setattr(log_copy, "segment_names", lambda *arguments: ["journal-0000000000000000", *names])
    assert size_of(log) == size
