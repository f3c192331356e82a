"""What the processes of a broker say for people: one line at a time on standard error, with the time and who says it.

Owns: nothing. Rules: nobody waits for a reader or fails for want of one; what goes to an embedded broker's log in memory begins anew when that
is full. Not the logging package: every start would wait for its import, and none of it is used. Runs in all processes of a broker.
"""
from __future__ import annotations

import os
import time

SIZE_MAX = 1 << 20          # of an embedded broker's log in memory, which is then begun anew


class Log:
    """What one process, or a part of it, says. `name` is who."""

    def __init__(self, name: str) -> None:
        self.name = name

    def say(self, text: str) -> None:
        """One line, or several. Nobody reads it: nothing is said."""
        try:
            if os.fstat(2).st_size > SIZE_MAX and os.readlink("/proc/self/fd/2").startswith("/memfd:"):
                os.ftruncate(2, 0)
            os.write(2, f"{time.strftime('%Y-%m-%d %H:%M:%S')} fastmq {self.name}: {text}\n".encode(errors="replace"))
        except OSError:
            pass

    def exception(self, what: str) -> None:
        """What went wrong, with the traceback of the exception that is being handled."""
        import traceback

        self.say(f"{what}\n{traceback.format_exc().rstrip()}")
