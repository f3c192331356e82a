"""The one place of the tests that sleeps: everything else waits for a condition."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(condition: Callable[[], T], timeout: float = 10.0, what: str = "", interval: float = 0.005) -> T:
    """Call `condition` until its value is true and return that value.

    After `timeout` seconds fails with `what` (or the condition's name) and the last value. An AssertionError of the
    condition counts as false, and is shown when the time is over.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            value: object = condition()
            if value:
                return value  # type: ignore[return-value]
        except AssertionError as error:
            value = error
        if time.monotonic() >= deadline:
            name = what or getattr(condition, "__name__", repr(condition))
            raise AssertionError(f"not within {timeout} s: {name} (last value: {value!r})")
        time.sleep(interval)
