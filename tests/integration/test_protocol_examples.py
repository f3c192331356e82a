"""The two bare-pyzmq programs of docs/protocol.md, run as printed there, by a Python that has no fastmq."""

import os
import re
import signal
import subprocess
import venv
from importlib.util import find_spec
from pathlib import Path

import pytest
from waiting import wait_until

import fastmq

ROOT = Path(__file__).parents[2]
PROGRAMS = ("bare_producer.py", "bare_consumer.py")
LINES_MAX = 50


def printed(name):
    """The program as it stands in the document, below the heading that names it."""
    document = (ROOT / "docs" / "protocol.md").read_text()
    return re.search(rf"^### .*`examples/{re.escape(name)}`\n.*?^```python\n(.*?)^```$", document, flags=re.DOTALL | re.MULTILINE)[1]


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A function that starts one of the programs in a folder and an environment where there is no fastmq."""
    folder = tmp_path_factory.mktemp("bare")
    venv.EnvBuilder(symlinks=True, with_pip=False).create(folder / "env")
    python = folder / "env" / "bin" / "python"
    packages = Path(subprocess.check_output([python, "-Ic", "import site; print(site.getsitepackages()[0])"], text=True).strip())
    for module in ("zmq", "msgpack"):
        where = Path(find_spec(module).origin).parent
        (packages / module).symlink_to(where)
        libraries = where.with_name("pyzmq.libs")
        if module == "zmq" and libraries.exists():
            (packages / libraries.name).symlink_to(libraries)
    for name in PROGRAMS:
        (folder / name).write_text(printed(name))
    found = subprocess.run([python, "-Ic", "import fastmq"], cwd=folder, capture_output=True, text=True)
    assert "ModuleNotFoundError: No module named 'fastmq'" in found.stderr

    def start(name, url, queue, count):
        endpoint = url.replace("fastmq://", "tcp://").replace("fastmq+unix://", "ipc://").rstrip("/")
        arguments = [python, "-I", folder / name, endpoint, queue, str(count)]
        return subprocess.Popen(arguments, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


def finish(program, timeout=60):
    """What the program printed; it has to end well."""
    try:
        output, errors = program.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        program.kill()
        output, errors = program.communicate()
        pytest.fail(f"does not end; it printed {output[-1000:]!r} and {errors[-1000:]!r}")
    assert program.returncode == 0, errors
    return output


@pytest.mark.parametrize("name", PROGRAMS)
def test_program_in_the_document_is_the_one_in_examples_and_short(name):
    assert printed(name) == (ROOT / "examples" / name).read_text()
    assert printed(name).count("\n") <= LINES_MAX
    assert "fastmq" not in printed(name)


@pytest.mark.parametrize("transport", ["url", "unix_url"])
def test_producer_and_consumer_move_each_message_once(bare, transport):
    count = 2000
    with fastmq.Broker(workers=1) as broker, fastmq.connect(broker.url) as mq:
        url = getattr(broker, transport)
        consumer = bare("bare_consumer.py", url, "jobs", count)
        wait_until(lambda: consumers_of(mq, "jobs") == 1, what="the consumer has declared its queue and consumes", timeout=30)
        producer = bare("bare_producer.py", url, "jobs", count)
        assert finish(producer) == f"{count} confirmed, 0 refused\n"
        assert finish(consumer).splitlines() == [f"message {n}" for n in range(1, count + 1)]
        wait_until(lambda: totals(mq, "jobs") == (0, 0, 0), what="everything is acknowledged, and the consumer has said BYE")


def test_producer_without_a_queue_is_refused(bare):
    with fastmq.Broker(workers=1) as broker:
        assert finish(bare("bare_producer.py", broker.url, "nobody", 3)) == "0 confirmed, 3 refused\n"


def test_consumer_leaves_what_it_did_not_want(bare):
    with fastmq.Broker(workers=1) as broker, fastmq.connect(broker.url) as mq:
        mq.declare_queue("jobs")
        for n in range(10):
            mq.publish("jobs", b"%d" % n)
        mq.flush()
        assert finish(bare("bare_consumer.py", broker.url, "jobs", 4)).split() == ["0", "1", "2", "3"]
        wait_until(lambda: totals(mq, "jobs") == (6, 0, 0), what="six are left")
        assert mq.get("jobs").body == b"4"


@pytest.mark.parametrize("role", ["frontend", "worker"])
def test_producer_sends_again_when_a_process_dies(bare, role):
    """The front-end's death loses and doubles nothing. A worker's loses what was in its queue, and nothing that is published after."""
    count = 30000
    with fastmq.Broker(workers=1) as broker:
        with fastmq.connect(broker.url) as mq:
            mq.declare_queue("jobs")
            producer = bare("bare_producer.py", broker.url, "jobs", count)
            wait_until(lambda: totals(mq, "jobs")[0] > 100, what="the first messages have come")
            victim = next(process for process in mq.status()["processes"] if process["role"] == role)
            os.kill(victim["pid"], signal.SIGKILL)
        assert finish(producer) == f"{count} confirmed, 0 refused\n"
        with fastmq.connect(broker.url) as mq:
            found = [int(mq.get("jobs").body.split()[1]) for _ in range(totals(mq, "jobs")[0])]
        assert found == list(range(count - len(found) + 1, count + 1))
        assert len(found) == count or role == "worker"


def totals(mq, name):
    """(ready, outstanding, consumers) of a queue; None while there is none."""
    for queue in mq.status()["queues"]:
        if queue["name"] == name:
            return queue["messages_ready"], queue["messages_unacknowledged"], queue["consumers"]
    return None


def consumers_of(mq, name):
    return (totals(mq, name) or (0, 0, 0))[2]
