"""Copies one log, of a worker that runs or not, to another folder.

Owns: a share in the lock of the log's checkpoints. Rules: while that is held no checkpoint is written, so nothing that the last one knows and
nothing behind it goes or is overwritten: segments are only appended to, extents only added (extents.pxd); the copy of the last segment ends
with the last whole batch that was there when it was looked at, so it is as a crash at that moment would leave the disk; all of it is synced.
A copier that is killed holds nothing back. Runs in the command line.

    share the lock -> checkpoint -> list the segments behind it -> where does the last one end? -> copy, sync -> give up the share
"""
from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

from fastmq.errors import FastMQError, JournalDamaged
from fastmq.storage.checkpoint import Checkpoint
from fastmq.storage.files import Files
from fastmq.storage.journal_reader import JournalReader, segment_names
from fastmq.storage.owner import Owner, acting_as
from fastmq.storage.repair import HEAD

LOCK_WAIT_S = 60.0          # how long a checkpoint that is being written is waited for
LOCK_RETRY_S = 0.02
LIST_TRIES = 100            # of a journal that changes while it is listed, or read
PIECE_SIZE = 1 << 20
SYNC_SIZE = 1 << 20         # bytes after which a copy is synced: the broker's own syncs do not wait behind a heap of it
PAUSE_MAX_S = 0.1           # after each sync as long a pause as it took: half of the disk's time is the broker's
ZEROS = bytes(PIECE_SIZE)

Progress = Callable[[int], None]


class FilesOf(Files):
    """The real files, of which only these segments can be seen."""

    segments: tuple[str, ...] = ()

    def names(self, folder: str) -> list[str]:
        return [name for name in super().names(folder) if not name.startswith("journal-") or name in self.segments]


@contextmanager
def share_of(folder: str, wait_s: float = LOCK_WAIT_S, owner: Owner | None = None) -> Iterator[None]:
    """Keep the log of `owner` in `folder` from writing a checkpoint. FastMQError when one that is being written is not done in time."""
    lock = _open_lock(os.path.join(folder, "checkpoint.lock"), owner)
    try:
        deadline = time.monotonic() + wait_s
        while lock >= 0:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise FastMQError(f"{folder}: the worker has been writing a checkpoint for {wait_s:.0f} s; try again later",
                                      "busy") from None
            time.sleep(LOCK_RETRY_S)
        yield
    finally:
        if lock >= 0:
            os.close(lock)


def _open_lock(path: str, owner: Owner | None) -> int:
    """A descriptor; -1 where this user may write nothing, and so cannot be a running broker's: a backup that is kept read-only. (One who copies
    a stranger's broker without it, and is unlucky, finds the copy damaged when it is checked.)"""
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        pass
    try:
        with acting_as(owner):                      # the worker opens it too
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return -1
        raise


def copy_log(source: str, destination: str, progress: Progress, wait_s: float = LOCK_WAIT_S, pauses: bool = True,
             owners: tuple[Owner | None, Owner | None] = (None, None)) -> int:
    """Copy the log in `source` to `destination`, an empty folder, of these owners; the bytes that were written.

    `progress` is called with the bytes of each piece. `pauses`: leave a broker half of the disk's time. Raises JournalDamaged, FastMQError and
    OSError; what was copied then is of no use.
    """
    owner = owners[1]
    with share_of(source, wait_s, owners[0]):
        checkpoint = Checkpoint(Files(), source)
        done = copy_segments(source, destination, checkpoint.position, progress, pauses, owner)
        if checkpoint:
            done += copy_file(source, destination, "checkpoint", [(0, _size(source, "checkpoint"))], progress, pauses, owner)
        if checkpoint.extent_count:
            places = sorted((offset, offset + size) for _, offset, size, _ in checkpoint.places)
            done += copy_file(source, destination, "extents", places, progress, pauses, owner)
    _sync(destination, os.O_DIRECTORY)
    return done


