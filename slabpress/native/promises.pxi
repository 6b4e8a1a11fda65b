# Which sealed batches somebody will look at soon.

cdef class Promises:
    """Whom a new batch need not be rung for: a worker that is at short work says how far its next look will reach.

    A word for each worker, that worker's own: a seal number. It will look at the seal ring again, and soon, and no ring
    is needed for the batches up to that number; 0 promises nothing. A promise is withdrawn before the worker lies down or
    begins something long, and after that it looks once more: "I promise nothing", fence, "is there work?" on its side,
    "here is work", fence, "who promises?" on the other, so that one of them sees the other.

    Args:
        memory: the mapping.
        first_at: offset of the first worker's u64 word.
        workers: how many words there are.
        head_at, tail_at: the u64 counts of the seal ring's ends.
    """

    cdef Memory memory
    cdef Py_ssize_t first_at, head_at, tail_at, workers

    def __init__(self, Memory memory not None, Py_ssize_t first_at, Py_ssize_t workers, Py_ssize_t head_at,
                 Py_ssize_t tail_at):
        memory.at(first_at, 8 * workers)
        memory.at(head_at, 8)
        memory.at(tail_at, 8)
        self.memory = memory
        self.first_at = first_at
        self.workers = workers
        self.head_at = head_at
        self.tail_at = tail_at

    cdef char *word(self, Py_ssize_t worker) except NULL:
        if worker < 0 or worker >= self.workers:
            raise IndexError(f"worker {worker} of {self.workers}")
        return self.memory.at(self.first_at + 8 * worker, 8)

    def promise(self, Py_ssize_t worker, uint64_t batches):
        """The worker will soon look again; whether more than so many batches wait, too many for it alone."""
        return self.is_more_than(worker, batches)

    cdef bint is_more_than(self, Py_ssize_t worker, uint64_t batches) except -1:
        cdef uint64_t head = sp_load64(self.memory.at(self.head_at, 8))
        sp_store64(self.word(worker), head + batches)
        return sp_load64(self.memory.at(self.tail_at, 8)) > head + batches

    def begin(self, Py_ssize_t worker, double takes_ns, double soon_ns, double worth_ns):
        """``promise`` for a batch that takes so long, if it is short: for all that takes ``worth_ns`` together.

        Args:
            worker: whose promise.
            takes_ns: how long the batch will take.
            soon_ns: how long at most the worker may be away.
            worth_ns: how much work it does alone.

        Returns:
            Into how many batches that work goes if more wait; 0 if not; -1 if it takes too long, and nothing was promised.
        """
        cdef uint64_t batches
        if takes_ns > soon_ns:
            return -1
        batches = <uint64_t>(worth_ns / takes_ns)
        return batches if self.is_more_than(worker, batches) else 0

    def withdraw(self, Py_ssize_t worker):
        """The worker promises nothing any more; it looks once more after this, with a fence between."""
        cdef char *word = self.word(worker)
        if sp_load64(word) != 0:
            sp_store64(word, 0)

    def cover(self):
        """Whether somebody will soon look at all that is sealed."""
        sp_fence()
        return self.is_promised(sp_load64(self.memory.at(self.tail_at, 8)))

    def cover_new(self):
        """Whether nobody need be rung for the batch that was sealed last: it is covered, or one before it still waits.

        Whoever takes that one, or makes room for it, looks at what is behind it.
        """
        return self.is_new_covered()

    cdef bint is_new_covered(self) except -1:
        cdef uint64_t head, tail
        sp_fence()
        head = sp_load64(self.memory.at(self.head_at, 8))
        tail = sp_load64(self.memory.at(self.tail_at, 8))
        return head + 1 < tail or self.is_promised(tail)

    cdef bint is_promised(self, uint64_t number) except -1:
        cdef char *words = self.memory.at(self.first_at, 8 * self.workers)
        cdef Py_ssize_t worker
        for worker in range(self.workers):
            if sp_load64(words + 8 * worker) >= number:
                return True
        return False
