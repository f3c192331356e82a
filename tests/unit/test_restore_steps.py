"""A restore that dies at any of its steps leaves the old data or the new, whole, and nothing else after the next start."""

import json
import os
import shutil
from functools import partial
from pathlib import Path

import pytest

from fastmq import server
from fastmq.config import Config
from fastmq.errors import BadArgument, BrokerFailed
from fastmq.server.backup import new_folder, shared_generation
from fastmq.server.data_directory import EPOCHS_RESTORED, DataDirectory, read_facts, write_facts

CONFIG = Config(workers=1)
STEPS = ("rename", "replace", "fsync", "open", "rmdir", "unlink", "pwrite")     # of os: what the restore does, and what removes the old data


class Killed(BaseException):
    """Where a SIGKILL would be: nothing after it is done."""


def data_directory(path: Path, what: str, epoch: int) -> None:
    directory = DataDirectory(path, CONFIG)
    while directory.next_epoch() < epoch:
        pass
    log = Path(directory.log_path(0))
    log.mkdir(parents=True)
    (log / "content").write_text(what)
    directory.close()


def stage(source: Path, place: Path) -> None:
    """As fastmq/server/restore.py does."""
    shutil.copytree(source / "logs-1", place / "restore" / "logs")
    write_facts(place / "restore", read_facts(source))


def content(path: Path) -> tuple[str, int]:
    """After a start: what is there, and the next epoch. Nothing else is there."""
    directory = DataDirectory(path, CONFIG)
    log = Path(directory.log_path(0))
    try:
        epoch = directory.next_epoch()              # which writes broker.json
        assert sorted(entry.name for entry in path.iterdir()) == ["broker.json", "lock", log.parent.name]
        return (log / "content").read_text(), epoch
    finally:
        directory.close()


