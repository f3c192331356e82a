"""The figures of fastmq beside those of its peers: every line of the table, each with the bound it must keep.

    python benchmarks/bench.py [LOAD]... [--rounds N] [--list]

Brokers and peers run on free loopback ports of this machine, in turn (A B A B), at least three times; medians are compared. Payloads are
prepared beforehand, calls are ordinary ones for each message, and a run ends when the last message is acknowledged and nothing is ready or
outstanding. A run in which a message is lost or comes twice is void, and so is its load. All runs are written to bench.json in the current
folder. Exit status: 0 all bounds kept, 1 a bound missed or a load void, 2 wrong usage, or something a bound needs is not installed.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from backlog import LOADS_OF_BACKLOG
from beside import LOADS_OF_BESIDE
from depth import LOADS_OF_DEPTH
from durable import LOADS_OF_DURABLE
from harness import Line, Load, Missing, Result, Stage, Void, in_turn, machine, versions
from large import LOADS_OF_LARGE
from latency import LOADS_OF_LATENCY
from many import LOADS_OF_MANY
from memory import LOADS_OF_MEMORY
from pubsub import LOADS_OF_PUBSUB
from queues import LOADS_OF_QUEUES
from rest import LOADS_OF_REST
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text
from trie import LOADS_OF_TRIE
from where import LOADS_OF_WHERE

from fastmq import FastMQError

LOADS: tuple[Load, ...] = (
    *LOADS_OF_QUEUES, *LOADS_OF_LATENCY, *LOADS_OF_PUBSUB, *LOADS_OF_LARGE, *LOADS_OF_MANY, *LOADS_OF_DEPTH, *LOADS_OF_MEMORY,
    *LOADS_OF_TRIE, *LOADS_OF_REST, *LOADS_OF_WHERE, *LOADS_OF_DURABLE, *LOADS_OF_BESIDE, *LOADS_OF_BACKLOG,
)  # fmt: skip
FILE = Path("bench.json")
COLUMNS = ("load", "figure", "measured", "against", "ratio", "bound", "")
TABLE_WIDTH = 190  # where no terminal sets one


class Report:
    """The results so far: the file and the table."""

    def __init__(self, rounds: int, scale: float) -> None:
        self.results: list[tuple[Load, Result]] = []
        self.about: dict[str, Any] = {"machine": machine(), "versions": versions(), "rounds": rounds}
        if scale < 1:
            self.about["scale"] = scale

    def add(self, load: Load, result: Result, peers: dict[str, str]) -> None:
        self.results.append((load, result))
        self.about["versions"].update(peers)
        FILE.write_text(json.dumps({**self.about, "loads": {one.name: as_map(one, found) for one, found in self.results}}, indent=1))

    @property
    def status(self) -> int:
        needed = [(result, line) for load, result in self.results for line in load.lines if line.bound is not None]
        if any(result.missing for result, _ in needed):
            return 2
        voids = any(result.void for _, result in self.results)
        return 1 if voids or not all(line.kept(result.value(line)) for result, line in needed) else 0

    def rows(self) -> Iterator[Sequence[str]]:
        """The table's lines, below COLUMNS."""
        for load, result in self.results:
            if why := result.void or result.missing:
                kind = "void" if result.void else "not measured"
                yield load.name, load.title, f"{kind}: {why}", "", "", "", kind.upper()
                continue
            for line in load.lines:
                yield cells(load, line, result)

    def where(self) -> str:
        """The machine, and the versions of everything."""
        machine, versions = self.about["machine"], self.about["versions"]
        told = ", ".join(f"{name} {version}" for name, version in versions.items())
        return f"{machine['cores']} cores, {machine['cpu']}, Linux {machine['kernel']}\n{told}"

    def table(self) -> Table:
        title = f"{self.where()}\nmedians of {self.about['rounds']} rounds in turn (least - most)"
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
        for column in COLUMNS:
            table.add_column(column, justify="right" if column == "ratio" else "left")
        for row in self.rows():
            table.add_row(*map(Text, row))
        return table

    def markdown(self) -> str:
        """The same for a document."""
        lines = [COLUMNS, ["---"] * len(COLUMNS), *self.rows()]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cells(load: Load, line: Line, result: Result) -> Sequence[str]:
    """A row of the table."""
    value = result.value(line)
    measured, against, ratio = told(result, line.ours, line.figure), "", ""
    if line.against:
        against, ratio = told(result, result.best(line), line.figure), f"{value:.2f}"
    if line.bound is None:
        return load.name, f"{load.title}: {line.title}", measured, against, ratio, "", ""
    times = " x" if line.against else ""
    bound = f"{'at least' if line.at_least else 'at most'} {line.bound:,.9g}{times}"
    return load.name, f"{load.title}: {line.title}", measured, against, ratio, bound, "kept" if line.kept(value) else "MISSED"


