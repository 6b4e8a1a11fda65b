"""The handover: arenas that a child is given at birth, those that come and go through its channel, and letting go."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from slabpress.shm import handover
from slabpress.shm.arena import Arena
from slabpress.shm.control import COORDINATOR, FIRST_WORKER, NETWORK, Control
from slabpress.shm.handover import ArenaGrant, Change, Channel, Child, Grant, decode_grant, encode_change, is_alive
from slabpress.shm.states import PROCESS_STARTING
from tests.shm.kit import small_arena

SETTINGS: dict[str, Any] = {"acks": -1, "compression_type": "zstd", "compression_level": None, "name": "größe\n"}


def _inode(arena: Arena | None) -> int:
    assert arena is not None
    return os.fstat(arena.descriptor).st_ino


class Ends:
    """Both ends of a channel: the coordinator's socket, and the child's Channel."""

    def __init__(self) -> None:
        self.coordinator, theirs = socket.socketpair()
        self.child = Channel(theirs.detach())
        self.taken: list[Change] = []

    def say(self, line: bytes, arena: Arena | None = None) -> None:
        descriptors = [] if arena is None else [arena.descriptor]
        assert socket.send_fds(self.coordinator, [line], descriptors) == len(line)

    def add(self, number: int, arena: Arena) -> None:
        self.say(encode_change(number, SETTINGS), arena)

    def remove(self, number: int) -> None:
        self.say(encode_change(number, None))

    def take(self) -> list[Change]:
        """What the child reads; closed at the end."""
        changes = self.child.take()
        self.taken += changes
        return changes

    def close(self) -> None:
        self.coordinator.close()
        self.child._socket.close()
        for change in self.taken:
            if change.arena is not None:
                change.arena.close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.close()


@pytest.fixture
def arenas() -> Iterator[list[Arena]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(small_arena(slabs=4 + number)) for number in range(3)]


def test_an_arena_comes_with_its_number_its_settings_and_its_memory(ends: Ends, arenas: list[Arena]) -> None:
    ends.add(7, arenas[1])
    [change] = ends.take()
    assert (change.number, change.settings) == (7, SETTINGS)
    assert change.arena is not None
    assert _inode(change.arena) == _inode(arenas[1])
    assert change.arena.geometry == arenas[1].geometry
    assert change.arena.descriptor != arenas[1].descriptor
    change.arena.set_attached(FIRST_WORKER, attached=True)
    assert arenas[1].attached(3) == [FIRST_WORKER]


def test_what_is_received_is_not_inherited(ends: Ends, arenas: list[Arena]) -> None:
    ends.add(0, arenas[0])
    [change] = ends.take()
    assert change.arena is not None
    assert not os.get_inheritable(change.arena.descriptor)


def test_an_arena_goes_by_its_number(ends: Ends) -> None:
    ends.remove(7)
    assert ends.take() == [Change(7, None, {})]


def test_nothing_is_no_change(ends: Ends) -> None:
    assert ends.take() == []
    assert ends.take() == []


def test_a_line_may_come_in_any_two_pieces(ends: Ends, arenas: list[Arena]) -> None:
    """The descriptor comes with the first of them."""
    line = encode_change(3, SETTINGS)
    for cut in range(1, len(line)):
        arena = arenas[cut % 3]
        ends.say(line[:cut], arena)
        assert ends.take() == []
        ends.say(line[cut:])
        [change] = ends.take()
        assert (change.number, _inode(change.arena), change.settings) == (3, _inode(arena), SETTINGS)


def test_a_line_may_come_byte_by_byte_with_the_next_ones_beginning(ends: Ends, arenas: list[Arena]) -> None:
    first, second = encode_change(1, SETTINGS), encode_change(2, SETTINGS)
    ends.say(first[:1], arenas[0])
    for place in range(1, len(first) - 1):
        ends.say(first[place : place + 1])
        assert ends.take() == []
    ends.say(first[-1:])
    ends.say(second[:5], arenas[1])
    assert [(change.number, _inode(change.arena)) for change in ends.take()] == [(1, _inode(arenas[0]))]
    ends.say(second[5:] + encode_change(1, None))
    changes = ends.take()
    assert [change.number for change in changes] == [2, 1]
    assert _inode(changes[0].arena) == _inode(arenas[1])
    assert changes[1].arena is None


def test_many_changes_at_once_keep_their_order_and_each_its_own_descriptor(ends: Ends, arenas: list[Arena]) -> None:
    """Lines with a descriptor and lines without one, read in one go."""
    expected = []
    for number in range(150):  # a channel holds about 270 lines
        arena = arenas[number * number % 3]
        ends.add(number, arena)
        expected.append((number, _inode(arena)))
        if number % 4 == 0:
            ends.remove(number // 2)
            expected.append((number // 2, 0))
    found = [(change.number, _inode(change.arena) if change.arena else 0) for change in ends.take()]
    assert found == expected
    assert not ends.child._descriptors


def test_a_line_without_its_descriptor_says_what_is_short(ends: Ends, arenas: list[Arena]) -> None:
    """The kernel drops a descriptor that the child has no room for: it must not serve another's arena instead."""
    ends.add(1, arenas[0])
    ends.take()
    ends.say(encode_change(2, SETTINGS))
    with pytest.raises(OSError, match="arena 2 came without its descriptor: too many open files") as caught:
        ends.take()
    assert caught.value.errno == errno.EMFILE


def test_the_end_of_the_channel_is_no_change(ends: Ends, arenas: list[Arena]) -> None:
    ends.add(1, arenas[0])
    ends.coordinator.close()
    assert [change.number for change in ends.take()] == [1]
    assert ends.take() == []
    assert ends.take() == []


