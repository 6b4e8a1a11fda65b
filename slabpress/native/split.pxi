# Cutting records out of a batch: the smaller batches that a broker takes when it refused the whole.

cdef struct Cursor:
    # A place in the records of a batch.
    const unsigned char *start
    const unsigned char *place
    const unsigned char *end
    int64_t number  # of the record at the place


cdef int64_t take_varint(Cursor *cursor, const unsigned char *end, int bits, str what) except? -1:
    """Read one zigzag number of at most ``bits`` bits, wholly before ``end``, and move on past it."""
    cdef const unsigned char *place = cursor.place
    cdef uint64_t zigzag = 0
    cdef unsigned char byte
    cdef int shift = 0
    while place < end:
        byte = place[0]
        if bits - shift < 7 and byte >= 1 << (bits - shift):  # nor may another byte follow the last that fits
            raise ValueError(f"record {cursor.number}: {what} at byte {cursor.place - cursor.start} has more than "
                             f"{bits} bits")
        place += 1
        zigzag |= <uint64_t>(byte & 0x7F) << shift
        if byte < 0x80:
            cursor.place = place
            return <int64_t>(zigzag >> 1) ^ -<int64_t>(zigzag & 1)
        shift += 7
    raise ValueError(f"record {cursor.number}: {what} at byte {cursor.place - cursor.start} is cut off after "
                     f"{place - cursor.place} bytes")


cdef const unsigned char *end_of_record(Cursor *cursor) except NULL:
    """Read a record's length; where the record ends, which is within the buffer."""
    cdef int64_t body = take_varint(cursor, cursor.end, 32, "the length")
    if body < 1:
        raise ValueError(f"record {cursor.number} has a length of {body} bytes, before byte "
                         f"{cursor.place - cursor.start}")
    if body > cursor.end - cursor.place:
        raise ValueError(f"record {cursor.number} has a length of {body} bytes, but {cursor.end - cursor.place} are "
                         f"left at byte {cursor.place - cursor.start}")
    return cursor.place + body


def cut_records(raw, Py_ssize_t first, Py_ssize_t count, int64_t base_timestamp_ms, out):
    """Write some of a batch's records into ``out`` as the records of a batch of their own.

    Their offset deltas count from 0 again; their timestamp deltas stay, so the new batch has the old one's base
    timestamp. Hence no number grows: not the offset delta, not the length that counts it, and a cut is never larger
    than what it was cut from. Only what comes before the end of the cut is looked at, and of a record only its
    length, timestamp delta and offset delta; the rest is copied as it is.

    Args:
        raw: the batch's records, uncompressed, one after the other; a contiguous buffer.
        first: the first record to take, from 0.
        count: how many to take, at least 1; there may be fewer.
        base_timestamp_ms: the batch's base timestamp.
        out: a writable contiguous buffer, apart from ``raw``.

    Returns:
        The bytes written, the greatest timestamp among the records in ms, and how many records they are (1 ..
        ``count``).

    Raises:
        ValueError: ``raw`` is not well-formed or has no record ``first``; or ``out`` is too small or overlaps it. What
            ``out`` holds then is undefined.
        BufferError: a buffer is not contiguous, or ``out`` is read-only.
    """
    cdef Py_buffer source, target
    if first < 0 or count < 1:
        raise ValueError(f"records from {first} on, {count} of them: at least from 0, and at least 1")
    PyObject_GetBuffer(raw, &source, PyBUF_SIMPLE)
    try:
        PyObject_GetBuffer(out, &target, PyBUF_WRITABLE)
        try:
            return cut_buffer(&source, first, count, base_timestamp_ms, &target)
        finally:
            PyBuffer_Release(&target)
    finally:
        PyBuffer_Release(&source)


cdef tuple cut_buffer(Py_buffer *source, Py_ssize_t first, Py_ssize_t count, int64_t base, Py_buffer *target):
    cdef Cursor cursor
    cdef const unsigned char *record_end
    cdef const unsigned char *head
    cdef char *out = <char *>target.buf
    cdef Py_ssize_t room = target.len, head_bytes, body, written = 0, records = 0
    cdef int64_t delta, offset, latest = 0
    cursor.start = cursor.place = <const unsigned char *>source.buf
    cursor.end = cursor.start + source.len
    cursor.number = 0
    if out < <char *>cursor.end and <char *>cursor.start < out + room:
        raise ValueError(f"the {source.len} bytes of raw and the {room} bytes of out overlap")
    while records < count and cursor.place < cursor.end:
        record_end = end_of_record(&cursor)
        head = cursor.place
        cursor.place += 1  # the attributes: a body has at least one byte
        delta = take_varint(&cursor, record_end, 64, "the timestamp delta")
        head_bytes = cursor.place - head
        offset = take_varint(&cursor, record_end, 32, "the offset delta")
        if offset != cursor.number:
            raise ValueError(f"record {cursor.number} has offset delta {offset}, before byte "
                             f"{cursor.place - cursor.start}")
        if cursor.number >= first:
            if delta > 0 and base > INT64_MAX - delta or delta < 0 and base < INT64_MIN - delta:
                raise ValueError(f"record {cursor.number}: timestamp {base} + {delta} ms has more than 64 bits")
            if records == 0 or base + delta > latest:
                latest = base + delta
            body = head_bytes + size_of(records) + (record_end - cursor.place)
            if size_of(body) + body > room - written:
                raise ValueError(f"record {cursor.number} takes {size_of(body) + body} bytes, but "
                                 f"{room - written} of {room} are left in out")
            out = write_varint(out, body)
            memcpy(out, head, head_bytes)
            out = write_varint(out + head_bytes, records)
            memcpy(out, cursor.place, record_end - cursor.place)
            out += record_end - cursor.place
            written = out - <char *>target.buf
            records += 1
        cursor.place = record_end
        cursor.number += 1
    if records == 0:
        raise ValueError(f"there is no record {first}: {source.len} bytes hold {cursor.number}")
    return written, latest, records
