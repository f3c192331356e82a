"""A front-end's process: `python -m fastmq.server.frontend FD`.

Owns: the sockets that clients connect to, the XPUB socket with its options, the bells of its links, its control socket. Rules: what the
control socket says is documented in server/control.py; between two of its messages FrontendLoop works without the GIL; no socket is without
the limits below. Ends when told, and when the supervisor has gone.
"""
from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
import time
from collections.abc import Callable
from typing import Any

import zmq

from fastmq.config import Config
from fastmq.net.arena import ArenaView
from fastmq.net.ring import Link, make_link_fds
from fastmq.server.child import begin, give_back_memory
from fastmq.server.connections import HANDSHAKE_MS, PING_MS, SILENCE_MS, Connections
from fastmq.server.control import Control
from fastmq.server.events import EventsThread
from fastmq.server.frontend_loop import FrontendLoop
from fastmq.server.live import SUBSCRIPTION_SIZE_MAX
from fastmq.server.log import Log
from fastmq.server.sessions import Sessions
from fastmq.server.unix_socket import CannotListen, SocketFile, bind_unix

TICK_NS = 100_000_000           # between two ticks under load
IDLE_TICK_NS = 1_000_000_000    # and without
FILL_BYTES_NS = 4               # that strangers may fill memory with in a nanosecond: as long as they need to reach its limit nobody looks
DRAIN_NS = 800_000_000        # at most, for the answers to what was taken before a drain
DRAIN_LOOK_NS = 5_000_000       # between two looks whether all of it has been answered
FAREWELL_NS = 200_000_000       # at most, for clients to take CLOSING
RETRY_S = 0.05                  # between two tries to bind an address that is in use
BACKLOG = 4_096                 # connections that wait to be accepted: a reconnect storm
SUBSCRIPTIONS_AHEAD = 1         # that libzmq reads ahead: with more it takes in what one connection sends without ever coming back from it
RECEIVED_SHARE = 4              # what has not come whole may take this part of the memory where that becomes short
DESCRIPTORS_SPARE = 64          # that are not for clients
MONITORED = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED

log = Log("front-end")


