# Rows of Arrow data, by the C data and stream interfaces and their PyCapsules: no Arrow library is needed.

cdef extern from *:
    """
    /* As https://arrow.apache.org/docs/format/CDataInterface.html defines them; the guards are its own. */
    #ifndef ARROW_C_DATA_INTERFACE
    #define ARROW_C_DATA_INTERFACE
    struct ArrowSchema {
        const char *format;
        const char *name;
        const char *metadata;
        int64_t flags;
        int64_t n_children;
        struct ArrowSchema **children;
        struct ArrowSchema *dictionary;
        void (*release)(struct ArrowSchema *);
        void *private_data;
    };
    struct ArrowArray {
        int64_t length;
        int64_t null_count;
        int64_t offset;
        int64_t n_buffers;
        int64_t n_children;
        const void **buffers;
        struct ArrowArray **children;
        struct ArrowArray *dictionary;
        void (*release)(struct ArrowArray *);
        void *private_data;
    };
    #endif
    #ifndef ARROW_C_STREAM_INTERFACE
    #define ARROW_C_STREAM_INTERFACE
    struct ArrowArrayStream {
        int (*get_schema)(struct ArrowArrayStream *, struct ArrowSchema *);
        int (*get_next)(struct ArrowArrayStream *, struct ArrowArray *);
        const char *(*get_last_error)(struct ArrowArrayStream *);
        void (*release)(struct ArrowArrayStream *);
        void *private_data;
    };
    #endif
    """
    struct ArrowSchema:
        const char *format
        const char *name
        int64_t n_children
        ArrowSchema **children
        ArrowSchema *dictionary
        void (*release)(ArrowSchema *) noexcept
    struct ArrowArray:
        int64_t length, null_count, offset, n_buffers, n_children
        const void **buffers
        ArrowArray **children
        void (*release)(ArrowArray *) noexcept
    struct ArrowArrayStream:
        int (*get_schema)(ArrowArrayStream *, ArrowSchema *) noexcept nogil
        int (*get_next)(ArrowArrayStream *, ArrowArray *) noexcept nogil
        const char *(*get_last_error)(ArrowArrayStream *) noexcept
        void (*release)(ArrowArrayStream *) noexcept

cdef enum:
    # How a column's bytes lie.
    ALL_NULL, OFFSETS_32, OFFSETS_64, VIEWS, FIXED, INTEGERS
    VIEW_BYTES = 16
    INLINE_BYTES = 12  # of a view; a longer one points into another buffer


cdef struct Column:
    int layout
    int64_t unit  # FIXED: bytes of each; INTEGERS: that many make a millisecond, or, negative, milliseconds each
    int64_t offset  # of the chunk's first row
    const uint8_t *validity  # NULL: nothing is null
    const void **buffers
    int64_t variadic  # VIEWS: how many buffers the long ones lie in


cdef inline bint is_null(const uint8_t *validity, int64_t row) noexcept nogil:
    return validity != NULL and not validity[row >> 3] >> (row & 7) & 1


cdef Py_ssize_t find_bytes(const Column *column, int64_t row, Py_ssize_t count, Bytes *out) noexcept nogil:
    """Where the values of some rows lie; how many of them make sense."""
    cdef int64_t first = column.offset + row
    cdef Py_ssize_t place
    cdef const int32_t *short_ends
    cdef const int64_t *long_ends
    cdef const char *data
    cdef const char *view
    cdef const int32_t *fields
    if column.layout == OFFSETS_32:
        short_ends = <const int32_t *>column.buffers[1] + first
        data = <const char *>column.buffers[2]
        for place in range(count):
            out[place].data = data + short_ends[place]
            out[place].size = <Py_ssize_t>short_ends[place + 1] - short_ends[place]
    elif column.layout == OFFSETS_64:
        long_ends = <const int64_t *>column.buffers[1] + first
        data = <const char *>column.buffers[2]
        for place in range(count):
            out[place].data = data + long_ends[place]
            out[place].size = long_ends[place + 1] - long_ends[place]
    elif column.layout == FIXED:
        for place in range(count):
            out[place].data = <const char *>column.buffers[1] + (first + place) * column.unit
            out[place].size = column.unit
    elif column.layout == VIEWS:
        view = <const char *>column.buffers[1] + first * VIEW_BYTES
        for place in range(count):
            fields = <const int32_t *>view  # size; then the bytes, or four of them, the buffer, the place in it
            out[place].data = view + 4
            out[place].size = fields[0]
            if fields[0] > INLINE_BYTES and not is_null(column.validity, first + place):
                if not 0 <= fields[2] < column.variadic:
                    return place
                out[place].data = <const char *>column.buffers[2 + fields[2]] + fields[3]
            view += VIEW_BYTES
    for place in range(count):
        if column.layout == ALL_NULL or is_null(column.validity, first + place):
            out[place].size = -1
        elif out[place].size < 0:
            return place
    return count


