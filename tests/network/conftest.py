"""What the tests of the network process share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from slabpress.shm.doorbell import Doorbell
from tests.network.fake_broker import FakeBroker
from tests.support.kafka_install import spawn
from tests.support.mock_cluster import MockCluster


@pytest.fixture(scope="session", autouse=True)
def spawning_thread() -> None:
    """Start the thread that ``spawn`` keeps for good, so that no test seems to have left it behind."""
    spawn(["true"]).wait()


@pytest.fixture
def mock() -> Iterator[MockCluster]:
    """Two mock brokers with the topic t of 4 partitions."""
    with MockCluster(2) as mock:
        mock.create_topic("t", 4)
        yield mock


@pytest.fixture
def fake() -> Iterator[FakeBroker]:
    """A fake broker with the topic t of 4 partitions."""
    with FakeBroker({"t": 4}) as broker:
        yield broker


@pytest.fixture
def bell() -> Iterator[Doorbell]:
    """A doorbell."""
    bell = Doorbell.create()
    yield bell
    bell.close()
