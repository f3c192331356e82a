"""Extents and checkpoints: what they keep is there after every crash, their room is used again, and want of room is told."""

import errno
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import LONG
from disk import disk
from disk.ageing import Ageing, state_after
from disk.crashes import Wreckage
from waiting import wait_until

from fastmq.errors import FastMQError, JournalDamaged
from fastmq.storage import failpoints
from fastmq.storage.file_log import FileLog

STATES = 30_000 if LONG else 1_500
FOLDER, SEGMENT_SIZE, UNIT_SIZE = "/log", 8192, 512


def ageing(files, rnd: random.Random, entries: list, folder: str = FOLDER) -> Ageing:
    return Ageing(FileLog(folder, files=files, segment_size=SEGMENT_SIZE, unit_size=UNIT_SIZE), rnd, entries)


class Lost(AssertionError):
    """A state that breaks a promise."""


class Suite:
    """Runs of the store, and the crash states of each; some of those are where the next run begins."""

    def __init__(self, seed: int, **table) -> None:
        self.rnd, self.table, self.count = random.Random(seed), table, 0

    def run(self, paths: dict[str, bytes], entries: list, epoch: int, generations: int) -> None:
        files = disk().MemoryDisk(paths)
        for name, value in self.table.items():
            setattr(files, name, value)
        store = ageing(files, self.rnd, entries)
        store.open(files, epoch)
        store.write(self.rnd.randint(5, 50))
        store.close()
        assert not store.log.failed
        wreckage, told = Wreckage(paths), 0
        goes_on = self.rnd.sample(range(len(files.noted)), 2) if generations else []
        for at, call in enumerate(files.noted):
            if call[0] == "told":
                told = call[1]
            wreckage.step(call)
            state = wreckage.sample(self.rnd)
            last = self.check(state, entries, told, epoch + 1)
            if at in goes_on:
                self.run(state, entries[:last], epoch + 1, generations - 1)

    def check(self, state: dict[str, bytes], entries: list, told: int, epoch: int) -> int:
        """Recover what is left; the last position."""
        self.count += 1
        files = disk().MemoryDisk(state)
        files.records = False
        log = FileLog(FOLDER, files=files, segment_size=SEGMENT_SIZE, unit_size=UNIT_SIZE)
        try:
            last = log.open(epoch)
            if last < told:
                raise Lost(f"position {told} was told durable, and {last} is the last that is there")
            store = Ageing(log, self.rnd, entries[:last])
            store.log_files = files
            store.recover()
        except (FastMQError, AssertionError) as error:
            raise Lost(f"{error}") from error
        finally:
            log.close()
        return last

    def states(self, count: int) -> None:
        while self.count < count:
            self.run({}, [], 1, 2)


def test_every_crash_keeps_extents_and_checkpoints():
    suite = Suite(11)
    suite.states(STATES)
    assert suite.count >= STATES


@pytest.mark.parametrize(("attribute", "value"), [("does_sync", False), ("does_sync_folder", False), ("syncs_late", True)])
def test_suite_reports_a_loss_where_a_sync_is_missing(attribute, value):
    with pytest.raises(Lost):
        Suite(11, **{attribute: value}).states(STATES)


@pytest.fixture
def store():
    files = disk().MemoryDisk()
    store = ageing(files, random.Random(3), [])
    store.open(files, 1)
    yield store
    store.close()


def test_extent_is_read_back_while_it_waits_and_after_it_was_written(store):
    payload = os.urandom(5000)
    assert disk().extent_write(store.log, 7, payload)
    for _ in range(2):
        assert disk().extent_read(store.log, 7)
        while (found := disk().extent_next(store.log)) is None:
            store.wait_for_news()
        assert found == (7, payload, 0)
        assert disk().checkpoint(store.log, 0, [])
        store.wait_quiet()
        assert store.log.extent_pending == 0
    assert store.log.extent_bytes == 5120
    assert disk().extent_read(store.log, 8)
    assert disk().extent_next(store.log) == (8, b"", errno.ENOENT)


