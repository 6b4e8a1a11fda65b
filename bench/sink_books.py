"""What the sink has acknowledged, by topic."""

from __future__ import annotations

import threading
from typing import NamedTuple

_UNKNOWN_TOPIC_OR_PARTITION = 3
_INVALID_RECORD = 87


class Taken(NamedTuple):
    """What was acknowledged of a topic.

    Attributes:
        records: by the batches' headers.
        octets: of batches, compressed as they came.
        batches: how many.
        codecs: how many of them are compressed with what, by the codec's number in a batch's attributes.
    """

    records: int
    octets: int
    batches: int
    codecs: dict[int, int]


class Batch(NamedTuple):
    """What a batch's header says: how many records, compressed with what."""

    records: int
    codec: int


class Topic:
    """A topic's counts; the lock is the books'."""

    def __init__(self, partitions: int) -> None:
        self.next_offsets = [0] * partitions
        self.octets = 0
        self.batches = 0
        self.codecs: dict[int, int] = {}

    def take(self, partition: int, batch: Batch | None, octets: int) -> tuple[int, int]:
        """Count one batch; error code and base offset."""
        if not 0 <= partition < len(self.next_offsets):
            return _UNKNOWN_TOPIC_OR_PARTITION, -1
        if batch is None:
            return _INVALID_RECORD, -1
        offset = self.next_offsets[partition]
        self.next_offsets[partition] = offset + batch.records
        self.octets += octets
        self.batches += 1
        self.codecs[batch.codec] = self.codecs.get(batch.codec, 0) + 1
        return 0, offset

    def taken(self) -> Taken:
        """The counts so far."""
        return Taken(sum(self.next_offsets), self.octets, self.batches, dict(self.codecs))


class Books:
    """All topics. Connections have a thread each, so whoever counts holds the lock."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.topics: dict[bytes, Topic] = {}
        self.partitions: dict[str, int] = {}

    def create(self, name: str, partitions: int) -> None:
        """Make a topic."""
        with self.lock:
            self.topics[name.encode()] = Topic(partitions)
            self.partitions[name] = partitions

    def taken(self, name: str) -> Taken:
        """What was acknowledged of a topic."""
        with self.lock:
            return self.topics[name.encode()].taken()
