"""The data directory of one broker: what it is, who has it, and where each worker's log lies (docs/durability.md).

Owns: the lock and the file `broker.json`. Rules: one broker at a time has a directory, the kernel's lock says which; broker.json is written
aside, synced and renamed, the directory synced; an epoch is on disk before a process gets it; the number of shards never changes. Process:
supervisor.

    DIR/lock                    flock'ed by the supervisor; says its pid and where it listens
        broker.json             format, shards, workers, generation, key of the sessions' proofs, epochs given out so far
        logs-GENERATION/INDEX/  the log of one worker (storage/file_log.pxd); another number of workers begins another generation, and so
                                does what is restored
        socket                  where a running broker is asked to restore (server/restore_port.py)
        restore/                what is to be restored, while it is being brought here: logs/INDEX/, and broker.json when it is complete; locked
                                by who brings it
        restoring/              the same, taken by who has DIR: nobody else touches it under this name

A restore is taken at one moment, the renaming to restoring/, and takes effect at one, as a change of workers does: the logs get a name in DIR,
then broker.json is renamed over the old one. Who removes or empties restore/ unlinks its broker.json first: then it is not taken any more.
Whatever is killed before, the old logs count and a start removes what came of the restore; afterwards the restored ones count.
"""
from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Any

from fastmq.config import SETTINGS, Config
from fastmq.errors import BadArgument, BrokerFailed

FORMAT = 1                      # of the directory; a broker reads no other
EPOCHS_AHEAD = 1024             # given out before broker.json is written again
EPOCH_MAX = 2**62
EPOCHS_RESTORED = 65536         # more of them than a broker can have given out since its backup was made
KEY_SIZE = 16
LIMITS = {                      # of numbers in broker.json
    "shards": (1, int(SETTINGS["shards"].high or 0)), "workers": (1, int(SETTINGS["workers"].high or 0)),
    "generation": (0, EPOCH_MAX), "epoch": (0, EPOCH_MAX),
}
LOCK, FILE, SOCKET = "lock", "broker.json", "socket"
RESTORE, RESTORE_LOGS, TAKEN = "restore", "logs", "restoring"

UNCOUNTED = {LOCK, FILE + ".new", SOCKET, RESTORE, TAKEN, "lost+found"}      # of names in what is no data directory yet


def default_data_dir() -> str:
    """Where `fastmq serve` keeps its data unless it is told otherwise: as for other programs of this user, or of the system for root."""
    home = os.environ.get("XDG_DATA_HOME")
    if not home:
        home = "/var/lib" if os.geteuid() == 0 else os.path.join(os.path.expanduser("~"), ".local", "share")
    return os.path.join(home, "fastmq")


class UnsyncedError(OSError):
    """What was written cannot be made durable, and cannot be taken back either."""


