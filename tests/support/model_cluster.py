"""Brokers as an idempotent producer meets them: partition logs, what they remember of producers, and late requests.

Written from Kafka's ProducerStateManager, ProducerStateEntry and ProducerAppendInfo, sharing no code with the package:

- Of each producer a partition knows the last five batches of its newest epoch. One of them that comes again is
  answered with its first offset. An older epoch is INVALID_PRODUCER_EPOCH; the same epoch goes on with the next
  sequence and a newer one begins with 0, or it is OUT_OF_ORDER_SEQUENCE_NUMBER. A partition that knows nothing of a
  producer takes any sequence.
- What was acknowledged (to acks=all) every later leader has; what was not, it may have or not, and with it the memory.
- Requests of one connection are processed one after the other. When the client closes it, those that are under way may
  be lost, or be processed later, after requests of newer connections: zombies.

What real brokers may do as well and no producer can make good is left out:

- A zombie that appends after the producer was told OUT_OF_ORDER_SEQUENCE_NUMBER, and before the broker sees its next
  epoch: a batch that was given up comes back, and lets in former copies of its successors, which are sent again in the
  next epoch. Here such an answer ends the zombies of its topic-partition (``fierce``: it does not).
- A restart that forgets all but the last of a producer's batches (a snapshot has no more), while an answer to an
  older one is under way; an election that loses what was acknowledged.
- A producer that is forgotten between two batches of the same minute. By default brokers forget 24 hours after the
  newest timestamp of the producer's last batch; with records that are older than that, any time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

from tests.support.reference_batch import BatchHeader, decode_batch

NOT_LEADER: Final = 6
MESSAGE_TOO_LARGE: Final = 10
OUT_OF_ORDER: Final = 45
STALE_EPOCH: Final = 47
# Errors after which the batch is in the leader's log all the same: REQUEST_TIMED_OUT, NOT_ENOUGH_REPLICAS_AFTER_APPEND.
AFTER_APPEND: Final = frozenset({7, 20})
_REMEMBERED: Final = 5
_SEQUENCES: Final = 1 << 31


class Appended(NamedTuple):
    """A batch in a log."""

    producer_id: int
    epoch: int
    first: int
    last: int
    offset: int
    values: tuple[bytes | None, ...]


class PartitionLog:
    """One partition: its log as the leader has it.

    Attributes:
        leader: the broker that leads it.
        batches: what is in the log.
        acknowledged: how many of them every leader will have.
    """

    def __init__(self, leader: int) -> None:
        self.leader = leader
        self.batches: list[Appended] = []
        self.acknowledged = 0
        self._remembered_from = 0

    @property
    def values(self) -> list[bytes | None]:
        """Every record in the log."""
        return [value for batch in self.batches for value in batch.values]

    def _known(self, producer_id: int) -> list[Appended]:
        """What the leader knows of a producer: the last batches of its newest epoch."""
        own = [batch for batch in self.batches[self._remembered_from :] if batch.producer_id == producer_id]
        return [batch for batch in own if batch.epoch == own[-1].epoch][-_REMEMBERED:]

    def append(self, header: BatchHeader, values: tuple[bytes | None, ...]) -> tuple[int, Appended | None]:
        """An error, or the batch as it is in the log."""
        first, last = header.base_sequence, (header.base_sequence + header.record_count - 1) % _SEQUENCES
        known = self._known(header.producer_id)
        if known:
            if header.producer_epoch < known[-1].epoch:
                return STALE_EPOCH, None
            anew = header.producer_epoch > known[-1].epoch
            for batch in known:
                if not anew and (batch.first, batch.last) == (first, last):
                    assert batch.values == values, "the broker takes a batch for another"
                    return 0, batch
            if first != (0 if anew else (known[-1].last + 1) % _SEQUENCES):
                return OUT_OF_ORDER, None
        offset = len(self.values)
        batch = Appended(header.producer_id, header.producer_epoch, first, last, offset, values)
        self.batches.append(batch)
        return 0, batch

    def acknowledge(self, batch: Appended) -> None:
        """It is replicated, and all before it."""
        self.acknowledged = max(self.acknowledged, self.batches.index(batch) + 1)

    def move(self, leader: int, keep: int) -> None:
        """Another leader, which has so many of the batches that were not acknowledged."""
        self.leader = leader
        del self.batches[self.acknowledged + keep :]
        self._remembered_from = min(self._remembered_from, len(self.batches))

    def forget(self) -> None:
        """The producers' memory has expired."""
        self._remembered_from = len(self.batches)


class Came(NamedTuple):
    """A Produce request as it came to a broker: by partition, the bytes of a batch."""

    correlation_id: int
    batches: dict[int, bytes]


class Said(NamedTuple):
    """What a broker answers of one partition."""

    partition: int
    error: int
    offset: int


class ModelCluster:
    """The brokers.

    Args:
        brokers: how many.
        partitions: how many.
        batch_bytes: the largest batch that they take.
        fierce: zombies live for ever.

    Attributes:
        logs: the partitions.
        zombies: for each closed connection to a broker the requests that it still may process.
    """

    def __init__(self, brokers: int, partitions: int, batch_bytes: int, *, fierce: bool = False) -> None:
        self.brokers = range(brokers)
        self.logs = [PartitionLog(partition % brokers) for partition in range(partitions)]
        self.batch_bytes = batch_bytes
        self.zombies: list[tuple[int, deque[Came]]] = []
        self._fierce = fierce

    def process(self, broker: int, request: Came, faults: Sequence[int]) -> list[Said]:
        """Process a request of a living connection; ``faults`` are what fails, by partition."""
        said = [self._produce(broker, each, data, faults[each]) for each, data in request.batches.items()]
        for each in said:
            if each.error == OUT_OF_ORDER and not self._fierce:
                self._bury(each.partition)
        return said

    def _produce(self, broker: int, partition: int, data: bytes, fault: int) -> Said:
        log = self.logs[partition]
        if log.leader != broker:
            return Said(partition, NOT_LEADER, -1)
        if fault and fault not in AFTER_APPEND:
            return Said(partition, fault, -1)
        if len(data) > self.batch_bytes:
            return Said(partition, MESSAGE_TOO_LARGE, -1)
        header, records = decode_batch(data)
        error, batch = log.append(header, tuple(record.value for record in records))
        if batch is None:
            return Said(partition, error, -1)
        if fault:
            return Said(partition, fault, -1)
        log.acknowledge(batch)
        return Said(partition, 0, batch.offset)

    def _bury(self, partition: int) -> None:
        for _, requests in self.zombies:
            for request in requests:
                request.batches.pop(partition, None)

    def process_zombie(self, which: int, faults: Sequence[int]) -> None:
        """Process the next request of a closed connection; nobody hears the answer."""
        broker, requests = self.zombies[which]
        for partition, data in requests.popleft().batches.items():
            self._produce(broker, partition, data, faults[partition])
        if not requests:
            del self.zombies[which]

    def a_day_passes(self) -> None:
        """What is older than a day is forgotten, and nothing that old is under way."""
        self.zombies.clear()
        for log in self.logs:
            log.forget()
