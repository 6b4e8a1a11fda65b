# What a record's parts are made of: accepted types, varints, headers, timestamps, murmur2.

cdef enum:
    # So far ahead of the cursor a slab is called into the cache, and its beginning when it is claimed: 69 -> 57 ns for a
    # record of 200 bytes that comes from memory in no cache and goes to such. Into the nearest cache, not the second:
    # 15 -> 12 for one of a run. Of a long record the processor sees by itself where it goes.
    WRITE_AHEAD_BYTES = 4096
    PREFETCH_MAX = 1024


cdef struct Piece:
    # One key, value or header part. size -1 is null.
    const char *data
    Py_ssize_t size
    Py_buffer view
    bint held


cdef struct Bytes:
    const char *data
    Py_ssize_t size  # -1 is null


cdef struct Headers:
    # A record's headers: name, value, name, value, ...
    const Bytes *parts
    Py_ssize_t count  # of headers
    Py_ssize_t bytes  # encoded


cdef inline uint64_t zigzag64(int64_t value) noexcept nogil:
    return (<uint64_t>value << 1) ^ <uint64_t>(value >> 63)


cdef inline int size_of(int64_t value) noexcept nogil:
    """How many bytes a varint takes."""
    return sp_varint_size(zigzag64(value))


cdef inline char *write_varint(char *out, int64_t value) noexcept nogil:
    return sp_put_varint(out, zigzag64(value))


cdef inline char *write_head(char *out, uint64_t body, int64_t delta, uint32_t offset) noexcept nogil:
    """A record from its length to its offset."""
    out = write_varint(out, <int64_t>body)
    out[0] = 0  # attributes: none are defined
    out = write_varint(out + 1, delta)
    return write_varint(out, offset)


cdef inline char *write_bytes(char *out, const Bytes *part) noexcept nogil:
    """A length and what is so long."""
    out = write_varint(out, part.size)
    if part.size <= 0:
        return out
    sp_copy(out, part.data, part.size)
    return out + part.size


cdef char *write_headers(char *out, const Headers *headers) noexcept nogil:
    cdef Py_ssize_t place
    out = write_varint(out, headers.count)
    for place in range(2 * headers.count):
        out = write_bytes(out, &headers.parts[place])
    return out


cdef inline void let_go(Piece *piece) noexcept:
    if piece.held:
        piece.held = False
        PyBuffer_Release(&piece.view)


cdef int grab(object source, Piece *piece, str what) except -1:
    """Point ``piece`` at the bytes of ``source``: bytes, bytearray, memoryview, str as UTF-8, or None."""
    piece.held = False
    if source is None:
        piece.data = NULL
        piece.size = -1
    elif PyBytes_CheckExact(source):
        piece.data = PyBytes_AS_STRING(source)
        piece.size = PyBytes_GET_SIZE(source)
    elif PyUnicode_Check(source):
        try:
            piece.data = PyUnicode_AsUTF8AndSize(source, &piece.size)
        except UnicodeEncodeError as error:
            raise RecordValueError(f"{what} is a str that UTF-8 cannot encode ({error.reason} at index "
                                   f"{error.start}): pass bytes") from error
    elif isinstance(source, (bytes, bytearray, memoryview)):
        try:
            PyObject_GetBuffer(source, &piece.view, PyBUF_SIMPLE)
        except BufferError as error:
            raise RecordTypeError(f"{what} is a memoryview that is not contiguous: pass bytes(view)") from error
        piece.held = True
        piece.data = <const char *>piece.view.buf
        piece.size = piece.view.len
    else:
        raise RecordTypeError(
            f"{what} must be bytes, bytearray, memoryview or str, not {type(source).__name__}: serialize it first")
    return 0


cdef int64_t read_timestamp(object timestamp_ms) except -1:
    """Milliseconds since the epoch; Java's producer refuses negative ones as well."""
    cdef int64_t timestamp
    if timestamp_ms is None:
        return sp_now_ms()
    if isinstance(timestamp_ms, bool) or not isinstance(timestamp_ms, int):
        raise RecordTypeError(f"timestamp_ms must be an int (milliseconds since the epoch) or None, "
                              f"not {type(timestamp_ms).__name__}")
    if not 0 <= timestamp_ms <= 0x7FFFFFFFFFFFFFFF:
        raise RecordValueError(f"timestamp_ms is {timestamp_ms}, outside 0 .. 2**63-1")
    return timestamp_ms


cdef list header_pairs(object headers):
    """Check the headers and make every part bytes, so that writing them cannot fail half-way."""
    if isinstance(headers, (str, bytes, bytearray, memoryview, dict)):
        raise RecordTypeError(f"headers must be a sequence of (name, value) pairs, not {type(headers).__name__}")
    cdef list pairs = []
    try:
        # What is its own iterator can be read once only, and a record that finds its batch full is encoded twice.
        entries = None if iter(headers) is headers else list(headers)
    except TypeError:
        entries = None
    if entries is None:
        raise RecordTypeError(f"headers must be a sequence of (name, value) pairs, not {type(headers).__name__}")
    for entry in entries:
        if not isinstance(entry, (tuple, list)) or len(entry) != 2:
            raise RecordTypeError(f"a header must be a (name, value) pair, not {entry!r:.80}")
        name, value = entry
        if isinstance(name, str):
            name = encode_text(name, "header name")
        elif not isinstance(name, bytes):
            raise RecordTypeError(f"a header's name must be str or bytes, not {type(name).__name__}")
        if isinstance(value, str):
            value = encode_text(value, "header value")
        elif isinstance(value, (bytearray, memoryview)):
            value = bytes(value)
        elif value is not None and not isinstance(value, bytes):
            raise RecordTypeError(f"the value of header {name!r:.80} must be bytes, bytearray, memoryview, str "
                                  f"or None, not {type(value).__name__}")
        pairs.append((bytes(name), None if value is None else bytes(value)))
    return pairs


