"""Little room: which batches are sealed for it, and when those who wait are called."""

from __future__ import annotations

import pytest

from slabpress.pipeline.batch import Batch
from slabpress.shm import layout as at
from slabpress.shm.states import SLAB_COMPRESSING, SLAB_OPEN, SLAB_SEALED
from tests.pipeline.instant import Parts, open_with_a_record, parts


def _fill(rig: Parts, count: int, sizes: list[int]) -> list[Batch]:
    topic = rig.topic("t", count)
    return [open_with_a_record(rig, topic, partition, partition, size) for partition, size in enumerate(sizes)]


def test_pressure_seals_the_fullest_batches_first() -> None:
    with parts(max_topic_partitions=64) as rig:
        batches = _fill(rig, 9, [10, 900, 20, 30, 800, 40, 50, 60, 70])
        rig.pressure.relieve()
        assert rig.sealed() == [batches[1].descriptor], "an eighth of nine, at least one"
        rig.pressure.relieve()
        assert rig.sealed() == [batches[1].descriptor, batches[4].descriptor]


def test_pressure_seals_an_eighth_at_a_time() -> None:
    with parts(max_topic_partitions=64) as rig:
        batches = _fill(rig, 16, list(range(100, 900, 50)))
        rig.pressure.relieve()
        assert rig.sealed() == [batches[15].descriptor, batches[14].descriptor]


@pytest.mark.parametrize("state", [SLAB_SEALED, SLAB_COMPRESSING | 3 << 8])
def test_pressure_seals_nothing_while_enough_is_on_its_way_to_a_worker(state: int) -> None:
    with parts(compression_type="lz4") as rig:
        _fill(rig, 2, [10, 20])
        quarter = rig.arena.geometry.slab_count // 4
        first = rig.arena.slabs.claim(quarter + 1, state)
        rig.pressure.relieve()
        assert rig.sealed() == []
        rig.arena.slabs.trim(first, quarter)
        rig.pressure.relieve()
        assert len(rig.sealed()) == 1


def test_while_much_is_on_its_way_little_room_is_not_worth_a_call() -> None:
    with parts() as rig:
        worth = rig.pressure.slabs_worth_a_call
        assert worth == rig.arena.geometry.slab_count // 16 == 1 or worth > 1
        topic = rig.topic("t", 1)
        assert not rig.pressure.is_more_room_coming(), "there is room"
        while rig.arena.slabs.count_free():
            rig.accumulator.seal(open_with_a_record(rig, topic, 0, size=900))
        assert rig.pressure.is_more_room_coming()
        while rig.arena.slabs.count_free() < worth:
            assert rig.pipeline.deliver_one() is not None
        assert not rig.pressure.is_more_room_coming()


def test_little_room_is_worth_a_call_where_no_more_is_coming() -> None:
    with parts() as rig:
        open_with_a_record(rig, rig.topic("t", 1), 0, size=900)
        rig.arena.slabs.claim(rig.arena.slabs.count_free(), SLAB_OPEN)
        assert rig.arena.slabs.count_free() == 0
        assert not rig.pressure.is_more_room_coming(), "all of it is in open batches, which somebody has to seal"


def test_pressure_seals_nothing_while_enough_waits_to_be_sent() -> None:
    with parts(compression_type="none") as rig:
        topic = rig.topic("t", 4)
        half = rig.arena.geometry.slab_count // 2
        for partition, slabs in enumerate((half - 3, 4)):
            rig.accumulator.seal(open_with_a_record(rig, topic, partition, size=1024 * slabs - 100))
        batch = open_with_a_record(rig, topic, 2)
        rig.pressure.relieve()
        assert len(rig.sealed()) == 2
        assert rig.pipeline.deliver_one() is not None
        rig.pressure.relieve()
        assert rig.sealed()[2:] == [batch.descriptor]


def test_slabs_that_wait_for_a_leader_with_its_share_are_on_their_way_nowhere() -> None:
    with parts(compression_type="none") as rig:
        topic = rig.topic("t", 2)
        for partition in range(2):
            rig.table.set_leader(rig.registry.partition_index(topic, partition), partition)
        rig.arena.memory.store_u32(at.BROKERS_AT, 2)
        batch = open_with_a_record(rig, topic, 1)
        while not rig.pressure.has_share(topic.partition_indices[0]):
            rig.accumulator.seal(open_with_a_record(rig, topic, 0, size=1800))
        sealed = len(rig.sealed())
        rig.pressure.relieve()
        assert rig.sealed()[sealed:] == [batch.descriptor]
