"""A record that comes alone: one native step to the ring, and one from its result to the callback's queue."""

from __future__ import annotations

import gc
import select
import sys
import threading
import time
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

import pytest

from slabpress._native import DeliveryHandle
from slabpress.pipeline.batch import Batch
from slabpress.pipeline.room import Turn
from slabpress.pipeline.topics import Topic
from slabpress.shm.control import FIRST_WORKER, NETWORK
from slabpress.shm.doorbell import Doorbell
from slabpress.shm.states import DONE, FREE, SLAB_SEALED
from tests.pipeline.instant import Parts, Rig, image, open_with_a_record, parts, until


def _send(rig: Parts, **record: Any) -> Any:
    """By the native ways alone."""
    key, headers, partition = (record.get(name) for name in ("key", "headers", "partition"))
    return rig.sender.fast_lane.append("t", record.get("value", b"v"), key, headers, partition, 17)


def _finish(rig: Parts) -> None:
    """Deliver what is on the way, and give its descriptors back."""
    while rig.pipeline.deliver_one() is not None:
        for batch in rig.accumulator.take_done():
            rig.accumulator.release(batch)


def _used_topic(rig: Parts, partitions: int = 3) -> Topic:
    """A topic all of whose partitions have had a record, and none of them on its way."""
    topic = rig.topic("t", partitions)
    for partition in range(partitions):
        rig.send(b"first", partition=partition, timestamp_ms=0)
        rig.accumulator.seal_all()
        _finish(rig)
    return topic


def _is_rung(bell: Doorbell) -> bool:
    rung = bool(select.select([bell], [], [], 0)[0])
    bell.drain()
    return rung


