"""The table of libzmq's functions (see libzmq.pxd), filled when this module is imported.

pyzmq's wheel carries libzmq without headers, so nothing can be linked against it: linking another copy would put two libzmq into one
process, whose contexts know nothing of each other. The handle that pyzmq has loaded is opened a second time and asked for the names.
"""
from libc.errno cimport EAGAIN
from libc.stdint cimport uintptr_t
from libc.string cimport memcpy

import zmq


cdef extern from "<dlfcn.h>" nogil:
    void* dlopen(const char* path, int flags)
    void* dlsym(void* handle, const char* name)
    int RTLD_NOW
    int RTLD_NOLOAD


cdef void* _library = NULL      # never closed: the functions live as long as the process

ADVICE = ("fastmq's broker needs CPython's own pyzmq with libzmq 4.3 or later: "
          "pip install --force-reinstall 'pyzmq>=26' in the environment of this Python")
VERSION_MIN = (4, 3)


cdef int _open() except -1:
    global _library
    try:
        from zmq.backend.cython import _zmq
    except ImportError:
        raise ImportError(f"pyzmq {zmq.__version__} does not use its Cython backend here. {ADVICE}") from None
    cdef bytes path = _zmq.__file__.encode()
    _library = dlopen(path, RTLD_NOW | RTLD_NOLOAD)
    if _library == NULL:
        raise ImportError(f"{_zmq.__file__} is imported, and yet not loaded. {ADVICE}")
    return 0


cdef void* _symbol(str name) except NULL:
    cdef bytes raw = name.encode()
    cdef void* found = dlsym(_library, raw)
    if found == NULL:
        raise ImportError(f"the libzmq of pyzmq {zmq.__version__} has no function {name}. {ADVICE}")
    return found


cdef tuple _version():
    cdef int major = 0, minor = 0, patch = 0
    cdef void (*zmq_version)(int*, int*, int*) noexcept nogil
    zmq_version = <void (*)(int*, int*, int*) noexcept nogil> _symbol("zmq_version")
    zmq_version(&major, &minor, &patch)
    return major, minor, patch


def check_version(found: tuple, wanted: tuple = VERSION_MIN) -> None:
    """Raise ImportError, saying what to do, unless `found` is a libzmq that this table was written for."""
    if found < wanted:
        raise ImportError(f"pyzmq {zmq.__version__} carries libzmq {'.'.join(map(str, found))}. {ADVICE}")


cdef int _fill() except -1:
    global zmq_errno, zmq_strerror, zmq_msg_init, zmq_msg_init_size, zmq_msg_close, zmq_msg_data, zmq_msg_size, zmq_msg_more, zmq_msg_get
    global zmq_msg_recv, zmq_msg_send, zmq_poll
    zmq_errno = <int (*)() noexcept nogil> _symbol("zmq_errno")
    zmq_strerror = <const char* (*)(int) noexcept nogil> _symbol("zmq_strerror")
    zmq_msg_init = <int (*)(zmq_msg_t*) noexcept nogil> _symbol("zmq_msg_init")
    zmq_msg_init_size = <int (*)(zmq_msg_t*, size_t) noexcept nogil> _symbol("zmq_msg_init_size")
    zmq_msg_close = <int (*)(zmq_msg_t*) noexcept nogil> _symbol("zmq_msg_close")
    zmq_msg_data = <void* (*)(zmq_msg_t*) noexcept nogil> _symbol("zmq_msg_data")
    zmq_msg_size = <size_t (*)(const zmq_msg_t*) noexcept nogil> _symbol("zmq_msg_size")
    zmq_msg_more = <int (*)(const zmq_msg_t*) noexcept nogil> _symbol("zmq_msg_more")
    zmq_msg_get = <int (*)(const zmq_msg_t*, int) noexcept nogil> _symbol("zmq_msg_get")
    zmq_msg_recv = <int (*)(zmq_msg_t*, void*, int) noexcept nogil> _symbol("zmq_msg_recv")
    zmq_msg_send = <int (*)(zmq_msg_t*, void*, int) noexcept nogil> _symbol("zmq_msg_send")
    zmq_poll = <int (*)(zmq_pollitem_t*, int, long) noexcept nogil> _symbol("zmq_poll")
    return 0


cdef void* socket_of(object socket) except NULL:
    """The libzmq socket behind `socket` (zmq.Socket); ValueError when it is closed."""
    if socket.closed:
        raise ValueError("the socket is closed")
    return <void*> <uintptr_t> socket.underlying


_open()
version = _version()
check_version(version)
_fill()


# ---- the table at work, for Python: tests and tools; the front-end has its own loop

def send_frames(socket: zmq.Socket, frames: list[bytes]) -> bool:
    """Send one message without waiting; False when libzmq has no room for it."""
    cdef void* handle = socket_of(socket)
    cdef zmq_msg_t message
    cdef bytes frame
    cdef int flags, i
    for i, frame in enumerate(frames):
        if zmq_msg_init_size(&message, len(frame)) != 0:
            raise MemoryError
        memcpy(zmq_msg_data(&message), <const char*> frame, len(frame))
        flags = ZMQ_DONTWAIT | (ZMQ_SNDMORE if i + 1 < len(frames) else 0)
        if zmq_msg_send(&message, handle, flags) < 0:
            zmq_msg_close(&message)
            if zmq_errno() == EAGAIN:
                return False
            raise OSError(zmq_errno(), zmq_strerror(zmq_errno()).decode())
    return True


def receive_frames(socket: zmq.Socket, timeout_ms: int = 0) -> tuple[list[bytes], int] | None:
    """The next message's frames and the descriptor of the connection it came from (-1: none); None when there is none in time."""
    cdef zmq_pollitem_t item
    cdef zmq_msg_t message
    cdef int found, source = -1
    cdef long wait = timeout_ms
    cdef bint more = True
    cdef list frames = []
    item.socket = socket_of(socket)
    item.fd = 0
    item.events = ZMQ_POLLIN
    with nogil:
        found = zmq_poll(&item, 1, wait)
    if found <= 0:
        return None
    zmq_msg_init(&message)
    while more:
        with nogil:
            found = zmq_msg_recv(&message, item.socket, 0)
        if found < 0:
            zmq_msg_close(&message)
            raise OSError(zmq_errno(), zmq_strerror(zmq_errno()).decode())
        frames.append((<const char*> zmq_msg_data(&message))[:zmq_msg_size(&message)])
        source = zmq_msg_get(&message, ZMQ_SRCFD)
        more = zmq_msg_more(&message) != 0
    zmq_msg_close(&message)
    return frames, source
