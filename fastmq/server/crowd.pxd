# Whether small requests come while large frames of others move: then those who move large frames leave the others more of the processor.
#
# Owns: a count. Rules: a request now and then is no crowd; a crowd is expected back for a while, so that nothing changes between two requests
# of one who waits for an answer. Runs in front-ends, on the main thread, without the GIL.
from libc.stdint cimport uint64_t


cdef enum:
    CROWD_MIN = 8                       # reads that brought small requests
    CROWD_NS = 50000000                 # within this time are a crowd,
    CROWD_KEPT_NS = 1000000000          # and for so long after the last of them
    LARGE_KEPT_NS = 1000000000          # for so long after a large frame what else its connection brings counts for no crowd
    CROWD_STEP = 131072                 # bytes of large frames that one system call moves then: nobody is preempted within one, and
    #                                     more than one segment of the loopback device (64 KiB), else a timer decides
    CROWD_AHEAD = 2097152               # bytes of publishes beyond those that are decided, at least, that a publisher of large ones is let send
    CROWD_AHEAD_RECORDS = 2             # then, and at least so many of what it sends: one is on its way while the other is decided


cdef struct Crowd:
    uint64_t since_ns                   # since when is counted
    uint64_t count                      # reads that brought small requests since then
    uint64_t until_ns                   # it is there


cdef inline void crowd_heard(Crowd* crowd, uint64_t now_ns) noexcept nogil:
    """A connection that moves no large frames has brought requests."""
    if now_ns >= crowd.since_ns + CROWD_NS:
        crowd.since_ns = now_ns
        crowd.count = 0
    crowd.count += 1
    if crowd.count >= CROWD_MIN:
        crowd.until_ns = now_ns + CROWD_KEPT_NS


cdef inline bint crowd_is_there(const Crowd* crowd, uint64_t now_ns) noexcept nogil:
    return now_ns < crowd.until_ns
