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

    Attributes:
        closed: nothing goes this way any more: the producer is closed, failed or forked. Set under the lock, but
            for a forked child's.
        reserved: the slabs that threads in line wait for. Who leaves that many free overtakes nobody; if everybody
            had to stand in line while there is one, every record would cost a switch of threads.
    """

    cdef Mutex mutex
    cdef RecordWriter writer
    cdef dict topics
    cdef public bint closed
    cdef public Py_ssize_t reserved

    def __init__(self, Mutex mutex not None, RecordWriter writer not None, dict topics not None):
        self.mutex = mutex
        self.writer = writer
        self.topics = topics
        self.closed = False
        self.reserved = 0

    cpdef DeliveryHandle append(self, topic_name, value, key, headers, partition, timestamp_ms):
        """Append one record: its handle, or None where it must go the long way. Raises what ``append`` raises."""
        cdef TopicLanes topic
        cdef DeliveryHandle handle
        cdef object slot
        cdef int64_t timestamp
        cdef Py_ssize_t target
        if self.closed or type(topic_name) is not str:
            return None
        if headers is not None:
            headers = header_pairs(headers)  # before the lock: it may run the user's code
        timestamp = read_timestamp(timestamp_ms)
        if not self.mutex.try_lock():
            return None
        try:
            slot = self.topics.get(topic_name)
            if slot is None or self.closed:
                return None
            topic = <TopicLanes>slot
            if partition is not None:
                if type(partition) is not int or not 0 <= partition < PyList_GET_SIZE(topic.open):
                    return None
                target = partition
            elif key is None:
                target = topic.sticky
            else:
                target = partition_of(key, PyList_GET_SIZE(topic.open))
            slot = <object>PyList_GET_ITEM(topic.open, target)
            if slot is None:
                return None
            self.writer.reserve = self.reserved
            if self.writer.encode(<OpenBatch>slot, key, value, headers, timestamp) <= 0:
                return None
            handle = DeliveryHandle.__new__(DeliveryHandle)
            handle._batch = <OpenBatch>slot
            handle._index = handle._batch.records - 1
            return handle
        finally:
            self.mutex.unlock()


cdef class Sends:
    """``Producer.send``: one native call from the program to the copy into the slab. Producer is its subclass."""

    cdef FastLane lane
    cdef object long_way

    def _send_through(self, FastLane lane not None, long_way not None):
        """From now on records go this way, and those that cannot, the long one."""
        self.lane = lane
        self.long_way = long_way

    def send(self, topic, value=None, *, key=None, headers=None, partition=None, timestamp_ms=None,
             on_delivery=None):
        """Accept one record. Accepted means: in the arena, not yet acknowledged; the handle tells of that.

        Args:
            topic: its topic.
            value: bytes, bytearray, memoryview, str (UTF-8), or None for a null value (a tombstone).
            key: the same; None is a null key.
            headers: (name, value) pairs.
            partition: its partition; None: by the key as Java's producer does, or without a key one partition
                until its batch is sealed, then another.
            timestamp_ms: milliseconds since the epoch; None is now.
            on_delivery: called with the handle, on the callback thread.

        Returns:
            The record's DeliveryHandle.

        Raises:
            RecordError: the record was refused (see errors.py for the kinds); the producer goes on.
            BufferFullError: there was no room within max_block_ms.
            ProducerClosedError, ForkedError, ProcessError: the producer cannot be used (any more).
        """
        cdef DeliveryHandle handle = None
        if self.lane is not None:
            handle = self.lane.append(topic, value, key, headers, partition, timestamp_ms)
        if handle is None:
            handle = self.long_way(topic, value, key, headers, partition, timestamp_ms)
        if on_delivery is not None:
            (<object>handle._batch).call_on_thread(handle, on_delivery)
        return handle
