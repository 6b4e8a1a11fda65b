# An open batch's write cursor, and which record of which batch a handle means.

cdef class OpenBatch:
    """The write cursor of one open batch. Subclassed in pipeline/; only RecordWriter moves it.

    ``limit``: it is full when the next record would take it past so many bytes, if that is less than any batch may have.
    ``seal_number``: its place in the order, 0 while open.

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
    cdef public uint64_t limit
    cdef readonly bint closed
    cdef readonly uint64_t seal_number

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
        self.limit = 0xFFFFFFFFFFFFFFFF
        self.closed = False
        self.seal_number = 0
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
