# Waking a process that sleeps on its doorbell.

cdef extern from *:
    """
    #include <errno.h>
    #include <unistd.h>
    /* Ring a doorbell. One that is full is loud enough. The number of an error, or 0. */
    static int sp_ring(int descriptor) {
        uint64_t word = 1;
        while (write(descriptor, &word, sizeof word) < 0) {
            if (errno == EAGAIN || errno == EWOULDBLOCK) return 0;
            if (errno != EINTR) return errno;
        }
        return 0;
    }
    """
    int sp_ring(int descriptor) nogil


cdef class Ringer:
    """Wakes one of some processes: the first that says "I sleep" has its doorbell rung (shm/doorbell.py).

    Args:
        memory: the control block.
        sleeping_at: offset of the u32 word of each in which it says so.
        descriptors: what is written to to ring each.
    """

    cdef Memory memory
    cdef list sleeping_at, descriptors

    def __init__(self, Memory memory not None, list sleeping_at not None, list descriptors not None):
        if len(sleeping_at) != len(descriptors):
            raise ValueError(f"{len(sleeping_at)} processes and {len(descriptors)} doorbells")
        for offset in sleeping_at:
            memory.at(offset, 4)
        self.memory = memory
        self.sleeping_at = sleeping_at
        self.descriptors = descriptors

    def ring(self):
        """Ring the first that sleeps; whether any did. Call it after publishing what it should see."""
        return self.ring_first()

    cdef bint ring_first(self) except -1:
        cdef Py_ssize_t place
        cdef int error
        sp_fence()
        for place in range(PyList_GET_SIZE(self.sleeping_at)):
            if sp_load32(self.memory.at(self.sleeping_at[place], 4)) != 0:
                error = sp_ring(self.descriptors[place])
                if error != 0:
                    raise OSError(error, (<bytes>strerror(error)).decode())
                return True
        return False
