# Rows of Arrow data, by the PyCapsule interface: no Arrow library is needed.

cdef class ArrowSource(Source):
    """The rows of an Arrow array or stream, chunk by chunk. Every struct that it is given is released once.

    Args:
        data: an object with ``__arrow_c_array__`` or ``__arrow_c_stream__``.
        timestamp_ms: of every record, if no column has it; None is now.
        in_memory: the stream neither reads, computes nor waits: the interpreter is kept while it is asked. Given away
            for the microsecond that a table takes, it wakes a thread that waits for it and finds it taken again.

    Attributes:
        is_struct: whether the rows have columns; else they are the column.
        fields: name, format, and whether it is encoded by a dictionary, of every column, or of the one.
    """

    cdef ArrowSchema schema
    cdef ArrowArray chunk
    cdef ArrowArrayStream stream
    cdef Column value, key, stamp
    cdef Py_ssize_t value_at, key_at, stamp_at
    cdef int64_t row
    cdef bint fresh  # the chunk is an array that was not begun yet
    cdef bint in_memory
    cdef readonly bint is_struct
    cdef readonly list fields

    def __init__(self, data, timestamp_ms, bint in_memory=False):
        self.in_memory = in_memory
        self.timestamp = NOW if timestamp_ms is None else read_timestamp(timestamp_ms)
        if hasattr(data, "__arrow_c_array__"):
            schema, array = data.__arrow_c_array__()
            self.take_array(schema, array)
        else:
            self.take_stream(data.__arrow_c_stream__())
        self.is_struct = self.schema.format == b"+s"
        self.fields = []
        if self.is_struct:
            for place in range(self.schema.n_children):
                self.fields.append(field_of(self.schema.children[place]))
        else:
            self.fields.append(field_of(&self.schema))

    cdef int take_array(self, object schema_capsule, object array_capsule) except -1:
        """Move both structs here: what is left behind is marked as released."""
        cdef ArrowSchema *schema = <ArrowSchema *>PyCapsule_GetPointer(schema_capsule, "arrow_schema")
        cdef ArrowArray *array = <ArrowArray *>PyCapsule_GetPointer(array_capsule, "arrow_array")
        if schema.release == NULL or array.release == NULL:
            raise RecordValueError("the Arrow array was released already: data was used up by somebody else")
        self.schema = schema[0]
        schema.release = NULL
        self.chunk = array[0]
        array.release = NULL
        self.fresh = True
        return 0

    cdef int take_stream(self, object capsule) except -1:
        cdef ArrowArrayStream *stream = <ArrowArrayStream *>PyCapsule_GetPointer(capsule, "arrow_array_stream")
        cdef int code
        if stream.release == NULL:
            raise RecordValueError("the Arrow stream was released already: data was used up by somebody else")
        self.stream = stream[0]
        stream.release = NULL
        if self.in_memory:
            code = self.stream.get_schema(&self.stream, &self.schema)
        else:
            with nogil:
                code = self.stream.get_schema(&self.stream, &self.schema)
        if code != 0:
            self.schema.release = NULL
            raise RecordValueError(f"the Arrow stream has no schema: {self.last_error(code)}")
        return 0

    cdef str last_error(self, int code):
        cdef const char *text = self.stream.get_last_error(&self.stream)
        return (<bytes>text if text != NULL else <bytes>strerror(code)).decode("utf-8", "replace")

    def __dealloc__(self):
        self.let_go()

    cdef void let_go(self) noexcept:
        """Release what is held: each struct once, for whoever releases one marks it."""
        self.release_chunk()
        if self.schema.release != NULL:
            self.schema.release(&self.schema)
            self.schema.release = NULL
        if self.stream.release != NULL:
            self.stream.release(&self.stream)
            self.stream.release = NULL

    cdef void release_chunk(self) noexcept:
        self.place = self.filled
        self.row = 0
        self.fresh = False
        if self.chunk.release != NULL:
            self.chunk.release(&self.chunk)
            self.chunk.release = NULL
        self.chunk.length = 0

    def close(self):
        """Release everything; there are no more rows then."""
        self.let_go()

    def choose(self, Py_ssize_t value, Py_ssize_t key, Py_ssize_t timestamp):
        """Which of ``fields`` are the records' values, keys and timestamps; -1 for none. Before ``next_chunk``."""
        self.value_at, self.key_at, self.stamp_at = value, key, timestamp
        self.keyed = key >= 0
        self.stamped = timestamp >= 0
        set_layout(&self.value, self.fields[value][1])
        if self.keyed:
            set_layout(&self.key, self.fields[key][1])
        if self.stamped:
            set_layout(&self.stamp, self.fields[timestamp][1])

    def next_chunk(self):
        """Go on to the next rows; False if there are none. It runs the code of whoever made the data: not under a lock.

        Raises:
            RecordValueError: the stream failed, or what it gave cannot be what it says.
        """
        cdef int code
        if self.fresh:
            self.fresh = False
        else:
            self.release_chunk()
            if self.stream.release == NULL:
                return False
            if self.in_memory:
                code = self.stream.get_next(&self.stream, &self.chunk)
            else:
                with nogil:
                    code = self.stream.get_next(&self.stream, &self.chunk)
            if code != 0:
                self.chunk.release = NULL  # it holds nothing
                raise RecordValueError(f"the Arrow stream failed after {self.taken} records: {self.last_error(code)}")
            if self.chunk.release == NULL:
                self.chunk.length = 0
                return False
        self.row = 0
        if self.is_struct and self.chunk.n_children != self.schema.n_children:
            raise broken(f"{self.chunk.n_children} columns where {self.schema.n_children} were announced")
        self.bind(&self.value, self.value_at)
        if self.keyed:
            self.bind(&self.key, self.key_at)
        if self.stamped:
            self.bind(&self.stamp, self.stamp_at)
        return True

    cdef int bind(self, Column *column, Py_ssize_t place) except -1:
        """Point ``column`` at this chunk's part of it."""
        cdef ArrowArray *array = self.chunk.children[place] if self.is_struct else &self.chunk
        cdef int64_t before = self.chunk.offset if self.is_struct else 0
        cdef int64_t needed = 0 if column.layout == ALL_NULL else 2 if column.layout in (FIXED, INTEGERS) else 3
        if array.n_buffers < needed or array.length < before + self.chunk.length or self.chunk.length < 0:
            raise broken(f"column {self.fields[place][0]!r} has {array.length} rows of {before + self.chunk.length} and "
                         f"{array.n_buffers} buffers of {needed}")
        column.offset = before + array.offset
        column.buffers = array.buffers
        column.variadic = array.n_buffers - 3
        column.validity = column.outer = NULL
        if needed > 0 and array.null_count != 0:
            column.validity = <const uint8_t *>array.buffers[0]
        if self.is_struct and self.chunk.n_buffers > 0 and self.chunk.null_count != 0:
            column.outer, column.outer_offset = <const uint8_t *>self.chunk.buffers[0], self.chunk.offset
        return 0

    cdef Py_ssize_t fill(self) except -1:
        cdef Py_ssize_t count = <Py_ssize_t>min(<int64_t>BLOCK_ROWS, self.chunk.length - self.row)
        cdef Py_ssize_t good = count
        if count <= 0 or self.chunk.release == NULL:
            return 0
        good = find_bytes(&self.value, self.row, good, self.values)
        if self.keyed:
            good = find_bytes(&self.key, self.row, good, self.keys) if good > 0 else 0
        if good == 0:
            raise broken(f"row {self.row} of a chunk has a length below zero, or lies in no buffer")
        if self.stamped:
            good = find_stamps(&self.stamp, self.row, good, self.stamps)
            if good == 0:
                raise RecordValueError(
                    f"timestamp_ms column {self.fields[self.stamp_at][0]!r} has "
                    f"{(<const int64_t *>self.stamp.buffers[1])[self.stamp.offset + self.row]} for record {self.taken} "
                    "(from 0), outside 0 .. 2**63-1 milliseconds")
        self.row += good
        return good


cdef object broken(str what):
    return RecordValueError(f"the Arrow data is broken: {what}; please report it to whoever made it")


cdef tuple field_of(const ArrowSchema *schema):
    cdef bytes name = schema.name if schema.name != NULL else b""
    return name.decode("utf-8", "replace"), (<bytes>schema.format).decode("utf-8", "replace"), schema.dictionary != NULL
