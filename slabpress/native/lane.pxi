# The producer's lock, and the way of records that need not wait for anything.

cdef class Mutex:
    """A lock that costs a tenth of threading.Lock when nobody else wants it; a Condition can stand on it.

    Waiting for it releases the GIL. It must be released by the thread that acquired it. A thread that holds it
    and asks for it again gets RuntimeError and not a deadlock: a signal handler or a __del__ may run the user's
    code, and that code may send, at any bytecode.
    """

    cdef pthread_mutex_t mutex

    def __cinit__(self):
        cdef pthread_mutexattr_t attributes
        cdef int code
        pthread_mutexattr_init(&attributes)
        pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ERRORCHECK)
        code = pthread_mutex_init(&self.mutex, &attributes)
        pthread_mutexattr_destroy(&attributes)
        if code != 0:
            raise MemoryError("pthread_mutex_init failed")

    def __dealloc__(self):
        pthread_mutex_destroy(&self.mutex)

    cdef bint try_lock(self) noexcept:
        return pthread_mutex_trylock(&self.mutex) == 0

    cdef int lock(self) except -1:
        cdef int code = 0
        if not self.try_lock():
            with nogil:
                code = pthread_mutex_lock(&self.mutex)
            if code != 0:
                raise RuntimeError("a producer is used inside one of its own calls, by a signal handler, a __del__ "
                                   "or an iterator that sends")
        return 0

    cdef void unlock(self) noexcept:
        pthread_mutex_unlock(&self.mutex)

    def acquire(self, bint blocking=True):
        """Take the lock; False if it is taken and ``blocking`` is false."""
        if not blocking:
            return self.try_lock()
        self.lock()
        return True

    def release(self):
        """Give the lock back."""
        self.unlock()

    def __enter__(self):
        self.lock()
        return True

    def __exit__(self, kind, error, trace):
        self.unlock()


cdef class TopicLanes:
    """Where a topic's records go. Subclassed in pipeline/.

    Attributes:
        open: the open batch of each partition, or None.
        sticky: the partition of records without a key.
    """

    cdef public list open
    cdef public int32_t sticky

    def __init__(self):
        self.open = []
        self.sticky = 0


cdef class FastLane:
    """The way of nearly every record: a known topic, an open batch with room, nobody waiting for any.

    Whatever is not so goes the long way (pipeline/sender.py), which decides everything anew.

    Args:
        mutex: the producer's lock.
        writer: the record writer.
        topics: the known topics by name, a dict of str to TopicLanes; looked at under the lock.
        handle_type: a subclass of RecordHandle.

    Attributes:
        closed: nothing goes this way any more: the producer is closed, failed or forked. Set under the lock, but
            for a forked child's.
        reserved: the slabs that threads in line wait for. Who leaves that many free overtakes nobody; if everybody
            had to stand in line while there is one, every record would cost a switch of threads.
    """

    cdef Mutex mutex
    cdef RecordWriter writer
    cdef dict topics
    cdef type handle_type
    cdef public bint closed
    cdef public Py_ssize_t reserved

    def __init__(self, Mutex mutex not None, RecordWriter writer not None, dict topics not None, type handle_type):
        self.mutex = mutex
        self.writer = writer
        self.topics = topics
        self.handle_type = handle_type
        self.closed = False
        self.reserved = 0

    def append(self, topic_name, value, key, headers, partition, timestamp_ms):
        """Append one record: its handle, or None where it must go the long way. Raises what ``append`` raises."""
        cdef TopicLanes topic
        cdef RecordHandle handle
        cdef object slot
        cdef Py_ssize_t size = 0, target
        if self.closed or type(topic_name) is not str:
            return None
        if headers is not None:
            headers = header_pairs(headers)  # before the lock: it may run the user's code
        if not self.mutex.try_lock():
            return None
        try:
            slot = self.topics.get(topic_name)
            if slot is None or self.closed:
                return None
            topic = <TopicLanes?>slot
            if partition is not None:
                if type(partition) is not int or not 0 <= partition < PyList_GET_SIZE(topic.open):
                    return None
                target = partition
            elif key is None:
                target = topic.sticky
            else:
                target = partition_of(key, PyList_GET_SIZE(topic.open))
            slot = topic.open[target]
            if slot is None:
                return None
            self.writer.reserve = self.reserved
            size = self.writer.encode(<OpenBatch?>slot, key, value, headers, read_timestamp(timestamp_ms))
            if size <= 0:
                return None
            handle = <RecordHandle>self.handle_type.__new__(self.handle_type)
            handle._batch = <OpenBatch>slot
            handle._index = handle._batch.records - 1
            return handle
        finally:
            self.mutex.unlock()
