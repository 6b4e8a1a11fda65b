"""Whom a worker calls to help it, and whom it spares.

A wake-up costs the one who rings, the one who wakes and the caches of both more than compressing a small batch. So a
worker that is at short work promises to be back at the sealed batches soon (native/promises.pxi), nobody is rung for
what it will take then, and it calls another itself once more waits, with room for it, than is worth that. A worker that
begins something long, or whose length it cannot tell, promises nothing: whoever seals rings another at once.

For the same reason it calls the network process once for several short batches. What it compressed waits while it goes
on with short ones, but no longer than what is sealed waits for a worker. Meanwhile it owes the call, and makes it
before it begins anything long or lies down; for one that dies, whoever looks after it makes it.
"""

from __future__ import annotations

from typing import Final

from slabpress.shm.admission import Admission
from slabpress.shm.arena import Arena
from slabpress.shm.control import NETWORK, Control

# What is sealed meanwhile may wait so long for a worker that is awake. To be woken for it costs about a third of that.
# And what is READY may wait so long for the network process, if that sleeps.
SOON_NS: Final = 250_000
# Work that one worker does alone before it calls another: some ten times what a wake-up costs.
WORTH_A_CALL_NS: Final = 1_000_000
# Beside its codec.
_BATCH_NS: Final = 5_000


class Calls:
    """One worker's promises, of all its arenas, and its calls.

    Args:
        control: whom to wake.
        worker: this worker's index.
    """

    def __init__(self, control: Control, worker: int) -> None:
        self._control = control
        self._worker = worker
        self._arenas: dict[Arena, Admission] = {}
        self._soon_ns = 0.0
        self._owes_call = False
        self._owed_for_ns = 0.0

    def add(self, arena: Arena, admission: Admission) -> None:
        """Look at this arena, too. Its word may be that of a worker that is dead."""
        arena.promises.withdraw(self._worker)
        self._arenas[arena] = admission
        self._count_turns()

    def remove(self, arena: Arena) -> None:
        """Look at this arena no more."""
        del self._arenas[arena]
        self._count_turns()

    def _count_turns(self) -> None:
        """Each arena has its turn before a worker is back at the first."""
        self._soon_ns = SOON_NS / max(1, len(self._arenas))

    def begin(self, arena: Arena, raw_bytes: int, takes_ns: float) -> None:
        """A batch of the arena is to be compressed: promise to be back soon after it, or call another.

        Args:
            arena: which.
            raw_bytes: the batch's size.
            takes_ns: how long it will take; 0 if that cannot be told.
        """
        batches = -1
        if takes_ns:
            batches = arena.promises.begin(self._worker, takes_ns + _BATCH_NS, self._soon_ns, WORTH_A_CALL_NS)
        if batches < 0:
            self.go_away()
            self._control.memory.fence()
            if self.is_any_work():
                self._control.wake_one_worker()
            return
        if self._owes_call:
            self._owed_for_ns += takes_ns + _BATCH_NS
            if self._owed_for_ns > SOON_NS:
                self._call_network()
        if batches:
            self._call_for(arena, batches * raw_bytes)

    def published(self, arena: Arena) -> None:
        """A batch of the arena is READY: call the network process, or owe it the call while more is sealed."""
        if arena.sealed_queue.is_empty():
            self._call_network()
        else:
            self._owes_call = True

    def _call_network(self) -> None:
        self._owes_call, self._owed_for_ns = False, 0.0
        self._control.wake(NETWORK)

    def _call_for(self, arena: Arena, raw_bytes: int) -> None:
        """Call another worker if there is room for so much: what waits is compressed only as room comes."""
        slot = self._control.sleeping_worker()
        if slot is not None and arena.outputs.count_free() * arena.outputs.block_bytes >= raw_bytes:
            self._control.bells[slot].ring()

    def go_away(self) -> None:
        """Promise nothing and owe nothing: this worker lies down, or begins something else.

        It looks at what there is after a fence.
        """
        if self._owes_call:
            self._call_network()
        for arena in self._arenas:
            arena.promises.withdraw(self._worker)

    def is_any_work(self) -> bool:
        """Whether any arena has a batch to be taken."""
        return any(admission.has_work() for admission in self._arenas.values())
