"""What tests of bad input share: a broker, a watch over its processes, and a bare client; other files have a `broker` of their own."""

import pytest
from attacker import Bare, Watch

import fastmq


@pytest.fixture(scope="module")
def broker():
    with fastmq.Broker(workers=1) as broker:
        yield broker


@pytest.fixture(scope="module")
def watch(broker):
    watch = Watch(broker)
    yield watch
    watch.stop()


@pytest.fixture(autouse=True)
def nobody_else_notices(request):
    """After each test: the same processes, and somebody else's messages still going round."""
    yield
    if "watch" in request.fixturenames:
        request.getfixturevalue("watch").check()


@pytest.fixture
def bare(broker, watch):
    with Bare(broker) as bare:
        yield bare
