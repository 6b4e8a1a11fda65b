# A thread that sleeps until another, in whichever process, has something for it.

cdef enum:
    IS_AWAKE = 0
    IS_ASLEEP = 1


cdef class Sleeper:
    """A word of the shared mapping in which one thread of the job says that it sleeps, and on which it sleeps (futex).

    Not a doorbell: that is an entry of the control block, which is as old as the children; producers, and the threads
    that run their callbacks, come later. There is nothing to open, to pass on or to drain.

    The sleeper says that it lies down, looks once more, and only then waits; whoever has something for it publishes that,
    and then looks whether it sleeps. Each has a full fence between (Dekker). Of several that find it asleep one wakes it.
    A process that dies between the two leaves it asleep for all others than its own process (``call``).

    Args:
        memory: the mapping.
        offset: the word's place.
    """

    cdef Memory memory
    cdef Py_ssize_t offset

    def __init__(self, Memory memory not None, Py_ssize_t offset):
        memory.at(offset, 4)
        self.memory = memory
        self.offset = offset

    def lie_down(self):
        """Say "I sleep" (the sleeper)."""
        sp_store32(self.memory.at(self.offset, 4), IS_ASLEEP)
        sp_fence()

    def wait(self):
        """Sleep until woken, without the interpreter. It may end without a reason (the sleeper)."""
        cdef char *word = self.memory.at(self.offset, 4)
        with nogil:
            sp_sleep(word, IS_ASLEEP)

    def get_up(self):
        """Say "I am awake": who comes from here on has to look for somebody else (the sleeper)."""
        sp_store32(self.memory.at(self.offset, 4), IS_AWAKE)
        sp_fence()

    def wake(self):
        """Wake it if it sleeps; whether it did, and will look at what was published before."""
        cdef char *word = self.memory.at(self.offset, 4)
        sp_fence()
        if sp_load32(word) != IS_ASLEEP or sp_exchange32(word, IS_AWAKE) != IS_ASLEEP:
            return False
        sp_awaken(word)
        return True

    def call(self):
        """Wake it whatever the word says: another process may have said "awake" and died before it woke it."""
        cdef char *word = self.memory.at(self.offset, 4)
        sp_store32(word, IS_AWAKE)
        sp_awaken(word)
