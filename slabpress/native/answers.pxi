# Where a response begins and ends (network/framing.py); Produce responses, versions 3 to 13 (network/produce_answer.py).

cdef enum:
    FIRST_WITH_LOG_START = 5
    FIRST_WITH_RECORD_ERRORS = 8
    FIRST_WITH_TAGS = 9
    FIRST_WITH_IDS = 13
    # KIP-951: the tag of a result's new leader, and of a response's addresses.
    CURRENT_LEADER = 0
    NODE_ENDPOINTS = 0


def whole_frame(data, Py_ssize_t most):
    """The response's bytes after its length, if ``data`` is one whole response, of at most so many bytes; else None."""
    cdef Py_buffer view
    cdef const uint8_t *octets
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        octets = <const uint8_t *>view.buf
        if view.len < 4 or view.len > most or big_u32(octets) != <uint64_t>view.len - 4:
            return None
        return PyBytes_FromStringAndSize(<const char *>octets + 4, view.len - 4)
    finally:
        PyBuffer_Release(&view)


def correlation_id_of(bytes frame not None):
    """The correlation id that every response begins with. Raises ValueError if there is none."""
    if PyBytes_GET_SIZE(frame) < 4:
        raise ValueError(f"a response of {PyBytes_GET_SIZE(frame)} bytes has no correlation id")
    return <int32_t>big_u32(<const uint8_t *>PyBytes_AS_STRING(frame))


cdef inline uint32_t big_u32(const uint8_t *octets) noexcept nogil:
    return (<uint32_t>octets[0] << 24) | (<uint32_t>octets[1] << 16) | (<uint32_t>octets[2] << 8) | octets[3]


def read_produce(int version, bytes frame not None, type result not None, topic_of):
    """A Produce response: (throttle time in ms, results, addresses).

    Args:
        version: of the response.
        frame: its bytes, from the correlation id on.
        result: what each result is: a tuple of (topic, partition, error, base offset, append time, record errors, message,
            leader, its epoch), by names.
        topic_of: the topic of an id's 16 bytes.

    An address: (node, host, port).

    Raises:
        ValueError: it does not parse.
    """
    cdef AnswerReader reader = AnswerReader.__new__(AnswerReader)
    reader.version = version
    reader.flexible = version >= FIRST_WITH_TAGS
    reader.frame = frame
    reader.data = <const uint8_t *>PyBytes_AS_STRING(frame)
    reader.size = PyBytes_GET_SIZE(frame)
    return reader.read(result, topic_of)


