"""Count the words of a file or a folder through fastmq, and prove that no line was lost, doubled or changed on the way.

    python examples/wordcount.py [INPUT]        (make demo, make demo INPUT=...)

Each line (its bytes, as they are) is published to a topic exchange. A queue bound to it is shared by two consumer
processes that count words (wordcount_consumer.py); a live subscription sees the lines pass (wordcount_subscriber.py).
Afterwards a program that does not know fastmq counts the same input (wordcount_reference.py), and both are compared.
Without INPUT the input is the Python standard library: every .py file below its folder, its tests too where they are
installed, without site-packages.

Exit status: 0 everything agrees; 1 it does not, or the run failed; 2 the input cannot be used; 130 stopped by Ctrl-C.
"""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until `main` takes over, Ctrl-C ends the program without a word

import argparse
import json
import os
import re
import stat
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

import fastmq

EXCHANGE, QUEUE, PATTERN = "text", "lines", "line.#"
CONSUMERS = 2
BAR = TaskID(0)
AHEAD_MESSAGES = 4000  # lines published and not yet acknowledged: queue, memory and latency stay small
AHEAD_BYTES = 64 * 2**20
LINE_SIZE_MAX = 100 * 2**20  # a message of fastmq may have 128 MiB, properties included
STALLED_S = 60.0  # without any progress for so long, something is broken
SKIPPED = (b"site-packages", b"dist-packages")  # of the standard library's folder: other people's
NAMED_MAX = 10  # files that could not be read are named up to this number
FOLDER = Path(__file__).parent


class Failed(Exception):
    """The run ends here with this exit status."""

    def __init__(self, text: str, status: int = 1) -> None:
        super().__init__(text)
        self.status = status


# --- the input -------------------------------------------------------------------------------------------------------


class Source(NamedTuple):
    """What is counted. `reference` is the same choice as arguments of wordcount_reference.py."""

    title: str
    files: list[bytes]
    size: int  # bytes, for the progress bar
    root: bytes
    is_file: bool
    reference: list[str]


def show(path: bytes | str) -> str:
    """A file name that can be printed anywhere: control characters and bytes that are not text are escaped."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return text if text.isprintable() else repr(text)[1:-1]


def choose(argument: str | None, complaints: list[str]) -> Source:
    """Find the files of the input; what of a folder cannot be listed is added to `complaints`."""
    library = argument is None
    path = sysconfig.get_path("stdlib") if argument is None else argument
    root = os.fsencode(path)
    try:
        mode = os.stat(root).st_mode
        if stat.S_ISREG(mode):
            os.close(os.open(root, os.O_RDONLY))
            return Source(show(root), [root], os.stat(root).st_size, os.path.dirname(root), True, ["--", path])
        if not stat.S_ISDIR(mode):
            raise Failed(f"{show(root)} is not a file or a folder; it must be possible to read it twice", 2)
        os.listdir(root)
    except (OSError, ValueError) as error:
        raise Failed(f"{show(root)} cannot be read: {getattr(error, 'strerror', error)}", 2) from None
    files = files_below(root, SKIPPED if library else (), complaints)
    if library:
        files = [name for name in files if name.endswith(b".py")]
    size = 0
    for name in files:
        try:
            size += os.stat(name).st_size
        except OSError:
            pass  # reading it will say why
    if not library:
        return Source(show(root), files, size, root, False, ["--", path])
    title = f"the Python {sys.version.split()[0]} standard library, {len(files):,} .py files"
    skipped = [option for name in SKIPPED for option in ("--skip", os.fsdecode(name))]
    return Source(title, files, size, root, False, ["--suffix", ".py", *skipped, "--", path])


def files_below(root: bytes, skip: tuple[bytes, ...], complaints: list[str]) -> list[bytes]:
    """The regular files below a folder, by name; symbolic links are not followed."""
    found = []

    def complain(error: OSError) -> None:
        complaints.append(f"{show(error.filename)}: {error.strerror}")

    for folder, folders, names in os.walk(root, onerror=complain):
        folders[:] = sorted(name for name in folders if name not in skip)
        for name in sorted(names):
            path = os.path.join(folder, name)
            try:
                if name not in skip and stat.S_ISREG(os.lstat(path).st_mode):
                    found.append(path)
            except OSError as error:
                complain(error)
    return found


def lines_of(source: Source, complaints: list[str]) -> Iterator[tuple[str, bytes]]:
    """Each line with its routing key; a file that cannot be read to its end is added to `complaints`."""
    for path in source.files:
        key = "line." + topic_of(os.path.relpath(path, source.root or b"."))
        try:
            with open(path, "rb", buffering=2**18) as file:
                while line := file.readline(LINE_SIZE_MAX + 1):
                    if len(line) > LINE_SIZE_MAX:
                        limit = f"{LINE_SIZE_MAX >> 20} MiB"
                        raise Failed(f"{show(path)} has a line longer than {limit}, too long for one message", 2)
                    yield key, line
        except OSError as error:
            if source.is_file:
                raise Failed(f"{show(path)} cannot be read: {error.strerror}", 2) from None
            complaints.append(f"{show(path)}: {error.strerror}")


def topic_of(path: bytes) -> str:
    """A routing key's word for a file: the first part of its path, `asyncio` for asyncio/events.py."""
    first = path.split(b"/")[0].split(b".")[0]
    return re.sub(rb"[^A-Za-z0-9_-]", b"_", first)[:60].decode() or "_"


