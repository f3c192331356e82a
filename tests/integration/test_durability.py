"""With a data directory: what was confirmed durable survives every death, once and in order, and what is not durable does not."""

import os
import random
import signal
import time

import pytest
from checker import Load
from test_deaths import kill
from waiting import wait_until

import fastmq
from fastmq.errors import BrokerFailed


class Kept:
    """A broker on a data directory and a port of its own, which can be killed as a whole and started again."""

    def __init__(self, data_dir, workers: int, settings: dict | None = None) -> None:
        self.data_dir, self.workers, self.port, self.settings = data_dir, workers, 0, settings or {}
        self.broker = None
        self.start()

    def start(self) -> None:
        self.broker = wait_until(self._started, timeout=30, what="the broker starts")
        self.url = self.broker.url
        self.port = int(self.url.rpartition(":")[2])

    def _started(self):
        try:
            return fastmq.Broker(workers=self.workers, data_dir=self.data_dir, port=self.port, events_port=0, **self.settings)
        except BrokerFailed as error:
            if "in use" in str(error):                  # the one before is still ending
                return None
            raise

    def kill(self) -> None:
        """SIGKILL the supervisor: nobody is left to do anything in an orderly way."""
        os.kill(self.broker.pid, signal.SIGKILL)
        wait_until(lambda: not self.broker.running, what="the supervisor is gone")
        self.broker.stop()

    def restart(self, workers: int | None = None) -> None:
        self.broker.stop()
        self.workers = workers or self.workers
        self.start()

    def __enter__(self) -> "Kept":
        return self

    def __exit__(self, *error: object) -> None:
        self.broker.stop()


@pytest.fixture
def kept(run, tmp_path):
    made = []

    def make(workers: int = 1, **settings) -> Kept:
        made.append(Kept(tmp_path / "data", workers, settings))
        return made[-1]

    yield make
    for one in made:
        one.broker.stop()


KILLS = 17 if not os.environ.get("FASTMQ_LONG") else 340


