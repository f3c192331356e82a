# The calls of the system that the log's threads make beside those of the table of files: threads, a mutex, conditions, an eventfd, random
# bytes, atomics; and those with which that table's own thread reads ahead.
from libc.stdint cimport int64_t, uint64_t


cdef extern from * nogil:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <fcntl.h>
    #include <pthread.h>
    #include <signal.h>
    #include <stdint.h>
    #include <stdio.h>
    #include <sys/eventfd.h>
    #include <sys/random.h>
    #include <time.h>
    #include <unistd.h>

    static inline uint64_t storage_load(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    static inline void storage_store(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }

    static inline int storage_cond_init(pthread_cond_t *cond) {
        pthread_condattr_t attr;
        pthread_condattr_init(&attr);
        pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
        return pthread_cond_init(cond, &attr);
    }
    static inline void storage_cond_wait(pthread_cond_t *cond, pthread_mutex_t *mutex, int64_t timeout_ns) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        t.tv_sec += timeout_ns / 1000000000;
        t.tv_nsec += timeout_ns % 1000000000;
        if (t.tv_nsec >= 1000000000) { t.tv_sec++; t.tv_nsec -= 1000000000; }
        pthread_cond_timedwait(cond, mutex, &t);
    }
    /* Signals go to the program's own threads. */
    static inline int storage_thread(pthread_t *thread, void *(*run)(void *), void *argument) {
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_BLOCK, &all, &before);
        int failed = pthread_create(thread, NULL, run, argument);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        return failed;
    }
    static inline int64_t storage_now(void) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (int64_t) t.tv_sec * 1000000000 + t.tv_nsec;
    }
    static inline uint64_t storage_random(void) {
        uint64_t value = 0;
        while (getrandom(&value, sizeof value, 0) != sizeof value) {}
        return value;
    }
    static inline int storage_dup(int fd) { return fcntl(fd, F_DUPFD_CLOEXEC, 0); }
    static inline void storage_ring(int bell) {
        uint64_t one = 1;
        while (write(bell, &one, sizeof one) < 0 && errno == EINTR) {}
    }
    static inline void storage_quiet(int bell) {
        uint64_t count;
        while (read(bell, &count, sizeof count) < 0 && errno == EINTR) {}
    }
    """
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    ctypedef unsigned long pthread_t
    int EBADMSG, ECANCELED
    int EFD_CLOEXEC, EFD_NONBLOCK
    int O_RDWR, O_RDONLY, O_CREAT, O_EXCL, O_CLOEXEC, O_DIRECT, O_DIRECTORY
    int pthread_mutex_init(pthread_mutex_t*, void*)
    int pthread_mutex_destroy(pthread_mutex_t*)
    int pthread_mutex_lock(pthread_mutex_t*)
    int pthread_mutex_unlock(pthread_mutex_t*)
    int pthread_cond_destroy(pthread_cond_t*)
    int pthread_cond_signal(pthread_cond_t*)
    int pthread_cond_broadcast(pthread_cond_t*)
    int pthread_cond_wait(pthread_cond_t*, pthread_mutex_t*)
    int pthread_join(pthread_t, void**)
    int eventfd(unsigned int, int)
    int snprintf(char*, size_t, const char*, ...)
    int close(int)
    int dup "storage_dup"(int)
    int64_t pread(int, void*, size_t, int64_t)
    int pthread_detach(pthread_t)
    uint64_t atomic_load "storage_load"(const uint64_t*)
    void atomic_store "storage_store"(uint64_t*, uint64_t)
    int cond_init "storage_cond_init"(pthread_cond_t*)
    void cond_wait_ns "storage_cond_wait"(pthread_cond_t*, pthread_mutex_t*, int64_t timeout_ns)
    int start_thread "storage_thread"(pthread_t*, void* (*)(void*) noexcept nogil, void*)
    uint64_t random_bytes "storage_random"()
    int64_t monotonic_ns "storage_now"()
    void bell_ring "storage_ring"(int bell)
    void bell_quiet "storage_quiet"(int bell)
