# What a worker does with a batch: one native step each, around its codec.

cdef extern from *:
    int64_t sp_monotonic_ns() nogil  # native/alarm.pxi's

cdef enum:
    # One batch's part in what is known of how long they take.
    LEARNED_FROM = 8


@cython.final
cdef class Task:
    """A batch that a worker was admitted to, as the worker has to know it.

    Attributes:
        index: its descriptor.
        raw_bytes: its records.
        first_slab, first_output: its slabs and its output buffers.
        output_count, payload_bytes: of what is compressed; nothing is left to compress once ``payload_bytes`` is not 0.
        deaths: how many workers died while they compressed it.
        source: NONE unless it is split (shm/splits.py).
        chunks: its slabs' bytes; none of a batch that is split, or compressed already.
        takes_ns: how long it will take; 0 if that cannot be told.
    """

    cdef readonly Py_ssize_t index
    cdef readonly uint32_t raw_bytes, first_slab, first_output, output_count, payload_bytes, deaths, source
    cdef readonly list chunks
    cdef readonly double takes_ns
    cdef int64_t started_ns


cdef class WorkPoint:
    """A worker's way with the batches of an arena: admitted to one, its payload announced, given away.

    The order of the stores is what lets the process be killed between any two (shm/admission.py); tests/shm/faults.py has
    the same steps one by one, and a test compares what both leave.

    Args:
        queue: the sealed batches, and where the tables are.
        lock: the admission lock.
        slabs: the slabs.
        compressing_state, ready_state: the batch states that it stores.
        slab_compressing, output_filling: what is stored of a slab and of an output buffer: the worker's own words.
        output_ready, slab_free: what they become.
        room_wanted_at: the u64 that says how many free slabs somebody waits for.
        counters_at: the worker's u64: batches, raw bytes, payload bytes, microseconds, batches sent raw.
        worker: the index that batches are signed with.
        first_output_at, worker_at, deaths_at, source_at: field offsets in a descriptor; with the first begins a group:
            first output, count, bytes, codec.

    Attributes:
        ns_per_byte: what is known of how long batches take; 0 before the first.
    """

    cdef SealedQueue queue
    cdef RecordLock lock
    cdef Memory memory
    cdef Blocks slabs, outputs
    cdef uint32_t compressing_state, ready_state, slab_compressing, output_filling, output_ready, slab_free, worker
    cdef Py_ssize_t room_wanted_at, counters_at, first_output_at, worker_at, deaths_at, source_at
    cdef readonly double ns_per_byte

    def __init__(self, SealedQueue queue not None, RecordLock lock not None, Blocks slabs not None,
                 uint32_t compressing_state, uint32_t ready_state, uint32_t slab_compressing, uint32_t output_filling,
                 uint32_t output_ready, uint32_t slab_free, Py_ssize_t room_wanted_at, Py_ssize_t counters_at,
                 uint32_t worker, Py_ssize_t first_output_at, Py_ssize_t worker_at, Py_ssize_t deaths_at,
                 Py_ssize_t source_at):
        self.queue = queue
        self.lock = lock
        self.memory = queue.memory
        self.slabs = slabs
        self.outputs = queue.outputs
        self.compressing_state = compressing_state
        self.ready_state = ready_state
        self.slab_compressing = slab_compressing
        self.output_filling = output_filling
        self.output_ready = output_ready
        self.slab_free = slab_free
        self.room_wanted_at = room_wanted_at
        self.counters_at = counters_at
        self.worker = worker
        self.first_output_at = first_output_at
        self.worker_at = worker_at
        self.deaths_at = deaths_at
        self.source_at = source_at
        self.ns_per_byte = 0

    def admit(self):
        """Be admitted to the ring's first batch; None if there is none, no room, or something unusual before it."""
        cdef Candidate found
        cdef bint admitted = False
        if self.queue.is_ring_empty():
            return None
        self.lock.hold()
        try:
            if self.queue.look(&found):
                admitted = self.sign(&found)
        finally:
            self.lock.apply(F_UNLCK, False)
        return self.task_of(found.index) if admitted else None

    cdef bint sign(self, Candidate *found) except -1:
        """Make the batch this worker's, in the order of stores that shm/admission.py tells of."""
        cdef char *descriptor = self.queue.descriptor(found.index)
        cdef uint32_t *output = <uint32_t *>(descriptor + self.first_output_at)
        cdef uint32_t first = self.outputs.take(found.needed, self.output_filling)
        if first == C_NONE:
            return False
        output[0], output[1], output[2], output[3] = first, <uint32_t>found.needed, 0, 0
        (<uint32_t *>(descriptor + self.worker_at))[0] = self.worker
        sp_store32(self.queue.states.word(found.index), self.compressing_state)
        self.slabs.paint(found.first_slab, self.slab_compressing)
        sp_store64(self.memory.at(self.queue.head_at, 8), found.seal_number)
        return True

    def task(self, Py_ssize_t index):
        """A batch that this worker was admitted to; its time counts from here."""
        return self.task_of(index)

    cdef Task task_of(self, Py_ssize_t index):
        cdef char *descriptor = self.queue.descriptor(index)
        cdef uint32_t *output = <uint32_t *>(descriptor + self.first_output_at)
        cdef Task task = Task.__new__(Task)
        task.started_ns = sp_monotonic_ns()
        task.index = index
        task.raw_bytes = <uint32_t>(sp_load64(descriptor + self.queue.commit_at) >> 32)
        task.first_slab = (<uint32_t *>(descriptor + self.queue.first_slab_at))[0]
        task.first_output, task.output_count, task.payload_bytes = output[0], output[1], output[2]
        task.deaths = sp_load32(descriptor + self.deaths_at)
        task.source = sp_load32(descriptor + self.source_at)
        task.chunks = []
        if task.source == C_NONE:  # a piece of a split batch has to be cut out first
            task.takes_ns = task.raw_bytes * self.ns_per_byte
            if task.payload_bytes == 0:
                task.chunks = self.slabs.runs_of(task.first_slab, task.raw_bytes)
        return task

    def buffers(self, Task task not None):
        """All of a batch's output buffers, whatever the count says: a dead predecessor may have stored the count of what
        it used, and nothing is trimmed before the payload's size is there.
        """
        return self.outputs.runs_of(task.first_output, -1)

    def fill(self, Task task not None, payload, uint32_t codec):
        """Copy a whole payload into the output buffers and ``finish``; if it is not smaller, what it was made of.

        Args:
            task: the batch, which lies in one piece.
            payload: what its only chunk became.
            codec: Kafka's number of the codec.
        """
        cdef Py_buffer source
        cdef bint is_smaller = len(payload) < task.raw_bytes
        PyObject_GetBuffer(payload if is_smaller else task.chunks[0], &source, PyBUF_SIMPLE)
        try:
            self.outputs.pour(task.first_output, <char *>source.buf, source.len)
            self.announce(task, task.raw_bytes, <uint32_t>source.len, codec if is_smaller else 0)
        finally:
            PyBuffer_Release(&source)

    def finish(self, Task task not None, uint32_t raw_bytes, uint32_t payload_bytes, uint32_t codec):
        """The payload is complete: say so in the descriptor, where ``payload_bytes``, which was 0, is stored last.

        A worker that takes over from a dead one thus sees whether there is anything left to compress.

        Args:
            task: the batch.
            raw_bytes: what was compressed.
            payload_bytes: what it became, at least 1.
            codec: Kafka's number of the codec.
        """
        self.announce(task, raw_bytes, payload_bytes, codec)

    cdef int announce(self, Task task, uint32_t raw_bytes, uint32_t payload_bytes, uint32_t codec) except -1:
        cdef char *descriptor = self.queue.descriptor(task.index)
        cdef uint32_t *output = <uint32_t *>(descriptor + self.first_output_at)
        cdef int64_t took_ns
        task.output_count = <uint32_t>((payload_bytes + self.outputs.block_bytes - 1) // self.outputs.block_bytes)
        task.payload_bytes = payload_bytes
        output[0], output[1], output[2], output[3] = task.first_output, task.output_count, 0, codec
        sp_store32(<char *>(output + 2), payload_bytes)
        took_ns = sp_monotonic_ns() - task.started_ns
        self.learn(<double>took_ns / max(1, raw_bytes))
        self.count(0, 1)
        self.count(8, raw_bytes)
        self.count(16, payload_bytes)
        self.count(24, took_ns // 1000)
        self.count(32, payload_bytes == raw_bytes)
        return 0

    cdef int count(self, Py_ssize_t counter, uint64_t amount) except -1:
        cdef char *word = self.memory.at(self.counters_at + counter, 8)
        sp_store64(word, sp_load64(word) + amount)
        return 0

    cpdef learn(self, double ns_per_byte):
        """How long a batch will take: as others did, but one that the system interrupted shall not count for much."""
        cdef double known = self.ns_per_byte if self.ns_per_byte > 0 else ns_per_byte
        self.ns_per_byte = known + (min(ns_per_byte, 2 * known) - known) / LEARNED_FROM

    def publish(self, Task task not None):
        """Give a finished batch to the network process, and what it no longer needs back to everybody.

        Returns:
            Whether as many slabs are free as somebody waits for.
        """
        cdef uint64_t wanted
        self.outputs.cut(task.first_output, task.output_count)
        self.outputs.paint(task.first_output, self.output_ready)
        sp_store32(self.queue.states.word(task.index), self.ready_state)
        self.slabs.paint(task.first_slab, self.slab_free)
        # "There is room", fence, "does anybody wait?": who waits says so, and then looks for room.
        sp_fence()
        wanted = sp_load64(self.memory.at(self.room_wanted_at, 8))
        return wanted != 0 and <uint64_t>self.slabs.free_blocks() >= wanted