class DataDirectory:
    """An open data directory. Raises BadArgument where it cannot be one, BrokerFailed where another broker has it."""

    def __init__(self, path: str | os.PathLike[str], config: Config) -> None:
        self.path = Path(path).absolute()
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise BadArgument(f"setting data_dir: {self.path} cannot be used: {error.strerror}") from None
        try:
            self._take_lock()
            self._facts = self._read(config)
            self._epoch = self._facts["epoch"]
        except BaseException:
            os.close(self._lock)
            raise
        self.moved_from: int | None = None          # generation of the logs to be read, where the workers are others than last time
        self._taken: dict[str, Any] | None = None   # broker.json of restoring/
        self._workers = config.workers
        self._look_at_workers()
        _remove_unused(self.path / RESTORE)         # else somebody brings it here now, and will ask
        shutil.rmtree(self.path / TAKEN, ignore_errors=True)
        self._sweep()

    @property
    def key(self) -> bytes:
        """Of the sessions' proofs, 16 bytes."""
        return bytes.fromhex(self._facts["key"])

    @property
    def shards(self) -> int:
        shards: int = self._facts["shards"]
        return shards

    def log_path(self, worker: int) -> str:
        """Where a worker's log lies in this run."""
        generation = self._facts["generation"] + (self.moved_from is not None)
        return str(self.path / f"logs-{generation}" / str(worker))

    def old_log_paths(self) -> list[str]:
        """The logs of the last run's workers, where those were of another number; else none."""
        if self.moved_from is None:
            return []
        return [str(self.path / f"logs-{self.moved_from}" / str(worker)) for worker in range(self._facts["workers"])]

    def moved(self) -> None:
        """All workers have what concerns them from the old logs, durable in theirs: from now on those count."""
        if self.moved_from is None:
            return
        from fastmq.storage import failpoints  # a start without this need not load it

        failpoints.hit("before_move")
        self._write(self._facts | {"workers": self._workers, "generation": self._facts["generation"] + 1})
        failpoints.hit("after_move")
        self.moved_from = None
        self._sweep()

    def take(self, config: Config) -> None:
        """Take what lies complete in restore/: from now on nobody else reaches it.

        Raises BadArgument where there is nothing complete, or `config` does not fit it, and OSError; then nothing is taken.
        """
        _check_staged(self.path / RESTORE, config)
        taken = self.path / TAKEN
        shutil.rmtree(taken, ignore_errors=True)
        os.rename(self.path / RESTORE, taken)
        try:
            facts = _check_staged(taken, config)    # again: it may have been given up, or be another, just before it was renamed
        except Exception:
            shutil.rmtree(taken, ignore_errors=True)
            raise
        self._taken = facts

    def replace(self, config: Config) -> None:
        """What was taken, or lies complete in restore/, becomes what this directory is; what was here before goes when that is durable.

        Raises BadArgument where there is nothing complete, or `config` does not fit it, and OSError; then the old data counts.
        """
        if self._taken is None:
            self.take(config)
        assert self._taken is not None
        taken, facts = self.path / TAKEN, self._taken
        self._taken = None
        try:
            generations = [int(entry.name[5:]) for entry in self.path.glob("logs-*") if entry.name[5:].isdigit()]
            generation = max(self._facts["generation"], *generations, 0) + 1
            os.rename(taken / RESTORE_LOGS, self.path / f"logs-{generation}")
            sync_directory(taken)
            sync_directory(self.path)
            from fastmq.storage import failpoints

            failpoints.hit("before_restore")
            self._write(facts | {"generation": generation, "epoch": max(self._facts["epoch"], facts["epoch"]) + EPOCHS_RESTORED})
        except Exception:
            shutil.rmtree(taken, ignore_errors=True)        # the logs in DIR go with the next sweep
            raise
        failpoints.hit("after_restore")
        self._epoch = self._facts["epoch"]
        self._look_at_workers()
        shutil.rmtree(taken, ignore_errors=True)
        self._sweep()

    def next_epoch(self) -> int:
        """One that no process of any run had before."""
        self._epoch += 1
        if self._epoch > self._facts["epoch"]:
            self._write(self._facts | {"epoch": self._epoch + EPOCHS_AHEAD})
        return self._epoch

    def listening(self, url: str) -> None:
        """Say in the lock where the broker listens."""
        self._say(f"{os.getpid()} {url}\n")

    def close(self) -> None:
        """Let another broker have it."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    # ---- private

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid, _, url = os.pread(self._lock, 4096, 0).decode(errors="replace").strip().partition(" ")
            where = f", which listens at {url}" if url else ""
            raise BrokerFailed(f"data directory {self.path} is in use by the broker with pid {pid or 'unknown'}{where}; "
                               "give this one another --data-dir, or --ephemeral") from None
        except OSError as error:
            raise BadArgument(f"setting data_dir: {self.path} cannot be locked: {error.strerror}") from None
        self._say(f"{os.getpid()}\n")

    def _say(self, text: str) -> None:
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, text.encode(), 0)

    def _read(self, config: Config) -> dict[str, Any]:
        if not (self.path / FILE).exists():
            return self._make(config)
        facts = read_facts(self.path)
        _check_shards(self.path, facts, config)
        return facts

    def _make(self, config: Config) -> dict[str, Any]:
        """A new directory; one that holds anything else is not made one."""
        others = sorted({entry.name for entry in self.path.iterdir()} - UNCOUNTED)
        if others:
            raise BadArgument(f"setting data_dir: {self.path} has no {FILE}, but holds {others[0]!r}: it is no fastmq data directory")
        self._write({"format": FORMAT, "shards": config.shards, "workers": config.workers, "generation": 1, "key": os.urandom(KEY_SIZE).hex(),
                     "epoch": 0})
        return self._facts

    def _write(self, facts: dict[str, Any]) -> None:
        """From now on these are the facts; on an OSError the ones before. BrokerFailed where nobody knows which a crash would leave."""
        try:
            write_facts(self.path, facts)
        except UnsyncedError as error:
            raise BrokerFailed(f"{self.path / FILE} was written anew and cannot be made durable ({error.strerror}); the broker ends") from None
        self._facts = facts

    def _look_at_workers(self) -> None:
        self.moved_from = self._facts["generation"] if self._facts["workers"] != self._workers else None

    def _sweep(self) -> None:
        """Remove the logs of generations that do not count any more, or never came to count; those that a backup copies go next time."""
        for entry in self.path.glob("logs-*"):
            if entry.name != f"logs-{self._facts['generation']}":
                _remove_unused(entry)


def is_locked(folder: Path) -> bool:
    """Whether somebody works in a folder: a backup in logs, a restore in what it brings."""
    return _is_locked(folder, os.O_DIRECTORY, fcntl.LOCK_EX)


def _remove_unused(folder: Path) -> None:
    """Remove a folder in which nobody works; nobody begins to meanwhile."""
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            with contextlib.suppress(OSError):      # of a file system without locks
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(fd)


def has_broker(data: Path) -> bool:
    """Whether a broker runs on a data directory, as far as this user can see."""
    return _is_locked(data / LOCK, os.O_NONBLOCK, fcntl.LOCK_SH)


def _is_locked(path: Path, flags: int, how: int) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    except OSError:
        return False
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(fd)
    return False


def _check_shards(path: Path, facts: dict[str, Any], config: Config) -> None:
    shards = facts["shards"]
    if config.shards not in (shards, type(config)().shards):
        raise BadArgument(f"{path} was made with shards={shards}, which does not change; the setting says {config.shards}")


def _check_staged(path: Path, config: Config) -> dict[str, Any]:
    facts = read_facts(path)
    _check_shards(path, facts, config)
    if facts["epoch"] > EPOCH_MAX // 2:             # with room for all that this directory gives out
        raise BadArgument(f"{path / FILE} says epoch {facts['epoch']}, as far as no fastmq counts")
    return facts


def read_facts(path: Path) -> dict[str, Any]:
    """What broker.json in a folder says. Raises BadArgument where it is not there or says nothing that this fastmq understands."""
    file = path / FILE
    try:
        facts: dict[str, Any] = json.loads(file.read_bytes())
        form = facts["format"]
        if form == FORMAT:
            _check_facts(facts)
    except (FileNotFoundError, NotADirectoryError):
        raise BadArgument(f"{path} has no {FILE}: it is no fastmq data directory") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise BadArgument(f"{file} is not what a fastmq broker writes; restore it, or give another --data-dir") from None
    if form != FORMAT:
        raise BadArgument(f"{path} was written in format {form}; this broker reads format {FORMAT}")
    return facts


def _check_facts(facts: dict[str, Any]) -> None:
    """ValueError, KeyError or TypeError where a broker would not write this: a backup may come from anywhere."""
    for name, (low, high) in LIMITS.items():
        value = facts[name]
        if type(value) is not int or not low <= value <= high:      # a bool is none
            raise ValueError(name)
    if len(bytes.fromhex(facts["key"])) != KEY_SIZE:
        raise ValueError("key")


def write_facts(path: Path, facts: dict[str, Any]) -> None:
    """Replace broker.json in a folder, durably. It is of the folder's owner, and nobody else reads it: the key is in it.

    Raises OSError; UnsyncedError where it is replaced, but perhaps not durable.
    """
    fresh = path / (FILE + ".new")
    fresh.unlink(missing_ok=True)
    with open(fresh, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        owner = os.stat(path)
        if os.geteuid() == 0 and owner.st_uid:
            os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
        file.write(json.dumps(facts, indent=1).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path / FILE)
    try:
        sync_directory(path)
    except OSError as error:
        raise UnsyncedError(*error.args) from None


def sync_directory(path: str | os.PathLike[str]) -> None:
    """Make names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
