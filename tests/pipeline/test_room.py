"""Back-pressure: who waits for room, in which order, until when, and that everything flows again afterwards."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from slabpress._native import DeliveryHandle, Mutex
from slabpress.errors import BufferFullError, ProducerClosedError, SlabpressError
from slabpress.pipeline.room import RoomLine, Turn
from slabpress.shm import layout as at
from slabpress.shm.states import SLAB_FREE, SLAB_SEALED
from tests.pipeline.instant import WATCHDOG_S, Rig, parts, until


def test_a_thread_that_waits_is_called_in_its_turn_and_leaves_the_next_one_called() -> None:
    lock = Mutex()
    line = RoomLine(lock, lambda _: False)
    served: list[int] = []
    joined = threading.Semaphore(0)

    def wait(number: int) -> None:
        with lock:
            turn = Turn(lock, 1)
            line.join(turn)
            joined.release()
            while line.needed_before(turn) or not room:
                line.wait(turn, WATCHDOG_S)
            served.append(number)
            line.leave(turn)

    room: list[bool] = []
    threads = []
    for number in range(5):
        threads.append(threading.Thread(target=wait, args=(number,)))
        threads[-1].start()
        assert joined.acquire(timeout=WATCHDOG_S)
    with lock:
        room.append(True)
        line.call_first()
    for thread in threads:
        thread.join(WATCHDOG_S)
    assert served == [0, 1, 2, 3, 4]
    assert not line.turns


def test_everybody_in_line_is_called_when_something_else_has_changed() -> None:
    lock, over = Mutex(), threading.Event()
    line = RoomLine(lock, lambda _: False)
    joined = threading.Semaphore(0)

    def wait() -> None:
        with lock:
            turn = Turn(lock, 1)
            line.join(turn)
            joined.release()
            while not over.is_set():
                line.wait(turn, WATCHDOG_S)
            line.leave(turn)

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
        assert joined.acquire(timeout=WATCHDOG_S)
    with lock:
        over.set()
        line.call_all()
    for thread in threads:
        thread.join(WATCHDOG_S)
    assert not line.turns


# --- a full arena -------------------------------------------------------------------------------------------


def _fill(send: Callable[[], object]) -> int:
    """Send until there is no room; how many were accepted."""
    accepted = 0
    while True:
        try:
            send()
        except BufferFullError:
            return accepted
        accepted += 1


def test_a_full_arena_raises_with_every_figure_after_max_block_ms() -> None:
    with parts(max_block_ms=20) as rig:
        rig.topic("t", 1)
        _fill(lambda: rig.send(b"x" * 900))
        with pytest.raises(BufferFullError) as caught:
            rig.send(b"x" * 900)
        error = caught.value
        assert error.retriable
        geometry = rig.arena.geometry
        reason = (
            r"The cluster takes records more slowly than they are sent \(slabs ready and in flight\): send less, wait "
            r"longer, or raise buffer_memory"
            if rig.arena.is_direct
            else r"The cluster takes records more slowly than they are sent \(output buffers in flight\), or "
            r"compression does \(slabs sealed\): send less, wait longer, or raise buffer_memory or workers"
        )
        figures = re.fullmatch(
            r"no room for a record to topic 't' within max_block_ms=20: buffer_memory of 65536 bytes holds (\d+) slabs "
            r"\((\d+) free, (\d+) open, (\d+) ready, (\d+) in_flight, (\d+) sealed, (\d+) compressing\) and (\d+) "
            r"output buffers \((\d+) free, (\d+) filling, (\d+) ready, (\d+) in_flight\), 1 threads wait\. " + reason,
            str(error),
        )
        assert figures is not None, str(error)
        numbers = [int(number) for number in figures.groups()]
        assert (numbers[0], numbers[7]) == (geometry.slab_count, geometry.output_count)
        assert sum(numbers[1:7]) == numbers[0]
        assert sum(numbers[8:12]) == numbers[7]
        assert numbers[1:7] == rig.arena.slab_states.tally(6)
        assert numbers[1] == 0
        assert rig.arena.memory.load_u64(at.ROOM_WANTED_AT) == 0
        assert not rig.sender.line.turns
        waits = at.COORDINATOR_COUNTERS.index("room_waits")
        assert rig.arena.memory.load_u64(at.COORDINATOR_COUNTERS_AT + 8 * waits) == 2


def _send_numbered(rig: Rig, numbers: Iterator[int]) -> DeliveryHandle:
    return rig.send("t", b"%5d" % next(numbers) + b"x" * 500, partition=1)


def test_a_full_arena_refuses_and_forgets_and_takes_again_after_the_outage() -> None:
    with Rig(max_block_ms=300) as rig:
        rig.send("t", b"first").result(WATCHDOG_S)
        for _ in range(2):
            rig.thread.hold()
            numbers = iter(range(10_000))
            accepted = _fill(partial(_send_numbered, rig, numbers))
            assert accepted >= rig.session.arena.geometry.slab_count // 2
            rig.pipeline.batches.clear()
            rig.thread.resume()
            rig.flush()
            values = [value for value in rig.pipeline.values("t", 1) if value]
            assert [value[:5] for value in values] == [b"%5d" % number for number in range(accepted)]
            rig.check_all_free()
        assert not rig.sender.fast_lane.closed


def test_a_send_that_waits_is_served_when_room_comes_and_nothing_overtakes_it() -> None:
    with Rig(max_block_ms=60_000) as rig:
        rig.send("t", b"first").result(WATCHDOG_S)
        rig.thread.hold()
        slabs = rig.session.arena.slabs
        while slabs.count_free() > 4:
            rig.send("t", b"f" * 900, partition=0)
        value = b"L" * (rig.producer.plan.largest_record_bytes * 3 // 4)
        large = threading.Thread(target=lambda: rig.send("t", value, partition=1))
        large.start()
        until(lambda: len(rig.sender.line.turns) == 1)
        small = threading.Thread(target=lambda: rig.send("t", b"s", partition=1))
        small.start()
        until(lambda: len(rig.sender.line.turns) == 2)
        rig.thread.resume()
        for thread in (large, small):
            thread.join(WATCHDOG_S)
            assert not thread.is_alive()
        rig.flush()
        assert rig.pipeline.values("t", 1)[-2:] == [value, b"s"]


def test_the_line_counts_the_slabs_that_those_ahead_need() -> None:
    lock = Mutex()
    line, turns = RoomLine(lock, lambda _: False), [Turn(lock, need) for need in (5, 0, 7)]
    with lock:
        for turn in turns:
            line.join(turn)
        assert [line.needed_before(turn) for turn in turns] == [0, 5, 6]
        assert line.needed_before(None) == 13, "a newcomer comes after everybody"
        line.leave(turns[0])
        line.leave(turns[0])
        assert [line.needed_before(turn) for turn in turns[1:]] == [0, 1]


def _behind_a_large_record(rig: Rig) -> threading.Thread:
    """Hold the pipeline with two slabs free and a thread in line for half of them all."""
    for topic in ("t", "u"):
        rig.send(topic, b"first")
    rig.flush()
    rig.thread.hold()
    slabs = rig.session.arena.slabs
    while slabs.count_free() > 3:  # most of them sealed, so that pressure seals nothing
        rig.send("t", b"f" * 900)
    rig.send("u", b"before")
    value = b"L" * (rig.producer.plan.largest_record_bytes // 2)
    large = threading.Thread(target=lambda: rig.send("t", value))
    large.start()
    until(lambda: len(rig.sender.line.turns) == 1)
    return large


def test_who_takes_no_slab_that_is_waited_for_may_go_on_and_nobody_else() -> None:
    with Rig({"t": 1, "u": 1}, linger_ms=3_600_000, delivery_timeout_ms=7_200_000) as rig:
        large = _behind_a_large_record(rig)
        lane = rig.sender.fast_lane
        # It goes the long way as well while somebody else holds the lock: the coordinator's thread looks around.
        until(lambda: lane.append("u", b"fits", None, None, None, None) is not None)
        assert rig.session.arena.slabs.count_free() > 0
        assert lane.append("u", b"x" * 1000, None, None, None, None) is None, "it needs a slab"
        small = threading.Thread(target=lambda: rig.send("u", b"x" * 1000))
        small.start()
        until(lambda: len(rig.sender.line.turns) == 2)
        rig.thread.resume()
        for thread in (large, small):
            thread.join(WATCHDOG_S)
            assert not thread.is_alive()
        assert lane.reserved == 0
        rig.flush()
        assert rig.pipeline.values("u", 0) == [b"first", b"before", b"fits", b"x" * 1000]
        rig.check_all_free()


def test_a_turn_says_how_many_slabs_it_needs_now() -> None:
    with parts(max_block_ms=600_000) as rig:
        topic = rig.topic("t", 1)
        rig.send(b"small")
        count = rig.arena.geometry.slab_count
        taken = rig.arena.slabs.claim(count - 4, SLAB_SEALED)
        waits = threading.Semaphore(0)
        wait = rig.sender._wait_in_line

        def announce(*arguments: Any) -> None:
            waits.release()
            wait(*arguments)

        stand_in: Any = announce
        rig.sender._wait_in_line = stand_in  # type: ignore[method-assign]
        thread = threading.Thread(target=lambda: rig.send(b"x" * (4 * 1024 + 900)))  # 4 slabs and what is left of one
        thread.start()
        assert waits.acquire(timeout=WATCHDOG_S)
        with rig.lock:
            batch = topic.open[0]
            if batch is not None:
                rig.accumulator.seal(batch)
            rig.sender.line.call_first()
        assert waits.acquire(timeout=WATCHDOG_S)
        with rig.lock:
            need = rig.sender.line.turns[0].need
            rig.arena.slabs.mark(taken, SLAB_FREE)
            rig.sender.line.call_first()
        thread.join(WATCHDOG_S)
        assert not thread.is_alive()
        assert need == 5


def test_short_of_slabs_open_batches_are_sealed_long_before_they_have_lingered() -> None:
    with Rig({"t": 16}, linger_ms=3_600_000, delivery_timeout_ms=7_200_000) as rig:
        handles = [rig.send("t", b"x" * 900, partition=number % 16) for number in range(400)]
        assert sum(handle.done() for handle in handles) > 300
        rig.flush()
        rig.check_all_free()


def test_waiting_senders_are_refused_when_the_producer_closes() -> None:
    with Rig(max_block_ms=600_000) as rig:
        rig.send("t", b"first").result(WATCHDOG_S)
        rig.thread.hold()
        errors: list[SlabpressError] = []

        def send_until_refused() -> None:
            try:
                while True:
                    rig.send("t", b"x" * 900)
            except SlabpressError as error:
                errors.append(error)

        threads = [threading.Thread(target=send_until_refused) for _ in range(3)]
        for thread in threads:
            thread.start()
        until(lambda: len(rig.sender.line.turns) == 3)
        with pytest.raises(SlabpressError):
            rig.close()
        for thread in threads:
            thread.join(WATCHDOG_S)
        assert [type(error) for error in errors] == [ProducerClosedError] * 3


def test_slow_callbacks_hold_descriptors_and_become_back_pressure() -> None:
    leave = threading.Event()
    with Rig(on_delivery=lambda _: leave.wait(WATCHDOG_S), max_block_ms=300) as rig:
        try:

            def send_alone() -> None:
                rig.send("t", b"x", partition=0)
                until(lambda: rig.pending() == 0)  # so that each record has a batch of its own

            accepted = _fill(send_alone)
            assert accepted == rig.session.arena.geometry.batch_count
            assert rig.session.arena.slabs.count_free() == rig.session.arena.geometry.slab_count
        finally:
            leave.set()
        rig.flush()
        rig.check_all_free()
