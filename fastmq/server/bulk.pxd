# The thread of a front-end that moves large frames between sockets and memory, so that small ones need not wait for the copying.
#
# Owns: nothing for long: the main thread lends it a direction of a connection, with the memory for it, and gets both back (`take`) when that
# is done, or the connection has ended. Rules: it never waits for one connection while another can go on; it takes no GIL; what it was lent
# nobody else touches. Who wants a job back before it is done shuts the connection down.
#
#   main thread --give--> this thread: recv into the block, or send from where it lies --take, done_bell--> main thread
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmq.server.posix cimport epoll_event
from fastmq.server.session cimport Frame


cdef enum:
    BULK_READ_AT_ONCE = 1048576         # bytes of one job before others have their turn; what leaves gives memory back, what comes takes it,
    BULK_SENT_AT_ONCE = 4194304         # so more leaves than comes
    BULK_EVENTS = 64
    BULK_ENDED = -1                     # an error beside those of the system: the other side closed the connection


cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t* mutex, void* attributes)
    int pthread_mutex_destroy(pthread_mutex_t* mutex)
    int pthread_mutex_lock(pthread_mutex_t* mutex)
    int pthread_mutex_unlock(pthread_mutex_t* mutex)


cdef struct BulkJob:
    BulkJob* next
    void* owner                         # of whoever gave it
    int fd
    Frame* frame                        # to be sent, with those behind it
    Frame* sent                         # those that were
    bint is_read
    size_t step                         # bytes of one system call, at most
    uint8_t* at                         # where what is read goes
    bint prepare                        # its memory is still to be taken
    size_t left                         # bytes that are still to be read
    size_t done                         # bytes that were
    uint64_t heard_ns                   # when some came last, or room for some, 0: never; read by others while the job is done
    int error                           # why it ended before it was done: an errno, or BULK_ENDED; 0: it is done


cdef struct BulkSlot:                   # a descriptor
    BulkJob* reading
    BulkJob* writing
    uint32_t interest                   # what epoll looks for


cdef class Bulk:
    cdef pthread_mutex_t mutex          # of the two lists
    cdef BulkJob* given                 # newest first
    cdef BulkJob* finished              # newest first
    cdef bint stopping
    cdef int bell                       # wakes the thread
    cdef readonly int done_bell         # wakes the main thread
    cdef int epoll
    cdef epoll_event[BULK_EVENTS] events
    cdef BulkSlot* slots                # by descriptor
    cdef int room
    cdef object _thread

    cdef void give(self, BulkJob* job) noexcept nogil
    cdef BulkJob* take(self) noexcept nogil                         # what is finished, linked by `next`
    # private, on the thread
    cdef void run(self) noexcept nogil
    cdef bint hear(self, BulkJob** finished) noexcept nogil
    cdef bint has_slot(self, int fd) noexcept nogil
    cdef bint read_some(self, BulkJob* job) noexcept nogil
    cdef bint send_some(self, BulkJob* job) noexcept nogil
    cdef void look_for(self, int fd, BulkJob** finished) noexcept nogil
    cdef void work(self, int fd, uint32_t events, BulkJob** finished) noexcept nogil
