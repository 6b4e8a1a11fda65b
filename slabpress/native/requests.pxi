# Writing Produce requests, versions 3 to 13 (network/produce_codec.py): our bytes around the batches.

cdef enum:
    FRAME_LENGTH = 4  # what it takes itself, which it does not count
    # All that our bytes have between two batches beside a topic's name: tags, counts, a partition's number, a length.
    BETWEEN_BATCHES = 32


cdef class RequestParts:
    """A request under way: parts that are done, and bytes that will be the next."""

    cdef list parts
    cdef bytes first
    cdef char *room
    cdef Py_ssize_t at, size
    cdef bint flexible

    def __dealloc__(self):
        PyMem_Free(self.room)

    cdef int reserve(self, Py_ssize_t most) except -1:
        """Have room for so many bytes more in the next part."""
        cdef char *room = <char *>PyMem_Realloc(self.room, self.at + most)
        if room == NULL:
            raise MemoryError
        self.room = room
        return 0

    cdef void put(self, const char *data, Py_ssize_t size) noexcept:
        memcpy(self.room + self.at, data, size)
        self.at += size

    cdef void put_number(self, uint64_t value, int octets) noexcept:
        sp_put_big(self.room + self.at, value, octets)
        self.at += octets

    cdef void put_varint(self, uint64_t value) noexcept:
        while value >= 0x80:
            self.room[self.at] = <char>(value & 0x7F | 0x80)
            self.at += 1
            value >>= 7
        self.room[self.at] = <char>value
        self.at += 1

    cdef void put_count(self, uint64_t count) noexcept:
        """A length or a count; in flexible versions one more, as a varint (KIP-482)."""
        if self.flexible:
            self.put_varint(count + 1)
        else:
            self.put_number(count, 4)

    cdef void put_no_tags(self) noexcept:
        if self.flexible:
            self.put_number(0, 1)

    cdef int end_part(self) except -1:
        """What was put is a part of the request."""
        cdef bytes part
        if self.at == 0:
            return 0
        part = PyBytes_FromStringAndSize(self.room, self.at)
        if self.first is None:
            self.first = part
        self.parts.append(PyMemoryView_FromObject(part))
        self.size += self.at
        self.at = 0
        return 0


def write_produce(bytes beginning not None, bint flexible, int16_t api, int16_t version, int32_t correlation_id,
                  list topics not None):
    """A Produce request: its parts, which alternate between our bytes and what is sent, and how many bytes it has.

    Args:
        beginning: all before the topics, with room for the frame's head.
        flexible: counts are varints, and everything ends with tagged fields (KIP-482).
        api, version, correlation_id: for the frame's head.
        topics: for each its name or id as it is written, and its batches: (partition, views, bytes).
    """
    cdef RequestParts request = RequestParts.__new__(RequestParts)
    cdef bytes name
    cdef char *head
    cdef Py_ssize_t length
    request.parts = []
    request.flexible = flexible
    request.reserve(PyBytes_GET_SIZE(beginning) + BETWEEN_BATCHES)
    request.put(PyBytes_AS_STRING(beginning), PyBytes_GET_SIZE(beginning))
    request.put_count(len(topics))
    for name, batches in topics:
        request.reserve(PyBytes_GET_SIZE(name) + BETWEEN_BATCHES)
        request.put(PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name))
        request.put_count(len(batches))
        for partition, views, length in batches:
            request.reserve(BETWEEN_BATCHES)
            request.put_number(<uint64_t><int64_t>partition, 4)
            request.put_count(length)
            request.end_part()
            request.parts += views
            request.size += length
            request.reserve(BETWEEN_BATCHES)
            request.put_no_tags()
        request.put_no_tags()
    request.put_no_tags()
    request.end_part()
    # Nobody else has seen these bytes yet.
    head = PyBytes_AS_STRING(request.first)
    sp_put_big(head, request.size - FRAME_LENGTH, 4)
    sp_put_big(head + 4, <uint64_t>api, 2)
    sp_put_big(head + 6, <uint64_t>version, 2)
    sp_put_big(head + 8, <uint64_t>correlation_id, 4)
    return request.parts, request.size
