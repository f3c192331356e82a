"""`fastmq journal`: check, dump and repair the journals of a broker that is not running."""

from __future__ import annotations

import click

from fastmq.cli.output import say, write_bytes, write_json, write_table
from fastmq.errors import FastMQError, JournalDamaged
from fastmq.storage import repair
from fastmq.storage.checkpoint import Checkpoint
from fastmq.storage.files import Files
from fastmq.storage.journal_reader import JournalReader

EXIT_STATUS = """\b
Exit status: 0 whole, or done; 1 damaged, or something was lost; 2 wrong
usage; 130 stopped by Ctrl-C; 141 the reader of standard output went away."""

folder_argument = click.argument("folder", metavar="DIR", type=click.Path(exists=True, file_okay=False))


@click.group(epilog=EXIT_STATUS)
def command() -> None:
    """Check, dump and repair the journals of a broker that is not running.

    DIR is a data directory, or the folder of one journal.
    """


def journals(folder: str) -> list[str]:
    found = repair.journals_in(folder)
    if not found:
        raise FastMQError(f"there is no journal in {folder}", "no-journal")
    return found


@command.command("check", epilog=EXIT_STATUS)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a journal, one line each.")
@folder_argument
def check(as_json: bool, folder: str) -> int:
    """Read everything and say what is there, or where it is damaged. Changes nothing."""
    rows: list[repair.Examined] = []
    damages: list[JournalDamaged] = []
    for journal in journals(folder):
        try:
            rows.append(repair.examine(journal))
        except JournalDamaged as error:
            damages.append(error)
    if as_json:
        for row in rows:
            write_json({**row._asdict(), "damaged": False})
        for damage in damages:
            write_json({"damaged": True, "file": damage.file, "offset": damage.offset, "reason": str(damage)})
    elif rows:
        columns = ("journal", "segments", "first", "last", "epoch", "checkpoint", "extents")
        write_table("", columns, [row[:7] for row in rows])
    for row in rows:
        if row.cut:
            say(row.cut)
    for damage in damages:
        say(str(damage))
    return 1 if damages else 0


@command.command("dump", epilog=EXIT_STATUS)
@click.option("--json", "as_json", is_flag=True, help="One JSON object an entry, with its bytes.")
@click.option("--from", "position", default=1, help="The first position.", show_default=True)
@folder_argument
def dump(as_json: bool, position: int, folder: str) -> int:
    """Print the entries, one line each: position (0: of the checkpoint), shard, size, the first bytes. Of a damaged journal, those before the
    damage."""
    damages = 0
    for journal in journals(folder):
        try:
            dump_journal(journal, position, as_json)
        except JournalDamaged as damage:
            say(str(damage))
            damages += 1
    return 1 if damages else 0


def dump_journal(journal: str, position: int, as_json: bool) -> None:
    """Print the entries of one. Raises JournalDamaged behind the last of them."""
    files = Files()
    checkpoint = Checkpoint(files, journal)
    reader = JournalReader(files, journal, max(position, checkpoint.position + 1))
    if position <= checkpoint.position:
        reader.begin_with(checkpoint, needs_checkpoint=False)
    for at, shard, data in reader:
        if as_json:
            write_json({"journal": journal, "position": at, "shard": shard, "size": len(data), "data": data})
        else:
            write_bytes(f"{at} {shard} {len(data)} {data[:24].hex()}\n".encode())
    if reader.cut:
        say(reader.cut)


@command.command("repair", epilog=EXIT_STATUS)
@click.option("--yes", is_flag=True, help="Do not ask.")
@folder_argument
def repair_journals(yes: bool, folder: str) -> int:
    """Cut each journal where it is damaged, after saying what is lost. What is cut stays beside, in files named damaged-*."""
    status = 0
    for journal in journals(folder):
        while True:
            try:
                found = repair.examine(journal)
            except JournalDamaged as damage:
                if not repair.is_repairable(damage):
                    raise
                status = 1
                say(str(damage))
                say(f"lost: everything behind position {repair.last_before(damage, journal)} of {journal}")
                if not yes:
                    click.confirm("Cut the journal there?", abort=True, err=True)
                for aside in repair.cut(journal, damage):
                    say(f"what was cut is in {aside}")
                continue
            say(f"{journal} is whole and ends with position {found.last}")
            break
    return status
