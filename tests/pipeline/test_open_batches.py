"""From a full batch to the next in one native step, by ``send`` and by ``send_many``."""

from __future__ import annotations

import gc
import select
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from slabpress._native import PAUSED, ObjectSource, Ringer
from slabpress.errors import BufferFullError, RecordTooLargeError
from slabpress.pipeline.accumulator import Accumulator
from slabpress.pipeline.batch import Batch
from slabpress.pipeline.many import Many
from slabpress.pipeline.room import Turn
from slabpress.pipeline.topics import Topic
from slabpress.shm import layout as at
from slabpress.shm.control import FIRST_WORKER, NETWORK, Control
from slabpress.shm.states import DONE, OPEN, SLAB_SEALED
from tests.pipeline.instant import Parts, image, parts

_LINGERS: dict[str, Any] = {"linger_ms": 60_000, "batch_size": 1024}
_COUNT = 60
_VALUES = [b"%02d" % number * 50 for number in range(_COUNT)]  # nine to a batch
_COLUMNS: dict[str, dict[str, Any]] = {
    "keyless": {},
    "keyed": {"keys": [b"%d" % (number % 7) for number in range(_COUNT)]},
    "some keyed": {"keys": [b"k" if number % 3 else None for number in range(_COUNT)]},
    "with headers": {"headers": [[("name", b"v" * (number % 30))] for number in range(_COUNT)]},
    "to one partition": {"partition": 1},
}


def _one_by_one(rig: Parts, columns: dict[str, Any]) -> None:
    keys, headers = columns.get("keys", [None] * _COUNT), columns.get("headers", [None] * _COUNT)
    for value, key, its_headers in zip(_VALUES, keys, headers, strict=True):
        rig.send(value, key=key, headers=its_headers, partition=columns.get("partition"), timestamp_ms=17)


def _at_once(rig: Parts, columns: dict[str, Any]) -> None:
    rig.send_many(_VALUES, timestamps_ms=[17] * _COUNT, **columns)


def _used_topic(rig: Parts) -> Topic:
    """A topic whose partitions all have their entry in the partition table: no native step gives them one."""
    topic = rig.topic("t", 3)
    for partition in range(3):
        rig.registry.partition_index(topic, partition)
    return topic


def _books(rig: Parts, topic: Topic) -> Any:
    figures = [
        batch and (batch.partition, batch.records, batch.bytes, batch.closed, batch.seal_number, batch.limit)
        for batch in rig.accumulator.batches
    ]
    is_open = [batch and batch.descriptor for batch in topic.open]
    return figures, is_open, topic.under_way, topic.sticky, list(rig.accumulator.open_batches.lingering)


def _forbid_the_long_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Accumulator, "seal")
    monkeypatch.delattr(Accumulator, "open_batch")


