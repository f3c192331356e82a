"""What fastmq is measured against: servers of its own on free loopback ports, and their sides, each at its best from Python.

The sides are programs of their own (fastmq/cli/sides.py); they take bodies, tallies and paces from where fastmq's sides have them.
"""

import asyncio
import importlib.metadata
import importlib.util
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from typing import Any

from harness import Missing

from fastmq.cli.loads import BLOCK, WARM_UP_TRIPS, paced, report_trips
from fastmq.cli.messages import Kept, check_exactly_once, payloads
from fastmq.cli.sides import Gate, Side, run_side, wait

BULK = 500  # messages that Redis is given, and asked for, at once
GROUP = "bench"
NATS_WINDOW = 4000  # publishes without an outcome


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def need_program(program: str, package: str) -> str:
    """The path of a program, or Missing with the name of the package that has it."""
    path = shutil.which(program)
    if path is None:
        raise Missing(f"{program} is not installed: apt-get install {package}")
    return path


def need_module(module: str, package: str) -> str:
    """The version of a Python package, or Missing with how to install it."""
    if importlib.util.find_spec(module) is None:
        raise Missing(f"the Python package {package} is not installed: {sys.executable} -m pip install {package}")
    return importlib.metadata.version(package)


def side(name: str, fds: Sequence[int] = (), **arguments: Any) -> Side:
    return Side([__file__], name, fds, **arguments)


# ---- Redis


class RedisServer:
    """A redis-server that keeps nothing, or one that has everything on the disk before it answers."""

    def __init__(self, keeps: bool = False) -> None:
        program = need_program("redis-server", "redis-server")
        self.versions = {package: need_module(package, package) for package in ("redis", "hiredis")}
        import redis

        told = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
        self.versions["redis-server"] = told.split("v=")[1].split()[0]
        self.port = free_port()
        self.folder = tempfile.mkdtemp(prefix="fastmq-bench-")
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        options += ["--appendonly", "yes", "--appendfsync", "always"] if keeps else ["--appendonly", "no"]
        self.process = subprocess.Popen([program, *options, "--dir", self.folder], stdout=subprocess.DEVNULL)
        self.pids = [self.process.pid]
        self.client = redis.Redis(port=self.port)
        try:
            wait(self._answers, "redis-server to answer")
        except BaseException:
            self.close()
            raise

    def _answers(self) -> bool:
        import redis

        try:
            return bool(self.client.ping())
        except redis.ConnectionError:
            return False

    def close(self) -> None:
        self.client.close()
        self.process.terminate()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def redis_client(port: int) -> Any:
    """A connected client."""
    import redis

    client = redis.Redis(port=port, protocol=2, socket_timeout=None)
    client.ping()
    return client


def redis_pipelined(client: Any) -> Callable[[list[tuple[Any, ...]]], list[Any]]:
    """Send commands at once and return the answers; on redis-py's connection, because its pipeline costs more than Redis does."""
    connection = client.connection_pool.get_connection()

    def execute(commands: list[tuple[Any, ...]]) -> list[Any]:
        connection.send_packed_command(connection.pack_commands(commands))
        read = connection.read_response
        return [read() for _ in commands]

    return execute


def redis_producer(gate: Gate, port: int, queue: str, count: int, size: int) -> None:
    bodies = payloads(count, size)
    bulks = [bodies[start : start + BULK] for start in range(0, count, BULK)]
    client = redis_client(port)
    gate.ready()
    for bulk in bulks:
        client.lpush(queue, *bulk)
    gate.report(done=True)


def redis_consumer(gate: Gate, port: int, queue: str, count: int, size: int) -> None:
    kept = Kept(size)
    client = redis_client(port)
    gate.ready()
    while len(kept.bodies) < count:
        bodies = client.blmpop(0, 1, queue, direction="RIGHT", count=BULK)[1]
        if kept.whole:
            kept.bodies += bodies
        else:
            kept.bodies += [body[:10] for body in bodies]
            kept.bytes += sum(map(len, bodies))
    gate.report(done=True)
    gate.wait_end()
    gate.report(**kept.check(count))