# --- the processes beside this one -----------------------------------------------------------------------------------


class Interrupt:
    """What Ctrl-C does: the first raises KeyboardInterrupt, within `held` only behind it; later ones find the end under way."""

    def __init__(self) -> None:
        self.came = self.is_held = False

    def begin(self) -> None:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # not in a shell's background, where it is ignored
            signal.signal(signal.SIGINT, self._come)

    def _come(self, number: int, frame: object) -> None:
        if not self.came:
            self.came = True
            if not self.is_held:
                raise KeyboardInterrupt

    @contextmanager
    def held(self) -> Iterator[None]:
        """For starting processes: none is started that nobody knows of, and Ctrl-C never reaches them, who inherit the mask."""
        came = self.came
        self.is_held = True
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            self.is_held = False
            if self.came and not came:
                raise KeyboardInterrupt

    def end(self) -> None:
        """Nothing is left to be stopped."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)


class Helper:
    """A process that was started for this run; `said` are the lines of its standard output."""

    def __init__(self, name: str, program: str, *arguments: str) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, str(FOLDER / program), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C comes to this process, which then ends the others in order
        )
        self.said: list[str] = []
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line.decode().strip())
            del self.said[1:-1]  # the first and the last are of use

    @property
    def numbers(self) -> list[int]:
        """The numbers of the last line, zeros if there is none yet."""
        last = self.said[-1:] or ["ready"]
        return [0, 0, 0] if last == ["ready"] else [int(word) for word in last[0].split()]

    def check(self) -> None:
        if self.process.poll() is not None:
            raise Failed(f"{self.name} ended unexpectedly with exit status {self.process.returncode}")

    def say_end(self) -> None:
        """Tell it that there is no more."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def finish(self) -> None:
        """Wait for its end."""
        status = self.process.wait(STALLED_S)
        self.thread.join()
        if status != 0:
            raise Failed(f"{self.name} failed with exit status {status}")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.thread.join()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()


# --- the run ---------------------------------------------------------------------------------------------------------


class Run:
    """Everything from the first line published to the last one acknowledged."""

    def __init__(self, mq: fastmq.Client, consumers: list[Helper], subscriber: Helper, progress: Progress) -> None:
        self.mq, self.consumers, self.subscriber, self.progress = mq, consumers, subscriber, progress
        self.published = self.published_bytes = 0
        self.acknowledged = self.acknowledged_bytes = 0
        self.moved_at = time.monotonic()

    def look(self) -> None:
        """See how far the consumers are. Raises Failed if a process ended or nothing has moved for too long."""
        totals = [helper.numbers for helper in self.consumers]
        acknowledged, size = sum(total[0] for total in totals), sum(total[1] for total in totals)
        now = time.monotonic()
        if acknowledged != self.acknowledged:
            self.acknowledged, self.acknowledged_bytes, self.moved_at = acknowledged, size, now
            self.progress.update(BAR, completed=size, lines=acknowledged)
        for helper in (*self.consumers, self.subscriber):
            helper.check()
        if now - self.moved_at > STALLED_S:
            state = f"{self.published:,} lines published, {acknowledged:,} acknowledged"
            raise Failed(f"nothing has moved for {STALLED_S:.0f} s: {state}")

    def publish(self, lines: Iterator[tuple[str, bytes]]) -> None:
        """Publish every line with its number and the time, never far ahead of the consumers."""
        publish = self.mq.publish
        for key, line in lines:
            if self.published % 256 == 0 or len(line) > 65536:
                self.moved_at = time.monotonic()
                self.look()
                while self.is_ahead(len(line)):
                    time.sleep(0.0005)
                    self.look()
            number = self.published
            publish(key, line, exchange=EXCHANGE, message_id=str(number), headers={"published_ns": time.monotonic_ns()})
            self.published = number + 1
            self.published_bytes += len(line)
        self.mq.flush(timeout=STALLED_S)

    def is_ahead(self, size: int) -> bool:
        """Whether a line of `size` bytes must wait."""
        if self.published == self.acknowledged:
            return False
        too_many = self.published - self.acknowledged >= AHEAD_MESSAGES
        return too_many or self.published_bytes + size - self.acknowledged_bytes > AHEAD_BYTES

    def wait_until_settled(self) -> None:
        """Wait until the broker holds nothing, delivered or not: then each line was counted, or is lost."""
        self.moved_at = time.monotonic()
        while True:
            self.look()
            queue = next(queue for queue in self.mq.status()["queues"] if queue["name"] == QUEUE)
            if not queue["messages_ready"] and not queue["messages_unacknowledged"]:
                return
            time.sleep(0.002)

    def end_subscription(self) -> list[int]:
        """Publish `end` until the subscriber has seen it: live events are dropped for who is too slow, this one too."""
        deadline = time.monotonic() + STALLED_S
        while self.subscriber.process.poll() is None:
            if time.monotonic() > deadline:
                raise Failed("the live subscription did not come to its end")
            self.mq.publish("end", b"", exchange=EXCHANGE)
            try:
                self.subscriber.process.wait(0.2)
            except subprocess.TimeoutExpired:
                pass
        self.subscriber.finish()
        return self.subscriber.numbers


