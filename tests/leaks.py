"""What one integration test left behind, found by the random id that it put into its environment as FASTMQ_RUN_ID.

A process started by the test, or by its processes, carries the id in /proc/<pid>/environ; a shared-memory segment must carry it
in its name; temporary files go to a folder that is the test's own.
"""

import gc
import os
import shutil
import signal
import tempfile
from pathlib import Path

from waiting import wait_until

GRACE_S = 2.0  # what ends by itself within this time after the test is no leak


def processes_of(run_id: str) -> list[int]:
    """The pids whose environment carries the run id; this process changes only its copy and is never among them."""
    needle = f"FASTMQ_RUN_ID={run_id}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if needle in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            pass
    return found


def zombies() -> set[int]:
    """Children of this process that have ended and that nobody has waited for."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        try:
            children = (task / "children").read_text().split()
        except OSError:
            continue
        for child in children:
            try:
                state = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if state == "Z":
                found.add(int(child))
    return found


def own_sockets() -> set[str]:
    """The sockets that this process has open, by inode."""
    found = set()
    for entry in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{entry}")
        except OSError:
            continue
        if target.startswith("socket:"):
            found.add(target)
    return found


def segments_of(run_id: str) -> list[str]:
    return [name for name in os.listdir("/dev/shm") if run_id in name]


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return "(gone)"


class Run:
    """One test's run id, temporary folder and what existed before it."""

    def __init__(self) -> None:
        self.id = os.urandom(8).hex()
        self.folder = tempfile.mkdtemp(prefix="fastmq-test-")  # short: a unix socket's path has 108 bytes
        self.sockets_before = own_sockets()
        self.zombies_before = zombies()

    def leaks(self) -> list[str]:
        """One line for each thing that is left now."""
        gc.collect()
        left = [f"process {pid}: {command_of(pid)}" for pid in processes_of(self.id)]
        left += [f"process {pid} was never waited for" for pid in sorted(zombies() - self.zombies_before)]
        left += [f"{name} is still open in the test's process" for name in sorted(own_sockets() - self.sockets_before)]
        left += [f"/dev/shm/{name}" for name in segments_of(self.id)]
        left += [f"temporary file {name}" for name in sorted(os.listdir(self.folder))]
        return left

    def finish(self) -> list[str]:
        """What is left after the grace; processes among it are killed, files removed, so that the next test starts clean."""
        try:
            wait_until(lambda: not self.leaks(), timeout=GRACE_S)
            return []
        except AssertionError:
            left = self.leaks()
            for pid in processes_of(self.id):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            for name in segments_of(self.id):
                os.unlink(f"/dev/shm/{name}")
            return left
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