@pytest.mark.parametrize("victim", ["worker", "frontend", "broker"])
@pytest.mark.parametrize("workers", [1, 3])
def test_killed_under_load_nothing_confirmed_is_lost_nothing_is_doubled_and_order_is_kept(kept, workers, victim):
    place = kept(workers, checkpoint_tail_size=2**18)       # many checkpoints
    loads = [Load(place.url, f"load{n}") for n in range(2)]
    rnd = random.Random(workers)
    for load in loads:
        wait_until(load.progressed(1), what="messages flow")
    for _ in range(KILLS // 2 if victim == "broker" else KILLS):
        if victim == "broker":
            place.kill()
            place.start()
        else:
            kill(place.url, victim, rnd.randrange(workers) if victim == "worker" else 0)
        for load in loads:
            wait_until(load.progressed(300), timeout=60, what="messages flow again")
    for load in loads:
        load.stop_and_check()
    place.restart()
    with fastmq.connect(place.url) as mq:
        assert [mq.declare_queue(load.queue, passive=True).message_count for load in loads] == [0, 0]


def test_topology_messages_properties_and_counts_survive_a_restart_and_what_is_not_durable_does_not(kept):
    place = kept()
    with fastmq.connect(place.url) as mq:
        mq.declare_exchange("logs", "topic")
        mq.declare_exchange("brief", "fanout", durable=False)
        mq.declare_queue("errors")
        mq.declare_queue("brief", durable=False)
        mq.declare_queue("mine", exclusive=True)
        mq.bind_queue("errors", "logs", "*.error")
        mq.bind_queue("errors", "brief", "")
        mq.publish("app.error", b"first", exchange="logs", headers={"n": 1}, message_id="m1", priority=3, content_type="text/plain")
        mq.publish("errors", b"transient", persistent=False)
        mq.publish("errors", b"second")
        mq.publish("errors", b"x" * 300_000)
        mq.publish("brief", b"gone")
        mq.flush()
        first = mq.get("errors")
        first.nack()
        again = mq.get("errors")
        assert again.delivery_count == 2
        again.nack()
    place.restart()
    with fastmq.connect(place.url) as mq:
        messages = [mq.get("errors") for _ in range(3)]
        assert [message.body[:20] for message in messages] == [b"first", b"second", b"x" * 20]
        assert (messages[0].headers, messages[0].message_id, messages[0].priority) == ({"n": 1}, "m1", 3)
        assert (messages[0].exchange, messages[0].routing_key, messages[0].content_type) == ("logs", "app.error", "text/plain")
        assert [message.delivery_count for message in messages] == [3, 1, 1]
        assert mq.get("errors") is None
        for name in ("brief", "mine"):
            with pytest.raises(fastmq.NotFound):
                mq.declare_queue(name, passive=True)
        mq.publish("db.error", b"bound still", exchange="logs")
        assert mq.get("errors", timeout=5).body == b"bound still"


def test_deleted_and_purged_stay_so(kept):
    place = kept()
    with fastmq.connect(place.url) as mq:
        for name in ("deleted", "purged", "left"):
            mq.declare_queue(name)
            for n in range(100):
                mq.publish(name, b"%d" % n)
        mq.flush()
        assert mq.delete_queue("deleted") == 100
        assert mq.purge_queue("purged") == 100
        mq.publish("purged", b"after")
        mq.flush()
    place.kill()
    place.start()
    with fastmq.connect(place.url) as mq:
        with pytest.raises(fastmq.NotFound):
            mq.declare_queue("deleted", passive=True)
        assert mq.get("purged").body == b"after"
        assert mq.declare_queue("left", passive=True).message_count == 100


def test_another_number_of_workers_keeps_everything_in_order(kept):
    place = kept(1, checkpoint_tail_size=2**16)
    queues = [f"q{n}" for n in range(8)]
    with fastmq.connect(place.url) as mq:
        for name in queues:
            mq.declare_queue(name)
        for n in range(400):
            mq.publish(queues[n % 8], b"%d" % n)
        mq.flush()
        mq.declare_queue("aside")
        for _ in range(20):
            mq.publish("aside", b"x" * 10_000)                  # checkpoints come of it, and extents
            mq.flush()
        assert mq.purge_queue("aside") == 20
    taken = 0
    for workers in (3, 2, 1):
        place.restart(workers)
        with fastmq.connect(place.url) as mq:
            for _ in range(10):
                for at, name in enumerate(queues):
                    with mq.get(name) as message:
                        assert message.body == b"%d" % (at + 8 * taken)
                taken += 1
            wait_until(lambda: sum(row["messages_unacknowledged"] for row in mq.status()["queues"]) == 0, what="all are settled")


def test_backlog_larger_than_the_memory_mark_fills_and_drains_in_order_beside_a_short_queue(kept):
    place = kept(1, memory_mark=2**21, checkpoint_tail_size=2**22)
    count = 100_000
    with fastmq.connect(place.url) as mq:
        mq.declare_queue("long")
        mq.declare_queue("short")
        for n in range(count):
            mq.publish("long", b"%0128d" % n)
            if n % 1000 == 0:
                mq.publish("short", b"%d" % n)
                mq.flush(60)
                with mq.get("short", timeout=5) as message:
                    assert message.body == b"%d" % n
        mq.flush(60)
    place.kill()
    place.start()
    with fastmq.connect(place.url) as mq:
        assert mq.declare_queue("long", passive=True).message_count == count
        with mq.consume("long", prefetch=2000, timeout=10) as consumer:
            for n in range(count):
                with next(consumer) as message:
                    assert message.body == b"%0128d" % n
        wait_until(lambda: not any(row["messages_unacknowledged"] for row in mq.status()["queues"]), what="all are settled")
        assert mq.declare_queue("long", passive=True).message_count == 0


def test_files_of_a_queue_that_stays_short_stay_few(kept, tmp_path):
    place = kept(1, checkpoint_tail_size=2**20)
    wave = 2000 * 1200                      # bytes: what waits at most, with what the log adds to a message
    with fastmq.connect(place.url) as mq:
        mq.declare_queue("jobs")
        journals, extents = [], []
        for _ in range(48):                 # 100 MB, and checkpoints all along
            for _ in range(2000):
                mq.publish("jobs", b"x" * 1000)
            mq.flush(30)
            with mq.consume("jobs", prefetch=2000, timeout=10) as consumer:
                for _ in range(2000):
                    next(consumer).ack()
            sizes = {file.name: file.stat().st_blocks * 512 for file in (tmp_path / "data").rglob("*") if file.is_file()}
            extents.append(sizes.pop("extents", 0))
            journals.append(sum(sizes.values()))
    assert max(journals) < 3 * 2**26, journals                      # a segment that is written, one in reserve, less than another
    assert max(journals[36:]) <= max(journals[:36]) + 2**20, journals
    assert 0 < max(extents) < 3 * wave, extents                     # of the last checkpoint and the next, and room between them


def test_client_goes_on_across_a_restart_of_the_whole_broker(kept):
    place = kept()
    with fastmq.connect(place.url, timeout=30) as mq:
        mq.declare_queue("jobs")
        sequences = [mq.publish("jobs", b"%d" % n) for n in range(50)]
        place.kill()
        sequences += [mq.publish("jobs", b"%d" % n) for n in range(50, 100)]
        place.start()
        mq.flush(30)
        assert sequences == list(range(1, 101))
        bodies = []
        for message in mq.consume("jobs", timeout=1):
            with message:
                bodies.append(message.body)
        assert bodies == [b"%d" % n for n in range(100)]


def test_second_broker_on_a_directory_is_refused_naming_the_first(kept):
    place = kept()
    with pytest.raises(BrokerFailed) as refused:
        fastmq.Broker(workers=1, data_dir=place.data_dir)
    assert f"pid {place.broker.pid}" in str(refused.value)
    assert place.url in str(refused.value)


def test_stopped_broker_says_which_messages_were_never_delivered(kept):
    place = kept()
    with fastmq.connect(place.url) as mq:
        mq.declare_queue("jobs")
        for n in range(100):
            mq.publish("jobs", b"%d" % n)
        mq.flush()
        with mq.consume("jobs", prefetch=10) as consumer:
            seen = [next(consumer).body for _ in range(3)]
    place.restart()
    with fastmq.connect(place.url) as mq:
        found = [mq.get("jobs") for _ in range(100)]
    assert [message.body for message in found] == [b"%d" % n for n in range(100)]
    assert [message.redelivered for message in found[:3]] == [True] * 3
    assert not any(message.redelivered for message in found[50:])
    assert seen == [b"0", b"1", b"2"]


def test_chain_of_one_message_at_a_time_never_waits_for_a_tick(tmp_path):
    """The consumer publishes the next message, then acknowledges: what the log has by then must be delivered at once, not a second later."""
    slow, last = 0, time.monotonic()
    with fastmq.Broker(workers=1, data_dir=tmp_path / "data") as broker, fastmq.connect(broker.url) as mq:
        mq.declare_queue("chain")
        mq.publish("chain", b"0")
        mq.flush()
        with mq.consume("chain", prefetch=1) as messages:
            for number, message in zip(range(1, 151), messages, strict=False):
                now = time.monotonic()
                slow += now - last > 0.8
                last = now
                mq.publish("chain", b"%d" % number)
                message.ack()
    assert slow < 3, f"{slow} of 150 deliveries took 0.8 s or more"
