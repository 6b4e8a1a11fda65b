# The producer's lock, and the way of records that need not wait for anything.

cdef class Mutex:
    """A lock that costs a tenth of threading.Lock when nobody else wants it; a Condition can stand on it.

    Waiting for it releases the GIL. It must be released by the thread that acquired it. A thread that holds it
    and asks for it again gets RuntimeError and not a deadlock: a signal handler or a __del__ may run the user's
    code, and that code may send, at any bytecode.

    Who holds the interpreter's lock and sees ``held`` false has what the mutex guards to himself until he gives the
    interpreter away: whoever takes the mutex has to get the interpreter before he looks at anything.
    """

    cdef pthread_mutex_t mutex
    cdef bint held

    def __cinit__(self):
        cdef pthread_mutexattr_t attributes
        cdef int code
        self.held = False
        pthread_mutexattr_init(&attributes)
        pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ERRORCHECK)
        code = pthread_mutex_init(&self.mutex, &attributes)
        pthread_mutexattr_destroy(&attributes)
        if code != 0:
            raise MemoryError("pthread_mutex_init failed")

    def __dealloc__(self):
        pthread_mutex_destroy(&self.mutex)

    cdef bint try_lock(self) noexcept:
        if pthread_mutex_trylock(&self.mutex) != 0:
            return False
        self.held = True
        return True

    cdef int lock(self) except -1:
        cdef int code = 0
        if not self.try_lock():
            with nogil:
                code = pthread_mutex_lock(&self.mutex)
            if code != 0:
                raise RuntimeError("a producer is used inside one of its own calls, by a signal handler, a __del__ "
                                   "or an iterator that sends")
            self.held = True
        return 0

    cdef void unlock(self) noexcept:
        self.held = False
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


