"""Records of a leader that has its share of the slabs: they wait, hold up nobody, and go around where they can."""

from __future__ import annotations

import contextlib
import random
import select
import threading
from collections import Counter
from typing import Any, Final

import pytest

from slabpress.errors import BufferFullError
from slabpress.pipeline.topics import Topic
from slabpress.shm import layout as at
from slabpress.shm.control import FIRST_WORKER
from slabpress.shm.states import SEALED, SLAB_OPEN, SLAB_READY, SLAB_SEALED, SLAB_STATES
from slabpress.shm.topics import TopicTable
from tests.pipeline.instant import WATCHDOG_S, Rig, parts, until

STUCK, HEALTHY = 1, 2
VALUE = b"x" * 900  # one slab each
LONG: Final[dict[str, Any]] = {
    "max_block_ms": 60_000,
    "linger_ms": 3_600_000,
    "delivery_timeout_ms": 7_200_000,
    "batch_size": 1000,
}


def _route(rig: Rig, leaders: dict[int, int]) -> None:
    """Partition by partition: send once, so that it has an entry, then say who leads it."""
    for partition in leaders:
        rig.send("t", b"first", partition=partition)
    rig.flush()
    table = TopicTable(rig.session.arena)
    known = rig.session._topics.known["t"]
    for partition, leader in leaders.items():
        table.set_leader(known.partition_indices[partition], leader)
    rig.session.arena.memory.store_u32(at.BROKERS_AT, 3)
    rig.thread.hold()


def _fill(rig: Rig, partition: int) -> int:
    """Send to a partition until its leader has its share."""
    sent = 0
    known = rig.session._topics.known["t"]
    index = known.partition_indices[partition]
    while not rig.session.sender._pressure.has_share(index):
        rig.send("t", VALUE, partition=partition)
        sent += 1
    return sent


def _in_thread(rig: Rig, partition: int | None) -> threading.Thread:
    thread = threading.Thread(target=lambda: rig.send("t", VALUE, partition=partition))
    thread.start()
    return thread


