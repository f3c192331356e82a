"""What a disk can hold after a crash, from the calls that a MemoryDisk noted: each prefix of them, with any of the writes that were not synced
missing or torn, and any of the names that were not synced missing."""

import random
import select
import time

from disk import disk

TORN_UNITS = (512, 4096, 1)
NEWS_S = 0.012                  # a little more than the writer waits before it notes what is durable


class Wreckage:
    """A disk up to some call: what is sure to be there, and what may be."""

    def __init__(self, paths: dict[str, bytes]) -> None:
        self.sure = dict(enumerate(paths.values()))             # inode -> bytes
        self.unsure: dict[int, list[tuple]] = {}                # inode -> its calls since its last sync
        self.names = {path: inode for inode, path in enumerate(paths)}
        self.unsure_names: list[tuple] = []
        self.late: int | None = None                            # an inode whose sync is still to be done

    def step(self, call: tuple) -> None:
        """The next call was made."""
        match call:
            case ("open", _, inode):
                self.sure[inode] = b""
                self.unsure_names.append(call)
            case ("write", inode, _, _) | ("size", inode, _):
                self.unsure.setdefault(inode, []).append(call)
            case ("sync", inode):
                self.sync(inode)
            case ("sync_late", inode):
                if self.late is not None:
                    self.sync(self.late)
                self.late = inode
            case ("rename", *_) | ("unlink", _):
                self.unsure_names.append(call)
            case ("sync_folder",):
                for done in self.unsure_names:
                    apply_name(self.names, done)
                self.unsure_names = []

    def sync(self, inode: int) -> None:
        if inode in self.unsure:
            self.sure[inode] = applied(self.sure[inode], self.unsure.pop(inode))

    def sample(self, rnd: random.Random) -> dict[str, bytes]:
        """One of the states that a crash now can leave: path -> bytes."""
        names = dict(self.names)
        kept = rnd.choice((0, 0.5, 1))
        for call in self.unsure_names:
            if rnd.random() < kept:
                apply_name(names, call)
        chance = rnd.choice((0, 0.3, 0.7, 1))
        found = {}
        for path, inode in names.items():
            data = self.sure[inode]
            if inode in self.unsure:
                data = applied(data, [torn for call in self.unsure[inode] for torn in survives(call, chance, rnd)])
            found[path] = data
        return found


def apply_name(names: dict[str, int], call: tuple) -> None:
    match call:
        case ("open", path, inode):
            names[path] = inode
        case ("rename", old, new, inode):
            names.pop(old, None)
            names[new] = inode
        case ("unlink", path):
            names.pop(path, None)


def applied(data: bytes, calls: list[tuple]) -> bytes:
    """A file after these writes."""
    result = bytearray(data)
    for call in calls:
        if call[0] == "size":
            size = call[2]
            result = result[:size] + bytes(size - len(result[:size]))
        else:
            _, _, offset, written = call
            if len(result) < offset:
                result.extend(bytes(offset - len(result)))
            result[offset : offset + len(written)] = written
    return bytes(result)


def survives(call: tuple, chance: float, rnd: random.Random) -> list[tuple]:
    """What becomes of a call that was not synced: all, nothing, or parts of it."""
    dice = rnd.random()
    if dice < chance * 0.7:
        return [call]
    if dice > chance or call[0] == "size":
        return []
    _, inode, offset, written = call
    unit = rnd.choice(TORN_UNITS)
    if unit == 1:
        cut = rnd.randint(0, len(written))
        return [("write", inode, offset, written[:cut]) if rnd.random() < 0.5 else ("write", inode, offset + cut, written[cut:])]
    parts, at = [], 0
    while at < len(written):
        size = min(unit - (offset + at) % unit, len(written) - at)
        if rnd.random() < 0.5:
            parts.append(("write", inode, offset + at, written[at : at + size]))
        at += size
    return parts


# ---- a log that is written to

class Writer:
    """Appends random entries to a FileLog and notes what it was told durable, and what it gave up."""

    def __init__(self, log, rnd: random.Random, entries: list[tuple[int, bytes]], size_max: int = 700) -> None:
        self.log, self.rnd, self.entries, self.size_max = log, rnd, entries, size_max
        self.told = 0
        self.kinds = disk()

    def note(self, *what: object) -> None:
        self.log_files.noted.append(what)

    def open(self, files, epoch: int) -> None:
        self.log_files = files
        position = self.log.open(epoch)
        assert position == len(self.entries), (position, len(self.entries))
        self.note("told", position)

    def append(self) -> bool:
        """One turn of a worker: some entries, which it submits, or writes itself. False: it did, and no bell rings for it."""
        for _ in range(self.rnd.randint(1, 4)):
            size = self.rnd.choice((0, 8, 100, self.rnd.randint(0, self.size_max)))
            if self.rnd.random() < 0.01:
                size = 12_000                                   # more than a small segment holds
            entry = self.rnd.choice((0, 3, 0xFFFF)), self.rnd.randbytes(size)
            self.entries.append(entry)
            assert self.kinds.append(self.log, *entry)
        if self.rnd.random() < 0.5 or not self.kinds.write_here(self.log):
            self.kinds.submit(self.log)
            return True
        self.look()
        return False

    def look(self) -> None:
        durable = self.kinds.look(self.log)
        if durable > self.told:
            self.told = durable
            self.note("told", durable)

    def wait(self, position: int) -> None:
        """Until it is durable, or the log has failed."""
        poll = select.poll()
        poll.register(self.log.fileno(), select.POLLIN)
        self.look()
        while self.told < position and not self.log.failed:
            assert poll.poll(20_000), f"position {position} does not become durable; {self.told} is"
            self.look()

    def wait_for_news(self) -> None:
        """Until the bell rings."""
        poll = select.poll()
        poll.register(self.log.fileno(), select.POLLIN)
        assert poll.poll(20_000), "nothing was heard of the log"
        self.look()

    def wait_quiet(self) -> None:
        """Until no checkpoint is being written."""
        self.look()
        while self.log.checkpointing and not self.log.failed:
            self.wait_for_news()

    def trim(self) -> None:
        position = self.rnd.randint(0, self.told)
        self.note("trim", position)
        self.log.trim(position)

    def write(self, rounds: int, trims: bool = True) -> None:
        for _ in range(rounds):
            self.append()
            if self.rnd.random() < 0.8:
                self.wait(len(self.entries))
            if trims and self.rnd.random() < 0.05:
                self.trim()
            if self.rnd.random() < 0.02:
                time.sleep(NEWS_S)              # a chance for the writer to note what is durable; nobody relies on it
        self.wait(len(self.entries))

    def close(self) -> None:
        self.log.close()
        self.look()
