"""server/control.py: packets and descriptors between the supervisor and a child, within one process."""

import os
from collections.abc import Iterator

import pytest
from waiting import wait_until

from fastmq.server import control
from fastmq.server.control import Control, ControlStuck

Ends = tuple[Control, Control]


@pytest.fixture
def ends() -> Iterator[Ends]:
    ours, theirs = Control.pair()
    other = Control.inherited(theirs.detach())
    yield ours, other
    ours.close()
    other.close()


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_packets_arrive_whole_and_in_order(ends: Ends) -> None:
    ours, other = ends
    ours.send({"op": "drain"})
    ours.send({"op": "start", "key": b"\0" * 16, "map": [0, 1] * 512})
    assert other.receive() == ({"op": "drain"}, [])
    assert other.receive() == ({"op": "start", "key": b"\0" * 16, "map": [0, 1] * 512}, [])
    assert other.receive() is None


def test_a_descriptor_travels_and_is_closed_behind_it(ends: Ends) -> None:
    ours, other = ends
    before = open_descriptors()
    reader, writer = os.pipe()
    ours.send({"op": "link", "worker": 0}, (reader,))
    assert open_descriptors() == before + 1, "the sender's copy is closed"
    found = other.receive()
    assert found is not None
    message, [received] = found
    assert message["worker"] == 0
    assert not os.get_inheritable(received)
    os.write(writer, b"x")
    assert os.read(received, 1) == b"x"
    os.close(received)
    os.close(writer)


def test_what_was_said_before_the_end_is_heard_though_not_all_was_read(ends: Ends) -> None:
    ours, other = ends
    ours.send({"op": "link", "worker": 0})              # which the other end leaves unread
    other.send({"op": "failed", "text": "port in use"})
    other.close()
    assert ours.receive() == ({"op": "failed", "text": "port in use"}, [])
    with pytest.raises(EOFError):
        ours.receive()


def test_what_does_not_fit_waits_and_leaves_later(ends: Ends) -> None:
    ours, other = ends
    sent = 0
    while not ours.waiting:
        ours.send({"op": "processes", "list": [sent], "filler": b"x" * 10_000})
        sent += 1
    received = []

    def all_arrived() -> bool:
        ours.flush()
        while (found := other.receive()) is not None:
            received.append(found[0]["list"][0])
        return len(received) == sent

    wait_until(all_arrived)
    assert received == list(range(sent))


def test_an_end_that_never_reads_is_found_out(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "OUTBOX_MAX", 4)
    def send_for_ever() -> None:
        while True:
            ends[0].send({"op": "processes", "filler": b"x" * 50_000})

    with pytest.raises(ControlStuck):
        send_for_ever()


def test_the_other_end_closed_is_end_of_file_behind_what_it_sent(ends: Ends) -> None:
    ours, other = ends
    ours.send({"op": "stop"})
    ours.close()
    assert other.wait() == ({"op": "stop"}, [])
    with pytest.raises(EOFError):
        other.wait()
    with pytest.raises(OSError):
        other.send({"op": "ready"})


def test_close_closes_the_descriptors_that_have_not_left(ends: Ends) -> None:
    ours, _ = ends
    while not ours.waiting:
        ours.send({"op": "processes", "filler": b"x" * 50_000})
    before = open_descriptors()
    reader, writer = os.pipe()
    ours.send({"op": "link", "worker": 0}, (reader, writer))
    assert open_descriptors() == before + 2
    ours.close()
    assert open_descriptors() == before - 1