def test_a_grant_is_read_as_it_was_written() -> None:
    grant = Grant(3, 5, [(6, 6), (7, 8)], -1, 9, {"a": [1, None]}, [ArenaGrant(0, 10, SETTINGS), ArenaGrant(4, 11, {})])
    again = decode_grant(grant.encode())
    assert again == grant
    assert all(isinstance(arena, ArenaGrant) for arena in again.arenas)
    assert again.inherited() == {5, 6, 7, 8, 9, 10, 11}
    assert grant._replace(parent=12, channel=-1).inherited() == {5, 6, 7, 8, 10, 11, 12}


class Family:
    """A coordinator's control block, and a child that was given arenas at birth, in one process."""

    def __init__(self, *given: Arena, early: tuple[tuple[bytes, Arena | None], ...] = ()) -> None:
        self.control = Control.create(1)
        self.coordinator, theirs = socket.socketpair()
        for line, arena in early:
            self.say(line, arena)
        bells = []
        for bell in self.control.bells:
            copy = os.dup(bell.read_descriptor)
            bells.append((copy, copy))
        arenas = [ArenaGrant(number, os.dup(arena.descriptor), SETTINGS) for number, arena in enumerate(given)]
        self.child = Child(Grant(FIRST_WORKER, os.dup(self.control.descriptor), bells, -1, theirs.detach(), {}, arenas))
        self.taken: list[Arena] = []

    def changes(self) -> list[Change]:
        changes = self.child.changes()
        self.taken += [change.arena for change in changes if change.arena is not None]
        return changes

    def say(self, line: bytes, arena: Arena | None = None) -> None:
        """As the coordinator does it: first the line, then the count."""
        socket.send_fds(self.coordinator, [line], [] if arena is None else [arena.descriptor])
        self.control.count_change()

    def close(self) -> None:
        for arena in self.taken:
            arena.close()
        assert self.child._channel is not None
        self.child._channel._socket.close()
        self.coordinator.close()
        self.child.control.close()
        self.control.close()


@pytest.fixture
def family(arenas: list[Arena]) -> Iterator[Family]:
    made = Family(*arenas[:2])
    yield made
    made.close()


def test_a_child_begins_with_the_arenas_of_its_birth_and_says_that_it_has_them(
    family: Family, arenas: list[Arena]
) -> None:
    assert [arena.attached(3) for arena in arenas] == [[], [], []]
    assert family.child.has_changes()
    changes = family.changes()
    assert [(change.number, _inode(change.arena)) for change in changes] == [
        (number, _inode(arenas[number])) for number in range(2)
    ]
    assert [arena.attached(3) for arena in arenas] == [[FIRST_WORKER], [FIRST_WORKER], []]
    assert not family.child.has_changes()
    assert family.changes() == []


def test_what_was_said_before_the_child_had_started_is_read_with_its_birth(arenas: list[Arena]) -> None:
    """The count of changes had changed before it looked for the first time."""
    said = ((encode_change(2, SETTINGS), arenas[2]), (encode_change(0, None), None))
    family = Family(*arenas[:2], early=said)
    try:
        assert [(change.number, change.arena is None) for change in family.changes()] == [
            (0, False), (1, False), (2, False), (0, True),
        ]  # fmt: skip
        assert arenas[2].attached(3) == [FIRST_WORKER]
    finally:
        family.close()


def test_the_channel_is_read_when_the_count_has_changed_and_not_before(family: Family, arenas: list[Arena]) -> None:
    """A busy worker asks before every batch: that must cost one word, not a system call."""
    family.changes()
    socket.send_fds(family.coordinator, [encode_change(2, SETTINGS)], [arenas[2].descriptor])
    assert not family.child.has_changes()
    assert family.changes() == []
    family.control.count_change()
    assert family.child.has_changes()
    assert [change.number for change in family.changes()] == [2]


def test_the_count_of_changes_goes_round(family: Family, arenas: list[Arena]) -> None:
    family.changes()
    family.control.memory.store_u32(4, 0xFFFF_FFFF)
    family.changes()
    family.say(encode_change(2, SETTINGS), arenas[2])
    assert family.control.changes() == 0
    assert [change.number for change in family.changes()] == [2]


def test_letting_go_unmaps_says_so_and_wakes_the_coordinator(family: Family, arenas: list[Arena]) -> None:
    arena = family.changes()[0].arena
    assert arena is not None
    family.control.lie_down(COORDINATOR)
    family.child.let_go(arena)
    assert arena.descriptor < 0
    assert arenas[0].attached(3) == []
    assert arenas[1].attached(3) == [FIRST_WORKER]
    poller = select.poll()
    poller.register(family.control.bells[COORDINATOR].fileno(), select.POLLIN)
    assert poller.poll(0)


def test_a_process_that_nobody_has_reaped_is_not_alive() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert is_alive(process.pid)
    process.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is left there
    os.kill(process.pid, 0)
    assert not is_alive(process.pid)
    process.communicate()
    assert not is_alive(process.pid)
    assert not is_alive(0)


def test_without_pidfds_a_process_is_alive_while_its_id_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "open_pidfd", lambda _: -1)
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert is_alive(process.pid)
    process.kill()
    process.communicate()
    assert not is_alive(process.pid)


def test_to_an_orphan_a_process_that_was_being_started_is_alive_for_a_while(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its line names the job, which is dead; without the network process it would end and leave that one alone."""
    family.changes()
    family.control.set_state(NETWORK, PROCESS_STARTING)
    family.child.become_orphan()
    assert family.child.is_alive(NETWORK)
    monkeypatch.setattr(handover, "START_TIMEOUT_S", 0.0)
    assert not family.child.is_alive(NETWORK)
