"""Which broker is connected to and asked, with sockets that lead nowhere."""

from __future__ import annotations

import selectors
import socket
from collections.abc import Iterator

import pytest

from slabpress.network.backoff import NS_PER_MS, Backoff
from slabpress.network.broker import Broker, Tools
from slabpress.network.brokers import Brokers
from slabpress.network.connection import Answer, InFlight
from slabpress.network.resolver import Resolver
from slabpress.network.settings import NetworkSettings
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
    """Brokers, a selector, and a listener that accepts and says nothing."""

    def __init__(self, bell: Doorbell, bootstrap: list[str]) -> None:
        self.owner = Owner()
        self.selector = selectors.DefaultSelector()
        settings = NetworkSettings.of({**SETTINGS, "bootstrap_servers": bootstrap})
        backoff = Backoff(20, 200, lambda: 0.5)
        tools = Tools(settings, self.selector, Resolver(bell), backoff, memoryview(bytearray(4096)), self.owner)
        self.brokers = Brokers(tools)

    def run(self, now: int) -> None:
        """Handle what the sockets have within a second."""
        for key, mask in self.selector.select(1):
            key.data.handle(mask, now)

    def connecting(self) -> list[int]:
        return sorted(broker.node for broker in self.brokers if broker.is_setting_up)

    def close(self) -> None:
        for broker in self.brokers:
            broker.close(0)
        self.selector.close()


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
