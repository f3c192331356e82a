# libzmq's functions, called without the GIL. pyzmq makes and configures the sockets; Cython moves the frames.
#
# Owns: nothing; the functions are those of the libzmq that pyzmq's wheel has already loaded, found by name when this module is imported.
# Rules: results and errors are libzmq's own (http://api.zeromq.org/4-3:_start): -1 and zmq_errno(). A socket belongs to one thread at a
# time, and is not used after its zmq.Socket was closed. A message that was initialised is closed, except one that was sent.
# Used by the front-end, for live events. To add a function: a line here, one in libzmq.pyx.


cdef struct zmq_msg_t:          # 64 bytes, aligned like a pointer, as zmq.h promises
    void* opaque[8]


cdef struct zmq_pollitem_t:
    void* socket                # NULL: poll `fd`
    int fd
    short events                # PollEvent
    short revents


cdef enum PollEvent:
    ZMQ_POLLIN = 1
    ZMQ_POLLOUT = 2
    ZMQ_POLLERR = 4


cdef enum SendFlag:
    ZMQ_DONTWAIT = 1
    ZMQ_SNDMORE = 2


cdef enum MessageProperty:
    ZMQ_MORE = 1
    ZMQ_SRCFD = 2               # descriptor of the connection that a message came from
    ZMQ_SHARED = 3


cdef int (*zmq_errno)() noexcept nogil
cdef const char* (*zmq_strerror)(int number) noexcept nogil
cdef int (*zmq_msg_init)(zmq_msg_t* message) noexcept nogil
cdef int (*zmq_msg_init_size)(zmq_msg_t* message, size_t size) noexcept nogil
cdef int (*zmq_msg_close)(zmq_msg_t* message) noexcept nogil
cdef void* (*zmq_msg_data)(zmq_msg_t* message) noexcept nogil
cdef size_t (*zmq_msg_size)(const zmq_msg_t* message) noexcept nogil
cdef int (*zmq_msg_more)(const zmq_msg_t* message) noexcept nogil
cdef int (*zmq_msg_get)(const zmq_msg_t* message, int property) noexcept nogil
cdef int (*zmq_msg_recv)(zmq_msg_t* message, void* socket, int flags) noexcept nogil
cdef int (*zmq_msg_send)(zmq_msg_t* message, void* socket, int flags) noexcept nogil
cdef int (*zmq_poll)(zmq_pollitem_t* items, int count, long timeout_ms) noexcept nogil


cdef void* socket_of(object socket) except NULL     # the libzmq socket behind an open zmq.Socket, which must outlive its use
