"""The benchmarks run, and their checks can fail. What they measure is measured by `make bench`."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SIZE = 128


def harness(expression: str) -> subprocess.CompletedProcess[str]:
    """Evaluate an expression where `from harness import *` was said, as the benchmarks do."""
    program = f"from harness import *; got = payloads(10, {SIZE}); print({expression})"
    return subprocess.run([sys.executable, "-c", program], cwd=BENCHMARKS, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("received", "told"),
    [
        ("got", ""),
        ("got[:4] + got[5:]", "1 of 10 messages were lost"),
        ("got + got[3:4]", "message 3 came twice"),
        ("got[:9] + [got[9][:-1] + b'!']", "message 9 came with another body"),
        ("[]", "10 of 10 messages were lost"),
    ],
)
def test_message_lost_doubled_or_changed_makes_a_run_void(received: str, told: str) -> None:
    done = harness(f"check_exactly_once({received}, 10, {SIZE})")
    assert told in done.stderr
    assert (done.returncode == 0) == (told == "")


def test_messages_out_of_order_are_counted() -> None:
    assert harness(f"check_exactly_once(got[5:] + got[:5], 10, {SIZE})").stdout == "{'disordered': 1}\n"


@pytest.mark.needs("redis-server", package="redis-server")
@pytest.mark.parametrize("line", ["queue", "pingpong", "spread"])
def test_smoke_figure_is_measured_and_compared(line: str) -> None:
    """So few messages say nothing about speed: only that each came once, and that the ratio decides the exit status."""
    command = [sys.executable, str(BENCHMARKS / "smoke.py"), line, "--rounds", "1", "--messages", "2000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert "Traceback" not in done.stderr
    assert "void" not in done.stdout
    verdict = done.stdout.splitlines()[-1]
    assert verdict.startswith(f"{line:9} ratio of ")
    assert verdict.endswith((": kept", ": MISSED"))
    assert done.returncode == (0 if verdict.endswith("kept") else 1)


def test_unknown_line_is_wrong_usage() -> None:
    done = subprocess.run([sys.executable, str(BENCHMARKS / "smoke.py"), "speed"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "speed" in done.stderr
