"""A disk in memory for the log: it notes each call, fails those it is told to, and shows what a crash can leave of it."""

import functools
from pathlib import Path
from types import ModuleType

from extensions import ROOT, build, load


@functools.cache
def disk() -> ModuleType:
    """The module of tests/disk/memory_disk.pyx; it is built where `make build` builds, and only when it has changed."""
    folder = ROOT / "build" / "tests"
    folder.mkdir(parents=True, exist_ok=True)
    return load("memory_disk", build(Path(__file__).parent / "memory_disk.pyx", folder))
