# Results that have come in, as the job takes them.

cdef class Arrivals:
    """Takes the batches that are DONE. The caller holds the producer's lock, and is the only one who does so.

    Args:
        memory: the mapping.
        states, done_state, reporting_state: the batches' state words, and what they become when their result is taken.
        ring, tail_at: the seal ring, and the u64 that counts seals.
        descriptors, descriptor_bytes, result_at: the descriptor table, and the offset in it of the group of fields that
            begins with the result's code (shm/layout.py).
        delivered: the code of what was delivered.
        batches: by descriptor, the batches in use, or None.
        batch_bytes: the most that a batch may hold.
    """

    cdef Memory memory
    cdef Words states, ring
    cdef uint32_t done_state, reporting_state
    cdef Py_ssize_t tail_at, descriptors, descriptor_bytes, result_at
    cdef int32_t delivered
    cdef int64_t batch_bytes
    cdef list batches
    cdef uint64_t taken  # how many of the batches that were ever sealed

    def __init__(self, Memory memory not None, Words states not None, uint32_t done_state, uint32_t reporting_state,
                 Words ring not None, Py_ssize_t tail_at, Py_ssize_t descriptors, Py_ssize_t descriptor_bytes,
                 Py_ssize_t result_at, int32_t delivered, list batches not None, int64_t batch_bytes):
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
        self.taken = 0

    def take_all(self):
        """The descriptors of all batches that are DONE; they are REPORTING now."""
        found = self.states.replace_all(self.done_state, self.reporting_state)
        self.taken += <uint64_t>len(found)
        return found

    def take_lone(self):
        """The batch that came alone: no other is on the way, it was delivered, and nothing else is to be said of it.

        It is REPORTING, and on the way no more. ``take_all`` finds such a batch as well: this is the same for one, without
        a look at 2,000 words, and without a dozen frames of Python between the result and the callback.

        Returns:
            The batch, its base offset and its append time; None, with nothing changed, for whatever is not so.
        """
        cdef uint64_t tail = sp_load64(self.memory.at(self.tail_at, 8))
        cdef Py_ssize_t descriptor
        cdef char *result
        cdef OpenBatch batch
        cdef TopicLanes topic
        if tail - self.taken != 1:
            return None
        # The only one without a result that was taken: if the one that was sealed last has one to take, it is that.
        descriptor = sp_load32(self.ring.word(<Py_ssize_t>((tail - 1) % <uint64_t>self.ring.count)))
        if sp_load32(self.states.word(descriptor)) != self.done_state or self.batches[descriptor] is None:
            return None
        batch = self.batches[descriptor]
        topic = batch.topic
        result = self.memory.at(self.descriptors + descriptor * self.descriptor_bytes + self.result_at, 32)
        if (batch.outcome is not None or batch.pieces is not None or (<int32_t *>result)[0] != self.delivered
                or topic.batch_limit < self.batch_bytes):
            return None
        found = batch, (<int64_t *>(result + 16))[0], (<int64_t *>(result + 24))[0]
        topic.under_way.pop(batch.partition, None)
        self.taken += 1
        sp_store32(self.states.word(descriptor), self.reporting_state)
        return found
