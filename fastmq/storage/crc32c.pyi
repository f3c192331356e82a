"""CRC32C, for tests."""

HAS_MACHINE: bool

def checksum(data: bytes, crc: int = 0, by_table: bool = False) -> int: ...
