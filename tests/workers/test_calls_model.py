"""Sealers, workers and the network process in any order, one step at a time: nobody sleeps while there is work."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Final

import pytest

from slabpress.network.room import is_worker_wanted
from slabpress.shm.admission import Admission
from slabpress.shm.arena import Arena
from slabpress.shm.control import COORDINATOR, FIRST_WORKER, NETWORK, Control
from slabpress.shm.states import READY
from slabpress.workers.calls import Calls
from tests.shm.kit import SealingCoordinator, deliver, publish_raw, small_arena, take

BATCHES: Final = 25
TAKES_NS: Final = (0.0, 1_000.0, 200_000.0, 1e9)  # cannot be told; short; four are worth a call; long


class _World:
    """Everybody's steps on one arena; an actor yields whether it has done anything."""

    def __init__(self, arena: Arena, control: Control, rng: random.Random) -> None:
        self.arena = arena
        self.control = control
        self.rng = rng
        self.delivered = 0

    def sealer(self) -> Iterator[bool]:
        coordinator = SealingCoordinator(self.arena)
        for _ in range(BATCHES):
            while coordinator.seal(bytes(self.rng.randrange(150))) is None:
                yield False
            yield True
            is_covered = self.arena.promises.cover_new()
            yield True
            if not is_covered:
                self.control.wake_one_worker()
            yield True

    def worker(self, number: int) -> Iterator[bool]:
        calls, admission = Calls(self.control, number), Admission(self.arena, number)
        calls.add(self.arena, admission)
        slot = FIRST_WORKER + number
        while True:
            index = take(admission)
            yield True
            if index is not None:
                calls.begin(self.arena, 100, self.rng.choice(TAKES_NS))
                yield True
                publish_raw(self.arena, index)
                yield True
                calls.published(self.arena)
                yield True
                continue
            calls.go_away()
            yield True
            self.control.lie_down(slot)
            yield True
            if not calls.is_any_work():
                yield True
                while not self._is_rung(slot):
                    yield False
            self.control.get_up(slot)

    def _is_rung(self, slot: int) -> bool:
        bell = self.control.bells[slot]
        is_rung = bool(self.control.bells[COORDINATOR].wait(0, [bell.fileno()]))
        bell.drain()
        return is_rung

    def network(self) -> Iterator[bool]:
        while True:
            ready = self.arena.batch_states.find_all(READY)
            for index in ready[: self.rng.randrange(1, 4)]:
                deliver(self.arena, index)
                self.delivered += 1
            yield True
            if ready:
                slot = self.control.sleeping_worker()
                yield True
                if slot is not None and is_worker_wanted(self.arena):
                    self.control.bells[slot].ring()
                yield True
                continue
            self.control.lie_down(NETWORK)
            yield True
            if not self.arena.batch_states.has(READY):
                yield True
                while not self._is_rung(NETWORK):
                    yield False
            self.control.get_up(NETWORK)


def run(arena: Arena, control: Control, seed: int) -> None:
    """Let everybody take steps until all is delivered; fail when nobody has one left before that."""
    rng = random.Random(seed)
    world = _World(arena, control, rng)
    actors = [world.sealer(), world.network(), world.worker(0), world.worker(1)]
    stuck: set[Iterator[bool]] = set()
    while world.delivered < BATCHES:
        assert len(stuck) < len(actors), f"seed {seed}: {world.delivered} of {BATCHES} delivered, and nobody goes on"
        actor = rng.choice([actor for actor in actors if actor not in stuck])
        step = next(actor, None)
        if step is None:
            actors.remove(actor)
        elif step:
            stuck.clear()
        else:
            stuck.add(actor)


@pytest.mark.parametrize("outputs", [4, 16, 64])
def test_whatever_the_order_of_steps_no_batch_is_left_with_everybody_asleep(outputs: int) -> None:
    for seed in range(150):
        control = Control.create(2)
        try:
            with small_arena(slabs=16, outputs=outputs) as arena:
                run(arena, control, seed)
        finally:
            control.close()


def _never(*_: object) -> bool:
    return False


@pytest.mark.inside
@pytest.mark.parametrize(
    ("owner", "name", "instead"),
    [
        (Calls, "go_away", _never),
        (Calls, "is_any_work", _never),
        (Calls, "published", _never),
        (Calls, "_call_network", _never),
        (Control, "wake_one_worker", _never),
    ],
)
def test_the_model_finds_what_is_left_out(
    owner: type, name: str, instead: Callable[..., bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, name, instead)
    with pytest.raises(AssertionError, match="nobody goes on"):
        test_whatever_the_order_of_steps_no_batch_is_left_with_everybody_asleep(4)
