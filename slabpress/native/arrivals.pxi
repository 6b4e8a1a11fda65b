# Results that have come in, as the job takes them.

cdef class Arrivals:
    """Takes the batches that are DONE; nobody else does. The caller holds the producer's lock, but for ``take_lone``.

    Args:
        memory: the mapping.
        states, done_state, reporting_state: the batches' state words, and what they become when their result is taken.
        ring, tail_at: the seal ring, and the u64 that counts seals.
        descriptors, descriptor_bytes, result_at: the descriptor table, and the offset in it of the group of fields that
            begins with the result's code (shm/layout.py).
        delivered: the code of what was delivered.
        batches: by descriptor, the batches in use, or None.
        batch_bytes: the most that a batch may hold.
        held: the batches that have lingered and stay open until one before them is taken.
        watch: who waits for results.
        outcome: the class of what became of a batch, a tuple of error, base offset and append time.
    """

    cdef Memory memory
    cdef Words states, ring
    cdef uint32_t done_state, reporting_state
    cdef Py_ssize_t tail_at, descriptors, descriptor_bytes, result_at
    cdef int32_t delivered
    cdef int64_t batch_bytes
    cdef list batches
    cdef dict held
    cdef Waiters watch
    cdef object outcome
    cdef uint64_t taken  # how many of the batches that were ever sealed

    def __init__(self, Memory memory not None, Words states not None, uint32_t done_state, uint32_t reporting_state,
                 Words ring not None, Py_ssize_t tail_at, Py_ssize_t descriptors, Py_ssize_t descriptor_bytes,
                 Py_ssize_t result_at, int32_t delivered, list batches not None, int64_t batch_bytes,
                 dict held not None, Waiters watch not None, outcome not None):
        memory.at(descriptors, states.count * descriptor_bytes)
        memory.at(tail_at, 8)
        if len(batches) != states.count:
            raise ValueError(f"{len(batches)} batches for {states.count} descriptors")
        self.memory = memory
        self.states = states
        self.done_state = done_state
        self.reporting_state = reporting_state
        self.ring = ring
        self.tail_at = tail_at
        self.descriptors = descriptors
        self.descriptor_bytes = descriptor_bytes
        self.result_at = result_at
        self.delivered = delivered
        self.batches = batches
        self.batch_bytes = batch_bytes
        self.held = held
        self.watch = watch
        self.outcome = outcome
        self.taken = 0

    def any(self):
        """Whether any batch is DONE: the one that was sealed last is looked at first."""
        cdef uint64_t tail = sp_load64(self.memory.at(self.tail_at, 8))
        return tail != 0 and self.is_done(self.sealed_at(tail)) or self.states.has(self.done_state)

    def take_all(self):
        """The descriptors of all batches that are DONE; they are REPORTING now."""
        found = self.states.replace_all(self.done_state, self.reporting_state)
        self.taken += <uint64_t>len(found)
        return found

    def take_lone(self, Mutex taking not None, Mutex lock not None, turns, queue):
        """Take in what became of a batch that came alone: no other is on the way, it was delivered, nobody waits for room.

        It is what ``Intake.take`` does for it step by step, in one step, without a look at 2,000 words, and without a dozen
        frames of Python between a result and its callback: a process that has slept for a millisecond finds its caches
        cold. Its batch is resolved and queued with the interpreter's lock in hand, so nobody sees one without the other.

        Args:
            taking, lock: what ``Intake.take`` holds; where others do, they are not waited for.
            turns: who waits for room.
            queue: the batch is put at its end.

        Returns:
            Whether there was one; nothing is changed for whatever is not so.
        """
        cdef bint found = False
        if turns or self.held or self.memory.base == NULL or not taking.try_lock():
            return False
        try:
            if lock.try_lock():
                try:
                    found = self.take_in(queue)
                finally:
                    lock.unlock()
        finally:
            taking.unlock()
        if found and self.watch.waiting > 0:
            self.watch.tell_all()
        return found

    cdef bint take_in(self, queue) except -1:
        cdef uint64_t tail = sp_load64(self.memory.at(self.tail_at, 8))
        cdef Py_ssize_t descriptor
        cdef char *result
        cdef OpenBatch batch
        cdef TopicLanes topic
        if tail - self.taken != 1:
            return False
        # The only one without a result that was taken: if the one that was sealed last has one to take, it is that.
        descriptor = self.sealed_at(tail)
        if not self.is_done(descriptor) or self.batches[descriptor] is None:
            return False
        batch = self.batches[descriptor]
        topic = batch.topic
        result = self.memory.at(self.descriptors + descriptor * self.descriptor_bytes + self.result_at, 32)
        if (batch.outcome is not None or batch.pieces is not None or (<int32_t *>result)[0] != self.delivered
                or topic.batch_limit < self.batch_bytes):
            return False
        outcome = tuple.__new__(self.outcome, (None, (<int64_t *>(result + 16))[0], (<int64_t *>(result + 24))[0]))
        topic.under_way.pop(batch.partition, None)
        self.taken += 1
        sp_store32(self.states.word(descriptor), self.reporting_state)
        batch.outcome = outcome
        self.watch.delivered += batch.records
        queue.append(batch)
        return True

    cdef Py_ssize_t sealed_at(self, uint64_t tail) except -1:
        """The descriptor of the batch that was sealed last."""
        return sp_load32(self.ring.word(<Py_ssize_t>((tail - 1) % <uint64_t>self.ring.count)))

    cdef bint is_done(self, Py_ssize_t descriptor) except -1:
        return sp_load32(self.states.word(descriptor)) == self.done_state
