"""The command line, as a person or a script uses it: real processes, a real broker."""

import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from leaks import Run
from waiting import wait_until

import fastmq

FASTMQ = [sys.executable, "-m", "fastmq.cli"]


@pytest.fixture(scope="module")
def broker() -> Iterator[fastmq.Broker]:
    """One broker for all tests of this file; each uses queues of its own."""
    run = Run()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTMQ_RUN_ID", run.id)
        made = fastmq.Broker(workers=1)
    with made:
        yield made
    left = run.finish()
    assert not left, left


@pytest.fixture
def mq(broker: fastmq.Broker) -> Iterator[fastmq.Client]:
    with fastmq.connect(broker.url) as client:
        yield client


class Cli:
    """Runs `fastmq` against the broker."""

    def __init__(self, url: str, data_home: Path) -> None:
        self.environment = {**os.environ, "FASTMQ_URL": url, "XDG_DATA_HOME": str(data_home)}

    def __call__(
        self, *arguments: str | bytes, stdin: bytes = b"", status: int = 0
    ) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run([*FASTMQ, *arguments], input=stdin, capture_output=True, env=self.environment, timeout=60)
        assert done.returncode == status, (done.returncode, done.stdout[-2000:], done.stderr[-2000:])
        assert b"Traceback" not in done.stderr
        return done

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*FASTMQ, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=self.environment, **options
        )


@pytest.fixture
def cli(broker: fastmq.Broker, tmp_path: Path) -> Cli:
    return Cli(broker.url, tmp_path)


def json_lines(output: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def consumers_of(mq: fastmq.Client, queue: str) -> int:
    return int(mq.declare_queue(queue, passive=True).consumer_count)


def test_arguments_are_published_and_consumed_in_order(cli: Cli) -> None:
    cli("queue", "declare", "greetings")
    told = cli("publish", "greetings", "hello", "Grüße", "")
    assert told.stdout == b""
    assert b"3 messages published" in told.stderr
    assert cli("consume", "greetings", "--count", "3").stdout == "hello\nGrüße\n\n".encode()


def test_lines_of_standard_input_are_published_as_they_are(cli: Cli, mq: fastmq.Client) -> None:
    mq.declare_queue("lines")
    lines = [b"plain", b"", b"\xff\xfe not UTF-8", b"tab\tand\rreturn", b"no end"]
    cli("publish", "lines", stdin=b"\n".join(lines))
    assert cli("consume", "lines", "-n", "5").stdout == b"\n".join(lines) + b"\n"


def test_empty_standard_input_publishes_nothing(cli: Cli, mq: fastmq.Client) -> None:
    mq.declare_queue("nothing")
    assert b"0 messages published" in cli("publish", "nothing").stderr
    assert cli("consume", "nothing", "--timeout", "0.1").stdout == b""


def test_argument_that_is_not_utf8_arrives_unchanged(cli: Cli, mq: fastmq.Client) -> None:
    mq.declare_queue("bytes")
    cli("publish", "bytes", b"\xff\x80")
    message = mq.get("bytes", timeout=5)
    with message:
        assert message.body == b"\xff\x80"


def test_files_are_published_whole(cli: Cli, mq: fastmq.Client, tmp_path: Path) -> None:
    mq.declare_queue("files")
    (tmp_path / "a").write_bytes(bytes(range(256)) * 1000)
    cli("publish", "files", "--file", str(tmp_path / "a"), "--file", "-", stdin=b"two\nlines")
    assert cli("consume", "files", "-n", "2", "--raw").stdout == bytes(range(256)) * 1000 + b"two\nlines"


def test_missing_file_is_named(cli: Cli, mq: fastmq.Client, tmp_path: Path) -> None:
    mq.declare_queue("files")
    assert b"no-such-file" in cli("publish", "files", "--file", str(tmp_path / "no-such-file"), status=2).stderr


def test_json_shows_properties_and_bodies_that_are_not_text(cli: Cli, mq: fastmq.Client) -> None:
    mq.declare_queue("json")
    options = (
        "--header",
        "a=1=2",
        "--content-type",
        "text/plain",
        "--message-id",
        "m1",
        "--correlation-id",
        "c",
        "--reply-to",
        "r",
    )
    cli("publish", "json", "text\nof two lines", b"\xff", *options)
    first, second = json_lines(cli("consume", "json", "-n", "2", "--json").stdout)
    assert first["body"] == "text\nof two lines"
    assert base64.b64decode(second["body_base64"]) == b"\xff"
    assert first["headers"] == {"a": "1=2"}
    shown = (
        "content_type",
        "message_id",
        "correlation_id",
        "reply_to",
        "routing_key",
        "exchange",
        "redelivered",
        "delivery_count",
    )
    assert [first[name] for name in shown] == ["text/plain", "m1", "c", "r", "json", "", False, 1]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("publish", "no-such-queue", "x"), b"argument 1 was refused: the queue does not exist (no-queue)"),
        (("publish", "key", "x", "--exchange", "no-such-exchange"), b"(no-exchange)"),
        (("publish", "key", "x", "--exchange", "amq.topic", "--mandatory"), b"(unroutable)"),
        (("publish", "k" * 256, "x"), b"argument 1 was refused"),
        (("consume", "no-such-queue", "-n", "1"), b"(no-queue)"),
        (("queue", "purge", "no-such-queue"), b"(no-queue)"),
        (("queue", "declare", "amq.mine"), b"(access-refused)"),
    ],
)
def test_refusal_is_named_and_ends_with_status_1(cli: Cli, arguments: tuple[str, ...], named: bytes) -> None:
    done = cli(*arguments, status=1)
    assert named in done.stderr
    assert done.stdout == b""


