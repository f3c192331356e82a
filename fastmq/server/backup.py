"""Copies the data directory of a broker, which may run, to a new directory that a broker starts on; and brings such a copy to a directory.

Owns: the folder that it writes, which gets its name when it is complete. Rules: nothing is changed where it is copied from, but that a
log which has none yet gets its checkpoint.lock; the copy is checked as `fastmq journal check` does and synced before it has its name; what a
killed copier left has no broker.json, is never taken for a data directory, and is removed by the next one. Runs in the command line.

* Each log is as a crash of its worker at some moment of the backup would leave it (storage/log_copy.py); those moments differ.
* **Worker 0 comes last**: its log has the topology, and a shard drops the queues that the topology does not know. So each queue that any
  copied log knows was declared before the topology was copied; it is missing there only if it was deleted. A queue that was declared after its
  shard was copied comes back empty: all its messages are younger than the backup. (Nothing is moved between shards yet. What is will need the
  destination copied as of a later moment than the source.)
* **Epochs**: broker.json is read again at the end. An epoch stands there before a process has it, so the copy gives out none that the original
  gave out up to then.
* The generation of logs that is copied is locked as a whole, so that a broker which starts with another number of workers leaves it.
"""
from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from fastmq.errors import BadArgument, FastMQError
from fastmq.server.data_directory import FILE, read_facts, sync_directory, write_facts
from fastmq.storage.log_copy import LOCK_WAIT_S, copy_log, size_of
from fastmq.storage.owner import Owner, acting_as, owner_of
from fastmq.storage.repair import Examined, examine

PARTIAL = ".partial"            # behind the name of a backup that is not complete

Progress = Callable[[int, int], None]      # bytes so far, and of how many


class Copied(NamedTuple):
    """What was copied."""

    source: str
    destination: str
    bytes: int                  # written, without holes
    logs: list[Examined]        # of each worker, as the copy was found whole
    seconds: float


def back_up(source: str | os.PathLike[str], destination: str | os.PathLike[str], progress: Progress | None = None,
            wait_s: float = LOCK_WAIT_S) -> Copied:
    """Copy the data directory `source` to `destination`, which does not exist yet.

    `wait_s`: how long a checkpoint is waited for. Raises BadArgument, JournalDamaged, FastMQError and OSError; then `destination` is not there.
    """
    began = time.monotonic()
    place, data = Path(destination).absolute(), Path(source).absolute()
    read_facts(data)
    if os.path.lexists(place):
        raise BadArgument(f"{place} exists already; a backup is a directory of its own")
    if not place.parent.is_dir():
        raise BadArgument(f"{place.parent} is no directory, where the backup {place.name} could be made")
    if place.parent.resolve().is_relative_to(data.resolve()):
        raise BadArgument(f"{place} lies within the data directory {data}")
    partial = place.with_name(place.name + PARTIAL)
    if os.path.lexists(partial / FILE):
        raise BadArgument(f"{partial} is in the way: it is complete; give it another name, or remove it")
    with new_folder(partial):
        with shared_generation(data) as (facts, logs):
            kept = partial / logs.name
            kept.mkdir(mode=0o700)
            found, size = copy_logs(logs, kept, facts["workers"], progress, wait_s, owners=(owner_of(data), None))
        sync_directory(partial)
        write_facts(partial, facts | {"epoch": max(facts["epoch"], read_facts(data)["epoch"])})
        os.rename(partial, place)
        sync_directory(place.parent)
    found = [row._replace(folder=str(place / logs.name / str(worker))) for worker, row in enumerate(found)]
    return Copied(str(data), str(place), size, found, time.monotonic() - began)


