"""Admission of sealed batches to compression: in seal order, and only with room for them uncompressed.

Law 6: because a batch is admitted only together with all the output buffers it can ever need (law 5: a batch
never grows), every admitted batch finishes, and the earliest unsent batch always has its room.

A batch that has to be split holds its output buffers until its pieces are sent, and each piece needs some more. What
is behind it waits for it, perhaps with all other buffers; so ordinary batches leave ``split_outputs`` free, enough for
one piece of any batch. Pieces may take those: each is sent as soon as it is compressed, and gives them back.

A leader whose batches hold their share of the output buffers gets no more (shm/shares.py): its batches are PARKED, out
of the ring, so that those behind them are admitted. Parked ones that may be admitted go first, in seal order, so a
topic-partition's batches are admitted in seal order all the same; otherwise later ones could hold all the room that
the first one waits for.

In a direct arena (no compression) nothing sealed waits for a worker: only pieces of split batches are admitted, and the
output buffers are theirs alone.

The lock is the operating system's record lock on one byte of the arena's file: the kernel releases it when its
holder dies, so whoever takes it next must be ready to find any prefix of ``_admit``'s steps done, or of those of
``WorkPoint.admit`` (native/working.pxi), which is ``_admit`` for the ordinary case in one native step:

    1. output buffers FILLING, in no batch's chain    recover frees them
    2. batch COMPRESSING or PARKED, head not yet moved    the next holder moves the head on

A worker may also die after it published a batch and before it freed the batch's slabs: recover frees those.
"""

from __future__ import annotations

from typing import Final

from slabpress._native import NONE, Task
from slabpress.shm import layout as at
from slabpress.shm.arena import Arena
from slabpress.shm.descriptors import Descriptors
from slabpress.shm.splits import Splits
from slabpress.shm.states import (
    COMPRESSING,
    ORPHAN,
    OUTPUT_FILLING,
    OUTPUT_FREE,
    OVERSIZE,
    PARKED,
    SEALED,
    SLAB_COMPRESSING,
    SLAB_FREE,
    owned,
)

# A batch that so many workers have died of, while they compressed it, is sent uncompressed.
DEATHS_MAX: Final = 2


