# What the network process hears of an arena, and what it does with a batch: one native step each.

cdef extern from *:
    """
    /* Big-endian, as Kafka's headers are; compilers make one store of it. */
    static inline void sp_put_big(char *out, uint64_t value, int bytes) {
        for (int at = 0; at < bytes; at++) out[at] = (char)(value >> 8 * (bytes - 1 - at));
    }
    """
    void sp_put_big(char *out, uint64_t value, int size) nogil

cdef enum:
    # The v2 header (KIP-98). The length counts what follows it, the CRC-32C covers what follows that.
    HEADER_SIZE = 61
    HEADER_LENGTH = 8
    HEADER_LEADER_EPOCH = 12
    HEADER_MAGIC = 16
    HEADER_CRC = 17
    HEADER_ATTRIBUTES = 21
    HEADER_LAST_DELTA = 23
    HEADER_BASE_TIMESTAMP = 27
    HEADER_MAX_TIMESTAMP = 35
    HEADER_PRODUCER_ID = 43
    HEADER_PRODUCER_EPOCH = 51
    HEADER_SEQUENCE = 53
    HEADER_RECORDS = 57
    MAGIC_V2 = 2


cdef class Inbox:
    """What others have done in an arena since the network process last looked; it changes nothing there.

    Args:
        memory: the mapping.
        states, ready_state: the batches' state words, and the one of a READY batch.
        ring, tail_at: the seal ring, and the u64 count of what was ever sealed.
        wanted_at: the u64 count of requests for topics.
        descriptors, descriptor_bytes: the descriptor table.
        seal_number_at, partition_at, created_at: field offsets in it.

    There is news before the first look at the topics: whoever takes over from another looks at everything once.

    Attributes:
        cursor: how many seals were followed.
    """

    cdef Memory memory
    cdef Words states, ring
    cdef uint32_t ready_state
    cdef Py_ssize_t tail_at, wanted_at, descriptors, descriptor_bytes, seal_number_at, partition_at, created_at
    # The awaited batches, in the order of their asking, and a flag a descriptor. They are few, at most the first of each
    # topic-partition's: to look at every batch's word was a seventh of this process's instructions with 16 KiB.
    cdef int32_t *awaited
    cdef Py_ssize_t awaited_count
    cdef bytearray is_awaited
    cdef uint64_t wanted
    cdef public uint64_t cursor

    def __init__(self, Memory memory not None, Words states not None, uint32_t ready_state, Words ring not None,
                 Py_ssize_t tail_at, Py_ssize_t wanted_at, Py_ssize_t descriptors, Py_ssize_t descriptor_bytes,
                 Py_ssize_t seal_number_at, Py_ssize_t partition_at, Py_ssize_t created_at):
        memory.at(descriptors, states.count * descriptor_bytes)
        self.memory = memory
        self.states = states
        self.ready_state = ready_state
        self.ring = ring
        self.tail_at = tail_at
        self.wanted_at = wanted_at
        self.descriptors = descriptors
        self.descriptor_bytes = descriptor_bytes
        self.seal_number_at = seal_number_at
        self.partition_at = partition_at
        self.created_at = created_at
        self.awaited = <int32_t *>PyMem_Realloc(self.awaited, states.count * sizeof(int32_t))
        if self.awaited == NULL:
            raise MemoryError
        self.awaited_count = 0
        self.is_awaited = bytearray(states.count)
        self.wanted = 0xFFFFFFFFFFFFFFFF  # as nobody counts: there is news until the first look
        self.cursor = 0

    def __dealloc__(self):
        PyMem_Free(self.awaited)

    def await_ready(self, Py_ssize_t index):
        """Tell of this batch once it is READY, whether by ``has_news`` or by ``newly_ready``."""
        if index < 0 or index >= self.states.count:
            raise IndexError(f"batch {index} of {self.states.count}")
        if not PyByteArray_AS_STRING(self.is_awaited)[index]:
            PyByteArray_AS_STRING(self.is_awaited)[index] = 1
            self.awaited[self.awaited_count] = <int32_t>index
            self.awaited_count += 1

    cdef bint is_ready(self, Py_ssize_t place) except -1:
        """Whether the awaited batch at this place is READY."""
        return sp_load32(self.states.word(self.awaited[place])) == self.ready_state

    cdef bint any_ready(self) except -1:
        cdef Py_ssize_t place
        for place in range(self.awaited_count):
            if self.is_ready(place):
                return True
        return False

    def has_news(self):
        """Whether there are new seals, requests for topics, or READY batches that are awaited."""
        return self.is_news()

    cdef bint is_news(self) except -1:
        return (sp_load64(self.memory.at(self.tail_at, 8)) != self.cursor
                or sp_load64(self.memory.at(self.wanted_at, 8)) != self.wanted
                or self.any_ready())

    def newly_ready(self):
        """The awaited batches that are READY; they are awaited no more."""
        cdef char *is_awaited = PyByteArray_AS_STRING(self.is_awaited)
        cdef Py_ssize_t place, kept = 0
        found = []
        for place in range(self.awaited_count):
            if self.is_ready(place):
                found.append(self.awaited[place])
        for place in found:
            is_awaited[place] = 0
        for place in range(self.awaited_count):
            if is_awaited[self.awaited[place]]:  # not whether it is READY: that may be news
                self.awaited[kept] = self.awaited[place]
                kept += 1
        self.awaited_count = kept
        return found

    def take_wanted(self):
        """Whether topics were asked for since the last call."""
        cdef uint64_t wanted = sp_load64(self.memory.at(self.wanted_at, 8))
        cdef bint changed = wanted != self.wanted
        self.wanted = wanted
        return changed

    def next_sealed(self):
        """The next entry of the seal ring, which is passed; None after the last.

        Returns:
            (descriptor index, that descriptor's seal number, state, partition index, creation in ns). Another seal number
            than ``cursor`` has now: the descriptor is another batch's already.
        """
        cdef Py_ssize_t index
        cdef char *descriptor
        if self.cursor >= sp_load64(self.memory.at(self.tail_at, 8)):
            return None
        index = sp_load32(self.ring.word(<Py_ssize_t>(self.cursor % <uint64_t>self.ring.count)))
        self.cursor += 1
        descriptor = self.memory.at(self.descriptors + index * self.descriptor_bytes, self.descriptor_bytes)
        return (index, sp_load64(descriptor + self.seal_number_at), sp_load32(self.states.word(index)),
                (<uint32_t *>(descriptor + self.partition_at))[0], (<int64_t *>(descriptor + self.created_at))[0])


