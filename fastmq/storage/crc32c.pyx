"""CRC32C, chosen at import: SSE4.2, ARMv8's CRC instructions, or a table (see crc32c.pxd)."""
from libc.stdint cimport uint8_t


cdef extern from * nogil:
    """
    #include <stddef.h>
    #include <stdint.h>
    #include <string.h>

    typedef uint32_t (*crc32c_function)(uint32_t, const uint8_t *, size_t);

    static uint32_t crc32c_entries[256];

    static uint32_t crc32c_by_table(uint32_t crc, const uint8_t *data, size_t size) {
        while (size--) crc = crc >> 8 ^ crc32c_entries[(crc ^ *data++) & 0xff];
        return crc;
    }

    #if defined(__x86_64__)
    __attribute__((target("sse4.2")))
    static uint32_t crc32c_by_machine(uint32_t crc, const uint8_t *data, size_t size) {
        uint64_t wide = crc, word;
        for (; size >= 8; size -= 8, data += 8) {
            memcpy(&word, data, 8);
            wide = __builtin_ia32_crc32di(wide, word);
        }
        crc = (uint32_t) wide;
        while (size--) crc = __builtin_ia32_crc32qi(crc, *data++);
        return crc;
    }
    static int crc32c_has_machine(void) { return __builtin_cpu_supports("sse4.2"); }
    #elif defined(__aarch64__)
    #include <sys/auxv.h>
    #ifndef HWCAP_CRC32
    #define HWCAP_CRC32 (1 << 7)
    #endif
    static uint32_t crc32c_by_machine(uint32_t crc, const uint8_t *data, size_t size) {
        uint64_t word;
        for (; size >= 8; size -= 8, data += 8) {
            memcpy(&word, data, 8);
            __asm__(".arch_extension crc\\n\\tcrc32cx %w0, %w0, %x1" : "+r"(crc) : "r"(word));
        }
        while (size--) {
            uint32_t byte = *data++;
            __asm__(".arch_extension crc\\n\\tcrc32cb %w0, %w0, %w1" : "+r"(crc) : "r"(byte));
        }
        return crc;
    }
    static int crc32c_has_machine(void) { return (getauxval(AT_HWCAP) & HWCAP_CRC32) != 0; }
    #else
    #define crc32c_by_machine crc32c_by_table
    static int crc32c_has_machine(void) { return 0; }
    #endif

    static crc32c_function crc32c_chosen = crc32c_by_table;

    static void crc32c_choose(void) {
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t crc = i;
            for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0);
            crc32c_entries[i] = crc;
        }
        if (crc32c_has_machine()) crc32c_chosen = crc32c_by_machine;
    }
    """
    void crc32c_choose()
    bint crc32c_has_machine()
    uint32_t crc32c_chosen(uint32_t crc, const uint8_t* data, size_t size)
    uint32_t crc32c_by_table(uint32_t crc, const uint8_t* data, size_t size)


crc32c_choose()
HAS_MACHINE = crc32c_has_machine()


cdef uint32_t crc32c(uint32_t crc, const void* data, size_t size) noexcept nogil:
    return ~crc32c_chosen(~crc, <const uint8_t*> data, size)


def checksum(data: bytes, crc: int = 0, by_table: bool = False) -> int:
    """For tests: the CRC of `data` behind bytes whose CRC is `crc`."""
    cdef const uint8_t* at = data
    cdef uint32_t before = crc
    if by_table:
        return <uint32_t> ~crc32c_by_table(~before, at, len(data))
    return crc32c(before, at, len(data))
