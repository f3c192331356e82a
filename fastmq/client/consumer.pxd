# An application's hold on one consumer: the run it is in, and the next ones.
#
# Owns the run being handed out, which only threads that hold the GIL touch. Runs in client processes.
from libc.stdint cimport uint64_t

from fastmq.client.connection cimport Connection
from fastmq.client.deliveries cimport ConsumerState, Run
from fastmq.client.session cimport Session


cdef class Consumer:
    cdef object client                  # kept alive while the consumer is
    cdef Connection origin
    cdef Session session
    cdef ConsumerState* state           # the session's; NULL after the end
    cdef Run* run                       # being handed out; NULL: none
    cdef str exchange                   # of the run
    cdef str key                        # the routing key that came last
    cdef readonly str queue
    cdef double timeout                 # seconds; below 0: none
    cdef bint closing

    cdef Run* more(self) except NULL
    cdef int give_back(self) except -1
