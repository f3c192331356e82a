"""net/libzmq.pyx: the functions are those of pyzmq's own libzmq, and work on pyzmq's sockets."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import zmq

from fastmq.net import libzmq


@pytest.fixture
def context() -> Iterator[zmq.Context]:
    with zmq.Context() as context:
        yield context
        context.destroy(linger=0)


def test_version_is_the_one_that_pyzmq_reports() -> None:
    assert libzmq.version == zmq.zmq_version_info()


def test_only_one_libzmq_is_in_the_process() -> None:
    program = (
        "import zmq, fastmq.net.libzmq\n"
        "paths = {line.split()[-1] for line in open('/proc/self/maps') if 'libzmq' in line.split('/')[-1]}\n"
        "paths = {path for path in paths if '/fastmq/' not in path}\n"
        "assert len(paths) <= 1, paths"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("found", [(4, 2, 5), (3, 9, 9)])
def test_an_old_libzmq_is_refused_with_advice(found: tuple[int, int, int]) -> None:
    with pytest.raises(ImportError, match="pip install"):
        libzmq.check_version(found)


@pytest.mark.parametrize("frames", [[b"one"], [b"", b"two", b"x" * 100_000]], ids=["one frame", "three frames"])
def test_frames_travel_both_ways_between_table_and_pyzmq(context: zmq.Context, frames: list[bytes]) -> None:
    router, dealer = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    dealer.connect(f"tcp://127.0.0.1:{port}")

    dealer.send_multipart(frames)
    found = libzmq.receive_frames(router, 5000)
    assert found is not None
    (identity, *received), source = found
    assert received == frames

    assert libzmq.send_frames(router, [identity, *frames])
    assert dealer.recv_multipart() == frames

    assert os.readlink(f"/proc/self/fd/{source}").startswith("socket:"), "SRCFD is a descriptor of this process"


def test_nothing_to_receive_is_none(context: zmq.Context) -> None:
    assert libzmq.receive_frames(context.socket(zmq.DEALER), 0) is None


def test_no_room_to_send_is_false(context: zmq.Context) -> None:
    assert not libzmq.send_frames(context.socket(zmq.DEALER), [b"to nobody"])


def test_a_closed_socket_is_refused(context: zmq.Context) -> None:
    socket = context.socket(zmq.DEALER)
    socket.close()
    with pytest.raises(ValueError, match="closed"):
        libzmq.send_frames(socket, [b"x"])


def test_an_unknown_peer_is_an_error_with_mandatory(context: zmq.Context) -> None:
    router = context.socket(zmq.ROUTER)
    router.router_mandatory = 1
    with pytest.raises(OSError, match="unreachable"):
        libzmq.send_frames(router, [b"nobody", b"x"])
