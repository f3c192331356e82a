"""The file log on real files: positions, what is read again, segments, owners, failpoints."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from disk import disk
from disk.crashes import Writer

from fastmq.errors import FastMQError
from fastmq.storage import crc32c, failpoints
from fastmq.storage.file_log import FileLog
from fastmq.storage.log import RecordLevel

SEGMENT_SIZE = 16384


@pytest.fixture
def folder(tmp_path):
    return str(tmp_path / "log")


def written(folder: str, rounds: int, epoch: int = 1, entries: list | None = None, **options) -> list[tuple[int, bytes]]:
    """Entries that a log was closed with."""
    entries = [] if entries is None else entries
    files = disk().MemoryDisk()                     # only notes
    writer = Writer(FileLog(folder, segment_size=SEGMENT_SIZE, **options), random.Random(epoch), entries)
    writer.open(files, epoch)
    writer.write(rounds, trims=False)
    writer.close()
    assert writer.told == len(entries)
    return entries


def numbered(entries: list, first: int = 1) -> list[tuple]:
    return [(position, *entry) for position, entry in enumerate(entries, 1) if position >= first]


def test_entries_are_read_again_in_order_by_the_next_owner(folder):
    entries = written(folder, 100)
    for epoch in (2, 30):
        log = FileLog(folder, segment_size=SEGMENT_SIZE, needs_checkpoint=False)
        assert log.open(epoch) == len(entries)
        assert list(log.read()) == numbered(entries)
        log.close()
        written(folder, 30, epoch + 10, entries)
        log = FileLog(folder, segment_size=SEGMENT_SIZE, needs_checkpoint=False)
        assert log.open(epoch + 20) == len(entries)
        assert list(log.read()) == numbered(entries)
        log.close()


def test_journal_passes_by_the_page_cache_where_that_can_be(folder, tmp_path):
    try:
        os.close(os.open(tmp_path, os.O_RDWR | os.O_DIRECT | os.O_TMPFILE))
    except OSError:
        pytest.skip("the file system of the temporary folder knows no O_DIRECT")
    log = FileLog(folder)
    log.open(1)
    log.add(0, b"one")
    log.make_durable()
    files = {os.readlink(f"/proc/self/fd/{name}"): name for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")}
    name = files[os.path.join(folder, "journal-0000000000000001")]
    flags = next(line for line in Path(f"/proc/self/fdinfo/{name}").read_text().splitlines() if line.startswith("flags:"))
    log.close()
    assert int(flags.split()[1], 8) & os.O_DIRECT


def test_what_a_disk_does_not_take_directly_is_written_all_the_same(tmp_path):
    """The table of file calls turns O_DIRECT off where the kernel refuses a write for it: this one is of no sector's size, place or memory."""
    path = tmp_path / "file"
    disk().write_directly(str(path), b"0123456789", 3)
    assert path.read_bytes() == b"\0\0\x000123456789"


@pytest.mark.parametrize("position", [1, 2, 17, 50, 51])
def test_reading_begins_at_any_position(folder, position):
    entries = written(folder, 40)[:]
    log = FileLog(folder, segment_size=SEGMENT_SIZE, needs_checkpoint=False)
    log.open(2)
    assert list(log.read(position)) == numbered(entries, position)
    assert list(log.read(len(entries) + 1)) == []
    log.close()


def test_log_wants_the_records_of_durable_queues(folder):
    log = FileLog(folder)
    assert log.record_level == RecordLevel.RECORDS_DURABLE
    assert log.fileno() == -1
    log.close()


def test_entry_larger_than_a_segment_gets_one_of_its_own(folder):
    log = FileLog(folder, segment_size=8192, needs_checkpoint=False)
    files, entries = disk().MemoryDisk(), []
    writer = Writer(log, random.Random(1), entries)
    writer.open(files, 1)
    for size in (100, 100_000, 100, 8192, 4096 - 56, 4096 - 48):
        entries.append((1, os.urandom(size)))
        disk().append(log, *entries[-1])
        disk().submit(log)
        writer.wait(len(entries))
    log.close()
    assert list(log.read()) == numbered(entries)


def test_entries_that_were_not_submitted_are_dropped_by_close(folder):
    log = FileLog(folder, segment_size=8192, needs_checkpoint=False)
    log.open(1)
    disk().append(log, 1, b"one")
    disk().submit(log)
    disk().append(log, 1, b"two")
    assert (log.appended, log.submitted) == (2, 1)
    log.close()
    assert log.durable == 1
    assert list(log.read()) == [(1, 1, b"one")]


