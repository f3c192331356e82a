"""A heap overflow on purpose: `make test-asan` first shows that it is reported."""

from libc.stdlib cimport free, malloc


def write(size_t size, size_t index):
    """Write one byte at `index` of a heap block of `size` bytes, and return it."""
    cdef unsigned char* block = <unsigned char*>malloc(size)
    if block == NULL:
        raise MemoryError
    block[index] = 7
    result = block[index]
    free(block)
    return result


def shift(int by):
    """Shift an int by `by` places; 32 and more are undefined."""
    return <int>1 << by
