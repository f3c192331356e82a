# The journal's keeper thread (journal.pxd says what it does).
cdef void* keep_house(void* journal) noexcept nogil
