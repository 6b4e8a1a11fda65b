"""When a worker promises to be back soon, when it calls another, and when the network process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from slabpress.shm.admission import Admission
from slabpress.shm.arena import Arena
from slabpress.shm.control import COORDINATOR, FIRST_WORKER, NETWORK, Control
from slabpress.workers.calls import SOON_NS, WORTH_A_CALL_NS, Calls
from slabpress.workers.codecs import make_codec
from slabpress.workers.compressor import Compressor
from tests.shm.kit import SealingCoordinator, small_arena

SHORT_NS, LONG_NS = SOON_NS / 2, SOON_NS * 2.0


class Scene(NamedTuple):
    """Worker 0, awake, and worker 1 and the network process, asleep."""

    arena: Arena
    control: Control
    calls: Calls

    def seal(self, batches: int) -> None:
        for _ in range(batches):
            assert SealingCoordinator(self.arena).seal(b"a" * 10) is not None

    def is_called(self, slot: int = FIRST_WORKER + 1) -> bool:
        bell = self.control.bells[slot]
        is_rung = bool(self.control.bells[COORDINATOR].wait(0, [bell.fileno()]))
        bell.drain()
        return is_rung


@pytest.fixture
def scene() -> Iterator[Scene]:
    control = Control.create(2)
    with small_arena(slabs=40, outputs=40) as arena:
        calls = Calls(control, 0)
        calls.add(arena, Admission(arena, 0))
        control.lie_down(FIRST_WORKER + 1)
        control.lie_down(NETWORK)
        yield Scene(arena, control, calls)
    control.close()


def test_at_short_work_it_takes_what_is_sealed_meanwhile_itself(scene: Scene) -> None:
    scene.calls.begin(scene.arena, 16, SHORT_NS)
    scene.seal(1)
    assert scene.arena.promises.cover()
    assert scene.arena.promises.cover_new()
    assert not scene.is_called()


@pytest.mark.parametrize("takes_ns", [LONG_NS, 0.0])
def test_at_long_work_or_work_of_unknown_length_it_promises_nothing_and_calls_for_what_waits(
    scene: Scene, takes_ns: float
) -> None:
    scene.calls.begin(scene.arena, 16, SHORT_NS)
    scene.seal(1)
    scene.calls.begin(scene.arena, 16, takes_ns)
    assert scene.is_called()
    assert not scene.arena.promises.cover()


def test_at_long_work_it_calls_nobody_for_nothing(scene: Scene) -> None:
    scene.calls.begin(scene.arena, 16, LONG_NS)
    assert not scene.is_called()
    scene.seal(1)
    assert not scene.arena.promises.cover_new(), "the sealer rings"


def test_it_calls_another_for_more_work_than_one_should_do_alone(scene: Scene) -> None:
    enough = int(WORTH_A_CALL_NS / SHORT_NS)
    scene.seal(enough - 2)
    scene.calls.begin(scene.arena, 16, SHORT_NS)
    assert not scene.is_called()
    scene.seal(3)
    assert not scene.arena.promises.cover()
    scene.calls.begin(scene.arena, 16, SHORT_NS)
    assert scene.is_called()


def test_it_calls_nobody_for_more_work_than_there_is_room_for(scene: Scene) -> None:
    scene.seal(20)
    free = scene.arena.outputs.count_free()
    assert scene.arena.outputs.claim(free - 3, 1) >= 0
    scene.calls.begin(scene.arena, scene.arena.outputs.block_bytes, SHORT_NS)
    assert not scene.is_called()


def test_a_worker_of_many_arenas_is_not_back_soon(scene: Scene) -> None:
    with small_arena() as second, small_arena() as third:
        for arena in (second, third):
            scene.calls.add(arena, Admission(arena, 0))
        SealingCoordinator(second).seal(b"b")
        scene.calls.begin(scene.arena, 16, SHORT_NS)
        assert not scene.arena.promises.promise(9, 0)  # another worker's word, of the same arena
        scene.arena.promises.withdraw(9)
        assert scene.is_called(), "what waits in any of them"
        for arena in (second, third):
            scene.calls.remove(arena)


def test_going_away_withdraws_what_was_promised_of_every_arena(scene: Scene) -> None:
    with small_arena() as second:
        scene.calls.add(second, Admission(second, 0))
        for arena in (scene.arena, second):
            SealingCoordinator(arena).seal(b"b")
            scene.calls.begin(arena, 16, 1.0)
        scene.calls.go_away()
        assert not scene.arena.promises.cover()
        assert not second.promises.cover()
        scene.calls.remove(second)


def test_for_a_batch_that_comes_alone_the_network_process_is_called_at_once(scene: Scene) -> None:
    scene.calls.published(scene.arena)
    assert scene.is_called(NETWORK)


def test_for_short_batches_in_a_row_it_is_called_once_in_the_time_that_one_may_wait(scene: Scene) -> None:
    scene.seal(20)
    takes_ns = SOON_NS / 5
    called = []
    for _ in range(15):
        scene.calls.begin(scene.arena, 16, takes_ns)
        called.append(scene.is_called(NETWORK))
        scene.calls.published(scene.arena)
        assert not scene.is_called(NETWORK)
    assert [number for number, is_called in enumerate(called) if is_called] == [5, 10]
    scene.calls.go_away()
    assert scene.is_called(NETWORK), "it lies down, and owes the call"
    scene.calls.go_away()
    assert not scene.is_called(NETWORK), "it owes none"


@pytest.mark.parametrize("takes_ns", [LONG_NS, 0.0])
def test_before_a_long_batch_or_one_of_unknown_length_the_call_is_made_that_is_owed(
    scene: Scene, takes_ns: float
) -> None:
    scene.seal(2)
    scene.calls.begin(scene.arena, 16, SHORT_NS)
    scene.calls.published(scene.arena)
    assert not scene.is_called(NETWORK)
    scene.calls.begin(scene.arena, 16, takes_ns)
    assert scene.is_called(NETWORK)


def test_a_compressor_calls_the_network_process_for_what_it_published_once_nothing_more_is_sealed(scene: Scene) -> None:
    compressor = Compressor(scene.arena, make_codec("none", None, 1 << 16), 0, scene.control)
    scene.seal(2)
    assert compressor.work()
    assert not scene.is_called(NETWORK), "it goes on with the second"
    assert compressor.work()
    assert scene.is_called(NETWORK)


def test_a_compressor_learns_how_long_its_batches_take(scene: Scene) -> None:
    compressor = Compressor(scene.arena, make_codec("lz4", None, 1 << 16), 0, scene.control)
    scene.seal(3)
    assert compressor.work()
    assert scene.is_called(), "of its first batch it cannot tell"
    for _ in range(30):  # far below what the codec's first call took
        scene.seal(1)
        assert compressor.work()
    scene.seal(1)
    assert scene.arena.promises.cover()


def test_one_batch_that_was_interrupted_does_not_make_all_seem_long(scene: Scene) -> None:
    compressor = Compressor(scene.arena, make_codec("none", None, 1 << 16), 0, scene.control)
    point = compressor.admission.point
    point.learn(10.0)
    point.learn(1e9)
    assert point.ns_per_byte == pytest.approx(10.0 * 9 / 8)
    for _ in range(100):
        point.learn(5.0)
    assert point.ns_per_byte == pytest.approx(5.0, rel=0.01)
