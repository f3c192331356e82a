"""One of the competing consumers of wordcount.py: takes lines from a queue, counts their words, acknowledges each.

    python examples/wordcount_consumer.py URL QUEUE RESULT

On standard output: `ready`, then now and then `messages bytes`, acknowledged so far. When its standard input ends and
the queue stays empty it writes what it counted to the file RESULT (JSON; words as Latin-1) and the numbers of the lines
it saw to RESULT.seen (one bit each).
"""

import json
import sys
import threading
from collections import Counter
from time import monotonic_ns

import fastmq

PREFETCH = 500
REPORT_MESSAGES = 200  # progress is reported this often, after so many bytes, and when the queue is empty
REPORT_BYTES = 2**20
IDLE_S = 0.05


class Seen:
    """A set of line numbers, one bit each, that counts what is added twice."""

    def __init__(self) -> None:
        self.bits = bytearray()
        self.twice = 0

    def add(self, number: int) -> None:
        byte, bit = number >> 3, 1 << (number & 7)
        if byte >= len(self.bits):
            self.bits.extend(bytes(byte + 65536 - len(self.bits)))
        if self.bits[byte] & bit:
            self.twice += 1
        self.bits[byte] |= bit


class Counts:
    """What this consumer saw, and how long each line was on its way."""

    def __init__(self) -> None:
        self.messages = self.bytes = 0
        self.words: Counter[bytes] = Counter()
        self.seen = Seen()
        self.latencies: Counter[int] = Counter()  # by `bucket`

    def add(self, message: fastmq.Message) -> None:
        """Count a line."""
        self.words.update(message.body.split())
        self.seen.add(int(message.message_id))
        self.messages += 1
        self.bytes += len(message.body)

    def acknowledged(self, message: fastmq.Message) -> None:
        """Note how long ago the line was published: CLOCK_MONOTONIC is the same in all processes of a machine."""
        self.latencies[bucket(monotonic_ns() - message.headers["published_ns"])] += 1

    def write(self, path: str) -> None:
        with open(path + ".seen", "wb") as file:
            file.write(self.seen.bits)
        with open(path, "w") as file:
            result = {
                "messages": self.messages,
                "bytes": self.bytes,
                "twice": self.seen.twice,
                "words": {word.decode("latin-1"): count for word, count in self.words.items()},
                "latencies": self.latencies,
            }
            json.dump(result, file)


def bucket(nanoseconds: int) -> int:
    """The time rounded down to its first six binary digits: a histogram that is right to 3 % and never grows large."""
    shift = max(0, nanoseconds.bit_length() - 6)
    return nanoseconds >> shift << shift


def main(url: str, queue: str, result: str) -> None:
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    counts = Counts()
    reported = reported_bytes = 0

    def report() -> None:
        nonlocal reported, reported_bytes
        reported, reported_bytes = counts.messages, counts.bytes
        print(reported, reported_bytes, flush=True)

    with fastmq.connect(url) as mq, mq.consume(queue, prefetch=PREFETCH, timeout=IDLE_S) as messages:
        print("ready", flush=True)
        while not over.is_set():
            for message in messages:  # until none has come for IDLE_S
                with message:  # acknowledged on leaving; put back if counting fails
                    counts.add(message)
                counts.acknowledged(message)
                if counts.messages - reported >= REPORT_MESSAGES or counts.bytes - reported_bytes >= REPORT_BYTES:
                    report()
            if counts.messages > reported:
                report()
    counts.write(result)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (fastmq.FastMQError, BrokenPipeError) as error:  # the broker, or who reads the numbers, is gone
        sys.exit(f"wordcount_consumer: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
