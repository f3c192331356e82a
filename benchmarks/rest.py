"""A broker with nothing to do: how soon it is ready, the memory of its processes, and what idle clients cost."""

import re
import subprocess
import sys
from functools import partial
from time import monotonic, sleep

from harness import Figures, Line, Load, Run, Stage, cpu_seconds, pss_bytes

import fastmq
from fastmq.cli.sides import LOADS, Side, Void, together

CLIENTS = 100
IDLE_S = 10.0
SETTLE_S = 0.5  # after the clients have connected


def at_rest(clients: int, seconds: float) -> Figures:
    """One `fastmq serve`, from its start to its end."""
    command = [sys.executable, "-m", "fastmq.cli", "serve", "--ephemeral", "--workers", "1", "--port", "0"]
    started = monotonic()
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        ready_s = monotonic() - started
        found = re.match(r"ready (\S+)", line)
        if not found:
            raise Void(f"the broker did not become ready: {line!r}")
        url = found.group(1)
        with fastmq.connect(url) as mq:
            pids = [process["pid"] for process in mq.status()["processes"]]
        sleep(SETTLE_S)
        pss = pss_bytes(pids)
        with together(Side(LOADS, "idle", url=url, clients=clients)):
            sleep(SETTLE_S)
            before = cpu_seconds(pids)
            sleep(seconds)
            cpu = cpu_seconds(pids) - before
    finally:
        server.terminate()
        server.communicate()
    return {"ready_s": ready_s, "pss_mb": pss / 1e6, "cpu_percent": cpu / seconds * 100}


def rest(stage: Stage) -> dict[str, Run]:
    return {"fastmq": partial(at_rest, stage.count(CLIENTS, 5), IDLE_S if stage.scale >= 1 else 0.5)}


LOADS_OF_REST = (
    Load(
        "rest", "at rest, one worker", rest,
        (
            Line("start to ready, s", "ready_s", bound=0.3, at_least=False),
            Line("memory (PSS), MB", "pss_mb", bound=50, at_least=False),
            Line(f"CPU with {CLIENTS} idle clients, % of a core", "cpu_percent", bound=0.5, at_least=False),
        ),
    ),
)  # fmt: skip
