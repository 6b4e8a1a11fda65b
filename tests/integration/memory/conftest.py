"""Fixtures of the memory tests: brokers that take everything."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.integration.memory.watch import taken
from tests.support.brokers import require_kafka
from tests.support.kafka import KafkaCluster
from tests.support.mock_cluster import MockCluster


@pytest.fixture(scope="package", autouse=True)
def proportional_set_sizes() -> None:
    """Skips where the system does not tell what a process takes."""
    if taken(os.getpid()) is None:
        pytest.skip("needs the PSS of /proc/PID/smaps_rollup, by kind (Linux 5.4)")


@pytest.fixture(scope="package")
def sink() -> Iterator[MockCluster]:
    """One mock broker. A test that stops it sets it going again."""
    with MockCluster() as cluster:
        yield cluster


@pytest.fixture(scope="package")
def proxied_kafka() -> Iterator[KafkaCluster]:
    """One broker of a real Kafka behind a proxy that can hold everything back."""
    require_kafka()
    with KafkaCluster(1, proxied=True) as cluster:
        yield cluster
