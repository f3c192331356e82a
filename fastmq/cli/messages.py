"""Numbered messages of a load, and the proof that each came exactly once."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable, Sequence

from fastmq.cli.sides import Void

NUMBER_SIZE = 10  # digits before the filling, and so the smallest body
WHOLE_SIZE_MAX = 128  # of larger bodies a consumer keeps the number and adds up the sizes


def payloads(count: int, size: int, first: int = 0) -> list[bytes]:
    """`count` different bodies of `size` bytes: the number in ten digits, then filling."""
    filling = b"." * (size - NUMBER_SIZE)
    return [b"%010d" % number + filling for number in range(first, first + count)]


class Tally:
    """Which of the bodies of `payloads(count, size, first)` have come. `add` raises Void for one that came twice or changed."""

    def __init__(self, count: int, size: int, first: int = 0) -> None:
        self.count, self.first = count, first
        self._filling = b"." * (size - NUMBER_SIZE)
        self._seen = bytearray(count)
        self._last = -1
        self.disordered = 0

    def add(self, bodies: Iterable[bytes]) -> None:
        filling, seen, first, last = self._filling, self._seen, self.first, self._last
        for body in bodies:
            try:
                number = int(body[:NUMBER_SIZE]) - first
            except ValueError:
                number = -1
            if not 0 <= number < self.count:
                raise Void(f"a message came that was not sent: {body[:20]!r}")
            if body[NUMBER_SIZE:] != filling:
                raise Void(f"message {first + number} came with another body")
            if seen[number]:
                raise Void(f"message {first + number} came twice")
            seen[number] = 1
            self.disordered += number < last
            last = number
        self._last = last

    def result(self) -> dict[str, int]:
        """How many came out of order. Raises Void if one is missing."""
        if lost := self._seen.count(0):
            raise Void(f"{lost} of {self.count} messages were lost")
        return {"disordered": self.disordered}

    def packed(self) -> str:
        """What has come, for `check_together`."""
        return base64.b64encode(zlib.compress(self._seen, 1)).decode()


def check_exactly_once(received: Sequence[bytes], count: int, size: int, first: int = 0) -> dict[str, int]:
    """Raise Void unless `received` holds each body of `payloads(count, size, first)` once; count what came out of order."""
    tally = Tally(count, size, first)
    tally.add(received)
    return tally.result()


def check_together(packed: Iterable[str], count: int) -> None:
    """Raise Void unless the tallies of several consumers hold each message once between them."""
    seen = [zlib.decompress(base64.b64decode(text)) for text in packed]
    all_seen = 0
    for one in seen:
        all_seen |= int.from_bytes(one)
    came, different = sum(one.count(1) for one in seen), all_seen.bit_count()
    if came > different:
        raise Void(f"{came - different} of {count} messages came to two consumers")
    if different < count:
        raise Void(f"{count - different} of {count} messages were lost")


class Kept:
    """What a consumer keeps of the bodies it receives, as cheaply as it can: they are looked at when the clock has stopped."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.whole = size <= WHOLE_SIZE_MAX
        self.bodies: list[bytes] = []  # whole, or only their numbers
        self.bytes = 0  # of all bodies, where they are not kept whole

    def tally(self, count: int, first: int = 0) -> Tally:
        """Raises Void for a message that came twice or changed."""
        if not self.whole and self.bytes != len(self.bodies) * self.size:
            raise Void(f"{len(self.bodies)} messages came with {self.bytes} bytes, not {self.size} each")
        tally = Tally(count, self.size if self.whole else NUMBER_SIZE, first)
        tally.add(self.bodies)
        return tally

    def check(self, count: int, first: int = 0) -> dict[str, int]:
        """Raise Void unless each message came once; what came out of order."""
        return self.tally(count, first).result()


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
