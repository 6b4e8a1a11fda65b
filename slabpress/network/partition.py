"""A topic-partition's batches in the network process. Pure: what they are in the arena is their source's."""

from __future__ import annotations

from typing import Final, Protocol

from slabpress.shm.splits import Split

# Above every seal number.
IN_STEP: Final = 1 << 61


class Source(Protocol):
    """The arena that a batch lives in, as far as its order is concerned."""

    number: int
    retired: bool
    in_flight_limit: int
    queues: list[PartitionQueue | None]

    def is_ready(self, index: int) -> bool:
        """Whether the batch's state is READY; if it is not, it will be told once it is."""
        ...

    def note_leader(self, queue: PartitionQueue) -> None:
        """Take note of the queue's new leader."""
        ...

    def begin_anew(self, queue: PartitionQueue) -> None:
        """Give the queue's batches new sequences; none of them is on the wire."""
        ...


class Batch:
    """A batch that was sealed and is not done.

    Attributes:
        queue: its topic-partition's queue.
        index: its descriptor.
        seal_number: its place in the order.
        deadline_ns: when its delivery timeout ends.
        ready: its state was seen to be READY; from then on it belongs to this process.
        parts: the bytes to send, header first, once they are made.
        size, records: how much that is, once it is measured; 0 before.
        first_output, payload_bytes, codec, split: what else was measured: where its payload is, how many bytes in which
            codec, and how far it is split (None for a whole batch).
        failures: failed tries in a row.
        last_error: what the last failed try said.
    """

    __slots__ = (
        "codec",
        "deadline_ns",
        "failures",
        "first_output",
        "index",
        "last_error",
        "parts",
        "payload_bytes",
        "queue",
        "ready",
        "records",
        "seal_number",
        "size",
        "split",
    )

    def __init__(self, queue: PartitionQueue, index: int, seal_number: int, deadline_ns: int) -> None:
        self.queue = queue
        self.index = index
        self.seal_number = seal_number
        self.deadline_ns = deadline_ns
        self.ready = False
        self.parts: list[memoryview] = []
        self.size = 0
        self.records = 0
        self.first_output = 0
        self.payload_bytes = 0
        self.codec = 0
        self.split: Split | None = None
        self.failures = 0
        self.last_error = ""


class PartitionQueue:
    """The batches of one topic-partition of one arena, in seal order.

    Attributes:
        source: the arena.
        topic, number, key: the topic-partition; both.
        index: its entry in the arena's partition table.
        waiting: batches that are not on the wire; the first is the head.
        on_wire: those that are.
        anew_from: the seal number of a batch that the broker will not append: what was sealed from there on begins
            anew, once nothing is on the wire. What was sealed before it keeps its sequences, for it may be in the log.
            IN_STEP: there is none.
        known_until_ns: its leader knows the sequences, so several batches may be on the wire. Until then one: after a
            failed try (as Java's producer), at a new leader (as franz-go), in a new epoch.
        leader: the broker's node id, None where none is known.
        retry_at_ns: nothing is sent before.
        is_placed: it is sendable or leaderless.
    """

    __slots__ = (
        "anew_from",
        "expiry_armed",
        "index",
        "is_placed",
        "key",
        "known_until_ns",
        "leader",
        "number",
        "on_wire",
        "retry_armed",
        "retry_at_ns",
        "source",
        "topic",
        "waiting",
    )

    def __init__(self, source: Source, topic: str, number: int, index: int = 0) -> None:
        self.source = source
        self.topic = topic
        self.number = number
        self.key = (topic, number)
        self.waiting: list[Batch] = []  # short, mostly empty; an empty deque takes 700 bytes more
        self.index = index
        self.on_wire: list[Batch] = []
        self.anew_from = IN_STEP
        self.known_until_ns = 0
        self.leader: int | None = None
        self.retry_at_ns = 0
        self.expiry_armed = False
        self.retry_armed = False
        self.is_placed = False

    @property
    def out_of_step(self) -> bool:
        """Whether something is to begin anew."""
        return self.anew_from != IN_STEP

    def begin_anew_from(self, batch: Batch) -> None:
        """Note that the broker will not append this batch with its sequence."""
        self.anew_from = min(self.anew_from, batch.seal_number)

    @property
    def in_flight(self) -> int:
        """How many batches are on the wire."""
        return len(self.on_wire)

    def is_first(self, batch: Batch) -> bool:
        """Whether every batch that was sealed before this one has its result."""
        others = [*self.on_wire, *self.waiting[:1]]
        return all(other is batch or other.seal_number > batch.seal_number for other in others)
