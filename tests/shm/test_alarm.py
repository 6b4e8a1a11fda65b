"""When a thread that sleeps on its doorbell gets up by itself."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Iterator

import pytest

from slabpress._native import Alarm
from slabpress.shm.doorbell import Doorbell

pytestmark = pytest.mark.timeout(60)

AN_HOUR_NS = 3600 * 1_000_000_000
SOON_NS = 20_000_000


@pytest.fixture(params=["as the platform has it", "a pipe"])
def bell(request: pytest.FixtureRequest) -> Iterator[Doorbell]:
    if request.param == "a pipe":
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        bell = Doorbell(reader, writer)
    else:
        bell = Doorbell.create()
    yield bell
    bell.close()


def _alarm(bell: Doorbell) -> Alarm:
    return Alarm(*bell.descriptors)


def _due_ns(alarm: Alarm) -> int | None:
    return alarm.due_ns


def _is_rung(bell: Doorbell) -> bool:
    return bool(select.select([bell], [], [], 0)[0])


def test_only_an_earlier_time_is_news_and_rings(bell: Doorbell) -> None:
    alarm = _alarm(bell)
    assert _due_ns(alarm) is None
    for due_ns, is_news in ((1000, True), (1000, False), (2000, False), (500, True)):
        assert alarm.set(due_ns) == is_news
        assert _is_rung(bell) == is_news
        bell.drain()
    assert _due_ns(alarm) == 500
    alarm.forget()
    assert _due_ns(alarm) is None
    assert alarm.set(3000, ring=False)
    assert not _is_rung(bell)


def test_an_alarm_that_is_set_ends_the_sleep_when_it_is_time_and_not_before(bell: Doorbell) -> None:
    alarm = _alarm(bell)
    due_ns = time.monotonic_ns() + SOON_NS
    for number in range(100):  # more than are drained at once
        assert alarm.set(due_ns + AN_HOUR_NS - number)
    assert alarm.set(due_ns)
    assert alarm.wait([]) == []
    assert time.monotonic_ns() >= due_ns
    assert not _is_rung(bell), "it is drained"


def test_a_ring_ends_the_sleep_whatever_the_alarm(bell: Doorbell) -> None:
    alarm = _alarm(bell)
    for before, after in ((0, 0), (1, 0), (0, 1)):
        alarm.forget()
        for number in range(before):
            alarm.set(time.monotonic_ns() + 2 * AN_HOUR_NS - number)
        bell.ring()
        for number in range(after):
            alarm.set(time.monotonic_ns() + AN_HOUR_NS - number)
        assert alarm.wait([]) == []
        assert not _is_rung(bell)


def test_a_sleep_that_is_over_already_looks_at_the_others_once(bell: Doorbell) -> None:
    alarm = _alarm(bell)
    alarm.set(0)
    reader, writer = os.pipe()
    try:
        assert alarm.wait([reader]) == []
        os.write(writer, b"x")
        assert alarm.wait([reader]) == [reader]
        alarm.forget()
        assert alarm.wait([reader]) == [reader], "though there is no time"
    finally:
        os.close(reader)
        os.close(writer)


def test_a_thread_that_sleeps_for_ever_gets_up_at_the_time_that_another_sets(bell: Doorbell) -> None:
    alarm = _alarm(bell)
    for _ in range(20):
        alarm.forget()
        thread = threading.Thread(target=alarm.wait, args=([],))
        thread.start()
        alarm.set(time.monotonic_ns() + 1_000_000)
        thread.join(60)
        assert not thread.is_alive()
