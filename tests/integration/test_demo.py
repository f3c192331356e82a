"""`make demo` on small inputs and on odd ones: examples/wordcount.py as it is."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from leaks import Run, command_of, processes_of
from needs import need_program
from waiting import wait_until

EXAMPLES = Path(__file__).parents[2] / "examples"


def demo(*arguments: str | bytes, status: int = 0, prefix: tuple[str, ...] = ()) -> str:
    """Run it; what it wrote, standard output and error together."""
    command = [*prefix, sys.executable, str(EXAMPLES / "wordcount.py"), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=110)
    output = done.stdout.decode("utf-8", "backslashreplace")
    assert done.returncode == status, output[-4000:]
    assert "Traceback" not in output
    return output


def cell(output: str, row: str, column: int = 0) -> str:
    """A cell of the tables that the demo prints; column 0 stands behind the row's name."""
    line = next(line for line in output.splitlines() if line.strip(" │┃").startswith(row))
    return line.strip(" │┃").removeprefix(row).replace("│", " ").replace("┃", " ").split()[column]


def counted(output: str) -> dict[str, int]:
    rows = ("messages", "lost", "duplicated", "bytes", "words", "different words", "words with another count")
    return {row: number(cell(output, row)) for row in rows}


def number(text: str) -> int:
    return int(text.replace(",", ""))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "input"
    made.mkdir()
    return made


def test_folder_is_counted_and_agrees(folder: Path) -> None:
    (folder / "a.txt").write_bytes(b"one two two\nthree\n\n")
    (folder / "sub").mkdir()
    (folder / "sub" / "b").write_bytes(b"two\tone\x0bfour\r\nno end of line")
    output = demo(str(folder))
    assert counted(output) == {
        "messages": 5,
        "lost": 0,
        "duplicated": 0,
        "bytes": 47,
        "words": 11,
        "different words": 8,
        "words with another count": 0,
    }
    assert cell(output, "live subscription, seen") == "5"
    assert "the counts agree" in output


def test_one_file_is_shared_by_both_consumers(folder: Path) -> None:
    (folder / "lines").write_bytes(b"".join(b"line %d of many\n" % number for number in range(20_000)))
    output = demo(str(folder / "lines"))
    assert counted(output)["messages"] == 20_000
    each = [number(cell(output, f"counted by consumer {index}")) for index in (1, 2)]
    assert sum(each) == 20_000
    assert min(each) > 0
    assert number(cell(output, "messages/s")) > 0
    for share in ("p50", "p99"):
        assert float(cell(output, f"publish to acknowledgement, {share}")) > 0


@pytest.mark.parametrize("empty", ["file", "folder"])
def test_empty_input_ends_well(folder: Path, empty: str) -> None:
    if empty == "file":
        (folder / "empty").touch()
    output = demo(str(folder / "empty" if empty == "file" else folder))
    assert set(counted(output).values()) == {0}
    assert "the counts agree" in output


def test_line_of_50_mb_arrives_whole(folder: Path) -> None:
    (folder / "long").write_bytes(b"word " * 10_000_000 + b"\nshort\n")
    output = demo(str(folder / "long"))
    assert counted(output)["messages"] == 2
    assert counted(output)["bytes"] == 50_000_007
    assert counted(output)["words"] == 10_000_001


def test_single_word_of_several_megabytes_and_no_line_end(folder: Path) -> None:
    (folder / "word").write_bytes(b"x" * 9_000_000)
    output = demo(str(folder))
    assert (counted(output)["messages"], counted(output)["words"]) == (1, 1)


def test_bytes_that_are_not_utf8_are_counted_as_they_are(folder: Path) -> None:
    (folder / "bytes").write_bytes(bytes(range(256)) * 40 + "\x85 \u2028 \xa0".encode() + b"\0 \xff\xfe")
    assert "the counts agree" in demo(str(folder))


def test_odd_file_names_are_read(folder: Path) -> None:
    names = [
        b"with\nnew line",
        b"\xff\xfe not utf-8",
        "ünïcödé".encode(),
        b" ",
        b"-x",
        b"[bold]x",
        b"a" * 255,
        b"*",
        b"...",
    ]
    for name in names:
        with open(os.path.join(os.fsencode(folder), name), "wb") as file:
            file.write(b"a word\n")
    assert counted(demo(str(folder)))["messages"] == len(names)
    for name in names[:2]:
        output = demo("--", os.path.join(os.fsencode(folder), name))
        assert counted(output)["messages"] == 1


