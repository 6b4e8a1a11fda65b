# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The compiled kernel: words shared between processes, chains of blocks, and the v2 record writer.

Everything that must be one machine instruction (an acquire load, a release store) or that runs once per
record is here; everything else is typed Python. Offsets are never written down here: the constructors take
them from slabpress/shm/layout.py, the one file that knows the arena's shape.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.unicode cimport PyUnicode_Check
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

from slabpress.errors import RecordTypeError, RecordValueError

cdef extern from *:
    """
    #include <stdint.h>
    #include <time.h>
    /* Publication: everything written before a release store is seen by whoever acquire-loads that value. */
    static inline uint32_t sp_load32(const void *p) { return __atomic_load_n((const uint32_t *)p, __ATOMIC_ACQUIRE); }
    static inline void sp_store32(void *p, uint32_t v) { __atomic_store_n((uint32_t *)p, v, __ATOMIC_RELEASE); }
    static inline uint64_t sp_load64(const void *p) { return __atomic_load_n((const uint64_t *)p, __ATOMIC_ACQUIRE); }
    static inline void sp_store64(void *p, uint64_t v) { __atomic_store_n((uint64_t *)p, v, __ATOMIC_RELEASE); }
    /* "I sleep" / "is there work?" on one side and "here is work" / "who sleeps?" on the other need a full
       fence between their store and their load, or both can miss the other (Dekker). */
    static inline void sp_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
    static inline int64_t sp_now_ms(void) {
        struct timespec t;
        clock_gettime(CLOCK_REALTIME, &t);
        return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
    }
    """
    uint32_t sp_load32(const void *p) nogil
    void sp_store32(void *p, uint32_t v) nogil
    uint64_t sp_load64(const void *p) nogil
    void sp_store64(void *p, uint64_t v) nogil
    void sp_fence() nogil
    int64_t sp_now_ms() nogil

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_mutexattr_t:
        pass
    int PTHREAD_MUTEX_ERRORCHECK
    int pthread_mutexattr_init(pthread_mutexattr_t *attributes)
    int pthread_mutexattr_settype(pthread_mutexattr_t *attributes, int kind)
    int pthread_mutexattr_destroy(pthread_mutexattr_t *attributes)
    int pthread_mutex_init(pthread_mutex_t *mutex, pthread_mutexattr_t *attributes)
    int pthread_mutex_trylock(pthread_mutex_t *mutex)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)
    int pthread_mutex_destroy(pthread_mutex_t *mutex)

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL
    int PyBUF_READ
    int PyBUF_WRITE

# "No block": the end of a chain.
NONE = 0xFFFFFFFF
cdef uint32_t C_NONE = 0xFFFFFFFF

# What RecordWriter.append says when it did not append (a full batch is a value, not an exception).
BATCH_FULL = 0
NO_SLAB = -1

