"""A worker's loop, without a process: what it promises, and when no more."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from slabpress.shm.arena import Arena
from slabpress.shm.control import FIRST_WORKER, Control
from slabpress.shm.handover import Change
from slabpress.workers.worker import Worker, run
from tests.shm.kit import SealingCoordinator, small_arena

SETTINGS = {"compression_type": "none", "compression_level": None, "largest_batch_bytes": 4096}


def _child(control: Control, changes: list[Change]) -> Any:
    """A child that is told of these changes, and whose sleep ends at once."""
    return SimpleNamespace(
        slot=FIRST_WORKER,
        control=control,
        watched=[],
        idle_timeout_s=0.0,
        orphaned=False,
        has_changes=lambda: bool(changes),
        changes=lambda: [changes.pop(0)],
        parent_is_gone=lambda: False,
        let_go=lambda arena: None,  # noqa: ARG005 - it is unmapped by the test
    )


def _promising(control: Control, arena: Arena, changes: list[Change]) -> Worker:
    """A worker that has just compressed a batch of the arena, and knows that it takes no time."""
    worker = Worker(_child(control, changes))
    worker.follow_changes()
    worker.compressors[0].admission.point.learn(1e-3)
    SealingCoordinator(arena).seal(b"a")
    assert worker.work()
    assert arena.promises.cover()
    return worker


@pytest.fixture
def control() -> Any:
    made = Control.create(1)
    yield made
    made.close()


def test_a_worker_that_lies_down_promises_nothing(control: Control) -> None:
    with small_arena() as arena:
        worker = _promising(control, arena, [Change(0, arena, SETTINGS)])
        assert not worker.work()
        assert worker.sleep()
        SealingCoordinator(arena).seal(b"a")
        assert not arena.promises.cover()


def test_a_worker_that_takes_on_or_lets_go_an_arena_promises_nothing_meanwhile(control: Control) -> None:
    with small_arena() as arena, small_arena() as second:
        changes = [Change(0, arena, SETTINGS)]
        worker = _promising(control, arena, changes)
        changes.append(Change(1, second, SETTINGS))
        SealingCoordinator(arena).seal(b"a")
        worker.follow_changes()
        assert not arena.promises.cover()
        changes.append(Change(1, None, {}))
        worker.follow_changes()
        assert list(worker.compressors) == [0]
        assert worker.work()


def test_a_worker_begins_without_what_its_dead_predecessor_promised(control: Control) -> None:
    with small_arena() as arena:
        arena.promises.promise(0, 5)
        SealingCoordinator(arena).seal(b"a")
        Worker(_child(control, [Change(0, arena, SETTINGS)])).follow_changes()
        assert not arena.promises.cover()


@pytest.mark.inside
@pytest.mark.timeout(60)
def test_a_worker_that_is_never_out_of_work_hears_of_arenas_that_come_and_go_and_when_to_end(control: Control) -> None:
    said: list[str] = []

    def work() -> bool:
        said.append("works")
        if len(said) == 3:
            control.count_change()
        if len(said) == 6:
            control.stop()
        return True

    run(_child(control, []), Mock(work=work, follow_changes=lambda: said.append("follows")))
    assert said == ["follows", "works", "works", "follows", "works", "works"]


@pytest.mark.inside
@pytest.mark.timeout(60)
@pytest.mark.parametrize("network_lives", [False, True])
def test_an_orphan_ends_before_its_next_batch_once_nobody_sends_what_it_compresses(
    control: Control, network_lives: bool
) -> None:
    child, worked = _child(control, []), []
    child.orphaned = True
    child.is_alive = lambda _: network_lives

    def work() -> bool:
        worked.append(1)
        if len(worked) == 4:
            control.stop()
        return True

    run(child, Mock(work=work))
    assert len(worked) == (4 if network_lives else 1)
