# The batches that are open: how they are opened and sealed, and the way of a record that comes alone.

cdef class OpenBatches:
    """Opens and seals one producer's batches. The caller holds the producer's lock.

    Each step is one that no signal handler splits. What they are for are the records whose batch has to be made first:
    with batches of 16 KiB every 80th, and where nothing lingers most. In Python this took more than all the records of
    such a batch; and a process that has slept for a millisecond finds its caches cold, and pays for every frame of Python
    before the ring with latency.

    Args:
        writer, opening, sealing: where batches are written, opened and sealed.
        slab_state, batch_state: what a sealed batch and its slabs become.
        kind: the class of batches.
        batches: by descriptor, the batches in use, or None.
        watch: what handles of its batches wait on.
        promises: whom a new batch need not be rung for; None where the ringer is always to ring.
        ringer: wakes who works on sealed batches.
        alarm: the coordinator's.
        linger_ns: how long a batch stays open.
        nudge_ns: the coordinator looks around so long after a batch was opened, at the latest.
        rng: chooses the next partition for keyless records.

    Attributes:
        lingering: the open batches that wait for the clock, by descriptor, oldest first: all linger equally long.
        held: those that have lingered and stay open.
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
    cdef int64_t linger_ns, nudge_ns
    cdef readonly dict lingering, held

    def __init__(self, RecordWriter writer not None, OpeningPoint opening not None, SealPoint sealing not None,
                 uint32_t slab_state, uint32_t batch_state, kind, list batches not None, watch, Promises promises,
                 Ringer ringer not None, Alarm alarm not None, int64_t linger_ns, int64_t nudge_ns, rng):
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
        self.linger_ns = linger_ns
        self.nudge_ns = nudge_ns
        self.rng = rng
        self.lingering = {}
        self.held = {}

    def open(self, TopicLanes topic not None, Py_ssize_t partition, uint32_t partition_index, int64_t now_ns):
        """Open a batch for a topic-partition that has none; None while no descriptor is free.

        Args:
            topic: the topic.
            partition: its number within the topic.
            partition_index: its entry in the arena's partition table.
            now_ns: the time, CLOCK_MONOTONIC.
        """
        if not 0 <= partition < PyList_GET_SIZE(topic.open):
            raise IndexError(f"partition {partition} of {PyList_GET_SIZE(topic.open)}")
        return self.open_one(topic, partition, partition_index, now_ns)

    def seal(self, OpenBatch batch not None):
        """Close a batch to further records and give it its place in the order; without records it is none any more."""
        self.seal_one(batch)

    def expect_linger(self, int64_t now_ns):
        """Have the coordinator look when the oldest open batch has lingered, and within ``nudge_ns`` in any case."""
        self.set_alarm(now_ns)

    cdef OpenBatch open_one(self, TopicLanes topic, Py_ssize_t partition, uint32_t partition_index, int64_t now_ns):
        cdef OpenBatch batch = self.prepare(topic, partition, now_ns)
        if batch is not None:
            # In the books before it is OPEN: should there be no memory for them, nothing has happened.
            self.lingering[batch.descriptor] = batch
            self.batches[batch.descriptor] = batch
            self.opening.open_for(batch, partition_index)
            topic.open[partition] = batch
        return batch

    cdef bint open_next(self, TopicLanes topic, Py_ssize_t partition) except -1:
        """Whether the partition, which had none, has an open batch now; else the long way knows why."""
        cdef object index = topic.partition_indices.get(partition)
        return index is not None and self.open_one(topic, partition, index, sp_monotonic_ns()) is not None

    cdef OpenBatch prepare(self, TopicLanes topic, Py_ssize_t partition, int64_t now_ns):
        """A batch for a descriptor that is free, in no books yet; None while none is free."""
        cdef Py_ssize_t descriptor = self.opening.find_free()
        cdef OpenBatch batch
        if descriptor < 0:
            return None
        batch = self.make(descriptor, partition, topic, now_ns)
        batch.limit = topic.batch_limit
        return batch

    cdef OpenBatch make(self, Py_ssize_t descriptor, Py_ssize_t partition, TopicLanes topic, int64_t now_ns):
        """A batch, without a collection of garbage: a ``__del__`` might change the user's headers, which are found already.
        """
        cdef bint collects = PyGC_Disable()
        try:
            return self.kind(descriptor, partition, topic, now_ns, self.watch)
        finally:
            if collects:
                PyGC_Enable()

    cdef int seal_one(self, OpenBatch batch) except -1:
        """Publish it, keep the books, ring: what may fail for want of memory or of stack comes first, or last."""
        cdef TopicLanes topic = batch.topic
        if batch.records > 0 and not batch.closed:
            topic.under_way[batch.partition] = topic.under_way.get(batch.partition, 0) + 1
            self.writer.publish(batch, self.slab_state, self.batch_state, self.sealing)
        if topic.open[batch.partition] is batch:
            topic.open[batch.partition] = None
        self.lingering.pop(batch.descriptor, None)
        self.held.pop(batch.descriptor, None)
        if batch.records > 0:
            self.ring()
        elif self.batches[batch.descriptor] is batch:
            self.opening.undo(batch)
            self.batches[batch.descriptor] = None
        if topic.sticky == batch.partition:
            topic.choose_sticky(self.rng)
        return 0

    cdef int ring(self) except -1:
        """Wake who works on sealed batches, unless somebody will look anyway."""
        if self.promises is None or not self.promises.is_new_covered():
            self.ringer.ring_first()
        return 0

    cdef int set_alarm(self, int64_t now_ns) except -1:
        cdef int64_t due = now_ns + self.nudge_ns
        cdef OpenBatch oldest
        for oldest in self.lingering.values():
            due = min(due, oldest.created_ns + self.linger_ns)
            break
        self.alarm.bring_forward(due, True)
        return 0

    cdef void expect_end(self, OpenBatch batch) noexcept:
        """A call goes on behind the batch's first record. Should it be cut short, the coordinator comes, but not at once."""
        cdef int64_t wait = min(self.linger_ns, self.nudge_ns) if self.linger_ns > 0 else self.nudge_ns
        self.alarm.bring_forward(batch.created_ns + wait, True)

    cdef DeliveryHandle append(self, TopicLanes topic, Py_ssize_t partition, const Bytes *value, const Bytes *key,
                               const Headers *headers, int64_t timestamp):
        """Append one record to its partition's open batch, or to one that is opened for it; a full one is sealed.

        Args:
            topic: its topic.
            partition: its partition; -1: the sticky one.
            value, key, headers, timestamp: what it has.

        Returns:
            Its handle; None, with no batch more than before, where it must go the long way.
        """
        cdef Py_ssize_t target, size
        cdef bint is_new
        cdef OpenBatch batch
        while True:
            target = topic.sticky if partition < 0 else partition
            is_new = <object>PyList_GET_ITEM(topic.open, target) is None
            if is_new and self.linger_ns == 0 and not topic.under_way:
                return self.append_alone(topic, target, value, key, headers, timestamp)
            if is_new and not self.open_next(topic, target):
                return None
            batch = topic.open[target]
            size = self.writer.write(batch, key, value, headers, timestamp)
            if size > 0:
                if is_new:
                    self.set_alarm(batch.created_ns)
                return handle_of(batch)
            if is_new or size == 0:
                self.seal_one(batch)
            if is_new or size < 0:
                return None

    cdef DeliveryHandle append_alone(self, TopicLanes topic, Py_ssize_t partition, const Bytes *value, const Bytes *key,
                                     const Headers *headers, int64_t timestamp):
        """The way of a record that nothing is to wait for: from the opening of its batch to the ring.

        With a batch of its topic on the way it would wait for that one's acknowledgement, with those that come meanwhile.
        """
        cdef object index = topic.partition_indices.get(partition)
        cdef OpenBatch batch = None
        if index is not None:
            batch = self.prepare(topic, partition, sp_monotonic_ns())
        if batch is None:
            return None
        topic.under_way[partition] = 1  # first, for it may find no memory
        self.opening.open_for(batch, index)
        if not self.write_first(batch, value, key, headers, timestamp):
            del topic.under_way[partition]
            return None  # the long way says why
        self.batches[batch.descriptor] = batch
        self.writer.publish(batch, self.slab_state, self.batch_state, self.sealing)
        self.ring()
        # The rest comes after the ring: nobody looks at it before the lock is given back.
        self.alarm.bring_forward(batch.created_ns + self.nudge_ns, True)
        if topic.sticky == partition:
            topic.choose_sticky(self.rng)
        return handle_of(batch)

    cdef bint write_first(self, OpenBatch batch, const Bytes *value, const Bytes *key, const Headers *headers,
                          int64_t timestamp) except -1:
        """Whether the batch, which is in no books, has the record; if not, it is none any more."""
        cdef bint written = False
        try:
            written = self.writer.write(batch, key, value, headers, timestamp) > 0
        finally:
            if not written:
                self.opening.undo(batch)
        return written
