"""One embedded broker for all tests of the command line."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from slabpress.cli.embedded import EmbeddedBroker
from tests.cli.rig import Cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The embedded broker."""
    pytest.importorskip("noida_db")
    with EmbeddedBroker() as broker:
        yield Cluster(broker.bootstrap_server)
