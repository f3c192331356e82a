"""What a program that runs under callgrind asks of it. For tests; built by them."""

cdef extern from *:
    """
    #include <valgrind/callgrind.h>
    static void callgrind_begin(void) { CALLGRIND_START_INSTRUMENTATION; }
    static void callgrind_toggle(void) { CALLGRIND_TOGGLE_COLLECT; }
    static void callgrind_dump(const char* name) { CALLGRIND_DUMP_STATS_AT(name); }
    """
    void callgrind_begin()
    void callgrind_toggle()
    void callgrind_dump(const char* name)


def begin() -> None:
    """From here on it follows the program; before, the program runs faster."""
    callgrind_begin()


def count(bytes name, action):
    """The result of action(), whose instructions are written to a file that carries the name."""
    callgrind_toggle()
    result = action()
    callgrind_toggle()
    callgrind_dump(name)
    return result
