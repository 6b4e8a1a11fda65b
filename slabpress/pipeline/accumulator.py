"""Open batches: where records gather until their batch is full, has lingered, is flushed, or room is short.

Pure but for the arena's memory: no threads, and no clock of its own but where ``OpenBatches`` opens batches by itself.
The caller holds the producer's lock.
"""

from __future__ import annotations

import itertools
import math
import random
from typing import Final

from slabpress._native import Arrivals, OpenBatches, OpeningPoint, RecordWriter, SealPoint
from slabpress.pipeline.batch import Batch
from slabpress.pipeline.outcomes import Outcome
from slabpress.pipeline.topics import Topic
from slabpress.pipeline.watch import Watch
from slabpress.plan import MemoryPlan
from slabpress.results import DELIVERED
from slabpress.shm import layout as at
from slabpress.shm.arena import Arena
from slabpress.shm.control import NETWORK, Control
from slabpress.shm.descriptors import BLANK
from slabpress.shm.splits import Split, Splits
from slabpress.shm.states import (
    DONE,
    FREE,
    OPEN,
    PARTIAL,
    READY,
    REPORTING,
    SEALED,
    SLAB_OPEN,
    SLAB_READY,
    SLAB_SEALED,
)
from slabpress.shm.topics import TopicTable

# A batch that has lingered stays open while its topic-partition has this many on their way: one on the wire and one
# ready to follow it. A third would only wait, and grow no more; behind slow acknowledgements sealing by the clock
# alone leaves one-slab batches that fill the output buffers.
_UNDER_WAY_ENOUGH: Final = 2
# So long after a batch was opened the coordinator looks around, at the latest.
NUDGE_NS: Final = 1_000_000_000