def test_checkpoint_gives_its_entries_first_and_trims_the_journal(store):
    while len([path for path in store.log_files.paths if "journal" in path]) < 5:
        store.append()
        store.wait(len(store.entries))
    tail_size = store.log.tail_size
    assert store.checkpoint()
    store.wait_checkpointed(len(store.entries))
    assert store.log.tail_size < tail_size / 2
    store.append()
    store.wait(len(store.entries))
    store.close()
    read = [position for position, *_ in store.log.read()]
    assert read == [0, *range(store.log.checkpointed + 1, len(store.entries) + 1)]
    assert len([path for path in store.log_files.paths if "journal" in path]) <= 2


def test_checkpoint_waits_while_a_backup_shares_the_log_and_nothing_else_does(store):
    before = len(store.log_files.paths)
    store.log_files.shared = True
    assert store.checkpoint()
    for number in range(1000, 1010):
        assert disk().extent_write(store.log, number, bytes(1000))
        store.append()
        store.wait(len(store.entries))
    wait_until(lambda: disk().look(store.log) and not store.log.extent_pending, what="the extents are written")     # which rings no bell
    assert disk().extent_read(store.log, 1005)
    while (found := disk().extent_next(store.log)) is None:
        store.wait_for_news()
    assert found == (1005, bytes(1000), 0)
    assert store.log.checkpointing and not store.log.checkpointed and len(store.log_files.paths) >= before
    assert not any(path.endswith("checkpoint") for path in store.log_files.paths)
    store.log_files.shared = False
    store.wait_quiet()
    assert any(path.endswith("checkpoint") for path in store.log_files.paths)
    assert not store.log.checkpointing and not store.log.failed


def test_log_closes_while_a_backup_holds_its_checkpoint_back(store):
    store.append()
    store.log_files.shared = True
    assert store.checkpoint()
    store.close()
    assert not store.log.failed


def test_room_of_freed_extents_is_used_again_after_the_next_checkpoint(store):
    for number in range(1, 200):
        assert disk().extent_write(store.log, number, bytes(1000))
        if number > 10:
            disk().extent_free(store.log, number - 10)
        assert disk().checkpoint(store.log, 0, [])
        store.wait_quiet()
    assert len(store.log_files.contents()[f"{FOLDER}/extents"]) < 60 * 1024
    assert store.log.extent_bytes <= 20 * 1024


def test_long_free_runs_are_punched_out(store):
    disk().extent_write(store.log, 1, os.urandom(70 * UNIT_SIZE))
    disk().extent_write(store.log, 2, os.urandom(UNIT_SIZE))
    assert disk().checkpoint(store.log, 0, [])
    store.wait_quiet()
    disk().extent_free(store.log, 1)
    assert disk().checkpoint(store.log, 0, [])
    store.wait_quiet()
    store.close()
    contents = store.log_files.contents()[f"{FOLDER}/extents"]
    assert contents[: 70 * UNIT_SIZE] == bytes(70 * UNIT_SIZE) and any(contents[70 * UNIT_SIZE :])


def test_flipped_bits_of_checkpoint_and_extents_are_never_taken_for_data(store):
    store.write(40)
    store.wait_quiet()
    store.checkpoint()
    store.wait_quiet()
    store.close()
    paths = store.log_files.contents()
    for path in (f"{FOLDER}/checkpoint", f"{FOLDER}/extents"):
        for bit in range(0, len(paths[path]) * 8, 1 if LONG else 211):
            data = bytearray(paths[path])
            data[bit >> 3] ^= 1 << (bit & 7)
            files = disk().MemoryDisk({**paths, path: bytes(data)})
            again = ageing(files, random.Random(1), store.entries)
            if "checkpoint" in path:
                with pytest.raises(JournalDamaged):
                    again.open(files, 5)
                continue
            try:
                again.open(files, 5)            # checks every message
            except AssertionError as error:
                assert str(errno.EBADMSG) in str(error)     # noqa: PT017
            again.close()


def test_missing_files_are_refused(store):
    while len([path for path in store.log_files.paths if "journal" in path]) < 3:
        store.append()
        store.wait(len(store.entries))
    store.checkpoint()
    store.wait_checkpointed(len(store.entries))
    store.append()
    store.wait(len(store.entries))
    store.close()
    paths = store.log_files.contents()
    for gone in ("checkpoint", "extents", "journal"):
        files = disk().MemoryDisk({path: data for path, data in paths.items() if gone not in path})
        with pytest.raises(JournalDamaged):
            FileLog(FOLDER, files=files, segment_size=SEGMENT_SIZE).open(9)