class Folder:
    """One that is written to, and its lock."""

    def __init__(self, path: Path, owner: Owner | None) -> None:
        """Make it, or take one that is there."""
        self.path, self._owner = path, owner
        with acting_as(owner):
            path.mkdir(mode=0o700, exist_ok=True)
            try:
                self._lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except OSError:
                raise BadArgument(f"{path} is in the way: it is no folder") from None
            try:
                if os.fstat(self._lock).st_uid != os.geteuid():
                    raise BadArgument(f"{path} is in the way: it belongs to another user")
                os.fchmod(self._lock, 0o700)
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BaseException as error:
                os.close(self._lock)
                if isinstance(error, BlockingIOError):
                    raise FastMQError(f"{path} is being written by another process", "busy") from None
                raise
        self.ours = True            # to be removed if what is written is not completed

    def empty(self) -> None:
        """Remove what is in it, broker.json first: a broker takes it no more (DataDirectory.take). If it took it before, nothing is there."""
        with acting_as(self._owner):
            self._empty()

    def _empty(self) -> None:
        if not self.is_there():
            return
        try:
            (self.path / FILE).unlink(missing_ok=True)
            entries = list(self.path.iterdir())
        except FileNotFoundError:
            return
        for entry in entries:
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink(missing_ok=True)

    def is_there(self) -> bool:
        """Whether its name is still its own: nobody took it, nor made another."""
        try:
            return os.path.samestat(os.stat(self.path, follow_symlinks=False), os.fstat(self._lock))
        except FileNotFoundError:
            return False

    def remove(self) -> None:
        """Remove it with what is in it."""
        with contextlib.suppress(OSError), acting_as(self._owner):
            if self.is_there():
                self._empty()
                self.path.rmdir()

    def close(self) -> None:
        """Unlock it."""
        os.close(self._lock)


@contextmanager
def new_folder(path: Path, owner: Owner | None = None) -> Iterator[Folder]:
    """Make a folder of `owner` for a copy, locked, and remove it if that fails, as long as it is `ours`. One that a killed copier left is
    emptied first: it is nobody's, and has nothing in it but logs and broker.json."""
    names = os.listdir(path) if path.is_dir() else [path.name] * os.path.lexists(path)
    strange = sorted(name for name in names if name not in (FILE, FILE + ".new") and not name.startswith("logs"))
    if strange:
        raise BadArgument(f"{path} is in the way: it holds {strange[0]!r}, which no copy of a data directory has")
    folder = Folder(path, owner)
    try:
        folder.empty()
        if not folder.is_there():
            raise FastMQError(f"{path} was taken by a broker just then; try again", "busy")
        try:
            yield folder
        except BaseException:
            if folder.ours:
                folder.remove()
            raise
    finally:
        folder.close()


@contextmanager
def shared_generation(data: Path) -> Iterator[tuple[dict[str, Any], Path]]:
    """The facts of a data directory and the folder of the logs that count, which stays there."""
    while True:
        facts = read_facts(data)
        logs = data / f"logs-{facts['generation']}"
        try:
            fd = os.open(logs, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            if read_facts(data)["generation"] != facts["generation"]:
                continue                            # its successor came to count just then
            raise BadArgument(f"{data} has no {logs.name}: no broker has been ready there yet, or it is damaged") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
            if logs.exists() and read_facts(data)["generation"] == facts["generation"]:      # else they are being removed
                yield facts, logs
                return
        finally:
            os.close(fd)


def copy_logs(logs: Path, destination: Path, workers: int, progress: Progress | None,
              wait_s: float = LOCK_WAIT_S, pauses: bool = True,
              owners: tuple[Owner | None, Owner | None] = (None, None)) -> tuple[list[Examined], int]:
    """Copy the log of each worker, that of worker 0 last, and check the copies: what they are, and the bytes that were written.

    `owners`: whom root acts as where it is copied from, and to.
    """
    missing = next((logs / str(worker) for worker in range(workers) if not (logs / str(worker)).is_dir()), None)
    if missing is not None:
        raise BadArgument(f"{missing} is missing: the log of a worker")
    total = sum(size_of(str(logs / str(worker))) for worker in range(workers))
    read = written = 0

    def copied(size: int) -> None:
        nonlocal read
        read += size
        if progress is not None:
            progress(read, max(read, total))

    for worker in reversed(range(workers)):
        with acting_as(owners[1]):
            (destination / str(worker)).mkdir(mode=0o700)
        written += copy_log(str(logs / str(worker)), str(destination / str(worker)), copied, wait_s, pauses, owners)
    sync_directory(destination)
    return [examine(str(destination / str(worker))) for worker in range(workers)], written