def redis_stream_producer(gate: Gate, port: int, stream: str, count: int, size: int) -> None:
    bodies = payloads(count, size)
    execute = redis_pipelined(redis_client(port))
    gate.ready()
    for start in range(0, count, BULK):
        execute([(b"XADD", stream, b"*", b"body", body) for body in bodies[start : start + BULK]])
    gate.report(done=True)


def redis_stream_consumer(gate: Gate, port: int, stream: str, count: int, size: int) -> None:
    """Each answer's entries are acknowledged by one XACK, which travels with the question for the next."""
    received: list[bytes] = []
    execute = redis_pipelined(redis_client(port))
    read = (b"XREADGROUP", b"GROUP", GROUP, b"one", b"COUNT", BULK, b"BLOCK", 0, b"STREAMS", stream, b">")
    gate.ready()
    done: list[bytes] = []
    while len(received) < count:
        ((_, entries),) = execute([(b"XACK", stream, GROUP, *done), read] if done else [read])[-1]
        done = []
        for number, (_, body) in entries:
            done.append(number)
            received.append(body)
    execute([(b"XACK", stream, GROUP, *done)])
    gate.report(done=True)
    gate.wait_end()
    gate.report(**check_exactly_once(received, count, size))


def redis_window_producer(gate: Gate, port: int, stream: str, count: int, size: int, window: int, first: int = 0) -> None:
    """XADD with up to `window` of them without an answer: half of them are read, and as many sent behind the others."""
    bodies = payloads(count, size, first)
    connection = redis_client(port).connection_pool.get_connection()
    half = window // 2
    halves = [bodies[start : start + half] for start in range(0, count, half)]
    read = connection.read_response
    gate.ready()
    for number, block in enumerate(halves):
        if number >= 2:
            for _ in range(half):
                read()
        connection.send_packed_command(connection.pack_commands([(b"XADD", stream, b"*", b"body", body) for body in block]))
    for _ in range(sum(map(len, halves[-2:]))):
        read()
    gate.report(done=True)


def redis_lone_producer(gate: Gate, port: int, stream: str, trips: int, size: int) -> None:
    """One XADD at a time, each answered before the next."""
    from time import perf_counter

    times = []
    bodies = payloads(trips + WARM_UP_TRIPS, size)
    execute = redis_pipelined(redis_client(port))
    gate.ready()
    for body in bodies:
        start = perf_counter()
        execute([(b"XADD", stream, b"*", b"body", body)])
        times.append(perf_counter() - start)
    report_trips(gate, times)


def redis_ping(gate: Gate, port: int, ping: str, pong: str, trips: int, size: int) -> None:
    from time import perf_counter

    bodies = payloads(trips + WARM_UP_TRIPS, size)
    received, times = [], []
    client = redis_client(port)
    gate.ready()
    for body in bodies:
        start = perf_counter()
        client.lpush(ping, body)
        answer = client.blpop(pong)
        times.append(perf_counter() - start)
        received.append(answer[1])
    check_exactly_once(received, len(bodies), size)
    report_trips(gate, times)


def redis_pong(gate: Gate, port: int, ping: str, pong: str) -> None:
    client = redis_client(port)
    gate.ready()
    while True:
        client.lpush(pong, client.blpop(ping)[1])


def redis_publisher(gate: Gate, port: int, channel: str, count: int, size: int, paces: list[int]) -> None:
    bodies = payloads(count, size)
    execute = redis_pipelined(redis_client(port))
    gate.ready()
    for block in paced(bodies, paces):
        execute([(b"PUBLISH", channel, body) for body in block])
    gate.report(done=True)
    gate.wait_end()


def redis_subscriber(gate: Gate, port: int, channel: str, count: int, size: int, pace: int) -> None:
    import os

    kept = Kept(size)
    connection = redis_client(port).connection_pool.get_connection()
    connection.send_command(b"SUBSCRIBE", channel)
    read = connection.read_response
    read()
    gate.ready()
    for start in range(0, count, BLOCK):
        for _ in range(min(BLOCK, count - start)):
            kept.bodies.append(read()[2])
        os.write(pace, b".")
    gate.report(done=True)
    gate.wait_end()
    gate.report(**kept.check(count))


