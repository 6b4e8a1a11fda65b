"""What the children are told of arenas: each exactly what it must know, once, whatever dies or is full meanwhile."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import socket
import stat
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from slabpress.pipeline.child import ChildProcess, Role
from slabpress.pipeline.supervisor import DEATHS_AT_START_MAX, Supervisor
from slabpress.shm.arena import Arena
from slabpress.shm.control import COORDINATOR, FIRST_WORKER, NETWORK, Control
from slabpress.shm.handover import ArenaGrant, decode_grant
from slabpress.shm.states import PROCESS_RUNNING
from tests.shm.kit import small_arena


class Heard(NamedTuple):
    """A line of a channel: the arena's number and the inode that came with it, None where it is to be let go."""

    number: int
    inode: int | None


class Ear:
    """A child's end of its channel; it hears when the test lets it."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._socket.setblocking(False)
        self._text = b""
        self._inodes: list[int] = []

    def hear(self, lines: int | None = None) -> list[Heard]:
        """The lines that have come, at most so many."""
        while lines is None or self._text.count(b"\n") < lines:
            try:
                data, descriptors, _, _ = socket.recv_fds(self._socket, 1 if lines else 65536, 64)
            except BlockingIOError:
                break
            if not data:
                break
            self._text += data
            for descriptor in descriptors:
                self._inodes.append(os.fstat(descriptor).st_ino)
                os.close(descriptor)
        *whole, self._text = self._text.split(b"\n")
        changes = [json.loads(line) for line in whole]
        return [Heard(number, None if settings is None else self._inodes.pop(0)) for number, settings in changes]

    def close(self) -> None:
        """Close it, as the child's death does."""
        self._socket.close()


class Process:
    """A child process that is none: it keeps what it was given, and lives until the test ends it."""

    born: list[Process] = []

    def __init__(self, argv: list[str], *, pass_fds: list[int], **_: Any) -> None:
        self.returncode: int | None = None
        self.pid = os.getpid()  # for a pidfd
        self._setup = os.dup(int(argv[-1]))
        sockets = [number for number in pass_fds if stat.S_ISSOCK(os.fstat(number).st_mode)]
        self.ear = Ear(os.dup(sockets[0]))
        Process.born.append(self)

    def given(self) -> list[int]:
        """The numbers of the arenas that it was given at birth; once."""
        with os.fdopen(self._setup, "rb") as pipe:
            return [arena.number for arena in decode_grant(pipe.read()).arenas]

    def die(self) -> None:
        """End, and close the channel."""
        self.returncode = -9
        self.ear.close()

    def poll(self) -> int | None:
        """As of subprocess.Popen."""
        return self.returncode

    def kill(self) -> None:
        """As of subprocess.Popen."""
        if self.returncode is None:
            self.die()

    def wait(self) -> int | None:
        """As of subprocess.Popen."""
        return self.returncode


class House:
    """A supervisor with two children that are no processes, and a clock that the test sets."""

    def __init__(self) -> None:
        self.now = 0.0
        self.recovered: list[int] = []
        self.control = Control.create(1)
        roles = [Role("network process", "none", NETWORK, {}), Role("worker 0", "none", FIRST_WORKER, {})]
        self.locked = False  # somebody holds what a recovery needs
        self.supervisor = Supervisor(self.control, roles, self._recover, lambda: self.now)
        for child in self.supervisor.children:
            child.restart_at = 0.0
        self.arenas: dict[int, Arena] = {}
        self._stack = contextlib.ExitStack()

    def _recover(self, slot: int) -> bool:
        if not self.locked:
            self.recovered.append(slot)
        return not self.locked

    def start(self) -> None:
        """Start whoever is due; they work at once."""
        self.supervisor.check()
        for child in self.supervisor.children:
            if child.process is not None:
                self.control.set_state(child.role.slot, PROCESS_RUNNING)

    @property
    def network(self) -> ChildProcess:
        return self.supervisor.children[0]

    @property
    def worker(self) -> ChildProcess:
        return self.supervisor.children[1]

    def add(self, number: int) -> Heard:
        """Add an arena; what a child must hear of that."""
        arena = self._stack.enter_context(small_arena())
        self.arenas[number] = arena
        self.supervisor.add_arena(ArenaGrant(number, arena.descriptor, {"n": number}))
        return Heard(number, os.fstat(arena.descriptor).st_ino)

    def remove(self, number: int) -> Heard:
        """Remove an arena, and close it, as the coordinator does; what a child must hear of that."""
        self.supervisor.remove_arena(number)
        self.arenas.pop(number).close()
        return Heard(number, None)

    def fill(self, child: ChildProcess, first: int) -> list[Heard]:
        """Add arenas from this number on until the child's channel is full, the last of them unsent."""
        assert child.channel is not None
        child.channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the kernel has a least size
        added: list[Heard] = []
        while not child.outbox:
            added.append(self.add(first + len(added)))
        assert len(added) > 1
        return added

    def kill(self, child: ChildProcess) -> None:
        """Have it die, and the supervisor see it."""
        _process(child).die()
        self.supervisor.check()
        assert child.process is None or _process(child).returncode is None

    def close(self) -> None:
        self.supervisor.kill()
        self._stack.close()
        self.control.close()