@cython.final
cdef class FastLane:
    """The way of nearly every record: a known topic, an open batch with room, nobody waiting for any.

    Where it finds none, or a full one, another is opened (native/open_batches.pxi). Whatever is not so goes the long way
    (pipeline/sender.py), which decides everything anew.

    Args:
        mutex: the producer's lock.
        writer: the record writer.
        topics: the known topics by name, a dict of str to TopicLanes; looked at under the lock.
        batches: opens and seals batches.

    Attributes:
        closed: nothing goes this way any more: the producer is closed, failed or forked. Set under the lock, but
            for a forked child's.
        reserved: the slabs that threads in line wait for. Who leaves that many free overtakes nobody; if everybody
            had to stand in line while there is one, every record would cost a switch of threads.
    """

    cdef Mutex mutex
    cdef RecordWriter writer
    cdef dict topics
    cdef OpenBatches batches
    # The topic of the last record that went this way, by the very str that named it. It has an open batch, or had one,
    # so that it is not forgotten.
    cdef object last_name
    cdef TopicLanes last_topic
    cdef public bint closed
    cdef public Py_ssize_t reserved

    def __init__(self, Mutex mutex not None, RecordWriter writer not None, dict topics not None,
                 OpenBatches batches not None):
        self.mutex = mutex
        self.writer = writer
        self.topics = topics
        self.batches = batches
        self.closed = False
        self.reserved = 0

    cpdef DeliveryHandle append(self, topic_name, value, key, headers, partition, timestamp_ms):
        """Append one record: its handle, or None where it must go the long way. Raises what ``append`` raises."""
        cdef Bytes room[2 * HEADERS_AT_HAND]
        cdef Headers found
        cdef const Headers *its_headers = NULL
        cdef Bytes key_bytes, value_bytes
        cdef int64_t timestamp
        cdef object kept
        if self.closed or type(topic_name) is not str:
            return None
        if headers is not None:
            kept = read_headers(headers, &found, room, 2 * HEADERS_AT_HAND)  # it may run the user's code
            its_headers = &found
        timestamp = sp_now_ms() if timestamp_ms is None else read_timestamp(timestamp_ms)
        if find_plain(value, &value_bytes) and find_plain(key, &key_bytes):
            return self.append_plain(topic_name, &value_bytes, &key_bytes, its_headers, partition, timestamp)
        return self.append_held(topic_name, value, key, its_headers, partition, timestamp)

    cdef inline DeliveryHandle append_plain(self, topic_name, const Bytes *value, const Bytes *key,
                                            const Headers *headers, partition, int64_t timestamp):
        """Nothing in here runs anybody's code or gives the interpreter away, so that nobody takes the lock meanwhile:
        to look at it is to have it, and saves 15 ns. Where a batch has to be made, it is taken.
        """
        cdef TopicLanes topic
        cdef Py_ssize_t target, size = 0
        if self.mutex.held or self.closed:
            return None
        topic = self.topic_of(topic_name)
        if topic is None:
            return None
        target = self.target_of(topic, partition, key)
        if target < 0:
            return None
        if <object>PyList_GET_ITEM(topic.open, target) is not None:
            self.writer.reserve = self.reserved
            size = self.writer.write(<OpenBatch>PyList_GET_ITEM(topic.open, target), key, value, headers, timestamp)
        if size == 0:
            if partition is None and key.size < 0:
                target = -1
            return self.append_to_next(topic, target, value, key, headers, timestamp)
        if size < 0:
            return None
        self.last_topic = topic
        self.last_name = topic_name
        return handle_of(<OpenBatch>PyList_GET_ITEM(topic.open, target))

    cdef DeliveryHandle append_to_next(self, TopicLanes topic, Py_ssize_t partition, const Bytes *value, const Bytes *key,
                                       const Headers *headers, int64_t timestamp):
        """The way of a record whose partition has no open batch, or a full one. With the lock, for to make one takes memory.

        Who stands in line for room is not overtaken where a batch ends.
        """
        if self.reserved > 0 or not self.mutex.try_lock():
            return None
        try:
            self.writer.reserve = 0
            return self.batches.append(topic, partition, value, key, headers, timestamp)
        finally:
            self.mutex.unlock()

    cdef DeliveryHandle append_held(self, topic_name, value, key, const Headers *headers, partition,
                                    int64_t timestamp):
        """The same with parts that have to be held, which may run code."""
        cdef Piece key_piece
        cdef Bytes key_bytes
        cdef TopicLanes topic
        cdef OpenBatch batch
        cdef Py_ssize_t target
        key_piece.held = False
        if not self.mutex.try_lock():
            return None
        try:
            topic = self.topic_of(topic_name)
            if topic is None or self.closed:
                return None
            grab(key, &key_piece, "key")
            key_bytes.data, key_bytes.size = key_piece.data, key_piece.size
            target = self.target_of(topic, partition, &key_bytes)
            if target < 0 or <object>PyList_GET_ITEM(topic.open, target) is None:
                return None
            batch = <OpenBatch>PyList_GET_ITEM(topic.open, target)
            self.writer.reserve = self.reserved
            if self.writer.encode(batch, key, value, headers, timestamp) <= 0:
                return None
            return handle_of(batch)
        finally:
            let_go(&key_piece)
            self.mutex.unlock()

    cdef TopicLanes topic_of(self, topic_name):
        if topic_name is self.last_name:
            return self.last_topic
        return self.topics.get(topic_name)

    cdef Py_ssize_t target_of(self, TopicLanes topic, partition, const Bytes *key) except -2:
        """The partition, or -1 where the long way has to look at what was asked for."""
        cdef Py_ssize_t partitions = PyList_GET_SIZE(topic.open)
        cdef long long wanted
        cdef int overflow = 0
        if partition is not None:
            if not PyLong_CheckExact(partition):
                return -1
            wanted = PyLong_AsLongLongAndOverflow(partition, &overflow)
            return wanted if not overflow and 0 <= wanted < partitions else -1
        return topic.sticky if key.size < 0 else place_of(key.data, key.size, partitions)


cdef class Sends:
    """``Producer.send``: one native call from the program to the copy into the slab. Producer is its subclass."""

    cdef FastLane lane
    cdef object long_way

    def _send_through(self, FastLane lane not None, long_way not None):
        """From now on records go this way, and those that cannot, the long one."""
        self.lane = lane
        self.long_way = long_way

    # Not bound as a Python function is: a call through such is 10 ns longer.
    @cython.binding(False)
    @cython.embedsignature(True)
    @cython.embedsignature.format("clinic")
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
            handle._batch.call_back(handle, on_delivery)
        return handle
