"""What the client's unit tests get: a broker in Python with one queue, and a client of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import pytest
from fake_broker import FakeBroker

import fastmq


@pytest.fixture
def broker() -> Iterator[FakeBroker]:
    with FakeBroker() as broker:
        broker.queues["q"] = deque()
        yield broker


@pytest.fixture
def mq(broker: FakeBroker) -> Iterator[fastmq.Client]:
    with fastmq.connect(broker.url, timeout=5) as mq:
        yield mq
