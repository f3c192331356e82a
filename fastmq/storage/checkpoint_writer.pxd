# Writes checkpoints, for the thread of the extents (extents.pxd says what it does and when).
from fastmq.storage.extents cimport Extents


cdef void write_checkpoint(Extents* x) noexcept nogil
