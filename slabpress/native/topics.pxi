# Where a topic's records go.

cdef class TopicLanes:
    """Where a topic's records go. Subclassed in pipeline/ (``Topic``, which says what is kept in it).

    Attributes:
        open: the open batch of each partition, or None.
        sticky: the partition of records without a key.
        under_way: how many sealed batches of each partition have no result yet; those without any are absent.
        partition_indices: each partition's entry in the arena's partition table, once it has one.
        batch_limit: bytes of a batch beyond which the broker finds it too large, as far as is known.
    """

    cdef public list open
    cdef public int32_t sticky
    # By partition, where there is something to say: a topic of 10,000 partitions costs 8 bytes each in ``open``.
    cdef public dict under_way, partition_indices
    cdef public int64_t batch_limit

    def __init__(self):
        self.open = []
        self.sticky = 0
        self.under_way = {}
        self.partition_indices = {}
        self.batch_limit = INT64_MAX

    def stick_elsewhere(self, rng):
        """Choose another partition for keyless records: of two at random, the one with fewer batches under way.

        So a slow broker's partitions get fewer records (KIP-794), without a look at all the others.
        """
        self.choose_sticky(rng)

    cdef int choose_sticky(self, rng) except -1:
        cdef Py_ssize_t some, other, count = PyList_GET_SIZE(self.open)
        if count > 1:
            some = (self.sticky + 1 + <Py_ssize_t>(<double>rng.random() * (count - 1))) % count
            other = (self.sticky + 1 + <Py_ssize_t>(<double>rng.random() * (count - 1))) % count
            self.sticky = <int32_t>(some if self.count_under_way(some) <= self.count_under_way(other) else other)
        return 0

    cdef int64_t count_under_way(self, Py_ssize_t partition) except -1:
        return self.under_way.get(partition, 0)