def copy_segments(source: str, destination: str, position: int, progress: Progress, pauses: bool, owner: Owner | None = None) -> int:
    """Copy those with what lies behind `position`. Where that is the end of the last one, it is recycled, in the middle of being copied, as
    soon as another is begun; its name is never used again, so its going is seen, and the others are copied instead."""
    for _ in range(LIST_TRIES):
        names = needed_segments(source, position)
        done = 0
        try:
            end = end_of(source, names[-1], position) if names else 0
            for name in names:
                ranges = [(0, end if name == names[-1] else _size(source, name))]
                done += copy_file(source, destination, name, ranges, progress, pauses, owner)
        except (FileNotFoundError, JournalDamaged):
            if os.path.exists(os.path.join(source, names[0])):
                raise
        else:
            if not names or os.path.exists(os.path.join(source, names[0])):
                return done
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(destination, name))
    raise FastMQError(f"{source}: its segments come and go too fast to be copied; try again later", "busy")


def size_of(folder: str) -> int:
    """About how many bytes `copy_log` reads; of a log that runs, so what is listed may be gone."""
    size = 0
    for name in ("checkpoint", "extents", *segment_names(Files(), folder)):
        with contextlib.suppress(FileNotFoundError):
            found = os.stat(os.path.join(folder, name))
            size += found.st_blocks * 512 if name == "extents" else found.st_size
    return size


def needed_segments(folder: str, position: int) -> list[str]:
    """The names of the segments with what lies behind `position`, oldest first. Those before may be recycled at any moment, and are not
    touched."""
    for _ in range(LIST_TRIES):
        names = segment_names(Files(), folder)
        needed: list[str] = []
        with contextlib.suppress(FileNotFoundError):    # the oldest that was needed, and another has been begun
            for name in reversed(names):
                if needed and int(name[8:], 16) != int(needed[0][8:], 16) - 1:
                    break                       # one came while they were listed, or one is missing
                needed.insert(0, name)
                if _first(folder, name) <= position + 1:
                    return needed
        if not names:
            return []
    missing = f"journal-{int(needed[0][8:], 16) - 1:016x}"
    raise JournalDamaged(f"{os.path.join(folder, missing)} is missing; what it kept is only in a backup", os.path.join(folder, missing), 0)


def _first(folder: str, name: str) -> int:
    """The position of a segment's first entry, as its head says; the reader, and the check of the copy, judge the head."""
    with open(os.path.join(folder, name), "rb") as file:
        head = file.read(HEAD.size)
    first: int = HEAD.unpack(head)[4] if len(head) == HEAD.size else 0
    return first


def end_of(folder: str, name: str, position: int) -> int:
    """Where the last segment's whole batches end.

    A batch that was half written when it was read, and a later one that is whole and knows it durable, look like damage. Then it is read
    again; what is damaged stays so at its place.
    """
    files = FilesOf()
    files.segments = (name,)
    where = -1
    while True:
        reader = JournalReader(files, folder, position + 1)
        try:
            reader.read_all()
        except JournalDamaged as damage:
            if damage.offset == where:
                raise
            where = damage.offset
            continue
        return reader.offset


def copy_file(source: str, destination: str, name: str, ranges: list[tuple[int, int]], progress: Progress, pauses: bool,
              owner: Owner | None = None) -> int:
    """Copy these ranges of a file, from (inclusive) and to; zeros and all else are a hole. The bytes that were written."""
    written = unsynced = 0
    with open(os.path.join(source, name), "rb", buffering=0) as old, _new_file(os.path.join(destination, name), owner) as new:
        for at, end in ranges:
            while at < end:
                piece = os.pread(old.fileno(), min(PIECE_SIZE, end - at), at)
                if not piece:
                    file = os.path.join(source, name)
                    raise JournalDamaged(f"{file} ends at {at} and should go on to {end}; what it kept is only in a backup", file, at)
                if piece != ZEROS[: len(piece)]:
                    new.seek(at)
                    new.write(piece)
                    written += len(piece)
                    unsynced += len(piece)
                at += len(piece)
                progress(len(piece))
                if unsynced >= SYNC_SIZE:
                    unsynced = 0
                    began = time.monotonic()
                    os.fdatasync(new.fileno())
                    time.sleep(min(PAUSE_MAX_S, time.monotonic() - began) if pauses else 0)
        new.truncate(_size(source, name) if name.startswith("journal-") else ranges[-1][1])
        os.fsync(new.fileno())
    return written


def _new_file(path: str, owner: Owner | None) -> BinaryIO:
    with acting_as(owner):
        return open(path, "xb", opener=lambda path, flags: os.open(path, flags, 0o600))


def _size(folder: str, name: str) -> int:
    return os.stat(os.path.join(folder, name)).st_size


def _sync(path: str, flags: int = 0) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
