"""Doorbells and the control block: no wake-up is lost between a process that lies down and one that wakes it."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from slabpress._native import Ringer
from slabpress.shm import doorbell
from slabpress.shm.control import (
    CONTROL_BYTES,
    COORDINATOR,
    FIRST_WORKER,
    NETWORK,
    Control,
)
from slabpress.shm.doorbell import Doorbell
from slabpress.shm.handover import ArenaGrant, Grant, decode_grant, pidfd_of_self
from slabpress.shm.layout import LINE_BYTES, WORKERS_MAX
from slabpress.shm.states import PROCESS_ABSENT, PROCESS_RUNNING, PROCESS_STARTING
from tests.shm.kit import CHILD_TIMEOUT_S, PROJECT, run_python, small_arena


def _eventfd(monkeypatch: pytest.MonkeyPatch) -> Doorbell:
    return Doorbell.create()


def _pipe(monkeypatch: pytest.MonkeyPatch) -> Doorbell:
    with monkeypatch.context() as patch:
        patch.setattr(doorbell, "sys", SimpleNamespace(platform="darwin"))
        bell = Doorbell.create()
    assert bell.read_descriptor != bell.write_descriptor
    return bell


@pytest.fixture(params=[_eventfd, pytest.param(_pipe, marks=pytest.mark.inside)], ids=["eventfd", "pipe"])
def bell(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Doorbell]:
    make: Callable[[pytest.MonkeyPatch], Doorbell] = request.param
    made = make(monkeypatch)
    yield made
    made.close()


def _is_rung(bell: Doorbell) -> bool:
    poller = select.poll()
    poller.register(bell.fileno(), select.POLLIN)
    return bool(poller.poll(0))


def test_a_bell_that_was_rung_often_wakes_once(bell: Doorbell) -> None:
    assert not _is_rung(bell)
    for _ in range(3):
        bell.ring()
    assert _is_rung(bell)
    assert bell.wait(None) == []
    assert not _is_rung(bell)
    bell.ring()
    assert bell.wait(None) == []


def test_draining_a_silent_bell_does_not_wait(bell: Doorbell) -> None:
    bell.drain()
    bell.ring()
    bell.drain()
    assert not _is_rung(bell)


def test_waiting_ends_with_the_timeout(bell: Doorbell) -> None:
    assert bell.wait(0.001) == []
    assert bell.wait(0) == []
    assert bell.wait(-5) == []


def test_waiting_says_which_other_descriptor_is_readable(bell: Doorbell) -> None:
    reader, writer = os.pipe()
    quiet_reader, quiet_writer = os.pipe()
    try:
        os.write(writer, b"x")
        assert bell.wait(None, [quiet_reader, reader]) == [reader]
        bell.ring()
        assert bell.wait(None, [quiet_reader, reader]) == [reader]
        assert not _is_rung(bell)
    finally:
        for descriptor in (reader, writer, quiet_reader, quiet_writer):
            os.close(descriptor)


def test_a_bell_that_nobody_hears_never_blocks_who_rings(bell: Doorbell) -> None:
    for _ in range(70_000):  # more than a pipe holds
        bell.ring()
    assert bell.wait(None) == []
    assert not _is_rung(bell)


def test_a_bell_is_not_inherited_by_accident(bell: Doorbell) -> None:
    assert not any(os.get_inheritable(descriptor) for descriptor in bell.descriptors)


def test_ringing_wakes_a_thread_that_waits(bell: Doorbell) -> None:
    woken = threading.Event()

    def wait() -> None:
        bell.wait(None)
        woken.set()

    thread = threading.Thread(target=wait)
    thread.start()
    bell.ring()
    assert woken.wait(CHILD_TIMEOUT_S)
    thread.join()


# --- the control block --------------------------------------------------------------------------------------


@pytest.fixture
def control() -> Iterator[Control]:
    made = Control.create(3)
    yield made
    made.close()


def test_every_slot_has_a_line_of_its_own(control: Control) -> None:
    assert list(control.workers) == [FIRST_WORKER, FIRST_WORKER + 1, FIRST_WORKER + 2]
    assert CONTROL_BYTES >= (1 + FIRST_WORKER + WORKERS_MAX) * LINE_BYTES
    slots = [COORDINATOR, NETWORK, *control.workers]
    assert [control.state(slot) for slot in slots] == [PROCESS_ABSENT] * 5
    for slot in slots:
        control.set_state(slot, PROCESS_RUNNING)
        assert not control.is_sleeping(slot)
        control.lie_down(slot)
        assert [control.is_sleeping(other) for other in slots] == [other <= slot for other in slots]
    for slot in slots:
        control.get_up(slot)
        assert [control.is_sleeping(other) for other in slots] == [other > slot for other in slots]
    assert not control.stopping
    control.set_state(NETWORK, PROCESS_STARTING)
    assert [control.state(slot) for slot in slots] == [2, PROCESS_STARTING, 2, 2, 2]


def test_only_who_sleeps_is_rung(control: Control) -> None:
    control.wake(NETWORK)
    assert not _is_rung(control.bells[NETWORK])
    control.lie_down(NETWORK)
    control.wake(NETWORK)
    assert _is_rung(control.bells[NETWORK])
    assert not _is_rung(control.bells[COORDINATOR])


def test_one_sleeping_worker_is_rung(control: Control) -> None:
    control.wake_one_worker()
    assert not any(_is_rung(bell) for bell in control.bells)
    control.lie_down(NETWORK)
    control.lie_down(FIRST_WORKER + 1)
    control.lie_down(FIRST_WORKER + 2)
    control.wake_one_worker()
    assert [_is_rung(bell) for bell in control.bells] == [False, False, False, True, False]


def test_a_bell_that_is_full_is_loud_enough_and_one_that_is_gone_is_an_error(control: Control) -> None:
    bell, ringer = control.bells[NETWORK], control.ringer((NETWORK,))
    control.lie_down(NETWORK)
    if bell.read_descriptor == bell.write_descriptor:
        os.write(bell.write_descriptor, (2**64 - 2).to_bytes(8, sys.byteorder))
    else:
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(bell.write_descriptor, bytes(4096))
    assert ringer.ring()
    control.wake(NETWORK)
    assert _is_rung(bell)
    gone = Ringer(control.memory, [control._sleeping_at[NETWORK]], [-1])
    with pytest.raises(OSError, match="Bad file descriptor"):
        gone.ring()


def test_stop_is_heard_by_everybody_but_the_coordinator(control: Control) -> None:
    control.stop()
    assert control.stopping
    assert [_is_rung(bell) for bell in control.bells] == [False, True, True, True, True]


def test_a_closed_control_block_raises_and_closing_twice_is_nothing() -> None:
    control = Control.create(1)
    control.close()
    control.close()
    with pytest.raises(ValueError, match="the arena was released"):
        control.wake(NETWORK)


# --- two processes ------------------------------------------------------------------------------------------

HANDOVERS = 20_000
_TURN_AT = CONTROL_BYTES - 8

_PARTNER = f"""
import sys
from slabpress.shm.control import Control
from slabpress.shm.doorbell import Doorbell
from tests.shm.test_control import hand_over
ends = [int(end) for end in sys.argv[2:]]
bells = [Doorbell(ends[n], ends[n + 1]) for n in range(0, len(ends), 2)]
control = Control(int(sys.argv[1]), bells)
hand_over(control, 1, 0, {HANDOVERS})
control.close()
"""


def hand_over(control: Control, me: int, other: int, times: int) -> None:
    """Wait for my turns and give each to the other, sleeping without a deadline in between."""
    memory = control.memory
    for number in range(me, times, 2):
        while memory.load_u32(_TURN_AT) != number:
            control.lie_down(me)
            if memory.load_u32(_TURN_AT) != number:
                control.bells[me].wait(None)
            control.get_up(me)
        memory.store_u32(_TURN_AT, number + 1)
        control.wake(other)


@pytest.mark.parametrize("make", [_eventfd, pytest.param(_pipe, marks=pytest.mark.inside)], ids=["eventfd", "pipe"])
def test_no_wake_up_is_lost_in_many_handovers(
    make: Callable[[pytest.MonkeyPatch], Doorbell], monkeypatch: pytest.MonkeyPatch
) -> None:
    descriptor = Control.create(0)
    control = Control(os.dup(descriptor.descriptor), [make(monkeypatch), make(monkeypatch)])
    descriptor.close()
    ends = [end for bell in control.bells for end in bell.descriptors]
    partner = subprocess.Popen(
        [sys.executable, "-c", _PARTNER, str(control.descriptor), *map(str, ends)],
        pass_fds={control.descriptor, *ends},
        cwd=PROJECT,
    )
    try:
        mine = threading.Thread(target=hand_over, args=(control, 0, 1, HANDOVERS), daemon=True)
        mine.start()
        mine.join(CHILD_TIMEOUT_S)
        turn = control.memory.load_u32(_TURN_AT)
        assert not mine.is_alive(), f"a wake-up was lost: it is turn {turn} and both sleep"
        assert partner.wait(CHILD_TIMEOUT_S) == 0
        assert control.memory.load_u32(_TURN_AT) == HANDOVERS
    finally:
        partner.kill()
        partner.wait()
        control.close()


# --- the handover -------------------------------------------------------------------------------------------


def test_a_grant_comes_back_from_its_json() -> None:
    grant = Grant(3, 7, [(8, 9), (10, 10)], 11, 13, {"a": [1, None], "ü": True}, [ArenaGrant(5, 12, {"b": "c"})])
    assert decode_grant(grant.encode()) == grant
    assert grant.inherited() == {7, 8, 9, 10, 11, 12, 13}
    assert grant._replace(parent=-1, channel=-1).inherited() == {7, 8, 9, 10, 12}


_CHILD = """
import sys, signal
from slabpress.shm.handover import Child
child = Child.receive(["", sys.argv[1]])
assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
assert not child.must_end()
(number, arena, settings), = child.changes()
assert number == 4 and arena.attached(8) == [child.slot] and not child.has_changes()
assert child.settings == {"role": 1} and settings == {"arena": 2}
assert arena.batch_states.load(0) == 5
child.running()
child.control.bells[child.slot].wait(child.idle_timeout_s, child.watched)
assert child.must_end() and not child.parent_is_gone()
"""


def test_a_child_attaches_says_that_it_runs_and_ends_when_told_to() -> None:
    control = Control.create(1)
    parent = pidfd_of_self()
    with small_arena() as arena:
        arena.batch_states.store(0, 5)
        bells = [bell.descriptors for bell in control.bells]
        arenas = [ArenaGrant(4, arena.descriptor, {"arena": 2})]
        grant = Grant(FIRST_WORKER, control.descriptor, bells, parent, -1, {"role": 1}, arenas)
        reader, writer = os.pipe()
        os.write(writer, grant.encode())
        os.close(writer)
        child = subprocess.Popen(
            [sys.executable, "-c", _CHILD, str(reader)], pass_fds=grant.inherited() | {reader}, cwd=PROJECT
        )
        os.close(reader)
        try:
            while control.state(FIRST_WORKER) != PROCESS_RUNNING and child.poll() is None:
                control.bells[COORDINATOR].wait(1)
            control.stop()
            assert child.wait(CHILD_TIMEOUT_S) == 0
            assert control.state(FIRST_WORKER) == PROCESS_RUNNING
        finally:
            child.kill()
            child.wait()
            os.close(parent)
            control.close()


_PARENT_THAT_DIES = """
import os, sys
sys.path.insert(0, "")
from slabpress.shm.control import Control
from slabpress.shm.handover import Child, Grant, pidfd_of_self
control = Control.create(0)
grant = Grant(1, control.descriptor, [bell.descriptors for bell in control.bells], pidfd_of_self(), -1, {}, [])
said_read, said_write = os.pipe()
if os.fork() == 0:
    child = Child(grant)
    assert not child.parent_is_gone()
    os.write(said_write, b"x")
    child.control.bells[1].wait(child.idle_timeout_s, child.watched)
    os.write(1, b"gone" if child.must_end() else b"still there")
    os._exit(0)
os.read(said_read, 1)
os._exit(0)
"""


def test_a_child_hears_that_the_coordinator_died() -> None:
    assert run_python(_PARENT_THAT_DIES).stdout == "gone"
