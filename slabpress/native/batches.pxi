# An open batch's write cursor, and which record of which batch a handle means.

cdef enum:
    # So many callbacks are run before others may have the interpreter.
    CALLBACKS_AT_ONCE = 1024


cdef struct Asked:
    # Consecutive records that share a callback.
    uint32_t first
    uint32_t count


cdef class Waiters:
    """Who waits for batches. Subclassed in pipeline/ (``Watch``).

    Attributes:
        has_thread: the callback thread was started; what is asked of a batch before it has its outcome is run there.
        waiting: how many threads sleep until something changes.
        forked: this is a forked child of the process whose batches they are.
        delivered_ever: how many records were delivered.
    """

    cdef public bint has_thread
    cdef public bint forked
    cdef public Py_ssize_t waiting
    cdef int64_t delivered

    @property
    def delivered_ever(self):
        return self.delivered

    def count_delivered(self, int64_t records):
        """So many more were delivered: one step, as others count them without a lock."""
        self.delivered += records

    def tell_all(self):
        """Have those who wait look again."""
        raise NotImplementedError

    def callback_raised(self, error):
        """A delivery callback raised this."""
        raise NotImplementedError


cdef class OpenBatch:
    """The write cursor of one open batch. Subclassed in pipeline/; only RecordWriter moves it.

    ``outcome`` is None until it is set, once; then no callback is asked for any more.

    ``limit``: it is full when the next record would take it past so many bytes, if that is less than any batch may have.
    ``seal_number``: its place in the order, 0 while open.

    What only pipeline/ looks at lies here as well, so that a batch is made in one native step: 0.2 us and not 0.5.

    Args:
        descriptor: index of the batch's descriptor.
        partition: the partition's number within its topic.
        topic, created_ns, watch: see ``Batch``.
    """

    cdef char *position
    cdef char *fields
    cdef Py_ssize_t room
    cdef uint32_t last_slab
    cdef int64_t base_timestamp
    cdef int64_t max_timestamp
    cdef readonly uint32_t first_slab
    cdef readonly uint32_t slabs
    cdef readonly int32_t descriptor
    cdef readonly int32_t partition
    cdef readonly uint32_t records
    cdef readonly uint64_t bytes
    cdef public uint64_t last_call
    cdef public uint64_t limit
    cdef readonly bint closed
    cdef readonly uint64_t seal_number
    cdef public object outcome
    cdef Asked *asked
    cdef Py_ssize_t asked_room
    cdef list callbacks  # one for each of ``asked``
    cdef readonly object topic
    cdef readonly Waiters watch
    cdef readonly int64_t created_ns
    cdef public object pieces
    cdef public bint finished
    cdef public int64_t era, failed, seen

    def __init__(self, int32_t descriptor, int32_t partition, topic=None, int64_t created_ns=0,
                 Waiters watch=None):
        self.descriptor = descriptor
        self.partition = partition
        self.position = NULL
        self.fields = NULL
        self.room = 0
        self.slabs = 0
        self.first_slab = C_NONE
        self.last_slab = C_NONE
        self.records = 0
        self.bytes = 0
        self.last_call = 0
        self.limit = 0xFFFFFFFFFFFFFFFF
        self.closed = False
        self.seal_number = 0
        self.base_timestamp = 0
        self.max_timestamp = 0
        self.callbacks = []
        self.topic = topic
        self.watch = watch
        self.created_ns = created_ns
        self.finished = False
        self.era = -1
        self.failed = 0
        self.seen = 0

    def __dealloc__(self):
        PyMem_Free(self.asked)

    @property
    def callbacks_asked(self):
        """How many callbacks were asked for; one for consecutive records counts once."""
        return PyList_GET_SIZE(self.callbacks)

    def ask(self, uint32_t index, callback):
        """Take note of a callback for a record; False, with nothing noted, for a batch that has its outcome.

        One step: whoever sets the outcome looks at the callbacks after that, and may do so between two of Python's.
        """
        if self.outcome is not None:
            return False
        self.take_note(index, callback)
        return True

    cdef int take_note(self, uint32_t index, object callback) except -1:
        cdef Py_ssize_t count = PyList_GET_SIZE(self.callbacks)
        cdef Asked *asked
        if count > 0 and <object>PyList_GET_ITEM(self.callbacks, count - 1) is callback:
            asked = &self.asked[count - 1]
            if index == asked.first + asked.count:
                asked.count += 1
                return 0
        if count == self.asked_room:
            asked = <Asked *>PyMem_Realloc(self.asked, (2 * count + 8) * sizeof(Asked))
            if asked == NULL:
                raise MemoryError
            self.asked = asked
            self.asked_room = 2 * count + 8
        self.asked[count].first = index
        self.asked[count].count = 1
        self.callbacks.append(callback)
        return 0

    def run_asked(self):
        """Run the callbacks that were asked for."""
        cdef Py_ssize_t place
        for place in range(PyList_GET_SIZE(self.callbacks)):
            self.run(self.callbacks[place], self.asked[place].first, self.asked[place].first + self.asked[place].count)

    def run_for_all(self, callback):
        """Run a callback for every record."""
        self.run(callback, 0, self.records)

    cdef int run(self, callback, Py_ssize_t first, Py_ssize_t after) except -1:
        """Run a callback for consecutive records, on the callback thread, which nothing may end.

        In a child that one of them has forked there are none to run: the parent goes on with them.
        """
        cdef Py_ssize_t index
        cdef DeliveryHandle handle
        for index in range(first, after):
            if self.watch is not None and self.watch.forked:
                return 0
            if (index - first) % CALLBACKS_AT_ONCE == CALLBACKS_AT_ONCE - 1:
                with nogil:  # a callback that is no Python function never looks whether others want the interpreter
                    pass
            handle = DeliveryHandle.__new__(DeliveryHandle)
            handle._batch = self
            handle._index = index
            try:
                callback(handle)
            except BaseException as error:
                self.watch.callback_raised(error)
        return 0

    def drop_callbacks(self):
        """Forget them: they have run."""
        self.callbacks = []

    cdef int call_back(self, DeliveryHandle handle, object callback) except -1:
        """Have a callback run on the callback thread; what the first of all needs is done in pipeline/."""
        if self.outcome is None and (
                PyList_GET_SIZE(self.callbacks) > 0 or (self.watch is not None and self.watch.has_thread)):
            # Whoever sets the outcome looks at the callbacks after that, and the interpreter is not given away here.
            return self.take_note(<uint32_t>handle._index, callback)
        (<object>self).call_on_thread(handle, callback)
        return 0


