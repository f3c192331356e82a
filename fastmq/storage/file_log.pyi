"""The file log: the records of one worker in a journal of segments."""
from collections.abc import Callable

from fastmq.storage.files import Files
from fastmq.storage.journal_reader import JournalReader
from fastmq.storage.log import Log, LogReader

class FileLog(Log):
    folder: str
    first: int

    def __init__(
        self,
        folder: str,
        *,
        record_level: int = ...,
        segment_size: int = ...,
        files: Files | None = None,
        say: Callable[[str], object] | None = None,
        needs_checkpoint: bool = True,
        unit_size: int = ...,
    ) -> None: ...
    def open(self, epoch: int, reader: LogReader | None = None) -> int: ...
    def read(self, position: int = 1) -> JournalReader: ...
