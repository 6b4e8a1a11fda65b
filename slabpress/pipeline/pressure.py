"""When room is short: what is sealed early, who has to wait, and who is called for the room that there is.

Pure but for the arena's memory. The caller holds the producer's lock.
"""

from __future__ import annotations

from typing import Final

from slabpress.pipeline.accumulator import Accumulator
from slabpress.shm import layout as at
from slabpress.shm.arena import Arena
from slabpress.shm.states import (
    COMPRESSING,
    IN_FLIGHT,
    OPEN,
    PARKED,
    READY,
    SEALED,
    SLAB_COMPRESSING,
    SLAB_SEALED,
)
from slabpress.shm.topics import TopicTable

# Pressure seals batches only while fewer than this share of the slabs are already on their way:
# in an outage, cutting open batches short would free nothing and only make them small. To a worker that is a quarter;
# to a broker, whose slabs come back with its answer, a half: with a quarter the rest of the arena waited to linger.
_ON_THEIR_WAY: Final = 4
_ON_THE_WIRE: Final = 2
# Who waits for room is called for no less than this share of the slabs while more is on its way: called for each slab,
# a thread that sends was switched to and from 1,400 times for 3,000,000 records, and is 120 times now.
_WORTH_A_CALL: Final = 16
# And it seals this share of the open batches at a time, so that finding the fullest is paid once for many.
_SEALED_AT_ONCE: Final = 8


class Pressure:
    """One producer's shortness of slabs.

    Args:
        arena: whose slabs they are.
        accumulator: the batches that hold them.

    Attributes:
        slabs_worth_a_call: who waits for room is called for no less while more is on its way.
    """

    def __init__(self, arena: Arena, accumulator: Accumulator) -> None:
        self._arena = arena
        self._accumulator = accumulator
        self._topics = TopicTable(arena)
        self.slabs_worth_a_call = max(1, arena.geometry.slab_count // _WORTH_A_CALL)
        self._enough_slabs = arena.geometry.slab_count // (_ON_THE_WIRE if arena.is_direct else _ON_THEIR_WAY)

    def has_share(self, partition_index: int) -> bool:
        """Whether a topic-partition's leader holds its share of the slabs, and gets no more."""
        return self._arena.slab_shares.over(partition_index)

    def had_share(self, partition_index: int) -> bool:
        """Whether it had it when the record before was held back: a topic may have thousands of partitions."""
        return self._arena.slab_shares.was_over(partition_index)

    def must_wait(self, partition_index: int) -> bool:
        """Whether it has its share, and there is nothing to be done about it: ``relieve_leader``."""
        if not self.has_share(partition_index):
            return False
        return self._is_enough_for(partition_index) or not self._slabs_of_leader(partition_index, OPEN)

    def _slabs_of_leader(self, partition_index: int, *states: int) -> int:
        """The slabs that batches of a topic-partition's leader hold in these states."""
        return self._arena.slab_shares.held_by_leader(partition_index, sum(1 << state for state in states))

    def _is_enough_for(self, partition_index: int) -> bool:
        """Whether enough of a leader's slabs will be free without more of its batches being sealed.

        Those of batches that were set aside count: while a broker is down, cutting open batches short frees nothing.
        """
        states = (READY, IN_FLIGHT) if self._arena.is_direct else (SEALED, PARKED, COMPRESSING)
        on_their_way = self._slabs_of_leader(partition_index, *states)
        return on_their_way > self._enough_slabs

    def relieve_leader(self, partition_index: int) -> None:
        """With a leader that has its share: seal the fullest of its open batches until enough is on its way.

        They may be all that it holds. Nobody else would seal them before they have lingered.
        """
        leader = self._topics.leader_word(partition_index)
        fullest = sorted(self._accumulator.all_open(), key=lambda batch: batch.bytes)
        while fullest and not self._is_enough_for(partition_index):
            batch = fullest.pop()
            index = batch.topic.partition_indices[batch.partition]
            if batch.records and self._topics.leader_word(index) == leader:
                self._accumulator.seal(batch)

    def is_more_room_coming(self) -> bool:
        """Whether there is little room, and soon there will be more: those who wait for it may wait for that.

        What is on its way comes to rest only in an outage; then whoever waits looks again by itself, once a second.
        """
        if self._arena.slabs.count_free() >= self.slabs_worth_a_call:
            return False
        return self._slabs_on_their_way() > self._enough_slabs

    def relieve(self) -> None:
        """With no slab free: seal the fullest open batches, unless enough is on its way."""
        if self._slabs_on_their_way() > self._enough_slabs:
            return
        fullest = sorted(self._accumulator.all_open(), key=lambda batch: batch.bytes, reverse=True)
        for batch in fullest[: max(1, len(fullest) // _SEALED_AT_ONCE)]:
            self._accumulator.seal(batch)

    def _slabs_on_their_way(self) -> int:
        """The slabs that will be free soon: not those of a leader that has its share, and holds up its batches."""
        if self._arena.is_direct:
            return self._arena.slab_shares.held_within(1 << READY | 1 << IN_FLIGHT)
        slabs = self._arena.slab_states
        return slabs.count_state(SLAB_SEALED) + slabs.count_state(SLAB_COMPRESSING) - self._parked_slabs()

    def _parked_slabs(self) -> int:
        """The slabs of batches that were set aside: they are on their way nowhere."""
        if not self._arena.memory.load_u64(at.PARKED_AT):
            return 0
        parked = [self._accumulator.batches[descriptor] for descriptor in self._arena.batch_states.find_all(PARKED)]
        return sum(batch.slabs for batch in parked if batch is not None)
