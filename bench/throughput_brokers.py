"""What the sides of the throughput comparison send to, and how each kind of broker says what arrived."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Generic, NamedTuple, Protocol, Self, TypeVar

from bench.memory_readback import stored_records
from bench.sink import Sink
from tests.support.kafka import KafkaCluster
from tests.support.mock_cluster import MockCluster

Process = TypeVar("Process", Sink, KafkaCluster, MockCluster)


class Arrived(NamedTuple):
    """What a topic took.

    Attributes:
        records: how many.
        octets: of batches, as they came; None where the broker does not say.
        batches: how many; None where the broker does not say.
    """

    records: int
    octets: int | None = None
    batches: int | None = None


class Broker(contextlib.AbstractContextManager["Broker"], Protocol):
    """A broker, or what stands in for one.

    Attributes:
        bootstrap_servers: where it is.
    """

    bootstrap_servers: str

    def create_topic(self, name: str, partitions: int) -> None:
        """Make an empty topic."""

    def arrived(self, name: str, partitions: int) -> Arrived:
        """What a topic took; it is not needed any more."""


class _Started(Generic[Process]):
    """What all kinds have alike: a process to start and to end."""

    def __init__(self, process: Process) -> None:
        self._process: Process = process
        self.bootstrap_servers = process.bootstrap_servers

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.close()

    def create_topic(self, name: str, partitions: int) -> None:
        """Make an empty topic."""
        self._process.create_topic(name, partitions)


class SinkBroker(_Started[Sink]):
    """The sink of bench/sink.py."""

    def arrived(self, name: str, partitions: int) -> Arrived:  # noqa: ARG002 - the others need to know
        """What a topic took."""
        taken = self._process.taken(name)
        return Arrived(taken.records, taken.octets, taken.batches)


class KafkaBroker(_Started[KafkaCluster]):
    """One real broker."""

    def arrived(self, name: str, partitions: int) -> Arrived:
        """What a topic took; it is deleted, for it is on a disk."""
        records = stored_records(self.bootstrap_servers, name, partitions)
        self._process.delete_topic(name)
        return Arrived(records)


class MockBroker(_Started[MockCluster]):
    """librdkafka's mock broker, which parses and keeps what it gets: for comparison with the sink."""

    def arrived(self, name: str, partitions: int) -> Arrived:
        """What a topic took."""
        return Arrived(stored_records(self.bootstrap_servers, name, partitions))


OPEN: dict[str, Callable[[], Broker]] = {
    "sink": lambda: SinkBroker(Sink()),
    "kafka": lambda: KafkaBroker(KafkaCluster(1)),
    "mock": lambda: MockBroker(MockCluster()),
}
