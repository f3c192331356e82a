# The format of a journal's segments, version 1; docs/durability.md says what it means, and how to change it.
#
#     journal-0000000000000007                                              spare-0000000000000003: room for a later one, nothing of it counts
#     0              4096                                                                     size
#     +-------------+-----------+---------+-----------+---------+-----------+-----------------+
#     | SegmentHead | BatchHead | entries | BatchHead | entries | BatchHead | zeros, or what  |
#     |             | first 41  |  41-57  | first 58  |   58    | first 59, | was there when  |
#     |             | durable 40|         | durable 57|         | none, d.58| it was recycled |
#     +-------------+-----------+---------+-----------+---------+-----------+-----------------+
#
#     entries:  | u32 size | u16 shard | u16 0 | the blob, padded with zeros to a multiple of 8 |  ...      (EntryHead, log.pxd)
#
# Native byte order, everything a multiple of 8. The salt of a segment is random, seeds every CRC32C in it and is part of a batch's mark, so
# that what an earlier life of a recycled file left behind is never taken for a batch of this one, and nobody can publish what looks like one.
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmq.storage.crc32c cimport crc32c


cdef enum:
    SEGMENT_HEAD_SIZE = 4096
    FORMAT_VERSION = 1
    BYTE_ORDER_MARK = 0x01020304
    SEGMENT_RECYCLED = 1        # of `flags`: behind the last batch lie bytes of an earlier life


cdef extern from *:
    """
    #define SEGMENT_MARK 0x4c4e524a514d46ffull      /* the bytes ff FMQJRNL */
    #define BATCH_MARK 0x6863746142514d46ull        /* the bytes FMQBatch; exclusive or with the salt */
    """
    const uint64_t SEGMENT_MARK
    const uint64_t BATCH_MARK


cdef struct SegmentHead:        # zeros follow up to SEGMENT_HEAD_SIZE
    uint64_t mark               # SEGMENT_MARK
    uint32_t version
    uint32_t byte_order
    uint64_t number             # as in its name
    uint64_t first              # position of its first entry; all before it were durable when the segment was begun
    uint64_t salt
    uint64_t size               # of the file
    uint64_t epoch              # of the owner
    uint32_t flags
    uint32_t crc                # of all before it


cdef struct BatchHead:
    uint64_t mark               # BATCH_MARK ^ salt
    uint32_t crc                # of all behind it, the entries included, seeded with the salt
    uint32_t count              # entries; 0: its only news is `durable`
    uint64_t size               # bytes of the entries
    uint64_t first              # position of the first entry, or of the next one where there is none
    uint64_t durable            # up to here everything was durable when this was written
    uint64_t epoch


cdef inline uint32_t segment_crc(const SegmentHead* head) noexcept nogil:
    return crc32c(0, head, sizeof(SegmentHead) - sizeof(uint32_t))


cdef inline bint batch_begins(const BatchHead* head, uint64_t room, uint64_t salt) noexcept nogil:
    """Whether this head is of a batch that fits into `room` bytes, itself included; its CRC then tells whether the batch is good."""
    return head.mark == BATCH_MARK ^ salt and head.size & 7 == 0 and head.size <= room - sizeof(BatchHead)


cdef inline uint32_t batch_crc(const uint8_t* batch, uint64_t size, uint64_t salt) noexcept nogil:
    """Of a head with `size` bytes of entries behind it."""
    cdef size_t before = sizeof(uint64_t) + sizeof(uint32_t)      # mark, crc
    return crc32c(crc32c(0, &salt, sizeof(salt)), batch + before, sizeof(BatchHead) - before + <size_t> size)
