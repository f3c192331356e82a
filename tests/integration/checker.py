"""Counts what became of messages: attempted, confirmed, delivered, lost, unexpected, duplicated, out of order.

What was confirmed is known here, outside the broker. A body is `producer:counter`. A second delivery that is marked redelivered is no
duplicate: it is what a broker owes to a consumer that did not acknowledge.
"""

import threading
from collections import Counter
from dataclasses import dataclass, field

import fastmq


@dataclass
class Checker:
    attempted: set[bytes] = field(default_factory=set)
    confirmed: set[bytes] = field(default_factory=set)
    delivered: list[bytes] = field(default_factory=list)      # first deliveries, in the order they came
    seen: Counter[bytes] = field(default_factory=Counter)
    duplicated: list[bytes] = field(default_factory=list)

    def deliver(self, message: fastmq.Message) -> None:
        body = message.body
        if self.seen[body] and not message.redelivered:
            self.duplicated.append(body)
        if not self.seen[body]:
            self.delivered.append(body)
        self.seen[body] += 1

    @property
    def lost(self) -> set[bytes]:
        return self.confirmed - set(self.delivered)

    @property
    def unexpected(self) -> set[bytes]:
        return set(self.delivered) - self.attempted

    @property
    def out_of_order(self) -> list[tuple[bytes, bytes]]:
        """Neighbours among the first deliveries of one producer that came the wrong way round."""
        last: dict[bytes, int] = {}
        wrong = []
        for body in self.delivered:
            producer, _, counter = body.partition(b":")
            if int(counter) < last.get(producer, -1):
                wrong.append((b"%s:%d" % (producer, last[producer]), body))
            last[producer] = int(counter)
        return wrong

    def __str__(self) -> str:
        return (
            f"attempted {len(self.attempted)} confirmed {len(self.confirmed)} delivered {len(self.delivered)} lost {len(self.lost)} "
            f"unexpected {len(self.unexpected)} duplicated {len(self.duplicated)} out of order {len(self.out_of_order)}"
        )


PACE_S = 0.002      # between two batches of a load: a busy broker, with room on the cores for what is being restarted


class Load:
    """One producer and one consumer thread on a queue of their own, each with its own client, until `stop`."""

    def __init__(self, url: str, queue: str, durable: bool = True) -> None:
        self.queue = queue
        self.checker = Checker()
        self.rounds: list[tuple[float, int]] = []
        self.errors: list[BaseException] = []
        self._finish = threading.Event()
        self.consuming = True
        self._url = url
        with fastmq.connect(url) as mq:
            mq.declare_queue(queue, durable=durable)
        self._threads = [threading.Thread(target=self._guard, args=(work,)) for work in (self._produce, self._consume)]
        for thread in self._threads:
            thread.start()

    def _guard(self, work) -> None:
        try:
            work()
        except BaseException as error:
            self.errors.append(error)

    def _produce(self) -> None:
        with fastmq.connect(self._url, timeout=30) as mq:
            counter = 0
            while not self._finish.wait(PACE_S):
                batch = []
                for _ in range(20):
                    body = b"%s:%d" % (self.queue.encode(), counter)
                    counter += 1
                    batch.append(body)
                    self.checker.attempted.add(body)
                    mq.publish(self.queue, body, timeout=30)
                mq.flush(timeout=30)
                self.checker.confirmed.update(batch)

    def _consume(self) -> None:
        with fastmq.connect(self._url, timeout=30) as mq:
            while self.consuming:
                with mq.consume(self.queue, prefetch=50, timeout=0.2) as consumer:
                    for message in consumer:
                        with message:
                            self.checker.deliver(message)

    def progressed(self, count: int = 1500):
        """A condition: `count` more messages were delivered since this call."""
        before = len(self.checker.delivered)
        return lambda: self.errors or len(self.checker.delivered) >= before + count

    def stop(self) -> None:
        """The producer ends, the consumer takes what is left, both are joined."""
        self._finish.set()
        self._threads[0].join(60)
        self.consuming = False
        self._threads[1].join(60)
        assert not any(thread.is_alive() for thread in self._threads), "a load thread hangs"
        assert not self.errors, self.errors

    def stop_and_check(self) -> None:
        """`stop`; then everything that was attempted was confirmed and delivered, once and in order."""
        self.stop()
        print(self.checker)
        assert self.checker.attempted == self.checker.confirmed == set(self.checker.delivered)
        assert not self.checker.duplicated and not self.checker.out_of_order and not self.checker.unexpected
