"""Records of a leader that has its share of the slabs: they wait, hold up nobody, and go around where they can."""

from __future__ import annotations

import random
import threading
from collections import Counter
from typing import Any, Final

import pytest

from slabpress.errors import BufferFullError
from slabpress.pipeline.topics import Topic
from slabpress.shm import layout as at
from slabpress.shm.topics import TopicTable
from tests.pipeline.instant import WATCHDOG_S, Rig, until

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
    while not rig.session.accumulator.has_share(index):
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
