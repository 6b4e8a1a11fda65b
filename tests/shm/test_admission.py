"""Admission: in seal order, only with room, and nothing lost or taken twice whoever dies and when."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from slabpress._native import NONE
from slabpress.shm import layout as at
from slabpress.shm.admission import Admission
from slabpress.shm.arena import Arena
from slabpress.shm.control import NETWORK, Control
from slabpress.shm.descriptors import Descriptors
from slabpress.shm.states import (
    COMPRESSING,
    FREE,
    ORPHAN,
    OUTPUT_FILLING,
    READY,
    SEALED,
    SLAB_COMPRESSING,
    STATE_MASK,
    owned,
)
from slabpress.workers.codecs import make_codec
from slabpress.workers.compressor import Compressor
from tests.shm.faults import Killed, Life, make_mortal, make_mortal_worker
from tests.shm.kit import (
    CHILD_TIMEOUT_S,
    PROJECT,
    SealingCoordinator,
    deliver,
    lock_holder,
    publish_raw,
    small_arena,
    take,
)

SUPERVISOR: Final = 0xFFFE


def _sealed(coordinator: SealingCoordinator, value: bytes) -> tuple[int, bytes]:
    sealed = coordinator.seal(value)
    assert sealed is not None
    return sealed


def _check_all_free(arena: Arena) -> None:
    assert arena.batch_states.tally(1) == [arena.geometry.batch_count]
    assert arena.slabs.count_free() == arena.geometry.slab_count
    assert arena.outputs.count_free() == arena.geometry.output_count


# --- one worker ---------------------------------------------------------------------------------------------


def test_batches_are_taken_in_seal_order() -> None:
    with small_arena(slabs=16) as arena:
        coordinator, workers = SealingCoordinator(arena), [Admission(arena, 0), Admission(arena, 1)]
        assert take(workers[0]) is None
        assert not workers[0].has_work()
        order = [_sealed(coordinator, bytes([number]))[0] for number in range(4)]
        assert workers[1].has_work()
        assert [take(workers[number % 2]) for number in range(4)] == order
        assert take(workers[0]) is None
        assert not workers[0].has_work()
        assert arena.seal_head == arena.seal_tail == 4
        for number, index in enumerate(order):
            assert Descriptors(arena).worker(index) == number % 2
            assert arena.batch_states.load(index) == COMPRESSING
            first = Descriptors(arena).sealed(index).first_slab
            assert arena.slab_states.load(first) == owned(SLAB_COMPRESSING, number % 2)


def test_an_admitted_batch_has_outputs_for_all_of_it_uncompressed() -> None:
    with small_arena(slabs=16) as arena:
        coordinator, worker = SealingCoordinator(arena), Admission(arena, 3)
        for size in (0, 1, 57, 58, 200):
            index, data = _sealed(coordinator, b"x" * size)
            assert take(worker) == index
            output = Descriptors(arena).output(index)
            assert output.output_count == -(-len(data) // 64)
            chain = arena.outputs.chain(output.first_output)
            assert len(chain) == output.output_count
            assert {arena.output_states.load(block) for block in chain} == {owned(OUTPUT_FILLING, 3)}
            assert (output.payload_bytes, output.codec) == (0, 0)


def test_nobody_is_admitted_without_room_and_nobody_overtakes() -> None:
    with small_arena(slabs=8, outputs=4) as arena:
        coordinator, worker = SealingCoordinator(arena), Admission(arena, 0)
        first, large, small = (_sealed(coordinator, b"x" * size)[0] for size in (100, 150, 1))
        assert take(worker) == first
        assert not worker.has_work()
        before = bytes(arena.view[: arena.layout.output_nexts]), bytes(arena.view[arena.layout.descriptors :])
        assert take(worker) is None, "3 outputs are needed and 2 are free; the small one behind must wait"
        assert (bytes(arena.view[: arena.layout.output_nexts]), bytes(arena.view[arena.layout.descriptors :])) == before
        publish_raw(arena, first)
        assert take(worker) is None
        deliver(arena, first)
        assert worker.has_work()
        assert take(worker) == large
        assert take(worker) == small


def test_a_recovered_batch_goes_first_and_keeps_what_it_holds() -> None:
    with small_arena(slabs=16) as arena:
        coordinator, supervisor = SealingCoordinator(arena), Admission(arena, SUPERVISOR)
        batches = [_sealed(coordinator, bytes([number]) * 100) for number in range(3)]
        dead, heir = Admission(arena, 0), Admission(arena, 1)
        assert [take(dead), take(dead)] == [batches[0][0], batches[1][0]]
        outputs = [Descriptors(arena).output(index) for index, _ in batches[:2]]
        assert supervisor.recover(0) == 2
        assert [Descriptors(arena).worker(index) for index, _ in batches[:2]] == [ORPHAN, ORPHAN]
        assert heir.has_work()
        assert [take(heir) for _ in range(4)] == [*(index for index, _ in batches), None]
        assert [Descriptors(arena).output(index) for index, _ in batches[:2]] == outputs
        for index, data in batches:
            publish_raw(arena, index)
            assert deliver(arena, index) == data
        _check_all_free(arena)


def test_recovering_a_worker_that_held_nothing_changes_nothing() -> None:
    with small_arena() as arena:
        coordinator, alive = SealingCoordinator(arena), Admission(arena, 1)
        index, data = _sealed(coordinator, b"x" * 100)
        assert take(alive) == index
        before = bytes(arena.view)
        assert Admission(arena, SUPERVISOR).recover(0) == 0
        assert bytes(arena.view) == before
        publish_raw(arena, index)
        assert deliver(arena, index) == data


def test_a_worker_that_died_after_it_published_leaves_no_slab_behind() -> None:
    with small_arena() as arena:
        coordinator, dead = SealingCoordinator(arena), Admission(arena, 0)
        index, data = _sealed(coordinator, b"x" * 100)
        assert take(dead) == index
        first = Descriptors(arena).sealed(index).first_slab
        publish_raw(arena, index)
        arena.slabs.mark(first, owned(SLAB_COMPRESSING, 0))  # as if it had not come to that
        assert Admission(arena, SUPERVISOR).recover(0) == 0
        assert deliver(arena, index) == data
        _check_all_free(arena)


def test_a_reused_descriptor_is_not_taken_in_the_place_of_its_former_batch() -> None:
    with small_arena(slabs=8, outputs=8, batches=2) as arena:
        coordinator, heir = SealingCoordinator(arena), Admission(arena, 1)
        first, _ = _sealed(coordinator, b"a")
        second, _ = _sealed(coordinator, b"b")
        # Its admitter died just before it moved the head on; another worker adopted and published it.
        life = Life()
        dead = Admission(arena, 0)
        make_mortal(dead, arena, life)
        life.left = _changes_of_take() - 1
        with pytest.raises(Killed):
            dead.take()
        assert arena.seal_head == 0
        assert Admission(arena, SUPERVISOR).recover(0) == 1
        assert take(heir) == first
        publish_raw(arena, first)
        deliver(arena, first)
        third, data = _sealed(coordinator, b"c")
        assert third == first
        assert take(heir) == second, "seal order"
        assert take(heir) == third
        publish_raw(arena, third)
        assert deliver(arena, third) == data


def _changes_of_take() -> int:
    """How many changes it takes to be admitted to a batch of one slab."""
    with small_arena() as arena:
        _sealed(SealingCoordinator(arena), b"a")
        life, admission = Life(), Admission(arena, 0)
        make_mortal(admission, arena, life)
        admission.take()
        return life.made


def test_the_lock_excludes_other_processes_until_its_holder_lets_go_or_dies() -> None:
    with small_arena() as arena:

        def try_lock() -> None:
            mode = fcntl.LOCK_EX | fcntl.LOCK_NB
            fcntl.lockf(arena.descriptor, mode, 1, at.ADMISSION_LOCK_BYTE, os.SEEK_SET)
            fcntl.lockf(arena.descriptor, fcntl.LOCK_UN, 1, at.ADMISSION_LOCK_BYTE, os.SEEK_SET)

        for killed in (False, True):
            with lock_holder(arena) as child:
                # Readers would share a lock that is not exclusive.
                with pytest.raises(BlockingIOError):
                    fcntl.lockf(
                        arena.descriptor,
                        fcntl.LOCK_SH | fcntl.LOCK_NB,
                        1,
                        at.ADMISSION_LOCK_BYTE,
                        os.SEEK_SET,
                    )
                if killed:
                    child.kill()
                else:
                    child.communicate()
                child.wait(CHILD_TIMEOUT_S)
            try_lock()


def test_recovery_does_not_wait_for_a_process_that_holds_the_lock_and_was_stopped() -> None:
    with small_arena() as arena:
        _sealed(SealingCoordinator(arena), b"x")
        dead, supervisor = Admission(arena, 1), Admission(arena, SUPERVISOR)
        assert dead.take() is not None
        with lock_holder(arena) as child:
            child.send_signal(signal.SIGSTOP)
            assert supervisor.recover(1) is None
            child.kill()
        assert supervisor.recover(1) == 1


# --- death at every step ------------------------------------------------------------------------------------


class _Scene:
    """Three sealed batches; worker 0 dies, worker 1 does all that is left to do."""

    def __init__(self, arena: Arena, compression_type: str) -> None:
        self.arena = arena
        self.coordinator = SealingCoordinator(arena)
        self.control = Control.create(2)
        self.compression_type = compression_type
        self.expected = [_sealed(self.coordinator, bytes([65 + n]) * 150)[1] for n in range(3)]
        self.delivered: dict[int, tuple[bytes, int]] = {}

    def compressor(self, worker: int, life: Life | None = None) -> Compressor:
        codec = make_codec(self.compression_type, None, 1024)
        made = Compressor(self.arena, codec, worker, self.control)
        if life is not None:
            make_mortal_worker(made, self.arena, life)
        return made

    def send_ready(self) -> None:
        """Deliver what is READY; each batch once."""
        descriptors = Descriptors(self.arena)
        for index in self.arena.batch_states.find_all(READY):
            number = descriptors.seal_number(index)
            assert number not in self.delivered, "a batch was taken twice"
            codec = descriptors.output(index).codec
            self.delivered[number] = deliver(self.arena, index), codec

    def finish(self) -> None:
        """Worker 1 and the network process go on until nothing is left."""
        worker = self.compressor(1)
        while worker.work():
            self.send_ready()
        self.send_ready()
        found = [self.delivered[number] for number in sorted(self.delivered)]
        assert [_decompress(codec, payload) for payload, codec in found] == self.expected
        _check_all_free(self.arena)
        assert self.arena.memory.load_u64(at.ORPHANS_AT) == 0


def _decompress(codec: int, payload: bytes) -> bytes:
    from tests.support.reference_batch import decompress

    return decompress(codec, payload)


@contextlib.contextmanager
def _scene(compression_type: str) -> Iterator[_Scene]:
    with small_arena(slabs=12, outputs=12) as arena:
        scene = _Scene(arena, compression_type)
        try:
            yield scene
        finally:
            scene.control.close()


def _work(compressor: Compressor) -> None:
    compressor.work()


def _take(compressor: Compressor) -> None:
    compressor.admission.take()


@pytest.mark.parametrize("compression_type", ["none", "gzip"])
@pytest.mark.parametrize("doing", [_take, _work], ids=["taking", "compressing"])
@pytest.mark.parametrize("adopting", [False, True], ids=["admitted", "adopted"])
def test_a_worker_that_dies_before_any_of_its_changes_loses_and_doubles_nothing(
    doing: Callable[[Compressor], None], compression_type: str, adopting: bool
) -> None:
    died, step = True, 0
    while died:
        with _scene(compression_type) as scene:
            if adopting:
                scene.compressor(1).admission.take()
                Admission(scene.arena, SUPERVISOR).recover(1)
            died = False
            try:
                doing(scene.compressor(0, Life(step)))
            except Killed:
                died = True
            where = f"died before change {step}"
            scene.send_ready()  # the network process is quick
            Admission(scene.arena, SUPERVISOR).recover(0)
            scene.coordinator.scribble_on_free_slabs()  # and so is the coordinator
            try:
                scene.finish()
            except (AssertionError, ValueError, IndexError) as error:
                raise AssertionError(where) from error
        step += 1
    assert step > 5


def test_a_second_death_during_the_adoption_loses_nothing() -> None:
    for first in range(4, 30):
        for second in range(0, 30, 3):
            with _scene("gzip") as scene:
                for worker, life in ((0, first), (0, second), (1, second)):
                    with contextlib.suppress(Killed):
                        scene.compressor(worker, Life(life)).work()
                    scene.send_ready()
                    Admission(scene.arena, SUPERVISOR).recover(worker)
                    scene.coordinator.scribble_on_free_slabs()
                scene.finish()


# --- against a model ----------------------------------------------------------------------------------------

WORKERS = 3


class AdmissionAgainstAModel(RuleBasedStateMachine):
    """Random seals, takes, publications, deliveries and deaths, against lists."""

    def __init__(self) -> None:
        super().__init__()
        self._open = contextlib.ExitStack()
        self.arena = self._open.enter_context(small_arena(slabs=8, outputs=6))
        self.coordinator = SealingCoordinator(self.arena)
        self.supervisor = Admission(self.arena, SUPERVISOR)
        self.queue: list[tuple[int, bytes]] = []
        self.orphans: list[tuple[int, bytes]] = []
        self.held: dict[int, list[tuple[int, bytes]]] = {worker: [] for worker in range(WORKERS)}
        self.ready: list[tuple[int, bytes]] = []

    def teardown(self) -> None:
        self._open.close()

    @rule(size=st.integers(0, 250), byte=st.integers(0, 255))
    def seal(self, size: int, byte: int) -> None:
        sealed = self.coordinator.seal(bytes([byte]) * size)
        if sealed is not None:
            self.queue.append(sealed)

    @rule(worker=st.integers(0, WORKERS - 1))
    def take(self, worker: int) -> None:
        waiting = self.orphans or self.queue
        needed = -(-len(waiting[0][1]) // 64) if waiting else 0
        may = bool(self.orphans) or (bool(self.queue) and needed <= self.arena.outputs.count_free())
        admission = Admission(self.arena, worker)
        taken = take(admission)
        if may:
            assert taken == waiting[0][0]
            self.held[worker].append(waiting.pop(0))
        else:
            assert taken is None
            assert not admission.has_work(), "a worker would not sleep though there is nothing for it"

    @rule(worker=st.integers(0, WORKERS - 1), life=st.integers(0, 16), is_quick=st.booleans())
    def take_and_die(self, worker: int, life: int, is_quick: bool) -> None:
        admission = Admission(self.arena, worker)
        make_mortal(admission, self.arena, Life(life))
        waiting = self.orphans or self.queue
        try:
            taken = take(admission)
        except Killed:
            taken = None
        if taken is not None:
            assert taken == waiting[0][0]
            self.held[worker].append(waiting.pop(0))
        elif self.queue and self.arena.batch_states.load(self.queue[0][0]) == COMPRESSING:
            self.held[worker].append(self.queue.pop(0))
        elif self.orphans and Descriptors(self.arena).worker(self.orphans[0][0]) == worker:
            self.held[worker].append(self.orphans.pop(0))
        if is_quick:
            self.publish(worker)
        self._bury(worker)

    @rule(worker=st.integers(0, WORKERS - 1))
    def die(self, worker: int) -> None:
        self._bury(worker)

    def _bury(self, worker: int) -> None:
        numbers = Descriptors(self.arena)
        self.orphans = sorted(self.orphans + self.held[worker], key=lambda batch: numbers.seal_number(batch[0]))
        self.held[worker] = []
        assert self.supervisor.recover(worker) == len(self.orphans)
        self.coordinator.scribble_on_free_slabs()

    @rule(worker=st.integers(0, WORKERS - 1))
    def publish(self, worker: int) -> None:
        if self.held[worker]:
            batch = self.held[worker].pop()
            publish_raw(self.arena, batch[0])
            self.ready.append(batch)

    @precondition(lambda self: self.ready)
    @rule(data=st.data())
    def deliver(self, data: Any) -> None:
        index, expected = self.ready.pop(data.draw(st.integers(0, len(self.ready) - 1)))
        assert deliver(self.arena, index) == expected

    @invariant()
    def everything_is_somewhere_once(self) -> None:
        arena, descriptors = self.arena, Descriptors(self.arena)
        held = [batch for batches in self.held.values() for batch in batches]
        compressing = [index for index, _ in [*held, *self.orphans]]
        assert sorted(arena.batch_states.find_all(SEALED)) == sorted(index for index, _ in self.queue)
        assert sorted(arena.batch_states.find_all(COMPRESSING)) == sorted(compressing)
        assert sorted(arena.batch_states.find_all(READY)) == sorted(index for index, _ in self.ready)
        holders = [index for index, _ in [*self.queue, *held, *self.orphans]]
        slabs = [block for index in holders for block in arena.slabs.chain(descriptors.sealed(index).first_slab)]
        outputs = [
            block
            for index in [*compressing, *(index for index, _ in self.ready)]
            for block in arena.outputs.chain(descriptors.output(index).first_output)
        ]
        for blocks, states in ((slabs, arena.slab_states), (outputs, arena.output_states)):
            assert len(set(blocks)) == len(blocks)
            used = [block for block in range(states.count) if states.load(block) & STATE_MASK != FREE]
            assert sorted(blocks) == used


AdmissionAgainstAModel.TestCase.settings = settings(max_examples=80, stateful_step_count=40)
TestAdmissionAgainstAModel = AdmissionAgainstAModel.TestCase


# --- two processes, killed ----------------------------------------------------------------------------------

_WORKER = """
import sys
from slabpress.shm.handover import Grant, Child, ArenaGrant
from slabpress.shm.control import FIRST_WORKER
from slabpress.workers.worker import Worker
arena, control, parent, worker, *ends = map(int, sys.argv[1:])
bells = list(zip(ends[::2], ends[1::2]))
settings = {"compression_type": "gzip", "compression_level": 1, "largest_batch_bytes": 4096}
child = Child(Grant(FIRST_WORKER + worker, control, bells, parent, -1, {}, [ArenaGrant(0, arena, settings)]))
worker = Worker(child)
worker.follow_changes()
child.running()
while not child.control.stopping:
    if not worker.work() and not worker.sleep():
        break
