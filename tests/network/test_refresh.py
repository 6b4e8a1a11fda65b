"""What is said of metadata that does not come, without brokers."""

from __future__ import annotations

import selectors
from collections.abc import Iterator
from unittest.mock import Mock

import pytest

from slabpress.network.backoff import NS_PER_MS, Backoff
from slabpress.network.broker import Tools
from slabpress.network.brokers import Brokers
from slabpress.network.metadata import Cluster
from slabpress.network.queues import Queues
from slabpress.network.refresh import Refresher
from slabpress.network.resolver import Resolver
from slabpress.network.settings import NetworkSettings
from slabpress.network.wire import BrokerAddress
from slabpress.shm.doorbell import Doorbell
from tests.network.rig import SETTINGS


@pytest.fixture
def refresher(bell: Doorbell) -> Iterator[Refresher]:
    """Nobody wants anything of it, and it knows nobody to ask."""
    settings = NetworkSettings.of({**SETTINGS, "metadata_max_age_ms": 1000, "bootstrap_servers": []})
    backoff = Backoff(10, 40, lambda: 0.5)
    with selectors.DefaultSelector() as selector:
        tools = Tools(settings, selector, Resolver(bell), backoff, memoryview(bytearray(1)), Mock())
        brokers = Brokers(tools)
        yield Refresher({}, Cluster(), brokers, Queues(), settings, backoff)
        for broker in brokers:
            broker.close(0)


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


def test_the_known_brokers_are_given_up_when_no_metadata_came_for_long(refresher: Refresher) -> None:
    """KIP-1102; but not those who are being asked, who have a time of their own."""
    brokers = refresher._brokers
    brokers.update({1: BrokerAddress(1, "127.0.0.1", 1)}, 0)
    refresher._wanted[0] = {"t": 0}
    refresher.schedule.now(5)
    assert refresher.give_up_at_ns() is None, "nothing was asked for yet"
    refresher.turn(5)
    limit = 5 + SETTINGS["metadata_recovery_rebootstrap_trigger_ms"] * NS_PER_MS
    assert refresher.give_up_at_ns() == limit
    refresher.turn(limit - 1)
    assert brokers.get(1) is not None
    refresher.schedule.sent()
    refresher.turn(limit)
    assert brokers.get(1) is not None
    refresher.schedule.failed(limit)
    refresher.cluster.brokers = {1: BrokerAddress(1, "127.0.0.1", 1)}
    refresher.turn(limit)
    assert brokers.get(1) is None
    assert refresher.cluster.brokers == {}
    assert refresher.give_up_at_ns() is None, "there is nobody left to give up"


def test_who_wants_nothing_gives_nobody_up(refresher: Refresher) -> None:
    refresher._brokers.update({1: BrokerAddress(1, "127.0.0.1", 1)}, 0)
    refresher._wanted[0] = {"t": 0}
    refresher.schedule.now(5)
    refresher.turn(5)
    refresher._wanted[0] = {}
    refresher.schedule.soon(6)
    refresher.turn(6)
    assert refresher.give_up_at_ns() is None
