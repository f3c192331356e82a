"""The benchmarks run, and their checks can fail. What they measure is measured by `make bench`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import wait_until

import fastmq
from fastmq.cli.messages import check_together, payloads
from fastmq.cli.sides import LOADS, Side, Void, together

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SIZE = 128


def bench(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / "bench.py"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100)


@pytest.mark.parametrize(
    "load",
    [
        *(
            pytest.param(name, marks=pytest.mark.needs("redis-server", package="redis-server"))
            for name in ("queue", "streams", "queue-16k", "pingpong", "pingpong-unix", "pubsub-4", "durable", "durable-8", "durable-one")
        ),
        "spread", "route", "large", "beside", "clients", "depth", "memory", "rest", "durable-queue", "durable-256k", "recovery",
        "recovery-tail", "disk", "beside-recovery", "beside-disk", "backlog",
    ],
)  # fmt: skip
def test_load_is_measured_and_its_bounds_decide_the_exit_status(load: str, tmp_path: Path) -> None:
    """So little says nothing about speed: only that each message came once, and that what is told agrees."""
    done = bench(tmp_path, load, "--rounds", "1", "--scale", "0.001")
    assert "Traceback" not in done.stderr
    found = json.loads((tmp_path / "bench.json").read_text())["loads"][load]
    assert "void" not in found, found
    assert "missing" not in found, found
    assert all(len(runs) == 1 for runs in found["runs"].values())
    kept = [line["kept"] for line in found["lines"] if line["bound"] is not None]
    assert done.stdout.count("MISSED") == kept.count(False)
    assert done.stdout.count("kept") == kept.count(True)
    assert done.returncode == (0 if all(kept) else 1)


def made_up(folder: Path, run: str, line: str) -> subprocess.CompletedProcess[str]:
    """bench.py with one load only, whose runs are `run`, an expression, and which has one line."""
    program = f"""if True:
        import sys
        import bench
        from harness import FastMQ, Line, Load, Missing, Result, Stage, Void
        def run(): return {run}
        def fail(error): raise error
        bench.LOADS = (Load("made-up", "a load", lambda stage: dict(ours=run, theirs=lambda: dict(speed=100.0)), ({line},)),)
        sys.exit(bench.main())
    """
    environment = {**os.environ, "PYTHONPATH": str(BENCHMARKS)}
    return subprocess.run([sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("run", "line", "status", "told"),
    [
        ("dict(speed=150.0)", "Line('speed', 'speed', 'ours', ('theirs',), 1.5)", 0, "kept"),
        ("dict(speed=149.0)", "Line('speed', 'speed', 'ours', ('theirs',), 1.5)", 1, "MISSED"),
        ("dict(speed=81.0)", "Line('time', 'speed', 'ours', ('theirs',), 0.8, at_least=False)", 1, "MISSED"),
        ("dict(speed=80.0)", "Line('time', 'speed', 'ours', ('theirs',), 0.8, at_least=False)", 0, "kept"),
        ("dict(speed=149.0)", "Line('speed', 'speed', 'ours', bound=150)", 1, "MISSED"),
        ("dict(speed=1.0)", "Line('speed', 'speed', 'ours', ('theirs',))", 0, "0.01"),
        ("fail(Void('one message was lost'))", "Line('speed', 'speed', 'ours', bound=1)", 1, "void: ours: one message was lost"),
        ("fail(bench.FastMQError('no broker'))", "Line('speed', 'speed', 'ours')", 1, "void: no broker"),
        ("fail(Missing('install it'))", "Line('speed', 'speed', 'ours', bound=1)", 2, "not measured: install it"),
        ("fail(Missing('install it'))", "Line('speed', 'speed', 'ours')", 0, "not measured: install it"),
    ],
)  # fmt: skip
def test_bound_and_void_run_decide_the_exit_status(run: str, line: str, status: int, told: str, tmp_path: Path) -> None:
    done = made_up(tmp_path, run, line)
    assert done.returncode == status, done.stderr
    assert told in done.stdout
    assert json.loads((tmp_path / "bench.json").read_text())["machine"]["cores"] >= 1


def test_unknown_load_is_wrong_usage(tmp_path: Path) -> None:
    done = bench(tmp_path, "speed")
    assert done.returncode == 2
    assert "speed" in done.stderr


def test_list_names_loads_and_bounds_and_runs_nothing(tmp_path: Path) -> None:
    done = bench(tmp_path, "--list")
    assert done.returncode == 0
    assert "Redis lists in bulk, at least 1.6" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("published", "told"),
    [
        ([(0, 100)], ""),
        ([(0, 99)], "1 of 100 messages were lost"),
        ([(0, 99), (50, 1)], "message 50 came twice"),
        ([(0, 99), (777, 1)], "was not sent"),
    ],
)
def test_consumer_fails_unless_each_message_came_once(published: list[tuple[int, int]], told: str) -> None:
    with fastmq.Broker(workers=1) as broker, fastmq.connect(broker.url) as mq:
        mq.declare_queue("checked")
        for first, count in published:
            for body in payloads(count, SIZE, first):
                mq.publish("checked", body)
        mq.flush()
        consumer = Side(LOADS, "consumer", url=broker.url, queue="checked", count=100, size=SIZE, prefetch=10, shared=True)
        with together(consumer):
            wait_until(lambda: mq.declare_queue("checked", passive=True).message_count == 0)
            said = outcome(consumer)
    assert told in said
    assert bool(said) == bool(told)


def outcome(*consumers: Side) -> str:
    """What is wrong with what they received between them; empty if nothing is."""
    try:
        check_together([consumer.finish()["seen"] for consumer in consumers], 100)
    except Void as reason:
        return str(reason)
    return ""
