"""Open batches, with a clock of the test's own: when they are sealed, in which order, and where records go next."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slabpress.pipeline.batch import Batch
from slabpress.pipeline.topics import Topic
from slabpress.shm import layout as at
from slabpress.shm.control import COORDINATOR, FIRST_WORKER, NETWORK
from slabpress.shm.descriptors import CODEC_NONE, Descriptors
from slabpress.shm.states import (
    DONE,
    FREE,
    OPEN,
    READY,
    REPORTING,
    SEALED,
    SLAB_OPEN,
    SLAB_READY,
    SLAB_SEALED,
)
from tests.pipeline.instant import Parts, open_with_a_record, parts

MS = 1_000_000


def test_a_batch_lingers_from_its_opening_and_not_from_its_last_record() -> None:
    with parts(linger_ms=5) as rig:
        topic = rig.topic("t", 3)
        assert rig.accumulator.next_linger_ns() is None
        first, second = open_with_a_record(rig, topic, 0, 10 * MS), open_with_a_record(rig, topic, 1, 12 * MS)
        assert rig.accumulator.next_linger_ns() == 15 * MS
        rig.accumulator.writer.append(first, None, b"later", None, 0)
        rig.accumulator.seal_lingering(15 * MS - 1)
        assert rig.sealed() == []
        rig.accumulator.seal_lingering(15 * MS)
        assert rig.sealed() == [first.descriptor]
        assert topic.open == [None, second, None]
        assert rig.accumulator.next_linger_ns() == 17 * MS
        rig.accumulator.seal_lingering(1000 * MS)
        assert rig.sealed() == [first.descriptor, second.descriptor]
        assert rig.accumulator.next_linger_ns() is None


def _held_behind_two(rig: Parts, topic: Topic) -> Batch:
    """A batch that has lingered while two of its partition are on their way."""
    for _ in range(2):
        rig.accumulator.seal(open_with_a_record(rig, topic, 0))
    held = open_with_a_record(rig, topic, 0, 0)
    rig.accumulator.seal_lingering(1000 * MS)
    return held


def test_a_batch_that_has_lingered_waits_while_enough_of_its_partition_is_on_its_way() -> None:
    with parts(linger_ms=5) as rig:
        topic = rig.topic("t", 2)
        held, free = _held_behind_two(rig, topic), open_with_a_record(rig, topic, 1, 0)
        rig.accumulator.seal_lingering(1000 * MS)
        assert topic.open == [held, None], "the other partition's batch does not wait"
        assert rig.sealed()[-1] == free.descriptor
        assert rig.accumulator.next_linger_ns() is None
        assert rig.accumulator.writer.append(held, None, b"more", None, 0) > 0
        assert rig.pipeline.deliver_one() is not None
        assert list(topic.open) == [held, None]
        assert len(rig.accumulator.take_done()) == 1
        assert list(topic.open) == [None, None]
        assert rig.sealed()[-1] == held.descriptor


@pytest.mark.parametrize("how", ["flushed", "under pressure"])
def test_a_batch_that_waits_behind_others_is_sealed_when(how: str) -> None:
    with parts(linger_ms=5) as rig:
        topic = rig.topic("t", 2)
        held = _held_behind_two(rig, topic)
        assert list(topic.open) == [held, None]
        if how == "flushed":
            rig.accumulator.seal_all()
        else:
            rig.pressure.relieve()
        assert list(topic.open) == [None, None]
        assert rig.sealed()[-1] == held.descriptor


def test_a_batch_that_is_opened_again_lingers_anew() -> None:
    with parts(linger_ms=5) as rig:
        topic = rig.topic("t", 2)
        first, other = open_with_a_record(rig, topic, 0, 0), open_with_a_record(rig, topic, 1, 1 * MS)
        rig.accumulator.seal(first)
        open_with_a_record(rig, topic, 0, 2 * MS)
        assert rig.accumulator.next_linger_ns() == 6 * MS
        rig.accumulator.seal_lingering(6 * MS)
        assert rig.sealed() == [first.descriptor, other.descriptor]


def test_sealing_gives_a_place_in_the_order_and_everything_that_comes_next_needs() -> None:
    with parts() as rig:
        topic = rig.topic("t", 3)
        batches = [open_with_a_record(rig, topic, partition, size=1500) for partition in range(3)]
        states = [rig.arena.slab_states.load(slab) for slab in rig.arena.slabs.chain(batches[0].first_slab)]
        assert states == [SLAB_OPEN, SLAB_OPEN]
        for batch in (batches[2], batches[0], batches[1]):
            rig.accumulator.seal(batch)
        assert rig.sealed() == [batches[2].descriptor, batches[0].descriptor, batches[1].descriptor]
        assert [batch.seal_number for batch in batches] == [2, 3, 1]
        assert topic.open == [None] * 3
        assert len(rig.accumulator.all_open()) == 0
        for batch in batches:
            assert rig.arena.batch_states.load(batch.descriptor) == (READY if rig.arena.is_direct else SEALED)
            assert Descriptors(rig.arena).seal_number(batch.descriptor) == batch.seal_number
            slabs = rig.arena.slabs.chain(batch.first_slab)
            state = SLAB_READY if rig.arena.is_direct else SLAB_SEALED
            assert [rig.arena.slab_states.load(slab) for slab in slabs] == [state] * 2
            said = Descriptors(rig.arena).sealed(batch.descriptor)
            assert said.raw_bytes == batch.bytes
            if rig.arena.is_direct:
                output = Descriptors(rig.arena).output(batch.descriptor)
                assert output == (batch.first_slab, 2, batch.bytes, CODEC_NONE)
            assert rig.table.partition(said.partition_index) == (topic.index, batch.partition)
        counters = [rig.arena.memory.load_u64(at.COORDINATOR_COUNTERS_AT + 8 * place) for place in range(3)]
        assert counters == [3, sum(batch.bytes for batch in batches), 3]


def test_sealing_wakes_who_sleeps_and_is_next() -> None:
    with parts() as rig:
        slot, other = (NETWORK, FIRST_WORKER) if rig.arena.is_direct else (FIRST_WORKER, NETWORK)
        for each in (slot, other):
            rig.control.lie_down(each)
        rig.accumulator.seal(open_with_a_record(rig, rig.topic("t", 1), 0))
        bells = [rig.control.bells[each].fileno() for each in (slot, other)]
        assert rig.control.bells[COORDINATOR].wait(0, bells) == bells[:1]


def test_sealing_wakes_no_worker_while_one_has_promised_to_be_back_soon() -> None:
    with parts(compression_type="lz4") as rig:
        rig.control.lie_down(FIRST_WORKER)
        bell = rig.control.bells[FIRST_WORKER].fileno()
        topic = rig.topic("t", 1)
        rig.arena.promises.promise(1, 1)
        rig.accumulator.seal(open_with_a_record(rig, topic, 0))
        assert rig.control.bells[COORDINATOR].wait(0, [bell]) == []
        rig.arena.memory.store_u64(at.SEAL_HEAD_AT, 1)  # it was admitted to that one
        rig.accumulator.seal(open_with_a_record(rig, topic, 0))
        assert rig.control.bells[COORDINATOR].wait(0, [bell]) == [bell]
        rig.control.bells[FIRST_WORKER].drain()
        rig.accumulator.seal(open_with_a_record(rig, topic, 0))  # behind one that waits
        assert rig.control.bells[COORDINATOR].wait(0, [bell]) == []


def test_a_batch_without_a_record_is_given_back_and_not_sealed() -> None:
    with parts() as rig:
        topic = rig.topic("t", 1)
        index = rig.registry.partition_index(topic, 0)
        batch = rig.accumulator.open_batch(topic, 0, index, 0)
        assert batch is not None
        assert rig.arena.batch_states.load(batch.descriptor) == OPEN
        rig.accumulator.seal(batch)
        assert rig.arena.batch_states.load(batch.descriptor) == FREE
        assert rig.arena.seal_tail == 0
        assert rig.accumulator.batches == [None] * rig.arena.geometry.batch_count


def test_no_descriptor_free_means_no_batch() -> None:
    with parts() as rig:
        topic = rig.topic("t", 1)
        for descriptor in range(1, rig.arena.geometry.batch_count):
            rig.arena.batch_states.store(descriptor, DONE)
        batch = open_with_a_record(rig, topic, 0)
        assert batch.descriptor == 0
        topic.open[0] = None
        assert rig.accumulator.open_batch(topic, 0, 0, 0) is None
        rig.arena.batch_states.store(7, FREE)
        again = rig.accumulator.open_batch(topic, 0, 0, 0)
        assert again is not None
        assert again.descriptor == 7


def test_keyless_records_move_to_another_partition_when_their_batch_is_sealed() -> None:
    with parts(max_topic_partitions=64) as rig:
        topic = rig.topic("t", 4)
        seen = set()
        for _ in range(60):
            before = topic.sticky
            rig.accumulator.seal(open_with_a_record(rig, topic, before))
            assert topic.sticky != before
            seen.add(topic.sticky)
            if rig.arena.slabs.count_free() < 2:
                while rig.pipeline.deliver_one():
                    pass
                for batch in rig.accumulator.take_done():
                    rig.accumulator.release(batch)
        assert seen == {0, 1, 2, 3}


def test_keyless_records_stay_while_another_partitions_batch_is_sealed() -> None:
    with parts() as rig:
        topic = rig.topic("t", 4)
        other = (topic.sticky + 1) % 4
        before = topic.sticky
        rig.accumulator.seal(open_with_a_record(rig, topic, other))
        assert topic.sticky == before


def test_a_topic_of_one_partition_has_nowhere_else_to_stick() -> None:
    topic = Topic("t", 0)
    topic.grow(1)
    topic.stick_elsewhere(random.Random(1))
    assert topic.sticky == 0


def test_done_batches_are_taken_once_and_their_descriptors_kept_until_released() -> None:
    with parts() as rig:
        topic = rig.topic("t", 2)
        first, second = open_with_a_record(rig, topic, 0), open_with_a_record(rig, topic, 1)
        rig.accumulator.seal_all()
        assert rig.accumulator.unfinished() == [first, second]
        rig.arena.batch_states.store(second.descriptor, DONE)
        assert rig.accumulator.take_done() == [second]
        assert rig.accumulator.take_done() == []
        assert rig.arena.batch_states.load(second.descriptor) == REPORTING
        assert rig.accumulator.unfinished() == [first, second]
        rig.accumulator.release(second)
        assert rig.arena.batch_states.load(second.descriptor) == FREE
        assert rig.accumulator.unfinished() == [first]


def test_unfinished_batches_come_in_seal_order_and_open_ones_last() -> None:
    with parts() as rig:
        topic = rig.topic("t", 4)
        batches = [open_with_a_record(rig, topic, partition) for partition in range(4)]
        rig.accumulator.seal(batches[3])
        rig.accumulator.seal(batches[1])
        assert rig.accumulator.unfinished()[:2] == [batches[3], batches[1]]
        assert set(rig.accumulator.unfinished()[2:]) == {batches[0], batches[2]}
        assert len(rig.accumulator.all_open()) == 2


@settings(max_examples=30)
@given(st.lists(st.tuples(st.sampled_from("oosasdd"), st.integers(0, 3), st.integers(0, 900)), max_size=60))
def test_slabs_and_descriptors_are_conserved_and_order_is_kept(steps: list[tuple[str, int, int]]) -> None:
    with parts() as rig:
        topic, now = rig.topic("t", 4), 0
        for what, partition, size in steps:
            now += MS
            batch = topic.open[partition]
            if what == "o" and batch is None and rig.arena.slabs.count_free() > 1:
                open_with_a_record(rig, topic, partition, now, size)
            elif what == "s" and batch is not None:
                rig.accumulator.seal(batch)
            elif what == "a":
                rig.accumulator.seal_lingering(now)
            elif what == "d":
                rig.pipeline.deliver_one()
                for done in rig.accumulator.take_done():
                    rig.accumulator.release(done)
            _check_conservation(rig, topic)
        numbers = [Descriptors(rig.arena).seal_number(index) for index in rig.sealed()[-3:]]
        assert all(earlier < later for earlier, later in itertools.pairwise(numbers) if later)


def _check_conservation(rig: Parts, topic: Topic) -> None:
    open_batches = [batch for batch in topic.open if batch is not None]
    assert len(rig.accumulator.all_open()) <= len(open_batches), "some may be held behind what is under way"
    states = rig.arena.batch_states
    assert sorted(states.find_all(OPEN)) == sorted(batch.descriptor for batch in open_batches)
    tracked = [batch.descriptor for batch in rig.accumulator.batches if batch is not None]
    assert sorted(tracked) == [index for index in range(states.count) if states.load(index) != FREE]
    chains = [rig.arena.slabs.chain(batch.first_slab) for batch in open_batches]
    chains += [
        rig.arena.slabs.chain(Descriptors(rig.arena).sealed(index).first_slab)
        for state in (SEALED, READY)
        for index in states.find_all(state)
    ]
    slabs = [slab for chain in chains for slab in chain]
    assert len(set(slabs)) == len(slabs)
    assert rig.arena.slabs.count_free() == rig.arena.geometry.slab_count - len(slabs)
