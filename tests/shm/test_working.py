"""A worker's native steps, against the same steps one by one, and the lock that one of them is taken under."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slabpress._native import NONE, Task, WorkPoint
from slabpress.shm import layout as at
from slabpress.shm.admission import Admission
from slabpress.shm.arena import Arena
from slabpress.shm.descriptors import Descriptors, Output
from slabpress.shm.layout import WORKERS_MAX
from slabpress.shm.splits import Splits
from slabpress.shm.states import COMPRESSING, OUTPUT_FILLING, OUTPUT_READY, READY, SEALED, owned
from tests.shm.faults import Life, make_mortal
from tests.shm.kit import CHILD_TIMEOUT_S, SealingCoordinator, lock_holder, small_arena
from tests.support.kafka_install import wait_until

WORKER: Final = 3
BLOCK: Final = 64
BUSY_US_AT: Final = at.WORKER_COUNTERS_AT + WORKER * at.LINE_BYTES + 8 * at.WORKER_COUNTERS.index("busy_us")
_U32: Final = st.integers(0, NONE)


@pytest.fixture
def arena() -> Iterator[Arena]:
    """Two sealed batches, of 5 slabs and of 1."""
    with small_arena(slab_bytes=BLOCK, slabs=16) as made:
        coordinator = SealingCoordinator(made)
        for value in (b"x" * 280, b"y"):
            assert coordinator.seal(value) is not None
        yield made


def one_by_one(arena: Arena) -> Any:
    """What does the same as an Admission's ``point``, store by store."""
    admission = Admission(arena, WORKER)
    make_mortal(admission, arena, Life())
    assert type(admission.point) is not WorkPoint
    return admission.point


def what_it_leaves(arena: Arena, point: Any, act: Callable[[Any], object]) -> tuple[object, bytes]:
    """What a step returns, and the arena after it, which is taken back."""
    before = bytes(arena.view)
    returned = act(point)
    arena.memory.store_u64(BUSY_US_AT, 0)
    after = bytes(arena.view)
    arena.view[:] = before
    return told(returned) if isinstance(returned, Task) else returned, after


def told(task: Task) -> tuple[object, ...]:
    """All that a task says."""
    return (
        (task.index, task.raw_bytes, task.first_slab, task.first_output, task.output_count, task.payload_bytes),
        (task.deaths, task.source, b"".join(task.chunks)),
    )


def compare(arena: Arena, act: Callable[[Any], object]) -> None:
    """The native step and the single stores leave and return the same, and not nothing."""
    native = Admission(arena, WORKER).point
    assert type(native) is WorkPoint
    before = bytes(arena.view)
    left = what_it_leaves(arena, native, act)
    assert left == what_it_leaves(arena, one_by_one(arena), act)
    assert left[1] != before


def test_being_admitted_leaves_what_its_stores_one_by_one_leave(arena: Arena) -> None:
    compare(arena, lambda point: point.admit())
    assert Admission(arena, WORKER).take() is not None
    compare(arena, lambda point: point.admit())  # the other one, of one slab
    arena.memory.store_u64(at.SEAL_HEAD_AT, 0)


