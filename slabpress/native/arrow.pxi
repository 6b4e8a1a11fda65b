# Arrow's C structs, and where the values of a column lie in them. Its rows are in rows.pxi.

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
    int64_t outer_offset
    const uint8_t *outer  # the same of the rows that the column is a part of
    const void **buffers
    int64_t variadic  # VIEWS: how many buffers the long ones lie in


cdef inline bint is_set(const uint8_t *bits, int64_t place) noexcept nogil:
    return bits[place >> 3] >> (place & 7) & 1


cdef inline bint is_null(const Column *column, int64_t row) noexcept nogil:
    """Whether a row of the chunk has no value; what lies in its place may be anything then."""
    return (column.validity != NULL and not is_set(column.validity, column.offset + row)
            or column.outer != NULL and not is_set(column.outer, column.outer_offset + row))


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
            if fields[0] > INLINE_BYTES and not is_null(column, row + place):
                if not 0 <= fields[2] < column.variadic:
                    return place
                out[place].data = <const char *>column.buffers[2 + fields[2]] + fields[3]
            view += VIEW_BYTES
    for place in range(count):
        if column.layout == ALL_NULL or is_null(column, row + place):
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
        if is_null(column, row + place):
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
