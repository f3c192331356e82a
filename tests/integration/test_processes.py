"""The processes of a broker: how they start, how they are restarted, how they end, and that nothing is left of them."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import LONG
from leaks import processes_of
from waiting import wait_until

from fastmq.broker import Broker
from fastmq.errors import BadArgument, BrokerFailed

READY = re.compile(r"ready fastmq://127\.0\.0\.1:(\d+) events=(\d+)\n")
REST_WAKES_S = 10                   # of all processes with two workers: a tick each second, and what that says to others
KILLS = 20 if LONG else 8           # one after another, so the pauses grow; tests of deaths under load have 20


def children(pid):
    """{name: pid} of a supervisor's children; the name of a process is its role and index."""
    found = {}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        try:
            found[Path(f"/proc/{child}/comm").read_text().strip().removeprefix("fastmq-")] = int(child)
        except OSError:
            pass
    return found


def settled(pid, names):
    """The children, once they are those named."""
    return wait_until(lambda: (found := children(pid)).keys() == set(names) and found, what=f"processes {names} run")


def answers(port):
    """Whether the front-end speaks ZMTP on this port."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.settimeout(5)
            return connection.recv(1) == b"\xff"
    except OSError:
        return False


class Program:
    """A supervisor of its own, as `fastmq serve` runs it."""

    NAMES = ("frontend", "worker0", "worker1")

    def __init__(self, *arguments, **options):
        command = [sys.executable, "-m", "fastmq.server.supervisor", *arguments, "port=0", "events_port=0", "workers=2"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, **options)
        self.line = self.process.stdout.readline()
        assert READY.fullmatch(self.line), self.line + self.process.stderr.read()
        self.ports = [int(port) for port in READY.fullmatch(self.line).groups()]
        self.pid = self.process.pid
        self.children = settled(self.pid, self.NAMES)

    def end(self):
        """Wait for its end; (exit status, what else it printed, its log)."""
        rest, log = self.process.communicate(timeout=10)
        return self.process.returncode, rest, log


@pytest.fixture
def program():
    this = Program()
    yield this
    this.process.kill()
    this.process.communicate()


# ---- start

def test_ready_line_is_all_there_is_on_standard_output_and_is_true(program):
    assert all(answers(port) for port in program.ports)
    program.process.terminate()
    assert program.end()[:2] == (0, "")


def test_children_inherit_nothing_but_their_control_socket():
    reader, writer = os.pipe()
    pipe = os.readlink(f"/proc/self/fd/{writer}")
    program = Program(pass_fds=(writer,))
    os.close(writer)
    assert pipe in [os.readlink(f"/proc/{program.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{program.pid}/fd")]
    for pid in program.children.values():
        assert pipe not in [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    program.process.terminate()
    program.end()
    os.close(reader)


@pytest.mark.parametrize(("settings", "status", "text"), [
    (["no_such_setting=1"], 2, "no_such_setting"),
    (["workers=99"], 2, "workers"),
    (["data_dir=/dev/null/below"], 2, "data_dir"),
    (["host=203.0.113.1", "port=0"], 1, "203.0.113.1"),
])
def test_what_cannot_start_says_why(settings, status, text):
    done = subprocess.run([sys.executable, "-m", "fastmq.server.supervisor", *settings], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (status, "")
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_port_in_use_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(BrokerFailed, match=str(taken.getsockname()[1])):
        Broker(workers=1, port=taken.getsockname()[1])


@pytest.mark.parametrize("host", ["localhost", "0.0.0.0", "*", "::1"])
def test_host_may_be_a_name_or_all_or_ipv6(host):
    with Broker(workers=1, host=host) as broker, socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        port = int(broker.url.rstrip("/").rpartition(":")[2])
        sock.connect(("::1" if ":" in host else "127.0.0.1", port))
        assert sock.recv(1) == b"\xff"
        with socket.create_connection((*sock.getpeername()[:1], broker.events_port)) as events:
            assert events.recv(1) == b"\xff"


# ---- end

@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_signal_to_all_processes_drains_and_exits_0(program, number):
    began = time.monotonic()
    os.killpg(program.pid, number)                  # as a terminal and service managers do
    status, _, log = program.end()
    assert status == 0
    assert time.monotonic() - began < 2
    assert "killed" not in log
    assert "exited" not in log


@pytest.mark.parametrize("name", Program.NAMES)
def test_sigterm_ends_within_two_seconds_even_if_a_process_hangs(program, name):
    os.kill(program.children[name], signal.SIGSTOP)
    began = time.monotonic()
    program.process.terminate()
    assert program.end()[0] == 0
    assert time.monotonic() - began < 2


def test_second_sigterm_ends_at_once(program):
    os.kill(program.children["frontend"], signal.SIGSTOP)
    program.process.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        program.process.wait(0.3)
    began = time.monotonic()
    program.process.terminate()
    program.end()
    assert time.monotonic() - began < 0.3


def test_supervisor_that_is_asked_through_a_pipe_drains():
    reader, writer = os.pipe()
    program = Program("--asked-fd", str(reader), pass_fds=(reader,))
    os.close(reader)
    os.close(writer)
    status, _, log = program.end()
    assert (status, "asked to stop" in log) == (0, True)


def test_killed_supervisor_leaves_nothing(program, run):
    program.process.kill()
    program.end()
    wait_until(lambda: not processes_of(run.id), timeout=2)
    for port in program.ports:
        socket.create_server(("127.0.0.1", port)).close()


def test_killed_supervisor_takes_hung_children_along(program, run):
    for pid in program.children.values():
        os.kill(pid, signal.SIGSTOP)
    program.process.kill()
    program.end()
    wait_until(lambda: not processes_of(run.id), timeout=2)


def switches(pid):
    """How often the threads of a process have gone to sleep."""
    found = [task.joinpath("status").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    return sum(int(re.search(r"^voluntary_ctxt_switches:\s+(\d+)", text, re.MULTILINE)[1]) for text in found)


def test_broker_at_rest_hardly_wakes(program):
    pids = [program.pid, *program.children.values()]
    for seconds in (0.5, 2):            # the first one: what a start leaves to do
        before, end = [switches(pid) for pid in pids], time.monotonic() + seconds
        wait_until(lambda end=end: time.monotonic() > end)
    woken = {pid: switches(pid) - count for pid, count in zip(pids, before, strict=True)}
    assert sum(woken.values()) <= 2 * REST_WAKES_S, woken


# ---- restarts

@pytest.mark.parametrize("name", Program.NAMES)
def test_killed_process_is_restarted_each_time(program, name):
    before = program.children
    others = [program.pid, *(pid for other, pid in before.items() if other != name)]
    descriptors = {pid: len(os.listdir(f"/proc/{pid}/fd")) for pid in others}
    for _ in range(KILLS):
        os.kill(before[name], signal.SIGKILL)

        def restarted(victim=before[name]):
            found = children(program.pid)
            return found.keys() == set(Program.NAMES) and found[name] != victim and found

        now = wait_until(restarted, timeout=10, what=f"{name} runs again")
        wait_until(lambda: all(answers(port) for port in program.ports), what="the same ports answer")
        assert {other: pid for other, pid in now.items() if other != name} == {
            other: pid for other, pid in before.items() if other != name
        }, "the others go on"
        before = now
    grown = [len(os.listdir(f"/proc/{pid}/fd")) - count for pid, count in descriptors.items()]
    assert max(grown) < KILLS, "what was left open for each restart; the first count may have come before the last link"


def test_first_restart_comes_at_once(program):
    began = time.monotonic()
    os.kill(program.children["worker1"], signal.SIGKILL)
    wait_until(lambda: children(program.pid).get("worker1", program.children["worker1"]) != program.children["worker1"])
    assert time.monotonic() - began < 1


# ---- the embedded broker

def test_embedded_broker_runs_until_it_is_stopped(run):
    with Broker(workers=2) as broker:
        assert broker.running
        assert answers(int(broker.url.rpartition(":")[2]))
        assert broker.pid in processes_of(run.id)
    assert not broker.running
    assert not processes_of(run.id)
    broker.stop()


def test_embedded_broker_outlives_the_thread_that_made_it():
    made = []
    thread = threading.Thread(target=lambda: made.append(Broker(workers=1)))
    thread.start()
    thread.join()
    [broker] = made
    assert all(pid for pid in settled(broker.pid, ["frontend", "worker0"]).values())
    with pytest.raises(AssertionError):
        wait_until(lambda: not broker.running, timeout=0.5)
    broker.stop()


PARENT = """
import threading, time
from fastmq.broker import Broker
made = []
thread = threading.Thread(target=lambda: made.append(Broker(workers=1)))
thread.start()
thread.join()
print(made[0].pid, flush=True)
{then}
"""


@pytest.mark.parametrize(("then", "number"), [
    ("time.sleep(1000)", signal.SIGKILL),
    ("time.sleep(1000)", signal.SIGTERM),
    ("time.sleep(1000)", signal.SIGINT),
    ("raise SystemExit", None),
    ("import os; os._exit(3)", None),
    ("import os; os.abort()", None),
], ids=["SIGKILL", "SIGTERM", "SIGINT", "exit", "_exit", "abort"])
def test_embedded_broker_ends_with_its_parent_process(run, then, number):
    with subprocess.Popen([sys.executable, "-c", PARENT.format(then=then)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as parent:
        supervisor = int(parent.stdout.readline())
        if number is not None:
            settled(supervisor, ["frontend", "worker0"])
            parent.send_signal(number)
        parent.wait(10)
    wait_until(lambda: not processes_of(run.id), timeout=2.5)


def test_forked_copy_of_the_program_leaves_the_broker_alone():
    with Broker(workers=1) as broker:
        pid = os.fork()
        if pid == 0:
            broker.stop()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert broker.running
        assert answers(int(broker.url.rpartition(":")[2]))


def test_embedded_broker_refuses_what_it_does_not_know():
    with pytest.raises(BadArgument, match="colour"):
        Broker(colour="red")


def test_broker_that_does_not_become_ready_shows_its_log(monkeypatch):
    monkeypatch.setenv("FASTMQ_WORKERS", "1")
    with pytest.raises(BrokerFailed, match=r"203\.0\.113\.1"):
        Broker(host="203.0.113.1")


def test_log_of_an_embedded_broker_tells_of_restarts():
    with Broker(workers=1) as broker:
        os.kill(settled(broker.pid, ["frontend", "worker0"])["worker0"], signal.SIGKILL)
        wait_until(lambda: "worker 0" in broker.log_tail() and "SIGKILL" in broker.log_tail())