def told(result: Result, name: str, figure: str) -> str:
    low, high = result.spread(name, figure)
    return f"{name}: {short(result.median(name, figure))} ({short(low)} - {short(high)})"


def short(value: float) -> str:
    """Three digits, with k or M where the number is large."""
    for unit, size in (("M", 1e6), ("k", 1e4)):
        if abs(value) >= size:
            return f"{value / min(size, 1e3 if unit == 'k' else size):,.3g} {unit}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def as_map(load: Load, result: Result) -> dict[str, Any]:
    """A load for bench.json."""
    found: dict[str, Any] = {"title": load.title, "runs": result.runs}
    if why := result.void or result.missing:
        return {**found, "void" if result.void else "missing": why}
    found["lines"] = [
        {
            "title": line.title, "figure": line.figure, "ours": line.ours, "against": result.best(line) if line.against else None,
            "value": result.value(line), "bound": line.bound, "at_least": line.at_least,
            "kept": None if line.bound is None else line.kept(result.value(line)),
        }
        for line in load.lines
    ]  # fmt: skip
    return found


def measure(load: Load, rounds: int, stage: Stage, report: Report) -> None:
    """Run one load and add what came of it to the report."""
    print(f"{load.name}: {load.title}", file=sys.stderr, flush=True)
    result = Result()
    try:
        with stage:
            in_turn(rounds, load.prepare(stage), result)
    except (Void, FastMQError) as reason:
        result.void = str(reason)
        print(f"  void: {reason}", file=sys.stderr, flush=True)
    except Missing as reason:
        result.missing = str(reason)
        print(f"  not measured: {reason}", file=sys.stderr, flush=True)
    report.add(load, result, stage.versions)


def usage() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("load", nargs="*", help="what to run; everything if nothing is named")
    parser.add_argument("--rounds", type=int, default=3, help="rounds A B (default 3)")
    parser.add_argument("--list", action="store_true", help="list the loads and their bounds, and run nothing")
    parser.add_argument("--markdown", action="store_true", help="print the table for a document")
    parser.add_argument("--scale", type=float, default=1.0, help="this share of the messages, to try a load and not to measure it")
    parser.add_argument("--long", action="store_true", help="the long form of loads that have one (disk: 100 million messages, backlog: 10 GB)")
    given = parser.parse_args()
    if unknown := set(given.load) - {load.name for load in LOADS}:
        parser.error(f"there is no load {', '.join(sorted(unknown))}: --list names them all")
    if given.rounds < 1 or not 0 < given.scale <= 1:
        parser.error("--rounds is at least 1, --scale above 0 and at most 1")
    return given


def main() -> int:
    given = usage()
    chosen = [load for load in LOADS if not given.load or load.name in given.load]
    if given.list:
        for load in chosen:
            for line in load.lines:
                bound = "" if line.bound is None else f", {'at least' if line.at_least else 'at most'} {line.bound:,.9g}"
                print(f"{load.name:14} {load.title}: {line.title}{' against ' + ' or '.join(line.against) if line.against else ''}{bound}")
        return 0
    report = Report(given.rounds, given.scale)
    try:
        for load in chosen:
            measure(load, given.rounds, Stage(given.scale, given.long), report)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    finally:
        if report.results and given.markdown:
            print(report.markdown())
        elif report.results:
            Console(width=None if sys.stdout.isatty() else TABLE_WIDTH, highlight=False).print(report.table())
    return report.status


if __name__ == "__main__":
    sys.exit(main())
