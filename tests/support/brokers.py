"""Fixtures that give tests a real Apache Kafka; tests/conftest.py imports them by name.

They skip when java or mvn is missing, and fail instead where that must not pass unseen: with CI=true
or SLABPRESS_REQUIRE_KAFKA=1 in the environment.
"""

import os
import re
import uuid
from collections.abc import Iterator

import pytest

from tests.support.kafka import KafkaCluster, missing_tool


def require_kafka() -> None:
    """Skips or fails the test that asks, when a broker cannot be run here."""
    missing = missing_tool()
    if missing is None:
        return
    if os.environ.get("CI") == "true" or os.environ.get("SLABPRESS_REQUIRE_KAFKA") == "1":
        pytest.fail(missing, pytrace=False)
    pytest.skip(missing)


@pytest.fixture(scope="session")
def kafka() -> Iterator[KafkaCluster]:
    """One broker, for all tests of the run."""
    require_kafka()
    with KafkaCluster(1) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def kafka3() -> Iterator[KafkaCluster]:
    """Three brokers, for all tests of the run; a test leaves all of them running."""
    require_kafka()
    with KafkaCluster(3) as cluster:
        yield cluster


@pytest.fixture
def topic(request: pytest.FixtureRequest) -> str:
    """A topic name that no other test has; the topic does not exist yet."""
    test = re.sub(r"[^a-zA-Z0-9._-]", "-", request.node.name)[:100]
    return f"{test}-{uuid.uuid4().hex[:12]}"
