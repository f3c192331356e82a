"""Each role killed with SIGKILL twenty times under load: what is kept, what may be lost, and that the broker goes on."""

import os
import signal
import statistics
import subprocess
import sys
import time

import pytest
from checker import Load
from waiting import wait_until

import fastmq
from fastmq.wire.shards import shard_of

KILLS = 20
WORKERS = 2


def process(mq, role, index=0):
    """The row of one process in the broker's status, or None while it is down."""
    return next((row for row in mq.status()["processes"] if (row["role"], row["index"]) == (role, index)), None)


def kill(url, role, index=0):
    """SIGKILL one process and wait until another one runs in its place."""
    with fastmq.connect(url, timeout=30) as mq:
        row = wait_until(lambda: process(mq, role, index), what=f"{role} {index} runs")
        os.kill(row["pid"], signal.SIGKILL)

        def again():
            now = process(mq, role, index)
            return now and now["pid"] not in (None, row["pid"]) and now["restarts"] == row["restarts"] + 1

        wait_until(again, timeout=30, what=f"{role} {index} is restarted")


def queue_on(worker, name):
    """A queue name, beginning with `name`, whose shard the worker owns."""
    return next(f"{name}{i}" for i in range(1000) if shard_of("/", f"{name}{i}", 64) % WORKERS == worker)


@pytest.fixture
def broker(run):
    with fastmq.Broker(workers=WORKERS) as broker:
        yield broker


def test_front_end_killed_under_load_loses_no_queued_message_and_no_topology(broker):
    with fastmq.connect(broker.url) as mq:
        mq.declare_exchange("logs", "topic")
        mq.declare_queue("waiting", durable=False)
        mq.bind_queue("waiting", "logs", "*.error")
        for n in range(500):
            mq.publish("app.error", b"waiting:%d" % n, exchange="logs", persistent=False)
        mq.flush()
    loads = [Load(broker.url, queue_on(worker, "load")) for worker in range(WORKERS)]
    for _ in range(KILLS):
        kill(broker.url, "frontend")
        for load in loads:
            wait_until(load.progressed(), timeout=30, what="messages flow again")
    for load in loads:
        load.stop()
        print(load.checker)
        assert load.checker.attempted == load.checker.confirmed == set(load.checker.delivered)
        assert not load.checker.duplicated and not load.checker.out_of_order
    with fastmq.connect(broker.url) as mq:
        assert [mq.get("waiting").body for _ in range(500)] == [b"waiting:%d" % n for n in range(500)]
        mq.publish("db.error", b"routed", exchange="logs")
        assert mq.get("waiting", timeout=5).body == b"routed"


@pytest.mark.parametrize("victim", range(WORKERS))
def test_worker_killed_under_load_harms_its_own_queues_only(broker, victim):
    with fastmq.connect(broker.url) as mq:
        mq.declare_exchange("logs", "topic")
        for worker in range(WORKERS):
            mq.declare_queue(queue_on(worker, "bound"))
            mq.bind_queue(queue_on(worker, "bound"), "logs", "#")
    loads = [Load(broker.url, queue_on(worker, "load")) for worker in range(WORKERS)]
    by_last_kill = set()
    for _ in range(KILLS):
        kill(broker.url, "worker", victim)
        by_last_kill = set(loads[victim].checker.attempted)
        for load in loads:
            wait_until(load.progressed(), timeout=30, what="messages flow again")
    for load in loads:
        load.stop()
        print(load.checker)
        assert not load.checker.unexpected and load.checker.attempted == load.checker.confirmed
    other = loads[1 - victim].checker
    assert not other.lost and not other.duplicated and not other.out_of_order
    assert not loads[victim].checker.lost - by_last_kill
    with fastmq.connect(broker.url) as mq:
        mq.publish("a.b", b"after", exchange="logs")
        mq.flush()
        for worker in range(WORKERS):
            assert mq.get(queue_on(worker, "bound"), timeout=5).body == b"after"


def test_worker_death_gives_its_queues_back_empty_with_bindings_and_consumers(broker):
    with fastmq.connect(broker.url) as mq:
        mq.declare_exchange("orders", "direct")
        for worker in range(WORKERS):
            mq.declare_queue(queue_on(worker, "q"))
            mq.bind_queue(queue_on(worker, "q"), "orders", "new")
        kept, emptied = queue_on(1, "q"), queue_on(0, "q")
        for _ in range(10):
            mq.publish("new", b"before", exchange="orders")
        mq.flush()
        with mq.consume(emptied, prefetch=1, timeout=10) as consumer:
            held = next(consumer)
            kill(broker.url, "worker", 0)
            assert mq.declare_queue(kept, passive=True).message_count == 10
            mq.publish("new", b"after", exchange="orders")
            assert next(consumer).body == b"after"
            held.ack()                                  # of a worker that is no more: it does nothing, and harms nothing
        assert mq.declare_queue(emptied, passive=True).message_count <= 1


def test_front_end_and_worker_0_killed_at_once_the_broker_goes_on(broker):
    with fastmq.connect(broker.url, timeout=30) as mq:
        rows = mq.status()["processes"]
        for row in rows:
            if row["role"] == "frontend" or (row["role"], row["index"]) == ("worker", 0):
                os.kill(row["pid"], signal.SIGKILL)
        mq.declare_queue("again")
        mq.publish("again", b"x")
        mq.flush(30)
        assert mq.get("again", timeout=5).body == b"x"


HOLDER = """
import sys, fastmq
mq = fastmq.connect(sys.argv[1])
consumer = mq.consume("jobs", prefetch=50)
held = [next(consumer) for _ in range(50)]
print("holding", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("transport", ["url", "unix_url"])
def test_killed_consumer_gives_its_messages_back_within_100_ms(broker, transport):
    times = []
    with fastmq.connect(broker.url) as mq:
        mq.declare_queue("jobs")
        for _ in range(5):
            for n in range(50):
                mq.publish("jobs", b"%d" % n)
            mq.flush()
            holder = subprocess.Popen([sys.executable, "-c", HOLDER, getattr(broker, transport)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            assert holder.stdout.readline() == b"holding\n"
            assert mq.get("jobs") is None
            killed = time.monotonic()
            holder.kill()
            bodies = []
            for message in mq.consume("jobs", timeout=5):
                with message:
                    if not bodies:
                        times.append(time.monotonic() - killed)
                    assert message.redelivered and message.delivery_count == 2
                    bodies.append(message.body)
                if len(bodies) == 50:
                    break
            assert bodies == [b"%d" % n for n in range(50)]
            holder.communicate()
    assert statistics.median(times) < 0.1, times