cdef bytes encode_text(str text, str what):
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise RecordValueError(f"{what} is a str that UTF-8 cannot encode ({error.reason} at index "
                               f"{error.start}): pass bytes") from error


cdef inline bint find_plain(object part, Bytes *found) noexcept:
    """Find what is in bytes, ASCII text or None, which runs nobody's code; False of anything else.

    It is there as long as somebody holds the object.
    """
    if PyBytes_CheckExact(part):
        found.data, found.size = PyBytes_AS_STRING(part), PyBytes_GET_SIZE(part)
    elif part is None:
        found.data, found.size = NULL, -1
    elif PyUnicode_CheckExact(part) and PyUnicode_IS_COMPACT_ASCII(part):
        found.data, found.size = <const char *>PyUnicode_DATA(part), PyUnicode_GET_LENGTH(part)
    else:
        return False
    return True


cdef object read_headers(object headers, Headers *found, Bytes *room, Py_ssize_t most):
    """Find a record's headers.

    Args:
        headers: what the user gave, not None.
        found: what was found, until the user's objects change.
        room: place for parts.
        most: how many.

    Returns:
        What must be kept as long as ``found`` is used.
    """
    cdef Py_ssize_t count
    count = plain_headers(headers, room, most)
    if count >= 0:
        set_headers(found, room, count)
        return None
    return read_any_headers(headers, found)


cdef object read_any_headers(object headers, Headers *found):
    cdef list pairs = header_pairs(headers)
    cdef bytearray room = bytearray(2 * len(pairs) * sizeof(Bytes))
    cdef Bytes *parts = <Bytes *>PyByteArray_AS_STRING(room)
    set_headers(found, parts, plain_headers(pairs, parts, 2 * len(pairs)))
    return pairs, room


cdef Py_ssize_t plain_headers(object headers, Bytes *room, Py_ssize_t most) noexcept:
    """Find headers that are pairs of bytes or ASCII text; how many, or -1 if something else is among them.

    It runs nobody's code: what was found is there until the next time that something may.
    """
    cdef PyObject **items
    cdef PyObject **pair
    cdef Py_ssize_t place, count
    if not is_pair_like(headers):
        return -1
    count = PySequence_Fast_GET_SIZE(headers)
    if 2 * count > most:
        return -1
    items = PySequence_Fast_ITEMS(headers)
    for place in range(count):
        if not is_pair_like(<object>items[place]) or PySequence_Fast_GET_SIZE(<object>items[place]) != 2:
            return -1
        pair = PySequence_Fast_ITEMS(<object>items[place])
        if (not find_plain(<object>pair[0], &room[2 * place]) or room[2 * place].size < 0
                or not find_plain(<object>pair[1], &room[2 * place + 1])):
            return -1
    return count


cdef inline bint is_pair_like(object pair) noexcept:
    return PyTuple_CheckExact(pair) or PyList_CheckExact(pair)


cdef void set_headers(Headers *found, const Bytes *parts, Py_ssize_t count) noexcept:
    cdef Py_ssize_t place
    found.parts = parts
    found.count = count
    found.bytes = 0
    for place in range(2 * count):
        found.bytes += size_of(parts[place].size) + max(parts[place].size, 0)


cdef uint32_t murmur2_of(const unsigned char *data, Py_ssize_t size) noexcept nogil:
    """MurmurHash2, 32 bit, with Kafka's seed: the hash of Java's default partitioner, bit for bit."""
    cdef uint32_t m = 0x5BD1E995
    cdef uint32_t h = <uint32_t>0x9747B28C ^ <uint32_t>size
    cdef uint32_t k
    cdef Py_ssize_t i = 0
    while i + 4 <= size:
        k = (<uint32_t>data[i] | <uint32_t>data[i + 1] << 8
             | <uint32_t>data[i + 2] << 16 | <uint32_t>data[i + 3] << 24)
        k *= m
        k ^= k >> 24
        k *= m
        h *= m
        h ^= k
        i += 4
    if size - i == 3:
        h ^= <uint32_t>data[i + 2] << 16
    if size - i >= 2:
        h ^= <uint32_t>data[i + 1] << 8
    if size - i >= 1:
        h ^= <uint32_t>data[i]
        h *= m
    h ^= h >> 13
    h *= m
    h ^= h >> 15
    return h


cdef int32_t partition_of(object key, Py_ssize_t partitions) except -1:
    cdef Piece piece
    cdef uint32_t positive
    if partitions < 1:
        raise ValueError(f"partitions is {partitions}: at least 1")
    grab(key, &piece, "key")
    positive = murmur2_of(<const unsigned char *>piece.data, piece.size) & 0x7FFFFFFF
    let_go(&piece)
    return <int32_t>(positive % <uint32_t>partitions)


def murmur2(bytes data not None):
    """Kafka's murmur2 of ``data``, as the signed 32-bit number that Java's Utils.murmur2 returns."""
    return <int32_t>murmur2_of(<const unsigned char *>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))


def partition_for_key(key not None, Py_ssize_t partitions):
    """The partition (0 .. partitions-1) that Java's default partitioner gives this key."""
    return partition_of(key, partitions)
