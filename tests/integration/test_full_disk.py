"""A disk that fails or is full, under a real broker: nothing confirmed is lost, what can go on does, and all of it when there is room."""

import os
import re
import resource
import signal
import subprocess
from pathlib import Path

import pytest
from checker import Load
from test_deaths import process
from test_durability import Kept
from waiting import wait_until

import fastmq
from fastmq.server import programs

MOUNT = 'mount -t tmpfs -o size=96m none "$0" && head -c 80m /dev/zero > "$0/ballast" && exec "$@"'
NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")


def test_worker_whose_write_fails_says_so_ends_and_the_next_one_has_everything_that_was_confirmed(tmp_path):
    with Kept(tmp_path / "data", 1) as place:
        load = Load(place.url, "load")
        for _ in range(3):
            wait_until(load.progressed(300), timeout=60, what="messages flow")
            with fastmq.connect(place.url, timeout=30) as mq:
                row = process(mq, "worker")
                _, hard = resource.prlimit(row["pid"], resource.RLIMIT_FSIZE)
                resource.prlimit(row["pid"], resource.RLIMIT_FSIZE, (4096, hard))       # what lies behind cannot be written: EFBIG
                wait_until(lambda before=row: (process(mq, "worker") or before)["pid"] not in (None, before["pid"]), what="another one runs")
        wait_until(load.progressed(300), timeout=60, what="messages flow again")
        load.stop_and_check()
        said = "worker 0: the log failed, and is recovered from what is on disk: .*File too large.*journal-"
        assert len(re.findall(said, place.broker.log_tail(100_000))) == 3


@pytest.fixture
def small_disk(run, tmp_path):
    """A broker whose data directory is on a file system of 96 MiB with room for 16, in a mount namespace of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run([*NAMESPACE, "sh", "-c", MOUNT, disk, "true"], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("no file system can be mounted here")
    command = programs.command("fastmq.server.supervisor", "workers=1", "port=0", "events_port=0", f"data_dir={disk}/data")
    with open(tmp_path / "said", "wb") as said:
        command = [*NAMESPACE, "sh", "-c", MOUNT, disk, *command]
        broker = subprocess.Popen(command, env=programs.environment(), stdout=subprocess.PIPE, stderr=said)
    try:
        broker.url = broker.stdout.readline().split()[1].decode()
        broker.ballast = Path(f"/proc/{broker.pid}/root{disk}/ballast")
        broker.said = tmp_path / "said"
        yield broker
    finally:
        broker.send_signal(signal.SIGTERM)
        broker.wait(10)
        broker.stdout.close()


def refusal(request, *arguments, **options) -> str:
    """The code with which a request is refused; empty: it is not."""
    try:
        request(*arguments, **options)
    except fastmq.PublishError as error:
        return error.failures[0].code
    except fastmq.Refused as error:
        return error.code
    return ""


@pytest.mark.needs("unshare", package="util-linux")
def test_full_disk_refuses_persistent_publishes_and_nothing_else_until_there_is_room(small_disk):
    with fastmq.connect(small_disk.url, timeout=30) as mq:
        mq.declare_queue("jobs")
        mq.declare_queue("old")
        confirmed = []

        def publish() -> str:
            body = os.urandom(4) + b"%d" % len(confirmed) * 1000
            mq.publish("jobs", body)
            code = refusal(mq.flush)
            if not code:
                confirmed.append(body)
            return code

        assert wait_until(publish, timeout=60, what="the disk is full", interval=0) == "disk-full"
        assert len(confirmed) > 100
        assert publish() == "disk-full"
        mq.publish("jobs", b"transient", persistent=False)
        mq.flush()
        got = [mq.get("jobs") for _ in range(100)]
        for message in got:
            message.ack()
        assert [message.body for message in got] == confirmed[:100]
        assert refusal(mq.declare_queue, "new") == "disk-full"
        assert refusal(mq.declare_queue, "brief", durable=False) == ""
        assert mq.delete_queue("old") == 0
        wait_until(lambda: b"has no room for the log" in small_disk.said.read_bytes(), what="it is said")
        small_disk.ballast.unlink()
        wait_until(lambda: not publish(), timeout=30, what="there is room")
        mq.declare_queue("new")
        rest = [mq.get("jobs").body for _ in range(len(confirmed) - 100 + 1)]
        assert sorted(rest) == sorted([*confirmed[100:], b"transient"])
        assert rest[0] == confirmed[100]
        wait_until(lambda: b"has room for the log again" in small_disk.said.read_bytes(), what="it is said")
