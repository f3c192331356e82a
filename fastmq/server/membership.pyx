"""The life of sessions: HELLO, the connection that a session belongs to, its end.

Owns: which session lives on which connection, and those that have none any more. Rules: HELLO is the only way in; one that is not above the
session's incarnation changes nothing; a session belongs to the connection (its Address) of its last HELLO; without one it is
kept for `resume_s`, or until its place is needed, unless it owns queues. A connection that begins another session leaves the one before it
behind, and may have so many. Runs in front-ends.

                 HELLO, proof good                connection lost, or a client that does not read
    (unknown) ---------------------> connected -----------------------------------------------------> vanished
        ^  ^                         |       ^                                                          |  |
        |  +------------BYE----------+       +----------------HELLO, incarnation above------------------+  |
        +------------------------------------------------------resume_s-------------------------------------+
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

import msgpack

from fastmq.server.accounts cimport account_init, account_trim, account_void
from fastmq.server.session cimport Address, address_same, session_drop_frames
from fastmq.wire.idmap cimport idmap_free, idmap_get, idmap_put, idmap_remove
from fastmq.wire.limits cimport PROTOCOL_VERSION
from fastmq.wire.link cimport L_SESSION_END, LinkSessionEnd
from fastmq.wire.verbs cimport INTERNAL, RESEND, STALE, WELCOME

from fastmq.errors import NUMBER_OF_CODE, TEXT_OF_NUMBER, FastMQError, Refused
from fastmq.server.log import Log
from fastmq.server.requests import LIMITS, VHOSTS, read_hello
from fastmq.wire.digest import blake2b

log = Log("front-end")


cdef extern from * nogil:
    """
    #include <sys/socket.h>

    static inline int socket_is_unix(int fd) {
        int domain = 0;
        socklen_t size = sizeof(domain);
        return getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) == 0 && domain == AF_UNIX;
    }
    """
    bint socket_is_unix(int fd)         # False for a descriptor that is closed by now


cdef enum:
    INCARNATION_MAX = 0x7fffffff        # of a HELLO; RESENDs count on from there


cdef class Membership(Outbox):
    """Who is here. `Sessions` is one, and fills `config`, `workers`, `requests`, `_key` and `_random`."""

    def __cinit__(self, *args, **kwargs):
        self._vanished = {}
        self._spare = {}
        self._homes = {}
        self._at_home = {}
        self._spare_at_home = {}
        self.events_endpoint = ""
        self.unix_events_endpoint = ""

    def __dealloc__(self):
        idmap_free(&self.by_fd)

    cdef void cold_hello(self, const Source* source, const uint8_t* header, size_t header_size) noexcept with gil:
        try:
            self.hello(source, (<const char*> header)[:header_size])
        except FastMQError as error:
            self.bad_requests += error.code == "bad-request"
            self.refuse(NULL, source, NUMBER_OF_CODE[error.code], str(error))
        except Exception:
            log.exception("HELLO")
            self.refuse(NULL, source, INTERNAL, TEXT_OF_NUMBER[INTERNAL])

    cdef void hello(self, const Source* source, bytes header) except *:
        """Begin a session, or begin it again on this connection. Raises FastMQError when that is refused; nothing is changed then."""
        cdef Session* s
        cdef uint64_t sid, proof
        version, vhost, name = read_hello(header)
        if version != PROTOCOL_VERSION:
            raise Refused(f"this broker speaks version {int(PROTOCOL_VERSION)} of the protocol, not {version}", "version")
        if self.closing:
            raise Refused("the broker is stopping; connect again when it is back", "closing-down")
        if vhost not in VHOSTS:
            raise Refused(f"there is no virtual host {vhost!r}", "no-vhost")
        if not source.has_session:
            if source.incarnation != 0:
                raise Refused("a HELLO without a session id has incarnation 0", "bad-request")
            self.make_room(source)
            sid = self.new_sid()
            s = self.open_session(sid, self.proof_of(sid))
            self.accept(s, source, 1, name)
            return
        s = self.find(source.sid)
        proof = self.proof_of(source.sid) if s == NULL else s.proof
        if proof != source.proof or source.sid == 0:        # two numbers: how long that takes tells nothing
            self.no_session += 1
            raise Refused("this broker does not know the session: begin a new one, with an empty session id and incarnation 0", "no-session")
        if s != NULL and source.incarnation <= s.incarnation:
            self.stale += 1
            self.answer_code(NULL, source, STALE, s.incarnation)
            return
        if not 0 < source.incarnation <= INCARNATION_MAX:
            self.bad_incarnation += 1
            raise Refused(f"incarnation {source.incarnation}: a HELLO has one from 1 to {int(INCARNATION_MAX)}", "bad-incarnation")
        if s == NULL or self._homes.get(source.sid) != (source.address.fd, source.address.number):
            self.make_room(source)
        if s == NULL:
            s = self.open_session(source.sid, source.proof)
        self.accept(s, source, <uint32_t> source.incarnation, name)

    def new_sid(self) -> int:
        """A session id's public half that is not in use."""
        while True:
            sid = int.from_bytes(self._random(8))
            if sid and self.find(sid) == NULL:
                return sid

    def proof_of(self, sid: int) -> int:
        """The other half of the session id."""
        return int.from_bytes(blake2b(sid.to_bytes(8), key=self._key, digest_size=8).digest())

    cdef void make_room(self, const Source* source) except *:
        """See that the connection has room for one session more. The longest there that owns nothing goes; raises Refused if all own queues."""
        cdef Session* s = self.find_at(source.address.fd)
        home = source.address.fd, source.address.number
        if self._at_home.get(home, 0) < self.config.connection_sessions_max:
            return
        spare = self._spare_at_home.get(home, ())
        sid = next(iter(spare), 0)
        while sid and self.requests.owns_queues(sid):       # since then
            self.set_spare(sid, False)
            sid = next(iter(spare), 0)
        if not sid and s != NULL and s.address.number == source.address.number and not self.requests.owns_queues(s.sid):
            sid = s.sid
        if sid:
            s = self.find(sid)
            self.vanish(s)
            self.forget(s)
            return
        self.sessions_refused += 1
        raise Refused(
            f"this connection has begun {self._at_home[home]} sessions that own exclusive queues, as many as connection_sessions_max "
            f"allows; those that it has left behind end after resume_s", "limit")

    cdef void move_home(self, uint64_t sid, tuple home):
        """The session belongs to another connection from now on; None: it is forgotten."""
        old = self._homes.pop(sid, None)
        if old is not None:
            self._at_home[old] -= 1
            if self._at_home[old] == 0:
                del self._at_home[old]
        if home is not None:
            self._homes[sid] = home
            self._at_home[home] = self._at_home.get(home, 0) + 1

    cdef void set_spare(self, uint64_t sid, bint spare):
        """Whether the session may go when room is needed; before its home changes."""
        home = self._homes.get(sid)
        if spare:
            self._spare[sid] = None
            self._spare_at_home.setdefault(home, {})[sid] = None
        elif sid in self._spare:
            del self._spare[sid]
            del self._spare_at_home[home][sid]
            if not self._spare_at_home[home]:
                del self._spare_at_home[home]

    cdef Session* open_session(self, uint64_t sid, uint64_t proof) except NULL:
        """A session without a connection. Where there are as many as allowed, one that lost its connection long ago and owns nothing goes."""
        cdef Session* s
        if self.by_sid.count >= <size_t> self.config.sessions_max:
            while self._spare:
                old = next(iter(self._spare))
                self.set_spare(old, False)
                if not self.requests.owns_queues(old):
                    self.forget(self.find(old))
                    break
            else:
                self.sessions_refused += 1
                raise Refused(f"there are {self.by_sid.count} sessions, as many as sessions_max allows", "limit")
        s = <Session*> calloc(1, sizeof(Session))
        if s == NULL:
            raise MemoryError
        if not idmap_put(&self.by_sid, sid, <uint64_t> <size_t> s):
            free(s)
            raise MemoryError
        s.sid = sid
        s.proof = proof
        s.address.fd = -1
        account_init(&s.account, self.config.publish_window_messages, self.config.publish_window_bytes)
        return s

    cdef void accept(self, Session* s, const Source* source, uint32_t incarnation, str name) except *:
        """A HELLO is accepted: what the session did before it ends, and it lives on this connection now."""
        cdef Session* other = self.find_at(source.address.fd)
        if other != NULL and other != s:
            self.vanish(other)
        if s.address.fd >= 0:               # otherwise that was done when it lost its connection
            self.requests.session_ended(s.sid, forget=False)
            self.end_at_workers(s, False)
        self.leave_connection(s)
        self._vanished.pop(s.sid, None)
        self.set_spare(s.sid, False)
        if not idmap_put(&self.by_fd, source.address.fd + 1, <uint64_t> <size_t> s):
            raise MemoryError
        self.move_home(s.sid, (source.address.fd, source.address.number))
        s.address = source.address
        s.hello = incarnation
        s.incarnation = incarnation
        s.told_closing = False
        self.requests.session_began(s.sid, incarnation, name)
        packb = msgpack.packb
        over_unix = self.unix_events_endpoint and socket_is_unix(source.address.fd)
        self.say(s, WELCOME, 6, b"".join((
            packb(s.sid.to_bytes(8) + s.proof.to_bytes(8)), packb(int(PROTOCOL_VERSION)),
            packb(LIMITS),
            packb(s.account.told), packb(s.account.told_bytes), packb(self.unix_events_endpoint if over_unix else self.events_endpoint))))

    cdef void leave_connection(self, Session* s) noexcept nogil:
        """The session has no connection; what waits to be sent and what is open is forgotten."""
        if s.address.fd >= 0:
            self.keep_begun(s)
            idmap_remove(&self.by_fd, s.address.fd + 1)
            s.address.fd = -1
        s.waiting = False
        session_drop_frames(s)
        account_void(&s.account)
        account_trim(&s.account)
        s.told_up_to = 0
        s.ranges_since_ns = 0

    cdef void end_at_workers(self, Session* s, bint forget) noexcept nogil:
        """Its consumers and outstanding messages end at every worker; with `forget` what they remember of the publisher too."""
        cdef LinkSessionEnd end
        cdef int worker
        end.sid = s.sid
        end.forget = forget
        end.padding = 0
        for worker in range(self.workers.count):
            self.workers.add(worker, L_SESSION_END, 0, &end, sizeof(LinkSessionEnd))

    cdef void vanish(self, Session* s):
        """The connection is gone, or not to be served any more: what the session did ends; it is kept for `resume_s`."""
        if s.address.fd < 0:
            return
        self.leave_connection(s)
        self.end_at_workers(s, False)
        s.vanished_ns = self.now_ns
        self._vanished[s.sid] = None
        try:
            self.requests.session_ended(s.sid, forget=False)
        except Exception:
            log.exception("the end of a session's connection")
        if not self.requests.owns_queues(s.sid):
            self.set_spare(s.sid, True)

    cdef void forget(self, Session* s) noexcept nogil:
        """Nothing is left of the session here."""
        self.leave_connection(s)
        idmap_remove(&self.by_sid, s.sid)
        with gil:
            self._vanished.pop(s.sid, None)
            self.set_spare(s.sid, False)
            self.move_home(s.sid, None)
        s.ended = True
        self.free_if_ended(s)

    cdef void forget_vanished(self):
        """Forget those that have had no connection for `resume_s`."""
        cdef Session* s
        cdef uint64_t resume_ns = int(self.config.resume_s * 1e9)
        for sid in list(self._vanished):
            s = self.find(sid)
            if s.vanished_ns + resume_ns > self.now_ns:
                break
            self.forget(s)

    cdef Session* find_at(self, int fd) noexcept nogil:
        """The session that lives on the connection of this descriptor, or NULL."""
        return <Session*> <size_t> idmap_get(&self.by_fd, fd + 1, 0)

    def connection_lost(self, int fd, uint32_t number) -> None:
        """A connection has ended, and everything that came over it was received."""
        cdef Address address
        address.fd = fd
        address.number = number
        self.lose_connection(&address)

    cdef void lose_connection(self, const Address* address) noexcept nogil:
        cdef Session* s = self.find_at(address.fd)
        if s != NULL and address_same(&s.address, address):
            self.lose(s)

    def resend_all(self) -> None:
        """RESEND to every session: its open publishes may be lost, its account is void."""
        cdef size_t i
        cdef Session* s
        for i in range(self.by_sid.mask + 1 if self.by_sid.count else 0):
            s = <Session*> <size_t> self.by_sid.entries[i].value
            if self.by_sid.entries[i].key == 0 or s.address.fd < 0:
                continue
            self.flush_outcomes(s)
            s.incarnation += 1
            account_void(&s.account)
            self.say(s, RESEND, 2, msgpack.packb(s.account.told) + msgpack.packb(s.account.told_bytes))
