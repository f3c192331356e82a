# The file log: the records of one worker in a journal of segments.
#
# Owns: the Journal and, through it, its threads. Rules: log.pxd; what becomes of the entries: journal.pxd; how they lie there: segments.pxd;
# how they are found again: journal_reader.pxd.
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmq.storage.extents cimport Extents
from fastmq.storage.files cimport Files
from fastmq.storage.journal cimport Journal
from fastmq.storage.log cimport Log


cdef class FileLog(Log):
    cdef Journal journal
    cdef Extents extents
    cdef Files files
    cdef readonly str folder
    cdef bytes folder_bytes
    cdef object say                     # told what was cut, a sentence; None: nobody
    cdef readonly uint64_t first        # position of the first entry that is kept, as `open` found it
    cdef uint64_t rung                  # the bell, as it was last quieted
    cdef bint needs_checkpoint
    cdef bint is_open
    cdef bint was_opened
