"""The thread of a front-end that owns the XPUB socket of live subscriptions.

Owns: the XPUB socket, its monitor, and which connection subscribes to what. Rules: only exact, well-formed subscriptions are accepted, at most
`patterns_max` distinct ones; each connection counts once for a pattern, whatever it sends, and no longer than it lives (its own word about
that is not needed); an event is dropped where a subscriber is further behind than the mark. A disconnect with many patterns takes libzmq long:
that is why this is a thread. It takes the GIL for subscriptions, never for events. libzmq remembers what a connection asked for even where that
is refused, so one that was refused REFUSALS_MAX times is shut down. Runs in front-ends.

    main thread --E_EVENT--> this thread --> subscribers          this thread --E_ACTIVE (each subscriber), E_UNUSED (the last)--> main thread
"""
import os
import threading

cimport cython
from libc.stdint cimport uint8_t, uint16_t
from libc.string cimport memcpy, memset

import zmq

from fastmq.net.libzmq cimport (
    ZMQ_DONTWAIT, ZMQ_SNDMORE, ZMQ_SRCFD, socket_of, zmq_msg_close, zmq_msg_data, zmq_msg_get, zmq_msg_init, zmq_msg_init_size,
    zmq_msg_more, zmq_msg_recv, zmq_msg_send, zmq_msg_size, zmq_msg_t,
)
from fastmq.net.ring cimport Link
from fastmq.server.live cimport E_ACTIVE, E_EVENT, E_UNUSED, EventHead
from fastmq.wire.link cimport LinkHead

from fastmq.server.live import split_subscription
from fastmq.server.log import Log

log = Log("front-end")


cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd* items, unsigned long count, int timeout_ms)
    short POLLIN


cdef extern from "<sys/socket.h>" nogil:
    int shutdown(int fd, int how)
    int SHUT_RDWR


cdef enum:
    NAP_MS = 10000                  # the longest sleep; everything wakes it
    REFUSALS_MAX = 256              # subscriptions of one connection; each costs libzmq up to some 30 KiB


cdef uint16_t EVENT_ACCEPTED = zmq.EVENT_ACCEPTED
cdef uint16_t EVENT_DISCONNECTED = zmq.EVENT_DISCONNECTED


class Subscriptions:
    """Who subscribes to what: a core without sockets, for the thread and for tests."""

    def __init__(self, patterns_max: int) -> None:
        self._patterns_max = patterns_max
        self._counts: dict[bytes, int] = {}                 # subscription -> connections
        self._of: dict[int, set[bytes]] = {}                # descriptor -> its subscriptions
        self.refused = 0

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, connection: int, subscription: bytes) -> bool:
        """A connection subscribes. Whether that is accepted; saying it twice changes nothing."""
        known = self._of.get(connection, ())
        if subscription in known:
            return False
        fresh = subscription not in self._counts
        if fresh and (split_subscription(subscription) is None or len(self._counts) >= self._patterns_max):
            self.refused += 1
            return False
        self._counts[subscription] = self._counts.get(subscription, 0) + 1
        self._of.setdefault(connection, set()).add(subscription)
        return True

    def remove(self, connection: int, subscription: bytes) -> bool:
        """A connection unsubscribes. Whether nobody subscribes to that any more; what it had not subscribed to is nothing."""
        known = self._of.get(connection)
        if known is None or subscription not in known:
            return False
        known.discard(subscription)
        if not known:
            del self._of[connection]
        return self._drop(subscription)

    def lost(self, connection: int) -> list[bytes]:
        """A connection has ended: what nobody subscribes to any more."""
        return [subscription for subscription in self._of.pop(connection, ()) if self._drop(subscription)]

    def _drop(self, subscription: bytes) -> bool:
        self._counts[subscription] -= 1
        if self._counts[subscription]:
            return False
        del self._counts[subscription]
        return True