# ---- NATS


class NatsServer:
    """A nats-server with JetStream in memory."""

    def __init__(self) -> None:
        program = need_program("nats-server", "nats-server")
        self.versions = {"nats-py": need_module("nats", "nats-py")}
        told = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
        self.versions["nats-server"] = told.split()[-1].removeprefix("v")
        self.port = free_port()
        self.folder = tempfile.mkdtemp(prefix="fastmq-bench-")
        options = ["-a", "127.0.0.1", "-p", str(self.port), "-js", "-sd", self.folder]
        self.process = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.pids = [self.process.pid]
        try:
            wait(self._answers, "nats-server to answer")
        except BaseException:
            self.close()
            raise

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                return connection.recv(16).startswith(b"INFO")
        except OSError:
            return False

    def renew_stream(self, name: str) -> None:
        """An empty work queue of that name."""

        async def renew() -> None:
            from nats.js.api import RetentionPolicy, StorageType

            client, stream = await nats_stream(self.port)
            try:
                await stream.delete_stream(name)
            except Exception as error:  # it was not there
                if "not found" not in str(error):
                    raise
            await stream.add_stream(name=name, subjects=[name], retention=RetentionPolicy.WORK_QUEUE, storage=StorageType.MEMORY)
            await client.close()

        asyncio.run(renew())

    def messages(self, name: str) -> int:
        async def ask() -> int:
            client, stream = await nats_stream(self.port)
            found: int = (await stream.stream_info(name)).state.messages
            await client.close()
            return found

        return asyncio.run(ask())

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


async def nats_stream(port: int) -> Any:
    import nats

    client = await nats.connect(f"nats://127.0.0.1:{port}")
    return client, client.jetstream()


def nats_producer(gate: Gate, port: int, queue: str, count: int, size: int) -> None:
    bodies = payloads(count, size)

    async def produce() -> None:
        """With an inbox of its own, because `publish_async` costs three times as much."""
        client, _ = await nats_stream(port)
        inbox, taken, some_taken = client.new_inbox(), 0, asyncio.Event()

        async def on_taken(message: Any) -> None:
            nonlocal taken
            if b'"error"' in message.data:
                raise RuntimeError(message.data)
            taken += 1
            some_taken.set()

        await client.subscribe(inbox, cb=on_taken)
        gate.ready()
        for sent, body in enumerate(bodies):
            while sent - taken >= NATS_WINDOW:
                some_taken.clear()
                await some_taken.wait()
            await client.publish(queue, body, reply=inbox)
        while taken < count:
            some_taken.clear()
            await some_taken.wait()
        gate.report(done=True)
        await client.close()

    asyncio.run(produce())


def nats_consumer(gate: Gate, port: int, queue: str, count: int, size: int) -> None:
    received: list[bytes] = []

    async def consume() -> None:
        from nats.js.api import ConsumerConfig

        client, stream = await nats_stream(port)
        subscription = await stream.pull_subscribe(queue, "bench", config=ConsumerConfig(max_ack_pending=10_000))
        gate.ready()
        while len(received) < count:
            for message in await subscription.fetch(min(BULK, count - len(received)), timeout=30):
                received.append(message.data)
                await message.ack()
        await client.flush()
        gate.report(done=True)
        gate.wait_end()
        await client.close()

    asyncio.run(consume())
    gate.report(**check_exactly_once(received, count, size))


# ---- the disk


