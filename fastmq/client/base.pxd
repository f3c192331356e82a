# What of the blocking client is on the way of a message, or needs the connection's mutex; the rest of it is client.py.
#
# Owns the two connections. Rules: see connection.pxd. Runs in client processes.
from libc.stdint cimport uint32_t, uint64_t

from fastmq.client.connection cimport Connection
from fastmq.client.core cimport ClientCore
from fastmq.client.events cimport EventsCore
from fastmq.client.message cimport Message
from fastmq.client.requests cimport Request


cdef class ClientBase:
    cdef ClientCore core
    cdef EventsCore events_core
    cdef readonly Connection _commands
    cdef readonly Connection _events
    cdef readonly double timeout

    cdef void let_go_of_bodies(self)
    cdef uint64_t publish_slowly(self, str routing_key, bytes body, str exchange, int flags, bytes properties, timeout) except 0
    cdef Message message_of(self, Request* request)
