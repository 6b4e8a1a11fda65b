"""Open batches: where records gather until their batch is full, has lingered, is flushed, or room is short.

Pure but for the arena's memory: no threads, no clock of its own. The caller holds the producer's lock.
"""

from __future__ import annotations

import itertools
import random
from typing import Final

from slabpress._native import RecordWriter
from slabpress.pipeline.batch import Batch, Watch
from slabpress.pipeline.topics import Topic
from slabpress.plan import MemoryPlan
from slabpress.shm import layout as at
from slabpress.shm.arena import Arena
from slabpress.shm.control import Control
from slabpress.shm.descriptors import Descriptors
from slabpress.shm.states import (
    DONE,
    FREE,
    OPEN,
    REPORTING,
    SEALED,
    SLAB_COMPRESSING,
    SLAB_OPEN,
    SLAB_SEALED,
    SLAB_STATES,
)

# Pressure seals batches only while fewer than this share of the slabs are already on their way to a worker:
# in an outage, cutting open batches short would free nothing and only make them small.
_ON_THEIR_WAY: Final = 4
# And it seals this share of the open batches at a time, so that finding the fullest is paid once for many.
_SEALED_AT_ONCE: Final = 8


class Accumulator:
    """The open batches of one producer, and its side of the descriptors.

    Args:
        arena: the arena.
        plan: its plan.
        linger_ns: how long a batch stays open.
        control: whom to wake when a batch is sealed.
        watch: what handles of its batches wait on.
        rng: chooses the next partition for keyless records.
    """

    def __init__(
        self,
        arena: Arena,
        plan: MemoryPlan,
        linger_ns: int,
        control: Control,
        watch: Watch,
        rng: random.Random,
    ) -> None:
        self._arena = arena
        self._linger_ns = linger_ns
        self._control = control
        self._watch = watch
        self._rng = rng
        self._descriptors = Descriptors(arena)
        self._cursor = 0
        self._seal_tail = arena.seal_tail
        self._calls = itertools.count(1)
        self._open: dict[int, Batch] = {}  # by descriptor, oldest first: all linger equally long
        self.batches: list[Batch | None] = [None] * arena.geometry.batch_count
        self.writer = RecordWriter(
            arena.memory,
            arena.slabs,
            SLAB_OPEN,
            arena.layout.descriptors,
            at.DESCRIPTOR_BYTES,
            at.COMMIT_AT,
            at.BASE_TIMESTAMP_AT,
            at.MAX_TIMESTAMP_AT,
            at.FIRST_SLAB_AT,
            at.SLAB_COUNT_AT,
            plan.batch_bytes,
            plan.largest_record_bytes,
        )

    def next_call(self) -> int:
        """A number for one send_many() call."""
        return next(self._calls)

    @property
    def open_batches(self) -> int:
        """How many batches are open."""
        return len(self._open)

    def open_batch(self, topic: Topic, partition: int, partition_index: int, now_ns: int) -> Batch | None:
        """Open a batch for a topic-partition that has none; None while no descriptor is free."""
        states = self._arena.batch_states
        descriptor = states.find(FREE, self._cursor)
        if descriptor < 0:
            return None
        self._cursor = (descriptor + 1) % states.count
        self._descriptors.open(descriptor, partition_index, now_ns)
        states.store(descriptor, OPEN)
        batch = Batch(descriptor, topic, partition, now_ns, self._watch)
        self.batches[descriptor] = batch
        self._open[descriptor] = batch
        topic.open[partition] = batch
        return batch

    def seal(self, batch: Batch) -> None:
        """Close a batch to further records and give it its place in the order."""
        del self._open[batch.descriptor]
        topic = batch.topic
        topic.open[batch.partition] = None
        if topic.sticky == batch.partition:
            topic.stick_elsewhere(self._rng)
        if batch.records == 0:
            self.release(batch)
            return
        arena, memory = self._arena, self._arena.memory
        tail = self._seal_tail
        batch.seal_number = tail + 1
        self._descriptors.set_seal_number(batch.descriptor, tail + 1)
        arena.slabs.mark(batch.first_slab, SLAB_SEALED)
        arena.seal_ring.store(tail % arena.geometry.seal_ring_entries, batch.descriptor)
        arena.batch_states.store(batch.descriptor, SEALED)
        self._seal_tail = tail + 1
        memory.store_u64(at.SEAL_TAIL_AT, tail + 1)
        for place, amount in enumerate((batch.records, batch.bytes, 1)):
            memory.add_u64(at.COORDINATOR_COUNTERS_AT + 8 * place, amount)
        self._control.wake_one_worker()

    def release(self, batch: Batch) -> None:
        """Give the descriptor back."""
        self.batches[batch.descriptor] = None
        self._arena.batch_states.store(batch.descriptor, FREE)

    def records_accepted(self) -> int:
        """Records that were ever appended, those in open batches included."""
        sealed = self._arena.memory.load_u64(at.COORDINATOR_COUNTERS_AT)
        return sealed + sum(batch.records for batch in self._open.values())

    def seal_all(self) -> None:
        """Seal every open batch (flush)."""
        for batch in list(self._open.values()):
            self.seal(batch)

    def seal_lingering(self, now_ns: int) -> None:
        """Seal every batch that has been open for the linger time."""
        while self._open:
            batch = next(iter(self._open.values()))
            if now_ns - batch.created_ns < self._linger_ns:
                break
            self.seal(batch)

    def next_linger_ns(self) -> int | None:
        """When the oldest open batch will have lingered; None while none is open."""
        for batch in self._open.values():
            return batch.created_ns + self._linger_ns
        return None

    def relieve_pressure(self) -> None:
        """With no slab free: seal the fullest open batches, unless enough is on its way."""
        counts = self._arena.slab_states.tally(len(SLAB_STATES))
        if counts[SLAB_SEALED] + counts[SLAB_COMPRESSING] > self._arena.geometry.slab_count // _ON_THEIR_WAY:
            return
        fullest = sorted(self._open.values(), key=lambda batch: batch.bytes, reverse=True)
        for batch in fullest[: max(1, len(fullest) // _SEALED_AT_ONCE)]:
            self.seal(batch)

    def take_done(self) -> list[Batch]:
        """The batches that have a result now; each is REPORTING, and its outcome is still to be set."""
        taken = []
        for descriptor in self._arena.batch_states.find_all(DONE):
            batch = self.batches[descriptor]
            self._arena.batch_states.store(descriptor, REPORTING)
            if batch is not None and batch.outcome is None:
                taken.append(batch)
        return taken

    def unfinished(self) -> list[Batch]:
        """Every batch that has records and whose descriptor is not free yet, in seal order, open ones last."""
        batches = [batch for batch in self.batches if batch is not None and batch.records > 0]
        return sorted(batches, key=lambda batch: batch.seal_number or self._seal_tail + 1)