def disk_writer(gate: Gate, path: str, count: int, size: int, sync_size: int) -> None:
    """Write as many bytes as `count` messages have, one after the other, with a sync behind each `sync_size` of them."""
    import os

    left = count * size
    block = memoryview(b"".join(payloads(-(-sync_size // size), size)))[:sync_size]
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    gate.ready()
    while left:
        written = 0
        while written < min(left, sync_size):
            written += os.write(fd, block[written : min(left, sync_size)])
        os.fdatasync(fd)
        left -= written
    gate.report(done=True)
    gate.wait_end()
    os.close(fd)
    os.unlink(path)


def disk_saturator(gate: Gate, path: str, file_size: int, sync_size: int) -> None:
    """Write to the same file again and again, with a sync behind each `sync_size` bytes, until it is told to end; say how much it was."""
    import os

    block = os.urandom(sync_size)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.posix_fallocate(fd, 0, file_size)
    gate.ready()
    written = 0
    while not gate.ended:
        done = 0
        while done < sync_size:
            done += os.pwrite(fd, block[done:] if done else block, written % file_size + done)
        os.fdatasync(fd)
        written += done
    os.close(fd)
    os.unlink(path)
    gate.report(written=written)


# ---- ZeroMQ


class ZmqProxy:
    """PULL - zmq.proxy - PUSH in a process of its own."""

    def __init__(self) -> None:
        self.side = side("zmq_proxy")
        self.ports = self.side.report()
        self.pids = [self.side.process.pid]

    def close(self) -> None:
        self.side.kill()


def zmq_proxy(gate: Gate) -> None:
    import zmq

    context = zmq.Context()
    front, back = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    gate.report(push=front.bind_to_random_port("tcp://127.0.0.1"), pull=back.bind_to_random_port("tcp://127.0.0.1"))
    zmq.proxy(front, back)


def zmq_socket(kind: str, port: int) -> Any:
    """A socket of that kind, connected to the proxy."""
    import zmq

    socket = zmq.Context().socket(getattr(zmq, kind))
    socket.connect(f"tcp://127.0.0.1:{port}")
    return socket


def zmq_producer(gate: Gate, port: int, count: int, size: int) -> None:
    bodies = payloads(count, size)
    socket = zmq_socket("PUSH", port)
    gate.ready()
    for body in bodies:
        socket.send(body, copy=False)
    gate.report(done=True)
    gate.wait_end()
    socket.close(linger=0)


def zmq_consumer(gate: Gate, port: int, count: int, size: int) -> None:
    kept = Kept(size)
    socket = zmq_socket("PULL", port)
    gate.ready()
    for frame in islice(iter(lambda: socket.recv(copy=False), None), count):
        kept.bodies.append(bytes(frame.buffer[:10]))
        kept.bytes += len(frame)
    gate.report(done=True)
    gate.wait_end()
    gate.report(**kept.check(count))


def zmq_stream_producer(gate: Gate, port: int, different: int, size: int) -> None:
    """Send the same messages again and again until it is killed."""
    bodies = payloads(different, size)
    socket = zmq_socket("PUSH", port)
    gate.ready()
    for body in cycle(bodies):
        socket.send(body, copy=False)


def zmq_stream_consumer(gate: Gate, port: int) -> None:
    """Take what comes until it is told to end; say how many it were."""
    socket = zmq_socket("PULL", port)
    gate.ready()
    came = 0
    while not gate.ended:
        if socket.poll(100):
            socket.recv(copy=False)
            came += 1
    gate.report(came=came)


# ---- TCP without a broker


def tcp_connection() -> tuple[socket.socket, socket.socket]:
    """Both ends of a connection on loopback, without Nagle's delay."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ends = socket.create_connection(listener.getsockname()), listener.accept()[0]
    for end in ends:
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return ends


def tcp_ping(gate: Gate, fd: int, trips: int, size: int, seconds: float, pause: float) -> None:
    """One message at a time there and back, with a pause behind each; ends after so many trips, or seconds."""
    from time import perf_counter, sleep

    connection = socket.socket(fileno=fd)
    bodies = payloads(trips + WARM_UP_TRIPS, size)
    times, received = [], []
    gate.ready()
    until = perf_counter() + seconds
    for body in bodies:
        start = perf_counter()
        connection.sendall(body)
        answer = connection.recv(size, socket.MSG_WAITALL)
        times.append(perf_counter() - start)
        received.append(answer)
        if start > until:
            break
        sleep(pause)
    check_exactly_once(received, len(times), size)
    report_trips(gate, times)


def tcp_pong(gate: Gate, fd: int, size: int) -> None:
    """Send back what comes, until it is killed."""
    connection = socket.socket(fileno=fd)
    gate.ready()
    while message := connection.recv(size, socket.MSG_WAITALL):
        connection.sendall(message)


if __name__ == "__main__":
    run_side(globals())
