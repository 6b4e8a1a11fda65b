# Where batches are opened and sealed: descriptors, and the order of seals.

cdef class OpeningPoint:
    """Where descriptors are prepared for batches. The coordinator alone opens.

    Args:
        memory: the mapping.
        states: the batches' state words.
        free_state, open_state: what the words of a free and of an open batch are.
        descriptors, descriptor_bytes: the descriptor table.
        blank: how the descriptor of an empty batch begins.
        created_at, partition_at: offsets within it of the two fields that differ.

    Attributes:
        cursor: where the search for a free one begins: behind the one that was opened last.
    """

    cdef Memory memory
    cdef Words states
    cdef uint32_t free_state, open_state
    cdef readonly Py_ssize_t cursor
    cdef Py_ssize_t descriptors, descriptor_bytes, created_at, partition_at
    cdef bytes blank

    def __init__(self, Memory memory not None, Words states not None, uint32_t free_state, uint32_t open_state,
                 Py_ssize_t descriptors, Py_ssize_t descriptor_bytes, bytes blank not None, Py_ssize_t created_at,
                 Py_ssize_t partition_at):
        memory.at(descriptors, states.count * descriptor_bytes)
        if len(blank) > descriptor_bytes:
            raise ValueError(f"{len(blank)} bytes of a descriptor of {descriptor_bytes}")
        for field, size in ((created_at, 8), (partition_at, 4)):
            if not 0 <= field <= len(blank) - size:
                raise ValueError(f"a field at {field} is outside the {len(blank)} bytes that are prepared")
        self.memory = memory
        self.states = states
        self.free_state = free_state
        self.open_state = open_state
        self.cursor = 0
        self.descriptors = descriptors
        self.descriptor_bytes = descriptor_bytes
        self.blank = blank
        self.created_at = created_at
        self.partition_at = partition_at

    def open(self, OpenBatch batch not None, uint32_t partition_index):
        """Prepare the batch's descriptor, which is free, and store OPEN, in one step that no signal handler splits.

        Nobody looks at a descriptor that is free, so the fields come in any order, and the state word last.
        """
        self.open_for(batch, partition_index)

    cdef Py_ssize_t find_free(self) except -2:
        """A descriptor that is free, -1 if none is."""
        return self.states.find(self.free_state, self.cursor)

    cdef int open_for(self, OpenBatch batch, uint32_t partition_index) except -1:
        cdef char *state = self.states.word(batch.descriptor)
        cdef char *fields = self.memory.at(
            self.descriptors + <Py_ssize_t>batch.descriptor * self.descriptor_bytes, self.descriptor_bytes)
        memcpy(fields, PyBytes_AS_STRING(self.blank), PyBytes_GET_SIZE(self.blank))
        memcpy(fields + self.created_at, &batch.created_ns, 8)
        memcpy(fields + self.partition_at, &partition_index, 4)
        sp_store32(state, self.open_state)
        batch.fields = fields
        self.cursor = (batch.descriptor + 1) % self.states.count
        return 0

    cdef int undo(self, OpenBatch batch) except -1:
        """Give the descriptor of a batch without records back."""
        sp_store32(self.states.word(batch.descriptor), self.free_state)
        return 0


cdef class SealPoint:
    """Where the order of seals is kept. The coordinator alone seals.

    Args:
        memory: the mapping.
        tail_at: offset of the u64 that counts seals.
        ring: the seal ring.
        states: the batches' state words.
        seal_number_at: offset of the seal number within a descriptor.
        counters_at: offset of the u64 that count records, bytes and batches, one after the other.
        output_at: in a direct arena, offset within a descriptor of the u32 that say what is sent: first block, how many,
            bytes, codec; -1 in another.
    """

    cdef Memory memory
    cdef Py_ssize_t tail_at, seal_number_at, counters_at, output_at
    cdef Words ring, states

    def __init__(self, Memory memory not None, Py_ssize_t tail_at, Words ring not None, Words states not None,
                 Py_ssize_t seal_number_at, Py_ssize_t counters_at, Py_ssize_t output_at):
        memory.at(tail_at, 8)
        memory.at(counters_at, 3 * 8)
        self.memory = memory
        self.tail_at = tail_at
        self.ring = ring
        self.states = states
        self.seal_number_at = seal_number_at
        self.counters_at = counters_at
        self.output_at = output_at

    cdef void say_output(self, OpenBatch batch) noexcept:
        """The batch is sent from its slabs, as they are."""
        cdef uint32_t *output = <uint32_t *>(batch.fields + self.output_at)
        output[0] = batch.first_slab
        output[1] = batch.slabs
        output[2] = <uint32_t>batch.bytes
        output[3] = 0  # no codec

    cdef int count(self, OpenBatch batch) except -1:
        cdef uint64_t *counters = <uint64_t *>self.memory.at(self.counters_at, 3 * 8)
        sp_store64(&counters[0], counters[0] + batch.records)
        sp_store64(&counters[1], counters[1] + batch.bytes)
        sp_store64(&counters[2], counters[2] + 1)
        return 0
