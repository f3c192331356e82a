"""What every child of the supervisor does first: tie its life to the supervisor's, then read what it is to be.

Owns: nothing. Rules: a child ends when the supervisor does, by two ways that do not need each other: the kernel kills it (PR_SET_PDEATHSIG;
the supervisor starts children from its main thread, so its thread's end is its process's end), and its control socket ends. SIGINT and SIGTERM
are blocked by the supervisor before it starts a child (a terminal and service managers send them to everybody): children stop when told.
Runs in front-ends and workers, and later other children.
"""
import os
import sys

from fastmq.server.control import Control


cdef extern from "<signal.h>" nogil:
    int SIGKILL

cdef extern from "<sys/prctl.h>" nogil:
    int prctl(int option, ...)
    int PR_SET_PDEATHSIG, PR_SET_NAME


def begin(role: str) -> tuple[Control, dict, list[int]]:
    """The control socket, whose number is the first argument of this program, and the `start` message with its descriptors.

    Exits when the supervisor has gone.
    """
    prctl(PR_SET_PDEATHSIG, <unsigned long> SIGKILL)
    control = Control.inherited(int(sys.argv[1]))
    try:
        start, descriptors = control.wait()
    except EOFError:
        raise SystemExit(1) from None
    assert start["op"] == "start"
    if os.getppid() != start["supervisor"]:         # it died before prctl
        raise SystemExit(1)
    cdef bytes name = f"fastmq-{role}{start['index']}".encode()[:15]
    prctl(PR_SET_NAME, <const char*> name)
    return control, start, descriptors
