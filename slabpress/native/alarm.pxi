# When a thread that sleeps on its doorbell gets up by itself, and that sleep.

cdef extern from *:
    """
    #include <errno.h>
    #include <limits.h>
    #include <poll.h>
    #include <unistd.h>
    /* The clock of time.monotonic_ns(). */
    static int64_t sp_monotonic_ns(void) {
        struct timespec now;
    #if defined(__APPLE__)
        clock_gettime(CLOCK_UPTIME_RAW, &now);
    #else
        clock_gettime(CLOCK_MONOTONIC, &now);
    #endif
        return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
    }
    /* An eventfd adds up what is written to it: rings are counted by the lower half, alarms by the upper one. */
    static void sp_ring_alarm(int descriptor) {
        uint64_t word = (uint64_t)1 << 32;
        while (write(descriptor, &word, sizeof word) < 0 && errno == EINTR) {}  /* full: it is loud enough */
    }
    /* Drain a doorbell; whether anybody rang it, and did not only set the alarm. */
    static int sp_was_rung(int descriptor) {
        uint64_t words[64];
        int rung = 0;
        for (;;) {
            ssize_t size = read(descriptor, words, sizeof words);
            if (size < 0 && errno == EINTR) continue;
            if (size < 0 && errno != EAGAIN && errno != EWOULDBLOCK) return 1;
            for (ssize_t at = 0; at < size / (ssize_t)sizeof *words; at++) rung |= (uint32_t)words[at] != 0;
            if (size < (ssize_t)sizeof words) return rung;
        }
    }
    /* Sleep until the first of them, a doorbell, is rung, until another is ready, or until the time in ``due``, which may
       be set earlier meanwhile. The number of an error, or 0. */
    static int sp_sleep_until(struct pollfd *polled, int64_t count, const int64_t *due) {
        for (;;) {
            int64_t until = __atomic_load_n(due, __ATOMIC_ACQUIRE);
            int64_t left = until == INT64_MAX ? -1 : until - sp_monotonic_ns();
            int timeout = -1;
            if (until != INT64_MAX) {
                left = left <= 0 ? 0 : left / 1000000 + (left % 1000000 != 0);
                timeout = left > INT_MAX ? INT_MAX : (int)left;
            }
            int ready = poll(polled, (nfds_t)count, timeout);
            if (ready < 0 && errno != EINTR) return errno;
            if (ready == 0 && timeout == (int)left && timeout >= 0) return 0;
            if (ready <= 0) continue;
            int rung = polled[0].revents != 0 && sp_was_rung(polled[0].fd);
            if (rung || ready > (polled[0].revents != 0)) return 0;
        }
    }
    """
    struct pollfd:
        int fd
        short events, revents
    short POLLIN
    void sp_ring_alarm(int descriptor) nogil
    int sp_sleep_until(pollfd *polled, int64_t count, const int64_t *due) nogil


cdef class Alarm:
    """When a thread that sleeps on its doorbell gets up by itself. Other threads of its process may set it to an earlier
    time: it then sleeps on until that, and does not take the interpreter in between.

    To ring such a thread for a time that is to come cost both sides more than the ring: it waited for the interpreter,
    which the one who rang had, was woken whenever that gave it up for a microsecond (as pyarrow does), and found it taken
    again. It took a third of the time of a send_arrow() of 5,000 rows, and of all that follow until it gets it.

    Args:
        read_descriptor, write_descriptor: the doorbell's.
    """

    cdef int64_t due
    cdef int read_descriptor, write_descriptor

    def __init__(self, int read_descriptor, int write_descriptor):
        self.due = INT64_MAX
        self.read_descriptor = read_descriptor
        self.write_descriptor = write_descriptor

    @property
    def due_ns(self):
        """The time, in ns as ``time.monotonic_ns()`` counts; None: it waits to be rung."""
        return None if self.due == INT64_MAX else self.due

    def forget(self):
        """It is not known when: whoever has a time, sets it (the sleeper, before it looks for the last time)."""
        self.due = INT64_MAX

    def set(self, int64_t due_ns, bint ring=True):
        """Get up at this time, if not earlier; whether that is news. ``ring`` False: the sleeper does not sleep yet."""
        return self.bring_forward(due_ns, ring)

    cdef bint bring_forward(self, int64_t due_ns, bint ring) noexcept:
        if due_ns >= self.due:
            return False
        sp_store64(&self.due, <uint64_t>due_ns)
        if ring:
            sp_ring_alarm(self.write_descriptor)
        return True

    def wait(self, also):
        """Sleep until rung, until one of ``also`` is readable, or until it is time; drains the bell (the sleeper).

        Returns:
            Those of ``also`` that are readable.
        """
        cdef Py_ssize_t place, count = len(also) + 1
        cdef int error
        cdef pollfd *polled = <pollfd *>PyMem_Realloc(NULL, count * sizeof(pollfd))
        if polled == NULL:
            raise MemoryError
        try:
            for place in range(count):
                polled[place].fd = also[place - 1] if place else self.read_descriptor
                polled[place].events = POLLIN
                polled[place].revents = 0
            with nogil:
                error = sp_sleep_until(polled, count, &self.due)
            if error != 0:
                raise OSError(error, (<bytes>strerror(error)).decode())
            return [polled[place].fd for place in range(1, count) if polled[place].revents]
        finally:
            PyMem_Free(polled)
