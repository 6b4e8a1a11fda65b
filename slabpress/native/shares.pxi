# How much of the arena the batches of each leader hold, so that one that is down leaves room for the others.

cdef enum:
    LEADERS_COUNTED = 64  # brokers beyond these share one count
    SHARE = 4


cdef class Shares:
    """Which leaders hold more than their share of one kind of block.

    The rule is that of shared-memory switches (Choudhury and Hahne, "Dynamic queue length thresholds", 1998): a leader
    may hold ``SHARE`` times what is free after that. One that is stuck gets four fifths, two get four ninths each, and
    something is left for the others, whoever is stuck, without anybody having to know who is. Who holds nothing may
    have all that is free.

    Args:
        memory: the mapping.
        blocks: slabs or output buffers.
        states: the batches' state words.
        holding: the batch states in which a batch holds such blocks, one bit each.
        descriptors, descriptor_bytes: the descriptor table.
        count_at, partition_at, seal_number_at: field offsets in it: how many of the blocks the batch holds, its
            partition's index, its seal number.
        step: how many blocks are given at a time, at most. The same for all: were a small batch judged by its own size,
            it would pass a large one of its topic-partition.
        leave: blocks that are not counted as free: others must find them.
        partitions, partition_bytes, leader_at: the partition table, and the leader's word in an entry.
        brokers_at: offset of the u32 that says how many brokers the cluster has.
    """

    cdef Memory memory
    cdef Blocks blocks
    cdef Words states
    cdef uint32_t holding
    cdef Py_ssize_t descriptors, descriptor_bytes, count_at, partition_at, seal_number_at, step, leave
    cdef Py_ssize_t partitions, partition_bytes, leader_at, brokers_at, partition_count
    cdef uint32_t leaders[LEADERS_COUNTED]
    cdef Py_ssize_t held[LEADERS_COUNTED]
    cdef Py_ssize_t known, trusted
    cdef Py_ssize_t free  # at the last count

    def __init__(self, Memory memory not None, Blocks blocks not None, Words states not None, uint32_t holding,
                 Py_ssize_t descriptors, Py_ssize_t descriptor_bytes, Py_ssize_t count_at, Py_ssize_t partition_at,
                 Py_ssize_t seal_number_at, Py_ssize_t partitions, Py_ssize_t partition_bytes, Py_ssize_t leader_at,
                 Py_ssize_t partition_count, Py_ssize_t brokers_at, Py_ssize_t step, Py_ssize_t leave):
        memory.at(descriptors, states.count * descriptor_bytes)
        memory.at(partitions, partition_count * partition_bytes)
        memory.at(brokers_at, 4)
        self.memory = memory
        self.blocks = blocks
        self.states = states
        self.holding = holding
        self.descriptors = descriptors
        self.descriptor_bytes = descriptor_bytes
        self.count_at = count_at
        self.step = step
        self.leave = leave
        self.partition_at = partition_at
        self.seal_number_at = seal_number_at
        self.partitions = partitions
        self.partition_bytes = partition_bytes
        self.leader_at = leader_at
        self.partition_count = partition_count
        self.brokers_at = brokers_at
        self.known = 0
        self.trusted = 0
        self.free = blocks.count

    cdef uint32_t leader_of(self, char *descriptor) except? 0xFFFFFFFE:
        """The leader's word of a batch's partition; 0 where it is not known yet."""
        cdef uint32_t partition = (<uint32_t *>(descriptor + self.partition_at))[0]
        if partition >= <uint32_t>self.partition_count:
            return 0
        return sp_load32(self.memory.at(
            self.partitions + <Py_ssize_t>partition * self.partition_bytes + self.leader_at, 4))

    cdef Py_ssize_t place_of(self, uint32_t leader) noexcept:
        """The leader's place in the counts, made for it if there is none."""
        cdef Py_ssize_t place
        for place in range(self.known):
            if self.leaders[place] == leader:
                return place
        if self.known == LEADERS_COUNTED:
            return LEADERS_COUNTED - 1
        self.leaders[self.known] = leader
        self.held[self.known] = 0
        self.known += 1
        return self.known - 1

    cdef int count(self, Py_ssize_t free) except -1:
        """Count anew what each leader's batches hold while so many blocks are free."""
        cdef char *words = self.memory.at(self.states.offset, 4 * self.states.count)
        cdef char *descriptor = self.memory.at(self.descriptors, self.states.count * self.descriptor_bytes)
        cdef Py_ssize_t index, place, batches = 0
        cdef uint32_t state
        self.known = 0
        self.free = free
        for index in range(self.states.count):
            state = sp_load32(words + 4 * index)
            if state < 32 and self.holding >> state & 1:
                batches += 1
                place = self.place_of(self.leader_of(descriptor))
                self.held[place] += (<uint32_t *>(descriptor + self.count_at))[0]
            descriptor += self.descriptor_bytes
        # Counting looks at every batch: that is paid for once in so many decisions.
        self.trusted = batches // 32
        return 0

    cdef bint has_share(self, uint32_t leader, Py_ssize_t free) noexcept:
        """Whether a leader has its share, by the last count."""
        cdef Py_ssize_t held = self.held[self.place_of(leader)]
        return leader != 0 and held > 0 and held + self.step > SHARE * (free - self.leave - self.step)

    cdef bint is_tight(self, Py_ssize_t free) except -1:
        """Whether shares matter at all: less than half is free, and there is more than one leader."""
        return 2 * free < self.blocks.count and sp_load32(self.memory.at(self.brokers_at, 4)) > 1

    cdef bint is_over(self, uint32_t leader) except -1:
        cdef Py_ssize_t free
        if sp_load32(self.memory.at(self.brokers_at, 4)) <= 1:
            return False  # as is_tight says, without a look at every block
        free = self.blocks.free_blocks()
        if not self.is_tight(free):
            return False
        if self.trusted > 0 and not self.has_share(leader, free):
            self.trusted -= 1
            return False
        self.count(free)  # nobody waits because of an old count
        return self.has_share(leader, free)

    cdef uint32_t leader_at_index(self, Py_ssize_t partition) except? 0xFFFFFFFE:
        if not 0 <= partition < self.partition_count:
            raise IndexError(f"partition {partition} of {self.partition_count}")
        return sp_load32(self.memory.at(self.partitions + partition * self.partition_bytes + self.leader_at, 4))

    def over(self, Py_ssize_t partition):
        """Whether the leader of a partition has its share."""
        return self.is_over(self.leader_at_index(partition))

    def was_over(self, Py_ssize_t partition):
        """Whether it had its share when ``over``, ``first_within`` or a record writer counted last: for whoever looks
        at many partitions, one after the other.
        """
        return self.is_tight(self.free) and self.has_share(self.leader_at_index(partition), self.free)

    def held_by_leader(self, Py_ssize_t partition, uint32_t states):
        """How many of the blocks the batches of a partition's leader hold in these states, one bit each."""
        cdef char *words = self.memory.at(self.states.offset, 4 * self.states.count)
        cdef char *descriptor = self.memory.at(self.descriptors, self.states.count * self.descriptor_bytes)
        cdef uint32_t leader = self.leader_at_index(partition), state
        cdef Py_ssize_t index, held = 0
        for index in range(self.states.count):
            state = sp_load32(words + 4 * index)
            if state < 32 and states >> state & 1 and self.leader_of(descriptor) == leader:
                held += (<uint32_t *>(descriptor + self.count_at))[0]
            descriptor += self.descriptor_bytes
        return held

    def held_within(self, uint32_t states):
        """How many of the blocks the batches of leaders that may have more hold in these states, one bit each."""
        cdef char *words = self.memory.at(self.states.offset, 4 * self.states.count)
        cdef char *descriptor = self.memory.at(self.descriptors, self.states.count * self.descriptor_bytes)
        cdef uint32_t state
        cdef Py_ssize_t index, held = 0, free = self.blocks.free_blocks()
        cdef bint tight = self.is_tight(free)
        if tight:
            self.count(free)
        for index in range(self.states.count):
            state = sp_load32(words + 4 * index)
            if state < 32 and states >> state & 1:
                if not tight or not self.has_share(self.leader_of(descriptor), free):
                    held += (<uint32_t *>(descriptor + self.count_at))[0]
            descriptor += self.descriptor_bytes
        return held

    def has_any(self, Py_ssize_t partition, uint32_t state):
        """Whether a partition, and not only its leader, has a batch in ``state``."""
        cdef char *words = self.memory.at(self.states.offset, 4 * self.states.count)
        cdef char *descriptor = self.memory.at(self.descriptors, self.states.count * self.descriptor_bytes)
        cdef Py_ssize_t index
        for index in range(self.states.count):
            if (sp_load32(words + 4 * index) == state
                    and (<uint32_t *>(descriptor + self.partition_at))[0] == <uint32_t>partition):
                return True
            descriptor += self.descriptor_bytes
        return False

    def first_within(self, uint32_t state):
        """Of the batches in ``state`` whose leader may have more, the one that was sealed first; -1 for none."""
        cdef char *words = self.memory.at(self.states.offset, 4 * self.states.count)
        cdef char *descriptor = self.memory.at(self.descriptors, self.states.count * self.descriptor_bytes)
        cdef Py_ssize_t index, first = -1
        cdef uint64_t number, lowest = 0
        cdef bint tight
        self.free = self.blocks.free_blocks()
        tight = self.is_tight(self.free)
        if tight:
            self.count(self.free)
        for index in range(self.states.count):
            if sp_load32(words + 4 * index) == state:
                number = sp_load64(descriptor + self.seal_number_at)
                if first < 0 or number < lowest:
                    if not tight or not self.has_share(self.leader_of(descriptor), self.free):
                        first, lowest = index, number
            descriptor += self.descriptor_bytes
        return first
