"""The log's interface, and the log that keeps nothing (see log.pxd)."""
import select

from fastmq.wire.buffer cimport Buffer, buffer_add, buffer_free, buffer_init


cdef enum:
    EXTENTS_PENDING_MAX = 67108864


cdef class LogReader:
    """Finds nothing."""

    cdef bint next_batch(self, BatchView* out) noexcept nogil:
        """The next batch, whose bytes stay where they are until the next call or the reader's end; False: there is no more."""
        return False

    def check(self) -> None:
        """After the last batch: raises what kept it from being the last of the log, if anything did."""

    def __iter__(self) -> LogReader:
        return self

    def __next__(self) -> tuple[int, int, bytes]:
        cdef const EntryHead* head
        cdef uint64_t position
        while self.left == 0:
            if not self.next_batch(&self.view):
                self.check()
                raise StopIteration
            self.entry = self.view.entries
            self.left = self.view.count
        head = <const EntryHead*> self.entry
        position = self.view.first + (self.view.count - self.left) if self.view.first else 0
        self.left -= 1
        self.entry = entry_next(self.entry)
        return position, head.shard, (<const char*> head + sizeof(EntryHead))[:head.size]


cdef class Log:
    """Keeps nothing. `record_level`: what it asks of shards, for those who read their records themselves (tests)."""

    def __init__(self, record_level: int = RECORDS_NONE) -> None:
        self.record_level = record_level

    cdef bint append(self, uint32_t shard, const uint8_t* records, size_t size) noexcept nogil:
        """Copy one entry, one or several records of a shard, into the batch that fills. False: no memory, nothing is changed."""
        self.appended += 1
        self.submitted = self.durable = self.appended
        return True

    cdef bint write_here(self) noexcept nogil:
        """As `submit`, but this thread writes and waits for the sync, if the journal thread has nothing to do, the batch is no large one and
        the disk has been quick of late; the bell does not ring for it. False: it did not, and nothing is submitted."""
        return False

    cdef void submit(self) noexcept nogil:
        """Give the batch that fills to the journal thread, unless one is in flight or nothing was appended. A batch is there whole or not
        at all after a death."""
        pass

    cdef uint64_t look(self) noexcept nogil:
        """Read what the journal thread has said, and quiet its bell: updates `durable`, `failed`, `full` and the others, and returns `durable`.
        Never blocks. Who looks acts on all of it before he sleeps."""
        return self.peek()

    cdef uint64_t peek(self) noexcept nogil:
        """As `look`, but the bell goes on ringing: for who does not act on all of it."""
        return self.durable

    cdef bint extent_write(self, uint64_t number, Buffer* payload) noexcept nogil:
        """Have an extent written in the background, in the order of the calls. Takes the payload over: it is empty afterwards. False: no
        memory, nothing is changed. `number` is not 0, and used for the first time."""
        buffer_free(payload)
        return True

    cdef bint extent_read(self, uint64_t number) noexcept nogil:
        """Begin to read an extent back, which `extent_next` then gives; one that is still being written too. False: no memory."""
        return True

    cdef bint extent_next(self, ExtentRead* out) noexcept nogil:
        """An extent that was read, or one that could not be written (ENOSPC); False: none now. The bell rings for one."""
        return False

    cdef void extent_free(self, uint64_t number) noexcept nogil:
        """An extent is not needed any more. Its room is used again when a checkpoint that was begun after this call is durable."""
        pass

    cdef bint checkpoint(self, uint64_t position, Buffer* states) noexcept nogil:
        """Have the whole state kept, in the background: it replaces the last checkpoint, and the journal is trimmed up to `position`.

        `states`: framed entries as a BatchView has them, taken over: empty afterwards. They may rest on all entries appended and all extents
        written before the call. False: one is being written already, or no memory; nothing is changed. One that finds no room is given up
        (`full`), and the last one stays.
        """
        buffer_free(states)
        return True

    @property
    def error(self) -> OSError | None:
        """What failed, with the file's name; None unless `failed`."""
        return None

    def add(self, shard: int, records: bytes) -> None:
        """`append` for Python."""
        if not self.append(shard, records, len(records)):
            raise MemoryError

    def write_extent(self, number: int, payload: bytes) -> None:
        """`extent_write` for Python; waits while much is to be written."""
        cdef Buffer copy
        buffer_init(&copy)
        buffer_add(&copy, <const char*> payload, len(payload))
        if copy.failed or not self.extent_write(number, &copy):
            buffer_free(&copy)
            raise MemoryError
        while self.look() >= 0 and self.extent_pending > EXTENTS_PENDING_MAX and not self.failed:
            select.select([self.fileno()], [], [], 0.1)

    def make_durable(self) -> None:
        """Submit what was appended and wait until it is durable. Raises OSError where it cannot be."""
        self.submit()
        while self.look() < self.appended and not self.failed:
            select.select([self.fileno()], [], [])
        if self.failed:
            raise self.error

    def open(self, epoch: int, reader: LogReader | None = None) -> int:
        """Become the owner, with an epoch above every earlier one; the last durable position. `reader`: what `read` gave and was read since;
        without it, or where it has not come to the end, all that is left is read and checked."""
        return self.durable

    def fileno(self) -> int:
        """An eventfd, readable when `look` has news; `look` clears it. -1: this log is durable at once."""
        return -1

    def read(self, position: int = 1) -> LogReader:
        """The checkpoint's entries (position 0), then those in the journal from `position` on, in order; those that were trimmed are passed
        over. Before `append`; what is read before `open` may not be durable before that."""
        return LogReader()

    def trim(self, position: int) -> None:
        """Entries up to `position` are not needed any more: their room may be used again."""

    def close(self) -> None:
        """Write what was submitted and stop. What was appended and not submitted is dropped. May be repeated."""
