"""Programs that a test needs and a machine may lack: a skip that names the package, or a failure where all tests must run."""

import os
import shutil

import pytest

missing: dict[str, list[str]] = {}  # "program (package)" -> the tests that were skipped for it


def need_program(program: str, package: str, test: str = "") -> str:
    """Return the path of `program`, or skip the test (FASTMQ_TEST_ALL=1: fail it), naming the package to install."""
    path = shutil.which(program)
    if path:
        return path
    reason = f"{program} is not installed: apt-get install {package}"
    if os.environ.get("FASTMQ_TEST_ALL", "0") not in ("", "0"):
        pytest.fail(reason, pytrace=False)
    missing.setdefault(reason, []).append(test or os.environ.get("PYTEST_CURRENT_TEST", "").split(" ")[0])
    pytest.skip(reason)
