"""Failpoints (see failpoints.pxd)."""
import fcntl
import os


cdef extern from * nogil:
    """
    #include <signal.h>
    #include <unistd.h>
    static int failpoint_left = 0;
    static inline int failpoint_due(void) { return __atomic_sub_fetch(&failpoint_left, 1, __ATOMIC_RELAXED) == 0; }
    static inline void failpoint_arm(int hits) { failpoint_left = hits; }
    static inline void failpoint_die(void) { kill(getpid(), SIGKILL); for (;;) pause(); }
    """
    bint failpoint_due()
    void failpoint_arm(int hits)
    void failpoint_die()


NAMES = (
    "before_write", "mid_write", "after_write_before_sync", "after_sync_before_confirm", "mid_roll", "after_roll", "mid_recycle",
    "mid_trim", "mid_extent", "after_extent", "mid_checkpoint", "after_checkpoint_before_rename", "after_rename_before_trim",
    "topology_appended", "topology_durable", "before_ready", "mid_take_over", "before_move", "after_move",
    "before_restore", "after_restore",
)
COUNT = FAILPOINT_COUNT - 1      # a test compares the two


cdef void failpoint_hit() noexcept nogil:
    if failpoint_due():
        failpoint_die()


def hit(name: str) -> None:
    """This process is at a step, for Python code."""
    if armed and NAMES[armed - 1] == name:
        failpoint_hit()


def arm(text: str) -> None:
    """Arm `name` or `name:hits`, or what the next line of `@FILE` says; the empty text arms none. ValueError: there is no such failpoint."""
    global armed
    if text.startswith("@"):
        text = take_line(text[1:])
    name, _, hits = text.partition(":")
    failpoint_arm(int(hits or 1))
    armed = NAMES.index(name) + 1 if name else 0


def take_line(path: str) -> str:
    """Take the first line off a file; empty: there is none. Processes that do so at the same time get different ones."""
    with open(path, "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        line, _, rest = file.read().partition("\n")
        file.seek(0)
        file.truncate()
        file.write(rest)
    return line


arm(os.environ.get("FASTMQ_FAILPOINT", ""))