def _process(child: ChildProcess) -> Process:
    process: Any = child.process
    assert isinstance(process, Process)
    return process


def _hear(child: ChildProcess) -> list[Heard]:
    return _process(child).ear.hear()


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    monkeypatch.setattr(Process, "born", [])
    monkeypatch.setattr("slabpress.pipeline.child.subprocess.Popen", Process)
    made = House()
    yield made
    made.close()
    for process in Process.born:
        process.ear.close()
        with contextlib.suppress(OSError):
            os.close(process._setup)


def _is_rung(house: House, slot: int) -> bool:
    poller = select.poll()
    poller.register(house.control.bells[slot].fileno(), select.POLLIN)
    return bool(poller.poll(0))


def test_every_child_hears_of_every_change_once(house: House) -> None:
    house.start()
    expected = [house.add(0), house.add(1), house.remove(0), house.add(2)]
    house.supervisor.check()
    for child in (house.network, house.worker):
        assert _hear(child) == expected
    house.supervisor.check()
    assert (_hear(house.network), _hear(house.worker)) == ([], [])
    assert house.supervisor.next_time() is None


def test_a_change_is_counted_after_it_was_said_and_wakes_who_sleeps(house: House) -> None:
    house.start()
    house.control.lie_down(FIRST_WORKER)
    before = house.control.changes()
    house.add(0)
    assert house.control.changes() > before
    assert _is_rung(house, FIRST_WORKER)
    assert not _is_rung(house, NETWORK)


def test_a_full_channel_is_tried_again_and_says_nothing_twice(house: House) -> None:
    """The other child hears everything meanwhile; the full one in the end, in the same order."""
    house.start()
    expected = house.fill(house.worker, 0)
    expected.append(house.add(100))
    expected.append(house.remove(1))
    assert len(house.worker.outbox) == 3
    assert _hear(house.network) == expected
    house.supervisor.check()
    assert len(house.worker.outbox) == 3, "the channel is as full as before"
    due = house.supervisor.next_time()
    assert due is not None
    assert due > house.now
    heard = []
    for _ in range(len(expected)):
        heard += _process(house.worker).ear.hear(1)
        before = house.control.changes()
        left = len(house.worker.outbox)
        house.supervisor.check()
        assert (house.control.changes() != before) == (len(house.worker.outbox) < left)
    assert heard == expected
    assert house.supervisor.next_time() is None
    assert _hear(house.network) == _hear(house.worker) == []


def test_the_coordinator_is_woken_when_a_channel_is_full(house: House) -> None:
    """It is its thread that tries again, and it may be asleep without a time to get up."""
    house.start()
    house.control.lie_down(COORDINATOR)
    house.fill(house.worker, 0)
    assert _is_rung(house, COORDINATOR)


