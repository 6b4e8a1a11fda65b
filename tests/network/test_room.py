"""Whether a worker is woken for the room that responses have made."""

from __future__ import annotations

import pytest

from slabpress.network.room import is_worker_wanted
from slabpress.shm import layout as at
from slabpress.shm.admission import Admission
from slabpress.shm.arena import Arena
from tests.shm.kit import SealingCoordinator, deliver, publish_raw, small_arena, take

OUTPUTS = 64


def _fill(arena: Arena, batches: int) -> list[int]:
    """Batches of one output buffer each, READY."""
    coordinator, admission, ready = SealingCoordinator(arena), Admission(arena, 0), []
    for _ in range(batches):
        assert coordinator.seal(b"a" * 20) is not None
        index = take(admission)
        assert index is not None
        publish_raw(arena, index)
        ready.append(index)
    return ready


def test_with_nothing_sealed_nobody_is_wanted() -> None:
    with small_arena(slabs=OUTPUTS) as arena:
        for index in _fill(arena, 3):
            deliver(arena, index)
        assert not is_worker_wanted(arena)


def test_while_more_is_on_its_way_nobody_is_wanted_for_little_room() -> None:
    with small_arena(slabs=OUTPUTS) as arena:
        ready = _fill(arena, OUTPUTS)
        SealingCoordinator(arena).seal(b"a")
        worth = OUTPUTS // 16
        for index in ready[: worth - 1]:
            deliver(arena, index)
            assert not is_worker_wanted(arena)
        deliver(arena, ready[worth])
        assert is_worker_wanted(arena)
        arena.promises.promise(0, 5)
        assert not is_worker_wanted(arena), "somebody is awake, and will look"


def test_little_room_is_worth_a_ring_when_no_more_is_on_its_way() -> None:
    with small_arena(slabs=OUTPUTS) as arena:
        ready = _fill(arena, OUTPUTS // 2)
        assert arena.outputs.claim(OUTPUTS // 2, 1) >= 0  # as a worker holds them that is stopped
        SealingCoordinator(arena).seal(b"a")
        deliver(arena, ready[0])
        assert is_worker_wanted(arena)


@pytest.mark.parametrize("word", [at.ORPHANS_AT, at.PARKED_AT, at.SPLITS_AT])
def test_what_is_not_in_the_ring_is_always_worth_a_ring(word: int) -> None:
    with small_arena(slabs=OUTPUTS) as arena:
        arena.memory.store_u64(word, 1)
        assert is_worker_wanted(arena)
