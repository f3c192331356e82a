"""Takes COUNT messages from QUEUE, prints each body, acknowledges it: bare_consumer.py ENDPOINT QUEUE COUNT"""
import sys
import time

import msgpack
import zmq

HELLO, SETTLE, CONSUME, DECLARE_QUEUE, BYE = 1, 3, 4, 9, 17
WELCOME, DELIVER, REPLY, ERROR, CANCELLED = 32, 34, 35, 36, 38
endpoint, queue, left = sys.argv[1], sys.argv[2], int(sys.argv[3])
session, incarnation, welcome = b"", 0, False
socket = zmq.Socket(context := zmq.Context(), zmq.DEALER)
def send(verb, *fields):
    socket.send(msgpack.packb([verb, session, incarnation, *fields]))
def hello(number):  # on a new connection, so that nothing said on the old one is heard any more
    global socket, incarnation, welcome
    socket.close(linger=0)
    socket = context.socket(zmq.DEALER)
    socket.heartbeat_ivl = 5000
    socket.connect(endpoint)
    incarnation, welcome = number if session else 0, False
    send(HELLO, 1, "/", "bare consumer", 5, {})
hello(0)
while left:
    if not socket.poll(5000):  # silence: a sign of life, which is answered only if the session is gone
        send(SETTLE, []) if welcome else hello(incarnation + 1)
        continue
    header, *records = socket.recv_multipart()
    verb, _, number, *fields = msgpack.unpackb(header)
    if verb == WELCOME:
        session, incarnation, welcome = fields[0], number, True
        send(DECLARE_QUEUE, 1, queue, {})
    elif verb == REPLY and fields[0] == 1:
        send(CONSUME, 2, 1, queue, 100, 0, {})
    elif verb == DELIVER:
        (unpacker := msgpack.Unpacker(max_buffer_size=0)).feed(records[0])
        for _, shard, epoch, first, size, *_ in fields[0]:
            for n in range(first, first + min(size, left)):  # the tag of this message: shard, epoch, n
                routing_key, properties, body = unpacker.unpack()
                print(body.decode(errors="replace"), flush=True)
                send(SETTLE, [[shard, epoch, 0, [[n, n]], []]])
                left -= 1
    elif verb == ERROR and (not welcome or fields[1] in ("no-session", "unavailable", "unknown")):
        session = b"" if fields[1] == "no-session" and not welcome else session  # said to a HELLO: it is gone
        time.sleep(0.1)
        hello((number if fields[1] == "stale" else incarnation) + 1)
    elif verb in (ERROR, CANCELLED):
        sys.exit(f"{fields[1]}: {fields[2]}")
send(BYE)
context.destroy(linger=1000)
