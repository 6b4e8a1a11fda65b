"""Producer ids, epochs and sequences of one arena (KIP-98, KIP-360): written before the first send of a batch (law 8).

    arena        producer id                            as InitProducerId gave it
    partition    producer id, epoch, next sequence      the next batch's, in the order of sending
    batch        producer id, epoch, sequence           as it was sent; valid while they are its partition's

A batch keeps its sequence through every retry, so the broker knows it again. When a partition has to begin anew, its
epoch moves on by one store; with that, no batch of it has a sequence any more, and those that were not appended get
new ones, from 0. A sequence that was sent is never another record's within its epoch: what the broker may or may not
have appended it will not mistake for something else (franz-go#1217).

Stores are ordered for a death between any two of them: the batch's sequence becomes valid by the store of its epoch,
before its partition's next sequence moves on; ``mend`` does what was left.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from slabpress.shm import layout as at
from slabpress.shm.arena import Arena

# Sequences go from 0 to 2**31 - 1 and then to 0 again (DefaultRecordBatch.incrementSequence); epochs are 16 bit.
SEQUENCE_MASK: Final = 0x7FFF_FFFF
EPOCH_MAX: Final = 0x7FFF
_NO_PRODUCER: Final = -1
_STATE: Final = struct.Struct("<qii")  # producer id, epoch, next sequence or sequence
_U32: Final = 0xFFFF_FFFF


class Identity(NamedTuple):
    """Who sends a batch, and the sequence of its first record."""

    producer_id: int
    epoch: int
    sequence: int


UNIDENTIFIED: Final = Identity(-1, -1, -1)


class Sequences:
    """The sequences of one arena."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._memory = arena.memory
        self._partitions = arena.layout.partitions
        self._descriptors = arena.layout.descriptors

    @property
    def producer_id(self) -> int | None:
        """The arena's producer id; None before it has one."""
        stored = self._memory.load_u64(at.PRODUCER_ID_PLUS_ONE_AT)
        return stored - 1 if stored else None

    def set_producer_id(self, producer_id: int | None) -> None:
        """Take a new producer id, or None when the old one is used up. Partitions change to it when they begin anew."""
        self._memory.store_u64(at.PRODUCER_ID_PLUS_ONE_AT, 0 if producer_id is None else producer_id + 1)

    def _partition_at(self, index: int) -> int:
        return self._partitions + index * at.PARTITION_BYTES + at.PRODUCER_ID_AT

    def _partition(self, index: int) -> Identity:
        return Identity(*_STATE.unpack_from(self._arena.view, self._partition_at(index)))

    def _set_next(self, index: int, epoch: int, sequence: int) -> None:
        """Epoch and next sequence of a partition, in one store."""
        start = self._partitions + index * at.PARTITION_BYTES + at.PRODUCER_EPOCH_AT
        self._memory.store_u64(start, sequence << 32 | epoch & _U32)

    def _batch_at(self, descriptor: int) -> int:
        return self._descriptors + descriptor * at.DESCRIPTOR_BYTES + at.BATCH_PRODUCER_ID_AT

    def _batch(self, descriptor: int) -> Identity:
        return Identity(*_STATE.unpack_from(self._arena.view, self._batch_at(descriptor)))

    def assigned(self, descriptor: int, partition: int) -> Identity | None:
        """What the batch was sent as, None if it was not, or its partition has begun anew since."""
        batch, current = self._batch(descriptor), self._partition(partition)
        if batch.producer_id == _NO_PRODUCER or batch[:2] != current[:2]:
            return None
        return batch

    def assign(self, descriptor: int, partition: int, first: int, records: int) -> Identity | None:
        """The identity of a batch's records from number ``first`` on, given to it now if it has none.

        Args:
            descriptor: the batch.
            partition: its partition's index.
            first: the first record that is sent now; not 0 for a later piece of a split batch.
            records: how many records the whole batch has.

        Returns:
            None while the arena has no producer id.
        """
        view = self._arena.view
        producer_id, epoch, sequence = _STATE.unpack_from(view, self._batch_at(descriptor))
        now_id, now_epoch, now_sequence = _STATE.unpack_from(view, self._partition_at(partition))
        if producer_id == _NO_PRODUCER or producer_id != now_id or epoch != now_epoch:  # as in ``assigned``
            if now_id == _NO_PRODUCER:
                current = self._begin(partition)
                if current is None:
                    return None
                now_id, now_epoch, now_sequence = current
            # As if the records before ``first``, which have their results, were the ones before it.
            producer_id, epoch, sequence = now_id, now_epoch, (now_sequence - first) & SEQUENCE_MASK
            self._store(descriptor, producer_id, epoch, sequence)
            self._set_next(partition, epoch, (sequence + records) & SEQUENCE_MASK)
        return Identity(producer_id, epoch, (sequence + first) & SEQUENCE_MASK)

    def _begin(self, partition: int) -> Identity | None:
        """The first identity of a partition that has none: it begins with the arena's producer id."""
        producer_id = self.producer_id
        if producer_id is None:
            return None
        self._set_next(partition, 0, 0)
        self._memory.store_u64(self._partition_at(partition), producer_id)
        return Identity(producer_id, 0, 0)

    def _store(self, descriptor: int, producer_id: int, epoch: int, sequence: int) -> None:
        start = self._batch_at(descriptor)
        self._memory.store_u32(start + 12, sequence)
        self._memory.store_u64(start, producer_id)
        self._memory.store_u32(start + 8, epoch & _U32)

    def begin_anew(self, partition: int) -> None:
        """Move a partition to its next epoch: its batches without a result get new sequences, from 0.

        Nothing of it may be on the wire. With the last epoch used up it waits for a new producer id.
        """
        current = self._partition(partition)
        if current.epoch < EPOCH_MAX:
            self._set_next(partition, current.epoch + 1, 0)
            return
        if self.producer_id == current.producer_id:
            self.set_producer_id(None)
        self._memory.store_u64(self._partition_at(partition), _NO_PRODUCER & 0xFFFF_FFFF_FFFF_FFFF)

    def mend(self, descriptor: int, partition: int, first: int, records: int) -> None:
        """Finish what a predecessor may have left of ``assign``; the arguments are those of ``assign``."""
        batch = self.assigned(descriptor, partition)
        if batch is not None and (batch.sequence + first) & SEQUENCE_MASK == self._partition(partition).sequence:
            self._set_next(partition, batch.epoch, (batch.sequence + records) & SEQUENCE_MASK)
