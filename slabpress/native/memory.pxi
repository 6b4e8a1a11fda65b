# The shared mapping as words, and fixed-size blocks chained through a table of next indices.

cdef enum:
    # Words that are looked at together (sp_count32) where most are not what is looked for.
    WORDS_AT_ONCE = 128


@cython.final
cdef class Memory:
    """The shared mapping, as words.

    Args:
        buffer: a writable mmap; it cannot be closed until ``release`` was called.
    """

    cdef Py_buffer view
    cdef char *base
    cdef readonly Py_ssize_t size

    def __cinit__(self, buffer):
        PyObject_GetBuffer(buffer, &self.view, PyBUF_WRITABLE)
        self.base = <char *>self.view.buf
        self.size = self.view.len

    def __dealloc__(self):
        self.release()

    cpdef release(self):
        """Let go of the mapping; every later access raises ValueError."""
        if self.base != NULL:
            self.base = NULL
            self.size = 0
            PyBuffer_Release(&self.view)

    cdef inline char *at(self, Py_ssize_t offset, Py_ssize_t length) except NULL:
        if self.base == NULL:
            raise ValueError("the arena was released")
        if offset < 0 or length < 0 or length > self.size or offset > self.size - length:
            raise IndexError(f"offset {offset} + {length} is outside the arena of {self.size} bytes")
        return self.base + offset

    def load_u32(self, Py_ssize_t offset):
        """Acquire-load the 32-bit word at ``offset``."""
        return sp_load32(self.at(offset, 4))

    def store_u32(self, Py_ssize_t offset, uint32_t value):
        """Release-store the 32-bit word at ``offset``."""
        sp_store32(self.at(offset, 4), value)

    def load_u64(self, Py_ssize_t offset):
        """Acquire-load the 64-bit word at ``offset``."""
        return sp_load64(self.at(offset, 8))

    def store_u64(self, Py_ssize_t offset, uint64_t value):
        """Release-store the 64-bit word at ``offset``."""
        sp_store64(self.at(offset, 8), value)

    def add_u64(self, Py_ssize_t offset, uint64_t amount):
        """Add to a counter that has one writer: this process."""
        cdef char *word = self.at(offset, 8)
        sp_store64(word, sp_load64(word) + amount)

    def add_all(self, Py_ssize_t offset, *amounts):
        """Add to u64 counters that lie one behind the other and have one writer: this process."""
        cdef char *word = self.at(offset, 8 * len(amounts))
        cdef uint64_t amount
        for amount in amounts:
            sp_store64(word, sp_load64(word) + amount)
            word += 8

    def fenced_u32(self, Py_ssize_t offset):
        """``fence``, then ``load_u32``."""
        sp_fence()
        return sp_load32(self.at(offset, 4))

    def fence(self):
        """A full fence: what was stored before is visible before anything after it is loaded."""
        sp_fence()

    def view_of(self, Py_ssize_t offset, Py_ssize_t length):
        """A writable memoryview of ``length`` bytes; the caller drops it before ``release``."""
        return PyMemoryView_FromMemory(self.at(offset, length), length, PyBUF_WRITE)


@cython.final
cdef class Words:
    """A table of 32-bit state words.

    Args:
        memory: the mapping.
        offset: bytes from its start.
        count: how many words.
    """

    cdef Memory memory
    cdef Py_ssize_t offset
    cdef readonly Py_ssize_t count

    def __init__(self, Memory memory, Py_ssize_t offset, Py_ssize_t count):
        memory.at(offset, 4 * count)
        self.memory = memory
        self.offset = offset
        self.count = count

    cdef inline char *word(self, Py_ssize_t index) except NULL:
        if index < 0 or index >= self.count:
            raise IndexError(f"word {index} of {self.count}")
        return self.memory.at(self.offset + 4 * index, 4)

    def load(self, Py_ssize_t index):
        """Acquire-load one word."""
        return sp_load32(self.word(index))

    def store(self, Py_ssize_t index, uint32_t value):
        """Release-store one word."""
        sp_store32(self.word(index), value)

    cpdef Py_ssize_t find(self, uint32_t value, Py_ssize_t start=0) except -2:
        """The first index at or after ``start``, going round, whose word is ``value``; -1 if none is."""
        cdef char *base = self.memory.at(self.offset, 4 * self.count)
        cdef Py_ssize_t step, index = start
        if start < 0 or start >= self.count:
            raise IndexError(f"word {start} of {self.count}")
        for step in range(self.count):
            if index >= self.count:
                index -= self.count
            if sp_load32(base + 4 * index) == value:
                return index
            index += 1
        return -1

    def find_all(self, uint32_t value):
        """Every index whose word is ``value``."""
        cdef char *base = self.memory.at(self.offset, 4 * self.count)
        cdef Py_ssize_t index = 0, after
        found = []
        while index < self.count:
            after = min(index + WORDS_AT_ONCE, self.count)
            if sp_count32(base + 4 * index, after - index, value) == 0:
                index = after
                continue
            while index < after:
                if sp_load32(base + 4 * index) == value:
                    found.append(index)
                index += 1
        return found

    def has(self, uint32_t value):
        """Whether any word is ``value``: 2,000 take 0.15 us, where ``find`` takes 1 if none is."""
        return sp_count32(self.memory.at(self.offset, 4 * self.count), self.count, value) > 0

    def count_state(self, uint32_t state):
        """How many words hold a state, whoever owns them (the low byte of a word is its state)."""
        return sp_count_masked(self.memory.at(self.offset, 4 * self.count), self.count, 0xFF, state)

    def tally(self, Py_ssize_t values):
        """How many words hold each state 0 .. values-1. Each word is looked at once, so they are never more in all."""
        cdef char *base = self.memory.at(self.offset, 4 * self.count)
        cdef Py_ssize_t index, counts[256]
        memset(counts, 0, sizeof(counts))
        for index in range(self.count):
            counts[sp_load32(base + 4 * index) & 0xFF] += 1
        return [counts[index] for index in range(min(values, 256))]