@pytest.mark.parametrize("payload", [b"p", b"p" * BLOCK, b"p" * (BLOCK + 1), b"p" * 4 * BLOCK, b"p" * 999])
def test_a_payload_is_copied_and_announced_as_its_stores_one_by_one_do_it(arena: Arena, payload: bytes) -> None:
    """The last one is not smaller than the batch, which is sent as it is."""
    task = Admission(arena, WORKER).take()
    assert task is not None
    raw = b"".join(task.chunks)
    expected, codec = (payload, 4) if len(payload) < len(raw) else (raw, 0)
    compare(arena, lambda point: point.fill(point.task(task.index), memoryview(payload), 4))
    point = Admission(arena, WORKER).point
    point.fill(task, payload, 4)
    output = Descriptors(arena).output(task.index)
    assert output == Output(task.first_output, -(-len(expected) // BLOCK), len(expected), codec)
    assert b"".join(arena.outputs.views(output.first_output, output.payload_bytes)) == expected


def test_an_output_is_announced_and_given_away_as_its_stores_one_by_one_do_it(arena: Arena) -> None:
    point = Admission(arena, WORKER).point
    task = point.admit()
    assert task is not None
    compare(arena, lambda point: point.finish(point.task(task.index), 999, 2 * BLOCK + 1, 2))
    point.finish(task, 999, 2 * BLOCK + 1, 2)
    for wanted in (0, 1, 1000):
        arena.memory.store_u64(at.ROOM_WANTED_AT, wanted)
        compare(arena, lambda point: point.publish(point.task(task.index)))
    assert arena.output_states.tally(2)[1] == 5, "the surplus is kept until the batch is given away"
    arena.memory.store_u64(at.ROOM_WANTED_AT, arena.slabs.count_free() + 5)
    assert point.publish(task)
    assert arena.outputs.count_free() == 16 - 3


def test_slabs_and_head_come_after_the_batchs_state(arena: Arena) -> None:
    """Here and below: what fails in the middle shows which stores came before."""
    point, slabs = Admission(arena, WORKER).point, arena.slabs.chain(Descriptors(arena).sealed(0).first_slab)
    _break_chain(arena, arena.layout.slab_nexts, slabs[2])
    with pytest.raises(ValueError, match=f"chain from block {slabs[0]} leaves the table"):
        point.admit()
    assert arena.batch_states.load(0) == COMPRESSING
    assert Descriptors(arena).worker(0) == WORKER
    assert len(arena.outputs.chain(Descriptors(arena).output(0).first_output)) == 5
    assert arena.seal_head == 0
    assert arena.admission_lock.acquire(blocking=False)
    arena.admission_lock.release()


def test_a_batch_is_ready_after_its_outputs_and_its_slabs_are_free_after_that(arena: Arena) -> None:
    point = Admission(arena, WORKER).point
    task = point.admit()
    assert task is not None
    slabs, outputs = arena.slabs.chain(task.first_slab), arena.outputs.chain(task.first_output)
    point.finish(task, task.raw_bytes, task.raw_bytes, 0)
    _break_chain(arena, arena.layout.output_nexts, outputs[4])
    with pytest.raises(ValueError, match="leaves the table"):
        point.publish(task)
    assert arena.batch_states.load(0) == COMPRESSING
    arena.memory.store_u32(arena.layout.output_nexts + 4 * outputs[4], NONE)
    _break_chain(arena, arena.layout.slab_nexts, slabs[4])
    with pytest.raises(ValueError, match="leaves the table"):
        point.publish(task)
    assert arena.batch_states.load(0) == READY
    assert {arena.output_states.load(block) for block in outputs} == {OUTPUT_READY}


def _break_chain(arena: Arena, nexts: int, block: int) -> None:
    arena.memory.store_u32(nexts + 4 * block, 1 << 30)


def test_all_of_a_worker_is_in_its_own_words() -> None:
    last = WORKERS_MAX - 1
    with small_arena() as arena:
        assert SealingCoordinator(arena).seal(b"x") is not None
        admission = Admission(arena, last)
        task = admission.take()
        assert task is not None
        assert arena.output_states.load(task.first_output) == owned(OUTPUT_FILLING, last)
        admission.point.fill(task, b"p", 1)
        counters = at.WORKER_COUNTERS_AT + last * at.LINE_BYTES
        found = {name: arena.memory.load_u64(counters + 8 * n) for n, name in enumerate(at.WORKER_COUNTERS)}
        found.pop("busy_us")
        assert found == {"batches": 1, "raw_bytes": task.raw_bytes, "compressed_bytes": 1, "sent_raw": 0}


@settings(max_examples=30)
@given(st.builds(Output, _U32, _U32, st.integers(1, NONE), _U32), st.integers(0, 3), st.booleans())
def test_a_task_is_what_the_single_reads_say(output: Output, deaths: int, is_split: bool) -> None:
    with small_arena() as arena:
        descriptors, sealed = Descriptors(arena), SealingCoordinator(arena).seal(b"v" * 100)
        assert sealed is not None
        index, data = sealed
        first_slab = descriptors.sealed(index).first_slab
        descriptors.set_output(index, output)
        for _ in range(deaths):
            descriptors.count_death(index)
        if is_split:
            Splits(arena).begin(index, 5, 70, 4, 1)
        slab, source = (NONE, 5) if is_split else (first_slab, NONE)
        task = Admission(arena, 0).point.task(index)
        first_output, count, payload_bytes, _ = output
        assert told(task) == ((index, len(data), slab, first_output, count, payload_bytes), (deaths, source, b""))


def test_a_task_says_how_long_it_will_take_unless_a_piece_has_to_be_cut_out(arena: Arena) -> None:
    point = Admission(arena, WORKER).point
    assert point.task(0).takes_ns == 0.0
    point.learn(3.0)
    assert point.task(0).takes_ns == 3.0 * point.task(0).raw_bytes
    Splits(arena).begin(0, 5, 70, 4, 1)
    assert point.task(0).takes_ns == 0.0


def test_an_index_that_no_batch_has_is_refused(arena: Arena) -> None:
    for index in (-1, arena.geometry.batch_count):
        with pytest.raises(IndexError, match=f"batch {index} of"):
            Admission(arena, WORKER).point.task(index)


def test_a_payload_that_has_no_room_in_its_chain_is_refused_and_not_announced(arena: Arena) -> None:
    point = Admission(arena, WORKER).point
    task = point.admit()
    assert task is not None
    arena.outputs.trim(task.first_output, 1)
    with pytest.raises(ValueError, match=f"chain from block {task.first_output} is 36 bytes short"):
        point.fill(task, b"p" * 100, 4)
    assert Descriptors(arena).output(task.index).payload_bytes == 0


def _waits_for_the_lock(arena: Arena) -> bool:
    """Whether somebody waits for a lock on the arena's file: a line with an arrow (proc_locks(5))."""
    inode = f":{Path(f'/proc/self/fd/{arena.descriptor}').stat().st_ino} "
    return any("->" in line and inode in line for line in Path("/proc/locks").read_text().splitlines())


@pytest.mark.timeout(CHILD_TIMEOUT_S)
@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="the system does not say who waits for a lock")
def test_a_batch_is_waited_for_while_another_process_holds_the_lock_and_others_go_on(arena: Arena) -> None:
    point, taken = Admission(arena, WORKER).point, []
    thread = threading.Thread(target=lambda: taken.append(point.admit()))
    with lock_holder(arena) as child:
        thread.start()
        # This thread comes here only because the other gave the interpreter away.
        wait_until(lambda: _waits_for_the_lock(arena), "somebody waits for the lock", CHILD_TIMEOUT_S)
        assert taken == []
        assert arena.batch_states.load(0) == SEALED
        child.communicate()
    thread.join()
    assert [task.index for task in taken if task] == [0]


def test_the_lock_of_an_arena_that_was_closed_is_refused() -> None:
    with small_arena() as arena:
        lock, admission = arena.admission_lock, Admission(arena, WORKER)
    for call in (lock.acquire, lock.release, admission.take):
        with pytest.raises(ValueError, match="the arena was released"):
            call()


def test_a_lock_that_the_system_refuses_is_an_error_that_names_the_byte(arena: Arena) -> None:
    from slabpress._native import RecordLock

    with pytest.raises(OSError, match=r"the record lock on byte 192: Bad file descriptor"):
        RecordLock(arena.memory, -1, 192).acquire()