@cython.final
cdef class AnswerReader:
    """A place in a Produce response."""

    cdef int version
    cdef bint flexible
    cdef bytes frame
    cdef const uint8_t *data
    cdef Py_ssize_t at, size

    cdef tuple read(self, type result, topic_of):
        cdef Py_ssize_t topics, partitions
        results = []
        brokers = []
        self.skip(4)  # the correlation id
        self.pass_tags()
        topics = self.count()
        while topics > 0:
            topics -= 1
            topic = topic_of(self.octets(16)) if self.version >= FIRST_WITH_IDS else self.text()
            partitions = self.count()
            while partitions > 0:
                partitions -= 1
                results.append(tuple.__new__(result, self.result(topic)))
            self.pass_tags()
        throttle_ms = self.number(4)
        self.read_endpoints(brokers)
        return throttle_ms, results, brokers

    cdef tuple result(self, object topic):
        cdef int64_t partition = self.number(4)
        cdef int64_t error = self.number(2)
        cdef int64_t offset = self.number(8)
        cdef int64_t append_time_ms = self.number(8)
        cdef int64_t leader = -1, epoch = -1
        cdef Py_ssize_t errors, tags, tag, end
        record_errors = []
        message = ""
        if self.version >= FIRST_WITH_LOG_START:
            self.skip(8)
        if self.version >= FIRST_WITH_RECORD_ERRORS:
            errors = self.count()
            while errors > 0:
                errors -= 1
                index = self.number(4)
                record_errors.append((index, self.text()))
                self.pass_tags()
            message = self.text()
        if self.flexible:
            tags = self.varint()
            while tags > 0:
                tags -= 1
                tag = self.varint()
                end = self.end_of_tag()
                if tag == CURRENT_LEADER:
                    leader = self.number(4)
                    epoch = self.number(4)
                self.end_tag(end)
        return topic, partition, error, offset, append_time_ms, record_errors, message, leader, epoch

    cdef int read_endpoints(self, list brokers) except -1:
        cdef Py_ssize_t tags, tag, end, nodes
        if not self.flexible:
            return 0
        tags = self.varint()
        while tags > 0:
            tags -= 1
            tag = self.varint()
            end = self.end_of_tag()
            nodes = self.count() if tag == NODE_ENDPOINTS else 0
            while nodes > 0:
                nodes -= 1
                node = self.number(4)
                host = self.text()
                brokers.append((node, host, self.number(4)))
                self.text()  # its rack
                self.pass_tags()
            self.end_tag(end)
        return 0

    cdef int skip(self, Py_ssize_t octets) except -1:
        if octets > self.size - self.at:
            raise ValueError(f"{octets} bytes wanted, {self.size - self.at} are left")
        self.at += octets
        return 0

    cdef int64_t number(self, int octets) except? -2:
        """A signed big-endian number."""
        cdef const uint8_t *data = self.data + self.at
        cdef uint64_t value = 0
        cdef int place
        self.skip(octets)
        for place in range(octets):
            value = value << 8 | data[place]
        return <int64_t>(value << (64 - 8 * octets)) >> (64 - 8 * octets)

    cdef Py_ssize_t varint(self) except -1:
        """An unsigned varint of at most 32 bits."""
        cdef uint64_t value = 0
        cdef int shift = 0
        cdef uint8_t octet
        while shift < 35:
            self.skip(1)
            octet = self.data[self.at - 1]
            value |= <uint64_t>(octet & 0x7F) << shift
            if octet < 0x80:
                return <Py_ssize_t>value
            shift += 7
        raise ValueError("a length that does not end")

    cdef Py_ssize_t count(self) except -2:
        """How many elements an array has, less than 1 where it is null; there cannot be more than bytes are left."""
        cdef Py_ssize_t count = self.varint() - 1 if self.flexible else <Py_ssize_t>self.number(4)
        if count > self.size - self.at:
            raise ValueError(f"{count} elements in {self.size - self.at} bytes")
        return max(count, -1)

    cdef object text(self):
        """A string; empty where it is null."""
        cdef Py_ssize_t length = self.varint() - 1 if self.flexible else <Py_ssize_t>self.number(2)
        if length <= 0:
            return ""
        self.skip(length)
        return PyUnicode_DecodeUTF8(<const char *>self.data + self.at - length, length, NULL)

    cdef bytes octets(self, Py_ssize_t length):
        self.skip(length)
        return self.frame[self.at - length : self.at]

    cdef Py_ssize_t end_of_tag(self) except -1:
        """Where a tagged field ends, whose size is next."""
        cdef Py_ssize_t size = self.varint()
        if size > self.size - self.at:
            raise ValueError(f"a tagged field of {size} bytes, {self.size - self.at} are left")
        return self.at + size

    cdef int end_tag(self, Py_ssize_t end) except -1:
        """Go to a tagged field's end. Never back: many fields could each have all that follows them read as their own."""
        if self.at > end:
            raise ValueError(f"a tagged field is {self.at - end} bytes longer than it says")
        self.at = end
        return 0

    cdef int pass_tags(self) except -1:
        """Pass over a set of tagged fields (KIP-482)."""
        cdef Py_ssize_t tags
        if self.flexible:
            tags = self.varint()
            while tags > 0:
                tags -= 1
                self.varint()
                self.at = self.end_of_tag()
        return 0
