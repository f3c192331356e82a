"""The data directory of one broker: what it is, who has it, and where each worker's log lies (docs/durability.md).

Owns: the lock and the file `broker.json`. Rules: one broker at a time has a directory, the kernel's lock says which; broker.json is written
aside, synced and renamed, the directory synced; an epoch is on disk before a process gets it; the number of shards never changes. Process:
supervisor.

    DIR/lock                    flock'ed by the supervisor; says its pid and where it listens
        broker.json             format, shards, workers, generation, key of the sessions' proofs, epochs given out so far
        logs-GENERATION/INDEX/  the log of one worker (storage/file_log.pxd); another number of workers begins another generation
"""
from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Any

from fastmq.config import Config
from fastmq.errors import BadArgument, BrokerFailed

FORMAT = 1                      # of the directory; a broker reads no other
EPOCHS_AHEAD = 1024             # given out before broker.json is written again
LOCK, FILE = "lock", "broker.json"


def default_data_dir() -> str:
    """Where `fastmq serve` keeps its data unless it is told otherwise: as for other programs of this user, or of the system for root."""
    home = os.environ.get("XDG_DATA_HOME")
    if not home:
        home = "/var/lib" if os.geteuid() == 0 else os.path.join(os.path.expanduser("~"), ".local", "share")
    return os.path.join(home, "fastmq")


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
        if self._facts["workers"] != config.workers:
            self.moved_from = self._facts["generation"]
        self._workers = config.workers
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
        self._facts |= {"workers": self._workers, "generation": self._facts["generation"] + 1}
        self._write()
        failpoints.hit("after_move")
        self.moved_from = None
        self._sweep()

    def next_epoch(self) -> int:
        """One that no process of any run had before."""
        self._epoch += 1
        if self._epoch > self._facts["epoch"]:
            self._facts["epoch"] = self._epoch + EPOCHS_AHEAD
            self._write()
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
        path = self.path / FILE
        try:
            facts: dict[str, Any] = json.loads(path.read_bytes())
            form, shards = facts["format"], facts["shards"]
        except FileNotFoundError:
            return self._make(config)
        except (ValueError, KeyError, TypeError):
            raise BadArgument(f"{path} is not what a fastmq broker writes; restore it, or give another --data-dir") from None
        if form != FORMAT:
            raise BadArgument(f"{self.path} was written in format {form}; this broker reads format {FORMAT}")
        if config.shards not in (shards, type(config)().shards):
            raise BadArgument(f"{self.path} was made with shards={shards}, which does not change; the setting says {config.shards}")
        return facts

    def _make(self, config: Config) -> dict[str, Any]:
        """A new directory; one that holds anything else is not made one."""
        others = sorted({entry.name for entry in self.path.iterdir()} - {LOCK, FILE + ".new", "lost+found"})
        if others:
            raise BadArgument(f"setting data_dir: {self.path} has no {FILE}, but holds {others[0]!r}: it is no fastmq data directory")
        self._facts = {"format": FORMAT, "shards": config.shards, "workers": config.workers, "generation": 1, "key": os.urandom(16).hex(),
                       "epoch": 0}
        self._write()
        return self._facts

    def _write(self) -> None:
        fresh = self.path / (FILE + ".new")
        with open(fresh, "wb") as file:
            file.write(json.dumps(self._facts, indent=1).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, self.path / FILE)
        sync_directory(self.path)

    def _sweep(self) -> None:
        """Remove the logs of generations that do not count any more, or never came to count."""
        for entry in self.path.glob("logs-*"):
            if entry.name != f"logs-{self._facts['generation']}":
                shutil.rmtree(entry, ignore_errors=True)


def sync_directory(path: str | os.PathLike[str]) -> None:
    """Make names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
