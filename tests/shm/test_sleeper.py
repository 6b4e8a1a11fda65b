"""A thread's word in the arena: who finds it asleep wakes it, in whichever process; nobody sleeps over a call."""

from __future__ import annotations

import mmap
import os
import signal
import threading
from collections.abc import Iterator

import pytest

from slabpress._native import Memory, Sleeper

WATCHDOG_S = 60.0
_AT = 64

pytestmark = pytest.mark.timeout(WATCHDOG_S)


@pytest.fixture
def memory() -> Iterator[Memory]:
    mapping = mmap.mmap(-1, 4096)
    made = Memory(mapping)
    yield made
    made.release()
    mapping.close()


@pytest.fixture
def sleeper(memory: Memory) -> Sleeper:
    return Sleeper(memory, _AT)


def _asleep(sleeper: Sleeper) -> threading.Thread:
    """A thread that has said that it sleeps, and sleeps or is about to."""
    thread = threading.Thread(target=sleeper.wait, daemon=True)
    sleeper.lie_down()
    thread.start()
    return thread


def test_nobody_is_woken_who_does_not_sleep(sleeper: Sleeper) -> None:
    assert not sleeper.wake()
    sleeper.lie_down()
    sleeper.get_up()
    assert not sleeper.wake()


def test_a_call_between_lying_down_and_waiting_is_not_slept_over(sleeper: Sleeper) -> None:
    sleeper.lie_down()
    assert sleeper.wake()
    sleeper.wait()


def test_of_two_who_come_one_wakes(sleeper: Sleeper) -> None:
    thread = _asleep(sleeper)
    assert [sleeper.wake(), sleeper.wake()] == [True, False]
    thread.join()


def test_another_process_wakes_it(sleeper: Sleeper) -> None:
    thread = _asleep(sleeper)
    child = os.fork()
    if child == 0:
        signal.alarm(int(WATCHDOG_S))
        code = 2
        try:
            code = 0 if sleeper.wake() else 1
        finally:
            os._exit(code)
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_its_own_process_wakes_it_though_another_died_before_it_did(sleeper: Sleeper, memory: Memory) -> None:
    thread = _asleep(sleeper)
    memory.store_u32(_AT, 0)  # as whoever wakes it does first
    assert not sleeper.wake()
    # It may be asleep already, or find the word changed; either way it is up after a call.
    sleeper.call()
    thread.join()


def test_a_word_outside_the_mapping_is_refused(memory: Memory) -> None:
    with pytest.raises(IndexError):
        Sleeper(memory, 4096)
    sleeper = Sleeper(memory, 4092)
    memory.release()
    for use in (sleeper.lie_down, sleeper.wait, sleeper.get_up, sleeper.wake, sleeper.call):
        with pytest.raises(ValueError, match="released"):
            use()
