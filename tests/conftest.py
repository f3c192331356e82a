"""What every test gets: hypothesis profiles, skips that name a package, and in integration tests a check for leaks."""

import os
import signal
import tempfile
from collections.abc import Iterator

import needs
import pytest
from hypothesis import HealthCheck, settings
from leaks import Run

# A shell's background job, or nohup, ignores these, and what the tests start would inherit that: then nothing of it ends by Ctrl-C.
for _number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler)

LONG = os.environ.get("FASTMQ_LONG", "0") not in ("", "0")

# `max_examples` of a profile holds where a test does not set it; FASTMQ_EXAMPLES raises it for `make fuzz`.
_common = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow], "print_blob": True}
settings.register_profile("short", max_examples=int(os.environ.get("FASTMQ_EXAMPLES", "100")), **_common)
settings.register_profile("long", max_examples=int(os.environ.get("FASTMQ_EXAMPLES", "2000")), **_common)
settings.load_profile("long" if LONG else "short")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the tests marked `long` to `make test-long`."""
    if LONG:
        return
    long = [item for item in items if item.get_closest_marker("long")]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if not item.get_closest_marker("long")]


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        needs.need_program(marker.args[0], marker.kwargs.get("package", marker.args[-1]), item.nodeid)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List what was skipped for a missing program, with the package that has it."""
    if needs.missing:
        terminalreporter.section("skipped for want of a program")
        for reason, tests in needs.missing.items():
            terminalreporter.write_line(f"{reason}   ({len(tests)} tests, the first: {tests[0]})")


@pytest.fixture
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """The test's run; its teardown fails on a process, socket, shared-memory segment or temporary file that is left."""
    tmp_path_factory.getbasetemp()  # made now, and not in the run's folder, by the first test that asks for tmp_path
    this = Run()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTMQ_RUN_ID", this.id)
        patch.setenv("TMPDIR", this.folder)
        patch.setattr(tempfile, "tempdir", None)
        yield this
        left = this.finish()
    assert not left, "left behind by this test:\n  " + "\n  ".join(left)


@pytest.fixture(autouse=True)
def _leaves_nothing_behind(request: pytest.FixtureRequest) -> None:
    """Every integration test has a run, and so the check for leaks; it is set up first and so ends last."""
    if "integration" in request.path.parts:
        request.getfixturevalue("run")
