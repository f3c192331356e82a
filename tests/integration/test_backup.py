"""`fastmq backup` and `fastmq restore`: beside a running broker and without one, whole or not at all."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from checker import Load
from test_deaths import process
from test_durability import Kept
from test_failpoints import queue_on
from waiting import wait_until

import fastmq
from fastmq.errors import BadArgument, BrokerFailed, FastMQError
from fastmq.server import restore_port
from fastmq.server.backup import back_up
from fastmq.server.restore import restore

SETTINGS = {"checkpoint_tail_size": 2**16, "memory_mark": 2**20}        # many checkpoints, and extents
MOUNT = 'mount -t tmpfs -o size=300k none "$0" && "$@"; echo "status $?"; ls "$0"'
NOBODY = 65534
NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")
HALF = """
import sys
from fastmq.server.backup import back_up

def midway(done, total):
    print("midway", flush=True)
    sys.stdin.read()

back_up(sys.argv[1], sys.argv[2], midway)
"""


def cli(*arguments) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "fastmq.cli", *map(str, arguments)], capture_output=True, text=True, timeout=60)


def checkpoints(data: Path) -> list[int]:
    """Which file each worker's checkpoint is; 0: none yet."""
    logs = sorted((data / f"logs-{json.loads((data / 'broker.json').read_bytes())['generation']}").iterdir())
    return [os.stat(log / "checkpoint").st_ino if (log / "checkpoint").exists() else 0 for log in logs]


def drain(mq: fastmq.Client, queue: str) -> list[bytes]:
    bodies = []
    for _ in range(mq.declare_queue(queue, passive=True).message_count):
        with mq.get(queue, timeout=5) as message:
            bodies.append(message.body)
    return bodies


def fill(mq: fastmq.Client, queue: str, count: int, size: int = 0) -> list[bytes]:
    """Declare it, and publish so many messages, confirmed."""
    mq.declare_queue(queue)
    bodies = [b"%d" % n + b"x" * size for n in range(count)]
    for body in bodies:
        mq.publish(queue, body)
    mq.flush(30)
    return bodies


@pytest.fixture
def place(run, tmp_path):
    with Kept(tmp_path / "data", 1, SETTINGS) as place:
        yield place


@pytest.mark.parametrize("workers", [1, 3])
def test_backup_under_load_has_all_that_was_confirmed_and_nothing_else(tmp_path, workers):
    with Kept(tmp_path / "data", workers, SETTINGS) as place, fastmq.connect(place.url, timeout=30) as mq:
        mq.declare_exchange("logs", "topic")
        waiting = fill(mq, "long", 3000, 1000)                      # more than memory may hold: extents
        mq.bind_queue("long", "logs", "*.error")
        loads = [Load(place.url, f"load{n}") for n in range(4)]
        for load in loads:
            wait_until(load.progressed(1000), timeout=60, what="messages flow")
        wait_until(lambda: all(checkpoints(place.data_dir)), timeout=30, what="each worker has a checkpoint")
        before = [set(load.checker.confirmed) for load in loads]
        done = cli("backup", tmp_path / "copy", "--data-dir", place.data_dir, "--json")
        assert done.returncode == 0, done.stderr
        taken = [set(load.checker.seen) for load in loads]
        attempted = [set(load.checker.attempted) for load in loads]
        for load in loads:
            wait_until(load.progressed(300), timeout=60, what="messages flow")
            load.stop_and_check()
    said = json.loads(done.stdout)
    assert len(said["logs"]) == workers and sum(log["extents"] for log in said["logs"]) > 0
    restore(tmp_path / "copy", tmp_path / "again")
    with Kept(tmp_path / "again", workers) as place, fastmq.connect(place.url, timeout=30) as mq:
        for load, owed, gone, possible in zip(loads, before, taken, attempted, strict=True):
            found = drain(mq, load.queue)
            numbers = [int(body.rpartition(b":")[2]) for body in found]
            assert numbers == sorted(set(numbers)), "doubled, or out of order"
            assert owed - gone <= set(found), "lost"
            assert set(found) <= possible, "unexpected"
        mq.publish("db.error", b"bound still", exchange="logs")
        mq.flush()
        assert drain(mq, "long") == [*waiting, b"bound still"]


