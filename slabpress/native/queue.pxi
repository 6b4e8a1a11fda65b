# What a worker reads before it is admitted to a batch.

cdef struct Candidate:
    # A batch that a worker may be admitted to.
    Py_ssize_t index, needed
    uint32_t first_slab
    uint64_t seal_number


cdef class SealedQueue:
    """The sealed batches as a worker sees them, in one look; it changes nothing.

    It answers for the ordinary case alone, in which the ring's first batch is the next one. Whatever else may be (a dead
    worker's batch, one that was set aside or split, an entry that is over) is shm/admission.py's, step by step.

    Args:
        memory: the mapping.
        states, sealed_state: the batches' state words, and the one of a sealed batch.
        ring, head_at, tail_at: the seal ring, and the u64 counts of its ends.
        orphans_at, parked_at: the u64 counts of orphans and of PARKED batches.
        splits_at, oversize_state: the u64 count of splits ever, and the state of a batch that waits for a piece.
        outputs, shares: the output buffers, and who holds how many.
        leave: how many buffers must be left free.
        descriptors, descriptor_bytes: the descriptor table.
        commit_at, seal_number_at, first_slab_at: field offsets in it.
        is_direct: what is in the ring waits for no worker.
    """

    cdef Memory memory
    cdef Words states, ring
    cdef Blocks outputs
    cdef Shares shares
    cdef uint32_t sealed_state, oversize_state
    cdef Py_ssize_t head_at, tail_at, orphans_at, parked_at, splits_at, leave
    cdef Py_ssize_t descriptors, descriptor_bytes, commit_at, seal_number_at, first_slab_at
    cdef bint is_direct

    def __init__(self, Memory memory not None, Words states not None, uint32_t sealed_state, Words ring not None,
                 Py_ssize_t head_at, Py_ssize_t tail_at, Py_ssize_t orphans_at, Py_ssize_t parked_at,
                 Py_ssize_t splits_at, uint32_t oversize_state, Blocks outputs not None, Shares shares not None,
                 Py_ssize_t leave, Py_ssize_t descriptors, Py_ssize_t descriptor_bytes, Py_ssize_t commit_at,
                 Py_ssize_t seal_number_at, Py_ssize_t first_slab_at, bint is_direct):
        memory.at(descriptors, states.count * descriptor_bytes)
        self.memory = memory
        self.states = states
        self.sealed_state = sealed_state
        self.ring = ring
        self.head_at = head_at
        self.tail_at = tail_at
        self.outputs = outputs
        self.shares = shares
        self.leave = leave
        self.descriptors = descriptors
        self.descriptor_bytes = descriptor_bytes
        self.commit_at = commit_at
        self.seal_number_at = seal_number_at
        self.first_slab_at = first_slab_at
        self.is_direct = is_direct
        self.orphans_at = orphans_at
        self.parked_at = parked_at
        self.splits_at = splits_at
        self.oversize_state = oversize_state

    cdef bint any_aside(self) except -1:
        """Whether orphans or PARKED batches may wait."""
        return (sp_load64(self.memory.at(self.orphans_at, 8)) != 0
                or sp_load64(self.memory.at(self.parked_at, 8)) != 0)

    cdef bint any_piece(self) except -1:
        """Whether a split batch waits for a piece: looked for only once there was a split."""
        return (sp_load64(self.memory.at(self.splits_at, 8)) != 0
                and self.states.find(self.oversize_state) >= 0)

    cdef char *descriptor(self, Py_ssize_t index) except NULL:
        if index < 0 or index >= self.states.count:
            raise IndexError(f"batch {index} of {self.states.count}")
        return self.memory.at(self.descriptors + index * self.descriptor_bytes, self.descriptor_bytes)

    cdef bint is_ring_empty(self) except -1:
        """Whether nothing in the seal ring waits for a worker."""
        # The head first: both ends only grow, so a head that is as far as a later tail is as far as it now.
        cdef uint64_t head = sp_load64(self.memory.at(self.head_at, 8))
        return self.is_direct or head == sp_load64(self.memory.at(self.tail_at, 8))

    def is_empty(self):
        """Whether nothing at all waits to be admitted."""
        return self.is_ring_empty() and not self.any_aside() and not self.any_piece()

    cdef bint look(self, Candidate *found) except -1:
        """Whether the ring's first batch may be admitted now and nothing goes before it."""
        cdef uint64_t head = sp_load64(self.memory.at(self.head_at, 8))
        cdef char *descriptor
        if self.is_direct or head == sp_load64(self.memory.at(self.tail_at, 8)) or self.any_aside() or self.any_piece():
            return False
        found.index = sp_load32(self.ring.word(<Py_ssize_t>(head % <uint64_t>self.ring.count)))
        if sp_load32(self.states.word(found.index)) != self.sealed_state:
            return False
        descriptor = self.descriptor(found.index)
        # A state alone does not tell: the descriptor may be in use again, sealed with a later number.
        if sp_load64(descriptor + self.seal_number_at) != head + 1:
            return False
        found.needed = <Py_ssize_t>((sp_load64(descriptor + self.commit_at) >> 32) + self.outputs.block_bytes - 1)
        found.needed = max(1, found.needed // self.outputs.block_bytes)
        found.first_slab = (<uint32_t *>(descriptor + self.first_slab_at))[0]
        found.seal_number = head + 1
        return (self.outputs.has_free(found.needed + self.leave)
                and not self.shares.is_over(self.shares.leader_of(descriptor)))

    def is_ready(self):
        """Whether the ring's first batch may be admitted now and nothing goes before it: a hint without the lock."""
        cdef Candidate found
        return self.look(&found)
