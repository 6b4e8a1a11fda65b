"""Addresses of bootstrap servers and brokers."""

from __future__ import annotations

import socket
import threading

import pytest

from slabpress.network import resolver
from slabpress.network.resolver import Resolver, split_address
from slabpress.network.transport import Endpoint
from slabpress.shm.doorbell import Doorbell


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("localhost:9092", ("localhost", 9092)),
        ("127.0.0.1:1", ("127.0.0.1", 1)),
        ("[::1]:9092", ("::1", 9092)),
        ("a.b-c.example:65535", ("a.b-c.example", 65535)),
    ],
)
def test_split(address: str, expected: tuple[str, int]) -> None:
    assert split_address(address) == expected


@pytest.mark.parametrize("address", ["localhost", ":9092", "::1:9092", "host:port", "[::1]", ""])
def test_what_is_not_host_and_port(address: str) -> None:
    with pytest.raises(ValueError, match="not host:port"):
        split_address(address)


def test_numeric_addresses_need_no_thread(bell: Doorbell) -> None:
    before = threading.active_count()
    assert Resolver(bell).start("me", "127.0.0.1", 9092) == [Endpoint(socket.AF_INET, ("127.0.0.1", 9092))]
    assert threading.active_count() == before


def test_names_come_later_with_a_ring(bell: Doorbell) -> None:
    lookups = Resolver(bell)
    assert lookups.start("me", "localhost", 9092) == []
    assert lookups.under_way == 1
    bell.wait(10)
    [result] = lookups.results()
    assert lookups.under_way == 0
    assert result.asker == "me"
    assert any(endpoint.address[0] in ("127.0.0.1", "::1") for endpoint in result.endpoints)
    assert lookups.results() == []


@pytest.mark.parametrize("name", ["no-such-host.invalid", "a..b", "x" * 70 + ".invalid"])
def test_names_that_do_not_exist_are_an_error_in_words(bell: Doorbell, name: str) -> None:
    lookups = Resolver(bell)
    lookups.start("me", name, 9092)
    bell.wait(10)
    [result] = lookups.results()
    assert result.endpoints == []
    assert result.error.startswith("name lookup failed: ")


def test_a_slow_lookup_keeps_nobody_waiting(bell: Doorbell, monkeypatch: pytest.MonkeyPatch) -> None:
    answer, asked = threading.Event(), threading.Event()
    plain = resolver._look_up

    def slow(host: str, port: int, flags: int) -> list[Endpoint]:
        if flags == 0:
            asked.set()
            answer.wait(10)
        return plain(host, port, flags)

    monkeypatch.setattr(resolver, "_look_up", slow)
    lookups = Resolver(bell)
    lookups.start("me", "localhost", 9092)
    assert asked.wait(10)
    assert lookups.results() == []
    answer.set()
    bell.wait(10)
    assert len(lookups.results()) == 1


def test_endpoints_name_themselves() -> None:
    assert str(Endpoint(socket.AF_INET, ("1.2.3.4", 5))) == "1.2.3.4:5"
    assert str(Endpoint(socket.AF_INET6, ("::1", 5, 0, 0))) == "[::1]:5"