@pytest.mark.parametrize(
    "record",
    [{}, {"key": b"k"}, {"key": "k", "value": None}, {"partition": 2}, {"headers": [("a", b"b"), ("c", None)]}],
)
def test_the_native_step_leaves_what_the_steps_one_by_one_leave(
    record: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    left = []
    for alone in (False, True):
        with parts() as rig:
            topic = _used_topic(rig)
            if alone:
                monkeypatch.delattr(type(rig.accumulator), "seal")
            else:
                rig.sender.fast_lane.closed = True  # the long way is left
            rig.control.alarm.forget()
            before = time.monotonic_ns()
            whole: dict[str, Any] = {"value": b"v", "timestamp_ms": 17} | record
            handle = rig.send(**whole)
            batch = handle._batch
            assert rig.accumulator.batches[batch.descriptor] is batch
            assert (batch.topic, batch.watch, handle._index) == (topic, rig.watch, 0)
            assert before <= batch.created_ns <= time.monotonic_ns()
            due = rig.control.alarm.due_ns
            assert due is not None
            assert before + 1_000_000_000 <= due <= time.monotonic_ns() + 1_000_000_000
            figures = batch.partition, batch.descriptor, batch.records, batch.bytes, batch.closed, batch.seal_number
            left.append((figures, batch.limit, topic.under_way, topic.sticky, topic.open, image(rig)))
    assert left[0] == left[1]


def test_who_works_on_it_is_rung_unless_a_worker_has_promised_to_look() -> None:
    with parts() as rig:
        _used_topic(rig)
        slot = NETWORK if rig.arena.is_direct else FIRST_WORKER
        bell = rig.control.bells[slot]
        bell.drain()
        assert _send(rig) is not None
        assert not _is_rung(bell), "it is awake"
        _finish(rig)
        rig.control.lie_down(slot)
        assert _send(rig) is not None
        assert _is_rung(bell)
        _finish(rig)
        if not rig.arena.is_direct:
            rig.arena.promises.promise(0, 5)
            assert _send(rig) is not None
            assert not _is_rung(bell)


def _take_descriptors(rig: Parts) -> None:
    for descriptor in range(rig.arena.geometry.batch_count):
        rig.arena.batch_states.store(descriptor, DONE)


def _wait_in_line(rig: Parts) -> None:
    rig.sender.line.join(Turn(rig.lock, 1))
    rig.sender.fast_lane.reserved = 1


_REASONS: dict[str, Callable[[Parts], object]] = {
    "no descriptor is free": _take_descriptors,
    "no slab is free": lambda rig: rig.arena.slabs.claim(rig.arena.slabs.count_free(), SLAB_SEALED),
    "others wait for room": _wait_in_line,
    "somebody has the lock": lambda rig: rig.lock.acquire(),
    "the partition has no index": lambda rig: rig.registry.known["t"].partition_indices.clear(),
    "the producer is closed": lambda rig: setattr(rig.sender.fast_lane, "closed", True),
}


@pytest.mark.parametrize("reason", _REASONS)
def test_what_cannot_be_done_in_one_step_goes_the_long_way_and_leaves_nothing_behind(reason: str) -> None:
    with parts() as rig:
        _used_topic(rig)
        handle = _send(rig)
        assert handle is not None
        assert handle._batch.closed
        _finish(rig)
        _REASONS[reason](rig)
        before, batches = image(rig), list(rig.accumulator.batches)
        states = [rig.arena.batch_states.load(index) for index in range(rig.arena.geometry.batch_count)]
        assert _send(rig, partition=0) is None
        assert [rig.arena.batch_states.load(index) for index in range(rig.arena.geometry.batch_count)] == states
        assert rig.accumulator.batches == batches
        assert rig.registry.known["t"].under_way == {}
        # Where there was no slab a descriptor has been prepared: nobody looks at one that is free.
        assert image(rig) == before or reason == "no slab is free"


def test_a_record_too_large_is_refused_by_the_long_way_and_takes_nothing() -> None:
    with parts() as rig:
        _used_topic(rig)
        assert _send(rig, value=b"x" * (rig.plan.largest_record_bytes + 1)) is None
        assert set(rig.accumulator.batches) == {None}
        assert rig.arena.batch_states.tally(1)[FREE] == rig.arena.geometry.batch_count


def test_garbage_that_changes_the_headers_is_not_collected_between_their_finding_and_their_writing() -> None:
    """Python 3.11 collects wherever it allocates."""
    headers = [("name", bytes([118] * 40))]  # nobody else has these bytes

    class Cycle:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            headers.clear()
            other.extend(b"%040d" % number for number in range(1000))

    other: list[bytes] = []
    with parts() as rig:
        _used_topic(rig)
        thresholds, append = gc.get_threshold(), rig.sender.fast_lane.append
        gc.collect()
        Cycle()
        gc.set_threshold(1)  # nothing is allocated from here on but by the call
        try:
            handle = append("t", b"v", None, headers, None, 17)
        finally:
            gc.set_threshold(*thresholds)
        assert handle is not None
        delivered = rig.pipeline.deliver_one()
        assert delivered is not None
        assert delivered.records[0].headers == (("name", b"v" * 40),)


def test_where_records_linger_none_goes_alone() -> None:
    with parts(linger_ms=1) as rig:
        topic = _used_topic(rig)
        batch = _send(rig, partition=0)._batch
        assert (topic.open[0], batch.closed, topic.under_way) == (batch, False, {})


def _lines_of(function: Any) -> list[int]:
    code: CodeType = function.__code__
    return sorted({line for _, _, line in code.co_lines() if line is not None and line > code.co_firstlineno})


@pytest.mark.parametrize("line", _lines_of(Batch._ask_for))
def test_a_callback_that_is_asked_for_while_the_result_comes_runs_once(line: int) -> None:
    """The result is taken in by the callback thread before each line of what notes the callback."""
    with Rig({"t": 1}) as rig:
        rig.send("t", b"first", on_delivery=lambda _: None)
        rig.flush()
        rig.thread.hold()
        handle, called = rig.send("t", b"v"), list[DeliveryHandle]()

        def trace(frame: FrameType, event: str, _: object) -> Any:
            if frame.f_code is not Batch._ask_for.__code__:
                return None
            if event == "line" and frame.f_lineno == line:
                rig.thread.resume()
                until(lambda: handle._batch.finished)
            return trace

        sys.settrace(trace)
        try:
            handle.add_done_callback(called.append)
        finally:
            sys.settrace(None)
        rig.thread.resume()
        rig.flush()
        assert called == [handle]


def test_a_callback_that_is_no_python_function_lets_others_have_the_interpreter() -> None:
    """It never looks whether anybody wants it, and a batch may have a hundred thousand records."""
    with parts(batch_size=16 * 1024) as rig:
        topic = rig.topic("t", 1)
        batch = open_with_a_record(rig, topic, 0)
        while rig.accumulator.writer.append(batch, None, b"", None, 0) > 0:
            pass
        called, seen, over = list[DeliveryHandle](), set[int](), threading.Event()

        def look() -> None:
            while not over.is_set():
                seen.add(len(called))

        interval, thread = sys.getswitchinterval(), threading.Thread(target=look)
        thread.start()
        sys.setswitchinterval(1e-6)
        try:
            for _ in range(20_000):  # whether it gets it, when it may, is the system's to say
                batch.run_for_all(called.append)
                if 1023 in seen:
                    break
                seen.clear()
                called.clear()
        finally:
            sys.setswitchinterval(interval)
            over.set()
            thread.join()
        assert batch.records > 1024
        assert 1023 in seen
