"""What unit tests get: a broker in Python with one queue, and a client of it; a front-end on real sockets."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import pytest
from connected import End, opened
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


@pytest.fixture
def end() -> Iterator[End]:
    with opened() as end:
        yield end


@pytest.fixture(params=["arena", "copied"])
def any_end(request: pytest.FixtureRequest) -> Iterator[End]:
    """With and without room in the workers' arenas."""
    with opened(region_size=2**24 if request.param == "arena" else 0) as end:
        yield end
