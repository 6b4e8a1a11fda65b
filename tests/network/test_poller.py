"""Waiting for descriptors, whatever the system offers for it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from slabpress.network.poller import READ, WRITE, EpollPoller, Poller, SelectorPoller, make_poller
from slabpress.shm.doorbell import Doorbell

KINDS = [SelectorPoller, *([EpollPoller] if isinstance(make_poller(), EpollPoller) else [])]


@pytest.fixture(params=KINDS)
def poller(request: pytest.FixtureRequest) -> Iterator[Poller]:
    """Each kind that works here."""
    made: Poller = request.param()
    yield made
    made.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ends = socket.socketpair()
    yield ends
    for end in ends:
        end.close()


def test_a_socket_is_told_with_what_there_is_of_it(poller: Poller, pair: tuple[socket.socket, socket.socket]) -> None:
    mine, theirs = pair
    poller.register(mine, READ, "mine")
    assert poller.poll(0) == []
    theirs.send(b"x")
    assert poller.poll(None) == [("mine", READ)]
    assert poller.poll(None) == [("mine", READ)]
    poller.modify(mine, READ | WRITE, "both")
    assert poller.poll(None) == [("both", READ | WRITE)]
    poller.modify(mine, WRITE, "write")
    assert poller.poll(None) == [("write", WRITE)]
    poller.unregister(mine)
    assert poller.poll(0) == []


def test_an_end_is_something_to_read(poller: Poller, pair: tuple[socket.socket, socket.socket]) -> None:
    mine, theirs = pair
    poller.register(mine, READ, "mine")
    theirs.close()
    [(data, mask)] = poller.poll(None)
    assert data == "mine"
    assert mask & READ


def test_a_bare_descriptor_can_be_watched(poller: Poller) -> None:
    reader, writer = os.pipe()
    poller.register(reader, READ)
    os.write(writer, b"x")
    assert poller.poll(None) == [(None, READ)]
    poller.unregister(reader)
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("is_pipe", [False, True])
def test_each_ring_of_a_bell_is_told_once_and_none_is_lost(poller: Poller, is_pipe: bool) -> None:
    bell = Doorbell(*os.pipe()) if is_pipe else Doorbell.create()
    os.set_blocking(bell.read_descriptor, False)
    must_drain = poller.register_bell(bell)
    assert must_drain or not is_pipe
    for _ in range(3):
        bell.ring()
        bell.ring()
        assert poller.poll(None) == [(bell, READ)]
        if must_drain:
            bell.drain()
        assert poller.poll(0) == []
    bell.close()


def test_a_bell_that_rang_before_it_is_watched_is_told(poller: Poller) -> None:
    """A predecessor was rung and has died."""
    bell = Doorbell.create()
    bell.ring()
    poller.register_bell(bell)
    assert poller.poll(None) == [(bell, READ)]
    bell.close()