class Admission:
    """One process's way to the sealed batches of one arena.

    Args:
        arena: the arena.
        worker: the index that this worker signs batches with.

    Attributes:
        point: the worker's native steps.
    """

    def __init__(self, arena: Arena, worker: int) -> None:
        self._arena = arena
        self._descriptors = Descriptors(arena)
        self._splits = Splits(arena)
        self._shares = arena.output_shares
        self._leave = arena.geometry.split_outputs
        self._worker = worker
        self.point = arena.work_point(worker)

    def has_work(self) -> bool:
        """Whether ``take`` would probably find a batch: a look without the lock."""
        if self._arena.sealed_queue.is_ready():
            return True
        if self._arena.sealed_queue.is_empty():
            return False
        arena = self._arena
        if arena.memory.load_u64(at.ORPHANS_AT):
            return True
        free = arena.outputs.count_free()
        index = self._next_oversize()
        if index is not None and free >= self._outputs_needed(index):
            return True
        if arena.is_direct:
            return False
        index = self._next_parked()
        if index is None:
            head = arena.seal_head
            if head == arena.seal_tail:
                return False
            index = arena.sealed_at(head)
            if self._is_to_be_parked(index):
                return True
        return free >= self._outputs_needed(index) + self._leave

    def take(self) -> Task | None:
        """Be admitted to the next batch; None while there is none or no room."""
        task = self.point.admit()
        if task is not None:
            return task
        if self._arena.sealed_queue.is_empty():
            return None
        with self._arena.admission_lock:
            index = self._take_any()
        return None if index is None else self.point.task(index)

    def _take_any(self) -> int | None:
        """Be admitted to the next batch, whatever it is; its descriptor index."""
        ways = (self._adopt_orphan, self._admit_piece, self._admit)
        for take in ways[:2] if self._arena.is_direct else ways:
            index = take()
            if index is not None:
                return index
        return None

    def _admit_piece(self) -> int | None:
        """Be admitted to the next piece of the split batch that was sealed first, if there is room for one."""
        index = self._next_oversize()
        return index if index is not None and self._claim(index, leave=0) else None

    def _next_oversize(self) -> int | None:
        """The batch whose next piece comes first: that of the batch that was sealed first."""
        if not self._splits.any_ever():
            return None
        return min(self._arena.batch_states.find_all(OVERSIZE), key=self._descriptors.seal_number, default=None)

    def _claim(self, index: int, leave: int) -> bool:
        """Make a batch COMPRESSING with the output buffers that it needs; False if that would leave too few free."""
        needed = self._outputs_needed(index)
        if self._arena.outputs.count_free() < needed + leave:
            return False
        first = self._arena.outputs.claim(needed, owned(OUTPUT_FILLING, self._worker))
        if first == NONE:
            return False
        self._descriptors.set_admitted(index, first, needed, self._worker)
        self._arena.batch_states.store(index, COMPRESSING)
        return True

    def _outputs_needed(self, index: int) -> int:
        raw_bytes = self._descriptors.sealed(index).raw_bytes
        return max(1, -(-raw_bytes // self._arena.outputs.block_bytes))

    def _admit(self) -> int | None:
        """Be admitted to the batch that was sealed first, of those whose leader may have more; None for no room."""
        arena = self._arena
        parked = self._next_parked()
        index = self._next_in_ring() if parked is None else parked
        if index is None or not self._claim(index, leave=self._leave):
            return None
        arena.slabs.mark(self._descriptors.sealed(index).first_slab, owned(SLAB_COMPRESSING, self._worker))
        if parked is None:
            arena.memory.store_u64(at.SEAL_HEAD_AT, self._descriptors.seal_number(index))
        else:
            arena.memory.store_u64(at.PARKED_AT, len(arena.batch_states.find_all(PARKED)))
        return index

    def _next_parked(self) -> int | None:
        """The first of the batches that were set aside and need not be any more."""
        if not self._arena.memory.load_u64(at.PARKED_AT):
            return None
        index = self._shares.first_within(PARKED)
        return index if index >= 0 else None

    def _next_in_ring(self) -> int | None:
        """The ring's first batch, after those that are to be set aside."""
        arena = self._arena
        head = arena.seal_head
        while head != arena.seal_tail:
            index = arena.sealed_at(head)
            # A state alone does not tell: the descriptor may be in use again, sealed with a later number.
            if arena.batch_states.load(index) == SEALED and self._descriptors.seal_number(index) == head + 1:
                if not self._is_to_be_parked(index):
                    return index
                self._park(index)
            head += 1  # it was set aside, or its admitter died between step 2 and the head
            arena.memory.store_u64(at.SEAL_HEAD_AT, head)
        return None

    def _is_to_be_parked(self, index: int) -> bool:
        """Whether a sealed batch's leader has its share, or had it when an earlier one of its topic-partition came.

        Its leader may have moved, or given something back, since that one was looked at: it must not be passed.
        """
        partition = self._descriptors.sealed(index).partition_index
        any_parked = self._arena.memory.load_u64(at.PARKED_AT) != 0
        return self._shares.over(partition) or (any_parked and self._shares.has_any(partition, PARKED))

    def _park(self, index: int) -> None:
        """Set a batch aside. The count comes first: too high a count costs a look, too low a one the batch."""
        arena = self._arena
        arena.memory.store_u64(at.PARKED_AT, len(arena.batch_states.find_all(PARKED)) + 1)
        arena.batch_states.store(index, PARKED)

    def _adopt_orphan(self) -> int | None:
        """Take over a batch whose worker died; it still holds its slabs and its output buffers."""
        if not self._arena.memory.load_u64(at.ORPHANS_AT):
            return None
        orphans = [index for index in self._compressing() if self._descriptors.worker(index) == ORPHAN]
        if not orphans:
            self._arena.memory.store_u64(at.ORPHANS_AT, 0)
            return None
        index = min(orphans, key=self._descriptors.seal_number)
        arena = self._arena
        arena.slabs.mark(self._descriptors.sealed(index).first_slab, owned(SLAB_COMPRESSING, self._worker))
        arena.outputs.mark(self._descriptors.output(index).first_output, owned(OUTPUT_FILLING, self._worker))
        self._descriptors.set_worker(index, self._worker)
        arena.memory.store_u64(at.ORPHANS_AT, len(orphans) - 1)
        return index

    def _compressing(self) -> list[int]:
        return self._arena.batch_states.find_all(COMPRESSING)

    def deadly(self, dead_worker: int) -> list[int]:
        """The batches that a dead worker was compressing as the last that may die of them; ``recover`` comes next."""
        held = [index for index in self._compressing() if self._descriptors.worker(index) == dead_worker]
        last = DEATHS_MAX - 1
        unfinished = [index for index in held if self._descriptors.output(index).payload_bytes == 0]
        return [index for index in unfinished if self._descriptors.deaths(index) == last]

    def recover(self, dead_worker: int) -> int | None:
        """Make orphans of a dead worker's batches and free what it held for none (supervisor).

        Returns:
            How many batches now wait for another worker; None if somebody else holds the lock. That may be a process
            that was stopped, so whoever recovers comes again and does not wait: the program's calls wait for it.
        """
        self._arena.promises.withdraw(dead_worker)
        if not self._arena.admission_lock.acquire(blocking=False):
            return None
        try:
            compressing = self._compressing()
            for index in compressing:
                if self._descriptors.worker(index) == dead_worker:
                    if self._descriptors.output(index).payload_bytes == 0:
                        self._descriptors.count_death(index)
                    self._descriptors.set_worker(index, ORPHAN)
            orphans = [index for index in compressing if self._descriptors.worker(index) == ORPHAN]
            self._reclaim_stray(dead_worker, orphans)
            self._arena.memory.store_u64(at.ORPHANS_AT, len(orphans))
            return len(orphans)
        finally:
            self._arena.admission_lock.release()

    def _reclaim_stray(self, dead_worker: int, orphans: list[int]) -> None:
        """Free the dead worker's blocks that are in no orphan's chain.

        The chains of live workers' batches are not walked: they publish and free them meanwhile.
        """
        arena, descriptors = self._arena, self._descriptors
        outputs = {block for index in orphans for block in arena.outputs.chain(descriptors.output(index).first_output)}
        # Chains count from the first block of what is sent: in a direct arena the slabs come before. Those must not be
        # looked at here: an OPEN slab has the word of a buffer that worker 0 fills.
        before = arena.payload_states.count - arena.output_states.count
        for place in arena.output_states.find_all(owned(OUTPUT_FILLING, dead_worker)):
            if before + place not in outputs:
                arena.output_states.store(place, OUTPUT_FREE)
        slabs = {block for index in orphans for block in arena.slabs.chain(descriptors.sealed(index).first_slab)}
        for block in arena.slab_states.find_all(owned(SLAB_COMPRESSING, dead_worker)):
            if block not in slabs:
                arena.slab_states.store(block, SLAB_FREE)