def test_an_arena_that_goes_before_it_could_be_said_is_never_said(house: House) -> None:
    """Its descriptor is closed by then: the number may be another's."""
    house.start()
    expected = house.fill(house.worker, 0)
    unsent = expected.pop()
    gone = house.remove(unsent.number)
    last = house.add(500)
    assert len(house.worker.outbox) == 2
    heard = _hear(house.worker)
    house.supervisor.check()
    heard += _hear(house.worker)
    assert heard == [*expected, gone, last]
    assert _hear(house.network) == [*expected, unsent, gone, last]


def test_a_child_is_born_with_the_arenas_that_exist_and_hears_of_none_of_them_again(house: House) -> None:
    for number in range(4):
        house.add(number)
    house.remove(1)
    house.start()
    for child in (house.network, house.worker):
        assert _process(child).given() == [0, 2, 3]
        assert _hear(child) == []
    assert _hear(house.network) == _hear(house.worker) == []
    later = house.add(4)
    assert _hear(house.network) == _hear(house.worker) == [later]


def test_nobody_takes_a_dead_childs_place_before_what_it_owned_is_recovered(house: House) -> None:
    """The lock for that may be a stopped process's: it is tried again and again, and nobody waits for it."""
    house.start()
    house.locked = True
    house.kill(house.worker)
    for _ in range(3):
        due = house.supervisor.next_time()
        assert due is not None
        assert due > house.now
        house.now = due
        house.start()
        assert house.worker.process is None
        assert house.recovered == []
    house.locked = False
    house.now += 1.0
    house.start()
    assert house.worker.process is not None
    assert house.recovered == [FIRST_WORKER]


def test_a_child_that_restarts_is_given_exactly_the_arenas_that_exist(house: House) -> None:
    """Whatever came and went while it lived, while it was dead, or was still to be said to it."""
    house.add(0)
    house.add(1)
    house.start()
    house.remove(0)
    house.add(2)
    first = house.fill(house.worker, 10)  # the last of them was not said
    house.worker.quick_deaths = 3  # a pause before the next
    house.kill(house.worker)
    assert house.worker.process is None
    assert house.recovered == [FIRST_WORKER]
    house.remove(2)
    house.add(3)
    assert not house.worker.outbox, "nobody is there to be told"
    due = house.supervisor.next_time()
    assert due is not None
    house.now = due
    house.start()
    assert _process(house.worker).given() == [1, *(heard.number for heard in first), 3]
    assert _hear(house.worker) == []
    assert len(Process.born) == 3, "the other one lives on"
    assert house.remove(10) in _hear(house.network)
    assert _hear(house.worker) == [Heard(10, None)]


def test_a_child_that_has_died_unseen_costs_nothing(house: House) -> None:
    """Its end of the channel is closed, and nobody has looked yet: the next one is given the arena at birth."""
    house.start()
    _process(house.worker).ear.close()
    expected = [house.add(0), house.remove(0), house.add(1)]
    assert not house.worker.outbox
    assert _hear(house.network) == expected
    house.kill(house.worker)
    house.start()
    assert _process(house.worker).given() == [1]


def test_a_shortage_while_something_is_said_is_tried_again(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many descriptors on their way to children that are stopped, no buffer: the child lives, and must hear."""
    house.start()

    def short(*_: object) -> int:
        raise OSError(errno.ETOOMANYREFS, "too many references")

    with monkeypatch.context() as patch:
        patch.setattr("slabpress.pipeline.child.socket.send_fds", short)
        expected = house.add(0)
    house.supervisor.check()
    assert _hear(house.network) == [expected]


def test_a_shortage_at_a_restart_is_tried_again_later(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """With pauses, and with the arenas of the moment at which it succeeds."""
    house.add(0)
    house.start()

    def no_process(*_: object, **__: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "no process more")

    with monkeypatch.context() as patch:
        patch.setattr("slabpress.pipeline.child.subprocess.Popen", no_process)
        house.kill(house.network)
        house.add(1)
        for _ in range(DEATHS_AT_START_MAX - 2):
            due = house.supervisor.next_time()
            assert due is not None
            house.now = due
            house.supervisor.check()
    assert house.network.process is None
    due = house.supervisor.next_time()
    assert due is not None
    house.now = due
    house.remove(0)
    house.start()
    assert _process(house.network).given() == [1]
    assert [descriptor for descriptor in house.supervisor.watched if descriptor < 0] == []
