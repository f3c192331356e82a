# Whether small requests come while large frames of others move: then those who move large frames leave the others more of the processor.
#
# Owns: a count. Rules: a request now and then is no crowd; a crowd is expected back for a while, so that nothing changes between two requests
# of one who waits for an answer; nobody is held back for what it asks itself. Runs in front-ends, on the main thread, without the GIL.
from libc.stdint cimport uint32_t, uint64_t


cdef enum:
    CROWD_MIN = 8                       # turns in which a connection's small requests were read:
    CROWD_NS = 50000000                 # so many within this time are a crowd,
    CROWD_KEPT_NS = 1000000000          # and for so long after the last of them
    CROWD_SIZE_MAX = 4096               # bytes that came in such a turn
    LARGE_KEPT_NS = 1000000000          # for so long after a large frame what else its connection brings counts for no crowd
    CROWD_STEP = 131072                 # bytes of large frames that one system call moves then: nobody is preempted within one, and
    #                                     more than one segment of the loopback device (64 KiB), else a timer decides
    CROWD_RECORDS = 2                   # of a publisher of large ones that may be on their way then, at least: one while the other is read


cdef struct Crowd:
    uint64_t since_ns                   # since when is counted
    uint32_t number                     # of the connection that was the first then
    uint64_t count                      # turns since then,
    uint64_t others                     # and those of other connections than that
    uint64_t until_ns                   # it is there for everybody
    uint64_t until_but_ns               # it is there for all but the connection that made most of it
    uint32_t but_number


cdef inline void crowd_heard(Crowd* crowd, uint32_t number, uint64_t now_ns) noexcept nogil:
    """The connection of that number, which moves no large frames, has brought small requests in this turn."""
    if now_ns >= crowd.since_ns + CROWD_NS:
        crowd.since_ns = now_ns
        crowd.number = number
        crowd.count = 0
        crowd.others = 0
    crowd.count += 1
    crowd.others += 1 if number != crowd.number else 0
    if crowd.others >= CROWD_MIN:
        crowd.until_ns = now_ns + CROWD_KEPT_NS
    elif crowd.count >= CROWD_MIN:
        crowd.until_but_ns = now_ns + CROWD_KEPT_NS
        crowd.but_number = crowd.number


cdef inline bint crowd_is_there(const Crowd* crowd, uint32_t number, uint64_t now_ns) noexcept nogil:
    """Whether there is a crowd of others than the connection of that number."""
    return now_ns < crowd.until_ns or (now_ns < crowd.until_but_ns and number != crowd.but_number)


cdef inline uint64_t crowd_until(const Crowd* crowd) noexcept nogil:
    return max(crowd.until_ns, crowd.until_but_ns)