cdef Py_ssize_t find_stamps(const Column *column, int64_t row, Py_ssize_t count, int64_t *out) noexcept nogil:
    """The timestamps of some rows in milliseconds, NOW where it is null; how many of them Kafka can carry."""
    cdef int64_t first = column.offset + row
    cdef const int64_t *stamps = <const int64_t *>column.buffers[1] + first
    cdef Py_ssize_t place
    for place in range(count):
        if is_null(column.validity, first + place):
            out[place] = NOW
        elif stamps[place] < 0:
            return place
        elif column.unit > 0:
            out[place] = stamps[place] // column.unit
        elif stamps[place] > INT64_MAX // -column.unit:
            return place
        else:
            out[place] = stamps[place] * -column.unit
    return count


cdef class ArrowSource(Source):
    """The rows of an Arrow array or stream, chunk by chunk. Every struct that it is given is released once.

    Args:
        data: an object with ``__arrow_c_array__`` or ``__arrow_c_stream__``.
        timestamp_ms: of every record, if no column has it; None is now.

    Attributes:
        is_struct: whether the rows have columns; else they are the column.
        fields: name, format, and whether it is encoded by a dictionary, of every column, or of the one.
    """

    cdef ArrowSchema schema
    cdef ArrowArray chunk
    cdef ArrowArrayStream stream
    cdef Column value, key, stamp
    cdef const uint8_t *validity  # of the rows themselves
    cdef Py_ssize_t value_at, key_at, stamp_at
    cdef int64_t row
    cdef bint fresh  # the chunk is an array that was not begun yet
    cdef readonly bint is_struct
    cdef readonly list fields

    def __init__(self, data, timestamp_ms):
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
            with nogil:
                code = self.stream.get_next(&self.stream, &self.chunk)
            if code != 0:
                self.chunk.release = NULL  # it holds nothing
                raise RecordValueError(f"the Arrow stream failed after {self.taken} records: {self.last_error(code)}")
            if self.chunk.release == NULL:
                self.chunk.length = 0
                return False
        self.row = 0
        self.validity = NULL
        if self.is_struct:
            if self.chunk.n_children != self.schema.n_children:
                raise broken(f"{self.chunk.n_children} columns where {self.schema.n_children} were announced")
            if self.chunk.null_count != 0 and self.chunk.n_buffers > 0:
                self.validity = <const uint8_t *>self.chunk.buffers[0]
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
        column.validity = NULL
        if needed > 0 and array.null_count != 0:
            column.validity = <const uint8_t *>array.buffers[0]
        return 0

    cdef Py_ssize_t fill(self) except -1:
        cdef Py_ssize_t place, count = <Py_ssize_t>min(<int64_t>BLOCK_ROWS, self.chunk.length - self.row)
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
        if self.validity != NULL:
            for place in range(good):
                if is_null(self.validity, self.chunk.offset + self.row + place):
                    self.values[place].size = self.keys[place].size = -1
                    self.stamps[place] = NOW
        self.row += good
        return good


cdef object broken(str what):
    return RecordValueError(f"the Arrow data is broken: {what}; please report it to whoever made it")


cdef tuple field_of(const ArrowSchema *schema):
    cdef bytes name = schema.name if schema.name != NULL else b""
    return name.decode("utf-8", "replace"), (<bytes>schema.format).decode("utf-8", "replace"), schema.dictionary != NULL


cdef int set_layout(Column *column, str arrow_format) except -1:
    """How a column of this format lies in memory; the caller has seen that it is one of those that are accepted."""
    column.unit = 0
    if arrow_format == "n":
        column.layout = ALL_NULL
    elif arrow_format in ("z", "u"):
        column.layout = OFFSETS_32
    elif arrow_format in ("Z", "U"):
        column.layout = OFFSETS_64
    elif arrow_format in ("vz", "vu"):
        column.layout = VIEWS
    elif arrow_format.startswith("w:"):
        column.layout, column.unit = FIXED, int(arrow_format[2:])
    else:
        column.layout = INTEGERS
        column.unit = {"tss": -1000, "tsu": 1000, "tsn": 1_000_000}.get(arrow_format[:3], 1)
    return 0
