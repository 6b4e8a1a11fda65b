# Results that have come in, as the job takes them.

cdef enum:
    # A topic's batches that had to be made smaller grow by this share with each that is accepted.
    GROWTH = 64


cdef class Arrivals:
    """Takes in what became of batches; nobody else does. The caller holds the producer's lock, but for ``take_lone``.

    Batches that were simply delivered are settled here, each in one step: its outcome is set, and its callbacks are
    queued, or without any its descriptor is free. The interpreter is in hand meanwhile, so that nobody sees the one
    without the other. In Python, with a dozen frames for each, this took 5 us of a batch, and most of the
    latency of a record that came alone. Of which more is to be said, the long way says it (pipeline/intake.py).

    Args:
        memory: the mapping.
        states: the batches' state words.
        done_state, reporting_state, free_state: of a batch that has a result, that is being told of, and of none.
        ring, tail_at: the seal ring, and the u64 that counts seals.
        descriptors, descriptor_bytes, result_at: the descriptor table, and the offset in it of the group of fields that
            begins with the result's code (shm/layout.py).
        delivered: the code of what was delivered.
        open_batches: those that are still open, and by descriptor all that are in use.
        watch: who waits for results.
        outcome: the class of what became of a batch, a tuple of error, base offset and append time.
    """

    cdef Memory memory
    cdef Words states, ring
    cdef uint32_t done_state, reporting_state, free_state
    cdef Py_ssize_t tail_at, descriptors, descriptor_bytes, result_at
    cdef int32_t delivered
    cdef int64_t batch_bytes
    cdef OpenBatches open_batches
    cdef list batches
    cdef Waiters watch
    cdef object outcome
    cdef uint64_t taken  # how many of the batches that were ever sealed

    def __init__(self, Memory memory not None, Words states not None, uint32_t done_state, uint32_t reporting_state,
                 uint32_t free_state, Words ring not None, Py_ssize_t tail_at, Py_ssize_t descriptors,
                 Py_ssize_t descriptor_bytes, Py_ssize_t result_at, int32_t delivered,
                 OpenBatches open_batches not None, Waiters watch not None, outcome not None):
        memory.at(descriptors, states.count * descriptor_bytes)
        memory.at(tail_at, 8)
        if len(open_batches.batches) != states.count:
            raise ValueError(f"{len(open_batches.batches)} batches for {states.count} descriptors")
        self.memory = memory
        self.states = states
        self.done_state = done_state
        self.reporting_state = reporting_state
        self.free_state = free_state
        self.ring = ring
        self.tail_at = tail_at
        self.descriptors = descriptors
        self.descriptor_bytes = descriptor_bytes
        self.result_at = result_at
        self.delivered = delivered
        self.batch_bytes = <int64_t>open_batches.writer.batch_bytes
        self.open_batches = open_batches
        self.batches = open_batches.batches
        self.watch = watch
        self.outcome = outcome
        self.taken = 0

    def any(self):
        """Whether any batch is DONE: the one that was sealed last is looked at first."""
        cdef uint64_t tail = sp_load64(self.memory.at(self.tail_at, 8))
        return tail != 0 and self.is_done(self.sealed_at(tail)) or self.states.has(self.done_state)

    def take_all(self):
        """The descriptors of all batches that are DONE; they are REPORTING now."""
        found = self.find_done()
        for descriptor in found:
            sp_store32(self.states.word(descriptor), self.reporting_state)
        self.taken += <uint64_t>len(found)
        return found

    def settle(self, queue not None, bint calls_all):
        """Settle all batches that are DONE, in the order in which they were sealed, up to one of which more is to be said.

        Args:
            queue: those with callbacks are put at its end.
            calls_all: every record has a callback.

        Returns:
            (how many were settled, how many are DONE still).
        """
        cdef Py_ssize_t settled = 0
        cdef list order = self.find_done()
        if len(order) > 1:  # callbacks of a topic-partition run in its order
            order.sort(key=self.seal_number_of)
        for descriptor in order:
            if not self.settle_one(descriptor, queue, calls_all):
                break
            settled += 1
        return settled, len(order) - settled

    def seal_number_of(self, Py_ssize_t descriptor):
        """The place in the order of the batch of a descriptor; 0 where there is none."""
        batch = self.batches[descriptor]
        return 0 if batch is None else (<OpenBatch>batch).seal_number

    def take_lone(self, Mutex taking not None, Mutex lock not None, turns, queue not None, bint calls_all):
        """Settle a batch that came alone: no other is on the way, and nobody waits for room.

        A process that has slept for a millisecond finds its caches cold: it does without a look at 2,000 words, and
        without a frame of Python between a result and its callback.

        Args:
            taking, lock: what ``Intake.take`` holds; where others do, they are not waited for.
            turns: who waits for room.
            queue, calls_all: see ``settle``.

        Returns:
            Whether there was one; nothing is changed for whatever is not so.
        """
        cdef bint found = False
        if turns or self.memory.base == NULL or not taking.try_lock():
            return False
        try:
            if lock.try_lock():
                try:
                    found = self.settle_lone(queue, calls_all)
                finally:
                    lock.unlock()
        finally:
            taking.unlock()
        if found and self.watch.waiting > 0:
            self.watch.tell_all()
        return found

    cdef bint settle_lone(self, queue, bint calls_all) except -1:
        cdef uint64_t tail = sp_load64(self.memory.at(self.tail_at, 8))
        cdef Py_ssize_t descriptor
        if tail - self.taken != 1:
            return False
        # The only one without a result that was taken: if the one that was sealed last has one to take, it is that.
        descriptor = self.sealed_at(tail)
        return self.is_done(descriptor) and self.settle_one(descriptor, queue, calls_all)

    cdef bint settle_one(self, Py_ssize_t descriptor, queue, bint calls_all) except -1:
        """Settle a batch that is DONE; False, with nothing changed, if more is to be said of it."""
        cdef char *state = self.states.word(descriptor)
        cdef char *result = self.memory.at(self.descriptors + descriptor * self.descriptor_bytes + self.result_at, 32)
        cdef OpenBatch batch = self.batches[descriptor]
        cdef bint called
        if (batch is None or batch.outcome is not None or batch.pieces is not None
                or (<int32_t *>result)[0] != self.delivered):
            return False
        # Nothing is allocated that may be collected but this: Python 3.11 collects then, and runs anybody's __del__.
        outcome = tuple.__new__(self.outcome, (None, (<int64_t *>(result + 16))[0], (<int64_t *>(result + 24))[0]))
        called = calls_all or PyList_GET_SIZE(batch.callbacks) > 0
        if called:
            queue.append(batch)  # first, for it may find no memory
        self.taken += 1
        self.watch.delivered += batch.records
        batch.outcome = outcome
        if called:
            sp_store32(state, self.reporting_state)
        else:
            batch.finished = True
            self.batches[descriptor] = None
            sp_store32(state, self.free_state)
        self.make_way(batch)
        return True

    cpdef int make_way(self, OpenBatch done) except -1:
        """One batch fewer is on its way: its topic's may grow, and what was held behind it is sealed."""
        cdef TopicLanes topic = done.topic
        cdef OpenBatch waiting
        cdef int64_t left
        if topic.batch_limit < self.batch_bytes and done.pieces is None:
            topic.batch_limit += 1 + topic.batch_limit // GROWTH
        left = topic.count_under_way(done.partition) - 1
        if left > 0:
            topic.under_way[done.partition] = left
        else:
            topic.under_way.pop(done.partition, None)
        waiting = topic.open[done.partition]
        if waiting is not None and waiting.descriptor in self.open_batches.held:
            self.open_batches.seal_one(waiting)
        return 0

    cdef list find_done(self):
        """The descriptors of all batches that are DONE, and of none without those before it in its topic-partition.

        A batch may become DONE where the search has been, and one behind it where it has not. Once a second search finds
        no more than the first, it has seen all that were DONE before any of them.
        """
        cdef list found = self.states.find_all(self.done_state)
        cdef Py_ssize_t count = 0
        while len(found) > count:
            count = len(found)
            found = self.states.find_all(self.done_state)
        return found

    cdef Py_ssize_t sealed_at(self, uint64_t tail) except -1:
        """The descriptor of the batch that was sealed last."""
        return sp_load32(self.ring.word(<Py_ssize_t>((tail - 1) % <uint64_t>self.ring.count)))

    cdef bint is_done(self, Py_ssize_t descriptor) except -1:
        return sp_load32(self.states.word(descriptor)) == self.done_state