def test_checkpoints_wait_for_a_backup_and_go_on_after_it(place, tmp_path):
    with fastmq.connect(place.url, timeout=30) as mq:
        waiting = fill(mq, "long", 3000, 1000)
        wait_until(lambda: all(checkpoints(place.data_dir)), timeout=30, what="there is a checkpoint")
        during = []

        def goes_on(done: int, total: int) -> None:
            """A message of the worker's tail's size and more is confirmed and taken between two pieces of the copy."""
            if len(during) < 10:
                fill(mq, "short", 200, 1000)
                assert len(drain(mq, "short")) == 200
                during.append(checkpoints(place.data_dir))

        copied = back_up(place.data_dir, tmp_path / "copy", goes_on)
        assert len(during) >= 4 and all(one == during[0] for one in during), "a checkpoint was written while its log was copied"
        wait_until(lambda: checkpoints(place.data_dir) != during[0], timeout=30, what="the next checkpoint is written")
        assert sum(log.extents for log in copied.logs) > 0
    with Kept(tmp_path / "copy", 1) as again, fastmq.connect(again.url) as mq:
        assert drain(mq, "long") == waiting


def test_queue_declared_while_a_backup_is_made_has_what_its_copied_log_has(tmp_path):
    with Kept(tmp_path / "data", 3) as place, fastmq.connect(place.url) as mq:
        late = queue_on(1, 3)
        bodies = []

        def declare(done: int, total: int) -> None:
            """While the log of worker 2 is copied: the topology must be copied behind that of worker 1."""
            if not bodies:
                bodies.extend(fill(mq, late, 10))

        fill(mq, queue_on(2, 3), 1)
        copied = back_up(place.data_dir, tmp_path / "copy", declare)
        assert bodies and copied.logs[1].last > 0
    with Kept(tmp_path / "copy", 3) as place, fastmq.connect(place.url) as mq:
        assert drain(mq, late) == bodies


