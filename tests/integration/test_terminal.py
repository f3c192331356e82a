"""The command line as a person at a terminal uses it, a real one (pty), and as a shell without one starts it."""

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing

import pytest
from waiting import wait_until

import fastmq

FASTMQ = [sys.executable, "-m", "fastmq.cli"]
CTRL_C, CTRL_D = b"\x03", b"\x04"


class Terminal:
    """A terminal of its own, in which one command runs."""

    def __init__(self, *command: str, url: str = "") -> None:
        self.fd, theirs = pty.openpty()
        os.set_blocking(self.fd, False)
        environment = {**os.environ, "FASTMQ_URL": url, "TERM": "xterm"}
        self.process = subprocess.Popen([*FASTMQ, *command], env=environment, preexec_fn=lambda: os.login_tty(theirs), close_fds=False)
        os.close(theirs)
        self.shown = b""

    def look(self) -> bytes:
        """All that it has shown so far."""
        try:
            while data := os.read(self.fd, 65536):
                self.shown += data
        except OSError:  # nothing more for now; or nobody has the terminal open any more
            pass
        return self.shown

    def wait_for(self, text: bytes) -> None:
        wait_until(lambda: text in self.look())

    def type(self, keys: bytes) -> None:
        os.write(self.fd, keys)

    def end(self) -> int:
        """The exit status."""
        wait_until(lambda: (self.look(), self.process.poll() is not None)[1])
        self.look()
        return self.process.returncode

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.fd)


@pytest.fixture
def broker() -> Iterator[fastmq.Broker]:
    with fastmq.Broker(workers=1) as made:
        yield made


@pytest.fixture
def mq(broker: fastmq.Broker) -> Iterator[fastmq.Client]:
    with fastmq.connect(broker.url) as client:
        client.declare_queue("q")
        yield client


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (("consume", "q"), b"waited for"),
        (("subscribe", "#", "-e", "amq.topic", "--kind", "topic"), b"subscribed"),
        (("publish", "q"), b"Ctrl-D ends"),
        (("bench", "pingpong", "--messages", "1000000"), b"ping-pong"),
        (("bench", "queue", "--messages", "1000000"), b"work queue"),
    ],
    ids=lambda value: "-".join(value[:2]) if isinstance(value, tuple) else "",
)
def test_ctrl_c_ends_each_command(broker: fastmq.Broker, mq: fastmq.Client, command: tuple[str, ...], shown: bytes) -> None:
    mq.publish("q", b"waited for")
    with closing(Terminal(*command, url=broker.url)) as terminal:
        terminal.wait_for(shown)
        terminal.type(CTRL_C)
        assert terminal.end() == 130
        assert b"Traceback" not in terminal.shown
    assert [queue["name"] for queue in mq.status()["queues"]] == ["q"]


def test_ctrl_c_stops_serve_with_status_0() -> None:
    with closing(Terminal("serve", "--port", "0", "--workers", "1")) as terminal:
        terminal.wait_for(b"ready")
        terminal.type(CTRL_C)
        assert terminal.end() == 0
        assert b"Traceback" not in terminal.shown


def test_line_that_is_typed_has_its_outcome_at_once(broker: fastmq.Broker, mq: fastmq.Client) -> None:
    with closing(Terminal("publish", "no-such-queue", url=broker.url)) as terminal:
        terminal.wait_for(b"Ctrl-D ends")
        terminal.type(b"one\n")
        terminal.wait_for(b"line 1 was refused: the queue does not exist (no-queue)")
        terminal.type(CTRL_C)
        assert terminal.end() == 130
        assert b"0 messages published" in terminal.shown


def test_ctrl_d_behind_half_a_line_ends_publish(broker: fastmq.Broker, mq: fastmq.Client) -> None:
    with closing(Terminal("publish", "q", url=broker.url)) as terminal:
        terminal.wait_for(b"Ctrl-D ends")
        terminal.type(b"whole\nhalf" + CTRL_D + CTRL_D)  # the first gives the half line away
        assert terminal.end() == 0
        assert b"2 messages published" in terminal.shown
    with mq.consume("q", timeout=5) as messages:
        assert [next(messages).body, next(messages).body] == [b"whole", b"half"]


def test_interrupted_publish_tells_what_is_published(broker: fastmq.Broker, mq: fastmq.Client) -> None:
    process = subprocess.Popen(
        [*FASTMQ, "publish", "q", "--url", broker.url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with process:
        assert process.stdin is not None
        process.stdin.write(b"one\ntwo\n")
        process.stdin.flush()
        wait_until(lambda: mq.declare_queue("q", passive=True).message_count == 2)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert process.stderr is not None
        assert process.stderr.read().strip() == b"2 messages published"


@pytest.mark.parametrize(
    ("redirect", "told"),
    [("<&-", b"standard input is closed"), ("0>/dev/null", b"standard input cannot be read: Bad file descriptor")],
)
def test_standard_input_that_cannot_be_read_is_one_sentence(broker: fastmq.Broker, redirect: str, told: bytes) -> None:
    command = ["sh", "-c", f'"$@" {redirect}', "sh", *FASTMQ, "publish", "q", "--url", broker.url]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, b"Error: " + told + b"\n")


def test_serve_that_inherits_an_ignored_sigint_ends_by_sigterm() -> None:
    """A shell without a terminal ignores SIGINT for what it starts in the background; Ctrl-C for the shell is not meant for that."""
    command = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *FASTMQ, "serve", "--port", "0", "--workers", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        _, url, *_ = process.stdout.readline().decode().split()
        process.send_signal(signal.SIGINT)
        with fastmq.connect(url) as mq:
            mq.declare_queue("q")
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=5)
        assert process.returncode == 0
        assert b"SIGINT" not in told
        assert b"SIGTERM" in told
