"""Root makes files in another user's data directory as that user.

So they are that user's from the start, whatever the umask is, and a link that the user put there leads to nothing that only root may write.
Owns: nothing. Rule: the effective user and groups are the process's, all its threads have them; so the command line's only.
"""
from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple


class Owner(NamedTuple):
    """Who has a data directory."""

    uid: int
    gid: int


def owner_of(path: str | os.PathLike[str]) -> Owner | None:
    """Whom root is to act as in what lies there; None: as himself, as everybody else does."""
    if os.geteuid() != 0 or not Path(path).exists():
        return None
    found = os.stat(path)
    return Owner(found.st_uid, found.st_gid) if found.st_uid else None


@contextmanager
def acting_as(owner: Owner | None) -> Iterator[None]:
    """Within this block root is that user."""
    if owner is None:
        yield
        return
    group, groups = os.getegid(), os.getgroups()
    try:
        os.setgroups([])
        os.setegid(owner.gid)
        os.seteuid(owner.uid)
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)