@cython.final
cdef class EventsThread:
    """`xpub`: bound, manual and verboser; `monitor`: the PAIR socket of its monitor. Both are this thread's from `start` to `stop`."""

    cdef object _xpub
    cdef object _monitor
    cdef Link link
    cdef object _subscriptions
    cdef dict _refusals             # descriptor of each connection that lives -> how often it was refused
    cdef object _thread
    cdef void* xpub
    cdef void* monitor
    cdef pollfd[4] items            # XPUB, monitor, link's bell, stop
    cdef int stop_bell
    cdef bint stopping

    def __cinit__(self, xpub, monitor, Link link not None, int patterns_max):
        self._xpub = xpub
        self._monitor = monitor
        self.link = link
        self._subscriptions = Subscriptions(patterns_max)
        self._refusals = {}
        self.xpub = socket_of(xpub)
        self.monitor = socket_of(monitor)
        self.stop_bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        memset(self.items, 0, sizeof(self.items))
        for i, fd in enumerate((xpub.getsockopt(zmq.FD), monitor.getsockopt(zmq.FD), link.own_bell, self.stop_bell)):
            self.items[i].fd = fd
            self.items[i].events = POLLIN
        self._thread = threading.Thread(target=self._run, name="fastmq-events", daemon=True)

    def __dealloc__(self):
        os.close(self.stop_bell)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, and wait for that; the sockets are the caller's again."""
        self.stopping = True
        os.eventfd_write(self.stop_bell, 1)
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            with nogil:
                self.turns()
        except BaseException:
            log.exception("the thread of live subscriptions")
            os._exit(70)            # the supervisor starts the front-end again

    cdef void turns(self) except * nogil:
        cdef bint busy
        while not self.stopping:
            busy = self.read_monitor()
            busy = self.read_subscriptions() or busy
            busy = self.send_events() or busy
            self.link.flush()
            self.link.ring_bell()
            if busy:
                continue
            if self.link.prepare_sleep():
                poll(self.items, 4, NAP_MS)
            self.link.awake()

    # ---- subscriptions

    cdef bint read_monitor(self) except -1 nogil:
        """Hear of connections that have ended; whether there was anything."""
        cdef zmq_msg_t message
        cdef uint16_t event
        cdef int fd
        cdef bint found = False
        zmq_msg_init(&message)
        while zmq_msg_recv(&message, self.monitor, ZMQ_DONTWAIT) >= 0:
            found = True
            memcpy(&event, zmq_msg_data(&message), 2)
            memcpy(&fd, <uint8_t*> zmq_msg_data(&message) + 2, 4)
            while zmq_msg_more(&message) and zmq_msg_recv(&message, self.monitor, ZMQ_DONTWAIT) >= 0:
                pass
            if event == EVENT_DISCONNECTED or event == EVENT_ACCEPTED:      # the same descriptor is another connection now
                self.connection_lost(fd, event == EVENT_ACCEPTED)
        zmq_msg_close(&message)
        return found

    cdef int connection_lost(self, int fd, bint another) except -1 with gil:
        self._refusals.pop(fd, None)
        if another:
            self._refusals[fd] = 0
        for subscription in self._subscriptions.lost(fd):
            self.link.add(E_UNUSED, 0, <const char*> <bytes> subscription, len(subscription))
        return 0

    cdef bint read_subscriptions(self) except -1 nogil:
        """Hear what connections want; whether there was anything. Those that libzmq takes back for a connection that ended have no source."""
        cdef zmq_msg_t message
        cdef int source
        cdef bint found = False
        zmq_msg_init(&message)
        while zmq_msg_recv(&message, self.xpub, ZMQ_DONTWAIT) >= 0:
            found = True
            self.read_monitor()                     # it knows the connection that this came from
            source = zmq_msg_get(&message, ZMQ_SRCFD)
            if source >= 0 and zmq_msg_size(&message):
                self.judge(source, <const uint8_t*> zmq_msg_data(&message), zmq_msg_size(&message))
        zmq_msg_close(&message)
        return found

    cdef int judge(self, int source, const uint8_t* data, size_t size) except -1 with gil:
        """One subscription or unsubscription: XPUB in its manual mode does what is said here, to the connection that it came from."""
        cdef bytes subscription = (<const char*> data)[1:size]
        cdef int refused
        if source not in self._refusals:            # it has ended: nothing would take the subscription back
            return 0
        if data[0] == 1:
            refused = self._subscriptions.refused
            if self._subscriptions.add(source, subscription):
                self._xpub.setsockopt(zmq.SUBSCRIBE, subscription)
                self.link.add(E_ACTIVE, 0, <const char*> subscription, len(subscription))
            elif self._subscriptions.refused > refused:
                self._refusals[source] += 1
                if self._refusals[source] == REFUSALS_MAX:
                    shutdown(source, SHUT_RDWR)     # should it be another one's by now, that one connects again
        elif data[0] == 0 and split_subscription(subscription) is not None:
            self._xpub.setsockopt(zmq.UNSUBSCRIBE, subscription)
            if self._subscriptions.remove(source, subscription):
                self.link.add(E_UNUSED, 0, <const char*> subscription, len(subscription))
        return 0

    # ---- events

    cdef bint send_events(self) except -1 nogil:
        """Send what the main thread has made; whether there was anything."""
        cdef LinkHead head
        cdef const uint8_t* payload
        cdef const EventHead* event
        cdef const uint8_t* at
        cdef int count = 0
        while count < 64 and self.link.receive(&head, &payload):
            count += 1
            if head.kind != E_EVENT:
                continue
            event = <const EventHead*> payload
            at = payload + sizeof(EventHead)
            if self.send_part(at, event.subscription_size, True) and self.send_part(
                at + event.subscription_size, event.header_size, True
            ):
                self.send_part(at + event.subscription_size + event.header_size, event.records_size, False)
        self.link.release()
        return count > 0

    cdef bint send_part(self, const uint8_t* data, size_t size, bint more) noexcept nogil:
        cdef zmq_msg_t message
        if zmq_msg_init_size(&message, size) != 0:
            return False
        memcpy(zmq_msg_data(&message), data, size)
        if zmq_msg_send(&message, self.xpub, ZMQ_DONTWAIT | (ZMQ_SNDMORE if more else 0)) < 0:
            zmq_msg_close(&message)
            return False
        return True