class Result(NamedTuple):
    """What the consumers counted, together."""

    published: int
    published_bytes: int
    seconds: float
    each: list[int]  # messages of each consumer
    bytes: int
    lost: int
    duplicated: int
    words: Counter[str]
    latencies: Counter[int]
    live: list[int]  # lines seen, their bytes, lines missed


def run(source: Source, complaints: list[str], console: Console, folder: str, interrupt: Interrupt) -> Result:
    """Send the input through a broker of its own and collect what became of it."""
    lines_column = TextColumn("{task.fields[lines]:,} lines")
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), lines_column, TimeElapsedColumn())
    results = [os.path.join(folder, f"consumer-{number}.json") for number in range(CONSUMERS)]
    with (
        fastmq.Broker() as broker,
        fastmq.connect(broker.url) as mq,
        Progress(*columns, console=console) as progress,
    ):
        progress.add_task("counting words", total=source.size or 1, lines=0)  # the only one: BAR
        mq.declare_exchange(EXCHANGE, "topic")
        mq.declare_queue(QUEUE)
        mq.bind_queue(QUEUE, EXCHANGE, PATTERN)
        with helpers(broker.url, results, interrupt) as (consumers, subscriber):
            this = Run(mq, consumers, subscriber, progress)
            started = time.monotonic()
            this.publish(lines_of(source, complaints))
            this.wait_until_settled()
            seconds = time.monotonic() - started
            progress.update(BAR, completed=source.size or 1, lines=this.published)
            live = this.end_subscription()
            for helper in consumers:
                helper.say_end()
            for helper in consumers:
                helper.finish()
    return collect(this.published, this.published_bytes, seconds, results, live)


@contextmanager
def helpers(url: str, results: list[str], interrupt: Interrupt) -> Iterator[tuple[list[Helper], Helper]]:
    """The consumers, one for each result, and the subscriber, all ready; killed at the end, if they have not ended."""
    started: list[Helper] = []
    try:
        with interrupt.held():
            for number, result in enumerate(results):
                started.append(Helper(f"consumer {number + 1}", "wordcount_consumer.py", url, QUEUE, result))
            started.append(Helper("the live subscription", "wordcount_subscriber.py", url, EXCHANGE))
        deadline = time.monotonic() + STALLED_S
        for helper in started:
            while not helper.said:
                helper.check()
                if time.monotonic() > deadline:
                    raise Failed(f"{helper.name} did not become ready")
                time.sleep(0.002)
        yield started[:-1], started[-1]
    finally:
        with interrupt.held():
            for helper in started:
                helper.kill()


def collect(published: int, published_bytes: int, seconds: float, results: list[str], live: list[int]) -> Result:
    words: Counter[str] = Counter()
    latencies: Counter[int] = Counter()
    each, size, duplicated = [], 0, 0
    seen = 0  # a bit for each line that some consumer saw
    for path in results:
        counted = json.loads(Path(path).read_text())
        each.append(counted["messages"])
        size += counted["bytes"]
        words.update(counted["words"])
        latencies.update({int(time_ns): count for time_ns, count in counted["latencies"].items()})
        bits = int.from_bytes(Path(path + ".seen").read_bytes(), "little")
        duplicated += counted["twice"] + (seen & bits).bit_count()
        seen |= bits
    lost = published - seen.bit_count()
    return Result(published, published_bytes, seconds, each, size, lost, duplicated, words, latencies, live)