def raise_descriptor_limit(config: Config) -> None:
    """Raise the number of descriptors: at the limit libzmq, which has the live events, has no good answer of its own."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = config.descriptors + DESCRIPTORS_SPARE
    if hard != resource.RLIM_INFINITY and hard < wanted:
        with contextlib.suppress(ValueError, OSError):          # only root may
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
            hard = wanted
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard) if hard != resource.RLIM_INFINITY else wanted, hard))


def make_xpub(context: zmq.Context[Any], config: Config) -> zmq.Socket[Any]:
    """The socket of live events, which strangers may connect to."""
    xpub = context.socket(zmq.XPUB)
    options = {
        zmq.XPUB_VERBOSER: 1,
        zmq.XPUB_MANUAL: 1,
        zmq.MAXMSGSIZE: SUBSCRIPTION_SIZE_MAX + 16,
        zmq.HANDSHAKE_IVL: HANDSHAKE_MS,
        zmq.HEARTBEAT_IVL: PING_MS,
        zmq.HEARTBEAT_TIMEOUT: SILENCE_MS,
        zmq.TCP_KEEPALIVE: 1,
        zmq.BACKLOG: BACKLOG,
        zmq.SNDHWM: config.events_high_water_mark,
        zmq.RCVHWM: SUBSCRIPTIONS_AHEAD,
        zmq.LINGER: 0,
    }
    for option, value in options.items():
        xpub.setsockopt(option, value)
    if config.unix.startswith("@"):             # an abstract socket has no permissions
        for user in {0, os.geteuid()}:
            xpub.setsockopt(zmq.IPC_FILTER_UID, user)
    return xpub


def monitor_of(socket: zmq.Socket[Any], name: str) -> zmq.Socket[Any]:
    """A PAIR socket that hears of the connections of `socket`. It has no mark: libzmq would wait for its reader."""
    endpoint = f"inproc://monitor-{name}"
    socket.monitor(endpoint, MONITORED)
    monitor = socket.context.socket(zmq.PAIR)
    monitor.setsockopt(zmq.RCVHWM, 0)
    monitor.setsockopt(zmq.LINGER, 0)
    monitor.connect(endpoint)
    return monitor


def bind(listen: Callable[[int], int], shown: str, port: int, retry_s: float, setting: str) -> int:
    """Bind to a port, 0 for a free one; the port. An address in use is tried again for `retry_s`. Raises CannotListen."""
    deadline = time.monotonic() + retry_s
    while True:
        try:
            return listen(port)
        except OSError as error:                # zmq.ZMQError is one
            if error.errno == errno.EADDRINUSE and time.monotonic() < deadline:
                time.sleep(RETRY_S)
                continue
            raise CannotListen(f"cannot listen on {shown}:{port} ({setting}): {os.strerror(error.errno or 0)}") from None


def address_of(host: str) -> str:
    """The address that the setting host means: itself, `*` (all), or what its name is resolved to. Raises CannotListen."""
    if host == "*":
        return "0.0.0.0"
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise CannotListen(f"cannot listen on {host} (host): {error.strerror}") from None
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)            # of a name that has both
    return str(found[0][4][0])


def listener(family: int, address: Any) -> socket.socket:
    """A socket that listens."""
    made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(BACKLOG)
    except OSError:
        made.close()
        raise
    return made


class Frontend:
    """One front-end."""

    def __init__(self, control: Control, start: dict[str, Any]) -> None:
        config = Config.from_map(start["settings"])
        host, port, events_port = start["host"], start["port"], start["events_port"]
        raise_descriptor_limit(config)
        self._descriptors = config.descriptors
        self._control = control
        self._memory_max = config.frontend_memory_max
        self._bells: dict[int, list[int]] = {}          # of each worker's link: own, its
        self._draining_until_ns = 0                     # 0: not draining
        self._stopped = False
        self._done = 0                                  # requests and deliveries at the last tick
        self._rested = False
        self._context: zmq.Context[Any] = zmq.Context(1)
        self._xpub = make_xpub(self._context, config)
        self._monitor = monitor_of(self._xpub, "xpub")
        self._listeners: list[tuple[socket.socket, bool]] = []      # and whether only the broker's user may connect
        self._files: list[SocketFile] = []
        self._listen(config, host, port, events_port, start["bind_retry_s"])

        memory, self._own_bell, events_bell = make_link_fds(4 * config.ring_size)
        self._events_bells = [self._own_bell, events_bell]
        link = Link.open(memory, self._own_bell, events_bell, False)
        self._events = EventsThread(
            self._xpub, self._monitor, Link.open(memory, events_bell, self._own_bell, True), config.patterns_max
        )
        os.close(memory)
        self._sessions = Sessions(
            config, epoch=start["epoch"], key=start["key"], workers=start["workers"], map=start["map"], events_link=link
        )
        self._sessions.events_endpoint = f"tcp://{f'[{host}]' if ':' in host else host}:{self.events_port}"
        if config.unix:
            self._sessions.unix_events_endpoint = f"ipc://{config.unix_events}"
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._connections = Connections(self._sessions, self._listeners, descriptors - DESCRIPTORS_SPARE)
        self._loop = FrontendLoop(self._sessions, self._connections)
        self._sessions.requests.loop_counters = self._counters
        self._accept_failed = 0

    def _listen(self, config: Config, host: str, port: int, events_port: int, retry_s: float) -> None:
        """Bind everything that clients connect to. Raises CannotListen."""
        address = address_of(host)
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        shown = f"[{address}]" if ":" in address else address
        self._xpub.setsockopt(zmq.IPV6, int(":" in address))

        def listen(port: int) -> int:
            self._listeners.append((listener(family, (address, port)), False))
            return int(self._listeners[-1][0].getsockname()[1])

        def listen_for_events(port: int) -> int:
            self._xpub.bind(f"tcp://{shown}:{port or '*'}")
            endpoint = self._xpub.getsockopt(zmq.LAST_ENDPOINT)
            assert isinstance(endpoint, bytes)
            return int(endpoint.rstrip(b"\0").rpartition(b":")[2])

        def listen_unix(path: str) -> None:
            abstract = path.startswith("@")
            name = "\0" + path[1:] if abstract else path
            self._listeners.append((listener(socket.AF_UNIX, name), abstract))

        def listen_unix_for_events(path: str) -> None:
            self._xpub.bind(f"ipc://{path}")

        self.port = bind(listen, shown, port, retry_s, "port")
        if events_port < 0:
            events_port = port + 1 if port else 0
        self.events_port = bind(listen_for_events, shown, events_port, retry_s, "events_port")
        if config.unix:
            mode = int(config.unix_mode, 8)
            self._files += bind_unix(listen_unix, config.unix, mode)
            self._files += bind_unix(listen_unix_for_events, config.unix_events, mode)

    def run(self) -> None:
        """Until told to stop. EOFError and OSError: the supervisor has gone."""
        self._look_at_bells()
        self._events.start()
        self._connections.start()
        self._control.send({"op": "ready", "port": self.port, "events_port": self.events_port})
        soon_ns = tick_at_ns = 0
        while not self._stopped:
            self._loop.work(tick_at_ns, soon_ns=soon_ns)
            self._hear()
            now_ns = time.monotonic_ns()
            if now_ns >= min(soon_ns, tick_at_ns):
                self._sessions.tick(now_ns)
                self._watch_descriptors()
                self._rest()
                soon_ns = now_ns + TICK_NS
                tick_at_ns = now_ns + max(TICK_NS, min(IDLE_TICK_NS, self._watch_memory() // FILL_BYTES_NS))
            if self._draining_until_ns:
                tick_at_ns = min(tick_at_ns, now_ns + DRAIN_LOOK_NS)
                if self._sessions.is_drained() or now_ns >= self._draining_until_ns:
                    self._say_farewell()

    def _counters(self) -> dict[str, int]:
        c = self._connections
        return {"connections": c.accepted, "connections_failed": c.accept_failed, "connections_shed": c.shed, "large_held_back": c.held_back}

    def _watch_descriptors(self) -> None:
        """Say so when connections cannot be accepted, for want of descriptors as a rule; those who come meanwhile wait."""
        if self._connections.accept_failed != self._accept_failed:
            self._accept_failed = self._connections.accept_failed
            log.say(f"{self._connections.count} connections, and more cannot be accepted; descriptors ({self._descriptors}) is the setting "
                    f"that bounds them")

    def _hear(self) -> None:
        """Do what the supervisor says."""
        self._control.flush()
        while (found := self._control.receive()) is not None:
            message, descriptors = found
            match message["op"]:
                case "link":
                    self._unlink(message["worker"])
                    self._link(message["worker"], *descriptors)
                case "unlink":
                    self._unlink(message["worker"])
                case "processes":
                    self._sessions.requests.processes = message["list"]
                case "drain":
                    self._sessions.drain()
                    self._draining_until_ns = time.monotonic_ns() + DRAIN_NS
                case "stop":
                    self._stopped = True

    def _link(self, worker: int, memory: int, own_bell: int, other_bell: int, arena: int) -> None:
        self._bells[worker] = [own_bell, other_bell]
        self._sessions.attach(worker, Link.open(memory, own_bell, other_bell, False), ArenaView(arena))
        os.close(memory)
        os.close(arena)
        self._look_at_bells()

    def _unlink(self, worker: int) -> None:
        """The worker has died, or gets a fresh link."""
        self._sessions.detach(worker)
        bells = self._bells.pop(worker, ())
        self._look_at_bells()
        for bell in bells:
            os.close(bell)

    def _watch_memory(self) -> int:
        """How many bytes of memory are left; the end where more than the setting allows is in use. Not RLIMIT_DATA: what is reserved for a
        large frame is not used before it comes, so that limit is reached by a few strangers who announce much and send nothing."""
        with open("/proc/self/statm", "rb") as statm:
            _, resident, shared, *_ = map(int, statm.read().split())
        resident = (resident - shared) * resource.getpagesize()         # arenas and rings are the workers'
        if resident > self._memory_max // 2:
            self._connections.bound_received(self._memory_max // RECEIVED_SHARE)
        if resident > self._memory_max:
            raise MemoryError(f"the front-end uses {resident} bytes; frontend_memory_max allows {self._memory_max}")
        return self._memory_max - resident

    def _rest(self) -> None:
        """Give memory back once, when nothing has happened since the last tick."""
        done = self._sessions.received + self._sessions.delivered
        if done == self._done and not self._rested:
            self._connections.rest()
            give_back_memory()
        self._rested, self._done = done == self._done, done

    def _look_at_bells(self) -> None:
        self._connections.look_at(self._control.fileno(), [self._own_bell, *(own for own, _ in self._bells.values())])

    def _say_farewell(self) -> None:
        """What was taken has been answered, or waited for long enough: tell the clients, then the supervisor."""
        self._draining_until_ns = 0
        self._sessions.close_sessions()
        self._loop.work(time.monotonic_ns() + FAREWELL_NS, until_idle=True)
        self._control.send({"op": "drained"})

    def halt(self) -> None:
        """Whatever has happened: the thread for large frames ends before the memory it was lent goes."""
        self._connections.stop()

    def close(self) -> None:
        """Close everything."""
        self._events.stop()
        for file in self._files:            # while they are still listened on, so that nobody else takes them for a dead broker's
            file.remove()
        self._connections.stop()
        self._xpub.disable_monitor()
        self._xpub.close(linger=0)
        self._monitor.close(linger=0)
        self._context.term()


def main() -> int:
    """Be the front-end that the `start` message describes. The exit status."""
    control, start, _ = begin("frontend")
    try:
        frontend = Frontend(control, start)
    except CannotListen as error:
        control.send({"op": "failed", "text": str(error)})
        return 1
    try:
        frontend.run()
        frontend.close()
    except (EOFError, ConnectionError):
        os._exit(1)                     # nobody is left to stop for; libzmq's threads end with the process
    finally:
        frontend.halt()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
