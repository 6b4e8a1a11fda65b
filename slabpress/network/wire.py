"""What goes over the wire, as small tuples: what requests are made of and what responses say.

Only types, so that the pure modules need not import the protocol library.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Final, NamedTuple, TypeAlias
from uuid import UUID

# No response may be larger, for it is held in memory whole; the memory plan has room for one.
RESPONSE_MAX_BYTES: Final = 4 * 1024 * 1024

NO_LEADER: Final = -1
NO_EPOCH: Final = -1


class WireError(Exception):
    """What came over the wire is not what Kafka would send; the connection is of no further use."""


class UnreadableError(WireError):
    """A response does not parse; an older version of it may."""


# A plain class where one is made for every batch or request: a compiled module makes it by itself, and calls the
# interpreter for a named tuple.
class Request:
    """An encoded request: frame length, header and body, as parts to be sent one after the other, and their bytes."""

    __slots__ = ("parts", "size")

    def __init__(self, parts: list[memoryview], size: int) -> None:
        self.parts = parts
        self.size = size


# One batch of a Produce request: its partition's number, a batch header and views of its payload, never joined, and the
# bytes of these in all. A bare tuple, for one is made for every batch.
ProducePartition: TypeAlias = tuple[int, Sequence[memoryview], int]


class ProduceTopic:
    """The batches of one topic; ``topic_id`` is used from version 13 on instead of the name."""

    __slots__ = ("name", "partitions", "topic_id")

    def __init__(self, name: str, topic_id: UUID | None, partitions: list[ProducePartition]) -> None:
        self.name = name
        self.topic_id = topic_id
        self.partitions = partitions


class ProduceResult(NamedTuple):
    """What the broker says of one batch. Times in ms since the epoch, -1 where there is none.

    ``leader`` and ``leader_epoch`` are KIP-951's hint, -1 where there is none.
    """

    topic: str | UUID
    partition: int
    error: int
    base_offset: int
    append_time_ms: int
    record_errors: list[tuple[int, str]]
    error_message: str
    leader: int
    leader_epoch: int


class BrokerAddress(NamedTuple):
    """Where the cluster says that a broker listens."""

    node: int
    host: str
    port: int


class ProduceAnswer:
    """A Produce response. ``brokers`` are the addresses of hinted leaders (KIP-951)."""

    __slots__ = ("brokers", "results", "throttle_ms")

    def __init__(self, throttle_ms: int, results: list[ProduceResult], brokers: list[BrokerAddress]) -> None:
        self.throttle_ms = throttle_ms
        self.results = results
        self.brokers = brokers


class Leaders:
    """Who leads each partition of a topic, by partition number: 8 bytes a partition.

    Attributes:
        nodes: the leader's node id, NO_LEADER where there is none.
        epochs: the leader epoch, NO_EPOCH before version 7.
    """

    __slots__ = ("epochs", "nodes")

    def __init__(self, nodes: array[int], epochs: array[int]) -> None:
        self.nodes = nodes
        self.epochs = epochs

    def __len__(self) -> int:
        return len(self.nodes)


class TopicMetadata(NamedTuple):
    """A topic of a Metadata response."""

    name: str
    topic_id: UUID | None
    error: int
    leaders: Leaders


class MetadataAnswer(NamedTuple):
    """A Metadata response."""

    throttle_ms: int
    error: int
    brokers: list[BrokerAddress]
    topics: list[TopicMetadata]


class VersionsAnswer(NamedTuple):
    """An ApiVersions response: the error, and (lowest, highest) version of each API."""

    error: int
    ranges: dict[int, tuple[int, int]]


class ProducerIdAnswer(NamedTuple):
    """An InitProducerId response; the epoch of a new id is 0."""

    throttle_ms: int
    error: int
    producer_id: int
