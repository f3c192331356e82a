"""Looks at a journal that nobody has open, and cuts it where it is damaged.

Owns: nothing. Rules: `examine` changes nothing; what `cut` takes away stays beside, in files named damaged-*; all that lies behind the damage
goes, because records build on each other. Runs in the command line, never in a broker.
"""
from __future__ import annotations

import os
import struct
from typing import NamedTuple

from fastmq.errors import JournalDamaged
from fastmq.storage.checkpoint import Checkpoint
from fastmq.storage.crc32c import checksum
from fastmq.storage.files import Files
from fastmq.storage.journal_reader import JournalReader, segment_names

HEAD_SIZE = 4096
# What stands in an empty segment that a repair begins: mark, version, byte order, number, first, salt, size, epoch, flags (segments.pxd).
HEAD = struct.Struct("=8sIIQQQQQI")


class Examined(NamedTuple):
    folder: str
    segments: int
    first: int              # position of the first entry that is kept
    last: int
    epoch: int
    checkpoint: int         # its position; 0: there is none
    extents: int
    cut: str                # the sentence about a tear, or ""


class FilesBefore(Files):
    """The real files, of which only the segments before one can be seen."""

    before = ""

    def names(self, folder: str) -> list[str]:
        return [name for name in super().names(folder) if not name.startswith("journal-") or name < self.before]


def journals_in(folder: str) -> list[str]:
    """The folders of journals in `folder`: itself, or those below it."""
    if segment_names(Files(), folder) or os.path.exists(os.path.join(folder, "checkpoint")):
        return [folder]
    below = [path for name in sorted(os.listdir(folder)) if os.path.isdir(path := os.path.join(folder, name))]
    return [found for path in below for found in journals_in(path)]


def examine(folder: str) -> Examined:
    """Read and check everything. Raises JournalDamaged and OSError."""
    files = Files()
    checkpoint = Checkpoint(files, folder)
    reader = JournalReader(files, folder, checkpoint.position + 1)
    reader.begin_with(checkpoint)
    last = reader.read_all()
    check_extents(folder, checkpoint)
    return Examined(folder, reader.segment_count, reader.first, last, max(reader.epoch, checkpoint.epoch), checkpoint.position,
                    checkpoint.extent_count, reader.cut)


def check_extents(folder: str, checkpoint: Checkpoint) -> None:
    """Raises JournalDamaged for an extent that is not what the checkpoint says."""
    path = os.path.join(folder, "extents")
    if not checkpoint.extent_count:
        return
    try:
        file = open(path, "rb")  # noqa: SIM115
    except FileNotFoundError:
        raise JournalDamaged(f"{path} is missing; what it kept is only in a backup", path, 0) from None
    with file:
        for number, offset, size, crc in checkpoint.places:
            file.seek(offset)
            if checksum(file.read(size)) != crc:
                raise JournalDamaged(f"{path} is damaged: extent {number:#x} of {size:,} bytes at offset {offset} cannot be read; what it kept "
                                     "is only in a backup", path, offset)


def last_before(damage: JournalDamaged, folder: str) -> int:
    """The position of the last entry that a cut at the damage leaves."""
    files = FilesBefore()
    files.before = os.path.basename(damage.file)
    position = Checkpoint(files, folder).position
    if damage.offset >= HEAD_SIZE:
        files.before += "."                         # the damaged segment itself too, up to the damage
    try:
        reader = JournalReader(files, folder, position + 1)
    except JournalDamaged:                          # too short: what lies before it is known, the rest only when it was cut
        files.before = os.path.basename(damage.file)
        reader = JournalReader(files, folder, position + 1)
    try:
        reader.read_all()
    except JournalDamaged:
        pass
    return max(position, reader.expected - 1)


def is_repairable(damage: JournalDamaged) -> bool:
    """Whether a cut helps: the segments can be cut, a checkpoint and extents cannot."""
    return os.path.basename(damage.file).startswith("journal-")


def cut(folder: str, damage: JournalDamaged) -> list[str]:
    """Cut the journal at the damage; the files that keep what was cut. Further damage before it may show then."""
    name = os.path.basename(damage.file)
    kept: list[str] = []
    for later in [found for found in segment_names(Files(), folder) if found > name]:
        kept.append(_put_aside(folder, later))
    if os.path.exists(damage.file):
        if damage.offset < HEAD_SIZE:
            kept.append(_put_aside(folder, name))
        else:
            kept.append(_cut_segment(folder, name, damage.offset))
    _begin_behind_checkpoint(folder, name)
    _sync_folder(folder)
    return kept


def _put_aside(folder: str, name: str) -> str:
    aside = os.path.join(folder, f"damaged-{name}")
    os.rename(os.path.join(folder, name), aside)
    return aside


def _cut_segment(folder: str, name: str, offset: int) -> str:
    """Keep what lies behind `offset` beside, and put zeros there; a file that is too short gets its size back."""
    aside = os.path.join(folder, f"damaged-{name}-{offset}")
    with open(os.path.join(folder, name), "r+b") as file:
        size = HEAD.unpack(file.read(HEAD.size))[6]
        file.seek(offset)
        with open(aside, "wb") as kept:
            while piece := file.read(1 << 20):
                kept.write(piece)
            kept.flush()
            os.fsync(kept.fileno())
        file.truncate(offset)
        file.truncate(size)
        os.fsync(file.fileno())
    return aside


def _begin_behind_checkpoint(folder: str, name: str) -> None:
    """Where the cut left less than the checkpoint rests on, the journal begins anew behind it, with an empty segment."""
    files = Files()
    checkpoint = Checkpoint(files, folder)
    try:
        reader = JournalReader(files, folder, checkpoint.position + 1)
        if reader.read_all() >= checkpoint.position and (reader.segment_count or not checkpoint.position):
            return
    except JournalDamaged:
        return                                      # the next cut comes first
    for old in segment_names(files, folder):
        _put_aside(folder, old)
    number = int(name[len("journal-") :], 16) + 1
    head = HEAD.pack(b"\xffFMQJRNL", 1, 0x01020304, number, checkpoint.position + 1, int.from_bytes(os.urandom(8), "little"), 2 * HEAD_SIZE,
                     checkpoint.epoch, 0)
    with open(os.path.join(folder, f"journal-{number:016x}"), "wb") as file:
        file.write((head + struct.pack("=I", checksum(head))).ljust(2 * HEAD_SIZE, b"\0"))
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: str) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
