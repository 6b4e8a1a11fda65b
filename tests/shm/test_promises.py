"""Promises: for which sealed batches nobody need be rung."""

from __future__ import annotations

import pytest

from slabpress.shm import layout as at
from slabpress.shm.admission import Admission
from tests.shm.kit import SealingCoordinator, small_arena


def test_a_promise_reaches_so_many_batches_beyond_those_that_were_admitted() -> None:
    with small_arena() as arena:
        coordinator, promises = SealingCoordinator(arena), arena.promises
        coordinator.seal(b"a")
        assert Admission(arena, 0).take() is not None
        assert not promises.promise(3, 2)
        for covered in (True, True, False):
            coordinator.seal(b"a")
            assert promises.cover() is covered
        assert promises.promise(3, 2), "more wait than that"
        assert not promises.promise(3, 3)
        assert promises.cover()
        promises.withdraw(3)
        promises.withdraw(3)
        assert not promises.cover()


def test_at_short_work_a_worker_promises_as_many_batches_as_it_does_alone() -> None:
    with small_arena(slabs=16) as arena:
        coordinator, promises = SealingCoordinator(arena), arena.promises
        assert promises.begin(3, 10.0, 9.0, 30.0) == -1, "too long"
        for waiting in range(1, 5):
            coordinator.seal(b"a")
            assert promises.begin(3, 10.0, 10.0, 39.0) == (3 if waiting > 3 else 0)
            assert promises.cover() is (waiting <= 3)
        assert promises.begin(3, 10.0, 9.0, 99.0) == -1
        assert not promises.cover(), "and nothing new is promised"


def test_for_a_batch_behind_one_that_waits_nobody_need_be_rung() -> None:
    with small_arena() as arena:
        coordinator = SealingCoordinator(arena)
        for covered in (False, True, True):
            coordinator.seal(b"a")
            assert arena.promises.cover_new() is covered
            assert not arena.promises.cover()
        for _ in range(3):
            assert Admission(arena, 0).take() is not None
        coordinator.seal(b"a")
        assert not arena.promises.cover_new()


def test_what_a_dead_worker_promised_is_withdrawn() -> None:
    with small_arena() as arena:
        coordinator = SealingCoordinator(arena)
        for worker in (1, 2):
            arena.promises.promise(worker, 5)
        coordinator.seal(b"a")
        Admission(arena, 9).recover(1)
        assert arena.promises.cover(), "the other's"
        Admission(arena, 9).recover(2)
        assert not arena.promises.cover()


def test_only_workers_have_a_word() -> None:
    with small_arena() as arena:
        for worker in (-1, at.WORKERS_MAX):
            with pytest.raises(IndexError, match=f"worker {worker} of {at.WORKERS_MAX}"):
                arena.promises.promise(worker, 1)
