# A socket with the Peer that speaks on it, shared by the application's threads and one helper thread.
#
# Owns the mutex under which the Peer is used. Rules: the mutex is held for short work that never blocks, and nobody who holds it takes the
# GIL (who has the GIL may take it); one thread at a time polls and reads, a caller that waits or the helper when none does; what waits is
# sent before anybody blocks; only the helper closes the socket and makes a new one. Runs in client processes.
#
#   caller:  lock, do something, unlock;  push (send, read what is there);  wait (flush, then poll and read, or sleep while another reads)
#   helper:  lingering batches and settlements, PING, reading for nobody, ending a silent connection, connecting again
from libc.stdint cimport int64_t, uint64_t

from fastmq.client.peer cimport Peer
from fastmq.client.posix cimport pollfd, pthread_cond_t, pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock


cdef enum:
    READ_SIZE = 262144                      # bytes of one recv
    READS_MAX = 8                           # recv calls under one lock
    OUT_KEPT_MAX = 1048576                  # sent bytes above which the rest of `out` is moved to its front
    LINGER_NS = 500000                      # that a batch or settlement may wait for more
    WIDE_NS = 1000000                       # that a publish which found the window full waits at most for more room than its own
    COMPANY_NS = 200000                     # after a publish was sent: the next is likely to be followed by more, and waits for them
    SLACK_NS = 100000                       # by which the helper may be late
    REARM_NS = 20000000                     # after a caller's last read until the helper reads
    NAP_NS = 1000000000                     # the longest sleep of a caller: a signal that came just before it would not end it
    HELPER_NAP_NS = 60000000000             # the longest sleep of the helper, which is poked, and hears the broker's PING every 5 s
    CHECK_NS = 100000000                    # between looks for signals while another thread reads
    FINISH_NS = 500000000                   # for the broker to read the end and close its side
    IMPATIENT = 256                         # with a Wait: a connection that is cut ends the waiting at once


cdef enum Waited:
    WAITED = 0                              # it is there
    WAITED_TIMEOUT = 1
    WAITED_SIGNAL = 2                       # look for signals, then wait on
    WAITED_CLOSED = 3                       # the client was closed
    WAITED_LOST = 4                         # there was no connection for `patience_ns` of a wait without a deadline


cdef class Connection:
    cdef pthread_mutex_t mutex
    cdef pthread_cond_t changed             # told when anything was read, or the connection changed
    cdef Peer peer
    cdef int fd                             # -1: no socket
    cdef int wake_fd                        # written to wake the helper
    cdef bint cut                           # the socket is of no more use: the helper closes it
    cdef bint closed                        # by the application, for good
    cdef bint dormant                       # no connection is wanted
    cdef bint reading                       # a caller polls
    cdef int waiting                        # callers asleep in `changed`
    cdef uint64_t reads                     # by callers
    cdef uint64_t reads_seen                # by the helper when it looked last
    cdef uint64_t lingers                   # how often something began to wait
    cdef uint64_t lingers_seen              # by the helper when it looked last
    cdef uint64_t linger_ns                 # when what waits must be sent; 0: nothing waits
    cdef uint64_t published_ns              # when a publish was sent last; 0: somebody has waited since
    cdef uint64_t helper_wakes_ns           # the helper looks here at that time at the latest
    cdef uint64_t retry_ns                  # the helper makes no connection before that
    cdef uint64_t lost_ns                   # since when there is no session; 0: there is one
    cdef public uint64_t patience_ns        # how long waiting calls bear that
    cdef public str address                 # for people
    cdef public str problem                 # why there was no connection last; ""
    cdef public uint64_t wakes              # of the helper for this connection, for tests and tuning

    cdef void poke(self, uint64_t when) noexcept nogil              # the helper is to look here at that time
    cdef void linger(self) noexcept nogil                           # something waits to be sent: not for longer than LINGER_NS
    cdef bint expects_company(self) noexcept nogil                  # whether a publish that could be sent alone is likely to be followed
    cdef void send_out(self, uint64_t now) noexcept nogil
    cdef void receive(self, uint64_t now) noexcept nogil
    cdef void lose(self, int why, uint64_t now) noexcept nogil
    cdef void push(self) noexcept nogil                             # takes the mutex: send all that waits, read what is there
    cdef int wait(self, int what, uint64_t which, uint64_t deadline, uint64_t begun) noexcept nogil     # takes the mutex; a Waited
    cdef uint64_t turn(self, pollfd* events, uint64_t now) noexcept nogil               # the helper's, with the mutex
    cdef bint wait_reading(self, uint64_t timeout_ns) noexcept nogil
    cdef int wait_for(self, int what, uint64_t which, uint64_t deadline) except -1      # with the GIL; looks for signals

    cdef inline void lock(self) noexcept nogil:
        pthread_mutex_lock(&self.mutex)

    cdef inline void unlock(self) noexcept nogil:
        pthread_mutex_unlock(&self.mutex)


cpdef enum HelperCall:
    HELPER_NOTHING = -1
    HELPER_CLOSE = 0                        # the client is closed
    HELPER_COMMANDS = 1                     # the command connection is to be made again
    HELPER_EVENTS = 2                       # the events connection is to be made
    HELPER_WELCOME = 3                      # there is a new session: live subscriptions are to be asked for again


cdef class Helper:
    cdef readonly Connection commands
    cdef readonly Connection events
    cdef int wake_read
    cdef int wake_write
    cdef bint was_up

    cdef int run_loop(self) noexcept nogil
    cdef int look(self, Connection c, pollfd* event, uint64_t now, uint64_t* due, int lost) noexcept nogil
    cdef void serve(self, Connection c, pollfd* event) noexcept nogil