def restore_until(place: Path, steps: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether it came to its end before it died at that step."""
    left = steps

    def dying(call):
        def step(*arguments, **options):
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return call(*arguments, **options)

        return step

    directory = DataDirectory(place, CONFIG)
    stage(place.parent / "backup", place)
    try:
        with monkeypatch.context() as patch:
            for name in STEPS:
                patch.setattr(os, name, dying(getattr(os, name)))
            directory.replace(CONFIG)
    except Killed:
        return False
    finally:
        directory.close()
    return left >= 0


def test_restore_that_dies_at_any_step_leaves_the_old_data_or_the_new(tmp_path, monkeypatch):
    data_directory(tmp_path / "backup", "new", 5)
    found, steps, done = [], 0, False
    while not done:
        place = tmp_path / f"data{steps}"
        data_directory(place, "old", 50)
        done = restore_until(place, steps, monkeypatch)
        what, epoch = content(place)
        assert epoch > 50
        found.append(what)
        steps += 1
    switch = found.index("new")
    assert switch >= 5
    assert found == ["old"] * switch + ["new"] * (len(found) - switch)
    assert len(found) - switch >= 3
    assert (tmp_path / "backup" / "logs-1" / "0" / "content").read_text() == "new"


def test_restored_epoch_is_above_what_either_gave_out(tmp_path):
    data_directory(tmp_path / "backup", "new", 5000)
    for name, epoch in (("low", 5), ("high", 9000)):
        place = tmp_path / name
        data_directory(place, "old", epoch)
        directory = DataDirectory(place, CONFIG)
        stage(tmp_path / "backup", place)
        directory.replace(CONFIG)
        assert directory.next_epoch() > max(epoch, 5000) + EPOCHS_RESTORED
        assert directory.key == bytes.fromhex(read_facts(tmp_path / "backup")["key"])
        directory.close()


def test_incomplete_or_foreign_restore_is_refused_and_the_old_data_counts(tmp_path):
    data_directory(tmp_path / "backup", "new", 5)
    place = tmp_path / "data"
    data_directory(place, "old", 5)
    directory = DataDirectory(place, CONFIG)
    with pytest.raises(BadArgument, match=r"no broker.json"):
        directory.replace(CONFIG)
    stage(tmp_path / "backup", place)
    with pytest.raises(BadArgument, match="shards=64"):
        directory.replace(Config(workers=1, shards=8))
    (place / "restore" / "broker.json").unlink()
    with pytest.raises(BadArgument, match=r"no broker.json"):
        directory.replace(CONFIG)
    directory.close()
    assert content(place)[0] == "old"


def test_what_was_taken_is_reached_by_nobody_who_brings_something_else(tmp_path):
    data_directory(tmp_path / "backup", "new", 5)
    data_directory(tmp_path / "second", "second", 5)
    place = tmp_path / "data"
    data_directory(place, "old", 5)
    directory = DataDirectory(place, CONFIG)
    with new_folder(place / "restore") as first:
        stage(tmp_path / "backup", place)
        directory.take(CONFIG)
        first.remove()                              # what is taken is not removed
        stage(tmp_path / "second", place)
        first.remove()                              # nor what another brought
    with new_folder(place / "restore"):
        assert not list((place / "restore").iterdir())
    directory.replace(CONFIG)
    directory.close()
    assert content(place)[0] == "new"


def test_what_is_given_up_is_not_taken(tmp_path):
    data_directory(tmp_path / "backup", "new", 5)
    place = tmp_path / "data"
    data_directory(place, "old", 5)
    directory = DataDirectory(place, CONFIG)
    with new_folder(place / "restore") as staged:
        stage(tmp_path / "backup", place)
        staged.remove()
        assert not (place / "restore").exists()
        with pytest.raises(BadArgument):
            directory.take(CONFIG)
    directory.close()
    assert content(place)[0] == "old"


@pytest.mark.parametrize("change", [
    {"workers": 0}, {"workers": -1}, {"workers": 33}, {"workers": "1"}, {"workers": True}, {"workers": 1.0}, {"shards": 0}, {"shards": 1025},
    {"shards": None}, {"generation": "1"}, {"generation": -1}, {"generation": "../1"}, {"epoch": "5"}, {"epoch": -1}, {"epoch": 2**64},
    {"key": "00"}, {"key": "xy" * 16}, {"key": 5}, {"format": 2}, {"format": None}, {"epoch": 2**62}, None,
])
def test_broker_json_that_no_broker_writes_is_refused(tmp_path, change):
    data_directory(tmp_path / "backup", "new", 5)
    place = tmp_path / "data"
    data_directory(place, "old", 5)
    facts = read_facts(tmp_path / "backup")
    directory = DataDirectory(place, CONFIG)
    stage(tmp_path / "backup", place)
    write_facts(place / "restore", [facts] if change is None else facts | change)
    with pytest.raises(BadArgument, match=r"is not what a fastmq broker writes|reads format 1|no fastmq counts"):
        directory.replace(CONFIG)
    directory.close()
    assert content(place)[0] == "old"


def test_full_disk_at_the_last_step_leaves_the_old_data(tmp_path, monkeypatch):
    data_directory(tmp_path / "backup", "new", 5)
    place = tmp_path / "data"
    data_directory(place, "old", 5)
    directory = DataDirectory(place, CONFIG)
    stage(tmp_path / "backup", place)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            directory.replace(CONFIG)
    assert (Path(directory.log_path(0)) / "content").read_text() == "old"
    directory.close()
    assert content(place)[0] == "old"


@pytest.mark.parametrize("what", ["new", "old"])
def test_broker_json_that_is_replaced_and_cannot_be_synced_ends_the_broker(tmp_path, monkeypatch, what):
    data_directory(tmp_path / "backup", "new", 5)
    place = tmp_path / "data"
    data_directory(place, "old", 5)
    directory = DataDirectory(place, CONFIG)
    stage(tmp_path / "backup", place)
    change = partial(directory.replace, CONFIG) if what == "new" else partial(directory._write, directory._facts)
    replace = os.replace

    def replaced(*arguments):
        replace(*arguments)
        patch.setattr(server.data_directory, "sync_directory", failing)

    def failing(path):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replaced)
        with pytest.raises(BrokerFailed, match=r"cannot be made durable \(Input/output error\)"):
            change()
    directory.close()
    assert content(place)[0] == what


def test_logs_that_a_backup_copies_are_left_by_another_number_of_workers(tmp_path):
    data_directory(tmp_path / "data", "old", 5)
    with shared_generation(tmp_path / "data") as (facts, logs):
        directory = DataDirectory(tmp_path / "data", Config(workers=2))
        directory.moved()
        directory.close()
        assert (logs / "0" / "content").read_text() == "old" and facts["workers"] == 1
    DataDirectory(tmp_path / "data", Config(workers=2)).close()
    assert not logs.exists()
    assert json.loads((tmp_path / "data" / "broker.json").read_bytes())["workers"] == 2
