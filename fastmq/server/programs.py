"""How fastmq starts a program of its own: the interpreter of this process, the fastmq of this process."""
from __future__ import annotations

import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))        # the folder that this fastmq is imported from


def command(module: str, *arguments: str) -> list[str]:
    """The command line of `module`. Modules are not looked for in the current folder (-P), whatever files lie there."""
    if not sys.executable:
        raise OSError("this Python does not know its own interpreter (sys.executable), which fastmq starts its processes with")
    return [sys.executable, "-P", "-m", module, *arguments]


def environment() -> dict[str, str]:
    """This process's environment, so that the program finds the same fastmq when it is not where installed packages are."""
    found = dict(os.environ)
    if os.path.basename(ROOT) not in ("site-packages", "dist-packages"):
        found["PYTHONPATH"] = os.pathsep.join([*filter(None, [found.get("PYTHONPATH")]), ROOT])
    return found
