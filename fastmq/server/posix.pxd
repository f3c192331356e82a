# The few calls of Linux that a front-end makes without the GIL: a clock, epoll, and those of sockets.
from libc.stdint cimport uint32_t, uint64_t


cdef extern from * nogil:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <netinet/in.h>
    #include <netinet/tcp.h>
    #include <stdint.h>
    #include <string.h>
    #include <sys/epoll.h>
    #include <sys/ioctl.h>
    #include <sys/socket.h>
    #include <sys/uio.h>
    #include <time.h>
    #include <unistd.h>

    static inline uint64_t fmq_monotonic_ns(void) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return (uint64_t) now.tv_sec * 1000000000u + (uint64_t) now.tv_nsec;
    }

    /* what stands in front of a descriptor's events: `number` and `fd` come back with them */
    static inline int fmq_epoll(int epoll, int what, int fd, uint32_t number, uint32_t events) {
        struct epoll_event wanted;
        wanted.events = events;
        wanted.data.u64 = (uint64_t) number << 32 | (uint32_t) fd;
        return epoll_ctl(epoll, what, fd, &wanted);
    }

    static inline ssize_t fmq_send_parts(int fd, struct iovec *parts, int count) {
        struct msghdr message;
        memset(&message, 0, sizeof message);
        message.msg_iov = parts;
        message.msg_iovlen = (size_t) count;
        return sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    }

    /* as a server's connection should be: small frames at once, a dead host noticed */
    static inline void fmq_set_tcp(int fd) {
        int on = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);       /* refused by unix sockets, which need neither */
        setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    }

    /* Both ends are on this machine: a unix socket, or TCP from an address to itself. */
    static inline int fmq_is_near(int fd) {
        struct sockaddr_storage own, other;
        socklen_t own_size = sizeof own, other_size = sizeof other;
        if (getsockname(fd, (struct sockaddr *) &own, &own_size) != 0 || getpeername(fd, (struct sockaddr *) &other, &other_size) != 0)
            return 0;
        if (own.ss_family == AF_INET)
            return ((struct sockaddr_in *) &own)->sin_addr.s_addr == ((struct sockaddr_in *) &other)->sin_addr.s_addr;
        if (own.ss_family == AF_INET6)
            return memcmp(&((struct sockaddr_in6 *) &own)->sin6_addr, &((struct sockaddr_in6 *) &other)->sin6_addr, 16) == 0;
        return own.ss_family == AF_UNIX;
    }

    static inline int64_t fmq_user_of(int fd) {
        struct ucred who;
        socklen_t size = sizeof who;
        return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &size) == 0 ? (int64_t) who.uid : -1;
    }

    static inline int fmq_unacknowledged(int fd) {
        int size = 0;
        return ioctl(fd, TIOCOUTQ, &size) == 0 ? size : 0;
    }

    static inline int fmq_is_readable(int fd) {
        int size = 0;
        return ioctl(fd, FIONREAD, &size) == 0 && size > 0;
    }
    """
    struct iovec:
        void* iov_base
        size_t iov_len
    struct epoll_event:
        uint32_t events
    uint64_t monotonic_ns "fmq_monotonic_ns"()
    int epoll_create1(int flags)
    int epoll_wait(int epoll, epoll_event* events, int count, int timeout_ms)
    int epoll_change "fmq_epoll"(int epoll, int what, int fd, uint32_t number, uint32_t events)
    ssize_t send_parts "fmq_send_parts"(int fd, iovec* parts, int count)
    void set_tcp "fmq_set_tcp"(int fd)
    bint is_near "fmq_is_near"(int fd)              # both its ends are on this machine
    long user_of "fmq_user_of"(int fd)              # the user at the other end of a unix socket; -1: not known
    bint is_readable "fmq_is_readable"(int fd)      # bytes wait to be read
    int unacknowledged "fmq_unacknowledged"(int fd)  # bytes sent that the other end has not taken
    int accept4(int fd, void* address, void* size, int flags)
    ssize_t recv(int fd, void* at, size_t size, int flags)
    ssize_t read(int fd, void* at, size_t size)
    ssize_t write(int fd, const void* at, size_t size)
    int shutdown(int fd, int how)
    int close(int fd)
    unsigned int geteuid()
    int EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLL_CTL_DEL
    int SOCK_NONBLOCK, SOCK_CLOEXEC, MSG_DONTWAIT, SHUT_RDWR
    uint32_t EPOLLIN, EPOLLOUT, EPOLLERR, EPOLLHUP


cdef extern from * nogil:
    """
    static inline uint32_t fmq_number_of(const struct epoll_event *event) { return (uint32_t) (event->data.u64 >> 32); }
    static inline int fmq_fd_of(const struct epoll_event *event) { return (int) (uint32_t) event->data.u64; }
    """
    uint32_t number_of "fmq_number_of"(const epoll_event* event)
    int fd_of "fmq_fd_of"(const epoll_event* event)
