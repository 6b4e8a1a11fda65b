"""A broker that takes batches up to a size, and one life of the network process's side of an arena, without sockets."""

from __future__ import annotations

from collections import defaultdict, deque
from typing import Any, Final, NamedTuple

from slabpress.network import outcomes
from slabpress.network.batches import ArenaBatches
from slabpress.network.partition import Batch
from slabpress.network.wire import ProduceResult
from slabpress.shm import layout as at
from slabpress.shm.arena import Arena
from tests.support.reference_batch import Record, decode_batch

MESSAGE_TOO_LARGE: Final = 10
HEADER_BYTES: Final = at.BATCH_HEADER_BYTES
TOPIC: Final = "t"
_SETTINGS: Final[dict[str, Any]] = {
    "acks": -1,
    "delivery_timeout_ms": 600_000,
    "max_request_size": 1 << 20,
    "enable_idempotence": False,
}

Place = tuple[str, int]


class Arrival(NamedTuple):
    """A batch that came to the broker, and what it said."""

    place: Place
    records: int
    codec: int
    size: int
    error: int


class LimitedBroker:
    """Appends every batch that is not larger than ``limit`` bytes, its header included.

    Attributes:
        limit: the most bytes; may be changed at any time.
        logs: the records of each topic-partition.
        arrivals: every batch that came, in order.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.logs: defaultdict[Place, list[Record]] = defaultdict(list)
        self.arrivals: list[Arrival] = []

    def produce(self, place: Place, data: bytes) -> ProduceResult:
        """Take a batch as it came over the wire, checking everything about it."""
        header, records = decode_batch(data)
        log = self.logs[place]
        error = 0 if len(data) <= self.limit else MESSAGE_TOO_LARGE
        self.arrivals.append(Arrival(place, len(records), header.codec_id, len(data), error))
        offset = len(log) if error == 0 else -1
        if error == 0:
            log.extend(records)
        return ProduceResult(*place, error, offset, -1, [], "", -1, -1)

    def values(self, partition: int = 0) -> list[bytes | None]:
        """The values in a partition's log."""
        return [record.value for record in self.logs[TOPIC, partition]]


class Network:
    """The network process's side of one arena, for one life of that process.

    Args:
        arena: the arena, or what stands for it in a process that dies.
        broker: where batches go.
    """

    def __init__(self, arena: Arena, broker: LimitedBroker) -> None:
        self.broker = broker
        self.batches = ArenaBatches(0, arena, _SETTINGS)
        self.waiting: defaultdict[Place, deque[Batch]] = defaultdict(deque)
        self._sent: list[Batch] = []

    def end(self) -> None:
        """The process is gone, and with it its views of the arena."""
        for batch in self._sent:
            batch.parts = []

    def follow(self) -> None:
        """Take note of what was sealed."""
        for batch in self.batches.follow():
            self.waiting[batch.queue.topic, batch.queue.number].append(batch)

    def heads(self) -> list[Batch]:
        """The batches that may be sent: the first of each topic-partition, if it is READY."""
        firsts = [waiting[0] for waiting in self.waiting.values() if waiting]
        return [batch for batch in firsts if self.batches.is_ready(batch.index)]

    def send(self, batch: Batch) -> ProduceResult:
        """Put a head on the wire; what the broker says."""
        self._sent.append(batch)
        self.batches.make_bytes(batch)
        self.batches.start(batch)
        return self.broker.produce((batch.queue.topic, batch.queue.number), b"".join(batch.parts))

    def answer(self, batch: Batch, result: ProduceResult) -> None:
        """Apply what the broker said, as ``Producing.answered`` does."""
        if outcomes.may_split(result) and batch.records > 1:
            self.batches.split(batch)
            return
        delivered = outcomes.is_delivered(result)
        refused = outcomes.refused(result, batch.size, batch.records)
        if self.batches.finish_sent(batch, outcomes.delivered(result) if delivered else refused):
            self.waiting[batch.queue.topic, batch.queue.number].popleft()

    def expire(self, batch: Batch) -> None:
        """The delivery timeout of a READY head has ended."""
        self.waiting[batch.queue.topic, batch.queue.number].popleft()
        self.batches.finish(batch, outcomes.expired(self.batches.attempts(batch), 1, "why"))
