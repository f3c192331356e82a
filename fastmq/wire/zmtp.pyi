from enum import IntEnum

class ZmtpRole(IntEnum):
    ZMTP_DEALER = 0
    ZMTP_SUB = 1
    ZMTP_ROUTER = 2

class ZmtpEvent(IntEnum):
    ZMTP_WAIT = 0
    ZMTP_OPENED = 1
    ZMTP_MESSAGE = 2
    ZMTP_NOT_ZMTP = -1
    ZMTP_OLD_VERSION = -2
    ZMTP_MECHANISM = -3
    ZMTP_SOCKET_TYPE = -4
    ZMTP_REFUSED = -5
    ZMTP_MALFORMED = -6
    ZMTP_TOO_LARGE = -7
    ZMTP_TOO_MANY_FRAMES = -8
    ZMTP_NO_MEMORY = -9

class ZmtpPeer:
    """One end of a ZMTP connection, without I/O."""

    opened: bool
    def __init__(self, role: int = 0, frame_size_max: int = ...) -> None: ...
    @property
    def error(self) -> int: ...
    @property
    def text(self) -> str: ...
    @property
    def buffered_size(self) -> int: ...
    def feed(self, data: bytes) -> list[list[bytes]]: ...
    def send(self, frames: list[bytes]) -> None: ...
    def subscribe(self, topic: bytes, subscribe: bool = True) -> None: ...
    def ping(self) -> None: ...
    def take_output(self) -> bytes: ...
