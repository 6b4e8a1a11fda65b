# The way of a record that comes alone.

cdef class LoneLane:
    """The way of a record that nothing is to wait for, without a linger: from the opening of its batch to the ring.

    It is what pipeline/ does for it step by step (``Sender.try_append``, ``Accumulator.seal``), in one step that no
    signal handler splits. What is cold counts here: a process that has slept for a millisecond finds its caches so, and
    pays for every frame of Python before the ring with latency.

    Args:
        writer, opening, sealing: where batches are written, opened and sealed.
        slab_state, batch_state: what a sealed batch and its slabs become.
        kind: the class of batches.
        batches: by descriptor, the batches in use, or None.
        watch: what handles of its batches wait on.
        promises: whom a new batch need not be rung for; None where the ringer is always to ring.
        ringer: wakes who works on sealed batches.
        alarm, nudge_ns: the coordinator's; it looks around so long after a batch was opened, at the latest.
        rng: chooses the next partition for keyless records.
    """

    cdef RecordWriter writer
    cdef OpeningPoint opening
    cdef SealPoint sealing
    cdef uint32_t slab_state, batch_state
    cdef object kind, watch, rng
    cdef list batches
    cdef Promises promises
    cdef Ringer ringer
    cdef Alarm alarm
    cdef int64_t nudge_ns

    def __init__(self, RecordWriter writer not None, OpeningPoint opening not None, SealPoint sealing not None,
                 uint32_t slab_state, uint32_t batch_state, kind, list batches not None, watch, Promises promises,
                 Ringer ringer not None, Alarm alarm not None, int64_t nudge_ns, rng):
        self.writer = writer
        self.opening = opening
        self.sealing = sealing
        self.slab_state = slab_state
        self.batch_state = batch_state
        self.kind = kind
        self.batches = batches
        self.watch = watch
        self.promises = promises
        self.ringer = ringer
        self.alarm = alarm
        self.nudge_ns = nudge_ns
        self.rng = rng

    cdef DeliveryHandle append(self, TopicLanes topic, Py_ssize_t partition, const Bytes *value, const Bytes *key,
                               const Headers *headers, int64_t timestamp):
        """Send one record on its way in a batch of its own; None, with nothing changed, where it must go the long way.

        The caller holds the producer's lock, and the partition has no open batch.
        """
        cdef int64_t now_ns
        cdef Py_ssize_t descriptor
        cdef OpenBatch batch
        cdef object index = topic.partition_indices.get(partition)
        # With a batch of its topic on the way it waits for that one's acknowledgement, with those that come meanwhile.
        if index is None or topic.under_way:
            return None
        descriptor = self.opening.find_free()
        if descriptor < 0:
            return None
        now_ns = sp_monotonic_ns()
        batch = self.make(descriptor, partition, topic, now_ns)
        batch.limit = topic.batch_limit
        self.opening.open_for(batch, index)
        if not self.write(batch, value, key, headers, timestamp):
            return None  # the long way says why
        self.batches[descriptor] = batch
        self.writer.publish(batch, self.slab_state, self.batch_state, self.sealing)
        if self.promises is None or not self.promises.is_new_covered():
            self.ringer.ring_first()
        # The rest of the books comes after the ring: nobody looks at them before the lock is given back.
        topic.under_way[partition] = 1
        if topic.sticky == partition:
            topic.choose_sticky(self.rng)
        self.alarm.bring_forward(now_ns + self.nudge_ns, True)
        return handle_of(batch)

    cdef bint write(self, OpenBatch batch, const Bytes *value, const Bytes *key, const Headers *headers,
                    int64_t timestamp) except -1:
        """Whether the batch has the record; if not, it is none any more."""
        cdef bint written = False
        try:
            written = self.writer.write(batch, key, value, headers, timestamp) > 0
        finally:
            if not written:
                self.opening.undo(batch)
        return written

    cdef OpenBatch make(self, Py_ssize_t descriptor, Py_ssize_t partition, TopicLanes topic, int64_t now_ns):
        """A batch, without a collection of garbage: a ``__del__`` might change the user's headers, which are found already.
        """
        cdef bint collects = PyGC_Disable()
        try:
            return self.kind(descriptor, partition, topic, now_ns, self.watch)
        finally:
            if collects:
                PyGC_Enable()