def test_a_record_for_a_leader_with_its_share_waits_and_others_pass_it() -> None:
    with Rig(**LONG) as rig:
        _route(rig, {0: STUCK, 1: HEALTHY})
        _fill(rig, 0)
        free = rig.session.arena.slabs.count_free()
        assert 0 < free < rig.session.arena.geometry.slab_count // 3
        waiting = _in_thread(rig, 0)
        until(lambda: len(rig.sender.line.turns) == 1)
        assert rig.sender.fast_lane.reserved == 0, "it needs nothing as long as it cannot go on"
        assert rig.sender.line.turns[0].held_back >= 0
        for _ in range(free // 2):
            rig.send("t", VALUE, partition=1)
        assert waiting.is_alive()
        rig.thread.resume()
        waiting.join(WATCHDOG_S)
        assert not waiting.is_alive()
        rig.flush()
        rig.check_all_free()


def test_it_gives_up_after_max_block_ms_like_any_other() -> None:
    with Rig(**(LONG | {"max_block_ms": 20})) as rig:
        _route(rig, {0: STUCK, 1: HEALTHY})
        _fill(rig, 0)
        with pytest.raises(BufferFullError, match="broker 1 leads hold their share"):
            rig.send("t", VALUE, partition=0)
        rig.thread.resume()
        rig.flush()


def test_its_leader_is_looked_at_again_whenever_somebody_is_called() -> None:
    """It stands first in line, and does not keep those behind it from being called."""
    with Rig(**LONG) as rig:
        _route(rig, {0: STUCK, 1: HEALTHY})
        _fill(rig, 0)
        stuck = _in_thread(rig, 0)
        until(lambda: len(rig.sender.line.turns) == 1)
        while rig.session.arena.slabs.count_free():
            rig.send("t", VALUE, partition=2)  # nobody's yet, so without a limit
        second = _in_thread(rig, 2)
        until(lambda: len(rig.sender.line.turns) == 2)
        assert rig.sender.line.turns[1].held_back < 0
        rig.thread.resume()
        for thread in (stuck, second):
            thread.join(WATCHDOG_S)
            assert not thread.is_alive()
        rig.flush()


def test_records_without_a_key_go_around_a_leader_that_has_its_share() -> None:
    with Rig(**LONG) as rig:
        _route(rig, {0: STUCK, 1: HEALTHY, 2: STUCK})
        _fill(rig, 0)
        rig.session._topics.known["t"].sticky = 0
        around = b"around" * 150
        handle = rig.send("t", around)
        rig.session._topics.known["t"].sticky = 0
        many = rig.send_many("t", [around])
        rig.thread.resume()
        rig.flush()
        assert handle.result(0).partition == 1
        assert many.accepted == 1
        assert rig.pipeline.values("t", 1).count(around) == 2


def test_with_nobody_else_left_records_without_a_key_wait_too() -> None:
    with Rig(**LONG) as rig:
        _route(rig, {0: STUCK, 1: STUCK, 2: STUCK})
        _fill(rig, 0)
        waiting = _in_thread(rig, None)
        until(lambda: len(rig.sender.line.turns) == 1)
        rig.thread.resume()
        waiting.join(WATCHDOG_S)
        assert not waiting.is_alive()
        rig.flush()


@pytest.mark.parametrize("leaders", [dict.fromkeys(range(8), 1), {n: 1 + n % 2 for n in range(8)}], ids=["one", "two"])
@pytest.mark.timeout(WATCHDOG_S)
def test_a_leader_whose_share_is_all_in_open_batches_has_them_sealed_before_they_have_lingered(
    leaders: dict[int, int],
) -> None:
    with Rig(topics={"t": 8}, **(LONG | {"batch_size": 16_000})) as rig:
        _route(rig, leaders)
        rig.thread.resume()
        for number in range(300):
            rig.send("t", VALUE, partition=number % 8)
        rig.flush()
        rig.check_all_free()


@pytest.mark.timeout(WATCHDOG_S)
def test_of_a_leader_with_its_share_no_more_is_sealed_than_soon_makes_room() -> None:
    with Rig(topics={"t": 8}, **(LONG | {"batch_size": 8_000, "max_block_ms": 20})) as rig:
        _route(rig, dict.fromkeys(range(8), STUCK))
        _fill(rig, 0)
        for _ in range(5):
            with contextlib.suppress(BufferFullError):
                rig.send("t", VALUE, partition=0)
        slabs = rig.session.arena.slab_states.tally(len(SLAB_STATES))
        open_slabs, sealed_slabs = slabs[SLAB_OPEN], slabs[SLAB_SEALED] + slabs[SLAB_READY]
        assert sealed_slabs > rig.session.arena.geometry.slab_count // 4
        assert open_slabs >= rig.session.arena.geometry.slab_count // 5
        rig.thread.resume()
        rig.flush()


@pytest.mark.timeout(WATCHDOG_S)
def test_a_thread_that_is_called_for_room_and_then_held_back_has_the_next_one_called() -> None:
    with parts(max_block_ms=60_000, batch_size=1000) as rig:
        topic = rig.topic("t", 2)
        for partition, leader in enumerate((STUCK, HEALTHY)):
            rig.table.set_leader(rig.registry.partition_index(topic, partition), leader)
        while rig.arena.slabs.count_free():
            rig.send(VALUE, partition=0)  # one broker is known: nobody is held back
        line, threads = rig.sender.line, []
        for partition in (0, 1):
            threads.append(threading.Thread(target=rig.send, args=(VALUE,), kwargs={"partition": partition}))
            threads[-1].start()
            until(lambda: len(line.turns) == len(threads))
        rig.arena.memory.store_u32(at.BROKERS_AT, 2)
        assert rig.pipeline.deliver_one() is not None
        with rig.lock:
            line.call_first()  # the first, which may not have the slab that has become free
        threads[1].join(WATCHDOG_S)
        assert not threads[1].is_alive()
        assert threads[0].is_alive()
        while rig.pipeline.deliver_one() is not None:
            pass
        with rig.lock:
            for batch in rig.accumulator.take_done():
                rig.accumulator.release(batch)
            line.call_first()
        threads[0].join(WATCHDOG_S)
        assert not threads[0].is_alive()


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.timeout(WATCHDOG_S)
def test_with_no_entry_left_for_another_partition_there_is_nowhere_to_go_around_to(many: bool) -> None:
    with Rig(topics={"t": 6}, **(LONG | {"max_block_ms": 20, "max_topic_partitions": 2})) as rig:
        _route(rig, {0: STUCK, 1: STUCK})
        _fill(rig, 0)
        with pytest.raises(BufferFullError, match="broker 1 leads hold their share"):
            rig.send_many("t", [VALUE]) if many else rig.send("t", VALUE)
        rig.thread.resume()
        rig.flush()


@pytest.mark.timeout(WATCHDOG_S)
def test_batches_that_were_set_aside_are_rung_for_as_long_as_there_are_any(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ring that said so may have gone to a worker that is stopped."""
    monkeypatch.setattr("slabpress.pipeline.session._NUDGE_S", 0.01)
    with Rig(**(LONG | {"compression_type": "lz4"})) as rig:
        _route(rig, {0: STUCK})
        arena, bell = rig.session.arena, rig.coordinator.control.bells[FIRST_WORKER]
        rig.send("t", VALUE, partition=0)
        rig.session.seal_all()
        rig.pipeline._admission._park(arena.batch_states.find_all(SEALED)[0])
        arena.memory.store_u64(at.SEAL_HEAD_AT, arena.seal_tail)
        rig.thread.stop()
        bell.drain()
        rig.coordinator.control.lie_down(FIRST_WORKER)
        assert select.select([bell], [], [], WATCHDOG_S)[0], "nobody rang"
        while rig.pipeline.deliver_one() is not None:
            pass
        rig.flush()


def test_of_two_partitions_the_one_with_fewer_batches_under_way_is_next() -> None:
    topic, rng = Topic("t", 0), random.Random(1)
    topic.grow(6)

    def chosen() -> Counter[int]:
        counts: Counter[int] = Counter()
        for _ in range(6000):
            topic.stick_elsewhere(rng)
            counts[topic.sticky] += 1
        return counts

    assert min(chosen().values()) > 800
    topic.under_way = {0: 9}
    counts = chosen()
    assert counts.pop(0) < 400, "only where it was drawn twice"
    assert min(counts.values()) > 900