def test_trimmed_segments_become_the_next_ones(folder):
    entries, files = [], disk().MemoryDisk()
    log = FileLog(folder, segment_size=8192, needs_checkpoint=False)
    writer = Writer(log, random.Random(3), entries)
    writer.open(files, 1)
    for _ in range(300):
        writer.append()
        writer.wait(len(entries))
        log.trim(writer.told)
    log.close()
    names = os.listdir(folder)
    assert len([name for name in names if name.startswith("spare-")]) <= 2
    assert len([name for name in names if name.startswith("journal-")]) <= 4
    log = FileLog(folder, segment_size=8192, needs_checkpoint=False)
    assert log.open(2) == len(entries)
    assert log.first > 1
    assert list(log.read()) == numbered(entries, log.first)
    log.close()


@pytest.mark.parametrize("epoch", [6, 7])
def test_owner_without_a_higher_epoch_is_refused(folder, epoch):
    written(folder, 3, epoch=7)
    with pytest.raises(FastMQError) as raised:
        FileLog(folder).open(epoch)
    assert raised.value.code == "stale-epoch"


def test_tear_is_told(folder):
    entries = written(folder, 3)
    path = Path(folder, max(name for name in os.listdir(folder) if "journal" in name))
    data = path.read_bytes()
    end = len(data.rstrip(b"\0"))
    path.write_bytes(data[: end - 100] + bytes(len(data) - end + 100))
    told = []
    log = FileLog(folder, say=told.append, segment_size=SEGMENT_SIZE, needs_checkpoint=False)
    position = log.open(2)
    assert position < len(entries)
    assert len(told) == 1 and str(path) in told[0] and f"ends with position {position}" in told[0]
    log.close()


# ---- failpoints

CHILD = """
import sys
sys.path[:0] = sys.argv[2:4]
import random
from disk import crashes, disk
from fastmq.storage.file_log import FileLog
writer = crashes.Writer(FileLog(sys.argv[1], segment_size=8192, needs_checkpoint=False), random.Random(5), [])
writer.open(disk().MemoryDisk(), 1)
while True:
    writer.append()
    writer.wait(len(writer.entries))
    print(writer.told, flush=True)
    writer.log.trim(max(writer.told - 20, 0))
"""


@pytest.mark.parametrize("hits", [1, 3])
@pytest.mark.parametrize("name", failpoints.NAMES[:7])
def test_failpoint_is_reached_and_keeps_what_was_told(folder, name, hits):
    tests = Path(__file__).parents[1]
    disk()
    child = subprocess.run([sys.executable, "-P", "-c", CHILD, folder, str(tests), str(tests / "unit")], capture_output=True, text=True,
                           env=os.environ | {"FASTMQ_FAILPOINT": f"{name}:{hits}"}, timeout=60)
    assert child.returncode == -signal.SIGKILL, child.stderr
    told = int(child.stdout.split("\n")[:-1][-1]) if "\n" in child.stdout else 0
    log = FileLog(folder, segment_size=8192, needs_checkpoint=False)
    position = log.open(2)
    assert told <= position <= told + 4
    if name == "after_sync_before_confirm":
        assert position > told
    assert [entry[0] for entry in log.read()] == list(range(log.first, position + 1))
    log.close()


def test_failpoints_have_names():
    assert len(failpoints.NAMES) == failpoints.COUNT == len(set(failpoints.NAMES))
    with pytest.raises(ValueError):
        failpoints.arm("no_such_step")


# ---- CRC32C

@pytest.mark.parametrize("by_table", [True, False])
@pytest.mark.parametrize(("data", "crc"), [
    (b"", 0), (b"123456789", 0xE3069283), (bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43), (bytes(range(32)), 0x46DD794E),
])
def test_crc32c_of_known_vectors(data, crc, by_table):
    assert crc32c.checksum(data, by_table=by_table) == crc


def test_crc32c_continues_and_does_not_depend_on_how_it_is_computed():
    rnd = random.Random(1)
    for size in range(200):
        data, cut = rnd.randbytes(size), rnd.randint(0, size)
        assert crc32c.checksum(data) == crc32c.checksum(data, by_table=True) == crc32c.checksum(data[cut:], crc32c.checksum(data[:cut]))
