# Writing Kafka v2 records into the slabs of open batches.

cdef enum:
    # A record with no more headers than this needs no memory for them while it is sent.
    HEADERS_AT_HAND = 16


cdef class RecordWriter:
    """Writes Kafka v2 records (KIP-98) straight into the slabs of open batches.

    Not thread-safe: the caller holds the producer's lock, and is the only claimer of slabs.

    Args:
        memory: the mapping.
        slabs: the slab table.
        shares: who holds how many of them.
        open_state: state word of a slab in an open batch.
        descriptors: offset of the descriptor table.
        descriptor_bytes: size of one descriptor.
        commit_at, base_timestamp_at, max_timestamp_at, first_slab_at, slab_count_at: field offsets within a
            descriptor. ``commit`` is bytes << 32 | records, stored last: it is the batch's last complete
            record, whatever kills the writer.
        batch_bytes: a batch with records in it is full when the next would take it past this.
        largest_record_bytes: an encoded record above this fits nowhere (law 12).

    Attributes:
        reserve: slabs that must stay free: those that threads ahead in line wait for.
        wanted: how many slabs the last record that needed any wanted.
        held_back: the partition (its index) of the last record that needed a slab, if it got none because its
            leader's batches hold their share; -1 if not.
    """

    cdef Memory memory
    cdef Blocks slabs
    cdef Shares shares
    cdef uint32_t open_state
    cdef Py_ssize_t descriptors, descriptor_bytes
    cdef Py_ssize_t commit_at, base_timestamp_at, max_timestamp_at, first_slab_at, slab_count_at
    cdef readonly uint64_t batch_bytes
    cdef readonly uint64_t largest_record_bytes
    cdef readonly uint64_t too_large_bytes
    cdef public Py_ssize_t reserve
    cdef public Py_ssize_t wanted
    cdef public Py_ssize_t held_back

    def __init__(self, Memory memory, Blocks slabs, Shares shares not None, uint32_t open_state, Py_ssize_t descriptors,
                 Py_ssize_t descriptor_bytes, Py_ssize_t commit_at, Py_ssize_t base_timestamp_at,
                 Py_ssize_t max_timestamp_at, Py_ssize_t first_slab_at, Py_ssize_t slab_count_at,
                 uint64_t batch_bytes, uint64_t largest_record_bytes):
        self.memory = memory
        self.slabs = slabs
        self.shares = shares
        self.open_state = open_state
        self.descriptors = descriptors
        self.descriptor_bytes = descriptor_bytes
        self.commit_at = commit_at
        self.base_timestamp_at = base_timestamp_at
        self.max_timestamp_at = max_timestamp_at
        self.first_slab_at = first_slab_at
        self.slab_count_at = slab_count_at
        self.batch_bytes = batch_bytes
        self.largest_record_bytes = largest_record_bytes
        self.too_large_bytes = 0
        self.reserve = 0
        self.wanted = 0
        self.held_back = -1

    def append(self, OpenBatch batch not None, key, value, headers, timestamp_ms):
        """Append one record to ``batch``.

        Args:
            batch: an open batch.
            key, value: bytes, bytearray, memoryview, str (UTF-8) or None (null).
            headers: None or a sequence of (name, value) pairs; a header's value may be None.
            timestamp_ms: milliseconds since the epoch, or None for now.

        Returns:
            The encoded size in bytes; or BATCH_FULL or NO_SLAB, with nothing changed.

        Raises:
            RecordTypeError: a part is of a type that is not accepted.
            RecordValueError: the timestamp is negative or too large.
            OverflowError: the record is larger than ``largest_record_bytes``; ``too_large_bytes`` says its size.
        """
        cdef Bytes room[2 * HEADERS_AT_HAND]
        cdef Headers found
        cdef int64_t timestamp = read_timestamp(timestamp_ms)
        cdef Py_ssize_t size
        kept = None
        if headers is not None:
            kept = read_headers(headers, &found, room, 2 * HEADERS_AT_HAND)
        size = self.encode(batch, key, value, NULL if headers is None else &found, timestamp)
        if size == -2:
            raise OverflowError(self.too_large_bytes)
        return size

    cdef int publish(self, OpenBatch batch, uint32_t slab_state, uint32_t batch_state, SealPoint point) except -1:
        """Close a batch that has records to more of them and publish it; it gets its seal number, from 1.

        Args:
            batch: a batch with records that is not closed.
            slab_state, batch_state: what its slabs and the batch become.
            point: where the order of seals is kept.

        The order of the stores: what is sent (direct arena), seal number, slabs, ring, state, tail, counters. Tests die
        between them (tests/shm/kit.py, ``publish_seal``).
        """
        cdef uint64_t tail
        tail = sp_load64(point.memory.at(point.tail_at, 8))
        batch.closed = True
        batch.seal_number = tail + 1
        if point.output_at >= 0:
            point.say_output(batch)
        sp_store64(batch.fields + point.seal_number_at, tail + 1)
        self.slabs.paint(batch.first_slab, slab_state)
        sp_store32(point.ring.word(tail % <uint64_t>point.ring.count), <uint32_t>batch.descriptor)
        sp_store32(point.states.word(batch.descriptor), batch_state)
        sp_store64(point.memory.at(point.tail_at, 8), tail + 1)
        point.count(batch)
        return 0

    cdef Py_ssize_t encode(self, OpenBatch batch, object key, object value, const Headers *headers,
                           int64_t timestamp) except -3:
        """Encode one record of objects at the batch's cursor; see ``write``."""
        cdef Piece key_piece, value_piece
        cdef Bytes key_bytes, value_bytes
        key_piece.held = False
        value_piece.held = False
        try:
            grab(key, &key_piece, "key")
            grab(value, &value_piece, "value")
            key_bytes.data, key_bytes.size = key_piece.data, key_piece.size
            value_bytes.data, value_bytes.size = value_piece.data, value_piece.size
            return self.write(batch, &key_bytes, &value_bytes, headers, timestamp)
        finally:
            let_go(&key_piece)
            let_go(&value_piece)

    @cython.final
    cdef Py_ssize_t write(self, OpenBatch batch, const Bytes *key, const Bytes *value, const Headers *headers,
                          int64_t timestamp) except -3:
        """Write one record at the batch's cursor: its size, or 0 full, -1 no slab, -2 too large.

        It runs nobody's code: what is found in objects stays where it is. Without headers ``headers`` may be NULL.
        """
        cdef int64_t delta = 0
        cdef uint64_t body, total
        cdef char *end
        cdef const char *ahead
        if self.memory.base == NULL:
            raise ValueError("the arena was released")  # the cursor would point nowhere
        if batch.closed:
            return 0
        if batch.fields == NULL:
            batch.fields = self.memory.at(
                self.descriptors + <Py_ssize_t>batch.descriptor * self.descriptor_bytes, self.descriptor_bytes)
        if batch.records > 0:
            delta = timestamp - batch.base_timestamp
        body = (1 + size_of(delta) + size_of(batch.records) + size_of(key.size) + max(key.size, 0)
                + size_of(value.size) + max(value.size, 0))
        body += 1 if headers == NULL else size_of(headers.count) + headers.bytes
        total = size_of(<int64_t>body) + body
        if total > self.largest_record_bytes:
            self.too_large_bytes = total
            return -2
        if batch.records > 0 and batch.bytes + total > min(self.batch_bytes, batch.limit):
            return 0
        if <Py_ssize_t>total > batch.room and not self.extend(batch, <Py_ssize_t>total):
            return -1

        if <Py_ssize_t>total <= batch.room:
            # Nearly every record: within one slab, at the cursor, with nothing that can fail.
            end = write_head(batch.position, body, delta, batch.records)
            end = write_bytes(end, key)
            end = write_bytes(end, value)
            if headers == NULL:
                end[0] = 0
            else:
                write_headers(end, headers)
            batch.position += total
            batch.room -= total
            if batch.room > WRITE_AHEAD_BYTES:  # beyond is somebody else's slab
                ahead = batch.position + WRITE_AHEAD_BYTES
                sp_prefetch_to_write(ahead, ahead + min(<int64_t>total, PREFETCH_MAX))
        else:
            self.put_record(batch, body, delta, key, value, headers)
        self.commit(batch, timestamp, 1, total)
        return <Py_ssize_t>total

    @cython.final
    cdef Py_ssize_t write_run(self, OpenBatch batch, const Bytes *values, Py_ssize_t count,
                              int64_t timestamp) noexcept:
        """Write values behind a record of the same time that was just written, as records without key and headers.

        They are committed together: whoever looks finds whole records, and no call has returned that promised more.

        Returns:
            How many: the first that might end in another slab, not fit into the batch or be too large is left to
            ``write``, which decides.
        """
        cdef Run run
        cdef uint64_t full = min(self.batch_bytes, batch.limit)
        if batch.bytes >= full or self.largest_record_bytes < BESIDE_VALUE:
            return 0
        run.cursor = batch.position
        run.end = run.cursor + min(<uint64_t>batch.room, full - batch.bytes)
        run.longest = min(<uint64_t>RUN_VALUE_BYTES, self.largest_record_bytes - BESIDE_VALUE)
        run.delta = timestamp - batch.base_timestamp
        run.offset = batch.records
        count = write_values(&run, values, count)
        batch.room -= run.cursor - batch.position
        self.commit(batch, timestamp, <uint32_t>count, run.cursor - batch.position)
        batch.position = run.cursor
        return count

    cdef int put_record(self, OpenBatch batch, uint64_t body, int64_t delta, const Bytes *key, const Bytes *value,
                        const Headers *headers) except -1:
        """Write a record that goes on in the next slab."""
        cdef char small[48]
        cdef Py_ssize_t place, count = 0 if headers == NULL else headers.count
        self.put(batch, small, write_head(small, body, delta, batch.records) - small)
        self.put_bytes(batch, key)
        self.put_bytes(batch, value)
        self.put(batch, small, write_varint(small, count) - small)
        for place in range(2 * count):
            self.put_bytes(batch, &headers.parts[place])
        return 0

    cdef int put_bytes(self, OpenBatch batch, const Bytes *part) except -1:
        cdef char small[16]
        self.put(batch, small, write_varint(small, part.size) - small)
        return self.put(batch, part.data, part.size)

    cdef bint extend(self, OpenBatch batch, Py_ssize_t total) except -1:
        """Chain enough slabs to hold ``total`` more bytes; False, with nothing changed, if there are none for it."""
        cdef Py_ssize_t block = self.slabs.block_bytes
        cdef Py_ssize_t wanted = (total - batch.room + block - 1) // block
        cdef uint32_t first
        cdef uint32_t *nexts
        cdef char *data
        self.wanted = wanted
        self.held_back = -1
        if self.shares.is_over(self.shares.leader_of(batch.fields)):
            self.held_back = <Py_ssize_t>(<uint32_t *>(batch.fields + self.shares.partition_at))[0]
            return False
        if self.reserve > 0 and self.slabs.free_blocks() < wanted + self.reserve:
            return False
        first = self.slabs.take(wanted, self.open_state)
        if first == C_NONE:
            return False
        data = self.memory.at(self.slabs.data + <Py_ssize_t>first * block, block)
        sp_prefetch_to_write(data, data + min(<int64_t>block, WRITE_AHEAD_BYTES))
        nexts = <uint32_t *>self.memory.at(self.slabs.nexts, 4 * self.slabs.count)
        if batch.first_slab == C_NONE:
            batch.first_slab = first
            batch.last_slab = first
            batch.position = data
            batch.room = block
            sp_store32(batch.fields + self.first_slab_at, first)
        else:
            nexts[batch.last_slab] = first
        batch.slabs += <uint32_t>wanted
        sp_store32(batch.fields + self.slab_count_at, batch.slabs)
        return True

    cdef int put(self, OpenBatch batch, const char *data, Py_ssize_t size) except -1:
        """Copy bytes to the cursor, on to the chain's next slab where one ends. ``extend`` made the room."""
        cdef Py_ssize_t part, block = self.slabs.block_bytes
        cdef uint32_t *nexts
        if 0 < size <= batch.room:
            memcpy(batch.position, data, size)
            batch.position += size
            batch.room -= size
            return 0
        while size > 0:
            if batch.room == 0:
                nexts = <uint32_t *>self.memory.at(self.slabs.nexts, 4 * self.slabs.count)
                batch.last_slab = nexts[batch.last_slab]
                batch.position = self.memory.at(self.slabs.data + <Py_ssize_t>batch.last_slab * block, block)
                batch.room = block
            part = min(size, batch.room)
            memcpy(batch.position, data, part)
            batch.position += part
            batch.room -= part
            data += part
            size -= part
        return 0

    cdef void commit(self, OpenBatch batch, int64_t timestamp, uint32_t records, uint64_t total) noexcept:
        """Make the records that were just written part of the batch: one release store."""
        if batch.records == 0:
            batch.base_timestamp = timestamp
            batch.max_timestamp = timestamp
            sp_store64(batch.fields + self.base_timestamp_at, <uint64_t>timestamp)
            sp_store64(batch.fields + self.max_timestamp_at, <uint64_t>timestamp)
        elif timestamp > batch.max_timestamp:
            batch.max_timestamp = timestamp
            sp_store64(batch.fields + self.max_timestamp_at, <uint64_t>timestamp)
        batch.records += records
        batch.bytes += total
        sp_store64(batch.fields + self.commit_at, (batch.bytes << 32) | batch.records)
