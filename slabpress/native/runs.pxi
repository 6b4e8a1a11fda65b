# Runs of records that are alike: most of what one call with many records writes.

cdef enum:
    # Longer values go the way of all records: what they cost is to copy them.
    RUN_VALUE_BYTES = 8000
    # What a record of a run takes beside its value, at most: its length and its value's (2 bytes each), attributes and
    # timestamp (8), offset (5), the null key, no headers.
    BESIDE_VALUE = 19


cdef struct Run:
    char *cursor
    const char *end  # nothing is written past it
    uint64_t longest  # value
    int64_t delta  # of the timestamp
    uint32_t offset  # of the first record


cdef Py_ssize_t write_values(Run *run, const Bytes *values, Py_ssize_t count) noexcept nogil:
    """Write records that are a value and no more, all of one time, and move the cursor behind them.

    What they have in common is worked out once, and one comparison tells that a record goes into the slab, with a few
    bytes to spare, before its size is known: 120 instructions a record of 200 bytes, the copy included, where
    ``RecordWriter.write`` takes 290.

    Returns:
        How many: up to the first that has no value, or a long one, or might go past the end, or whose offset takes a
        byte more.
    """
    cdef char common[16]  # attributes and timestamp
    cdef Py_ssize_t common_size
    cdef int offset_size = size_of(run.offset)
    cdef uint64_t beside, size
    cdef uint32_t offset = run.offset
    cdef char *out = run.cursor
    cdef const char *last = run.end - BESIDE_VALUE
    cdef const char *called = out + WRITE_AHEAD_BYTES
    cdef const Bytes *value = values
    cdef const Bytes *after = values + min(<int64_t>count, (<int64_t>1 << (7 * offset_size - 1)) - offset)
    memset(common, 0, 16)
    common_size = write_varint(common + 1, run.delta) - common
    if common_size > 8:
        return 0
    # All that the record's length counts, if its value's takes one byte: that, offset, null key and no headers.
    beside = common_size + offset_size + 3
    while value < after:
        size = <uint64_t>value.size  # of a null value more than any
        if size > run.longest or <int64_t>size > last - out:
            break
        out = sp_put_short(out, (beside + (size >= 64) + size) << 1)
        memcpy(out, common, 8)  # two instructions; what is too much is written over
        out = sp_put_varint(out + common_size, <uint64_t>offset << 1)
        out[0] = 1  # the null key
        out = sp_put_short(out + 1, size << 1)
        sp_copy(out, value.data, size)
        out[size] = 0  # headers
        out += size + 1
        offset += 1
        value += 1
        called = sp_prefetch_to_write(called, min(<const char *>out + WRITE_AHEAD_BYTES, run.end))
    run.cursor = out
    return value - values