def test_missing_path_is_named(folder: Path) -> None:
    output = demo(str(folder / "no\nsuch"), status=2)
    assert r"no\nsuch cannot be read: No such file or directory" in output


@pytest.mark.parametrize(
    ("path", "told"),
    [("/dev/null", "is not a file or a folder"), ("/proc/self/mem", "cannot be read: Input/output error")],
)
def test_what_is_not_a_readable_file_is_told(path: str, told: str) -> None:
    assert told in demo(path, status=2)


def test_unreadable_files_of_a_folder_are_named_and_left_out(folder: Path) -> None:
    prefix: tuple[str, ...] = ()
    if os.geteuid() == 0:  # root reads everything, but not without these capabilities
        need_program("setpriv", "util-linux")
        prefix = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")
    (folder / "readable").write_bytes(b"one\n")
    (folder / "closed").write_bytes(b"two\n")
    (folder / "closed").chmod(0)
    (folder / "closed folder").mkdir(mode=0)
    output = demo(str(folder), prefix=prefix)
    assert counted(output)["messages"] == 1
    assert "counted by neither: 2" in output
    assert f"{folder}/closed: Permission denied" in output
    assert f"{folder}/closed folder: Permission denied" in output
    output = demo(str(folder / "closed"), prefix=prefix, status=2)
    assert "Permission denied" in output
    (folder / "closed folder").chmod(0o700)


def test_symbolic_links_are_not_followed(folder: Path) -> None:
    (folder / "file").write_bytes(b"one\n")
    (folder / "loop").symlink_to(folder)
    (folder / "again").symlink_to("file")
    (folder / "nowhere").symlink_to("no-such-file")
    assert counted(demo(str(folder)))["messages"] == 1


def test_counts_that_differ_end_with_status_1(folder: Path, tmp_path: Path) -> None:
    """The check can fail: a reference that counts one word more is noticed."""
    copies = tmp_path / "examples"
    shutil.copytree(EXAMPLES, copies)
    reference = copies / "wordcount_reference.py"
    reference.write_text(reference.read_text().replace("words.update(found)", 'words.update([*found, b"more"])'))
    (folder / "file").write_bytes(b"one\n")
    done = subprocess.run([sys.executable, str(copies / "wordcount.py"), str(folder)], capture_output=True, timeout=60)
    assert done.returncode == 1
    assert b"DO NOT AGREE" in done.stdout


def is_loading(pid: int) -> bool:
    """Whether the interpreter is past its own start and loads what the demo imports."""
    return "_json" in Path(f"/proc/{pid}/maps").read_text()


@pytest.mark.parametrize("started", [0, 1, 2, 3])
@pytest.mark.parametrize("everywhere", [False, True], ids=["to-its-group", "to-each-process"])
def test_ctrl_c_ends_with_status_130_and_leaves_nothing_behind(run: Run, started: int, everywhere: bool) -> None:
    """It comes, three times, while the broker starts, or so many of the processes that count."""
    command = [sys.executable, str(EXAMPLES / "wordcount.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True) as process:

        def helpers() -> list[int]:
            return [pid for pid in processes_of(run.id) if "wordcount_" in command_of(pid)]

        what = "fastmq.server" if started == 0 else "wordcount_"
        wait_until(lambda: sum(what in command_of(pid) for pid in processes_of(run.id)) >= max(1, started), timeout=30, interval=0.001)
        for _ in range(3):
            for pid in helpers() if everywhere else ():
                send_interrupt(pid)
            os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 130, output
    assert b"Traceback" not in output, output
    assert output.endswith(b"wordcount: stopped\n")
    wait_until(lambda: not processes_of(run.id), timeout=2, what="the processes are gone")


def send_interrupt(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGINT)
    except ProcessLookupError:
        pass


def test_ctrl_c_while_it_loads_ends_it_without_a_word(run: Run) -> None:
    command = [sys.executable, str(EXAMPLES / "wordcount.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True) as process:
        wait_until(lambda: is_loading(process.pid), interval=0.0005)
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=20)
    assert process.returncode in (130, -signal.SIGINT)
    assert b"Traceback" not in output, output


@pytest.mark.long
def test_standard_library_is_counted_within_a_minute() -> None:
    assert "the counts agree" in demo()
