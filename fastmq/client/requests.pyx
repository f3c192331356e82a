"""Requests without an answer: see requests.pxd."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from fastmq.client.deliveries cimport run_free
from fastmq.wire.buffer cimport Buffer, buffer_add, buffer_clear, buffer_free
from fastmq.wire.idmap cimport idmap_free, idmap_get, idmap_init, idmap_put, idmap_remove
from fastmq.wire.msgpack cimport mp_array, mp_bin, mp_str, mp_uint
from fastmq.wire.zmtp cimport zmtp_frame_head


cdef void requests_init(Requests* r) noexcept nogil:
    memset(r, 0, sizeof(Requests))
    idmap_init(&r.by_number)
    r.next_number = 1


cdef void requests_free(Requests* r) noexcept nogil:
    while r.first != NULL:
        requests_remove(r, r.first)
    idmap_free(&r.by_number)


cdef Request* requests_new(Requests* r, uint32_t verb) noexcept nogil:
    cdef Request* request = <Request*> calloc(1, sizeof(Request))
    if request == NULL:
        return NULL
    if not idmap_put(&r.by_number, r.next_number, <uint64_t> <size_t> request):
        free(request)
        return NULL
    request.number = r.next_number
    request.verb = verb
    r.next_number += 1
    request.previous = r.last
    if r.last != NULL:
        r.last.next = request
    else:
        r.first = request
    r.last = request
    return request


cdef Request* requests_find(Requests* r, uint64_t number) noexcept nogil:
    return <Request*> <size_t> idmap_get(&r.by_number, number, 0) if number else NULL


cdef void requests_remove(Requests* r, Request* request) noexcept nogil:
    idmap_remove(&r.by_number, request.number)
    if request.previous != NULL:
        request.previous.next = request.next
    else:
        r.first = request.next
    if request.next != NULL:
        request.next.previous = request.previous
    else:
        r.last = request.previous
    buffer_free(&request.fields)
    buffer_free(&request.answer)
    run_free(request.run)
    free(request)


cdef void request_write(Request* request, Buffer* scratch, Buffer* out, const uint8_t* session, uint64_t incarnation) noexcept nogil:
    """[verb, session, incarnation, number, fields...]"""
    buffer_clear(scratch)
    mp_array(scratch, 4 + request.fields_count)
    mp_uint(scratch, request.verb)
    mp_bin(scratch, session, 16)
    mp_uint(scratch, incarnation)
    mp_uint(scratch, request.number)
    buffer_add(scratch, request.fields.data, request.fields.size)
    zmtp_frame_head(out, scratch.size, False)
    buffer_add(out, scratch.data, scratch.size)
    request.sent = True


cdef void request_fail(Request* request, const uint8_t* code, uint32_t code_size, const uint8_t* text, uint32_t text_size) noexcept nogil:
    request.state = REQUEST_FAILED
    buffer_clear(&request.answer)
    mp_array(&request.answer, 2)
    mp_str(&request.answer, code, code_size)
    mp_str(&request.answer, text, text_size)
