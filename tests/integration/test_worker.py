"""A worker's process by itself: the test is its supervisor, and its front-end on a link in shared memory."""

import os
import select
import subprocess
import sys

import msgpack
import psutil
import pytest
from leaks import processes_of
from stand_in import EPOCH, StandIn, parse, record
from waiting import wait_until

from fastmq.config import Config
from fastmq.net.arena import make_arena_fd
from fastmq.net.ring import Link, make_link_fds
from fastmq.server import programs
from fastmq.server.control import Control
from fastmq.wire.link import LinkKind, QueueFlag

PUBLISHER, CONSUMER = 11, 22


class WorkerProcess:
    """Worker 0 of two shards, without shard T, linked to one front-end."""

    def __init__(self, **start):
        self.control, theirs = Control.pair()
        with theirs:
            self.process = subprocess.Popen(
                programs.command("fastmq.server.worker", str(theirs.fileno())), env=programs.environment(), pass_fds=(theirs.fileno(),)
            )
        fields = {"op": "start", "index": 1, "epoch": EPOCH, "supervisor": os.getpid(), "workers": 2, "shards": 2, "map": [1, 1],
                  "settings": Config().to_map(), "frontends": [], "log": "", "old_logs": []}
        self.control.send({**fields, **start}, (make_arena_fd(4096),))     # too small for a region: all goes through the ring
        assert self.control.wait() == ({"op": "ready"}, [])

    def link(self, ring_size=65536):
        """A fresh link as front-end 0."""
        memory, own, other = make_link_fds(ring_size)
        link = Link.open(memory, own, other, False)
        self.bells = (own, other)
        self.control.send({"op": "link", "frontend": 0, "epoch": 1}, (memory, os.dup(other), os.dup(own)))
        return link

    def end(self):
        self.control.close()
        self.process.wait(10)
        for bell in getattr(self, "bells", ()):
            os.close(bell)


class Frontend(StandIn):
    """The stand-in, at the link of a process."""

    def __init__(self, link):
        self.link = link

    def wait_for(self, kind, timeout=5):
        """The next message of this kind, sleeping as a front-end sleeps."""
        while True:
            self.link.flush_waiting()
            while (message := self.link.receive_message()) is not None:
                if message[0] == kind:
                    return parse(kind, message[2])
            self.link.ring_other()              # for what was written, and for the room that reading made
            if self.link.may_sleep():
                assert select.select([self.link.own_bell], [], [], timeout)[0], f"no {kind!r} in time"
            self.link.wake_up()


@pytest.fixture
def worker():
    this = WorkerProcess()
    yield this
    this.end()


@pytest.fixture
def frontend(worker):
    this = Frontend(worker.link())
    this.declare(0, 100)
    return this


def test_message_goes_through_and_everybody_sleeps_in_between(worker, frontend):
    frontend.consume(0, 100, CONSUMER)
    for seq in range(1, 200):
        frontend.publish(PUBLISHER, seq, [(seq, [100], 0, [record("k", b"%d" % seq)])])
        assert frontend.wait_for(LinkKind.L_DELIVER).records == [["k", None, b"%d" % seq]]
        frontend.settle(0, CONSUMER, [(seq, seq)])


def test_idle_worker_uses_no_time(worker, frontend):
    frontend.publish(PUBLISHER, 1, [(1, [100], 0, [record("k", b"x")])])
    frontend.wait_for(LinkKind.L_OUTCOME)
    process = psutil.Process(worker.process.pid)
    before = sum(process.cpu_times()[:2])
    assert select.select([worker.control], [], [], 1)[0] == []
    assert sum(process.cpu_times()[:2]) - before < 0.1


def test_body_larger_than_the_ring_passes_both_ways(worker, frontend):
    frontend.consume(0, 100, CONSUMER)
    frontend.publish(PUBLISHER, 1, [(1, [100], 0, [record("k", b"y" * 3_000_000)])])
    assert frontend.wait_for(LinkKind.L_DELIVER).records[0][2] == b"y" * 3_000_000


def test_drain_handles_what_lies_in_the_link(worker, frontend):
    for seq in range(1, 100):
        frontend.publish(PUBLISHER, seq, [(seq, [100], 0, [record("k", b"x")])])
    worker.control.send({"op": "drain"})
    assert worker.control.wait() == ({"op": "drained"}, [])
    while frontend.wait_for(LinkKind.L_OUTCOME).held[-1][1] < 99:
        pass
    worker.control.send({"op": "stop"})
    assert worker.process.wait(2) == 0


def test_fresh_link_takes_the_place_of_the_old_one(worker, frontend):
    frontend.publish(PUBLISHER, 1, [(1, [100], 0, [record("k", b"kept")])])
    frontend.wait_for(LinkKind.L_OUTCOME)
    for bell in worker.bells:
        os.close(bell)
    worker.control.send({"op": "unlink", "frontend": 0})
    again = Frontend(worker.link())
    again.consume(0, 100, CONSUMER)
    assert again.wait_for(LinkKind.L_DELIVER).records == [["k", None, b"kept"]]


def test_shard_t_waits_for_the_front_end_that_was_alive_when_its_worker_began():
    worker = WorkerProcess(index=0, map=[0, 1], frontends=[0])
    frontend = Frontend(worker.link())
    number, _ = msgpack.unpackb(frontend.wait_for(LinkKind.L_SNAPSHOT))
    assert number == 0, "it would be taken over by the front-end, which knows more"
    known = [5 << 32, [[(5 << 32) + 1, 3, "/", "jobs", QueueFlag.QUEUE_DURABLE, 0, 0]]]
    frontend.hand_back(known)
    number, records = msgpack.unpackb(frontend.wait_for(LinkKind.L_SNAPSHOT))
    assert number == EPOCH << 32
    assert known[1][0] in records
    worker.end()


def test_worker_ends_when_its_control_socket_ends(worker, run):
    worker.control.close()
    assert worker.process.wait(2) == 1
    assert not processes_of(run.id)


def test_worker_whose_supervisor_is_another_process_ends():
    control, theirs = Control.pair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "fastmq.server.worker", str(theirs.fileno())], pass_fds=(theirs.fileno(),), stderr=subprocess.DEVNULL
        )
    control.send({"op": "start", "index": 0, "supervisor": 1}, (make_arena_fd(4096),))
    wait_until(lambda: process.poll() is not None)
    assert process.returncode == 1
    control.close()
