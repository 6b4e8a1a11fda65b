"""What the event loop asks, and what it leaves unasked, between one wait and the next."""

from __future__ import annotations

import os
import random
import select
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from slabpress.config import PIPELINE_SETTINGS, Config
from slabpress.network.broker import Broker
from slabpress.network.loop import Loop
from slabpress.network.resolver import Resolved
from slabpress.network.settings import NetworkSettings
from slabpress.network.upkeep import Upkeep
from slabpress.shm.control import COORDINATOR, NETWORK, Control


class Bench:
    """A loop without arenas, with a pipe in the place of the job's pidfd."""

    def __init__(self) -> None:
        self.control = Control.create(0)
        self.parent, self.job = os.pipe()
        child = SimpleNamespace(
            control=self.control, slot=NETWORK, watched=[self.parent], changes=list, has_changes=lambda: False
        )
        config = Config.of("127.0.0.1:1")
        settings = NetworkSettings.of({name: getattr(config, name) for name in PIPELINE_SETTINGS})
        self.loop = Loop(cast(Any, child), settings, time.monotonic_ns, random.random)

    def close(self) -> None:
        self.loop.close()
        self.control.close()
        for descriptor in {self.parent, self.job}:
            os.close(descriptor)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


@pytest.mark.timeout(30)
def test_the_job_is_asked_after_when_its_pidfd_rings_or_nothing_does_and_not_for_every_record(bench: Bench) -> None:
    bench.control.bells[NETWORK].ring()
    assert not bench.loop.turn(None)
    assert bench.loop.turn(0.0)
    os.write(bench.job, b"x")
    bench.control.bells[NETWORK].ring()
    assert bench.loop.turn(None)


@pytest.mark.inside
@pytest.mark.timeout(30)
def test_brokers_are_looked_at_when_something_of_theirs_may_be_due_and_not_for_every_record(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    monkeypatch.setattr(Broker, "check", lambda _broker, now: looks.append(now))
    due_ns = time.monotonic_ns() + 50_000_000
    monkeypatch.setattr(Broker, "deadline_ns", lambda _broker: due_ns)
    bench.loop.turn(0.0)  # from here on the loop knows when it is due
    looks.clear()
    bench.control.bells[NETWORK].ring()
    while not looks:
        bench.loop.turn(1.0)
    assert looks[0] >= due_ns


@pytest.mark.inside
@pytest.mark.timeout(30)
@pytest.mark.parametrize("has_moved", [False, True])
@pytest.mark.parametrize("told", [[], [True], [True, True], [True, False], [False]])
def test_the_coordinator_is_rung_for_results_that_no_callback_thread_sleeps_for(
    bench: Bench, told: list[bool], has_moved: bool
) -> None:
    arenas = [SimpleNamespace(has_news=True, tell_of_results=lambda each=each: each) for each in told]
    arenas.append(SimpleNamespace(has_news=False, tell_of_results=lambda: False))
    for arena in arenas:
        arena.needs_workers = False
    bench.loop.arenas.update(enumerate(cast(Any, arenas)))
    bench.loop.producing.finished = 1
    bench.loop.queues.moved = has_moved
    bench.control.lie_down(COORDINATOR)
    bench.loop._tell_of_results()
    bench.loop.arenas.clear()
    rung = bool(select.select([bench.control.bells[COORDINATOR]], [], [], 0)[0])
    assert rung == (has_moved or not all(told) or not told)


@pytest.mark.timeout(30)
def test_an_order_whose_ring_has_been_heard_already_is_not_slept_over(bench: Bench) -> None:
    """The bell ends one wait, the order is taken at the beginning of the next turn: that one must not sleep."""
    bench.control.stop()
    os.read(bench.control.bells[NETWORK].read_descriptor, 8)
    assert bench.loop.turn(None)


@pytest.mark.inside
@pytest.mark.timeout(30)
def test_upkeep_is_done_when_something_has_happened_or_is_due_and_not_for_every_ring(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.loop.turn(0.0)
    turns: list[int] = []
    monkeypatch.setattr(Upkeep, "turn", lambda _upkeep, now: turns.append(now))
    for _ in range(3):
        bench.control.bells[NETWORK].ring()
        bench.loop.turn(None)
    assert turns == []
    bench.control.count_change()
    bench.loop.turn(0.0)
    assert len(turns) == 1


@pytest.mark.inside
@pytest.mark.timeout(30)
@pytest.mark.parametrize("event", ["a lost connection", "a ready connection", "a name that was looked up"])
def test_upkeep_is_done_after_what_may_concern_it(bench: Bench, monkeypatch: pytest.MonkeyPatch, event: str) -> None:
    bench.loop.turn(0.0)
    turns: list[int] = []
    monkeypatch.setattr(Upkeep, "turn", lambda _upkeep, now: turns.append(now))
    broker = next(iter(bench.loop.brokers))
    if event == "a lost connection":
        bench.loop.lost(broker, [], 0)
    elif event == "a ready connection":
        bench.loop.became_ready(broker)
    else:
        bench.loop._resolver.under_way = 1
        monkeypatch.setattr(bench.loop._resolver, "results", lambda: [Resolved(None, [], "")])
        bench.control.bells[NETWORK].ring()
        bench.loop.turn(None)
    bench.loop.turn(0.0)
    assert len(turns) == 1
