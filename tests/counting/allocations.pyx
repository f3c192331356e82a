"""Counts what Python allocates: every call of its three allocators between `start` and `stop`. For tests; built by them."""

cdef extern from "Python.h":
    ctypedef enum PyMemAllocatorDomain:
        PYMEM_DOMAIN_RAW
        PYMEM_DOMAIN_MEM
        PYMEM_DOMAIN_OBJ
    ctypedef struct PyMemAllocatorEx:
        void* ctx
        void* (*malloc)(void* ctx, size_t size) noexcept nogil
        void* (*calloc)(void* ctx, size_t nelem, size_t elsize) noexcept nogil
        void* (*realloc)(void* ctx, void* ptr, size_t new_size) noexcept nogil
        void (*free)(void* ctx, void* ptr) noexcept nogil
    void PyMem_GetAllocator(PyMemAllocatorDomain domain, PyMemAllocatorEx* allocator)
    void PyMem_SetAllocator(PyMemAllocatorDomain domain, PyMemAllocatorEx* allocator)


cdef PyMemAllocatorEx before[2]
cdef long counted = 0


cdef void* count_malloc(void* ctx, size_t size) noexcept nogil:
    global counted
    counted += 1
    return (<PyMemAllocatorEx*> ctx).malloc((<PyMemAllocatorEx*> ctx).ctx, size)


cdef void* count_calloc(void* ctx, size_t nelem, size_t elsize) noexcept nogil:
    global counted
    counted += 1
    return (<PyMemAllocatorEx*> ctx).calloc((<PyMemAllocatorEx*> ctx).ctx, nelem, elsize)


cdef void* count_realloc(void* ctx, void* ptr, size_t size) noexcept nogil:
    return (<PyMemAllocatorEx*> ctx).realloc((<PyMemAllocatorEx*> ctx).ctx, ptr, size)


cdef void count_free(void* ctx, void* ptr) noexcept nogil:
    (<PyMemAllocatorEx*> ctx).free((<PyMemAllocatorEx*> ctx).ctx, ptr)


def start() -> None:
    """Begin to count."""
    global counted
    cdef PyMemAllocatorEx hook
    cdef int i
    hook.malloc = count_malloc
    hook.calloc = count_calloc
    hook.realloc = count_realloc
    hook.free = count_free
    for i in range(2):
        PyMem_GetAllocator(PYMEM_DOMAIN_MEM if i == 0 else PYMEM_DOMAIN_OBJ, &before[i])
        hook.ctx = &before[i]
        PyMem_SetAllocator(PYMEM_DOMAIN_MEM if i == 0 else PYMEM_DOMAIN_OBJ, &hook)
    counted = 0


def stop() -> int:
    """End counting; how many allocations there were."""
    cdef long found = counted
    PyMem_SetAllocator(PYMEM_DOMAIN_MEM, &before[0])
    PyMem_SetAllocator(PYMEM_DOMAIN_OBJ, &before[1])
    return found
