"""A small store on a FileLog that ages as a worker's shards do: messages are put and deleted by entries, copied into extents, checkpointed."""

import json
import random

from disk.crashes import Writer


def state_after(entries: list[tuple[int, bytes]]) -> dict[int, bytes]:
    """The messages that are there after these entries."""
    live: dict[int, bytes] = {}
    for _, blob in entries:
        number = int.from_bytes(blob[1:9], "little")
        if blob[:1] == b"P":
            live[number] = blob[9:]
        else:
            del live[number]
    return live


class Ageing(Writer):
    """Puts, deletes, ages and checkpoints at random."""

    def __init__(self, log, rnd: random.Random, entries: list, size_max: int = 300) -> None:
        super().__init__(log, rnd, entries, size_max)
        self.live: dict[int, bytes] = {}
        self.piece: dict[int, tuple[int, int]] = {}                 # message -> extent, index in it
        self.extents: dict[int, list[int]] = {}                     # extent -> its messages
        self.next_message = self.next_extent = 1
        self.refused = 0
        self.given_up = 0

    def open(self, files, epoch: int) -> None:
        """Rebuild the state from the log; AssertionError where it is not what the entries say."""
        super().open(files, epoch)
        self.recover()

    def recover(self) -> None:
        bodies: dict[int, bytes] = {}
        for position, _, blob in self.log.read():
            if position == 0:
                for message, extent, index in json.loads(blob):
                    self.piece[message] = (extent, index)
                    self.extents.setdefault(extent, []).append(message)
                continue
            message = int.from_bytes(blob[1:9], "little")
            if blob[:1] == b"P":
                bodies[message] = blob[9:]
            else:
                bodies.pop(message, None)
                self.piece.pop(message, None)
        contents = {}
        for extent in {extent for extent, _ in self.piece.values()}:
            assert self.kinds.extent_read(self.log, extent)
            contents[extent] = self.answer(extent)
        for message, (extent, index) in self.piece.items():
            bodies[message] = bytes.fromhex(contents[extent][index])
        assert bodies == state_after(self.entries), "the messages are not those that were written"
        self.live = bodies
        for extent in self.extents:
            self.settle_extent(extent)
        self.extents = {extent: found for extent in self.extents if (found := [m for m in self.extents[extent] if m in self.piece])}
        self.next_message = max([int.from_bytes(blob[1:9], "little") for _, blob in self.entries], default=0) + 1
        self.next_extent = max(self.extents, default=0) + 1 + len(self.entries)

    def answer(self, extent: int) -> list[str]:
        """The payload of an extent that is being read."""
        while (found := self.kinds.extent_next(self.log)) is None:
            self.wait_for_news()
        number, payload, error = found
        assert (number, error) == (extent, 0), found
        return json.loads(payload)

    def settle_extent(self, extent: int) -> None:
        if not any(message in self.piece and self.piece[message][0] == extent for message in self.extents[extent]):
            self.kinds.extent_free(self.log, extent)

    def append(self) -> None:
        """One turn."""
        for _ in range(self.rnd.randint(1, 4)):
            if self.live and self.rnd.random() < 0.48:
                message = self.rnd.choice(list(self.live))
                del self.live[message]
                entry = 1, b"D" + message.to_bytes(8, "little")
                if message in self.piece:
                    extent, _ = self.piece.pop(message)
                    self.settle_extent(extent)
            else:
                message, self.next_message = self.next_message, self.next_message + 1
                self.live[message] = self.rnd.randbytes(self.rnd.randint(0, self.size_max))
                entry = 1, b"P" + message.to_bytes(8, "little") + self.live[message]
            self.entries.append(entry)
            assert self.kinds.append(self.log, *entry)
        self.kinds.submit(self.log)
        self.hear_of_refusals()

    def hear_of_refusals(self) -> None:
        while (found := self.kinds.extent_next(self.log)) is not None:
            number, _, error = found
            assert error == 28, found
            self.refused += 1
            for message in self.extents[number]:
                if self.piece.get(message, (0, 0))[0] == number:
                    del self.piece[message]

    def age(self) -> None:
        """Copy some of what lies in no extent into one."""
        messages = [message for message in self.live if message not in self.piece][: self.rnd.randint(1, 12)]
        if messages:
            extent, self.next_extent = self.next_extent, self.next_extent + 1
            payload = json.dumps([self.live[message].hex() for message in messages]).encode()
            assert self.kinds.extent_write(self.log, extent, payload)
            self.extents[extent] = messages
            self.piece.update((message, (extent, index)) for index, message in enumerate(messages))

    def checkpoint(self) -> bool:
        """Age everything, and have the rest kept."""
        while any(message not in self.piece for message in self.live):
            self.age()
        blob = json.dumps([(message, *piece) for message, piece in self.piece.items()]).encode()
        self.note("trim", len(self.entries))
        return self.kinds.checkpoint(self.log, len(self.entries), [(1, blob)])

    def write(self, rounds: int, trims: bool = True) -> None:
        for _ in range(rounds):
            self.append()
            dice = self.rnd.random()
            if dice < 0.2:
                self.age()
            elif dice < 0.3:
                self.given_up += not self.checkpoint()
            if self.rnd.random() < 0.8:
                self.wait(len(self.entries))
        self.wait(len(self.entries))

    def wait_checkpointed(self, position: int) -> None:
        self.look()
        while self.log.checkpointed < position and not self.log.failed:
            self.wait_for_news()
