"""Results taken in natively: what was delivered is settled in one step a batch, in the order of the seals."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import deque
from collections.abc import Callable

import pytest

from slabpress._native import Mutex
from slabpress.pipeline.accumulator import Accumulator
from slabpress.pipeline.batch import Batch
from slabpress.pipeline.outcomes import Outcome
from slabpress.pipeline.room import Turn
from slabpress.shm.arena import Arena
from slabpress.shm.descriptors import Result
from slabpress.shm.states import DONE, FREE, REPORTING
from tests.pipeline.instant import WATCHDOG_S, DeliveredBatch, Parts, delivered, image, parts, refused
from tests.shm.kit import PROJECT, small_geometry

pytestmark = pytest.mark.timeout(WATCHDOG_S)


def _ignore(_: object) -> None:
    """A callback."""


class _Lone:
    """``Arrivals.take_lone`` with what it is called with."""

    def __init__(self, rig: Parts) -> None:
        self.rig = rig
        self.taking = Mutex()
        self.queue = deque[Batch]()

    def __call__(self, *, calls_all: bool = False) -> bool:
        rig = self.rig
        return rig.accumulator.arrivals.take_lone(self.taking, rig.lock, rig.sender.line.turns, self.queue, calls_all)


class _Settling:
    """``Arrivals.settle`` with what it is called with."""

    def __init__(self, rig: Parts) -> None:
        self.rig = rig
        self.queue = deque[Batch]()

    def __call__(self, *, calls_all: bool = False) -> tuple[int, int]:
        return self.rig.accumulator.arrivals.settle(self.queue, calls_all)


def _seal_one(rig: Parts, partition: int = 0, *, called: bool = False) -> Batch:
    """A sealed batch of one record, with a callback or without."""
    batch: Batch = rig.send(b"v", partition=partition, timestamp_ms=0)._batch
    if called:
        batch.ask(0, _ignore)
    rig.accumulator.seal_all()
    return batch


def _deliver(rig: Parts) -> None:
    while rig.pipeline.deliver_one() is not None:
        pass


@pytest.mark.parametrize("how", ["lone", "all"])
@pytest.mark.parametrize("calls", ["none", "its own", "all"])
def test_a_batch_that_was_delivered_is_settled_in_one_step(how: str, calls: str) -> None:
    with parts() as rig:
        topic, watch, states = rig.topic("t", 3), rig.watch, rig.arena.batch_states
        for offset in range(4):
            take = _Lone(rig) if how == "lone" else _Settling(rig)
            assert take() in (False, (0, 0))
            batch = _seal_one(rig, 1, called=calls == "its own")
            assert take(calls_all=calls == "all") in (False, (0, 0)), "it has no result yet"
            assert (batch.outcome, topic.under_way) == (None, {1: 1})
            _deliver(rig)
            assert rig.accumulator.has_results()
            assert take(calls_all=calls == "all") in (True, (1, 0))
            assert batch.outcome == Outcome(None, offset, -1)
            assert isinstance(batch.outcome, Outcome)
            assert (topic.under_way, watch.delivered_ever) == ({}, offset + 1)
            if calls == "none":
                assert (len(take.queue), batch.finished) == (0, True)
                assert states.load(batch.descriptor) == FREE
                assert rig.accumulator.batches[batch.descriptor] is None
            else:
                assert (list(take.queue), batch.finished) == ([batch], False)
                assert states.load(batch.descriptor) == REPORTING
                assert rig.accumulator.batches[batch.descriptor] is batch
                rig.accumulator.release(batch)
            assert not rig.accumulator.has_results()
            assert take() in (False, (0, 0)), "it was taken"


def test_many_are_settled_at_once_in_the_order_of_their_seals() -> None:
    with parts(linger_ms=1000) as rig:
        topic, settle = rig.topic("t", 5), _Settling(rig)
        batches = [rig.send(b"v", partition=partition)._batch for partition in range(5)]
        order = [batches[place] for place in (3, 0, 4, 1, 2)]  # their descriptors are in another
        for batch in order:
            batch.ask(0, _ignore)
            rig.accumulator.seal(batch)
        _deliver(rig)
        assert settle() == (5, 0)
        assert list(settle.queue) == order
        assert (topic.under_way, rig.watch.delivered_ever) == ({}, 5)


def _refuse_those_of(partition: int) -> Callable[[DeliveredBatch], Result]:
    return lambda batch: refused(batch) if batch.partition == partition else delivered(batch)


def test_behind_one_of_which_more_is_to_be_said_none_is_settled() -> None:
    with parts() as rig:
        topic, settle = rig.topic("t", 3), _Settling(rig)
        rig.pipeline.fate = _refuse_those_of(1)
        batches = [_seal_one(rig, partition) for partition in (0, 0, 1, 0, 2)]
        _deliver(rig)
        assert settle() == (2, 3)
        assert [batch.finished for batch in batches] == [True, True, False, False, False]
        assert topic.under_way == {0: 1, 1: 1, 2: 1}
        assert settle() == (0, 3)
        assert rig.accumulator.take_done() == batches[2:]
        assert topic.under_way == {}


def test_the_other_way_leaves_the_same() -> None:
    left: list[object] = []
    for settled in (True, False):
        with parts() as rig:
            topic, settle = rig.topic("t", 3), _Settling(rig)
            topic.batch_limit = limit = 900
            batches = [_seal_one(rig, partition) for partition in (0, 0, 1, 2, 2, 2)]
            held = rig.send(b"held", partition=2, timestamp_ms=0)._batch
            rig.accumulator.seal_lingering(held.created_ns + 3_600_000_000_000)
            assert [held] == rig.accumulator.all_open()
            for _ in range(5):
                rig.pipeline.deliver_one()
                limit += 1 + limit // 64
            if settled:
                assert settle() == (5, 0)
            else:
                for batch in rig.accumulator.take_done():
                    rig.accumulator.release(batch)
            assert (held.closed, topic.batch_limit) == (True, limit)
            books = [rig.accumulator.batches[index] is not None for index in range(len(rig.accumulator.batches))]
            numbers = [batch.seal_number for batch in (*batches, held)]
            left.append((image(rig), books, numbers, topic.under_way, rig.accumulator.all_open()))
    assert left[0] == left[1]


def test_who_waits_for_a_result_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with parts() as rig:
        rig.topic("t", 1)
        take, told = _Lone(rig), list[bool]()
        monkeypatch.setattr(rig.watch, "tell_all", lambda: told.append(True))
        for waiting in (0, 1):
            rig.watch.waiting = waiting
            _seal_one(rig)
            _deliver(rig)
            assert take()
            assert len(told) == waiting


_LEFT: dict[str, Callable[[Parts, Batch], object]] = {
    "it was refused": lambda rig, _: setattr(rig.pipeline, "fate", refused),
    "it was split": lambda _, batch: setattr(batch, "pieces", []),
    "it was abandoned": lambda _, batch: setattr(batch, "outcome", Outcome(None, 7, 7)),
}
_NOT_ALONE: dict[str, Callable[[_Lone], object]] = {
    "another one is on the way": lambda take: _seal_one(take.rig),
    "others wait for room": lambda take: take.rig.sender.line.join(Turn(take.rig.lock, 1)),
    "results are being taken": lambda take: take.taking.acquire(),
    "somebody has the lock": lambda take: take.rig.lock.acquire(),
}


@pytest.mark.parametrize("reason", [*_LEFT, *_NOT_ALONE])
def test_a_result_of_which_more_is_to_be_said_is_left_as_it_is(reason: str) -> None:
    with parts() as rig:
        topic, take, settle = rig.topic("t", 3), _Lone(rig), _Settling(rig)
        batch = _seal_one(rig, 1)
        if reason in _LEFT:
            _LEFT[reason](rig, batch)
        else:
            _NOT_ALONE[reason](take)
        rig.pipeline.deliver_one()
        before, under_way, outcome = image(rig), dict(topic.under_way), batch.outcome
        assert rig.accumulator.has_results()
        assert not take()
        if reason in _LEFT:
            assert settle() == (0, 1)
        assert (image(rig), topic.under_way, rig.watch.delivered_ever) == (before, under_way, 0)
        assert (batch.outcome, batch.finished, len(take.queue), len(settle.queue)) == (outcome, False, 0, 0)


def test_of_two_on_the_way_neither_is_taken_as_a_lone_one() -> None:
    with parts() as rig:
        rig.topic("t", 1)
        take = _Lone(rig)
        for _ in range(2):
            _seal_one(rig)
        _deliver(rig)
        assert not take()
        assert _Settling(rig)() == (2, 0)
        third = _seal_one(rig, called=True)
        _deliver(rig)
        assert take()
        assert list(take.queue) == [third]


class _Full(deque[Batch]):
    """A queue for which there is no memory."""

    def append(self, _: Batch) -> None:
        raise MemoryError


@pytest.mark.parametrize("how", ["lone", "all"])
def test_a_batch_that_cannot_be_queued_is_not_settled(how: str) -> None:
    with parts() as rig:
        topic = rig.topic("t", 1)
        take = _Lone(rig) if how == "lone" else _Settling(rig)
        batch, take.queue = _seal_one(rig, called=True), _Full()
        _deliver(rig)
        before = image(rig)
        with pytest.raises(MemoryError):
            take()
        assert (image(rig), topic.under_way, rig.watch.delivered_ever) == (before, {0: 1}, 0)
        assert batch.outcome is None, "it can be abandoned, and told of"
        take.queue = deque()
        assert take() in (True, (1, 0))


_WORDS = 1 << 16
_ROUNDS = 1000
# Two batches of a topic-partition become DONE one after the other, again and again, while another process searches.
_DELIVERER = f"""
import mmap, sys
from slabpress._native import Memory, Words
at, low, high, done = map(int, sys.argv[2:])
words = Words(Memory(mmap.mmap(int(sys.argv[1]), 0)), at, {_WORDS})
for _ in range({_ROUNDS}):
    while words.load(low) == done or words.load(high) == done:
        pass
    words.store(low, done)
    words.store(high, done)
"""


def test_no_batch_is_taken_before_one_that_became_done_before_it() -> None:
    """The first may become DONE where the search has been, and the second where it has not."""
    low, high, taken = 1, _WORDS - 1, list[int]()
    arena = Arena.create(small_geometry(batches=_WORDS))
    with parts() as rig:
        try:
            accumulator = Accumulator(arena, rig.plan, 0, rig.control, rig.watch, random.Random(1))
            command = [sys.executable, "-c", _DELIVERER]
            figures = map(str, (arena.descriptor, arena.layout.batch_states, low, high, DONE))
            with subprocess.Popen([*command, *figures], pass_fds=[arena.descriptor], cwd=PROJECT) as child:
                try:
                    while len(taken) < 2 * _ROUNDS and child.poll() is None:
                        taken += sorted(accumulator.arrivals.take_all())
                    taken += sorted(accumulator.arrivals.take_all())
                finally:
                    child.kill()
        finally:
            arena.close()
    assert taken == [low, high] * _ROUNDS
