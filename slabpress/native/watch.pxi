# Whether the network process may sleep: all that may be news to it, in one look.

cdef class Watch:
    """What a process looks at before it sleeps, and when it wakes: the job's orders, and its arenas' inboxes.

    Args:
        memory: the control block.
        orders_at: a u64 that has another value after every order.
        sleeping_at: the process's own u32 "I sleep".
    """

    cdef Memory memory
    cdef Py_ssize_t orders_at, sleeping_at
    cdef uint64_t orders
    cdef list inboxes

    def __init__(self, Memory memory not None, Py_ssize_t orders_at, Py_ssize_t sleeping_at):
        self.memory = memory
        self.orders_at = orders_at
        self.sleeping_at = sleeping_at
        self.orders = sp_load64(memory.at(orders_at, 8))
        self.inboxes = []

    def add(self, Inbox inbox not None):
        """Look at an arena's inbox from now on."""
        self.inboxes.append(inbox)

    def remove(self, Inbox inbox not None):
        """Look at it no more: the arena is going."""
        self.inboxes.remove(inbox)

    def take_orders(self):
        """Whether there were orders since the last call."""
        cdef uint64_t orders = sp_load64(self.memory.at(self.orders_at, 8))
        cdef bint changed = orders != self.orders
        self.orders = orders
        return changed

    def has_news(self):
        """Whether there are orders, or news of an arena."""
        return self.any_news()

    cdef bint any_news(self) except -1:
        if sp_load64(self.memory.at(self.orders_at, 8)) != self.orders:
            return True
        for inbox in self.inboxes:
            if (<Inbox>inbox).is_news():
                return True
        return False

    def lie_down(self):
        """Say "I sleep", then look whether there is news: whoever makes some after the look rings."""
        sp_store32(self.memory.at(self.sleeping_at, 4), 1)
        sp_fence()
        return self.any_news()

    def get_up(self):
        """Say "I am awake"."""
        sp_store32(self.memory.at(self.sleeping_at, 4), 0)
