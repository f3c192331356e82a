"""Unix sockets of a broker: where they are, who may connect, what is found at their paths, and that nothing is left of them."""

import os
import re
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import msgpack
import pytest
import zmq
from leaks import processes_of
from waiting import wait_until

import fastmq
from fastmq.wire.verbs import Verb

SERVE = [sys.executable, "-m", "fastmq.cli", "serve", "--ephemeral", "--port", "0", "--workers", "1"]
NOBODY = 65534


@pytest.fixture
def folder(run):
    """A short one: a unix socket's path has 108 bytes. It has to be empty in the end."""
    folder = Path(run.folder) / "d"
    folder.mkdir()
    yield folder
    folder.rmdir()


@pytest.fixture
def serve(folder):
    """Starts `fastmq serve` with arguments more; stops it in the end."""
    programs = []

    def start(*arguments):
        program = subprocess.Popen([*SERVE, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
        programs.append(program)
        return program

    yield start
    for program in programs:
        program.terminate()
        program.communicate()


@pytest.fixture
def bare():
    context = zmq.Context()
    yield context
    context.destroy(linger=0)


def names_of(name):
    """The abstract sockets whose name has this in it."""
    return re.findall(rf"@\S*{name}\S*", Path("/proc/net/unix").read_text())


def refused(serve, path):
    """Why a broker does not start with a socket at this path."""
    program = serve("--unix", str(path))
    output, told = program.communicate(timeout=10)
    assert (program.returncode, output) == (1, "")
    assert "Traceback" not in told
    return told


def test_serve_listens_at_the_path_for_its_owner_only_and_leaves_nothing(serve, folder):
    path = folder / "mq.sock"
    program = serve("--unix", str(path))
    assert re.fullmatch(r"ready fastmq://127\.0\.0\.1:\d+ events=\d+\n", program.stdout.readline())
    assert {name.name for name in folder.iterdir()} == {"mq.sock", "mq.sock.events"}
    assert {stat.S_IMODE(name.stat().st_mode) for name in folder.iterdir()} == {0o600}
    with fastmq.connect(f"fastmq+unix://{path}") as mq, mq.subscribe("jobs") as events:
        mq.declare_queue("jobs")
        mq.publish("jobs", b"over unix")
        assert next(events).body == b"over unix"
        assert mq.get("jobs", timeout=5).body == b"over unix"
    program.terminate()
    _, told = program.communicate(timeout=5)
    assert f"ready also at fastmq+unix://{path}\n" in told
    assert program.returncode == 0


def test_permissions_are_a_setting(serve, folder):
    serve("--unix", str(folder / "mq"), "--unix-mode", "0660").stdout.readline()
    assert {stat.S_IMODE(name.stat().st_mode) for name in folder.iterdir()} == {0o660}


def test_socket_of_a_killed_broker_is_replaced_and_that_of_a_living_one_is_not(serve, folder, run):
    path = folder / "mq"
    first = serve("--unix", str(path))
    first.stdout.readline()
    first.kill()
    first.wait()
    wait_until(lambda: not processes_of(run.id), timeout=2)
    assert path.is_socket()
    serve("--unix", str(path)).stdout.readline()
    assert "another program listens there" in refused(serve, path)
    with fastmq.connect(f"fastmq+unix://{path}") as mq:
        mq.declare_queue("here")


def test_what_is_no_socket_is_left_alone(serve, folder):
    path = folder / "notes"
    path.write_text("precious")
    assert "not a socket" in refused(serve, path)
    assert path.read_text() == "precious"
    path.unlink()
    assert "No such file" in refused(serve, folder / "nowhere" / "mq")


def test_client_goes_on_after_the_front_end_was_killed(serve, folder):
    path = folder / "mq"
    serve("--unix", str(path)).stdout.readline()
    with fastmq.connect(f"fastmq+unix://{path}") as mq:
        mq.declare_queue("jobs")
        events = mq.subscribe("jobs")
        (frontend,) = [process["pid"] for process in mq.status()["processes"] if process["role"] == "frontend"]
        os.kill(frontend, signal.SIGKILL)
        mq.publish("jobs", b"1")
        mq.flush()
        assert mq.get("jobs", timeout=5).body == b"1"

        def heard():
            mq.publish("jobs", b"again")
            return events.next(timeout=0.1) is not None

        wait_until(heard, what="the subscription is active again")


def test_embedded_broker_has_a_socket_without_a_file_and_its_supervisor_s_death_leaves_none():
    with fastmq.Broker(workers=1) as broker:
        name = broker.unix_url.removeprefix("fastmq+unix://@")
        assert len(names_of(name)) >= 2
        with fastmq.connect(broker.unix_url) as mq:
            mq.declare_queue("jobs")
        os.kill(broker.pid, signal.SIGKILL)
        wait_until(lambda: not names_of(name), timeout=2)


def test_embedded_broker_takes_a_path_or_none(folder):
    with fastmq.Broker(workers=1, unix=folder / "a b") as broker:
        assert broker.unix_url == f"fastmq+unix://{folder}/a%20b"
        with fastmq.connect(f"{broker.unix_url}?vhost=/") as mq:
            mq.declare_queue("jobs")
        with pytest.raises(fastmq.NotFound):
            fastmq.connect(f"{broker.unix_url}?vhost=other")
    with fastmq.Broker(workers=1, unix="") as broker:
        assert broker.unix_url is None


@pytest.mark.parametrize("transport", ["tcp", "ipc"])
def test_welcome_names_the_events_of_the_transport_that_it_travels_on(transport, folder, bare):
    """With bare ZeroMQ on both sockets, as docs/protocol.md says."""
    with fastmq.Broker(workers=1, unix=folder / "mq") as broker, fastmq.connect(broker.url) as mq:
        dealer, sub = bare.socket(zmq.DEALER), bare.socket(zmq.SUB)
        dealer.connect(broker.url.replace("fastmq", "tcp") if transport == "tcp" else f"ipc://{folder}/mq")
        dealer.send(msgpack.packb([int(Verb.HELLO), b"", 0, 1, "/", "bare", 0, {}]))
        assert dealer.poll(5000)
        endpoint = msgpack.unpackb(dealer.recv_multipart()[0])[-1]
        assert endpoint == (f"tcp://127.0.0.1:{broker.events_port}" if transport == "tcp" else f"ipc://{folder}/mq.events")
        sub.connect(endpoint)
        sub.subscribe(b"/\0amq.topic\0t\0#\0")
        assert sub.poll(5000)
        mq.publish("key", b"seen", exchange="amq.topic")
        sub.recv_multipart()
        assert sub.poll(5000)
        assert msgpack.unpackb(sub.recv_multipart()[2]) == ["key", None, b"seen"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("abstract", [True, False])
def test_other_users_are_not_let_in(abstract, folder):
    unix = f"@fastmq-test-{os.urandom(6).hex()}" if abstract else str(folder / "mq")
    for above in (folder, folder.parent):
        above.chmod(0o755)
    with fastmq.Broker(workers=1, unix=unix):
        assert greeting(unix) == b"\xff"
        child = os.fork()
        if child == 0:
            try:
                os.setresuid(NOBODY, NOBODY, NOBODY)
                os._exit(len(greeting(unix)))
            except PermissionError:
                os._exit(50)
            finally:
                os._exit(51)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == (0 if abstract else 50)


def greeting(path):
    """The first byte that a ZeroMQ socket says; b"" when it hangs up."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect("\0" + path[1:] if path.startswith("@") else path)
        try:
            return connection.recv(1)
        except ConnectionResetError:
            return b""