"""


class _Workshop:
    """Two worker processes on one arena, with this process as coordinator, network process and supervisor."""

    def __init__(self, arena: Arena, control: Control, parent: int) -> None:
        self.arena = arena
        self.control = control
        self.parent = parent
        self.workers = [self.start(worker) for worker in range(2)]

    def start(self, worker: int) -> subprocess.Popen[bytes]:
        ends = [end for bell in self.control.bells for end in bell.descriptors]
        numbers = [self.arena.descriptor, self.control.descriptor, self.parent, worker, *ends]
        return subprocess.Popen(
            [sys.executable, "-c", _WORKER, *map(str, numbers)],
            pass_fds={self.arena.descriptor, self.control.descriptor, self.parent, *ends},
            cwd=PROJECT,
        )

    def kill(self, worker: int) -> None:
        self.workers[worker].send_signal(signal.SIGKILL)
        self.workers[worker].wait(CHILD_TIMEOUT_S)
        self.control.get_up(2 + worker)
        Admission(self.arena, SUPERVISOR).recover(worker)
        self.control.wake_one_worker()
        self.workers[worker] = self.start(worker)

    def end(self) -> None:
        self.control.stop()
        for worker in self.workers:
            worker.wait(CHILD_TIMEOUT_S)


def test_two_processes_that_are_killed_at_random_lose_and_double_no_batch() -> None:
    rng, batches, kills = random.Random(os.environ.get("CI") or 7), 1500, 20
    parent = os.pidfd_open(os.getpid())
    control = Control.create(2)
    with small_arena(slab_bytes=512, slabs=24, outputs=16) as arena:
        coordinator, descriptors = SealingCoordinator(arena), Descriptors(arena)
        workshop = _Workshop(arena, control, parent)
        try:
            expected: dict[int, bytes] = {}
            delivered: set[int] = set()
            kill_at = sorted(rng.sample(range(batches), kills))
            control.lie_down(NETWORK)
            while len(delivered) < batches:
                while arena.seal_tail < batches:
                    sealed = coordinator.seal(rng.randbytes(8) * rng.randrange(300))
                    if sealed is None:
                        break
                    expected[arena.seal_tail] = sealed[1]
                    control.wake_one_worker()
                ready = arena.batch_states.find_all(READY)
                for index in ready:
                    number, codec = descriptors.seal_number(index), descriptors.output(index).codec
                    assert number not in delivered, "a batch was taken twice"
                    assert _decompress(codec, deliver(arena, index)) == expected.pop(number)
                    delivered.add(number)
                    control.wake_one_worker()
                if kill_at and len(delivered) >= kill_at[0]:
                    kill_at.pop(0)
                    workshop.kill(rng.randrange(2))
                if not ready:
                    control.bells[NETWORK].wait(0.5)
            assert not expected
            workshop.end()
            _check_all_free(arena)
            assert arena.memory.load_u64(at.ORPHANS_AT) == 0
            assert arena.outputs.claim(16, 1) != NONE
        finally:
            for worker in workshop.workers:
                worker.kill()
                worker.wait()
            os.close(parent)
            control.close()
