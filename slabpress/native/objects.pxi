# Records that are Python objects, many in one call: send_many().

cdef enum:
    # Places for the headers of the records in a block.
    BLOCK_PARTS = 256
    # So many records ahead an object is called into the cache: its head, then its bytes.
    HEADS_AHEAD = 16
    BYTES_AHEAD = 8


cdef class ObjectSource(Source):
    """Values, keys, headers and timestamps as Python has them, one each a record.

    What lies in the objects is found for a block of records, and found again once anybody's code may have run: the lists
    are the user's, and only the interpreter's lock keeps them as they are. A record with parts that must be held, or that
    may run code when they are looked at, is a block by itself.

    Args:
        values, keys, headers, timestamps: lists or tuples, equally long; all but the values may be None.
    """

    cdef object value_column, key_column, header_column, stamp_column
    cdef Py_ssize_t before  # records of columns that came before these
    cdef Py_ssize_t count
    cdef Piece held_value, held_key
    cdef object kept
    cdef Bytes parts[BLOCK_PARTS]

    def __init__(self, values, keys, headers, timestamps):
        self.timestamp = NOW
        self.go_on_with(values, keys, headers, timestamps)

    def go_on_with(self, values, keys, headers, timestamps):
        """The next columns, once those before are done."""
        for column in (values, keys, headers, timestamps):
            if column is not None and not isinstance(column, (list, tuple)):
                raise TypeError(f"a column is a list or a tuple, not {type(column).__name__}")
            if column is not None and len(column) != len(values):
                raise ValueError(f"a column of {len(column)} entries for {len(values)} values")
        self.drop_block()
        self.before = self.taken
        self.count = len(values)
        self.value_column, self.key_column = values, keys
        self.header_column, self.stamp_column = headers, timestamps
        self.keyed = keys is not None
        self.headed = headers is not None
        self.stamped = timestamps is not None

    def __dealloc__(self):
        self.drop_block()

    cdef void drop_block(self) noexcept:
        self.filled = self.place = 0
        let_go(&self.held_value)
        let_go(&self.held_key)
        self.kept = None

    cdef void code_ran(self) noexcept:
        self.drop_block()

    def is_done(self):
        """Whether every record was appended."""
        return self.taken - self.before >= self.count

    def close(self):
        """Let go of what is held."""
        self.drop_block()

    cdef Py_ssize_t fill(self) except -1:
        cdef Py_ssize_t start = self.taken - self.before, found = 0, parts = 0
        cdef Py_ssize_t most = min(<Py_ssize_t>BLOCK_ROWS, self.count - start)
        self.drop_block()
        if most <= 0:
            return 0
        self.check_length(self.value_column)
        while found < most:
            if not find_value(items_of(self.value_column), start + found, self.count, &self.values[found]):
                break
            found += 1
        if self.keyed and found > 0:
            found = self.find_keys(start, found)
        if self.stamped and found > 0:
            found = self.find_times(start, found)
        if self.headed and found > 0:
            found = self.find_headers(start, found)
        return found if found > 0 else self.find_alone(start)

    cdef int check_length(self, column) except -1:
        if len_of(column) < self.count:
            raise IndexError(f"a list of {self.count} entries has {len_of(column)}: it changed during the call")
        return 0

    cdef Py_ssize_t find_keys(self, Py_ssize_t start, Py_ssize_t wanted) except -1:
        cdef PyObject **items = items_of(self.key_column)
        cdef Py_ssize_t place
        self.check_length(self.key_column)
        for place in range(wanted):
            if not find_value(items, start + place, self.count, &self.keys[place]):
                return place
        return wanted

    cdef Py_ssize_t find_times(self, Py_ssize_t start, Py_ssize_t wanted) except -1:
        cdef PyObject **items = items_of(self.stamp_column)
        cdef Py_ssize_t place
        cdef long long stamp
        cdef int overflow = 0
        self.check_length(self.stamp_column)
        for place in range(wanted):
            stamp = NOW
            if <object>items[start + place] is not None:
                if not PyLong_CheckExact(<object>items[start + place]):
                    return place
                stamp = PyLong_AsLongLongAndOverflow(<object>items[start + place], &overflow)
                if overflow or stamp < 0:
                    return place
            self.stamps[place] = stamp
        return wanted

    cdef Py_ssize_t find_headers(self, Py_ssize_t start, Py_ssize_t wanted) except -1:
        cdef PyObject **items = items_of(self.header_column)
        cdef Py_ssize_t place, count, used = 0
        self.check_length(self.header_column)
        for place in range(wanted):
            count = 0
            if <object>items[start + place] is not None:
                count = plain_headers(<object>items[start + place], &self.parts[used], BLOCK_PARTS - used)
                if count < 0:
                    return place
            set_headers(&self.headers[place], &self.parts[used], count)
            used += 2 * count
        return wanted

    cdef Py_ssize_t find_alone(self, Py_ssize_t index) except -1:
        """A block of one record: it is held, whatever code runs. What cannot be sent is refused here."""
        cdef object value, key = None, headers = None, stamp = None
        self.check_length(self.value_column)
        value = self.value_column[index]
        if self.keyed:
            key = self.key_column[index]
        if self.headed:
            headers = self.header_column[index]
        if self.stamped:
            stamp = self.stamp_column[index]
        self.stamps[0] = NOW if stamp is None else read_timestamp(stamp)
        set_headers(&self.headers[0], self.parts, 0)
        kept = None if headers is None else read_any_headers(headers, &self.headers[0])
        self.kept = value, key, kept
        hold(key, &self.held_key, &self.keys[0], "key")
        hold(value, &self.held_value, &self.values[0], "value")
        return 1


cdef inline PyObject **items_of(column) noexcept:
    """The entries of a list or a tuple."""
    return PySequence_Fast_ITEMS(column)


cdef inline Py_ssize_t len_of(column) noexcept:
    return PySequence_Fast_GET_SIZE(column)


cdef inline bint find_value(PyObject **items, Py_ssize_t index, Py_ssize_t count, Bytes *found) noexcept:
    """Find what is in bytes, ASCII text or None, and call what comes later into the cache; False of anything else."""
    cdef PyObject *part = items[index]
    if index + HEADS_AHEAD < count:
        sp_prefetch(items[index + HEADS_AHEAD], 1)
    if PyBytes_CheckExact(<object>part):
        found.data = PyBytes_AS_STRING(<object>part)
        found.size = PyBytes_GET_SIZE(<object>part)
        sp_prefetch(found.data + 64, min(found.size - 64, PREFETCH_MAX))
        return True
    return find_plain(<object>part, found)


cdef int hold(object part, Piece *piece, Bytes *found, str what) except -1:
    grab(part, piece, what)
    found.data, found.size = piece.data, piece.size
    return 0
