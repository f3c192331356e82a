"""Failpoints: the steps at which a test lets the process die."""

NAMES: tuple[str, ...]
COUNT: int

def arm(text: str) -> None: ...
