# Records straight from memory that is laid out already, without a Python object for each: the loop, and lines.

cdef enum:
    # Records whose places are found before they are written: few enough to stay in the nearest cache.
    BLOCK_ROWS = 64
    # After so many bytes the interpreter may go to another thread. It is not given away meanwhile: such a run takes
    # less than a millisecond, and to get the interpreter back from a thread that computes takes five.
    RUN_BYTES = 1 << 20
    # To go from a full batch to the next takes as long as to write so much, or longer where somebody is rung.
    TURN_BYTES = 1 << 14
    # So far ahead of what is written the data is called into the cache: reading the next block and writing this one
    # then overlap. 107 -> 75 ns for a line of 200 bytes, 68 -> 62 for a row, with nothing in any cache.
    AHEAD_BYTES = 16384
    # A record's timestamp is the time of its append.
    NOW = -1


cdef class Source:
    """Records of one call, found block by block by ``fill``, and the loop that writes them.

    Not thread-safe: one call, one thread.

    Attributes:
        taken: how many records were appended.
    """

    cdef Bytes keys[BLOCK_ROWS]
    cdef Bytes values[BLOCK_ROWS]
    cdef Headers headers[BLOCK_ROWS]
    cdef int64_t stamps[BLOCK_ROWS]
    cdef Py_ssize_t targets[BLOCK_ROWS]  # the partitions that the keys say
    cdef Py_ssize_t place, filled  # in the block
    cdef bint keyed, headed, stamped
    cdef int64_t timestamp  # of every record, if there is none for each
    cdef readonly Py_ssize_t taken

    cdef Py_ssize_t fill(self) except -1:
        """Find the next records, at most BLOCK_ROWS; how many there are."""
        return 0

    cdef void code_ran(self) noexcept:
        """Somebody's code may have run: what was found in objects is to be found anew."""

    cdef bint ready(self) except -1:
        """Whether there is another record in the block; finds the next block if need be."""
        if self.place == self.filled:
            self.filled = self.fill()
            self.place = 0
        return self.place < self.filled

    cdef void find_targets(self, Py_ssize_t partitions) noexcept:
        """Find the partitions of the block's keys: the processor does several at a time where no write comes between."""
        cdef Py_ssize_t place
        for place in range(self.place, self.filled):
            self.targets[place] = place_of(self.keys[place].data, max(self.keys[place].size, 0), partitions)

    cdef inline void pass_on(self, Py_ssize_t count) noexcept:
        """So many records of the block were appended."""
        self.place += count
        self.taken += count

    def is_done(self):
        """Whether every record was appended."""
        return not self.ready()

    def append(self, RecordWriter writer not None, TopicLanes topic not None, int32_t partition, uint64_t call,
               list touched not None, OpenBatches batches=None):
        """Append records until one finds no room, or for RUN_BYTES.

        Args:
            writer: the record writer.
            topic: where to.
            partition: where every record goes; -1: by its key as Java's default partitioner does, without one to the
                topic's sticky partition.
            call: a number that no other call has.
            touched: gets every batch that this call writes to, with the index of the first record that it wrote there.
            batches: seals what is full and opens what comes next; None: the caller does, where it stopped.

        Returns:
            (why it stopped, the partition it stopped at, whether that is the sticky one).
        """
        cdef Py_ssize_t partitions = len(topic.open)
        cdef Py_ssize_t place, size, written = 0
        cdef Py_ssize_t target = partition
        cdef Bytes no_key
        cdef const Bytes *key = &no_key
        cdef const Headers *headers = NULL
        cdef int64_t now, timestamp
        cdef uint64_t before
        cdef bint sticky = partition < 0
        cdef bint by_key = sticky and self.keyed
        cdef bint alike = not self.keyed and not self.headed and not self.stamped
        cdef OpenBatch batch
        no_key.data = NULL
        no_key.size = -1
        self.code_ran()  # since the last call
        while self.ready():
            # One clock reading serves a block: at 10 M records/s that is 7 microseconds of age.
            now = sp_now_ms() if self.timestamp == NOW else self.timestamp
            if by_key:
                self.find_targets(partitions)
            while self.place < self.filled:
                place = self.place
                if self.keyed:
                    key = &self.keys[place]
                if by_key:
                    sticky = key.size < 0
                    target = topic.sticky if sticky else self.targets[place]
                elif sticky:
                    target = topic.sticky
                if target >= partitions:
                    raise IndexError(f"partition {target} of {partitions}")
                if <object>PyList_GET_ITEM(topic.open, target) is None and (
                        batches is None or not batches.open_next(topic, target)):
                    return STOPPED_NOT_OPEN, target, sticky
                batch = <OpenBatch?><object>PyList_GET_ITEM(topic.open, target)
                if self.headed:
                    headers = &self.headers[place]
                timestamp = now
                if self.stamped and self.stamps[place] != NOW:
                    timestamp = self.stamps[place]
                size = writer.write(batch, key, &self.values[place], headers, timestamp)
                if size == 0 and batches is not None:
                    batches.seal_one(batch)
                    written += TURN_BYTES
                    continue
                if size <= 0:
                    if size == 0:
                        return STOPPED_BATCH_FULL, target, sticky
                    return (STOPPED_NO_SLAB if size == -1 else STOPPED_TOO_LARGE), target, sticky
                self.pass_on(1)
                if batch.last_call != call:
                    batch.last_call = call
                    note_touched(touched, batch)
                    if batches is not None and batch.records == 1:
                        batches.expect_end(batch)
                written += size
                if alike and self.place < self.filled:
                    before = batch.bytes
                    self.pass_on(writer.write_run(batch, &self.values[self.place], self.filled - self.place, now))
                    written += batch.bytes - before
                if written >= RUN_BYTES:
                    return PAUSED, target, sticky
        return ALL_APPENDED, target, sticky