# Why RecordWriter.append_many stopped.
ALL_APPENDED = 0
STOPPED_BATCH_FULL = 1
STOPPED_NO_SLAB = 2
STOPPED_NOT_OPEN = 3
STOPPED_TOO_LARGE = 4


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

    cdef char *at(self, Py_ssize_t offset, Py_ssize_t length) except NULL:
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

    def fence(self):
        """A full fence: what was stored before is visible before anything after it is loaded."""
        sp_fence()

    def view_of(self, Py_ssize_t offset, Py_ssize_t length):
        """A writable memoryview of ``length`` bytes; the caller drops it before ``release``."""
        return PyMemoryView_FromMemory(self.at(offset, length), length, PyBUF_WRITE)


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

    cdef char *word(self, Py_ssize_t index) except NULL:
        if index < 0 or index >= self.count:
            raise IndexError(f"word {index} of {self.count}")
        return self.memory.at(self.offset + 4 * index, 4)

    def load(self, Py_ssize_t index):
        """Acquire-load one word."""
        return sp_load32(self.word(index))

    def store(self, Py_ssize_t index, uint32_t value):
        """Release-store one word."""
        sp_store32(self.word(index), value)

    def find(self, uint32_t value, Py_ssize_t start=0):
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
        cdef Py_ssize_t index
        found = []
        for index in range(self.count):
            if sp_load32(base + 4 * index) == value:
                found.append(index)
        return found

    def tally(self, Py_ssize_t values):
        """How many words hold each state 0 .. values-1 (the low byte of a word is its state)."""
        cdef char *base = self.memory.at(self.offset, 4 * self.count)
        cdef Py_ssize_t index
        cdef uint32_t value
        counts = [0] * values
        for index in range(self.count):
            value = sp_load32(base + 4 * index) & 0xFF
            if value < values:
                counts[value] += 1
        return counts


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
    """

    cdef Memory memory
    cdef Py_ssize_t states, nexts, data
    cdef readonly Py_ssize_t count
    cdef readonly Py_ssize_t block_bytes
    cdef uint32_t free
    cdef Py_ssize_t cursor

    def __init__(self, Memory memory, Py_ssize_t states, Py_ssize_t nexts, Py_ssize_t data,
                 Py_ssize_t count, Py_ssize_t block_bytes, uint32_t free):
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
        self.cursor = 0

    cdef uint32_t take(self, Py_ssize_t wanted, uint32_t state) except? 0xFFFFFFFE:
        """Chain ``wanted`` free blocks; their first index, or C_NONE with nothing changed."""
        cdef char *states = self.memory.at(self.states, 4 * self.count)
        cdef uint32_t *nexts = <uint32_t *>self.memory.at(self.nexts, 4 * self.count)
        cdef Py_ssize_t step, index = self.cursor, found = 0
        cdef uint32_t first = C_NONE, last = C_NONE
        for step in range(self.count):
            if index >= self.count:
                index -= self.count
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
            index += 1
        if found < wanted or wanted <= 0:
            return C_NONE
        nexts[last] = C_NONE
        self.cursor = index + 1
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
        cdef uint32_t *nexts = <uint32_t *>self.memory.at(self.nexts, 4 * self.count)
        cdef uint32_t index = first, rest
        cdef Py_ssize_t step, freed = 0
        if keep < 1:
            raise ValueError(f"keep {keep} blocks: at least 1")
        for step in range(keep - 1):
            if index >= <uint32_t>self.count:
                raise ValueError(f"chain from block {first} has fewer than {keep} blocks")
            index = nexts[index]
        if index >= <uint32_t>self.count:
            raise ValueError(f"chain from block {first} has fewer than {keep} blocks")
        rest = nexts[index]
        nexts[index] = C_NONE
        index = rest
        while index != C_NONE:
            freed += 1
            index = nexts[index]
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

    def count_free(self):
        """How many blocks are free now."""
        return self.free_blocks()

    cdef Py_ssize_t free_blocks(self) except -1:
        cdef char *states = self.memory.at(self.states, 4 * self.count)
        cdef Py_ssize_t index, found = 0
        for index in range(self.count):
            if sp_load32(states + 4 * index) == self.free:
                found += 1
        return found


cdef class OpenBatch:
    """The write cursor of one open batch. Subclassed in pipeline/; only RecordWriter moves it.

    Args:
        descriptor: index of the batch's descriptor.
        partition: the partition's number within its topic.
    """

    cdef char *position
    cdef char *fields
    cdef Py_ssize_t room
    cdef uint32_t last_slab
    cdef int64_t base_timestamp
    cdef int64_t max_timestamp
    cdef readonly uint32_t first_slab
    cdef readonly uint32_t slabs
    cdef readonly int32_t descriptor
    cdef readonly int32_t partition
    cdef readonly uint32_t records
    cdef readonly uint64_t bytes
    cdef public uint64_t last_call
    cdef readonly bint closed

    def __init__(self, int32_t descriptor, int32_t partition):
        self.descriptor = descriptor
        self.partition = partition
        self.position = NULL
        self.fields = NULL
        self.room = 0
        self.slabs = 0
        self.first_slab = C_NONE
        self.last_slab = C_NONE
        self.records = 0
        self.bytes = 0
        self.last_call = 0
        self.closed = False
        self.base_timestamp = 0
        self.max_timestamp = 0


cdef class RecordHandle:
    """Which record of which batch. Subclassed in pipeline/; made once a record, so making it is native.

    Args:
        batch: the batch.
        index: the record's place in it, from 0.
    """

    cdef readonly OpenBatch _batch
    cdef readonly Py_ssize_t _index
    cdef public bint _looked

    def __cinit__(self, OpenBatch batch=None, Py_ssize_t index=0):
        self._batch = batch
        self._index = index
        self._looked = False


cdef class Mutex:
    """A lock that costs a tenth of threading.Lock when nobody else wants it; a Condition can stand on it.

    Waiting for it releases the GIL. It must be released by the thread that acquired it. A thread that holds it
    and asks for it again gets RuntimeError and not a deadlock: a signal handler or a __del__ may run the user's
    code, and that code may send, at any bytecode.
    """

    cdef pthread_mutex_t mutex

    def __cinit__(self):
        cdef pthread_mutexattr_t attributes
        cdef int code
        pthread_mutexattr_init(&attributes)
        pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ERRORCHECK)
        code = pthread_mutex_init(&self.mutex, &attributes)
        pthread_mutexattr_destroy(&attributes)
        if code != 0:
            raise MemoryError("pthread_mutex_init failed")

    def __dealloc__(self):
        pthread_mutex_destroy(&self.mutex)

    cdef bint try_lock(self) noexcept:
        return pthread_mutex_trylock(&self.mutex) == 0

    cdef int lock(self) except -1:
        cdef int code = 0
        if not self.try_lock():
            with nogil:
                code = pthread_mutex_lock(&self.mutex)
            if code != 0:
                raise RuntimeError("a producer is used inside one of its own calls, by a signal handler, a __del__ "
                                   "or an iterator that sends")
        return 0

    cdef void unlock(self) noexcept:
        pthread_mutex_unlock(&self.mutex)

    def acquire(self, bint blocking=True):
        """Take the lock; False if it is taken and ``blocking`` is false."""
        if not blocking:
            return self.try_lock()
        self.lock()
        return True

    def release(self):
        """Give the lock back."""
        self.unlock()

    def __enter__(self):
        self.lock()
        return True

    def __exit__(self, kind, error, trace):
        self.unlock()


cdef class TopicLanes:
    """Where a topic's records go. Subclassed in pipeline/.

    Attributes:
        open: the open batch of each partition, or None.
        sticky: the partition of records without a key.
    """

    cdef public list open
    cdef public int32_t sticky

    def __init__(self):
        self.open = []
        self.sticky = 0


cdef class FastLane:
    """The way of nearly every record: a known topic, an open batch with room, nobody waiting for any.

    Whatever is not so goes the long way (pipeline/sender.py), which decides everything anew.

    Args:
        mutex: the producer's lock.
        writer: the record writer.
        topics: the known topics by name, a dict of str to TopicLanes; looked at under the lock.
        handle_type: a subclass of RecordHandle.

    Attributes:
        closed: nothing goes this way any more: the producer is closed, failed or forked. Set under the lock, but
            for a forked child's.
        reserved: the slabs that threads in line wait for. Who leaves that many free overtakes nobody; if everybody
            had to stand in line while there is one, every record would cost a switch of threads.
    """

    cdef Mutex mutex
    cdef RecordWriter writer
    cdef dict topics
    cdef type handle_type
    cdef public bint closed
    cdef public Py_ssize_t reserved

    def __init__(self, Mutex mutex not None, RecordWriter writer not None, dict topics not None, type handle_type):
        self.mutex = mutex
        self.writer = writer
        self.topics = topics
        self.handle_type = handle_type
        self.closed = False
        self.reserved = 0

    def append(self, topic_name, value, key, headers, partition, timestamp_ms):
        """Append one record: its handle, or None where it must go the long way. Raises what ``append`` raises."""
        cdef TopicLanes topic
        cdef RecordHandle handle
        cdef object slot
        cdef Py_ssize_t size = 0, target
        if self.closed or type(topic_name) is not str:
            return None
        if headers is not None:
            headers = header_pairs(headers)  # before the lock: it may run the user's code
        if not self.mutex.try_lock():
            return None
        try:
            slot = self.topics.get(topic_name)
            if slot is None or self.closed:
                return None
            topic = <TopicLanes?>slot
            if partition is not None:
                if type(partition) is not int or not 0 <= partition < PyList_GET_SIZE(topic.open):
                    return None
                target = partition
            elif key is None:
                target = topic.sticky
            else:
                target = partition_of(key, PyList_GET_SIZE(topic.open))
            slot = topic.open[target]
            if slot is None:
                return None
            self.writer.reserve = self.reserved
            size = self.writer.encode(<OpenBatch?>slot, key, value, headers, read_timestamp(timestamp_ms))
            if size <= 0:
                return None
            handle = <RecordHandle>self.handle_type.__new__(self.handle_type)
            handle._batch = <OpenBatch>slot
            handle._index = handle._batch.records - 1
            return handle
        finally:
            self.mutex.unlock()


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


cdef class SealPoint:
    """Where the order of seals is kept. The coordinator alone seals.

    Args:
        memory: the mapping.
        tail_at: offset of the u64 that counts seals.
        ring: the seal ring.
        states: the batches' state words.
        seal_number_at: offset of the seal number within a descriptor.
    """

    cdef Memory tail
    cdef Py_ssize_t tail_at, seal_number_at
    cdef Words ring, states

    def __init__(self, Memory memory not None, Py_ssize_t tail_at, Words ring not None, Words states not None,
                 Py_ssize_t seal_number_at):
        memory.at(tail_at, 8)
        self.tail = memory
        self.tail_at = tail_at
        self.ring = ring
        self.states = states
        self.seal_number_at = seal_number_at


cdef class RecordWriter:
    """Writes Kafka v2 records (KIP-98) straight into the slabs of open batches.

    Not thread-safe: the caller holds the producer's lock, and is the only claimer of slabs.

    Args:
        memory: the mapping.
        slabs: the slab table.
        open_state: state word of a slab in an open batch.
        descriptors: offset of the descriptor table.
        descriptor_bytes: size of one descriptor.
        commit_at, base_timestamp_at, max_timestamp_at, first_slab_at, slab_count_at: field offsets within a
            descriptor. ``commit`` is bytes << 32 | records, stored last: it is the batch's last complete
            record, whatever kills the writer.
        batch_bytes: a batch with records in it is full when the next would take it past this.
        largest_record_bytes: an encoded record above this fits nowhere (law 12).

    Attributes:
        reserve: slabs that must stay free: those that threads ahead in line wait for.
        wanted: how many slabs the last record that needed any wanted.
    """

    cdef Memory memory
    cdef Blocks slabs
    cdef uint32_t open_state
    cdef Py_ssize_t descriptors, descriptor_bytes
    cdef Py_ssize_t commit_at, base_timestamp_at, max_timestamp_at, first_slab_at, slab_count_at
    cdef readonly uint64_t batch_bytes
    cdef readonly uint64_t largest_record_bytes
    cdef readonly uint64_t too_large_bytes
    cdef readonly Py_ssize_t stopped_at
    cdef public Py_ssize_t reserve
    cdef public Py_ssize_t wanted

    def __init__(self, Memory memory, Blocks slabs, uint32_t open_state, Py_ssize_t descriptors,
                 Py_ssize_t descriptor_bytes, Py_ssize_t commit_at, Py_ssize_t base_timestamp_at,
                 Py_ssize_t max_timestamp_at, Py_ssize_t first_slab_at, Py_ssize_t slab_count_at,
                 uint64_t batch_bytes, uint64_t largest_record_bytes):
        self.memory = memory
        self.slabs = slabs
        self.open_state = open_state
        self.descriptors = descriptors
        self.descriptor_bytes = descriptor_bytes
        self.commit_at = commit_at
        self.base_timestamp_at = base_timestamp_at
        self.max_timestamp_at = max_timestamp_at
        self.first_slab_at = first_slab_at
        self.slab_count_at = slab_count_at
        self.batch_bytes = batch_bytes
        self.largest_record_bytes = largest_record_bytes
        self.too_large_bytes = 0
        self.stopped_at = 0
        self.reserve = 0
        self.wanted = 0

    def append(self, OpenBatch batch not None, key, value, headers, timestamp_ms):
        """Append one record to ``batch``.

        Args:
            batch: an open batch.
            key, value: bytes, bytearray, memoryview, str (UTF-8) or None (null).
            headers: None or a sequence of (name, value) pairs; a header's value may be None.
            timestamp_ms: milliseconds since the epoch, or None for now.

        Returns:
            The encoded size in bytes; or BATCH_FULL or NO_SLAB, with nothing changed.

        Raises:
            RecordTypeError: a part is of a type that is not accepted.
            RecordValueError: the timestamp is negative or too large.
            OverflowError: the record is larger than ``largest_record_bytes``; ``too_large_bytes`` says its size.
        """
        cdef int64_t timestamp = read_timestamp(timestamp_ms)
        cdef Py_ssize_t size
        if headers is not None:
            headers = header_pairs(headers)
        size = self.encode(batch, key, value, headers, timestamp)
        if size == -2:
            raise OverflowError(self.too_large_bytes)
        return size

    @cython.boundscheck(True)  # the caller's lists may shrink while it waits for room
    def append_many(self, list batches not None, values not None, keys, headers, timestamps_ms,
                    Py_ssize_t start, int32_t partition, uint64_t call, list touched not None):
        """Append records ``start`` .. len(values)-1 until one does not fit.

        Args:
            batches: the topic's open batch of each partition (None where there is none).
            values: list or tuple of values.
            keys: None, or a list or tuple as long as ``values``.
            headers: None, or a list or tuple of what ``append`` takes.
            timestamps_ms: None, or a list or tuple of what ``append`` takes.
            start: the first record to append.
            partition: where the records go; -1: by the key as Java's default partitioner does (every record
                needs a key then).
            call: a number that no other call has.
            touched: gets every batch that this call writes to for the first time.

        Returns:
            (index of the first record that was not appended, why it stopped, the partition it stopped at).
            A record without a key stops with STOPPED_NOT_OPEN and partition -1 where ``partition`` is -1.
            Whatever is raised, ``stopped_at`` is the index of the record that it speaks of.
        """
        cdef Py_ssize_t index, count = len(values)
        cdef Py_ssize_t partitions = PyList_GET_SIZE(batches)
        cdef Py_ssize_t size
        cdef int32_t target = partition
        cdef int64_t now = -1, timestamp
        cdef object key = None, header = None, slot
        for index in range(start, count):
            self.stopped_at = index
            if keys is not None:
                key = keys[index]
            if partition < 0:
                if key is None:
                    return index, STOPPED_NOT_OPEN, -1
                target = partition_of(key, partitions)
            if target >= partitions:
                raise IndexError(f"partition {target} of {partitions}")
            slot = <object>PyList_GET_ITEM(batches, target)
            if slot is None:
                return index, STOPPED_NOT_OPEN, target
            if timestamps_ms is None:
                # One clock reading serves 64 records: at 10 M records/s that is 7 microseconds of age.
                if now < 0 or (index & 63) == 0:
                    now = sp_now_ms()
                timestamp = now
            else:
                timestamp = read_timestamp(timestamps_ms[index])
            if headers is not None:
                header = headers[index]
                if header is not None:
                    header = header_pairs(header)
            size = self.encode(<OpenBatch?>slot, key, values[index], header, timestamp)
            if size <= 0:
                if size == 0:
                    return index, STOPPED_BATCH_FULL, target
                return index, (STOPPED_NO_SLAB if size == -1 else STOPPED_TOO_LARGE), target
            if (<OpenBatch>slot).last_call != call:
                (<OpenBatch>slot).last_call = call
                touched.append(slot)
        return count, ALL_APPENDED, target

    def seal(self, OpenBatch batch not None, uint32_t slab_state, uint32_t batch_state, SealPoint point not None):
        """Close a batch that has records to more of them and publish it, in one step that no signal handler splits.

        Args:
            batch: a batch with records that is not closed.
            slab_state, batch_state: what its slabs and the batch become.
            point: where the order of seals is kept.

        Returns:
            Its seal number, from 1.
        """
        cdef uint64_t tail
        if batch.closed or batch.records == 0:
            raise ValueError(f"a batch with {batch.records} records, closed {batch.closed}, cannot be sealed")
        tail = sp_load64(point.tail.at(point.tail_at, 8))
        batch.closed = True
        sp_store64(batch.fields + point.seal_number_at, tail + 1)
        self.slabs.paint(batch.first_slab, slab_state)
        sp_store32(point.ring.word(tail % <uint64_t>point.ring.count), <uint32_t>batch.descriptor)
        sp_store32(point.states.word(batch.descriptor), batch_state)
        sp_store64(point.tail.at(point.tail_at, 8), tail + 1)
        return tail + 1

    cdef Py_ssize_t encode(self, OpenBatch batch, object key, object value, list headers,
                           int64_t timestamp) except -3:
        """Encode one record at the batch's cursor: its size, or 0 full, -1 no slab, -2 too large."""
        cdef Piece key_piece, value_piece
        cdef int64_t delta = 0
        cdef uint64_t body, total
        cdef Py_ssize_t header_bytes = 0
        cdef char small[48]
        cdef char *end
        key_piece.held = False
        value_piece.held = False
        if self.memory.base == NULL:
            raise ValueError("the arena was released")  # the cursor would point nowhere
        if batch.closed:
            return 0
        if batch.fields == NULL:
            batch.fields = self.memory.at(
                self.descriptors + <Py_ssize_t>batch.descriptor * self.descriptor_bytes, self.descriptor_bytes)
        try:
            grab(key, &key_piece, "key")
            grab(value, &value_piece, "value")
            if headers is not None:
                header_bytes = headers_size(headers)
            if batch.records > 0:
                delta = timestamp - batch.base_timestamp
            body = (1 + varint_size(zigzag64(delta)) + varint_size(zigzag64(batch.records))
                    + varint_size(zigzag64(key_piece.size)) + max(key_piece.size, 0)
                    + varint_size(zigzag64(value_piece.size)) + max(value_piece.size, 0)
                    + varint_size(zigzag64(len(headers) if headers is not None else 0)) + header_bytes)
            total = varint_size(zigzag64(<int64_t>body)) + body
            if total > self.largest_record_bytes:
                self.too_large_bytes = total
                return -2
            if batch.records > 0 and batch.bytes + total > self.batch_bytes:
                return 0
            if <Py_ssize_t>total > batch.room and not self.extend(batch, <Py_ssize_t>total):
                return -1

            if headers is None and <Py_ssize_t>total <= batch.room:
                # Nearly every record: within one slab, at the cursor, with nothing that can fail.
                end = write_head(batch.position, body, delta, batch.records, key_piece.size)
                end = write_bytes(end, key_piece.data, key_piece.size)
                end = write_varint(end, value_piece.size)
                end = write_bytes(end, value_piece.data, value_piece.size)
                end[0] = 0  # no headers
                batch.position += total
                batch.room -= total
            else:
                end = write_head(small, body, delta, batch.records, key_piece.size)
                self.put(batch, small, end - small)
                self.put(batch, key_piece.data, key_piece.size)
                self.put(batch, small, write_varint(small, value_piece.size) - small)
                self.put(batch, value_piece.data, value_piece.size)
                self.put_headers(batch, headers)
            self.commit(batch, timestamp, total)
            return <Py_ssize_t>total
        finally:
            let_go(&key_piece)
            let_go(&value_piece)

    cdef int put_headers(self, OpenBatch batch, list headers) except -1:
        cdef char small[16]
        cdef Piece piece
        piece.held = False
        if headers is None:
            headers = []
        self.put(batch, small, write_varint(small, len(headers)) - small)
        for name, value in headers:
            # header_pairs has made every part bytes or None: nothing here can fail or hold a buffer.
            grab(name, &piece, "header name")
            self.put(batch, small, write_varint(small, piece.size) - small)
            self.put(batch, piece.data, piece.size)
            grab(value, &piece, "header value")
            self.put(batch, small, write_varint(small, piece.size) - small)
            self.put(batch, piece.data, piece.size)
        return 0

    cdef bint extend(self, OpenBatch batch, Py_ssize_t total) except -1:
        """Chain enough slabs to hold ``total`` more bytes; False, with nothing changed, if too few are free."""
        cdef Py_ssize_t block = self.slabs.block_bytes
        cdef Py_ssize_t wanted = (total - batch.room + block - 1) // block
        cdef uint32_t first
        cdef uint32_t *nexts
        self.wanted = wanted
        if self.reserve > 0 and self.slabs.free_blocks() < wanted + self.reserve:
            return False
        first = self.slabs.take(wanted, self.open_state)
        if first == C_NONE:
            return False
        nexts = <uint32_t *>self.memory.at(self.slabs.nexts, 4 * self.slabs.count)
        if batch.first_slab == C_NONE:
            batch.first_slab = first
            batch.last_slab = first
            batch.position = self.memory.at(self.slabs.data + <Py_ssize_t>first * block, block)
            batch.room = block
            sp_store32(batch.fields + self.first_slab_at, first)
        else:
            nexts[batch.last_slab] = first
        batch.slabs += <uint32_t>wanted
        sp_store32(batch.fields + self.slab_count_at, batch.slabs)
        return True

    cdef int put(self, OpenBatch batch, const char *data, Py_ssize_t size) except -1:
        """Copy bytes to the cursor, on to the chain's next slab where one ends. ``extend`` made the room."""
        cdef Py_ssize_t part, block = self.slabs.block_bytes
        cdef uint32_t *nexts
        if 0 < size <= batch.room:
            memcpy(batch.position, data, size)
            batch.position += size
            batch.room -= size
            return 0
        while size > 0:
            if batch.room == 0:
                nexts = <uint32_t *>self.memory.at(self.slabs.nexts, 4 * self.slabs.count)
                batch.last_slab = nexts[batch.last_slab]
                batch.position = self.memory.at(self.slabs.data + <Py_ssize_t>batch.last_slab * block, block)
                batch.room = block
            part = min(size, batch.room)
            memcpy(batch.position, data, part)
            batch.position += part
            batch.room -= part
            data += part
            size -= part
        return 0

    cdef void commit(self, OpenBatch batch, int64_t timestamp, uint64_t total) noexcept:
        """Make the record that was just written part of the batch: one release store."""
        if batch.records == 0:
            batch.base_timestamp = timestamp
            batch.max_timestamp = timestamp
            sp_store64(batch.fields + self.base_timestamp_at, <uint64_t>timestamp)
            sp_store64(batch.fields + self.max_timestamp_at, <uint64_t>timestamp)
        elif timestamp > batch.max_timestamp:
            batch.max_timestamp = timestamp
            sp_store64(batch.fields + self.max_timestamp_at, <uint64_t>timestamp)
        batch.records += 1
        batch.bytes += total
        sp_store64(batch.fields + self.commit_at, (batch.bytes << 32) | batch.records)


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
