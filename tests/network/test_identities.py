"""When a producer id is asked for, and what a refusal does, without sockets."""

from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import Mock

import pytest

from slabpress.network.backoff import NS_PER_MS, Backoff
from slabpress.network.batches import ArenaBatches
from slabpress.network.identities import Identities, IdentityContext
from slabpress.network.messages import INIT_PRODUCER_ID
from slabpress.network.wire import ProducerIdAnswer
from tests.network.rig import DELIVERY, Rig

CLUSTER_AUTHORIZATION_FAILED = 31
NOT_COORDINATOR = 16


class Bench:
    """One idempotent arena, and one broker that is always ready."""

    def __init__(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        self.arena = ArenaBatches(0, rig.arena, {**DELIVERY, "enable_idempotence": True})
        self.broker = Mock(asked_at_ns=0)
        self.broker.connection.versions = {INIT_PRODUCER_ID: 5}
        self.broker.connection.client_id = "me"
        self.broker.connection.next_id.return_value = 2
        brokers = Mock()
        brokers.for_metadata.return_value = self.broker
        self.identities = Identities({0: self.arena}, brokers, Backoff(200, 1600, lambda: 0.5))
        self._patch = monkeypatch

    def asks(self, now: int) -> bool:
        """Whether it asks at this time."""
        self.broker.connection.send.reset_mock()
        self.identities.turn(now)
        return bool(self.broker.connection.send.called)

    def answer(self, error: int, now: int) -> None:
        said = ProducerIdAnswer(0, error, -1 if error else 7)
        self._patch.setattr("slabpress.network.identities.decode_init_producer_id", lambda *_: said)
        self.identities.answered(Mock(version=5), IdentityContext(0), b"", now)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    with Rig("127.0.0.1:9", start=False) as rig:
        yield Bench(rig, monkeypatch)


def test_it_is_asked_for_once_and_whoever_is_asked_is_remembered(bench: Bench) -> None:
    assert bench.asks(7)
    assert bench.broker.asked_at_ns == 7
    assert not bench.asks(8)
    bench.answer(0, 9)
    assert bench.arena.sequences.producer_id == 7
    assert not bench.asks(10**12)
    assert bench.identities.why_none(0) == ""


def test_a_broker_without_producer_ids_is_not_the_next_to_be_asked(bench: Bench) -> None:
    """In a cluster that is being upgraded another one may have them."""
    bench.broker.connection.versions = {}
    assert not bench.asks(7)
    assert bench.broker.asked_at_ns == 7
    assert bench.arena.refusal(8) is not None


def test_each_failed_try_waits_longer(bench: Bench) -> None:
    now, waits = 0, []
    for _ in range(5):
        assert bench.asks(now)
        bench.answer(NOT_COORDINATOR, now)
        due = bench.identities.next_time_ns(now)
        assert due is not None
        assert not bench.asks(due - 1)
        waits.append((due - now) // NS_PER_MS)
        now = due
    assert waits == [200, 400, 800, 1600, 1600]
    assert bench.identities.why_none(0) == "no producer id: NOT_COORDINATOR"


def test_so_does_each_refusal_but_only_for_a_batch_that_wants_it(bench: Bench) -> None:
    now, waits = 0, []
    for _ in range(5):
        assert bench.asks(now)
        bench.answer(CLUSTER_AUTHORIZATION_FAILED, now)
        assert bench.identities.next_time_ns(now) is None
        assert not bench.asks(now + 10**12), "nobody wants it"
        wait = 0
        while bench.arena.refusal(now + wait) is not None:
            wait += NS_PER_MS
        waits.append(wait // NS_PER_MS)
        now += wait
    assert waits == [200, 400, 800, 1600, 1600]


def test_a_closed_connection_is_a_failed_try(bench: Bench) -> None:
    assert bench.asks(0)
    bench.identities.lost(IdentityContext(0), "it burns", 0)
    assert bench.identities.why_none(0) == "no producer id: it burns"
    assert not bench.asks(200 * NS_PER_MS - 1)
    assert bench.asks(200 * NS_PER_MS)


def test_an_answer_for_a_producer_that_was_closed_concerns_nobody(bench: Bench) -> None:
    assert bench.asks(0)
    bench.identities.forget(0)
    bench.answer(CLUSTER_AUTHORIZATION_FAILED, 1)
    assert bench.arena.refusal(2) is None
