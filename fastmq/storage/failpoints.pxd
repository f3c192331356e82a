# Failpoints: named steps at which the process kills itself with SIGKILL, so that a test finds out what a death exactly there does.
#
# Armed by FASTMQ_FAILPOINT=`name` or `name:hits` (at the hits-th time), read once, at import; otherwise a step costs a look at one number.
# `@FILE`: each process takes the first line off that file, so a restarted worker dies at the next step of a list, and lives when it is empty.
# NAMES in failpoints.pyx is the one list of names; a new one gets its number here and its name there, in the same order.
cdef enum Failpoint:
    BEFORE_WRITE = 1            # the journal thread has taken a batch
    MID_WRITE                   # half of a batch is written
    AFTER_WRITE_BEFORE_SYNC
    AFTER_SYNC_BEFORE_CONFIRM   # a batch is durable, nobody was told
    MID_ROLL                    # the next segment has its name, which may not survive
    AFTER_ROLL                  # and now does
    MID_RECYCLE                 # a segment that is not needed any more has lost its name, which may survive
    MID_TRIM                    # one of the segments that a trim concerns is gone
    MID_EXTENT                  # half of an extent is written
    AFTER_EXTENT
    MID_CHECKPOINT              # half of a checkpoint is written
    AFTER_CHECKPOINT_BEFORE_RENAME  # it is synced, under another name
    AFTER_RENAME_BEFORE_TRIM    # it is the checkpoint now
    TOPOLOGY_APPENDED           # what T has changed is in the batch that fills
    TOPOLOGY_DURABLE            # it is durable, nobody was told
    BEFORE_READY                # everything was recovered, nobody was told
    MID_TAKE_OVER               # a log of another number of workers was read, and nothing of it counts in the new one yet
    BEFORE_MOVE                 # all workers have what is theirs, the old logs count still
    AFTER_MOVE                  # the new ones count, the old ones are still there
    BEFORE_RESTORE              # what is restored has its place in the directory, the old data counts still
    AFTER_RESTORE               # what is restored counts, the old data is still there
    FAILPOINT_COUNT


cdef int armed                  # the failpoint; 0: none
cdef void failpoint_hit() noexcept nogil


cdef inline void failpoint(int point) noexcept nogil:
    if armed == point:
        failpoint_hit()