@cython.final
cdef class Blocks:
    """Fixed-size blocks (slabs or output buffers) that are chained through a table of next indices.

    Only one process at a time may call ``claim`` (the coordinator for slabs; the holder of the admission
    lock for output buffers): freeing, from any process, is a release store of the free state, nothing else.

    Args:
        memory: the mapping.
        states: offset of the u32 state words.
        nexts: offset of the u32 next indices.
        data: offset of the first block.
        count: how many blocks.
        block_bytes: size of each.
        free: the state word's value that means free.
        own: blocks before this one are somebody else's to claim: they are only marked, walked and read here.
    """

    cdef Memory memory
    cdef Py_ssize_t states, nexts, data, own
    cdef readonly Py_ssize_t count
    cdef readonly Py_ssize_t block_bytes
    cdef uint32_t free

    def __init__(self, Memory memory, Py_ssize_t states, Py_ssize_t nexts, Py_ssize_t data,
                 Py_ssize_t count, Py_ssize_t block_bytes, uint32_t free, Py_ssize_t own=0):
        if not 0 <= own <= count:
            raise ValueError(f"block {own} is not among {count}")
        memory.at(states, 4 * count)
        memory.at(nexts, 4 * count)
        memory.at(data, count * block_bytes)
        self.memory = memory
        self.states = states
        self.nexts = nexts
        self.data = data
        self.count = count
        self.block_bytes = block_bytes
        self.free = free
        self.own = own

    cdef uint32_t take(self, Py_ssize_t wanted, uint32_t state) except? 0xFFFFFFFE:
        """Chain ``wanted`` free blocks; their first index, or C_NONE with nothing changed.

        The lowest ones: while consumers keep up the same few are used over and over, and stay in the processor's
        caches. Going round, which takes the one unused for longest, cost 6 ns a record of 200 bytes; to look at 1,000
        that are in use costs 2.
        """
        cdef char *states = self.memory.at(self.states, 4 * self.count)
        cdef uint32_t *nexts = <uint32_t *>self.memory.at(self.nexts, 4 * self.count)
        cdef Py_ssize_t index, found = 0
        cdef uint32_t first = C_NONE, last = C_NONE
        for index in range(self.own, self.count):
            if sp_load32(states + 4 * index) == self.free:
                # A free block's next word belongs to whoever may claim, so a chain that comes out too
                # short has changed nothing that anybody reads.
                if found == 0:
                    first = <uint32_t>index
                else:
                    nexts[last] = <uint32_t>index
                last = <uint32_t>index
                found += 1
                if found == wanted:
                    break
        if found < wanted or wanted <= 0:
            return C_NONE
        nexts[last] = C_NONE
        self.paint(first, state)
        return first

    cdef int paint(self, uint32_t first, uint32_t state) except -1:
        """Store ``state`` along a chain. The next index is read before its block is given away."""
        cdef uint32_t index = first, following
        cdef Py_ssize_t steps = 0
        while index != C_NONE:
            if index >= <uint32_t>self.count or steps >= self.count:
                raise ValueError(f"chain from block {first} leaves the table of {self.count} blocks")
            following = (<uint32_t *>self.memory.at(self.nexts, 4 * self.count))[index]
            sp_store32(self.memory.at(self.states + 4 * <Py_ssize_t>index, 4), state)
            index = following
            steps += 1
        return 0

    def claim(self, Py_ssize_t wanted, uint32_t state):
        """Take ``wanted`` free blocks as one chain in ``state``; its first index, or NONE if too few are free."""
        return self.take(wanted, state)

    def mark(self, uint32_t first, uint32_t state):
        """Store ``state`` in every block of the chain that starts at ``first`` (NONE: an empty chain)."""
        self.paint(first, state)

    def trim(self, uint32_t first, Py_ssize_t keep):
        """Cut the chain after its first ``keep`` (>= 1) blocks and free the rest; how many were freed."""
        return self.cut(first, keep)

    cdef Py_ssize_t cut(self, uint32_t first, Py_ssize_t keep) except -1:
        cdef uint32_t *nexts = <uint32_t *>self.memory.at(self.nexts, 4 * self.count)
        cdef uint32_t index = first, rest, following
        cdef Py_ssize_t step, freed = 0
        if keep < 1:
            raise ValueError(f"keep {keep} blocks: at least 1")
        for step in range(keep - 1):
            if index >= <uint32_t>self.count:
                raise ValueError(f"chain from block {first} has fewer than {keep} blocks")
            index = nexts[index]
        if index >= <uint32_t>self.count:
            raise ValueError(f"chain from block {first} has fewer than {keep} blocks")
        rest = following = nexts[index]
        while following != C_NONE:
            if following >= <uint32_t>self.count or freed >= self.count:
                raise ValueError(f"chain from block {first} leaves the table of {self.count} blocks")
            freed += 1
            following = nexts[following]
        nexts[index] = C_NONE
        self.paint(rest, self.free)
        return freed

    def chain(self, uint32_t first):
        """The indices of a chain, first to last."""
        cdef uint32_t *nexts = <uint32_t *>self.memory.at(self.nexts, 4 * self.count)
        cdef uint32_t index = first
        indices = []
        while index != C_NONE:
            if index >= <uint32_t>self.count or len(indices) >= self.count:
                raise ValueError(f"chain from block {first} leaves the table of {self.count} blocks")
            indices.append(index)
            index = nexts[index]
        return indices

    def views(self, uint32_t first, Py_ssize_t length):
        """Writable views of the first ``length`` bytes of a chain; the caller drops them before release."""
        cdef uint32_t *nexts = <uint32_t *>self.memory.at(self.nexts, 4 * self.count)
        cdef uint32_t index = first
        cdef Py_ssize_t part
        parts = []
        while length > 0:
            if index >= <uint32_t>self.count:
                raise ValueError(f"chain from block {first} is {length} bytes short")
            part = min(length, self.block_bytes)
            parts.append(PyMemoryView_FromMemory(
                self.memory.at(self.data + <Py_ssize_t>index * self.block_bytes, part), part, PyBUF_WRITE))
            length -= part
            index = nexts[index]
        return parts

    def runs(self, uint32_t first, length=None):
        """As ``views``, but one view for blocks that lie one behind the other, which those of a busy arena mostly do.

        Args:
            first: the first block.
            length: bytes; None for the whole chain.
        """
        return self.runs_of(first, -1 if length is None else max(0, length))

    cdef list runs_of(self, uint32_t first, Py_ssize_t length):
        """``runs``; the whole chain for a length of -1."""
        cdef uint32_t *nexts = <uint32_t *>self.memory.at(self.nexts, 4 * self.count)
        cdef uint32_t index = first, begin
        cdef bint whole = length < 0
        cdef Py_ssize_t left = length, size, steps = 0
        cdef list parts = []
        while index != C_NONE if whole else left > 0:
            begin = index
            size = 0
            while True:
                if index >= <uint32_t>self.count or steps >= self.count:
                    raise ValueError(f"chain from block {first} leaves the table of {self.count} blocks")
                size += self.block_bytes
                steps += 1
                index = nexts[index]
                if index != begin + <uint32_t>(size // self.block_bytes) or (not whole and size >= left):
                    break
            if not whole:
                size = min(size, left)
                left -= size
            parts.append(PyMemoryView_FromMemory(
                self.memory.at(self.data + <Py_ssize_t>begin * self.block_bytes, size), size, PyBUF_WRITE))
        return parts

    cdef int pour(self, uint32_t first, const char *data, Py_ssize_t length) except -1:
        """Copy bytes into a chain, which must have room for them."""
        cdef uint32_t *nexts = <uint32_t *>self.memory.at(self.nexts, 4 * self.count)
        cdef uint32_t index = first
        cdef Py_ssize_t part
        while length > 0:
            if index >= <uint32_t>self.count:
                raise ValueError(f"chain from block {first} is {length} bytes short")
            part = min(length, self.block_bytes)
            memcpy(self.memory.at(self.data + <Py_ssize_t>index * self.block_bytes, part), data, part)
            data += part
            length -= part
            index = nexts[index]
        return 0

    cdef bint has_free(self, Py_ssize_t wanted) except -1:
        """Whether so many blocks are free: looks no further than it has to."""
        cdef char *states = self.memory.at(self.states, 4 * self.count)
        cdef Py_ssize_t start = self.own, size, found = 0
        while found < wanted and start < self.count:
            size = min(WORDS_AT_ONCE, self.count - start)
            found += sp_count32(states + 4 * start, size, self.free)
            start += size
        return found >= wanted

    def count_free(self):
        """How many blocks are free now."""
        return self.free_blocks()

    cdef Py_ssize_t free_blocks(self) except -1:
        cdef Py_ssize_t count = self.count - self.own
        return sp_count32(self.memory.at(self.states + 4 * self.own, 4 * count), count, self.free)