@cython.final
@cython.no_gc  # no cycle goes through it for long: a batch drops its callbacks once they have run
@cython.freelist(64)
cdef class DeliveryHandle:
    """The promise of one record's delivery, in the manner of concurrent.futures.Future; thread-safe.

    Dropping it costs nothing; a failure that nobody looked at is raised by the next flush() or close().
    Native because one is made for every record; what it knows is its batch's (pipeline/batch.py).

    Args:
        batch: the batch.
        index: the record's place in it, from 0.
    """

    cdef readonly OpenBatch _batch
    cdef readonly Py_ssize_t _index
    cdef public bint _looked

    def __init__(self, OpenBatch batch not None, Py_ssize_t index):  # not __cinit__: the fast lane fills it in itself
        self._batch = batch
        self._index = index

    def done(self):
        """Whether the record was delivered or has failed."""
        return (<object>self._batch).outcome is not None

    def result(self, timeout=None):
        """Wait for the delivery; where the record is.

        Args:
            timeout: seconds; None waits until the record is resolved, which delivery_timeout_ms bounds.

        Raises:
            DeliveryError: the record was not delivered.
            TimeoutError: it was not resolved in time.
        """
        return (<object>self._batch).result_of(self, timeout)

    def exception(self, timeout=None):
        """Wait for the delivery and return its error, or None.

        Raises:
            TimeoutError: the record was not resolved in time.
        """
        return (<object>self._batch).exception_of(self, timeout)

    def add_done_callback(self, callback):
        """Call ``callback(handle)`` on the callback thread once the record is resolved.

        Of a record that is resolved already, the callback runs at once, in this thread. An exception in it is
        logged and hurts nothing.
        """
        (<object>self._batch).call_when_done(self, callback)

    def __repr__(self):
        return (<object>self._batch).describe(self)


cdef inline DeliveryHandle handle_of(OpenBatch batch):
    """Of the record that was written last."""
    cdef DeliveryHandle handle = DeliveryHandle.__new__(DeliveryHandle)
    handle._batch = batch
    handle._index = batch.records - 1
    return handle
