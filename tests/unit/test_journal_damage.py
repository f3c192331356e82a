"""Bits that flip and files that end early: refused, or cut and told; never a wrong entry, and what was told durable is never cut silently."""

import random

import pytest
from conftest import LONG
from disk import disk
from disk.crashes import Writer

from fastmq.errors import JournalDamaged
from fastmq.storage.file_log import FileLog
from fastmq.storage.journal_reader import JournalReader

FOLDER, SEGMENT_SIZE = "/log", 8192
STEP = 1 if LONG else 61                    # every so manyth bit


def journal(is_recycled: bool, is_closed: bool) -> tuple[dict[str, bytes], list[tuple], int]:
    """About 64 KiB of segments, its entries, and the position before those of the last batch.

    Not `is_closed`: the process died before it wrote that the last batch is durable.
    """
    rnd = random.Random(7)
    files = disk().MemoryDisk()
    writer = Writer(FileLog(FOLDER, files=files, segment_size=SEGMENT_SIZE, needs_checkpoint=False), rnd, [], size_max=500)
    writer.open(files, 1)
    before = 0
    while len([path for path in files.paths if "journal" in path]) < 8:
        before = len(writer.entries)
        writer.append()
        writer.wait(len(writer.entries))
        if is_recycled and writer.told > 20:
            writer.log.trim(writer.told - 20)
            is_recycled = writer.told < 100
    writer.close()
    paths = {path: data for path, data in files.contents().items() if "journal" in path}
    if not is_closed:
        last = max(paths)
        reader = JournalReader(disk().MemoryDisk(paths), FOLDER)
        reader.read_all()
        paths[last] = paths[last][: reader.offset - 48] + bytes(len(paths[last]) - reader.offset + 48)
    return paths, writer.entries, before


def check(files, entries: list[tuple], before: int, is_closed: bool) -> str:
    """What becomes of a damaged journal."""
    try:
        reader = JournalReader(files, FOLDER)
        got = list(reader)
    except JournalDamaged as error:
        says_how = "fastmq journal repair" in str(error) and error.file in str(error) and error.offset >= 0
        return "refused" if says_how else "refused without a word"
    first, last = reader.first, reader.expected - 1
    assert got == [(position, *entries[position - 1]) for position in range(first, last + 1)]
    if last < len(entries):
        assert not is_closed, "a later batch knew that it was durable"
        assert last == before and reader.cut, "cut, and not told"
        return "cut"
    return "told" if reader.cut else "whole"


@pytest.mark.parametrize("is_closed", [True, False])
@pytest.mark.parametrize("is_recycled", [True, False])
def test_every_flipped_bit_is_refused_or_told(is_recycled, is_closed):
    paths, entries, before = journal(is_recycled, is_closed)
    seen = set()
    for path, data in sorted(paths.items()):
        files = disk().MemoryDisk({**paths, path: bytearray(data)})
        files.records = False
        bits = files.paths[path].data
        for bit in range(0, len(data) * 8, STEP):
            bits[bit >> 3] ^= 1 << (bit & 7)
            seen.add(check(files, entries, before, is_closed))
            bits[bit >> 3] ^= 1 << (bit & 7)
    assert {"refused", "whole"} <= seen <= {"refused", "whole", "told", "cut"}
    assert is_closed or "cut" in seen


def test_every_truncated_segment_is_refused():
    paths, entries, before = journal(is_recycled=False, is_closed=True)
    for path, data in sorted(paths.items()):
        for size in range(0, len(data), 1 if LONG else 37):
            assert check(disk().MemoryDisk({**paths, path: data[:size]}), entries, before, True) == "refused"


def test_segment_missing_in_the_middle_is_refused():
    paths, *_ = journal(is_recycled=False, is_closed=True)
    for path in sorted(paths)[1:-1]:
        with pytest.raises(JournalDamaged, match="is missing"):
            JournalReader(disk().MemoryDisk({name: data for name, data in paths.items() if name != path}), FOLDER)


@pytest.mark.parametrize(("offset", "data", "text"), [
    (0, b"something", "is not a segment"),
    (8, b"\2\0\0\0", "format version 2"),
    (12, b"\1\2\3\4", "byte order"),
    (40, b"\1", "damaged head"),
])
def test_foreign_head_is_refused_with_a_sentence(offset, data, text):
    paths, *_ = journal(is_recycled=False, is_closed=True)
    path = sorted(paths)[2]
    damaged = paths[path][:offset] + data + paths[path][offset + len(data) :]
    with pytest.raises(JournalDamaged, match=text) as raised:
        JournalReader(disk().MemoryDisk({**paths, path: damaged}), FOLDER)
    assert raised.value.file == path


def test_damaged_journal_is_not_opened_and_not_changed():
    paths, *_ = journal(is_recycled=False, is_closed=True)
    path = sorted(paths)[3]
    damaged = {**paths, path: paths[path][:5000] + b"\xff\xff\xff\xff" + paths[path][5004:]}
    files = disk().MemoryDisk(damaged)
    with pytest.raises(JournalDamaged, match=r"damaged at offset \d+: position \d+ cannot be read, and everything up to position \d+ was dur"):
        FileLog(FOLDER, files=files, segment_size=SEGMENT_SIZE, needs_checkpoint=False).open(5)
    assert files.contents() == damaged and not files.noted