# ---- calls that fail

@pytest.mark.parametrize("fault", [errno.EIO, errno.ENOSPC, errno.EINTR, -1], ids=["EIO", "ENOSPC", "EINTR", "short"])
def test_every_failing_call_leaves_what_was_told_durable(fault):
    outcomes, at, failed = set(), 0, True
    while failed and at < (1000 if LONG else 120):
        at += 1
        entries: list = []
        files = disk().MemoryDisk()
        files.fail_at, files.fail_with = at, fault
        store = ageing(files, random.Random(at), entries)
        try:
            store.open(files, 1)
            store.write(25)
            store.close()
            outcomes.add("failed" if store.log.failed else "refused" if store.refused else "goes on")
        except OSError:
            outcomes.add("not opened")
        store.close()
        failed = files.failed_call is not None
        wreckage = Wreckage({})
        for call in files.noted:
            wreckage.step(call)
        for _ in range(3):
            state = disk().MemoryDisk(wreckage.sample(random.Random(at)))
            log = FileLog(FOLDER, files=state, segment_size=SEGMENT_SIZE)
            last = log.open(5)
            assert last >= store.told, (at, files.failed_call)
            again = Ageing(log, random.Random(1), entries[:last])
            again.log_files = state
            again.recover()
            log.close()
    assert "goes on" in outcomes
    assert fault != errno.EIO or "failed" in outcomes


def test_without_room_extents_are_refused_and_the_journal_goes_on(store):
    while not store.live:
        store.append()
        store.wait(len(store.entries))
    store.log_files.room = 0
    store.age()
    while not store.log.full:
        store.wait_for_news()
    store.append()
    store.wait(len(store.entries))
    wait_until(lambda: store.hear_of_refusals() or store.refused, what="the extent to be refused")      # the journal may be full before it
    assert store.refused == 1 and not store.log.failed
    assert store.checkpoint()
    store.wait_quiet()
    assert store.log.checkpointed == 0
    store.log_files.room = 1 << 30
    while store.log.full:
        store.wait_for_news()
    store.append()
    store.checkpoint()
    store.wait_quiet()
    assert store.log.checkpointed > 0 and not store.log.failed


# ---- failpoints

CHILD = """
import sys
sys.path[:0] = sys.argv[2:4]
import random
from disk import ageing, disk
from fastmq.storage.file_log import FileLog

class Printed(list):
    def append(self, entry):
        print(f"entry {entry[1].hex()}", flush=True)
        super().append(entry)

store = ageing.Ageing(FileLog(sys.argv[1], segment_size=8192, unit_size=512), random.Random(5), Printed())
store.open(disk().MemoryDisk(), 1)
while True:
    store.append()
    store.age()
    store.checkpoint()
    store.wait(len(store.entries))
    print(f"told {store.told}", flush=True)
"""


@pytest.mark.parametrize("name", failpoints.NAMES[7:13])
def test_failpoint_is_reached_and_keeps_what_was_told(tmp_path, name):
    tests = Path(__file__).parents[1]
    disk()
    folder = str(tmp_path / "log")
    child = subprocess.run([sys.executable, "-P", "-c", CHILD, folder, str(tests), str(tests / "unit")], capture_output=True, text=True,
                           env=os.environ | {"FASTMQ_FAILPOINT": f"{name}:2"}, timeout=60)
    assert child.returncode == -signal.SIGKILL, child.stderr
    lines = [line.split() for line in child.stdout.split("\n")[:-1]]
    entries = [(1, bytes.fromhex(line[1])) for line in lines if line[0] == "entry"]
    told = max([int(line[1]) for line in lines if line[0] == "told"], default=0)
    log = FileLog(folder, segment_size=8192)
    last = log.open(2)
    assert last >= told
    store = Ageing(log, random.Random(1), entries[:last])
    store.log_files = disk().MemoryDisk()
    store.recover()
    assert store.live == state_after(entries[:last])
    log.close()
