"""Draining for a job that is gone: which workers there are."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Final

import pytest

from slabpress.network import drain as drain_module
from slabpress.network.batches import ArenaBatches
from slabpress.network.drain import Drain
from slabpress.shm.admission import Admission
from slabpress.shm.control import _PID, FIRST_WORKER, Control
from slabpress.shm.descriptors import Descriptors
from slabpress.shm.handover import is_alive
from slabpress.shm.states import COMPRESSING, PROCESS_RUNNING, PROCESS_STARTING
from tests.shm.kit import SealingCoordinator, small_arena

SETTINGS: Final = {"acks": -1, "delivery_timeout_ms": 60_000, "max_request_size": 1000, "enable_idempotence": False}
MINUTE_NS: Final = 60_000_000_000


@pytest.fixture
def dead() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@contextlib.contextmanager
def _drained(dead: int) -> Iterator[tuple[ArenaBatches, Control, Drain]]:
    """An arena with one sealed batch; the job was killed just after it had started a worker."""
    control = Control.create(1)
    try:
        control.set_state(FIRST_WORKER, PROCESS_STARTING)
        control.memory.store_u32(control._line(FIRST_WORKER) + _PID, dead)
        with small_arena() as arena:
            assert SealingCoordinator(arena).seal(b"x" * 40) is not None
            batches = ArenaBatches(1, arena, dict(SETTINGS))
            yield batches, control, Drain([batches], control, 1000, 0)
    finally:
        control.close()


def test_a_worker_that_is_just_starting_is_waited_for_but_not_for_ever(dead: int) -> None:
    with _drained(dead) as (_, control, drain):
        drain.turn(0)
        assert not drain.is_finished(0)
        drain.turn(MINUTE_NS // 2)
        assert drain.is_finished(MINUTE_NS // 2)
        assert "no worker is left" in drain.words(1)
        control.set_state(FIRST_WORKER, PROCESS_RUNNING)
        drain.turn(MINUTE_NS // 2)
        assert not drain.is_finished(MINUTE_NS // 2)


@pytest.mark.parametrize("after", ["its word", "its id"])
def test_nothing_is_taken_from_a_worker_that_begins_to_work_after_a_look_at_its_line(
    dead: int, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _drained(dead) as (batches, control, drain):
        worker = Admission(batches.arena, 0)

        def and_then_it_works(look: Callable[[int], int]) -> Callable[[int], int]:
            def looked(what: int) -> int:
                seen = look(what)
                control.set_state(FIRST_WORKER, PROCESS_RUNNING)
                worker.take()
                return seen

            return looked

        if after == "its word":
            monkeypatch.setattr(control, "state", and_then_it_works(control.state))
        else:
            monkeypatch.setattr(drain_module, "is_alive", and_then_it_works(is_alive))
        drain.turn(0)
        held = batches.arena.batch_states.find_all(COMPRESSING)
        assert [Descriptors(batches.arena).worker(index) for index in held] == [0] * len(held)
