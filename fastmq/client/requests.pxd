# Requests of a connection that have no answer yet, in the order they were made.
#
# Owns their encoded fields (they may be sent again) and the answers until they are taken. Rules: no I/O, no GIL; a request is written
# once for each session; an answer to no request is nothing. Runs in client processes, under the mutex of the connection.
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmq.client.deliveries cimport Run
from fastmq.wire.buffer cimport Buffer
from fastmq.wire.idmap cimport IdMap


cpdef enum RequestState:
    REQUEST_WAITING = 0
    REQUEST_DONE = 1                # `answer` has the result
    REQUEST_FAILED = 2              # `answer` has [code, text]


cdef struct Request:
    Request* next
    Request* previous
    uint64_t number
    uint32_t verb
    uint32_t fields_count           # behind the request's number
    uint32_t consumer               # whom an internal CONSUME or CANCEL concerns; else 0
    int state                       # RequestState
    bint sent                       # on the connection there is now
    bint forgotten                  # nobody waits: free it when the answer comes
    Buffer fields                   # msgpack, one value behind the other
    Buffer answer                   # msgpack
    Run* run                        # what a GET brought


cdef struct Requests:
    Request* first
    Request* last
    IdMap by_number
    uint64_t next_number


cdef void requests_init(Requests* r) noexcept nogil
cdef void requests_free(Requests* r) noexcept nogil
cdef Request* requests_new(Requests* r, uint32_t verb) noexcept nogil           # the caller writes its fields; NULL: no memory
cdef Request* requests_find(Requests* r, uint64_t number) noexcept nogil        # NULL: there is none
cdef void requests_remove(Requests* r, Request* request) noexcept nogil
cdef void request_write(Request* request, Buffer* scratch, Buffer* out, const uint8_t* session, uint64_t incarnation) noexcept nogil
cdef void request_fail(Request* request, const uint8_t* code, uint32_t code_size, const uint8_t* text, uint32_t text_size) noexcept nogil
