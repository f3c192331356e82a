"""When a worker ticks: not before it has handled what came while it stood still."""
from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from fastmq.server import worker as module
from fastmq.server.worker import IDLE_TICK_NS, LATE_NS, TICK_NS, Worker


@pytest.mark.parametrize(("stall_ns", "ticks_at_once"), [(0, True), (LATE_NS // 2, True), (2 * LATE_NS, False), (30 * 10**9, False)])
def test_worker_that_stood_still_handles_what_has_come_before_it_ticks(monkeypatch: Any, stall_ns: int, ticks_at_once: bool) -> None:
    clock = SimpleNamespace(ns=10**12)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic_ns=lambda: clock.ns))
    ticks: list[int] = []
    worker: Any = object.__new__(Worker)
    stall_end = 0

    def work(tick_at_ns: int, *, until_idle: bool, soon_ns: int) -> bool:
        """Sleep until the tick; the second sleep is too long."""
        nonlocal stall_end
        if len(ticks) == 1 and not stall_end:
            clock.ns = stall_end = tick_at_ns + stall_ns
        elif ticks:
            clock.ns = max(clock.ns, tick_at_ns)
            worker._stopped = True
        return False

    worker._loop = SimpleNamespace(work=work)
    worker._workshop = SimpleNamespace(tick=ticks.append, rest=lambda: None)
    worker._control = SimpleNamespace(send=lambda _: None)
    worker._draining = worker._drained = worker._stopped = False
    for name in ("_look_at_bells", "_hear", "_rest", "_tell_full"):
        setattr(worker, name, lambda: None)
    worker.run()
    assert ticks[0] == 10**12 and stall_end == 10**12 + IDLE_TICK_NS + stall_ns
    assert ticks[1] == (stall_end if ticks_at_once else stall_end + TICK_NS)