def test_many_refusals_are_counted_and_not_all_named(cli: Cli) -> None:
    done = cli("publish", "no-such-queue", stdin=b"x\n" * 12_000, status=1)
    assert done.stderr.count(b"was refused") == 10
    assert b"line 10 was refused" in done.stderr
    assert b"12,000 refused: 12,000 x no-queue" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("publish",),
        ("publish", "q", "--header", "no-value"),
        ("consume", "q", "--count", "0"),
        ("subscribe", "x", "--kind", "regex"),
        ("no-such-verb",),
        ("serve", "--port", "70000"),
        ("bench", "speed"),
        ("bench", "queue", "--size", "9"),
        ("bench", "queue", "--size", "1000000", "--messages", "1000000"),
        ("serve", "--data-dir", "/dev/null/below"),
        ("serve", "--ephemeral", "--data-dir", "kept"),
        ("serve", "--config", "no-such-file.toml"),
        ("status", "--url", "http://127.0.0.1/"),
    ],
)
def test_wrong_usage_is_told_with_status_2(cli: Cli, arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = cli(*arguments, status=2)
    assert done.stderr.strip()
    assert done.stdout == b""


def test_folder_that_is_no_data_directory_is_refused_and_left_alone(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "mother.txt").write_text("dear")
    told = cli("serve", "--data-dir", str(tmp_path / "letters"), status=2).stderr
    assert b"mother.txt" in told
    assert (tmp_path / "letters" / "mother.txt").read_text() == "dear"


@pytest.mark.parametrize(
    "verb", [("status",), ("publish", "q", "x"), ("consume", "q"), ("subscribe", "x"), ("queue", "ls"), ("bench",)]
)
def test_without_a_broker_it_says_how_to_start_one(cli: Cli, verb: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    done = cli(*verb, "--url", f"fastmq://127.0.0.1:{port}/", status=3)
    assert b"fastmq serve" in done.stderr
    assert b"--url" in done.stderr
    assert str(port).encode() in done.stderr


def test_broker_that_takes_no_more_sessions_is_not_called_absent(cli: Cli) -> None:
    with fastmq.Broker(workers=1, sessions_max=1) as broker, fastmq.connect(broker.url):
        told = cli("status", "--url", broker.url, status=3).stderr
    assert b"takes no session: there are 1 sessions, as many as sessions_max allows" in told
    assert b"Start one" not in told


def test_unacknowledged_messages_go_back_when_requeued(cli: Cli, mq: fastmq.Client) -> None:
    mq.declare_queue("requeued")
    cli("publish", "requeued", "1", "2", "3")
    assert cli("consume", "requeued", "--requeue", "--timeout", "0.3").stdout == b"1\n2\n3\n"
    wait_until(lambda: mq.declare_queue("requeued", passive=True).message_count == 3)
    again = json_lines(cli("consume", "requeued", "-n", "3", "--json").stdout)
    assert [(message["body"], message["redelivered"]) for message in again] == [("1", True), ("2", True), ("3", True)]


def test_count_leaves_the_rest_untouched(cli: Cli, mq: fastmq.Client) -> None:
    mq.declare_queue("counted")
    cli("publish", "counted", *map(str, range(10)))
    assert cli("consume", "counted", "-n", "2").stdout == b"0\n1\n"
    rest = json_lines(cli("consume", "counted", "-n", "8", "--json").stdout)
    assert [(message["body"], message["redelivered"]) for message in rest] == [(str(n), False) for n in range(2, 10)]


def test_count_not_reached_in_time_ends_with_status_1(cli: Cli, mq: fastmq.Client) -> None:
    mq.declare_queue("short")
    cli("publish", "short", "only")
    done = cli("consume", "short", "-n", "2", "--timeout", "0.2", status=1)
    assert done.stdout == b"only\n"
    assert b"1 of 2" in done.stderr


def test_consume_shows_each_message_when_it_comes(cli: Cli, mq: fastmq.Client) -> None:
    mq.declare_queue("live")
    process = cli.start("consume", "live")
    with process:
        assert process.stdout is not None
        for body in (b"first", b"second"):
            mq.publish("live", body)
            assert process.stdout.readline() == body + b"\n"
        process.kill()


def test_ctrl_c_ends_consume_with_status_130_and_no_traceback(cli: Cli, mq: fastmq.Client) -> None:
    mq.declare_queue("interrupted")
    process = cli.start("consume", "interrupted")
    with process:
        wait_until(lambda: consumers_of(mq, "interrupted") == 1)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=10)
        assert process.returncode == 130
        assert b"Traceback" not in told
    wait_until(lambda: consumers_of(mq, "interrupted") == 0)


@pytest.mark.parametrize("verb", [("status",), ("consume", "unwritten", "--count", "1"), ("queue", "ls", "--json")])
def test_output_that_cannot_be_written_is_one_sentence_and_loses_no_message(
    cli: Cli, mq: fastmq.Client, verb: tuple[str, ...]
) -> None:
    mq.declare_queue("unwritten")
    mq.purge_queue("unwritten")
    mq.publish("unwritten", b"kept")
    mq.flush()
    for output, reason in ((">/dev/full", b"No space left on device"), (">&-", b"standard output is closed")):
        command = ["sh", "-c", f'"$@" {output}', "sh", *FASTMQ, *verb]
        done = subprocess.run(command, stderr=subprocess.PIPE, env=cli.environment, timeout=60)
        assert done.returncode == 1
        assert reason in done.stderr
        assert b"Traceback" not in done.stderr
    wait_until(lambda: mq.declare_queue("unwritten", passive=True).message_count == 1)


def test_reader_that_goes_away_ends_consume_and_loses_nothing_unread(cli: Cli, mq: fastmq.Client) -> None:
    mq.declare_queue("piped")
    process = cli.start("consume", "piped")
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        mq.publish("piped", b"one")
        assert process.stdout.readline() == b"one\n"
        process.stdout.close()
        for number in range(3):
            mq.publish("piped", b"later %d" % number)
        mq.flush()
        assert process.wait(10) == 141
        assert b"Traceback" not in process.stderr.read()
    wait_until(lambda: consumers_of(mq, "piped") == 0)
    assert mq.declare_queue("piped", passive=True).message_count == 3


@pytest.mark.parametrize(
    ("kind", "pattern", "seen"),
    [("topic", "*.error", [b"app.error", b"db.error"]), ("exact", "app.error", [b"app.error"]), ("topic", "#", None)],
)
def test_subscribe_prints_what_passes_an_exchange(
    cli: Cli, mq: fastmq.Client, kind: str, pattern: str, seen: list[bytes] | None
) -> None:
    keys = [b"app.error", b"app.info", b"db.error"]
    expected = keys if seen is None else seen
    process = cli.start("subscribe", pattern, "-e", "amq.topic", "--kind", kind, "-n", str(len(expected)))
    with process:
        assert process.stderr is not None
        assert b"subscribed" in process.stderr.readline()
        for key in keys:
            mq.publish(key.decode(), key, exchange="amq.topic")
        output, _ = process.communicate(timeout=10)
    assert output.splitlines() == expected
    assert process.returncode == 0


def test_status_lists_processes_and_queues(cli: Cli, mq: fastmq.Client, broker: fastmq.Broker) -> None:
    mq.declare_queue("counted.queue")
    for _ in range(3):
        mq.publish("counted.queue", b"x")
    mq.flush()
    message = mq.get("counted.queue", timeout=5)
    shown = json.loads(cli("status", "--json").stdout)
    message.ack()
    assert sorted((row["role"], row["index"]) for row in shown["processes"]) == [
        ("frontend", 0),
        ("supervisor", 0),
        ("worker", 0),
    ]
    assert all(row["restarts"] == 0 and Path(f"/proc/{row['pid']}").exists() for row in shown["processes"])
    queue = next(row for row in shown["queues"] if row["name"] == "counted.queue")
    assert {**queue, "messages_ready": 2, "messages_unacknowledged": 1, "consumers": 0, "vhost": "/"} == queue
    assert b"counted.queue" in cli("status").stdout


def test_queue_verbs_do_what_they_say(cli: Cli) -> None:
    long_name = "a-name-that-is-not-cut-off-" + "x" * 150
    cli("queue", "declare", long_name)
    cli("exchange", "declare", "logs", "topic")
    cli("queue", "bind", long_name, "logs", "*.error")
    cli("publish", "app.error", "1", "2", "--exchange", "logs")
    cli("publish", "app.info", "3", "--exchange", "logs")
    listed = {row["name"]: row for row in json_lines(cli("queue", "ls", "--json").stdout)}
    assert listed[long_name]["messages_ready"] == 2
    assert long_name.encode() in cli("queue", "ls").stdout
    assert b"2 messages dropped" in cli("queue", "purge", long_name).stderr
    cli("queue", "unbind", long_name, "logs", "*.error")
    cli("publish", "app.error", "1", "--exchange", "logs", "--mandatory", status=1)
    cli("queue", "delete", long_name)
    cli("exchange", "delete", "logs")
    assert long_name not in {row["name"] for row in json_lines(cli("queue", "ls", "--json").stdout)}


def test_exchange_binding_forwards(cli: Cli, mq: fastmq.Client) -> None:
    mq.declare_queue("behind")
    for name in ("source", "destination"):
        cli("exchange", "declare", name, "topic")
    cli("exchange", "bind", "destination", "source", "a.#")
    cli("queue", "bind", "behind", "destination", "#")
    cli("publish", "a.b", "forwarded", "--exchange", "source")
    cli("publish", "b", "not", "--exchange", "source")
    assert cli("consume", "behind", "--timeout", "0.3").stdout == b"forwarded\n"
    cli("exchange", "unbind", "destination", "source", "a.#")
    cli("publish", "a.b", "x", "--exchange", "source", "--mandatory", status=1)


def bench_queues(mq: fastmq.Client) -> list[str]:
    return [queue["name"] for queue in mq.status()["queues"] if queue["name"].startswith("fastmq-bench.")]


@pytest.mark.parametrize(
    ("arguments", "figures"),
    [
        (("queue",), {"messages_s", "mb_s"}),
        (("queue", "--producers", "2", "--consumers", "3", "--size", "2000"), {"messages_s", "mb_s"}),
        (("crowd", "--clients", "40"), {"messages_s", "mb_s"}),
        (("pingpong",), {"p50_us", "p99_us"}),
        (("pubsub", "--consumers", "2"), {"messages_s", "mb_s"}),
    ],
)
def test_bench_measures_and_leaves_no_queue(cli: Cli, mq: fastmq.Client, arguments: tuple[str, ...], figures: set[str]) -> None:
    done = cli("bench", *arguments, "--messages", "1200", "--json")
    (row,) = json_lines(done.stdout)
    assert (row["load"], row["messages"]) == (arguments[0], 1200)
    assert figures <= row.keys()
    assert all(row[figure] > 0 for figure in figures)
    assert done.stderr == b""
    assert bench_queues(mq) == []


def test_bench_shows_a_table_of_several_loads(cli: Cli) -> None:
    shown = cli("bench", "queue", "pingpong", "--messages", "200").stdout.decode()
    head, *rows = [line.split() for line in shown.splitlines() if line.strip() and "──" not in line]
    assert head == ["load", "messages", "size", "messages/s", "MB/s", "p50", "us", "p99", "us", "seconds"]
    assert [row[:2] for row in rows] == [["queue", "200"], ["pingpong", "200"]]
    assert [[number for number, cell in enumerate(row) if cell == "-"] for row in rows] == [[5, 6], [3, 4]]


def test_bench_shows_no_figure_that_its_load_does_not_have(cli: Cli) -> None:
    shown = cli("bench", "queue", "--messages", "200").stdout
    assert b"messages/s" in shown
    assert b"p99" not in shown


def test_bench_whose_messages_do_not_all_come_ends_with_status_1(cli: Cli, mq: fastmq.Client) -> None:
    """Somebody else takes messages out of its queue."""
    process = cli.start("bench", "queue", "--messages", "20000", "--prefetch", "1")
    (queue,) = wait_until(lambda: bench_queues(mq))
    message = wait_until(lambda: mq.get(queue))
    message.ack()
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, b"")
    assert b"1 of 20000 messages were lost" in err
    assert bench_queues(mq) == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signal_ends_bench_and_leaves_no_queue(cli: Cli, mq: fastmq.Client, number: signal.Signals, status: int) -> None:
    process = cli.start("bench", "pingpong", "--messages", "1000000", start_new_session=True)
    wait_until(lambda: sum(consumers_of(mq, queue) for queue in bench_queues(mq)) == 2)
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err.strip()) == (status, b"", b"")
    assert bench_queues(mq) == []


