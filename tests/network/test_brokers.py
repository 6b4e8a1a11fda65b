"""Which broker is connected to and asked, with sockets that lead nowhere."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from unittest.mock import Mock

import pytest

from slabpress.network.backoff import NS_PER_MS, Backoff
from slabpress.network.broker import Broker, Tools
from slabpress.network.brokers import Brokers
from slabpress.network.connection import Answer, InFlight, State
from slabpress.network.poller import make_poller
from slabpress.network.resolver import Resolver
from slabpress.network.settings import NetworkSettings
from slabpress.network.transport import Endpoint
from slabpress.network.wire import BrokerAddress
from slabpress.shm.doorbell import Doorbell
from tests.network.rig import SETTINGS


class Owner:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def became_ready(self, broker: Broker) -> None:
        self.told.append(broker)

    def answered(self, broker: Broker, answer: Answer, now: int) -> None:
        self.told.append((broker, answer, now))

    def handed_over(self, request: InFlight, now: int) -> None:
        self.told.append((request, now))

    def lost(self, broker: Broker, requests: list[InFlight], now: int) -> None:
        self.told.append((broker, requests, now))


class Bench:
    """Brokers, a poller, and a listener that accepts and says nothing."""

    def __init__(self, bell: Doorbell, bootstrap: list[str], recovery: str = "rebootstrap") -> None:
        self.owner = Owner()
        self.poller = make_poller()
        self.resolver = Resolver(bell)
        settings = NetworkSettings.of(
            {**SETTINGS, "bootstrap_servers": bootstrap, "metadata_recovery_strategy": recovery}
        )
        backoff = Backoff(20, 200, lambda: 0.5)
        tools = Tools(settings, self.poller, self.resolver, backoff, bytearray(4096), self.owner)
        self.brokers = Brokers(tools)

    def run(self, now: int) -> None:
        """Handle what the sockets have within a second."""
        for broker, mask in self.poller.poll(1):
            broker.handle(mask, now)

    def connecting(self) -> list[int]:
        return sorted(broker.node for broker in self.brokers if broker.is_setting_up)

    def close(self) -> None:
        for broker in self.brokers:
            broker.close(0)
        self.poller.close()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@pytest.fixture
def silent(listener: socket.socket) -> str:
    """An address where nobody answers."""
    return f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def refusing() -> str:
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        return f"127.0.0.1:{gone.getsockname()[1]}"


def test_bootstrap_servers_are_tried_one_after_the_other(bell: Doorbell, silent: str, refusing: str) -> None:
    bench = Bench(bell, [refusing, silent])
    bench.brokers.connect_any(0)
    bench.brokers.connect_any(0)
    assert bench.connecting() == [-1]
    bench.run(0)
    assert bench.brokers.bootstrap_report() == f"{refusing}: connection refused"
    assert bench.brokers.none_reachable
    bench.brokers.connect_any(1)
    assert bench.connecting() == [-2]
    bench.close()


def test_a_silent_server_is_given_up_after_the_setup_timeout(bell: Doorbell, silent: str) -> None:
    bench = Bench(bell, [silent])
    bench.brokers.connect_any(0)
    bench.run(0)
    limit = SETTINGS["socket_connection_setup_timeout_ms"] * NS_PER_MS
    for broker in bench.brokers:
        broker.check(limit - 1)
        assert broker.deadline_ns() == limit
        broker.check(limit)
        assert not broker.is_setting_up
    assert bench.brokers.bootstrap_report() == f"{silent}: no answer within 5000 ms"
    assert bench.brokers.next_retry_ns() == limit + 20 * NS_PER_MS
    bench.close()


def test_backoff_of_a_broker_grows_and_holds(bell: Doorbell, refusing: str) -> None:
    bench = Bench(bell, [refusing])
    now, waits = 0, []
    for _ in range(6):
        bench.brokers.connect_any(now)
        bench.run(now)
        due = bench.brokers.next_retry_ns()
        assert due is not None
        bench.brokers.connect_any(due - 1)
        assert bench.connecting() == []
        waits.append((due - now) // NS_PER_MS)
        now = due
    assert waits == [20, 40, 80, 160, 200, 200]
    bench.close()


def test_when_all_brokers_fail_the_bootstrap_servers_are_next(bell: Doorbell, silent: str, refusing: str) -> None:
    bench = Bench(bell, [silent])
    host, port = refusing.split(":")
    bench.brokers.update({node: BrokerAddress(node, host, int(port)) for node in (1, 2)}, 0)
    for _ in range(2):
        bench.brokers.connect_any(0)
        bench.run(0)
    assert bench.connecting() == []
    # Their backoff is over, but who failed less comes first.
    bench.brokers.connect_any(10**12)
    assert bench.connecting() == [-1]
    bench.close()


def test_without_recovery_the_bootstrap_servers_are_only_for_the_beginning(
    bell: Doorbell, silent: str, refusing: str
) -> None:
    bench = Bench(bell, [silent], "none")
    bench.brokers.connect_any(0)
    assert bench.connecting() == [-1]
    host, port = refusing.split(":")
    bench.brokers.update({1: BrokerAddress(1, host, int(port))}, 0)
    for now in (0, 10**12):
        bench.brokers.connect_any(now)
        assert bench.connecting() == [1]
        bench.run(now)
        assert bench.connecting() == []
    assert bench.brokers.next_retry_ns() == 10**12 + 40 * NS_PER_MS
    assert not bench.brokers.may_start_over
    bench.close()


def test_brokers_that_are_given_up_are_closed_and_forgotten(bell: Doorbell, silent: str) -> None:
    bench = Bench(bell, [silent])
    host, port = silent.split(":")
    bench.brokers.update({node: BrokerAddress(node, host, int(port)) for node in (1, 2)}, 0)
    known = bench.brokers.get(1)
    assert known is not None
    known.connect(0)
    assert bench.connecting() == [1]
    assert bench.brokers.may_start_over
    bench.brokers.start_over(0)
    assert not known.is_setting_up
    assert bench.brokers.get(1) is None
    assert [broker.node for broker in bench.brokers] == [-1]
    bench.brokers.connect_any(0)
    assert bench.connecting() == [-1]
    bench.close()


def test_where_no_broker_is_known_nobody_is_given_up(bell: Doorbell, silent: str) -> None:
    bench = Bench(bell, [silent])
    bench.brokers.connect_any(0)
    assert not bench.brokers.may_start_over
    bench.close()


def test_a_name_is_looked_up_anew_for_every_connection(bell: Doorbell, silent: str, refusing: str) -> None:
    bench = Bench(bell, ["moved.invalid:9092"])
    places = [Endpoint(socket.AF_INET, ("127.0.0.1", int(each.split(":")[1]))) for each in (refusing, silent)]
    asked = []

    def start(_asker: object, host: str, port: int) -> list[Endpoint]:
        asked.append((host, port))
        return [places[len(asked) - 1]]

    bench.resolver.start = start  # type: ignore[method-assign,assignment]
    bench.brokers.connect_any(0)
    bench.run(0)
    assert bench.connecting() == []
    bench.brokers.connect_any(10**12)
    assert bench.connecting() == [-1]
    assert asked == [("moved.invalid", 9092)] * 2
    bench.close()


@pytest.mark.inside
def test_of_equally_busy_brokers_the_one_not_asked_for_longest_is_asked(bell: Doorbell, silent: str) -> None:
    bench = Bench(bell, [silent])
    bench.brokers.update({node: BrokerAddress(node, "127.0.0.1", 1) for node in (1, 2, 3)}, 0)
    known = [broker for broker in bench.brokers if broker.node > 0]
    for broker in known:
        broker.connection = Mock(state=State.READY, has_outgoing=False, in_flight=0)
    asked = []
    for now in range(1, 7):
        found = bench.brokers.for_metadata(now)
        assert found is not None
        assert bench.brokers.for_metadata(now) is found, "to look for one is not to ask it"
        found.asked_at_ns = now
        asked.append(found.node)
    assert asked == [1, 2, 3, 1, 2, 3]
    known[0].connection = Mock(state=State.READY, has_outgoing=False, in_flight=1)
    assert bench.brokers.for_metadata(7) is known[1]
    for broker in known:
        broker.connection = None
    bench.close()


def test_a_slow_broker_that_failed_before_keeps_nobody_from_being_tried(bell: Doorbell, silent: str) -> None:
    bench = Bench(bell, [silent])
    host, port = silent.split(":")
    bench.brokers.update({1: BrokerAddress(1, host, int(port))}, 0)
    known = bench.brokers.get(1)
    assert known is not None
    known.failures = 1
    known.connect(0)
    bench.brokers.connect_any(0)
    assert bench.connecting() == [-1, 1]
    bench.close()


def test_a_broker_that_moved_is_another(bell: Doorbell, silent: str) -> None:
    bench = Bench(bell, [silent])
    bench.brokers.update({1: BrokerAddress(1, "127.0.0.1", 1), 2: BrokerAddress(2, "127.0.0.1", 2)}, 0)
    first = bench.brokers.get(1)
    bench.brokers.update({1: BrokerAddress(1, "127.0.0.1", 3)}, 0)
    assert bench.brokers.get(2) is None
    moved = bench.brokers.get(1)
    assert moved is not first
    assert str(moved) == "127.0.0.1:3"
    assert [broker.node for broker in bench.brokers] == [1, -1]
    bench.close()