class Accumulator:
    """The open batches of one producer, and its side of the descriptors.

    Args:
        arena: the arena.
        plan: its plan.
        linger_ns: how long a batch stays open.
        control: whom to wake when a batch is sealed.
        watch: what handles of its batches wait on.
        rng: chooses the next partition for keyless records.

    Attributes:
        writer: writes records into batches.
        batches: by descriptor, the batches in use, or None.
        arrivals: takes in what became of them.
        open_batches: opens and seals them; the native ways do so by themselves.
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
        self._topics = TopicTable(arena)
        self._splits = Splits(arena)
        self._opening_point = OpeningPoint(
            arena.memory,
            arena.batch_states,
            FREE,
            OPEN,
            arena.layout.descriptors,
            at.DESCRIPTOR_BYTES,
            BLANK,
            at.CREATED_AT,
            at.PARTITION_INDEX_AT,
        )
        seal_point = SealPoint(
            arena.memory,
            at.SEAL_TAIL_AT,
            arena.seal_ring,
            arena.batch_states,
            at.SEAL_NUMBER_AT,
            at.COORDINATOR_COUNTERS_AT,
            at.FIRST_OUTPUT_AT if arena.is_direct else -1,
        )
        self._calls = itertools.count(1)
        self.batches: list[Batch | None] = [None] * arena.geometry.batch_count
        self.writer = RecordWriter(
            arena.memory,
            arena.slabs,
            arena.slab_shares,
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
        self.open_batches = OpenBatches(
            self.writer,
            self._opening_point,
            seal_point,
            *((SLAB_READY, READY) if arena.is_direct else (SLAB_SEALED, SEALED)),
            Batch,
            self.batches,
            watch,
            None if arena.is_direct else arena.promises,
            control.ringer((NETWORK,) if arena.is_direct else control.workers),
            control.alarm,
            linger_ns,
            NUDGE_NS,
            rng,
        )
        self._open: dict[int, Batch] = self.open_batches.lingering
        self._held: dict[int, Batch] = self.open_batches.held  # see _UNDER_WAY_ENOUGH
        self.arrivals = Arrivals(
            arena.memory,
            arena.batch_states,
            DONE,
            REPORTING,
            FREE,
            arena.seal_ring,
            at.SEAL_TAIL_AT,
            arena.layout.descriptors,
            at.DESCRIPTOR_BYTES,
            at.RESULT_CODE_AT,
            DELIVERED,
            self.open_batches,
            watch,
            Outcome,
        )

    def next_call(self) -> int:
        """A number for one send_many() call."""
        return next(self._calls)

    def has_unfinished(self) -> bool:
        """Whether any descriptor is in use: first the one that was opened last, for looking at all takes 28 us."""
        states = self._arena.batch_states
        return (
            states.load((self._opening_point.cursor - 1) % states.count) != FREE or states.tally(1)[FREE] < states.count
        )

    @property
    def lingers_not(self) -> bool:
        """Whether a batch is to be sealed as soon as may be."""
        return self._linger_ns == 0

    def open_batch(self, topic: Topic, partition: int, partition_index: int, now_ns: int) -> Batch | None:
        """Open a batch for a topic-partition that has none; None while no descriptor is free."""
        batch: Batch | None = self.open_batches.open(topic, partition, partition_index, now_ns)
        return batch

    def seal(self, batch: Batch) -> None:
        """Close a batch to further records and give it its place in the order; without any it is none any more."""
        self.open_batches.seal(batch)

    def drop_if_empty(self, batch: Batch) -> None:
        """Close a batch without records, unless that was done.

        Its time starts with its first record, so it does not wait for room, or for a record that is not refused.
        """
        if batch.records == 0 and self.batches[batch.descriptor] is batch:
            self.seal(batch)

    def release(self, batch: Batch) -> None:
        """Give the descriptor back."""
        self._arena.batch_states.store(batch.descriptor, FREE)
        if self.batches[batch.descriptor] is batch:
            self.batches[batch.descriptor] = None

    def records_accepted(self) -> int:
        """Records that were ever appended, those in open batches included."""
        sealed = self._arena.memory.load_u64(at.COORDINATOR_COUNTERS_AT)
        return sealed + sum(batch.records for batch in self.all_open() if not batch.closed)

    def all_open(self) -> list[Batch]:
        """Every open batch, those that have lingered included."""
        return [*self._open.values(), *self._held.values()]

    def seal_all(self) -> None:
        """Seal every open batch (flush)."""
        for batch in self.all_open():
            self.seal(batch)

    def seal_lingering(self, now_ns: int) -> None:
        """Seal every batch that has been open for the linger time, unless enough is on its way before it."""
        while self._open:
            batch = next(iter(self._open.values()))
            if now_ns - batch.created_ns < self._linger_ns:
                break
            if batch.topic.under_way.get(batch.partition, 0) < _UNDER_WAY_ENOUGH or batch.records == 0:
                self.seal(batch)
            else:
                del self._open[batch.descriptor]
                self._held[batch.descriptor] = batch

    def next_linger_ns(self) -> int | None:
        """When the oldest open batch will have lingered; None while none is open."""
        for batch in self._open.values():
            return batch.created_ns + self._linger_ns
        return None

    def has_results(self) -> bool:
        """Whether ``take_done`` or ``partial`` would find a batch."""
        return self.arrivals.any() or (self._splits.any_ever() and self._arena.batch_states.has(PARTIAL))

    def partial(self) -> list[Batch]:
        """The split batches of which a piece has its result."""
        if not self._splits.any_ever():
            return []
        found = [self.batches[descriptor] for descriptor in self._arena.batch_states.find_all(PARTIAL)]
        return [batch for batch in found if batch is not None]

    def learn_limit(self, batch: Batch, split: Split) -> None:
        """A batch was too large: the topic's next ones are no larger than half of what was refused last.

        The topic's max.message.bytes is not known here, and speaks of compressed bytes. It is below what was refused
        last, and with records alike above half of it. The batches grow again by little with each that is accepted
        (``Arrivals.make_way``), so a single record that was too large makes them small for a while only.
        """
        uncompressed = split.refused_bytes * batch.bytes // split.source_bytes
        batch.topic.batch_limit = min(batch.topic.batch_limit, max(1, uncompressed // 2))

    def take_done(self) -> list[Batch]:
        """The batches that have a result now; each is REPORTING, and its outcome is still to be set."""
        taken = []
        for descriptor in self.arrivals.take_all():
            batch = self.batches[descriptor]
            if batch is not None and batch.outcome is None:
                taken.append(batch)
                self.arrivals.make_way(batch)
        if len(taken) > 1:
            taken.sort(key=lambda batch: batch.seal_number)  # callbacks of a topic-partition run in its order
        return taken

    def unfinished(self) -> list[Batch]:
        """Every batch that has records and whose descriptor is not free yet, in seal order, open ones last."""
        batches = [batch for batch in self.batches if batch is not None and batch.records > 0]
        return sorted(batches, key=lambda batch: batch.seal_number or math.inf)
