"""The link between a front-end and a worker: order, wrap-around, pieces, waiting, and doorbells."""
import os
import random
import select
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmq.net.ring import Link, make_link_fds


def drain(link):
    messages = []
    while (message := link.receive_message()) is not None:
        messages.append(message)
    return messages


def test_messages_arrive_in_order_both_ways():
    frontend, worker = Link.pair(1024)
    frontend.send(1, 5, b"first")
    frontend.send(2, 6, b"")
    worker.send(3, 7, b"back")
    assert drain(worker) == [(1, 5, b"first"), (2, 6, b"")]
    assert drain(frontend) == [(3, 7, b"back")]
    assert drain(worker) == []


def resident_bytes():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3000), st.booleans()), max_size=120), st.sampled_from([1024, 2048, 8192]))
def test_any_sizes_pass_a_small_ring(steps, ring_size):
    sender, receiver = Link.pair(ring_size)
    sent, received = [], []
    for index, (size, read) in enumerate(steps):
        message = (1 + index % 40, index % 64, random.Random(index).randbytes(size))
        sender.send(*message)
        sent.append(message)
        if read:
            if (got := receiver.receive_message()) is not None:
                received.append(got)
            sender.flush_waiting()
    for _ in range(100000):
        sender.flush_waiting()
        got = receiver.receive_message()
        if got is None and not sender.waiting_bytes:
            break
        if got is not None:
            received.append(got)
    assert received == sent


def test_message_of_many_rings_travels_in_pieces():
    sender, receiver = Link.pair(1024)
    body = random.Random(1).randbytes(1_000_003)
    sender.send(9, 3, body)
    sender.send(10, 3, b"behind")
    received = []
    while sender.waiting_bytes or not received or received[-1][0] != 10:
        sender.flush_waiting()
        received += drain(receiver)
    assert received == [(9, 3, body), (10, 3, b"behind")]


def test_what_does_not_fit_waits_and_memory_is_given_back():
    sender, receiver = Link.pair(1024)
    for index in range(1000):
        sender.send(1, 0, index.to_bytes(4, "little"))
    assert sender.waiting_bytes > 0
    received = []
    while sender.waiting_bytes or len(received) < 1000:
        received += drain(receiver)
        sender.flush_waiting()
    assert [int.from_bytes(m[2], "little") for m in received] == list(range(1000))
    assert sender.waiting_bytes == 0


@pytest.mark.skipif(os.environ.get("FASTMQ_ASAN") == "1", reason="ASan keeps what was freed for a while, to notice its use")
def test_what_waits_under_a_load_that_never_ends_takes_no_more_memory():
    sender, receiver = Link.pair(4096)
    body = bytes(1000)
    for _ in range(30):
        sender.send(1, 0, body)
    before = resident_bytes()
    for _ in range(50_000):                 # 50 MB pass; something waits all the time
        sender.flush_waiting()
        sender.send(1, 0, body)
        assert receiver.receive_message() is not None
        assert sender.waiting_bytes > 0
    assert resident_bytes() - before < 2**23


def test_sleeper_is_told_of_what_came_while_it_lay_down():
    sender, receiver = Link.pair(1024)
    assert receiver.may_sleep()
    receiver.wake_up()
    sender.send(1, 0, b"x")
    assert not receiver.may_sleep()


def test_sender_with_waiting_bytes_sleeps_only_until_there_is_room():
    sender, receiver = Link.pair(1024)
    for _ in range(100):
        sender.send(1, 0, bytes(100))
    assert sender.may_sleep()
    drain(receiver)
    assert not sender.may_sleep()


CHILD = """
import os, select, sys
from fastmq.net.ring import Link
memfd, own, other, count = map(int, sys.argv[1:])
link = Link.open(memfd, own, other, True)
done = 0
while done < count:
    message = link.receive_message()
    if message is None:
        link.flush_waiting()
        link.ring_other()
        if link.may_sleep():
            if not select.select([own], [], [], 20)[0]:
                sys.exit("a wake-up was lost")
        link.wake_up()
    else:
        link.send(*message)
        done += 1
while not link.flush_waiting():
    link.ring_other()
link.ring_other()
"""


@pytest.mark.parametrize("ring_size", [1024, 65536])
def test_no_wake_up_is_lost_between_processes(ring_size):
    count = 20000
    memfd, bell_frontend, bell_worker = make_link_fds(ring_size)
    link = Link.open(memfd, bell_frontend, bell_worker, False)
    child = subprocess.Popen(
        [sys.executable, "-P", "-c", CHILD, str(memfd), str(bell_worker), str(bell_frontend), str(count)],
        pass_fds=[memfd, bell_frontend, bell_worker],
    )
    rnd, sent, back = random.Random(3), 0, 0
    while back < count:
        while sent < count and sent - back < rnd.choice([1, 5, 300]):
            link.send(1 + sent % 9, 0, sent.to_bytes(8, "little") + bytes(rnd.choice([0, 10, 700])))
            sent += 1
        link.flush_waiting()
        link.ring_other()
        message = link.receive_message()
        if message is None:
            if link.may_sleep():
                assert select.select([bell_frontend], [], [], 20)[0], f"a wake-up was lost at {back}"
            link.wake_up()
        else:
            assert int.from_bytes(message[2][:8], "little") == back and message[0] == 1 + back % 9
            back += 1
    assert child.wait(20) == 0
    for fd in (memfd, bell_frontend, bell_worker):
        os.close(fd)
