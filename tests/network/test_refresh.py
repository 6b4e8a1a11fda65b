"""What is said of metadata that does not come, without brokers."""

from __future__ import annotations

import selectors
from collections.abc import Iterator
from unittest.mock import Mock

import pytest

from slabpress.network.backoff import Backoff
from slabpress.network.broker import Tools
from slabpress.network.brokers import Brokers
from slabpress.network.metadata import Cluster
from slabpress.network.queues import Queues
from slabpress.network.refresh import Refresher
from slabpress.network.resolver import Resolver
from slabpress.network.settings import NetworkSettings
from slabpress.shm.doorbell import Doorbell
from tests.network.rig import SETTINGS


@pytest.fixture
def refresher(bell: Doorbell) -> Iterator[Refresher]:
    """Nobody wants anything of it, and it knows nobody to ask."""
    settings = NetworkSettings.of({**SETTINGS, "bootstrap_servers": []})
    backoff = Backoff(10, 40, lambda: 0.5)
    with selectors.DefaultSelector() as selector:
        tools = Tools(settings, selector, Resolver(bell), backoff, memoryview(bytearray(1)), Mock())
        yield Refresher({}, Cluster(), Brokers(tools), Queues(), 1000, backoff)


def test_why_the_last_request_failed_is_said_until_nothing_is_wanted(refresher: Refresher) -> None:
    """Or what is asked for next, much later, would be said to have failed by what failed now."""
    assert refresher.report() == ""
    refresher.schedule.soon(0)
    refresher.schedule.sent()
    refresher.lost("somebody: it burns", 0)
    assert refresher.report() == "somebody: it burns"
    due = refresher.schedule.due_at_ns
    assert due is not None
    refresher.turn(due - 1)
    assert refresher.report() == "somebody: it burns"
    refresher.turn(due)
    assert refresher.report() == ""
    assert refresher.schedule.due_at_ns is None
