"""The file log's two sides: what the worker appends and submits, and what the journal's thread makes durable meanwhile."""

import errno
import itertools
import random
import time

import pytest
from disk import disk
from disk.crashes import Writer
from waiting import wait_until

from fastmq.errors import JournalDamaged
from fastmq.storage.file_log import FileLog

LARGE = 1_000_000


def write_here(log, entry: bytes) -> None:
    """As soon as the writer rests."""
    disk().append(log, 0, entry)
    wait_until(lambda: disk().write_here(log), what="the writer to have nothing to do", interval=0.0001)


def begun(files, **options):
    """A log with one durable entry, and so a segment."""
    log = FileLog("/log", files=files, segment_size=65536, **options)
    log.open(1)
    log.add(0, b"first")
    log.make_durable()
    return log


def test_worker_writes_a_small_batch_itself_where_the_writer_rests():
    files = disk().MemoryDisk()
    log = FileLog("/log", files=files, segment_size=1048576)
    log.open(1)
    disk().append(log, 0, b"first")
    assert not disk().write_here(log), "there is no segment yet"
    disk().submit(log)
    wait_until(lambda: disk().look(log) == 1, what="the first entry to be durable")
    for position in range(2, 200):
        write_here(log, b"entry %d" % position)
        assert disk().look(log) == log.submitted == position, "it is durable at once"
    disk().took_on_average(log, 1_000_000)
    write_here(log, bytes(8_000))
    disk().append(log, 0, bytes(100_000))
    assert not disk().write_here(log), "the disk takes too long on average"
    disk().took_on_average(log, 0)
    wait_until(lambda: disk().write_here(log), what="the writer to have nothing to do", interval=0.0001)
    disk().append(log, 0, bytes(140_000))
    assert not disk().write_here(log), "a large one is the writer's"
    disk().submit(log)
    log.close()
    again = FileLog("/log", files=files, segment_size=1048576)
    assert again.open(2) == 202
    found = [data for _, _, data in again.read()]
    assert found == [b"first", *(b"entry %d" % position for position in range(2, 200)), bytes(8_000), bytes(100_000), bytes(140_000)]
    again.close()


def test_damage_to_the_batch_that_the_worker_wrote_last_is_no_tear():
    files = disk().MemoryDisk()
    log = begun(files, needs_checkpoint=False)
    write_here(log, b"the last")
    wait_until(lambda: files.noted[-1][0] == "write", what="an empty batch behind it, which is not synced")
    paths = files.contents()
    log.close()
    (name,) = (path for path in paths if "journal" in path)
    at = paths[name].index(b"the last")
    paths[name] = paths[name][:at] + b"T" + paths[name][at + 1:]
    with pytest.raises(JournalDamaged):
        FileLog("/log", files=disk().MemoryDisk(paths), segment_size=65536, needs_checkpoint=False).open(2)


@pytest.mark.parametrize("here", [False, True])
def test_news_wait_until_nothing_has_been_written_for_a_while(here):
    """The next batch would wait for them."""
    files = disk().MemoryDisk()
    log = begun(files)
    for _ in range(100):
        if here:
            write_here(log, b"more")
        else:
            log.add(0, b"more")
            log.make_durable()
    calls = [call[0] for call in files.noted if call[0] in ("write", "sync")]
    assert sum(pair == ("write", "write") for pair in itertools.pairwise(calls)) < 50, "news are writes without a sync"
    wait_until(lambda: files.noted[-1][0] == "write", what="the news")
    log.close()


def test_worker_s_own_batch_is_followed_by_news_where_the_writer_rests_for_good():
    files = disk().MemoryDisk()
    log = begun(files)
    for _ in range(3):
        wait_until(lambda: files.noted[-1][0] == "write", what="the news, after which the writer waits for nothing but work")
        write_here(log, b"more")
    wait_until(lambda: files.noted[-1][0] == "write", what="the news of what the worker wrote")
    log.close()


@pytest.mark.parametrize("call", ["pwrite", "fdatasync"])
def test_worker_leaves_it_to_the_writer_after_a_batch_that_the_disk_was_slow_with(call):
    files = disk().MemoryDisk()
    log = begun(files)
    write_here(log, b"second")
    assert disk().quick_batches(log) > 0
    files.before = lambda name: time.sleep(0.002) if name == call else None
    write_here(log, b"third")
    assert disk().quick_batches(log) == 0
    log.close()


def test_failed_sync_of_the_worker_itself_ends_the_log():
    files = disk().MemoryDisk()
    log = begun(files)
    write_here(log, b"second")
    files.broken = {"fdatasync": errno.EIO}
    write_here(log, b"third")
    assert disk().look(log) == 2 and log.failed
    assert log.error.errno == errno.EIO and log.error.strerror.startswith("fdatasync")
    log.close()


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
