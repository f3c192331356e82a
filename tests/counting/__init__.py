"""Builds the extensions that count allocations and instructions, once for each test session."""

from pathlib import Path
from types import ModuleType

import extensions
from extensions import load

__all__ = ["build", "build_allocations", "load"]


def build(name: str, folder: Path) -> Path:
    """The file of the extension of tests/counting/`name`.pyx, built in `folder`."""
    return extensions.build(Path(__file__).parent / f"{name}.pyx", folder)


def build_allocations(folder: Path) -> ModuleType:
    """The module `allocations`, built in `folder`."""
    return load("allocations", build("allocations", folder))
