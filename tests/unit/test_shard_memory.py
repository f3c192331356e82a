"""What a shard's messages cost, and that memory is given back."""
from __future__ import annotations

import pytest
from shard_driver import NACK, Driver, record

PUBLISHER, A = 11, 12


def test_waiting_message_costs_little_more_than_its_bytes() -> None:
    driver = Driver(record_level=0)
    driver.declare(1)
    data = [record(b"x" * 128, key="key")] * 450
    for n in range(40):
        driver.publish(PUBLISHER, 1 + 450 * n, [1], data)
    stats = driver.shard.stats()
    assert stats["live_bytes"] == 18_000 * len(data[0])
    assert stats["chunk_bytes"] / 18_000 + 24 <= 170


@pytest.mark.parametrize("batch", [1, 3, 450])
def test_queue_fed_in_any_batches_gives_contiguous_deliveries(batch: int) -> None:
    driver = Driver(record_level=0)
    driver.declare(1)
    for first in range(1, 901, batch):
        driver.publish(PUBLISHER, first, [1], [record(b"%03d" % (n % 1000)) for n in range(first, first + batch)])
    driver.consume(A, 1, 1)
    assert driver.pump().runs == 1
    assert driver.shard.stats()["chunk_bytes"] < 5 * driver.shard.stats()["live_bytes"]


def test_idle_queues_hold_no_chunk() -> None:
    driver = Driver(record_level=0)
    for queue in range(1, 101):
        driver.declare(queue)
        driver.publish(PUBLISHER, queue, [queue], [record(b"x" * 100)] * 1)
        driver.consume(A, queue, queue)
    assert driver.shard.stats()["chunk_bytes"] == 100 * 512
    driver.pump()
    driver.settle(A, up_to=1000)
    assert (driver.shard.stats()["chunk_bytes"], driver.shard.stats()["live_bytes"]) == (0, 0)


@pytest.mark.parametrize("held", ["outstanding", "returned"])
def test_few_messages_that_stay_do_not_pin_the_chunks_of_those_that_went(held: str) -> None:
    slack = 200_000
    driver = Driver(record_level=0, compact_slack_bytes=slack)
    driver.declare(1, 2)
    driver.consume(A, 1, 1, messages=65535, size=10**9)
    for n in range(100):
        driver.publish(PUBLISHER, 1 + 400 * n, [1], [record(b"%06d" % (400 * n + i) + b"x" * 122) for i in range(400)])
    driver.pump()
    stay = list(range(1, 40_001, 400))
    driver.settle(A, ranges=[(tag + 1, tag + 399) for tag in stay])
    if held == "returned":
        driver.cancel(A, 1)
        driver.settle(A, exceptions=[(tag, tag, NACK) for tag in stay])
    assert driver.shard.stats()["chunk_bytes"] > 5_000_000
    before = driver.shard.dump()
    steps = 1
    while driver.shard.pump(driver.now_ns):
        steps += 1
    assert steps > (10 if held == "outstanding" else 0)     # 40,000 tags are looked at, or 100 that came back
    stats = driver.shard.stats()
    assert stats["moved"] == 100
    assert stats["chunk_bytes"] <= 2 * stats["live_bytes"] + slack
    assert driver.shard.dump() == before


def test_deleted_queue_gives_its_memory_back_in_steps() -> None:
    driver = Driver(record_level=0)
    driver.declare(1)
    for n in range(30):
        driver.publish(PUBLISHER, 1 + 450 * n, [1], [record(b"x" * 100)] * 450)
    driver.attach({})
    steps = []
    while driver.shard.pump(driver.now_ns):
        steps.append(driver.shard.stats()["live_bytes"])
    assert len(steps) >= 3
    assert steps == sorted(steps, reverse=True)
    assert (driver.shard.stats()["live_bytes"], driver.shard.stats()["chunk_bytes"]) == (0, 0)


def test_names_of_exchanges_go_with_their_last_message() -> None:
    driver = Driver()
    driver.declare(1)
    for n in range(300):
        driver.publish(PUBLISHER, n + 1, [1], [record(b"x")], exchange=b"exchange-%d" % (n % 150))
    assert {message[2] for message in driver.shard.dump()["queues"][1]["ready"]} == {b"exchange-%d" % n for n in range(150)}
    driver.consume(A, 1, 1)
    told = driver.pump()
    assert [m.exchange for m in told.delivered] == [b"exchange-%d" % (n % 150) for n in range(300)]
    driver.settle(A, up_to=200)
    driver.settle(A, exceptions=[(201, 300, NACK)])
    assert [m.exchange for m in driver.pump().delivered] == [b"exchange-%d" % (n % 150) for n in range(200, 300)]