def test_bench_of_a_broker_that_goes_away_ends_with_status_3(cli: Cli) -> None:
    with fastmq.Broker(workers=1) as broker, fastmq.connect(broker.url) as mq:
        process = cli.start("bench", "pingpong", "--messages", "1000000", "--url", broker.url)
        wait_until(lambda: sum(consumers_of(mq, queue) for queue in bench_queues(mq)) == 2)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (3, b"")
    assert b"Traceback" not in err


def test_serve_says_ready_stops_on_sigterm_and_keeps_what_it_had(cli: Cli, tmp_path: Path) -> None:
    process = cli.start("serve", "--port", "0", "--workers", "1")
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        words = process.stdout.readline().decode().split()
        assert words[0] == "ready"
        assert words[2].startswith("events=")
        with fastmq.connect(words[1]) as mq:
            mq.declare_queue("q")
        cli("publish", "q", "x", "--url", words[1])
        process.send_signal(signal.SIGTERM)
        output, told = process.communicate(timeout=5)
        assert process.returncode == 0
        assert output == b""
        assert f"data in {tmp_path / 'fastmq'}".encode() in told
        assert b"Traceback" not in told
    with cli.start("serve", "--port", "0", "--workers", "1") as process:
        assert process.stdout is not None
        cli("consume", "q", "--count", "1", "--url", process.stdout.readline().decode().split()[1])
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=5)