@pytest.mark.parametrize("columns", _COLUMNS)
@pytest.mark.parametrize("way", [_one_by_one, _at_once])
def test_the_native_steps_leave_what_the_long_way_leaves(
    way: Callable[[Parts, dict[str, Any]], None], columns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = []
    for is_native in (False, True):
        with parts(**_LINGERS) as rig:
            topic = _used_topic(rig)
            before = time.monotonic_ns()
            if is_native:
                _forbid_the_long_way(monkeypatch)
                way(rig, _COLUMNS[columns])
            else:
                rig.sender.fast_lane.closed = True  # the long way is left
                _one_by_one(rig, _COLUMNS[columns])
            due = rig.control.alarm.due_ns
            assert due is not None
            assert before + 1_000_000_000 <= due <= time.monotonic_ns() + 1_000_000_000
            left.append((_books(rig, topic), image(rig)))
            assert rig.accumulator.records_accepted() == _COUNT
    assert left[0][0] == left[1][0]
    assert left[0][1] == left[1][1]


def test_a_batch_opened_behind_one_of_its_topic_lingers_even_without_a_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    with parts() as rig:
        topic = _used_topic(rig)
        alone = rig.send(b"alone", partition=0)._batch
        _forbid_the_long_way(monkeypatch)
        rig.control.alarm.forget()
        before = time.monotonic_ns()
        batch = rig.send(b"behind", partition=0)._batch
        assert (alone.closed, batch.closed, topic.open[0], topic.under_way) == (True, False, batch, {0: 1})
        assert before <= batch.created_ns == rig.control.alarm.due_ns, "the coordinator is to come by at once"


@pytest.mark.parametrize("way", [_one_by_one, _at_once])
def test_who_works_on_a_full_batch_is_rung_unless_a_worker_has_promised_to_look(
    way: Callable[[Parts, dict[str, Any]], None],
) -> None:
    with parts(**_LINGERS, buffer_memory=256 * 1024) as rig:
        _used_topic(rig)
        slot = NETWORK if rig.arena.is_direct else FIRST_WORKER
        bell = rig.control.bells[slot]
        bell.drain()
        for says_sleeping, promised, is_rung in ((False, 0, False), (True, 0, True), (True, 100, rig.arena.is_direct)):
            if says_sleeping:
                rig.control.lie_down(slot)
            if not rig.arena.is_direct:
                rig.arena.promises.promise(0, promised)
            rig.arena.memory.store_u64(at.SEAL_HEAD_AT, rig.arena.seal_tail)  # a worker was admitted to all
            way(rig, {"partition": 1})
            assert bool(select.select([bell], [], [], 0)[0]) == is_rung
            bell.drain()
            rig.control.get_up(slot)


def _take_descriptors(rig: Parts) -> None:
    for descriptor in range(rig.arena.geometry.batch_count):
        if rig.accumulator.batches[descriptor] is None:
            rig.arena.batch_states.store(descriptor, DONE)


def _take_slabs(rig: Parts) -> None:
    rig.arena.slabs.claim(rig.arena.slabs.count_free(), SLAB_SEALED)


@pytest.mark.parametrize("take", [_take_descriptors, _take_slabs])
@pytest.mark.parametrize("many", [False, True])
def test_without_room_for_the_next_batch_none_stays_open(take: Callable[[Parts], None], many: bool) -> None:
    with parts(**_LINGERS) as rig:
        topic = _used_topic(rig)
        rig.send_many(_VALUES[:9], partition=0)
        take(rig)
        assert rig.sender.fast_lane.append("t", b"x" * 100, None, None, 0, 17) is None
        assert (topic.open, rig.accumulator.all_open()) == ([None] * 3, [])
        with pytest.raises(BufferFullError):
            rig.send_many(_VALUES, partition=0) if many else rig.send(b"x" * 100, partition=0)
        assert (topic.open, rig.accumulator.all_open()) == ([None] * 3, [])
        assert rig.arena.batch_states.find_all(OPEN) == []
        assert rig.accumulator.records_accepted() == 9
        assert rig.lock.acquire(blocking=False)
        rig.lock.release()


@pytest.mark.parametrize("way", [_one_by_one, _at_once])
def test_batches_are_no_larger_than_their_topic_may_have_them(
    way: Callable[[Parts, dict[str, Any]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with parts(**_LINGERS, buffer_memory=256 * 1024) as rig:
        _used_topic(rig).batch_limit = 350
        _forbid_the_long_way(monkeypatch)
        way(rig, {"partition": 1})
        assert {batch.records for batch in rig.accumulator.batches if batch is not None} == {3}


@pytest.mark.parametrize("many", [False, True])
def test_a_record_too_large_leaves_no_batch_that_was_opened_for_it(many: bool) -> None:
    with parts(**_LINGERS) as rig:
        topic = _used_topic(rig)
        large = b"x" * (rig.plan.largest_record_bytes + 1)
        with pytest.raises(RecordTooLargeError):
            rig.send_many([large], partition=0) if many else rig.send(large, partition=0)
        assert (topic.open, rig.accumulator.all_open(), set(rig.accumulator.batches)) == ([None] * 3, [], {None})
        with pytest.raises(RecordTooLargeError) as caught:
            rig.send_many([*_VALUES[:18], large], partition=0)
        assert caught.value.accepted == 18
        assert [batch.records for batch in rig.accumulator.all_open()] == [9]


@pytest.mark.parametrize("way", [_one_by_one, _at_once])
def test_while_others_stand_in_line_batches_are_turned_over_step_by_step(
    way: Callable[[Parts, dict[str, Any]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a batch ends, whoever stands in line is thought of."""
    sealed = []

    def seal(batch: Batch) -> None:
        sealed.append(batch)
        rig.accumulator.open_batches.seal(batch)

    with parts(**_LINGERS) as rig:
        _used_topic(rig)
        rig.sender.line.join(Turn(rig.lock, 1))
        rig.sender.fast_lane.reserved = 1
        monkeypatch.setattr(rig.accumulator, "seal", seal)
        way(rig, {"partition": 1})
        assert len(sealed) == len(rig.sealed()) == 6


def test_others_have_the_interpreter_again_after_some_batches_however_small_they_are() -> None:
    with parts(**_LINGERS, buffer_memory=1024 * 1024) as rig:
        topic, touched = _used_topic(rig), list[Any]()
        source = ObjectSource(_VALUES * 20, None, None, None)
        why, *_ = source.append(rig.accumulator.writer, topic, 1, 1, touched, rig.accumulator.open_batches)
        assert why == PAUSED
        assert len(touched) <= 1 + 1024 // 16, "of 133"


@pytest.mark.parametrize("linger_ms", [0, 60_000])
@pytest.mark.parametrize("many", [False, True])
def test_a_batch_whose_ring_failed_is_as_good_as_any_other(
    linger_ms: int, many: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ring_nobody(control: Control, slots: Sequence[int]) -> Ringer:
        return Ringer(control.memory, [control._sleeping_at[slot] for slot in slots], [-1] * len(slots))

    monkeypatch.setattr(Control, "ringer", ring_nobody)
    with parts(**_LINGERS | {"linger_ms": linger_ms}) as rig:
        topic = _used_topic(rig)
        rig.control.lie_down(NETWORK if rig.arena.is_direct else FIRST_WORKER)
        with pytest.raises(OSError, match="Bad file descriptor"):
            (_at_once if many else _one_by_one)(rig, {"partition": 1})
        assert (len(rig.sealed()), topic.open[1], topic.under_way) == (1, None, {1: 1})
        delivered = rig.pipeline.deliver_one()
        assert delivered is not None
        assert [batch.records for batch in rig.accumulator.take_done()] == [len(delivered.records)]
        assert (topic.under_way, rig.accumulator.all_open()) == ({}, [])


@pytest.mark.parametrize("linger_ms", [0, 60_000])
def test_whatever_cuts_a_call_short_the_coordinator_comes_for_what_it_left_open(
    linger_ms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def note(*_: object) -> None:
        raise KeyboardInterrupt  # by a signal handler, before anything is noted of what was appended

    with parts(**_LINGERS | {"linger_ms": linger_ms}) as rig:
        topic = _used_topic(rig)
        monkeypatch.setattr(Many, "_note", note)
        rig.control.alarm.forget()
        with pytest.raises(KeyboardInterrupt):
            rig.send_many(_VALUES, partition=1)
        batch, due = topic.open[1], rig.control.alarm.due_ns
        assert batch is not None
        assert due is not None
        assert due <= batch.created_ns + 1_000_000_000


@pytest.mark.parametrize("keyed", [False, True])
def test_garbage_that_changes_the_columns_is_not_collected_while_batches_are_opened(keyed: bool) -> None:
    """Python 3.11 collects wherever it allocates; what was found in the columns would be somebody else's memory."""
    texts = [b"%02d" % number * 50 for number in range(40)]
    values = [bytes(bytearray(text)) for text in texts]  # nobody else has these bytes
    keys = [bytes(bytearray(text[:40])) for text in texts] if keyed else None
    others: list[bytes] = []

    class Cycle:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            for column in (values, keys or []):
                column[:] = [b""] * len(column)
            others.extend(bytes([64 + number % 8]) * size for number in range(40) for size in (100, 40))

    with parts(**_LINGERS) as rig:
        topic, touched = _used_topic(rig), list[Any]()
        source = ObjectSource(values, keys, None, None)
        append, arguments = source.append, (rig.accumulator.writer, topic, 1, 1, touched, rig.accumulator.open_batches)
        thresholds = gc.get_threshold()
        gc.collect()
        Cycle()
        gc.set_threshold(1)  # nothing is allocated from here on but by the call
        try:
            append(*arguments)
        finally:
            gc.set_threshold(*thresholds)
        assert source.is_done()
        rig.accumulator.seal_all()
        while rig.pipeline.deliver_one() is not None:
            pass
        assert rig.pipeline.values("t", 1) == texts
