"""What the sides of the throughput comparison send to, and how each kind of broker says what arrived."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import NamedTuple, Protocol

from bench.memory_readback import stored_records
from bench.sink import Sink
from tests.support.kafka import KafkaCluster
from tests.support.mock_cluster import MockCluster


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


class SinkBroker:
    """The sink of bench/sink.py."""

    def __init__(self) -> None:
        self._sink = Sink()
        self.bootstrap_servers = self._sink.bootstrap_servers

    def __enter__(self) -> SinkBroker:
        return self

    def __exit__(self, *exc: object) -> None:
        self._sink.close()

    def create_topic(self, name: str, partitions: int) -> None:
        """Make an empty topic."""
        self._sink.create_topic(name, partitions)

    def arrived(self, name: str, partitions: int) -> Arrived:  # noqa: ARG002 - the others need to know
        """What a topic took."""
        taken = self._sink.taken(name)
        return Arrived(taken.records, taken.octets, taken.batches)


class KafkaBroker:
    """One real broker."""

    def __init__(self) -> None:
        self._cluster = KafkaCluster(1)
        self.bootstrap_servers = self._cluster.bootstrap_servers

    def __enter__(self) -> KafkaBroker:
        return self

    def __exit__(self, *exc: object) -> None:
        self._cluster.close()

    def create_topic(self, name: str, partitions: int) -> None:
        """Make an empty topic."""
        self._cluster.create_topic(name, partitions)

    def arrived(self, name: str, partitions: int) -> Arrived:
        """What a topic took; it is deleted, for it is on a disk."""
        records = stored_records(self.bootstrap_servers, name, partitions)
        self._cluster.delete_topic(name)
        return Arrived(records)


class MockBroker:
    """librdkafka's mock broker, which parses and keeps what it gets: for comparison with the sink."""

    def __init__(self) -> None:
        self._cluster = MockCluster()
        self.bootstrap_servers = self._cluster.bootstrap_servers

    def __enter__(self) -> MockBroker:
        return self

    def __exit__(self, *exc: object) -> None:
        self._cluster.close()

    def create_topic(self, name: str, partitions: int) -> None:
        """Make an empty topic."""
        self._cluster.create_topic(name, partitions)

    def arrived(self, name: str, partitions: int) -> Arrived:
        """What a topic took."""
        return Arrived(stored_records(self.bootstrap_servers, name, partitions))


OPEN: dict[str, Callable[[], Broker]] = {"sink": SinkBroker, "kafka": KafkaBroker, "mock": MockBroker}
