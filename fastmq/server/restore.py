"""Brings a backup to a data directory, with a broker that runs there or without one.

Owns: the folder restore/ in that directory until a broker is asked to take it, and without a broker the directory's lock. Rules: the backup is
checked before anything is changed, and the copy again; what the directory was counts until the copy is complete and synced (data_directory.py
says how it comes to count); once a broker is asked, nothing is removed unless it did not take it. Runs in the command line; a running broker
does the last step itself (server/restore_port.py).
"""
from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastmq.config import Config
from fastmq.errors import BadArgument, BrokerFailed
from fastmq.server.backup import Copied, Folder, Progress, copy_logs, new_folder, shared_generation
from fastmq.server.data_directory import (
    FILE,
    RESTORE,
    RESTORE_LOGS,
    SOCKET,
    UNCOUNTED,
    DataDirectory,
    has_broker,
    read_facts,
    sync_directory,
    write_facts,
)
from fastmq.server.restore_port import NotTaken, ask
from fastmq.storage.owner import Owner, acting_as, owner_of
from fastmq.storage.repair import Examined, examine


def restore(source: str | os.PathLike[str], data_dir: str | os.PathLike[str], replaces: bool = False, progress: Progress | None = None,
            say: Callable[[str], None] = lambda text: None) -> Copied:
    """Make `data_dir` what the backup `source` is. `replaces`: also where it has data already, and a broker that runs on it.

    On return a broker that ran serves again. Raises BadArgument, JournalDamaged, BrokerFailed and OSError.
    """
    began = time.monotonic()
    backup, place = Path(source).absolute(), Path(data_dir).absolute()
    facts = read_facts(backup)
    if place.resolve() == backup.resolve() or place.resolve().is_relative_to(backup.resolve()):
        raise BadArgument(f"{place} is the backup itself")
    if backup.resolve().is_relative_to(place.resolve()):
        raise BadArgument(f"{backup} lies within the data directory {place}, which is replaced")
    if has_broker(backup):
        raise BadArgument(f"a broker runs on {backup}; copy it with `fastmq backup`, and restore the copy")
    if has_data(place) and not replaces:
        raise BadArgument(f"{place} has data already; --replace puts the backup in its place")
    with shared_generation(backup) as (_, logs):
        for worker in range(facts["workers"]):
            if (logs / str(worker)).is_dir():               # else copying says so
                examine(str(logs / str(worker)))
        config, owner = Config(workers=facts["workers"]), owner_of(place)
        with acting_as(owner):
            directory = _lock(place, config, replaces)
        try:
            with new_folder(place / RESTORE, owner) as staged:
                found, size = _bring(place / RESTORE, logs, facts, progress, directory is None, (owner_of(backup), owner))
                with acting_as(owner):
                    if directory is not None or not _ask(place, say, staged):
                        directory = directory or DataDirectory(place, config)   # the broker has ended meanwhile
                        directory.replace(config)
        finally:
            if directory is not None:
                directory.close()
    found = [log._replace(folder=str(logs / str(worker))) for worker, log in enumerate(found)]      # where they were copied to is gone
    return Copied(str(backup), str(place), size, found, time.monotonic() - began)


def has_data(place: Path) -> bool:
    """Whether there is a data directory in which a broker has been. Raises BadArgument where there is anything else."""
    if not os.path.lexists(place):
        return False
    if not place.is_dir():
        raise BadArgument(f"{place} is no directory")
    if not (place / FILE).exists():
        strange = sorted(entry.name for entry in place.iterdir() if entry.name not in UNCOUNTED)
        if strange:
            raise BadArgument(f"{place} has no {FILE}, but holds {strange[0]!r}: it is no fastmq data directory")
        return False
    return (place / f"logs-{read_facts(place)['generation']}").exists()


def _lock(place: Path, config: Config, replaces: bool) -> DataDirectory | None:
    """The directory, or None where a broker has it and is to give it up for a moment."""
    try:
        return DataDirectory(place, config)
    except BrokerFailed:
        if replaces:
            return None
        raise


def _bring(staged: Path, logs: Path, facts: dict[str, Any], progress: Progress | None, pauses: bool,
           owners: tuple[Owner | None, Owner | None]) -> tuple[list[Examined], int]:
    """Copy the backup into restore/, complete and synced: the logs, and the bytes that were written."""
    with acting_as(owners[1]):
        (staged / RESTORE_LOGS).mkdir(mode=0o700)
    found = copy_logs(logs, staged / RESTORE_LOGS, facts["workers"], progress, pauses=pauses, owners=owners)
    with acting_as(owners[1]):
        write_facts(staged, facts)
    sync_directory(staged.parent)
    return found


def _ask(place: Path, say: Callable[[str], None], staged: Folder) -> bool:
    """Have the broker take what is in restore/. False: there is no broker. Whatever else ends this, it may be the broker's."""
    staged.ours = False
    try:
        asked = ask(place / SOCKET, say)
    except NotTaken:
        staged.ours = True
        raise
    staged.ours = not asked
    return asked
