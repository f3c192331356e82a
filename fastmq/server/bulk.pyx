"""The thread of a front-end that moves large frames (see bulk.pxd)."""
import os
import threading

cimport cython
from libc.errno cimport EAGAIN, EINTR, ENOMEM, errno
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memset

from fastmq.net.arena cimport arena_prepare
from fastmq.server.gathered cimport Gathered, gather, size_on_wire
from fastmq.server.posix cimport (
    EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, MSG_DONTWAIT, epoll_change,
    epoll_create1, epoll_wait, fd_of, monotonic_ns, read, recv, send_parts, write,
)
from fastmq.server.posix cimport close as close_fd
from fastmq.server.session cimport Frame


cdef inline void finish(BulkJob* job, BulkJob** finished) noexcept nogil:
    job.next = finished[0]
    finished[0] = job


cdef inline void give_up(BulkJob* job, BulkJob** finished) noexcept nogil:
    """The system has no memory for it; NULL: there is none."""
    if job != NULL:
        job.error = ENOMEM
        finish(job, finished)


@cython.final
cdef class Bulk:
    """Begun by `start`, ended by `stop`, after which what it was lent is its owner's again."""

    def __cinit__(self):
        pthread_mutex_init(&self.mutex, NULL)
        self.bell = self.done_bell = self.epoll = -1
        self.bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.done_bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.epoll = epoll_create1(EPOLL_CLOEXEC)
        if self.epoll < 0:
            raise OSError(errno, os.strerror(errno))
        epoll_change(self.epoll, EPOLL_CTL_ADD, self.bell, 0, EPOLLIN)

    def __dealloc__(self):
        for fd in (self.bell, self.done_bell, self.epoll):
            if fd >= 0:
                close_fd(fd)
        free(self.slots)
        pthread_mutex_destroy(&self.mutex)

    def start(self) -> None:
        """Begin the thread."""
        self._thread = threading.Thread(target=self._run, name="fastmq-bulk", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it, whatever it is doing."""
        if self._thread is None:
            return
        pthread_mutex_lock(&self.mutex)
        self.stopping = True
        pthread_mutex_unlock(&self.mutex)
        os.eventfd_write(self.bell, 1)
        self._thread.join()
        self._thread = None

    def _run(self):
        with nogil:
            self.run()

    # ---- the main thread's side

    cdef void give(self, BulkJob* job) noexcept nogil:
        """A job, which must stay where it is until it was taken back."""
        cdef uint64_t one = 1
        cdef bint first
        pthread_mutex_lock(&self.mutex)
        first = self.given == NULL
        job.next = self.given
        self.given = job
        pthread_mutex_unlock(&self.mutex)
        if first:
            write(self.bell, &one, 8)

    cdef BulkJob* take(self) noexcept nogil:
        cdef BulkJob* jobs
        pthread_mutex_lock(&self.mutex)
        jobs = self.finished
        self.finished = NULL
        pthread_mutex_unlock(&self.mutex)
        return jobs

    # ---- the thread's

    cdef void run(self) noexcept nogil:
        cdef BulkJob* finished = NULL
        cdef BulkJob* last
        cdef uint64_t count, one = 1
        cdef int i, found
        cdef bint first
        while True:
            found = epoll_wait(self.epoll, self.events, BULK_EVENTS, -1)
            for i in range(found):
                if fd_of(&self.events[i]) == self.bell:
                    read(self.bell, &count, 8)
                else:
                    self.work(fd_of(&self.events[i]), self.events[i].events, &finished)
            if not self.hear(&finished):
                return
            if finished == NULL:
                continue
            last = finished
            while last.next != NULL:
                last = last.next
            pthread_mutex_lock(&self.mutex)
            first = self.finished == NULL
            last.next = self.finished
            self.finished = finished
            pthread_mutex_unlock(&self.mutex)
            finished = NULL
            if first:
                write(self.done_bell, &one, 8)

    cdef bint hear(self, BulkJob** finished) noexcept nogil:
        """Begin what was given; False: it is time to stop."""
        cdef BulkJob* job
        cdef BulkJob* following
        cdef bint stopping
        pthread_mutex_lock(&self.mutex)
        job = self.given
        self.given = NULL
        stopping = self.stopping
        pthread_mutex_unlock(&self.mutex)
        while job != NULL and not stopping:
            following = job.next
            if not self.has_slot(job.fd):
                give_up(job, finished)
            elif job.is_read:
                self.slots[job.fd].reading = job
                self.work(job.fd, EPOLLIN, finished)
            else:
                self.slots[job.fd].writing = job
                self.work(job.fd, EPOLLOUT, finished)
            job = following
        return not stopping

    cdef bint has_slot(self, int fd) noexcept nogil:
        """Whether there is a slot for the descriptor, made where it is missing; False: no memory."""
        cdef int room = self.room if self.room else 64
        cdef BulkSlot* slots
        if fd < self.room:
            return True
        while room <= fd:
            room *= 2
        slots = <BulkSlot*> realloc(self.slots, room * sizeof(BulkSlot))
        if slots == NULL:
            return False
        memset(slots + self.room, 0, (room - self.room) * sizeof(BulkSlot))
        self.slots = slots
        self.room = room
        return True

    cdef void work(self, int fd, uint32_t events, BulkJob** finished) noexcept nogil:
        """A share of the jobs of one descriptor that can go on."""
        cdef BulkSlot* slot = &self.slots[fd]
        cdef BulkJob* job = slot.writing
        if job != NULL and slot.interest & events & EPOLLOUT:   # not at its beginning: the other side has taken something since
            job.heard_ns = monotonic_ns()
        if job != NULL and events & (EPOLLOUT | EPOLLERR | EPOLLHUP) and self.send_some(job):
            slot.writing = NULL
            finish(job, finished)
        job = slot.reading
        if job != NULL and events & (EPOLLIN | EPOLLERR | EPOLLHUP) and self.read_some(job):
            slot.reading = NULL
            finish(job, finished)
        self.look_for(fd, finished)

    cdef void look_for(self, int fd, BulkJob** finished) noexcept nogil:
        """Tell epoll what is waited for, where that has changed. Before the descriptor goes back to who may close it: it is no more."""
        cdef BulkSlot* slot = &self.slots[fd]
        cdef uint32_t interest = (EPOLLIN if slot.reading != NULL else 0) | (EPOLLOUT if slot.writing != NULL else 0)
        if interest == slot.interest:
            return
        if interest == 0:
            epoll_change(self.epoll, EPOLL_CTL_DEL, fd, 0, 0)
        elif epoll_change(self.epoll, EPOLL_CTL_MOD if slot.interest else EPOLL_CTL_ADD, fd, 0, interest) != 0:
            give_up(slot.reading, finished)             # nobody would ever hear of them
            give_up(slot.writing, finished)
            slot.reading = slot.writing = NULL
            interest = 0
        slot.interest = interest

    cdef bint read_some(self, BulkJob* job) noexcept nogil:
        """Read what is there; True: the job is finished."""
        cdef ssize_t got = -1
        if job.prepare:
            job.prepare = False
            arena_prepare(job.at, job.left)
        while got < 0:
            got = recv(job.fd, job.at + job.done, min(job.left, job.step), MSG_DONTWAIT)
            if got < 0 and errno != EINTR:
                job.error = 0 if errno == EAGAIN else errno
                return job.error != 0
        if got == 0:
            job.error = BULK_ENDED
            return True
        job.done += <size_t> got
        job.left -= <size_t> got
        job.heard_ns = monotonic_ns()
        return job.left == 0

    cdef bint send_some(self, BulkJob* job) noexcept nogil:
        """Send what is taken; True: the job is finished."""
        cdef Gathered g
        cdef Frame* f
        cdef ssize_t sent
        cdef size_t total = 0
        while total < BULK_SENT_AT_ONCE:
            f = job.frame
            gather(&g, f, min(job.step, BULK_SENT_AT_ONCE - total))
            sent = send_parts(job.fd, g.parts, g.count)
            if sent < 0 and errno != EINTR:
                job.error = 0 if errno == EAGAIN else errno
                return job.error != 0
            total += <size_t> sent if sent > 0 else 0
            f.sent += <size_t> sent if sent > 0 else 0
            if f.sent >= size_on_wire(f):
                job.frame = f.next
                f.next = job.sent
                job.sent = f
                if job.frame == NULL:
                    return True
        return False
