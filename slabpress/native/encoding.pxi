# What a record's parts are made of: accepted types, varints, headers, timestamps, murmur2.

cdef struct Piece:
    # One key, value or header part. size -1 is null.
    const char *data
    Py_ssize_t size
    Py_buffer view
    bint held


cdef inline int varint_size(uint64_t zigzag) noexcept nogil:
    cdef int size = 1
    while zigzag >= 0x80:
        zigzag >>= 7
        size += 1
    return size


cdef inline uint64_t zigzag64(int64_t value) noexcept nogil:
    return (<uint64_t>value << 1) ^ <uint64_t>(value >> 63)


cdef inline char *write_varint(char *out, int64_t value) noexcept nogil:
    cdef uint64_t zigzag = zigzag64(value)
    while zigzag >= 0x80:
        out[0] = <char>(<unsigned char>((zigzag & 0x7F) | 0x80))
        zigzag >>= 7
        out += 1
    out[0] = <char>(<unsigned char>zigzag)
    return out + 1


cdef inline char *write_head(char *out, uint64_t body, int64_t delta, uint32_t offset,
                             Py_ssize_t key_size) noexcept nogil:
    """A record from its length to its key's length."""
    out = write_varint(out, <int64_t>body)
    out[0] = 0  # attributes: none are defined
    out = write_varint(out + 1, delta)
    out = write_varint(out, offset)
    return write_varint(out, key_size)


cdef inline char *write_bytes(char *out, const char *data, Py_ssize_t size) noexcept nogil:
    if size <= 0:
        return out
    memcpy(out, data, size)
    return out + size


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


cdef Py_ssize_t headers_size(list headers) except -1:
    cdef Py_ssize_t size = 0, name_size, value_size
    for name, value in headers:
        name_size = len(name)
        value_size = -1 if value is None else len(value)
        size += varint_size(zigzag64(name_size)) + name_size
        size += varint_size(zigzag64(value_size)) + max(value_size, 0)
    return size


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
