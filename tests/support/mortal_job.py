"""A job that dies between any two of its stores: what accumulator and session do to an arena, store by store.

``append`` and ``seal`` make the stores of the accumulator's, in their order (``publish_seal``): it opens and seals in a
native call each, which cannot be stopped in between. The counters that a seal ends with are nobody's but the job's.
"""

from __future__ import annotations

from typing import Final

from slabpress._native import OpenBatch
from slabpress.results import DELIVERED
from slabpress.shm.splits import Splits
from slabpress.shm.states import DONE, FREE, OPEN, OVERSIZE, PARTIAL, REPORTING
from tests.shm.faults import Life, MortalDescriptors, mortal
from tests.shm.kit import publish_seal
from tests.support.split_bench import SplitBench

_STAMP: Final = 1_700_000_000_000


class MortalJob:
    """The coordinator's side of an arena.

    Args:
        bench: the arena; its own coordinator does nothing meanwhile.

    Attributes:
        accepted: by partition, the values of every record that was accepted.
        failed: how many batches had a result other than success.
    """

    def __init__(self, bench: SplitBench) -> None:
        self.life = Life()
        self.accepted: list[list[bytes]] = [[] for _ in range(bench.arena.geometry.partition_count)]
        self.failed = 0
        self._bench = bench
        self._arena = mortal(bench.arena, self.life)
        self._descriptors = MortalDescriptors(self.life, self._arena, bench.arena)
        self._splits = Splits(self._arena)
        self._open: dict[int, OpenBatch] = {}

    def append(self, partition: int, value: bytes) -> bool:
        """Accept a record into the partition's open batch; False while there is no room."""
        batch = self._open.get(partition)
        if batch is None:
            index = self._arena.batch_states.find(FREE)
            if index < 0:
                return False
            self._descriptors.open(index, partition, self._bench.now or 0)
            self._arena.batch_states.store(index, OPEN)
            batch = self._open[partition] = OpenBatch(index, partition)
            batch.limit = self._bench.arena.geometry.split_outputs * self._bench.arena.geometry.output_bytes
        if self._bench.coordinator.writer.append(batch, None, value, None, _STAMP) <= 0:
            return False
        self.accepted[partition].append(value)
        return True

    def seal(self, partition: int) -> None:
        """Close the partition's open batch and publish it."""
        batch = self._open.pop(partition, None)
        if batch is None:
            return
        if batch.records == 0:
            self._arena.batch_states.store(batch.descriptor, FREE)
            return
        publish_seal(self._arena, self._descriptors, batch)

    def take_results(self) -> None:
        """Take in what has come in: pieces of split batches, then batches that are DONE."""
        states = self._arena.batch_states
        for index in states.find_all(PARTIAL):
            delivered = self._descriptors.result(index).code == DELIVERED
            self.failed += not delivered
            self._splits.go_on(index, delivered=delivered)
            self.life.change()  # go_on writes plain memory
            states.store(index, OVERSIZE)
        for index in states.find_all(DONE):
            self.failed += self._descriptors.result(index).code != DELIVERED
            states.store(index, REPORTING)
            states.store(index, FREE)
