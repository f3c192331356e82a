"""Publishes COUNT messages to QUEUE, each once, whatever breaks on the way: bare_producer.py ENDPOINT QUEUE COUNT"""
import sys
from collections import deque

import msgpack
import zmq

HELLO, PUBLISH, BYE, WELCOME, CONFIRM, ERROR, RESEND = 1, 2, 17, 32, 33, 36, 37
endpoint, queue, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
waiting = {n: msgpack.packb([queue, None, b"message %d" % n]) for n in range(1, count + 1)}  # those without an outcome
session, incarnation, welcome, floor, refused = b"", 0, False, 1, 0
unsent, in_flight, sent, window = deque(), set(), [0, 0], [0, 0]  # in this incarnation; the last two: messages, bytes
socket = zmq.Socket(context := zmq.Context(), zmq.DEALER)
def send(verb, *fields, records=()):
    socket.send_multipart([msgpack.packb([verb, session, incarnation, *fields]), *records])
def hello(number):  # on a new connection, so that nothing said on the old one is heard any more
    global socket, incarnation, welcome
    socket.close(linger=0)
    socket = context.socket(zmq.DEALER)
    socket.connect(endpoint)
    incarnation, welcome = number if session else 0, False
    send(HELLO, 1, "/", "bare producer", 0, {})
hello(0)
while waiting:
    while welcome and unsent and (
            not in_flight or (sent[0] < window[0] and sent[1] + len(waiting[unsent[0]]) <= window[1])):
        in_flight.add(n := unsent.popleft())
        send(PUBLISH, floor, n, 1, "", 0, records=[waiting[n]])
        sent = [sent[0] + 1, sent[1] + len(waiting[n])]
    if not socket.poll(3000):  # silence: say HELLO again; what has no outcome is sent again after the WELCOME
        hello(incarnation + 1)
        continue
    verb, _, number, *fields = msgpack.unpackb(socket.recv())
    if verb in (WELCOME, RESEND):
        session, window = (fields[0], fields[3:5]) if verb == WELCOME else (session, fields)
        incarnation, welcome, unsent, in_flight, sent = number, True, deque(waiting), set(), [0, 0]
    elif verb == CONFIRM:
        up_to, ranges, exceptions, *window = fields
        for first, last, *refusal in [*exceptions, *ranges, (floor, up_to)]:  # in this order
            for n in waiting.keys() & range(first, last + 1):
                refused += bool(waiting.pop(n) and refusal)
        in_flight, floor = in_flight & waiting.keys(), min(waiting, default=0)
    elif verb == ERROR and fields[1] == "no-session":
        session = session if welcome else b""  # said to a HELLO: begin a new session, go on counting
        hello(incarnation + 1)
    elif verb == ERROR and fields[1] == "stale" and not welcome:
        hello(number + 1)
send(BYE)
context.destroy(linger=1000)
print(f"{count - refused} confirmed, {refused} refused")