def test_killed_backup_leaves_nothing_that_counts_and_holds_nothing_back(place, tmp_path):
    with fastmq.connect(place.url, timeout=30) as mq:
        fill(mq, "jobs", 1000, 1000)
        wait_until(lambda: all(checkpoints(place.data_dir)), timeout=30, what="there is a checkpoint")
        half = subprocess.Popen([sys.executable, "-c", HALF, place.data_dir, tmp_path / "copy"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert half.stdout.readline() == b"midway\n"
        before = checkpoints(place.data_dir)
        assert "another process" in cli("backup", tmp_path / "copy", "--data-dir", place.data_dir).stderr
        half.kill()
        half.communicate()
        assert not (tmp_path / "copy").exists()
        with pytest.raises(FastMQError, match="it is no fastmq data directory"):
            fastmq.Broker(workers=1, data_dir=tmp_path / "copy.partial")
        (tmp_path / "copy.partial" / "lock").unlink()
        fill(mq, "jobs", 500, 1000)
        wait_until(lambda: checkpoints(place.data_dir) != before, timeout=30, what="checkpoints go on")
    assert cli("backup", tmp_path / "copy", "--data-dir", place.data_dir).returncode == 0
    assert not (tmp_path / "copy.partial").exists()


def test_backup_of_a_stopped_broker_is_a_data_directory(place, tmp_path):
    with fastmq.connect(place.url) as mq:
        bodies = fill(mq, "jobs", 100)
    place.kill()
    assert cli("backup", tmp_path / "copy", "--data-dir", place.data_dir).returncode == 0
    with Kept(tmp_path / "copy", 2) as again, fastmq.connect(again.url) as mq:
        assert drain(mq, "jobs") == bodies


@pytest.mark.parametrize("workers", [1, 3])
def test_restore_under_a_running_broker_whose_clients_go_on(place, tmp_path, workers):
    with Kept(tmp_path / "other", workers) as other, fastmq.connect(other.url) as mq:
        bodies = fill(mq, "jobs", 500)
        back_up(other.data_dir, tmp_path / "copy")
    with fastmq.connect(place.url, timeout=30) as mq:
        fill(mq, "jobs", 20)
        fill(mq, "gone", 20)
        pids = [row["pid"] for row in mq.status()["processes"]]
        with mq.consume("jobs", prefetch=5, timeout=10) as consumer:
            held = [next(consumer) for _ in range(5)]
            done = cli("restore", tmp_path / "copy", "--data-dir", place.data_dir, "--replace")
            assert done.returncode == 0, done.stderr
            assert f"serves again at {place.url}" in done.stderr
            first = next(consumer)
            for message in held:
                message.ack()                       # of the data that is gone: it does nothing
            found = [first.body]
            first.ack()
            while len(found) < len(bodies):
                with next(consumer) as message:
                    found.append(message.body)
            assert found == bodies
        wait_until(lambda: not any(row["messages_unacknowledged"] for row in mq.status()["queues"]), what="all are settled")
        with pytest.raises(fastmq.NotFound):
            mq.declare_queue("gone", passive=True)
        mq.publish("jobs", b"after")
        mq.flush(30)
        assert mq.get("jobs", timeout=5).body == b"after"
        rows = mq.status()["processes"]
        assert rows[0]["pid"] == pids[0] and not {row["pid"] for row in rows[1:]} & set(pids)
    assert sorted(entry.name[:5] for entry in place.data_dir.iterdir()) == ["broke", "lock", "logs-", "socke"]
    place.restart()
    with fastmq.connect(place.url) as mq:
        assert drain(mq, "jobs") == [b"after"]


def test_restored_broker_gives_out_no_epoch_again(place, tmp_path):
    def highest() -> int:
        return json.loads((place.data_dir / "broker.json").read_bytes())["epoch"]

    back_up(place.data_dir, tmp_path / "copy")
    for _ in range(2):
        before = highest()
        assert cli("restore", tmp_path / "copy", "--data-dir", place.data_dir, "--replace").returncode == 0
        assert highest() > before
    place.broker.stop()
    before = highest()
    restore(tmp_path / "copy", place.data_dir, replaces=True)
    assert highest() > before


def test_ctrl_c_while_the_broker_restores_removes_nothing(place, tmp_path, monkeypatch):
    with fastmq.connect(place.url, timeout=30) as mq:
        bodies = fill(mq, "jobs", 100)
        back_up(place.data_dir, tmp_path / "copy")
        drain(mq, "jobs")
        removed = []

        def say(text: str) -> None:
            patch.setattr(os, "unlink", lambda *arguments, **options: removed.append(arguments))
            assert not (place.data_dir / "restore").exists(), "it can be reached while it is the broker's"
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            restore(tmp_path / "copy", place.data_dir, replaces=True, say=say)
        assert not removed
        wait_until(lambda: process(mq, "worker")["restarts"] == 1, timeout=30, what="the broker serves again")
        assert drain(mq, "jobs") == bodies
    assert sorted(entry.name[:5] for entry in place.data_dir.iterdir()) == ["broke", "lock", "logs-", "socke"]


def test_second_restore_meanwhile_takes_nothing_from_the_first(place, tmp_path):
    with fastmq.connect(place.url, timeout=30) as mq:
        bodies = fill(mq, "jobs", 100)
        back_up(place.data_dir, tmp_path / "copy")
        drain(mq, "jobs")
        said = []

        def say(text: str) -> None:
            said.append(text)
            if len(said) == 1:                      # the broker stops its processes
                with suppress(BrokerFailed):        # it is refused, or comes behind the first
                    restore(tmp_path / "copy", place.data_dir, replaces=True)

        restore(tmp_path / "copy", place.data_dir, replaces=True, say=say)
        assert not (place.data_dir / "restore").exists()
        assert drain(mq, "jobs") == bodies


def test_what_no_broker_took_is_removed_and_a_bare_connection_restores_nothing(place, tmp_path, monkeypatch):
    with fastmq.connect(place.url, timeout=30) as mq:
        back_up(place.data_dir, tmp_path / "copy")
        fill(mq, "jobs", 10)
        pid = process(mq, "worker")["pid"]

        def denied(path: Path, call: object) -> None:
            shutil.copytree(place.data_dir / "restore", tmp_path / "left")
            raise PermissionError(13, "Permission denied")

        with monkeypatch.context() as patch:
            patch.setattr(restore_port, "_at", denied)
            with pytest.raises(BrokerFailed, match="cannot be asked: Permission denied"):
                restore(tmp_path / "copy", place.data_dir, replaces=True)
        assert not (place.data_dir / "restore").exists()
        (tmp_path / "left").rename(place.data_dir / "restore")          # complete, as of a restore that was killed
        with socket.socket(socket.AF_UNIX) as bare:
            bare.settimeout(30)
            bare.connect(str(place.data_dir / "socket"))
            assert b"nobody brings anything" in bare.recv(1000)
        assert process(mq, "worker")["pid"] == pid
        assert len(drain(mq, "jobs")) == 10


@pytest.mark.parametrize("point", ["before_restore", "after_restore"])
def test_supervisor_killed_while_it_restores_leaves_the_old_data_or_the_new(tmp_path, monkeypatch, point):
    with Kept(tmp_path / "other", 1) as other, fastmq.connect(other.url) as mq:
        fill(mq, "new", 10)
        back_up(other.data_dir, tmp_path / "copy")
    monkeypatch.setenv("FASTMQ_FAILPOINT", point)
    with Kept(tmp_path / "data", 1) as place:
        with fastmq.connect(place.url) as mq:
            fill(mq, "old", 10)
        done = cli("restore", tmp_path / "copy", "--data-dir", place.data_dir, "--replace")
        assert done.returncode == 1
        assert "the broker ended before it was ready again" in done.stderr
        monkeypatch.delenv("FASTMQ_FAILPOINT")
        place.restart()
        with fastmq.connect(place.url) as mq:
            assert [row["name"] for row in mq.status()["queues"]] == ["old" if point == "before_restore" else "new"]
            assert mq.status()["queues"][0]["messages_ready"] == 10
        assert not (place.data_dir / "restore").exists()
        assert len(list(place.data_dir.glob("logs-*"))) == 1


def test_what_cannot_be_is_refused_with_a_reason_and_changes_nothing(place, tmp_path):
    data, copy, other = place.data_dir, tmp_path / "copy", tmp_path / "other"
    with fastmq.connect(place.url) as mq:
        fill(mq, "jobs", 10)
        pid = process(mq, "worker")["pid"]
        assert cli("backup", copy, "--data-dir", data).returncode == 0
        other.mkdir()
        (other / "letter").write_text("dear")
        damaged = tmp_path / "damaged"
        restore(copy, damaged)
        shutil.copytree(copy, data / "restore")
        shutil.copytree(copy, tmp_path / "whole.partial")
        strange = tmp_path / "strange"
        restore(copy, strange)
        facts = json.loads((strange / "broker.json").read_bytes())
        (strange / "broker.json").write_text(json.dumps(facts | {"workers": 10**9}))
        segment = next(damaged.glob("logs-*/0/journal-*"))
        segment.write_bytes(segment.read_bytes()[:5000])
        for arguments, reason in [
            (("backup", copy, "--data-dir", data), "exists already"),
            (("backup", data / "copy", "--data-dir", data), "lies within the data directory"),
            (("backup", tmp_path / "no" / "copy", "--data-dir", data), "is no directory"),
            (("backup", tmp_path / "copy2", "--data-dir", other), "is no fastmq data directory"),
            (("restore", copy, "--data-dir", data), "has data already; --replace"),
            (("restore", copy, "--data-dir", copy, "--replace"), "is the backup itself"),
            (("restore", data / "restore", "--data-dir", data, "--replace"), "lies within the data directory"),
            (("restore", data, "--data-dir", tmp_path / "new"), "fastmq backup"),
            (("backup", tmp_path / "whole", "--data-dir", data), "it is complete"),
            (("restore", strange, "--data-dir", data, "--replace"), "is not what a fastmq broker writes"),
            (("restore", other, "--data-dir", data, "--replace"), "is no fastmq data directory"),
            (("restore", copy, "--data-dir", other, "--replace"), "holds 'letter'"),
            (("restore", damaged, "--data-dir", data, "--replace"), "should be"),
            (("backup", tmp_path / "copy3", "--data-dir", damaged), "should be"),
        ]:
            done = cli(*arguments)
            assert done.returncode in (1, 2) and reason in done.stderr, (arguments, done.stderr)
        assert process(mq, "worker")["pid"] == pid
        assert len(drain(mq, "jobs")) == 10
    assert (data / "restore" / "broker.json").exists() and (tmp_path / "whole.partial" / "broker.json").exists()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["copy", "damaged", "data", "other", "strange", "whole.partial"]
    assert [entry.name for entry in other.iterdir()] == ["letter"]


def test_copy_is_its_owners_alone_whatever_the_umask_is(place, tmp_path):
    with fastmq.connect(place.url) as mq:
        bodies = fill(mq, "jobs", 100)
        for name in ("copy.partial", "data/restore"):
            (tmp_path / name).mkdir()
            (tmp_path / name).chmod(0o777)                      # as others might leave it
        before = os.umask(0)
        try:
            back_up(place.data_dir, tmp_path / "copy")
            os.umask(0o077)
            restore(tmp_path / "copy", place.data_dir, replaces=True)
        finally:
            os.umask(before)
        for folder in (tmp_path / "copy", next(place.data_dir.glob("logs-*"))):
            modes = {(path.is_dir(), path.stat().st_mode & 0o777) for path in (folder, *folder.rglob("*"))}
            assert modes == {(True, 0o700), (False, 0o600)}
        assert drain(mq, "jobs") == bodies


@pytest.fixture
def strangers(run, tmp_path):
    """A folder that root and another user reach, with the data of the other."""
    if os.geteuid():
        pytest.skip("only root acts as another user")
    with tempfile.TemporaryDirectory(dir="/tmp") as name:      # what is under the test's own only root reaches
        top = Path(name)
        top.chmod(0o755)
        with Kept(top / "data", 1) as place, fastmq.connect(place.url) as mq:
            fill(mq, "jobs", 10)
        give(top / "data")
        yield top


def give(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        os.chown(path, NOBODY, NOBODY)


def test_root_restores_for_the_user_who_has_the_directory(strangers):
    before = os.umask(0o077)
    try:
        back_up(strangers / "data", strangers / "copy")
        restore(strangers / "copy", strangers / "data", replaces=True)
    finally:
        os.umask(before)
    owners = {path.stat().st_uid for path in (strangers / "data").rglob("*")}
    assert owners == {NOBODY}
    assert {path.stat().st_uid for path in (strangers / "copy").rglob("*")} == {0}
    assert os.geteuid() == 0 and os.getegid() == 0


def test_links_in_a_users_directory_lead_root_nowhere(strangers):
    """What a user could plant: where root makes the lock of the log, and where it restores to."""
    back_up(strangers / "data", strangers / "copy")
    victim = strangers / "victim"
    victim.mkdir(mode=0o755)
    log = next((strangers / "data").glob("logs-*")) / "0"
    (log / "checkpoint.lock").unlink()
    (log / "checkpoint.lock").symlink_to(victim / "made")
    with pytest.raises(OSError, match="symbolic link"):
        back_up(strangers / "data", strangers / "copy2")
    (strangers / "data" / "restore").symlink_to(victim)
    with pytest.raises(BadArgument, match="in the way"):
        restore(strangers / "copy", strangers / "data", replaces=True)
    shutil.rmtree(log.parent)
    log.parent.symlink_to(victim)
    (victim / "0").mkdir()
    back_up(strangers / "data", strangers / "copy2")            # of a log that is empty
    assert [path.name for path in victim.rglob("*")] == ["0"]


def test_foreign_or_linked_partial_is_refused(place, strangers, tmp_path):
    (strangers / "copy.partial").mkdir()
    give(strangers / "copy.partial")
    (tmp_path / "elsewhere").mkdir()
    (strangers / "copy2.partial").symlink_to(tmp_path / "elsewhere")
    for name, reason in (("copy", "belongs to another user"), ("copy2", "is no folder")):
        with pytest.raises(BadArgument, match=reason):
            back_up(place.data_dir, strangers / name)


@pytest.mark.needs("unshare", package="util-linux")
def test_backup_without_room_says_so_and_leaves_nothing(place, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run([*NAMESPACE, "sh", "-c", MOUNT, disk, "true"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("no file system can be mounted here")
    with fastmq.connect(place.url) as mq:
        fill(mq, "jobs", 1000, 1000)
        command = [sys.executable, "-m", "fastmq.cli", "backup", disk / "copy", "--data-dir", place.data_dir]
        done = subprocess.run([*NAMESPACE, "sh", "-c", MOUNT, disk, *command], capture_output=True, text=True)
        assert "No space left on device" in done.stderr
        assert done.stdout == "status 1\n"
        assert len(drain(mq, "jobs")) == 1000
