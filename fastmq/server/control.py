"""The control sockets between the supervisor and its children: one msgpack map a packet, descriptors beside it.

Owns: one end of a SOCK_SEQPACKET socket pair each. Rules: nobody blocks on one: what does not fit waits in the outbox, and a child that
lets OUTBOX_MAX packets wait is taken for dead; descriptors that are sent are closed here once they have left; descriptors that come with
a packet belong to who receives it. End of file at a child: the supervisor has gone, exit at once. Both ends trust each other.

A child is started as `python -m fastmq.server.<role> FD`; FD, its end, is the only descriptor it inherits. What travels (`op` and fields;
to change a message, change it here, at its sender and at its receiver; all are always of one build):

  to both        start      index, epoch, supervisor (pid), workers, shards, map [worker of shard 0, 1, ...], settings {config.Config}
                            to a worker also: frontends [indices of those that live already], descriptor (its arena), log (path of its
                            log's directory, empty: it keeps none), old_logs [those of another number of workers, to be taken over]
                            to a front-end also: key (16 bytes), host, port, events_port (0: a free one, -1: see config), bind_retry_s (how
                            long an address that is in use is tried again: 0 at the first start, later the ports are those of before)
                 unlink     worker (to a front-end) or frontend (to a worker): it has died, its link is of no more use
                 drain      front-end: take nothing new, handle what there is, answer it, tell clients CLOSING, then send `drained`
                            worker: what is in the links is handled, what must be kept is durable, then send `drained`
                 stop       exit 0 at once
  to front-end   link       worker, epoch (the worker's), descriptors (memfd, own bell, the worker's bell, the worker's arena): a fresh link,
                            the worker is new, or this front-end is. It comes also while the worker still starts
                 processes  list [{role, index, pid, restarts}]: whenever it changes, for STATUS
  to worker      link       frontend, epoch (the front-end's), descriptors (memfd, own bell, the front-end's bell)
  from both      ready      from a front-end also: port, events_port (both bound)
                 failed     text: it cannot start, for a reason that an operator can understand (an address in use); then it exits 1
                 drained
"""
from __future__ import annotations

import array
import os
import socket
from collections import deque
from typing import Any

import msgpack

PACKET_SIZE_MAX = 131072        # bytes; the largest is `start` with 1,024 shards
DESCRIPTORS_MAX = 8             # beside one packet
OUTBOX_MAX = 1024               # packets that may wait for one end that does not read

Message = dict[str, Any]


class ControlStuck(OSError):
    """The other end has not read OUTBOX_MAX packets: it hangs."""


class Control:
    """One end. Usable with poll and select by `fileno()`."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._socket = end
        self._outbox: deque[tuple[bytes, tuple[int, ...]]] = deque()

    @classmethod
    def pair(cls) -> tuple[Control, socket.socket]:
        """(the supervisor's end, the child's end as a socket to be inherited and then closed)."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(ours), theirs

    @classmethod
    def inherited(cls, fd: int) -> Control:
        """A child's end, from the number on its command line. The descriptor is not passed on to anybody else."""
        os.set_inheritable(fd, False)
        return cls(socket.socket(fileno=fd))

    def fileno(self) -> int:
        """The descriptor; -1 when closed."""
        return self._socket.fileno()

    @property
    def waiting(self) -> int:
        """Packets that have not left yet: `flush` when the socket is writable."""
        return len(self._outbox)

    def send(self, message: Message, descriptors: tuple[int, ...] = ()) -> None:
        """Send one packet, without waiting; `descriptors` belong to this end now. OSError: the other end has gone, or hangs."""
        packet = msgpack.packb(message)
        assert len(packet) <= PACKET_SIZE_MAX
        self._outbox.append((packet, descriptors))
        self.flush()
        if len(self._outbox) > OUTBOX_MAX:
            raise ControlStuck("the other end does not read its control socket")

    def flush(self) -> None:
        """Send what waits as far as there is room. OSError: the other end has gone."""
        while self._outbox:
            packet, descriptors = self._outbox[0]
            beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
            try:
                self._socket.sendmsg([packet], beside, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return
            self._outbox.popleft()
            for fd in descriptors:
                os.close(fd)

    def receive(self) -> tuple[Message, list[int]] | None:
        """The next packet and its descriptors; None when there is none now. EOFError when the other end has gone."""
        size = socket.CMSG_SPACE(DESCRIPTORS_MAX * array.array("i").itemsize)
        try:
            try:
                packet, beside, _, _ = self._socket.recvmsg(PACKET_SIZE_MAX, size, socket.MSG_CMSG_CLOEXEC)
            except ConnectionResetError:        # said once, before what it had sent: it has gone without reading everything
                packet, beside, _, _ = self._socket.recvmsg(PACKET_SIZE_MAX, size, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return None
        except ConnectionError:
            raise EOFError from None
        if not packet:
            raise EOFError
        descriptors = array.array("i")
        for level, kind, data in beside:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
        return msgpack.unpackb(packet), list(descriptors)

    def wait(self) -> tuple[Message, list[int]]:
        """The next packet, waiting for it. EOFError when the other end has gone."""
        self._socket.setblocking(True)
        try:
            found = self.receive()
        finally:
            self._socket.setblocking(False)
        assert found is not None
        return found

    def close(self) -> None:
        """Close this end and the descriptors that have not left."""
        while self._outbox:
            for fd in self._outbox.popleft()[1]:
                os.close(fd)
        self._socket.close()
