"""A death exactly at each step of what makes things durable, under load: nothing confirmed is lost, nothing doubled, nothing out of order.

A list in a file says where each next worker dies (FASTMQ_FAILPOINT=@FILE); that as many died as the list had lines shows that each step was
reached. Steps that no worker under load reaches have tests of their own, and a test that none is forgotten.
"""

import json
import os
import random
import signal
import subprocess
import sys
import threading

import pytest
from checker import Load
from test_deaths import process
from test_durability import Kept
from waiting import wait_until

import fastmq
from fastmq.storage import failpoints
from fastmq.storage.file_log import FileLog
from fastmq.wire.shards import shard_of

LONG = bool(os.environ.get("FASTMQ_LONG"))
KILLS = {1: 300 if LONG else 16, 3: 700 if LONG else 34}        # by workers
HITS_MAX = {                    # of the steps that workers come to under load: at which time at most they die
    "before_write": 60, "mid_write": 60, "after_write_before_sync": 60, "after_sync_before_confirm": 60, "mid_roll": 1, "after_roll": 1,
    "before_ready": 1, "mid_trim": 1, "mid_extent": 2, "after_extent": 2, "mid_checkpoint": 2, "after_checkpoint_before_rename": 2,
    "after_rename_before_trim": 2,
}
TOPOLOGY_HITS_MAX = {"topology_appended": 20, "topology_durable": 20}     # and worker 0 alone
TAKE_OVER = ("mid_take_over", "before_move", "after_move")
RESTORE = ("before_restore", "after_restore")       # tests/integration/test_backup.py
RECYCLING = """
import sys
from fastmq.storage.file_log import FileLog
log = FileLog(sys.argv[1], segment_size=8192, needs_checkpoint=False)
log.open(1)
for n in range(200):
    log.add(1, b"%d" % n * 100)
    log.make_durable()
    print(log.durable, flush=True)
    log.trim(max(0, log.durable - 5))
"""


class Declares:
    """A thread that declares, binds and deletes durable queues, each request until its outcome is known."""

    def __init__(self, url: str) -> None:
        self.there: set[str] = set()
        self.gone: set[str] = set()
        self.errors: list[BaseException] = []
        self._finish = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(url,))
        self._thread.start()

    def _work(self, url: str) -> None:
        try:
            with fastmq.connect(url, timeout=30) as mq:
                mq.declare_exchange("declared", "direct")
                n = 0
                while not self._finish.wait(0.01):
                    name, old = f"declared{n}", f"declared{n - 5}"
                    self._until_known(mq.declare_queue, name)
                    self._until_known(mq.bind_queue, name, "declared", name)
                    self.there.add(name)
                    if old in self.there:
                        self._until_known(mq.delete_queue, old)
                        self.there.remove(old)
                        self.gone.add(old)
                    n += 1
        except BaseException as error:
            self.errors.append(error)

    def _until_known(self, request, *arguments) -> None:
        def known():
            try:
                request(*arguments)
            except (fastmq.UnknownOutcome, fastmq.Unavailable):
                return False
            return True

        wait_until(known, timeout=30, what="an outcome is known")

    def stop(self) -> None:
        self._finish.set()
        self._thread.join(60)
        assert not self._thread.is_alive() and not self.errors, self.errors

    def check(self, mq: fastmq.Client) -> None:
        """What was declared is there and bound, what was deleted is not."""
        for name in self.there:
            mq.publish(name, b"", exchange="declared", mandatory=True)
        mq.flush()
        assert {row["name"] for row in mq.status()["queues"] if row["name"].startswith("declared")} == self.there
        assert self.there
        assert self.gone


def queue_on(worker: int, workers: int) -> str:
    return next(f"load{i}" for i in range(1000) if shard_of("/", f"load{i}", 64) % workers == worker)


def restarts(mq: fastmq.Client) -> int:
    return sum(row["restarts"] for row in mq.status()["processes"] if row["role"] == "worker")


