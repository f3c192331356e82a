"""`fastmq journal`: check, dump, repair."""

import json
import os
import random
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from disk import disk
from disk.ageing import Ageing
from disk.crashes import Writer

from fastmq.cli.journal import command
from fastmq.storage.checkpoint import Checkpoint
from fastmq.storage.file_log import FileLog
from fastmq.storage.files import Files

SEGMENT_SIZE = 8192


@pytest.fixture
def journal(tmp_path):
    """The folder of a journal of several segments, in a data directory, and its entries."""
    folder, entries = str(tmp_path / "data" / "worker-0"), []
    os.makedirs(tmp_path / "data")
    writer = Writer(FileLog(folder, segment_size=SEGMENT_SIZE), random.Random(4), entries)
    writer.open(disk().MemoryDisk(), 1)
    writer.write(60, trims=False)
    writer.close()
    return folder, entries


def run(*arguments: str, **options):
    return CliRunner().invoke(command, arguments, standalone_mode=False, **options)


def segments(folder: str) -> list[Path]:
    return sorted(Path(folder).glob("journal-*"))


def damage(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0xFF
    path.write_bytes(data)


def test_check_says_what_is_there(journal):
    folder, entries = journal
    done = run("check", "--json", str(Path(folder).parent))
    assert done.return_value == 0, done.output
    found = json.loads(done.stdout)
    assert (found["folder"], found["first"], found["last"], found["damaged"]) == (folder, 1, len(entries), False)
    assert str(len(entries)) in run("check", folder).stdout


def test_check_of_a_damaged_journal_names_file_and_offset(journal):
    folder, _ = journal
    damage(segments(folder)[2], 4200)
    done = run("check", folder)
    assert done.return_value == 1
    assert str(segments(folder)[2]) in done.stderr and "at offset 4096" in done.stderr and "fastmq journal repair" in done.stderr


def test_dump_gives_one_line_an_entry(journal):
    folder, entries = journal
    lines = run("dump", folder).stdout.splitlines()
    assert [line.split()[:3] for line in lines] == [[str(i), str(shard), str(len(data))] for i, (shard, data) in enumerate(entries, 1)]
    last = run("dump", "--json", "--from", str(len(entries)), folder).stdout.splitlines()
    assert [json.loads(line)["position"] for line in last] == [len(entries)]


def test_dump_gives_what_lies_before_the_damage_and_goes_on_with_the_next_journal(journal):
    folder, entries = journal
    shutil.copytree(folder, str(Path(folder).parent / "worker-1"))
    damage(segments(folder)[2], 4200)
    done = run("dump", str(Path(folder).parent))
    positions = [int(line.split()[0]) for line in done.stdout.splitlines()]
    whole = list(range(1, len(entries) + 1))
    before = len(positions) - len(whole)
    assert 0 < before < len(entries) and positions == whole[:before] + whole
    assert done.return_value == 1 and str(segments(folder)[2]) in done.stderr


@pytest.mark.parametrize(("segment", "offset"), [(0, 4100), (2, 4200), (2, 3), (3, 20)])
def test_repair_cuts_at_the_damage_and_keeps_what_it_cuts(journal, segment, offset):
    folder, entries = journal
    path = segments(folder)[segment]
    before = path.read_bytes()
    damage(path, offset)
    assert run("repair", folder, input="n\n").exception is not None
    assert run("check", folder).return_value == 1
    done = run("repair", "--yes", folder)
    assert done.return_value == 1, done.exception
    assert "lost: everything behind position" in done.stderr
    position = int(done.stderr.split("lost: everything behind position")[1].split()[0])
    log = FileLog(folder, segment_size=SEGMENT_SIZE)
    assert log.open(7) == position < len(entries)
    assert list(log.read()) == [(at, *entry) for at, entry in enumerate(entries[:position], 1)]
    log.close()
    kept = b"".join(path.read_bytes() for path in sorted(Path(folder).glob("damaged-*")))
    assert before[4300:5000] in kept


def test_repair_of_a_missing_and_of_a_short_segment(journal):
    folder, entries = journal
    short = segments(folder)[2]
    short.write_bytes(short.read_bytes()[:6000])
    segments(folder)[4].unlink()
    done = run("repair", "--yes", folder)
    assert done.return_value == 1, done.exception
    log = FileLog(folder, segment_size=SEGMENT_SIZE)
    position = log.open(7)
    assert 0 < position < len(entries)
    assert list(log.read()) == [(at, *entry) for at, entry in enumerate(entries[:position], 1)]
    log.close()


def test_repair_where_the_checkpoint_reaches_further_begins_behind_it(tmp_path):
    folder = str(tmp_path / "log")
    store = Ageing(FileLog(folder, segment_size=SEGMENT_SIZE, unit_size=512), random.Random(3), [])
    store.open(disk().MemoryDisk(), 1)
    store.write(10)
    store.wait_quiet()
    store.checkpoint()
    store.wait_quiet()
    position = store.log.checkpointed
    store.append()
    store.close()
    damage(segments(folder)[0], 4100)
    assert run("check", folder).return_value == 1
    assert run("repair", "--yes", folder).return_value == 1
    again = Ageing(FileLog(folder, segment_size=SEGMENT_SIZE), random.Random(3), store.entries[:position])
    again.open(disk().MemoryDisk(), 5)
    again.close()
    assert run("check", folder).return_value == 0


def test_damaged_extents_are_found_by_check(tmp_path):
    folder = str(tmp_path / "log")
    store = Ageing(FileLog(folder, segment_size=SEGMENT_SIZE, unit_size=512), random.Random(3), [])
    store.open(disk().MemoryDisk(), 1)
    store.write(30)
    store.wait_quiet()
    store.checkpoint()
    store.wait_quiet()
    store.close()
    assert run("check", folder).return_value == 0
    damage(Path(folder, "extents"), Checkpoint(Files(), folder).places[0][1])
    done = run("check", folder)
    assert done.return_value == 1 and "extent 0x" in done.stderr


def test_folder_without_a_journal_is_told(tmp_path):
    assert run("check", str(tmp_path)).exception.code == "no-journal"
