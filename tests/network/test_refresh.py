"""What is said of metadata that does not come, without brokers."""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Iterator
from unittest.mock import Mock
from uuid import UUID

import pytest

from slabpress.network.backoff import NS_PER_MS, Backoff
from slabpress.network.broker import Tools
from slabpress.network.brokers import Brokers
from slabpress.network.messages import METADATA
from slabpress.network.metadata import Cluster
from slabpress.network.partition import PartitionQueue
from slabpress.network.poller import make_poller
from slabpress.network.queues import Queues
from slabpress.network.refresh import Refresher
from slabpress.network.resolver import Resolver
from slabpress.network.settings import NetworkSettings
from slabpress.network.wire import BrokerAddress, Leaders, MetadataAnswer, TopicMetadata
from slabpress.shm.doorbell import Doorbell
from tests.network.rig import SETTINGS


@pytest.fixture
def refresher(bell: Doorbell) -> Iterator[Refresher]:
    """Nobody wants anything of it, and it knows nobody to ask."""
    settings = NetworkSettings.of({**SETTINGS, "metadata_max_age_ms": 1000, "bootstrap_servers": []})
    backoff = Backoff(10, 40, lambda: 0.5)
    with contextlib.closing(make_poller()) as poller:
        tools = Tools(settings, poller, Resolver(bell), backoff, bytearray(1), Mock())
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


@pytest.mark.inside
def test_the_log_of_a_topic_that_was_created_again_is_sent_one_batch_at_first(
    refresher: Refresher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It knows no sequences: the second of two batches could be appended alone, though its leader is the same."""
    known_until = 10**18
    queues = [PartitionQueue(Mock(), topic, 0) for topic in ("again", "same")]
    arena = Mock(queues=queues)
    arena.topics.wanted_version.return_value = 0
    refresher._arenas = {0: arena}
    refresher._wanted[0] = {"again": 0, "same": 1}
    former = {"again": UUID(int=1), "same": UUID(int=2)}

    def answer(ids: dict[str, UUID]) -> MetadataAnswer:
        leaders = Leaders(array("i", [1]), array("i", [0]))
        topics = [TopicMetadata(name, topic_id, 0, leaders) for name, topic_id in ids.items()]
        return MetadataAnswer(0, 0, [BrokerAddress(1, "127.0.0.1", 1)], topics)

    for ids in (former, {**former, "again": UUID(int=3)}):
        answered = answer(ids)
        monkeypatch.setattr("slabpress.network.refresh.decode_metadata", lambda *_, answered=answered: answered)
        refresher.answered(Mock(version=12), b"", 0)
        assert [queue.leader for queue in queues] == [1, 1]
        if ids is former:
            for queue in queues:
                queue.known_until_ns = known_until
    assert [queue.known_until_ns for queue in queues] == [0, known_until]


def test_whoever_is_asked_is_remembered(refresher: Refresher) -> None:
    """So that the next request goes to another one."""
    broker = Mock(asked_at_ns=0)
    broker.connection.versions = {METADATA: 12}
    broker.connection.client_id = "me"
    broker.connection.next_id.return_value = 2
    refresher._ask(broker, {"t"}, 7)
    assert broker.asked_at_ns == 7
    assert refresher.schedule.in_flight
