"""What every child of the supervisor does first."""
from typing import Any

from fastmq.server.control import Control

def give_back_memory() -> None: ...
def begin(role: str) -> tuple[Control, dict[str, Any], list[int]]: ...
