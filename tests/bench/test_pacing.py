"""The open-loop pacer."""

from __future__ import annotations

import time
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.pacing import NS_PER_S, TICK_NS, Schedule, pace


@pytest.mark.parametrize(("rate", "first"), [(1_000, [0, 1, 2, 3]), (100_000, [0, 100, 200, 300]), (500, [0, 0, 1, 1])])
def test_every_tick_brings_as_many_records_as_the_rate_asks_for(rate: int, first: list[int]) -> None:
    schedule = Schedule(rate, 2.0)
    assert [schedule.due_before(tick) for tick in range(4)] == first
    assert schedule.records == 2 * rate


@given(st.integers(1, 2_000_000), st.integers(0, 3_000))
def test_roundings_never_add_up_and_no_record_is_due_twice(rate: int, tick: int) -> None:
    schedule = Schedule(rate, 3.0)
    exact = rate * tick * TICK_NS / NS_PER_S
    assert exact - 1 < schedule.due_before(tick) <= exact
    assert schedule.due_before(tick) <= schedule.due_before(tick + 1)


def test_a_record_is_due_at_its_tick_whenever_it_is_sent() -> None:
    schedule = Schedule(2_000, 0.003)
    assert schedule.due_ns(5) == [5, 5, 5 + TICK_NS, 5 + TICK_NS, 5 + 2 * TICK_NS, 5 + 2 * TICK_NS]


def test_a_call_that_stands_still_makes_those_behind_it_late_and_drops_none() -> None:
    schedule = Schedule(1_000, 0.02)
    called, sent = array("q", bytes(8 * schedule.records)), []

    def send(number: int) -> None:
        sent.append(number)
        if number == 3:
            time.sleep(0.01)

    begin = pace(schedule, send, called)
    assert sent == list(range(20))
    late_ns = [at - due for at, due in zip(called, schedule.due_ns(begin), strict=True)]
    assert min(late_ns) >= 0
    assert late_ns[4] >= 9 * TICK_NS  # due one tick after the one that took ten