def test_ephemeral_serve_stops_on_ctrl_c_without_a_word_about_disks(cli: Cli, tmp_path: Path) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text("port = 0\nworkers = 1\n")
    process = cli.start("serve", "--ephemeral", "--config", str(settings), start_new_session=True)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"ready fastmq://127.0.0.1:")
        os.killpg(process.pid, signal.SIGINT)
        _, told = process.communicate(timeout=5)
        assert process.returncode == 0
        assert b"data in" not in told
        assert b"Traceback" not in told


def test_variable_that_was_probably_meant_as_a_setting_is_told(cli: Cli) -> None:
    cli.environment["FASTMQ_WORKER"] = "3"
    shown = cli("config", "--json")
    assert b"did you mean FASTMQ_WORKERS?" in shown.stderr
    assert json.loads(shown.stdout)["workers"] == 0
    with cli.start("serve", "--port", "0", "--workers", "1", "--ephemeral") as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"ready ")
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=5)
    assert b"FASTMQ_WORKER in the environment is no setting" in told


def test_each_counter_of_status_is_documented(cli: Cli) -> None:
    counters = json.loads(cli("status", "--json").stdout)["counters"]
    text = (Path(__file__).parents[2] / "docs/operations.md").read_text()
    rows = [line.split("|")[1] for line in text.partition("## Counters")[2].partition("\n## ")[0].splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall("`([a-z_]+)`", row)} == set(counters)


def test_serve_on_a_port_in_use_says_so(cli: Cli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        told = cli("serve", "--port", str(listener.getsockname()[1]), "--workers", "1", status=1).stderr
    assert b"in use" in told


@pytest.mark.parametrize(
    "verb", ["serve", "publish", "consume", "subscribe", "queue", "queue ls", "status", "exchange", "config", "bench"]
)
def test_help_tells_exit_status(cli: Cli, verb: str) -> None:
    assert b"Exit status" in cli(*verb.split(), "--help").stdout


def test_version(cli: Cli) -> None:
    assert cli("--version").stdout.startswith(b"fastmq ")
