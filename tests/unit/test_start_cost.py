"""What makes a start long is not imported by the processes that it waits for: about 0.1 s in all, see docs/architecture.md."""

import subprocess
import sys

import pytest

from fastmq.server import programs

# Each costs 5 to 60 ms of a start, and memory of each process; a process that needs one imports it when it does.
HEAVY = {
    "asyncio", "click", "ctypes", "dataclasses", "email", "hashlib", "importlib.metadata", "inspect", "logging", "multiprocessing", "rich",
    "tomllib", "unittest", "urllib.request",
}  # fmt: skip


@pytest.mark.parametrize(("module", "more"), [("supervisor", {"zmq"}), ("frontend", set()), ("worker", {"zmq", "subprocess"})])
def test_process_of_a_broker_imports_nothing_heavy(module, more):
    script = f"import sys, fastmq.server.{module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", script], env=programs.environment(), capture_output=True, text=True, check=True)
    found = set(done.stdout.split())
    assert f"fastmq.server.{module}" in found
    assert not found & (HEAVY | more)
