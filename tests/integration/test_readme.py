"""The examples of README.md, cut out and run as printed."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import wait_until

README = (Path(__file__).parents[2] / "README.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", README, re.DOTALL)
SESSIONS = re.findall(r"```console\n(.*?)```", README, re.DOTALL)


def test_every_example_is_found() -> None:
    assert len(PROGRAMS) == README.count("```python") > 0
    assert len(SESSIONS) == README.count("```console") > 0


@pytest.mark.parametrize(("program", "printed"), PROGRAMS)
def test_program_prints_what_is_printed(program: str, printed: str) -> None:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == (printed, "")


def commands(session: str) -> Iterator[tuple[str, str]]:
    """Each command of a console session, and what it is said to print."""
    for part in re.split(r"^\$ ", session, flags=re.MULTILINE)[1:]:
        command, _, printed = part.partition("\n")
        yield command, printed


@pytest.mark.parametrize("session", SESSIONS)
def test_console_session_prints_what_is_printed(session: str, tmp_path: Path) -> None:
    """`fastmq serve ... &` is run on free ports, everything else as it stands."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "FASTMQ_PORT": "0", "XDG_DATA_HOME": str(tmp_path)}
    ready_file = tmp_path / "ready"
    server: subprocess.Popen[bytes] | None = None
    try:
        for command, printed in commands(session):
            if command.endswith("&"):
                with open(ready_file, "wb") as ready:
                    server = subprocess.Popen(command.rstrip("& ").split(), stdout=ready, stderr=ready, env=environment)
                said = wait_until(lambda: re.search("^ready .*\n", ready_file.read_text(), re.MULTILINE)).group()
                assert re.sub(r"\d{4,5}", "N", said) == re.sub(r"\d{4,5}", "N", printed)
                environment["FASTMQ_URL"] = said.split()[1]
                continue
            done = subprocess.run(["sh", "-c", command], stdout=subprocess.PIPE, env=environment, text=True, timeout=30)
            assert done.stdout == printed, command
    finally:
        if server:
            server.send_signal(signal.SIGTERM)
            assert server.wait(5) == 0
