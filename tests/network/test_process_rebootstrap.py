"""A cluster whose brokers are all gone, or no longer its own: the bootstrap servers lead to it again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from slabpress.results import EXPIRED_UNSENT
from tests.network.fake_broker import METADATA, FakeBroker
from tests.network.rig import Rig
from tests.support.proxy import Proxy

REBOOTSTRAP_REQUIRED = 129
UNKNOWN_SERVER_ERROR = -1


class Cluster:
    """Three brokers with the topic t, each of which leads a third of it, behind one address that may lead elsewhere."""

    def __init__(self, brokers: list[FakeBroker], proxy: Proxy) -> None:
        self.brokers = brokers
        self._proxy = proxy
        self.address = proxy.address
        for broker in brokers:
            broker.more_brokers = {number: ("127.0.0.1", each.port) for number, each in enumerate(brokers, 1)}
            broker.leaders = {("t", partition): partition + 1 for partition in range(3)}

    def move(self, successor: FakeBroker) -> None:
        """The address leads to another broker from now on."""
        self._proxy._target = ("127.0.0.1", successor.port)
        self._proxy.kill_connections()

    def close(self) -> None:
        for broker in self.brokers:
            broker.close()

    def asked_for_metadata(self) -> list[int]:
        return [broker.count(METADATA) for broker in self.brokers]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with contextlib.ExitStack() as stack:
        brokers = [stack.enter_context(FakeBroker({"t": 3})) for _ in range(3)]
        yield Cluster(brokers, stack.enter_context(Proxy("127.0.0.1", brokers[0].port)))


@pytest.fixture
def successor() -> Iterator[FakeBroker]:
    with FakeBroker({"t": 3}) as broker:
        yield broker


def _know_all(rig: Rig) -> None:
    """Have a connection to each broker."""
    rig.know("t")
    for partition in range(3):
        assert rig.result(rig.send("t", partition, b"x")).code == 0


@pytest.mark.parametrize("idempotent", [False, True])
def test_a_cluster_that_was_replaced_is_found_through_its_name(
    cluster: Cluster, successor: FakeBroker, idempotent: bool
) -> None:
    with Rig(cluster.address, delivery={"enable_idempotence": idempotent}) as rig:
        _know_all(rig)
        cluster.move(successor)
        cluster.close()
        sealed = [rig.send("t", partition, b"y") for partition in range(3)]
        assert all(rig.result(index).code == 0 for index in sealed)
    assert len(successor.records()) == 3


def test_without_recovery_the_bootstrap_servers_are_not_asked_again(cluster: Cluster, successor: FakeBroker) -> None:
    limits = {"metadata_recovery_strategy": "none"}
    with Rig(cluster.address, delivery={"delivery_timeout_ms": 600}, settings=limits) as rig:
        _know_all(rig)
        cluster.move(successor)
        cluster.close()
        assert rig.result(rig.send("t", 0, b"y")).code == EXPIRED_UNSENT
    assert successor.connections == 0


def test_brokers_that_answer_nothing_are_given_up_after_the_trigger(cluster: Cluster, successor: FakeBroker) -> None:
    """They take connections and say who they are, so none of them counts as gone."""
    limits = {"request_timeout_ms": 300, "metadata_recovery_rebootstrap_trigger_ms": 0}
    with Rig(cluster.address, settings=limits) as rig:
        _know_all(rig)
        asked = cluster.asked_for_metadata()
        for broker in cluster.brokers:
            broker.hooks[METADATA] = lambda _: None
        successor.topics["new"] = 1
        cluster.move(successor)
        assert rig.know("new") == 1
    assert sum(cluster.asked_for_metadata()) == sum(asked) + 1


def test_before_the_trigger_the_next_broker_is_asked(cluster: Cluster) -> None:
    """Also where the one before it could be asked again at once, and would be silent again."""
    with Rig(cluster.address, settings={"request_timeout_ms": 300}) as rig:
        _know_all(rig)
        for broker in cluster.brokers[:2]:
            broker.hooks[METADATA] = lambda _: None
        cluster.brokers[2].topics["new"] = 1
        before = cluster.asked_for_metadata()
        assert rig.know("new") == 1
        after = cluster.asked_for_metadata()
    assert all(now - then <= 1 for then, now in zip(before[:2], after[:2], strict=True))


def test_a_broker_that_requires_it_sends_the_producer_back_at_once(cluster: Cluster, successor: FakeBroker) -> None:
    with Rig(cluster.address) as rig:
        _know_all(rig)
        asked = cluster.asked_for_metadata()
        for broker in cluster.brokers:
            broker.metadata_error = REBOOTSTRAP_REQUIRED
        successor.topics["new"] = 1
        cluster.move(successor)
        assert rig.know("new") == 1
        assert rig.result(rig.send("t", 2, b"y")).code == 0
    assert sum(cluster.asked_for_metadata()) == sum(asked) + 1
    assert len(successor.records()) == 1


def test_what_was_on_the_wire_to_brokers_that_were_given_up_is_sent_again(
    cluster: Cluster, successor: FakeBroker
) -> None:
    with Rig(cluster.address) as rig:
        _know_all(rig)
        for broker in cluster.brokers[1:]:
            broker.silent = True
        sealed = [rig.send("t", partition, b"y") for partition in (1, 2)]
        rig.until(lambda: sum(len(broker.produced()) for broker in cluster.brokers) == 5, "both are on the wire")
        for broker in cluster.brokers:
            broker.metadata_error = REBOOTSTRAP_REQUIRED
        cluster.move(successor)
        rig.topics.request_refresh()
        rig.control.wake(1)
        assert all(rig.result(index).code == 0 for index in sealed)
        assert rig.outputs_are_free()
    assert len(successor.records()) == 2


@pytest.mark.parametrize("error", [REBOOTSTRAP_REQUIRED, UNKNOWN_SERVER_ERROR])
def test_a_server_that_always_refuses_metadata_is_asked_no_more_often_than_the_backoff(
    fake: FakeBroker, error: int
) -> None:
    fake.metadata_error = error
    never = {"retry_backoff_ms": 600_000, "retry_backoff_max_ms": 600_000}
    with Rig(fake.address, settings=never) as rig:
        rig.want("t")
        rig.until(lambda: "no metadata" in rig.arena.report(), "a report")
        name = "REBOOTSTRAP_REQUIRED" if error == REBOOTSTRAP_REQUIRED else "UNKNOWN_SERVER_ERROR"
        assert f"no metadata: {name}" in rig.arena.report()
        before = fake.connections
        rig.want("another")  # a new topic does not wait for the backoff
        rig.until(lambda: fake.count(METADATA) == 2, "it is asked for")
    assert fake.connections <= before + 1
