# The operating system's record lock on one byte of a file: the kernel gives it back for a holder that dies.

cdef extern from *:
    """
    #include <errno.h>
    #include <fcntl.h>
    /* 0, or an errno. */
    static int sp_record_lock(int descriptor, int64_t byte, int kind, int wait) {
        struct flock lock;
        memset(&lock, 0, sizeof lock);
        lock.l_type = (short)kind;
        lock.l_whence = SEEK_SET;
        lock.l_start = byte;
        lock.l_len = 1;
        return fcntl(descriptor, wait ? F_SETLKW : F_SETLK, &lock) == 0 ? 0 : errno;
    }
    """
    int sp_record_lock(int descriptor, int64_t byte, int kind, int wait) nogil
    int F_WRLCK
    int F_UNLCK
    int EINTR
    int EAGAIN
    int EACCES


cdef class RecordLock:
    """A lock between processes, not between the threads of one; as a context manager it is waited for.

    Not taken: a mutex in the mapping ("robust", process-shared), which is cheaper than two system calls. Its recovery is
    not the kernel's alone, and macOS has none.

    Args:
        memory: the file's mapping; once it is released the lock is refused, as the descriptor may be another file's.
        descriptor: the file.
        byte: which of its bytes.
    """

    cdef Memory memory
    cdef int descriptor
    cdef int64_t byte

    def __init__(self, Memory memory not None, int descriptor, int64_t byte):
        self.memory = memory
        self.descriptor = descriptor
        self.byte = byte

    cdef int apply(self, int kind, bint wait) except -1:
        """Ask the system, again after a signal; 0, or EAGAIN if another process holds it."""
        cdef int error
        self.memory.at(0, 1)
        while True:
            if wait:
                with nogil:
                    error = sp_record_lock(self.descriptor, self.byte, kind, True)
            else:
                error = sp_record_lock(self.descriptor, self.byte, kind, False)
            if error == 0:
                return 0
            if not wait and (error == EAGAIN or error == EACCES):
                return EAGAIN
            if error != EINTR:
                raise OSError(error, f"the record lock on byte {self.byte}: {strerror(error).decode()}")
            PyErr_CheckSignals()

    cdef int hold(self) except -1:
        """Take it. It is mostly free: only who has to wait gives the interpreter away."""
        if self.apply(F_WRLCK, False):
            self.apply(F_WRLCK, True)
        return 0

    def acquire(self, bint blocking=True):
        """Take it; False if another process holds it and ``blocking`` is False."""
        if blocking:
            self.hold()
            return True
        return self.apply(F_WRLCK, False) == 0

    def release(self):
        """Give it back."""
        self.apply(F_UNLCK, False)

    def __enter__(self):
        self.hold()

    def __exit__(self, *_):
        self.apply(F_UNLCK, False)
