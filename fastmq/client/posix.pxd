# The few calls of the system that a client's connection makes without the GIL: a clock, poll, a socket's send and receive, one mutex.
from libc.stdint cimport int64_t, uint64_t


cdef extern from * nogil:
    """
    #include <errno.h>
    #include <fcntl.h>
    #include <poll.h>
    #include <pthread.h>
    #include <signal.h>
    #include <stdint.h>
    #include <sys/socket.h>
    #include <sys/types.h>
    #include <time.h>
    #include <unistd.h>

    #ifndef MSG_MORE
    #define MSG_MORE 0
    #endif
    #ifndef MSG_NOSIGNAL
    #define MSG_NOSIGNAL 0
    #endif

    static inline uint64_t posix_clock_ns(void) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (uint64_t) t.tv_sec * 1000000000u + (uint64_t) t.tv_nsec;
    }

    static inline int posix_poll(struct pollfd *fds, int count, int64_t timeout_ns) {
    #ifdef __linux__
        struct timespec t = {timeout_ns / 1000000000, timeout_ns % 1000000000};
        return ppoll(fds, count, timeout_ns < 0 ? NULL : &t, NULL);
    #else
        return poll(fds, count, timeout_ns < 0 ? -1 : timeout_ns > 2000000000000 ? 2000000 : (int) ((timeout_ns + 999999) / 1000000));
    #endif
    }

    static inline int posix_cond_init(pthread_cond_t *cond) {
    #ifdef __linux__
        pthread_condattr_t attr;
        pthread_condattr_init(&attr);
        pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
        return pthread_cond_init(cond, &attr);
    #else
        return pthread_cond_init(cond, NULL);
    #endif
    }

    static inline void posix_cond_wait(pthread_cond_t *cond, pthread_mutex_t *mutex, int64_t timeout_ns) {
        struct timespec t;
    #ifdef __linux__
        clock_gettime(CLOCK_MONOTONIC, &t);
    #else
        clock_gettime(CLOCK_REALTIME, &t);
    #endif
        t.tv_sec += timeout_ns / 1000000000;
        t.tv_nsec += timeout_ns % 1000000000;
        if (t.tv_nsec >= 1000000000) { t.tv_sec++; t.tv_nsec -= 1000000000; }
        pthread_cond_timedwait(cond, mutex, &t);
    }

    static inline int posix_again(void) { return errno == EAGAIN || errno == EWOULDBLOCK; }
    static inline int posix_interrupted(void) { return errno == EINTR; }

    /* Signals go to the application's threads, so that their waiting calls are interrupted. */
    static inline void posix_block_signals(void) {
        sigset_t all;
        sigfillset(&all);
        pthread_sigmask(SIG_BLOCK, &all, NULL);
    }
    """
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    struct pollfd:
        int fd
        short events
        short revents
    int POLLIN
    int POLLOUT
    int MSG_DONTWAIT
    int MSG_MORE
    int MSG_NOSIGNAL
    int SHUT_RDWR
    int SHUT_WR
    int pthread_mutex_init(pthread_mutex_t*, void*)
    int pthread_mutex_destroy(pthread_mutex_t*)
    int pthread_mutex_lock(pthread_mutex_t*)
    int pthread_mutex_unlock(pthread_mutex_t*)
    int pthread_cond_destroy(pthread_cond_t*)
    int pthread_cond_broadcast(pthread_cond_t*)
    ssize_t send(int fd, const void* data, size_t size, int flags)
    ssize_t recv(int fd, void* data, size_t size, int flags)
    int shutdown(int fd, int how)
    ssize_t write(int fd, const void* data, size_t size)
    ssize_t read(int fd, void* data, size_t size)
    uint64_t clock_ns "posix_clock_ns"()
    int poll_ns "posix_poll"(pollfd*, int count, int64_t timeout_ns)
    int cond_init "posix_cond_init"(pthread_cond_t*)
    void cond_wait_ns "posix_cond_wait"(pthread_cond_t*, pthread_mutex_t*, int64_t timeout_ns)
    bint is_again "posix_again"()
    bint is_interrupted "posix_interrupted"()
    void block_signals "posix_block_signals"()
