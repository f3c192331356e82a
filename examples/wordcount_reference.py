"""Count lines, bytes and words of a file or a folder without fastmq: what wordcount.py compares its own counts with.

    python examples/wordcount_reference.py [--suffix .py] [--skip NAME]... PATH

A word is what stands between ASCII white space, as bytes. Of a folder, the regular files in it and below it are read;
symbolic links are not followed. Standard output: `lines<TAB>bytes` of everything, then for each different word
`count<TAB>word`. What cannot be read is named on standard error and counts as far as it was read. Exit status: 0, or 2
if PATH itself cannot be read.
"""

import argparse
import os
import stat
import sys
from collections import Counter

BLOCK_SIZE_BYTES = 4 * 2**20


def count_file(path: bytes, words: Counter[bytes]) -> tuple[int, int]:
    """Add the words of a file to `words`; return its lines and bytes. The end of the file ends its last line."""
    lines = size = 0
    part = b""  # of a word that goes on in the next block
    last = b"\n"
    try:
        with open(path, "rb") as file:
            while block := file.read(BLOCK_SIZE_BYTES):
                size += len(block)
                lines += block.count(b"\n")
                last = block[-1:]
                found = (part + block).split()
                part = b"" if last.isspace() else found.pop()
                words.update(found)
    except OSError as error:
        print(f"{os.fsdecode(path)!r}: {error.strerror}", file=sys.stderr)
    if part:
        words[part] += 1
    return lines + (last != b"\n"), size


def files_below(folder: bytes, skip: set[bytes]) -> list[bytes]:
    found = []
    for entry in os.scandir(folder):
        if entry.name in skip:
            continue
        if entry.is_dir(follow_symlinks=False):
            try:
                found += files_below(entry.path, skip)
            except OSError as error:
                print(f"{os.fsdecode(entry.path)!r}: {error.strerror}", file=sys.stderr)
        elif entry.is_file(follow_symlinks=False):
            found.append(entry.path)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", metavar="PATH")
    parser.add_argument("--suffix", default="", help="of a folder, only files whose names end so")
    parser.add_argument("--skip", action="append", default=[], metavar="NAME", help="of a folder, leave out this name")
    arguments = parser.parse_args()
    path = os.fsencode(arguments.path)
    words: Counter[bytes] = Counter()
    lines = size = 0
    try:
        if stat.S_ISDIR(os.stat(path).st_mode):
            found = files_below(path, {os.fsencode(name) for name in arguments.skip})
            files = [name for name in found if name.endswith(os.fsencode(arguments.suffix))]
        else:
            files = [path]
    except OSError as error:
        print(f"{arguments.path!r}: {error.strerror}", file=sys.stderr)
        return 2
    for name in files:
        more_lines, more_bytes = count_file(name, words)
        lines += more_lines
        size += more_bytes
    out = sys.stdout.buffer
    out.write(b"%d\t%d\n" % (lines, size))
    for word, count in words.items():
        out.write(b"%d\t%s\n" % (count, word))
    out.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