def percentile_ms(latencies: Counter[int], share: float) -> str:
    """The time within which this share of the lines was acknowledged."""
    rest = share * latencies.total()
    for time_ns in sorted(latencies):
        rest -= latencies[time_ns]
        if rest <= 0:
            return f"{time_ns / 1e6:,.2f} ms"
    return "-"


# --- the comparison --------------------------------------------------------------------------------------------------


class Reference(NamedTuple):
    lines: int
    bytes: int
    words: Counter[str]


def count_without_fastmq(source: Source, folder: str) -> Reference:
    output = os.path.join(folder, "reference")
    with open(output, "wb") as file, open(output + ".errors", "wb") as errors:
        command = [sys.executable, str(FOLDER / "wordcount_reference.py"), *source.reference]
        if subprocess.run(command, stdout=file, stderr=errors, stdin=subprocess.DEVNULL).returncode != 0:
            raise Failed(f"the reference count failed: {Path(output + '.errors').read_text(errors='backslashreplace')}")
    with open(output, "rb") as file:
        lines, size = file.readline().split()
        words: Counter[str] = Counter()
        for line in file:
            count, word = line[:-1].split(b"\t", 1)
            words[word.decode("latin-1")] = int(count)
    return Reference(int(lines), int(size), words)


def report(result: Result, reference: Reference, console: Console) -> bool:
    """Print both tables; True if everything agrees."""
    table = Table(title="through fastmq", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    rate = result.published / result.seconds if result.published else 0
    for name, value in (
        ("messages", f"{result.published:,}"),
        *((f"   counted by consumer {number + 1}", f"{count:,}") for number, count in enumerate(result.each)),
        ("lost", f"{result.lost:,}"),
        ("duplicated", f"{result.duplicated:,}"),
        ("messages/s", f"{rate:,.0f}" if rate >= 10 else f"{rate:.2f}"),
        ("publish to acknowledgement, p50", percentile_ms(result.latencies, 0.5)),
        ("publish to acknowledgement, p99", percentile_ms(result.latencies, 0.99)),
        ("live subscription, seen", f"{result.live[0]:,}"),
        ("live subscription, missed (too slow)", f"{result.live[2]:,}"),
    ):
        table.add_row(name, value)
    console.print(table)

    words = result.words.keys() | reference.words.keys()
    different = {word for word in words if result.words[word] != reference.words[word]}
    rows = (
        ("lines", sum(result.each), reference.lines),
        ("bytes", result.bytes, reference.bytes),
        ("words", result.words.total(), reference.words.total()),
        ("different words", len(result.words), len(reference.words)),
        ("words with another count", len(different), 0),
    )
    table = Table("", "fastmq", "without fastmq", "", title="compared with a separate program", title_justify="left")
    for column in table.columns[1:3]:
        column.justify = "right"
    for name, ours, theirs in rows:
        table.add_row(name, f"{ours:,}", f"{theirs:,}", "agree" if ours == theirs else "DIFFER")
    console.print(table)
    return not result.lost and not result.duplicated and all(ours == theirs for _, ours, theirs in rows)


def compare(argument: str | None, console: Console, interrupt: Interrupt) -> int:
    """Count the input both ways and print what came of it; the exit status."""
    complaints: list[str] = []
    try:
        source = choose(argument, complaints)
        console.print(f"input: {source.title}, {source.size:,} bytes", markup=False, soft_wrap=True)
        with tempfile.TemporaryDirectory(prefix="fastmq-demo-") as folder:
            result = run(source, complaints, console, folder, interrupt)
            reference = count_without_fastmq(source, folder)
    except Failed as failure:
        print(f"wordcount: {failure}", file=sys.stderr)
        return failure.status
    except fastmq.FastMQError as error:
        print(f"wordcount: {error} ({error.code})", file=sys.stderr)
        return 1
    agree = report(result, reference, console)
    if complaints:
        print(f"could not be read, and so was counted by neither: {len(complaints)}", file=sys.stderr)
        for complaint in complaints[:NAMED_MAX]:
            print(f"   {complaint}", file=sys.stderr)
    print("the counts agree" if agree else "THE COUNTS DO NOT AGREE")
    return 0 if agree else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", nargs="?", metavar="INPUT", help="file or folder; default: the standard library")
    arguments = parser.parse_args()
    console = Console(highlight=False)
    interrupt = Interrupt()
    try:
        interrupt.begin()
        status = compare(arguments.input or None, console, interrupt)
        interrupt.end()
    except KeyboardInterrupt:
        interrupt.end()
        print("wordcount: stopped", file=sys.stderr)
        status = 130
    return status


if __name__ == "__main__":
    sys.exit(main())