cdef class SendPoint:
    """A READY batch's way: measured, given its header, on the wire, and ended.

    The order of the stores is what lets the process be killed between any two (network/batches.py); tests/shm/faults.py
    has the same steps one by one, and a test compares what both leave.

    Args:
        memory: the mapping.
        states, in_flight_state: the batches' state words, and the one of a batch on the wire.
        outputs, output_in_flight, output_free: the blocks that are sent, and the states that they get.
        splits_at: the u64 count of splits ever.
        counters_at: delivered and failed records, delivered and failed batches, delivered payload bytes, u64 each.
        descriptors, descriptor_bytes: the descriptor table.
        commit_at, first_output_at, attempts_at, result_at, split_source_at, header_at, text_at: field offsets in it;
            each begins a group of fields (shm/layout.py): commit word and two timestamps; first output, count, bytes,
            codec; code, record index, retriable, text length, base offset, append time.
        text_bytes: how long a result's text may be.
    """

    cdef Memory memory
    cdef Words states
    cdef Blocks outputs
    cdef uint32_t in_flight_state, output_in_flight, output_free
    cdef Py_ssize_t splits_at, counters_at, descriptors, descriptor_bytes, commit_at, first_output_at, attempts_at
    cdef Py_ssize_t result_at, split_source_at, header_at, text_at, text_bytes

    def __init__(self, Memory memory not None, Words states not None, uint32_t in_flight_state, Blocks outputs not None,
                 uint32_t output_in_flight, uint32_t output_free, Py_ssize_t splits_at, Py_ssize_t counters_at,
                 Py_ssize_t descriptors, Py_ssize_t descriptor_bytes, Py_ssize_t commit_at, Py_ssize_t first_output_at,
                 Py_ssize_t attempts_at, Py_ssize_t result_at, Py_ssize_t split_source_at, Py_ssize_t header_at,
                 Py_ssize_t text_at, Py_ssize_t text_bytes):
        memory.at(descriptors, states.count * descriptor_bytes)
        memory.at(counters_at, 40)
        self.memory = memory
        self.states = states
        self.in_flight_state = in_flight_state
        self.outputs = outputs
        self.output_in_flight = output_in_flight
        self.output_free = output_free
        self.splits_at = splits_at
        self.counters_at = counters_at
        self.descriptors = descriptors
        self.descriptor_bytes = descriptor_bytes
        self.commit_at = commit_at
        self.first_output_at = first_output_at
        self.attempts_at = attempts_at
        self.result_at = result_at
        self.split_source_at = split_source_at
        self.header_at = header_at
        self.text_at = text_at
        self.text_bytes = text_bytes

    cdef char *descriptor(self, Py_ssize_t index) except NULL:
        if index < 0 or index >= self.states.count:
            raise IndexError(f"batch {index} of {self.states.count}")
        return self.memory.at(self.descriptors + index * self.descriptor_bytes, self.descriptor_bytes)

    def measure(self, Py_ssize_t index):
        """What a READY batch holds: (records, first output, payload bytes, codec, whether it is split)."""
        cdef char *descriptor = self.descriptor(index)
        cdef uint32_t *output = <uint32_t *>(descriptor + self.first_output_at)
        cdef bint is_split = (sp_load64(self.memory.at(self.splits_at, 8)) != 0
                              and sp_load32(descriptor + self.split_source_at) != C_NONE)
        return <uint32_t>sp_load64(descriptor + self.commit_at), output[0], output[2], output[3], is_split

    def make(self, Py_ssize_t index, uint32_t records, int64_t producer_id, int64_t epoch, int64_t sequence, crc32c,
             piece_max_timestamp=None):
        """Write the batch's header; what is to be sent: views of the header and of the payload.

        Args:
            index: the batch.
            records: how many the payload has.
            producer_id, epoch, sequence: who sends it; -1 without idempotence.
            crc32c: takes bytes, and the checksum of what precedes them.
            piece_max_timestamp: of a piece of a split batch; None: the batch's.
        """
        cdef char *descriptor = self.descriptor(index)
        cdef char *header = descriptor + self.header_at
        cdef uint32_t *output = <uint32_t *>(descriptor + self.first_output_at)
        cdef int64_t *timestamps = <int64_t *>(descriptor + self.commit_at + 8)
        cdef int64_t newest = timestamps[1] if piece_max_timestamp is None else piece_max_timestamp
        cdef list parts = self.outputs.runs_of(output[0], output[2])
        memset(header, 0, HEADER_LENGTH)  # the base offset
        sp_put_big(header + HEADER_LENGTH, HEADER_SIZE - HEADER_LEADER_EPOCH + output[2], 4)
        sp_put_big(header + HEADER_LEADER_EPOCH, <uint64_t>-1, 4)
        header[HEADER_MAGIC] = MAGIC_V2
        # The codec; no bit set for CreateTime, not transactional, no control.
        sp_put_big(header + HEADER_ATTRIBUTES, output[3], 2)
        sp_put_big(header + HEADER_LAST_DELTA, records - 1, 4)
        sp_put_big(header + HEADER_BASE_TIMESTAMP, <uint64_t>timestamps[0], 8)
        sp_put_big(header + HEADER_MAX_TIMESTAMP, <uint64_t>newest, 8)
        sp_put_big(header + HEADER_PRODUCER_ID, <uint64_t>producer_id, 8)
        sp_put_big(header + HEADER_PRODUCER_EPOCH, <uint64_t>epoch, 2)
        sp_put_big(header + HEADER_SEQUENCE, <uint64_t>sequence, 4)
        sp_put_big(header + HEADER_RECORDS, records, 4)
        checksum = crc32c(PyMemoryView_FromMemory(
            header + HEADER_ATTRIBUTES, HEADER_SIZE - HEADER_ATTRIBUTES, PyBUF_READ))
        for part in parts:
            checksum = crc32c(part, checksum)
        sp_put_big(header + HEADER_CRC, <uint32_t>checksum, 4)
        parts.insert(0, PyMemoryView_FromMemory(header, HEADER_SIZE, PyBUF_READ))
        return parts

    def any_split(self):
        """Whether a batch of the arena was ever split."""
        return sp_load64(self.memory.at(self.splits_at, 8)) != 0

    def start(self, Py_ssize_t index):
        """READY becomes IN_FLIGHT, and one try more is counted."""
        cdef char *descriptor = self.descriptor(index)
        cdef char *attempts = descriptor + self.attempts_at
        sp_store32(attempts, sp_load32(attempts) + 1)
        self.outputs.paint((<uint32_t *>(descriptor + self.first_output_at))[0], self.output_in_flight)
        sp_store32(self.states.word(index), self.in_flight_state)

    def end(self, Py_ssize_t index, uint32_t records, int32_t code, int32_t record_index, bint retriable,
            int64_t base_offset, int64_t append_time_ms, bytes text not None, int64_t state):
        """Store a result, give the outputs back, count, and store the batch's state, in this order.

        Args:
            index: the batch.
            records: how many have this result.
            code, record_index, retriable, base_offset, append_time_ms, text: the result; the text is cut to what fits.
            state: the batch's next state; -1: the caller has something to do before it stores one.
        """
        cdef char *descriptor = self.descriptor(index)
        cdef char *result = descriptor + self.result_at
        cdef uint32_t *output = <uint32_t *>(descriptor + self.first_output_at)
        cdef uint32_t first = output[0], payload_bytes = output[2]
        cdef Py_ssize_t length = min(PyBytes_GET_SIZE(text), self.text_bytes)
        (<int32_t *>result)[0] = code
        (<int32_t *>(result + 4))[0] = record_index
        (<uint32_t *>(result + 8))[0] = retriable
        (<uint32_t *>(result + 12))[0] = <uint32_t>length
        (<int64_t *>(result + 16))[0] = base_offset
        (<int64_t *>(result + 24))[0] = append_time_ms
        memcpy(descriptor + self.text_at, PyBytes_AS_STRING(text), length)
        self.outputs.paint(first, self.output_in_flight)
        sp_store32(<char *>output, C_NONE)
        self.outputs.paint(first, self.output_free)
        self.count(0 if code == 0 else 8, records)
        self.count(16 if code == 0 else 24, 1)
        if code == 0:
            self.count(32, payload_bytes)
        if state >= 0:
            sp_store32(self.states.word(index), <uint32_t>state)

    cdef int count(self, Py_ssize_t counter, uint64_t amount) except -1:
        cdef char *word = self.memory.at(self.counters_at + counter, 8)
        sp_store64(word, sp_load64(word) + amount)
        return 0
