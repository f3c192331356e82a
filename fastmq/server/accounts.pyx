"""The Python face of accounts.pxd, for tests. The hot path uses the .pxd."""
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from fastmq.server.accounts cimport (
    Account, account_add, account_advance, account_allows, account_answer, account_begin, account_came, account_free, account_init,
    account_narrow, account_open, account_reserve, account_told, account_trim, account_void,
)
from fastmq.wire.link cimport LinkRange, LinkRefusal


cdef class PublishAccount:
    """One account of open publishes, with a window in messages and in bytes."""
    cdef Account account

    def __cinit__(self, uint64_t window, uint64_t window_bytes):
        memset(&self.account, 0, sizeof(Account))
        account_init(&self.account, window, window_bytes)

    def __dealloc__(self):
        account_free(&self.account)

    def allows(self, uint64_t more, uint64_t size) -> bool:
        return account_allows(&self.account, more, size)

    def add(self, uint64_t floor, entries: list[tuple[int, int, int, int]]) -> None:
        """Enter publishes: (sequence, size, bits of workers, code)."""
        if not account_reserve(&self.account, len(entries)):
            raise MemoryError
        if self.account.head == 0:
            account_begin(&self.account, floor)
        for seq, size, workers, code in entries:
            account_add(&self.account, seq, size, workers, code)
        account_advance(&self.account)

    def answer(self, uint64_t first, uint64_t last, uint32_t worker, uint32_t code=0) -> None:
        account_answer(&self.account, first, last, worker, code)
        account_advance(&self.account)

    def narrow(self, uint64_t bytes, uint64_t now_ns, uint64_t until_ns) -> None:
        account_narrow(&self.account, bytes, now_ns, until_ns)

    def came(self, uint64_t now_ns) -> bool:
        """Whether there is something to tell."""
        account_came(&self.account, now_ns)
        return self.account.due

    def tell(self, uint64_t now_ns=0) -> tuple[int, list[tuple[int, int]], list[tuple[int, int, int]], int, int]:
        """(up_to, ranges, refusals, window, window in bytes), as a CONFIRM would tell it."""
        cdef LinkRange* held = <LinkRange*> self.account.held.data
        cdef LinkRefusal* refused = <LinkRefusal*> self.account.refused.data
        ranges = [(held[i].first, held[i].last) for i in range(self.account.held.size // sizeof(LinkRange))]
        refusals = [
            (refused[i].first, refused[i].last, refused[i].code) for i in range(self.account.refused.size // sizeof(LinkRefusal))]
        account_told(&self.account, False, now_ns)
        return self.account.up_to, ranges, refusals, self.account.told, self.account.told_bytes

    def void(self) -> None:
        account_void(&self.account)

    def trim(self) -> None:
        account_trim(&self.account)

    @property
    def open(self):
        """How many publishes are without an outcome."""
        return account_open(&self.account)

    @property
    def room(self):
        """Entries that memory is allocated for."""
        return self.account.room + self.account.stragglers_room

    @property
    def stragglers(self):
        """How many open publishes do not stand in the ring any more."""
        return self.account.stragglers_open
