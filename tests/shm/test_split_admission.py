"""Admission with pieces of split batches: who comes first, who leaves room for whom, and that nothing stands still."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slabpress.config import Config
from slabpress.errors import ConfigError
from slabpress.plan import plan_memory
from slabpress.shm import layout as at
from slabpress.shm.admission import Admission
from slabpress.shm.states import COMPRESSING, OUTPUT_FILLING, OUTPUT_FREE, OVERSIZE, SEALED, SLAB_OPEN, owned
from tests.shm.kit import finish, open_batch, publish_seal, take
from tests.support.limited_broker import HEADER_BYTES
from tests.support.split_bench import SplitBench, numbered, split_bench

SUPERVISOR: Final = 0xFFFE
# Two of the records below, with their 8 bytes of overhead or so.
LIMIT: Final = HEADER_BYTES + 60
# Batches of so many records take three output buffers, and no batch of several takes more.
RECORDS: Final = 6
SPLIT_OUTPUTS: Final = 3


@pytest.fixture
def bench() -> Iterator[SplitBench]:
    with split_bench(LIMIT, workers=2, split_outputs=SPLIT_OUTPUTS, slabs=40, outputs=12) as made:
        yield made


def seal(bench: SplitBench, partition: int, records: int = RECORDS) -> int:
    index = bench.seal(numbered(records, 20), partition)
    assert index is not None
    return index


def refuse(bench: SplitBench, *partitions: int) -> list[int]:
    """Have the batches at the heads of these partitions refused, in this order; their descriptors."""
    bench.network.follow()
    found = []
    for partition in partitions:
        [batch] = [batch for batch in bench.network.heads() if batch.queue.number == partition]
        bench.network.answer(batch, bench.network.send(batch))
        assert bench.arena.batch_states.load(batch.index) == OVERSIZE
        found.append(batch.index)
    return found


def test_pieces_go_before_what_is_sealed_in_the_order_of_their_batches_seals(bench: SplitBench) -> None:
    worker, admission = bench.workers[0], bench.workers[0].admission
    gone, first = seal(bench, 2, records=1), seal(bench, 0)
    assert worker.work()
    assert worker.work()
    bench.network.follow()
    [batch] = [batch for batch in bench.network.heads() if batch.index == gone]
    bench.network.answer(batch, bench.network.send(batch))
    bench.take_results()
    second = seal(bench, 1)
    assert second < first, "descriptors are in another order"
    assert worker.work()
    behind = seal(bench, 2, records=1)
    assert refuse(bench, 1, 0) == [second, first], "whatever the order in which they were refused"
    for _ in range(2):  # of three records each, and then of one
        for index in (first, second):
            assert admission.has_work()
            assert take(admission) == index
        assert not admission.has_work()
        assert take(admission) is None
        for index in (first, second):
            finish(worker, index)
        for batch in bench.network.heads():
            bench.network.answer(batch, bench.network.send(batch))
        assert bench.arena.batch_states.load(behind) == SEALED
    bench.run()
    bench.check_told()


def test_an_orphan_goes_before_any_piece(bench: SplitBench) -> None:
    bench_worker, dead = bench.workers
    split = seal(bench, 0)
    bench_worker.work()
    orphan = seal(bench, 1)
    assert take(dead.admission) == orphan
    refuse(bench, 0)
    assert Admission(bench.arena, SUPERVISOR).recover(1) == 1
    assert [take(bench_worker.admission), take(bench_worker.admission)] == [orphan, split]


def test_after_a_stale_count_of_orphans_a_piece_is_still_taken_first(bench: SplitBench) -> None:
    """Its adopter died before it had counted the orphan off, and the batch was taken again and published."""
    split = seal(bench, 0)
    bench.workers[0].work()
    seal(bench, 1, records=1)
    refuse(bench, 0)
    bench.arena.memory.store_u64(at.ORPHANS_AT, 1)
    assert bench.workers[0].admission.has_work()
    assert take(bench.workers[0].admission) == split
    assert bench.arena.memory.load_u64(at.ORPHANS_AT) == 0


def test_a_piece_has_the_room_of_its_whole_batch_and_no_slabs(bench: SplitBench) -> None:
    index = seal(bench, 0)
    bench.workers[0].work()
    source = bench.descriptors.output(index)
    refuse(bench, 0)
    bench.coordinator.scribble_on_free_slabs()
    held = [seal(bench, partition, records=1) for partition in (1, 2)]  # in the slabs that it had
    assert take(bench.workers[1].admission) == index
    output = bench.descriptors.output(index)
    chain = bench.arena.outputs.chain(output.first_output)
    assert len(chain) == output.output_count == -(-bench.descriptors.sealed(index).raw_bytes // 64) == SPLIT_OUTPUTS
    assert {bench.arena.output_states.load(block) for block in chain} == {owned(OUTPUT_FILLING, 1)}
    assert not set(chain) & set(bench.arena.outputs.chain(source.first_output))
    assert (output.payload_bytes, output.codec, bench.descriptors.worker(index)) == (0, 0, 1)
    assert bench.splits.get(index).source == source.first_output
    assert [bench.arena.batch_states.load(other) for other in (index, *held)] == [COMPRESSING, SEALED, SEALED]
    bench.check_conservation()


def test_ordinary_batches_leave_the_room_of_a_piece_and_pieces_take_it(bench: SplitBench) -> None:
    worker, admission = bench.workers[0], bench.workers[0].admission
    oversize = seal(bench, 0)
    worker.work()
    for _ in range(12):
        seal(bench, 0, records=1)
    while worker.work():
        pass
    arena = bench.arena
    assert arena.outputs.count_free() == SPLIT_OUTPUTS
    assert arena.seal_head < arena.seal_tail
    assert not admission.has_work()
    refuse(bench, 0)
    assert admission.has_work()
    assert take(admission) == oversize
    assert arena.outputs.count_free() == 0


def test_a_piece_that_has_no_room_holds_up_nobody_behind_it() -> None:
    """With fewer buffers left free than it needs: not what a plan makes, but nobody must spin or starve."""
    with split_bench(LIMIT, split_outputs=1, slabs=40, outputs=7) as bench:
        seal(bench, 0)
        bench.workers[0].work()
        waiting = [seal(bench, 1, records=1) for _ in range(3)]
        refuse(bench, 0)
        assert bench.workers[0].work()  # the piece, of two buffers
        assert bench.workers[0].work()
        assert not bench.workers[0].admission.has_work()
        assert not bench.workers[0].work()
        assert bench.arena.batch_states.find_all(SEALED) == waiting[1:]
        bench.run()
        bench.check_told()
        bench.check_all_free()


@pytest.mark.parametrize("split_outputs", [SPLIT_OUTPUTS, 0])
@pytest.mark.parametrize("partitions", [1, 2])
def test_nothing_stands_still_when_all_outputs_are_held_behind_oversize_batches(
    split_outputs: int, partitions: int
) -> None:
    """And without the buffers that are left free it would."""
    with split_bench(LIMIT, split_outputs=split_outputs, slabs=60, outputs=12, partitions=4) as bench:
        for _ in range(2):
            for partition in range(partitions):
                seal(bench, partition)
        for number in range(30):
            seal(bench, number % partitions, records=1)
        while bench.workers[0].work():
            pass
        free = bench.arena.outputs.count_free()
        assert free == split_outputs
        bench.run(checking=True)
        if not split_outputs:
            assert bench.arena.batch_states.find(OVERSIZE) >= 0
            assert not bench.told
            return
        bench.check_told()
        bench.check_all_free()
        for partition in range(partitions):
            log = bench.broker.values(partition)
            assert log == [
                value
                for number, values in sorted(bench.sealed.items())
                for value in values
                if bench.partition_of[number] == partition
            ]


# --- direct arenas: only pieces are admitted ----------------------------------------------------------------


@pytest.fixture
def direct() -> Iterator[SplitBench]:
    """Room for one piece, and slabs for many batches."""
    with split_bench(LIMIT, workers=2, slabs=40, outputs=SPLIT_OUTPUTS, direct=True) as made:
        yield made


def test_a_batch_of_a_direct_arena_is_never_admitted_and_its_pieces_are(direct: SplitBench) -> None:
    admission = direct.workers[0].admission
    first, second = seal(direct, 0), seal(direct, 1)
    assert (admission.has_work(), take(admission)) == (False, None)
    source = direct.arena.outputs.chain(direct.descriptors.output(first).first_output)
    assert refuse(direct, 1, 0) == [second, first]
    direct.check_conservation()
    assert take(admission) == first
    chain = direct.arena.outputs.chain(direct.descriptors.output(first).first_output)
    assert {direct.arena.payload_states.load(block) for block in chain} == {owned(OUTPUT_FILLING, 0)}
    assert all(block >= direct.arena.geometry.slab_count for block in chain), "a piece is in output buffers"
    assert direct.splits.get(first).source == source[0]
    # One piece at a time: the next has its room when this one has its result.
    assert (direct.workers[1].admission.has_work(), take(direct.workers[1].admission)) == (False, None)
    finish(direct.workers[0], first)
    direct.check_conservation()
    direct.run(checking=True)
    direct.check_told()
    direct.check_all_free()


@pytest.mark.parametrize("kind", [False, True], ids=["compressing", "direct"])
def test_a_dead_workers_piece_keeps_its_room_and_open_slabs_stay_open(kind: bool) -> None:
    """Chains of a direct arena begin to count at the slabs; an OPEN one has the word of what worker 0 fills."""
    with split_bench(LIMIT, workers=2, split_outputs=SPLIT_OUTPUTS, slabs=40, outputs=12, direct=kind) as bench:
        index = seal(bench, 0)
        bench.workers[0].work()
        refuse(bench, 0)
        still_open = open_batch(bench.arena, 9, 1)
        assert bench.coordinator.writer.append(still_open, None, b"x" * 100, None, 0) > 0
        assert take(bench.workers[0].admission) == index
        before = bench.arena.payload_states.tally(4)
        stray = bench.arena.outputs.claim(1, owned(OUTPUT_FILLING, 0))
        assert Admission(bench.arena, SUPERVISOR).recover(0) == 1
        assert bench.arena.payload_states.load(stray) == OUTPUT_FREE
        assert bench.arena.payload_states.tally(4) == before
        bench.check_conservation()
        assert {bench.arena.slab_states.load(slab) for slab in bench.arena.slabs.chain(still_open.first_slab)} == {
            SLAB_OPEN
        }
        publish_seal(bench.arena, bench.descriptors, still_open)
        bench.sealed[2], bench.partition_of[2] = [b"x" * 100], 1
        bench.broker.limit = 1 << 20
        bench.run(checking=True)
        bench.check_told()
        bench.check_all_free()


@pytest.mark.parametrize("partitions", [1, 2])
def test_nothing_stands_still_when_all_slabs_are_held_behind_oversize_batches(
    direct: SplitBench, partitions: int
) -> None:
    number = 0
    while direct.seal(numbered(RECORDS, 20), number % partitions) is not None:
        number += 1
    assert number > 10
    direct.run(checking=True)
    direct.check_told()
    direct.check_all_free()
    for partition in range(partitions):
        values = [direct.sealed[seal] for seal in sorted(direct.sealed) if direct.partition_of[seal] == partition]
        assert direct.broker.values(partition) == [value for batch in values for value in batch]


@given(
    memory=st.integers(256 << 10, 64 << 20),
    share=st.none() | st.integers(4, 5000),
    settings=st.fixed_dictionaries(
        {},
        optional={
            "slab_size": st.sampled_from([1 << power for power in range(10, 18)]),
            "max_request_size": st.integers(1024, 32 << 20),
        },
    ),
)
def test_a_plan_has_room_for_a_piece_of_any_batch_beside_the_largest_record(
    memory: int, share: int | None, settings: Any
) -> None:
    if share is not None:
        settings = settings | {"batch_size": memory // share}
    try:
        plan = plan_memory(Config.of("a:1", buffer_memory=memory, **({"compression_type": "lz4"} | settings)))
    except ConfigError:
        return
    geometry = plan.geometry
    assert geometry.split_outputs * geometry.output_bytes >= plan.batch_bytes
    rest = (geometry.output_count - geometry.split_outputs) * geometry.output_bytes
    assert rest >= max(plan.batch_bytes, plan.largest_record_bytes)