cdef int note_touched(list touched, OpenBatch batch) except -1:
    """The batch, and its last record, without a collection of garbage: what was found in objects is found still."""
    cdef bint collects = PyGC_Disable()
    try:
        touched.append((batch, batch.records - 1))
    finally:
        if collects:
            PyGC_Enable()
    return 0


cdef inline Py_ssize_t place_of(const char *key, Py_ssize_t size, Py_ssize_t partitions) noexcept nogil:
    """The key's partition; 0 where there is none at all, which the loop finds out."""
    if partitions < 1:
        return 0
    return (murmur2_of(<const unsigned char *>key, size) & 0x7FFFFFFF) % <uint32_t>partitions


cdef class LineSource(Source):
    """The lines of a buffer, each a value. Only a newline ends a line; a last line without one counts.

    Args:
        buffer: contiguous bytes. It cannot be resized or closed until ``close``.
        crlf: leave out one carriage return at a line's end.
        timestamp_ms: of every record; None is now.
    """

    cdef Py_buffer view
    cdef bint held, crlf
    cdef const char *start
    cdef const char *cursor
    cdef const char *end

    def __init__(self, buffer, bint crlf, timestamp_ms):
        self.timestamp = NOW if timestamp_ms is None else read_timestamp(timestamp_ms)
        if isinstance(buffer, str):
            raise RecordTypeError("buffer must be bytes, bytearray, memoryview or mmap, not str: encode it first")
        try:
            PyObject_GetBuffer(buffer, &self.view, PyBUF_SIMPLE)
        except TypeError as error:
            raise RecordTypeError(
                f"buffer must be bytes, bytearray, memoryview or mmap, not {type(buffer).__name__}") from error
        except BufferError as error:
            raise RecordTypeError("buffer is a memoryview that is not contiguous: pass bytes(view)") from error
        self.held = True
        self.crlf = crlf
        self.start = <const char *>self.view.buf
        self.cursor = self.start
        self.end = self.start + self.view.len

    def __dealloc__(self):
        self.let_go()

    cdef void let_go(self) noexcept:
        if self.held:
            self.held = False
            self.start = self.cursor = self.end = NULL
            self.place = self.filled
            PyBuffer_Release(&self.view)

    def close(self):
        """Let go of the buffer; there are no more lines then."""
        self.let_go()

    @property
    def offset(self):
        """Where in the buffer the first line begins that was not appended; its length if all were."""
        return (self.values[self.place].data if self.place < self.filled else self.cursor) - self.start

    cdef Py_ssize_t fill(self) except -1:
        cdef Py_ssize_t count = 0
        cdef const char *newline
        cdef const char *line = self.cursor
        while count < BLOCK_ROWS and line < self.end and line - self.cursor < AHEAD_BYTES:
            newline = <const char *>memchr(line, c'\n', self.end - line)
            if newline == NULL:
                newline = self.end
            self.values[count].data = line
            self.values[count].size = newline - line
            if self.crlf and newline > line and newline[-1] == c'\r':
                self.values[count].size -= 1
            sp_prefetch(line + AHEAD_BYTES, min(newline - line, PREFETCH_MAX))
            count += 1
            line = newline + 1 if newline < self.end else self.end
        self.cursor = line
        return count