def deaths(rnd: random.Random, hits_max: dict[str, int], count: int) -> list[str]:
    """`count` lines of a list for FASTMQ_FAILPOINT, each failpoint about as often as any other, in any order."""
    names = [name for _ in range(count // len(hits_max) + 1) for name in rnd.sample(sorted(hits_max), len(hits_max))]
    return [f"{name}:{rnd.randint(1, hits_max[name])}" for name in names[:count]]


@pytest.mark.parametrize("workers", [1, 3])
def test_worker_that_dies_at_any_step_loses_doubles_and_disorders_nothing(tmp_path, monkeypatch, workers):
    seed = random.SystemRandom().randrange(1 << 32)
    print("seed", seed)
    lines = deaths(random.Random(seed), HITS_MAX | (TOPOLOGY_HITS_MAX if workers == 1 else {}), KILLS[workers])
    script = tmp_path / "deaths"
    script.write_text("")
    monkeypatch.setenv("FASTMQ_FAILPOINT", f"@{script}")
    with Kept(tmp_path / "data", workers, {"checkpoint_tail_size": 2**16}) as place:
        loads = [Load(place.url, queue_on(worker, workers)) for worker in range(workers)]
        declares = Declares(place.url)
        script.write_text("".join(line + "\n" for line in lines))
        with fastmq.connect(place.url, timeout=30) as mq:
            for worker in range(workers):
                os.kill(process(mq, "worker", worker)["pid"], signal.SIGKILL)       # from now on each life ends where the list says
            timeout = 60 + 4 * len(lines)       # who dies again and again is restarted after 2 s
            wait_until(lambda: restarts(mq) == workers + len(lines), timeout=timeout, what="every step was reached")
            assert script.read_text() == ""
        for load in loads:
            wait_until(load.progressed(300), timeout=60, what="messages flow again")
        declares.stop()
        for load in loads:
            load.stop_and_check()
        place.restart()
        with fastmq.connect(place.url) as mq:
            assert [mq.declare_queue(load.queue, passive=True).message_count for load in loads] == [0] * workers
            declares.check(mq)


@pytest.mark.parametrize("point", TAKE_OVER)
def test_death_while_another_number_of_workers_takes_over_keeps_everything_in_order(tmp_path, monkeypatch, point):
    with Kept(tmp_path / "data", 1) as place:
        queues = [f"q{n}" for n in range(6)]
        with fastmq.connect(place.url) as mq:
            for name in queues:
                mq.declare_queue(name)
            for n in range(300):
                mq.publish(queues[n % 6], b"%d" % n)
            mq.flush()
        place.broker.stop()
        monkeypatch.setenv("FASTMQ_FAILPOINT", point)
        with pytest.raises(fastmq.BrokerFailed) as died:
            fastmq.Broker(workers=3, data_dir=place.data_dir)
        if point == "mid_take_over":                        # a worker's; the others are the supervisor's own, which nobody sees die
            assert "was killed by SIGKILL before the broker was ready" in str(died.value)
        assert json.loads((place.data_dir / "broker.json").read_bytes())["workers"] == (3 if point == "after_move" else 1)
        monkeypatch.delenv("FASTMQ_FAILPOINT")
        place.workers = 2
        place.start()
        with fastmq.connect(place.url) as mq:
            for at, name in enumerate(queues):
                for n in range(at, 300, 6):
                    with mq.get(name) as message:
                        assert message.body == b"%d" % n
                assert mq.get(name) is None


def test_death_while_a_segment_is_recycled_loses_nothing_that_was_durable(tmp_path):
    folder = str(tmp_path / "log")
    for hits in range(1, 6):
        command = [sys.executable, "-c", RECYCLING, folder]
        done = subprocess.run(command, env={**os.environ, "FASTMQ_FAILPOINT": f"mid_recycle:{hits}"}, stdout=subprocess.PIPE)
        assert done.returncode == -signal.SIGKILL
        told = int(done.stdout.split()[-1])
        log = FileLog(folder, segment_size=8192, needs_checkpoint=False)
        assert log.open(2) >= told
        found = [(position, body) for position, _, body in log.read()]
        assert [position for position, _ in found] == list(range(log.first, log.durable + 1))
        assert log.first <= told - 5 + 1
        assert all(body == b"%d" % (position - 1) * 100 for position, body in found)
        log.close()
        for name in os.listdir(folder):
            os.unlink(os.path.join(folder, name))


def test_no_failpoint_is_forgotten():
    assert sorted([*HITS_MAX, *TOPOLOGY_HITS_MAX, *TAKE_OVER, *RESTORE, "mid_recycle"]) == sorted(failpoints.NAMES)
    assert len(failpoints.NAMES) == failpoints.COUNT
