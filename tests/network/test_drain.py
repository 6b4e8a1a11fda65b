"""Draining for a job that is gone: which workers there are, and what it was sealing when it died."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Final

import pytest

from slabpress.network import drain as drain_module
from slabpress.network.batches import ArenaBatches
from slabpress.network.drain import Drain
from slabpress.network.outcomes import Outcome
from slabpress.shm.admission import Admission
from slabpress.shm.control import _PID, FIRST_WORKER, Control
from slabpress.shm.descriptors import Descriptors
from slabpress.shm.handover import is_alive
from slabpress.shm.states import COMPRESSING, PROCESS_RUNNING, PROCESS_STARTING
from tests.shm.faults import Killed
from tests.shm.kit import SealingCoordinator, small_arena
from tests.support.idempotent_bench import idempotent_bench
from tests.support.mortal_job import MortalJob

SETTINGS: Final = {"acks": -1, "delivery_timeout_ms": 60_000, "max_request_size": 1000, "enable_idempotence": False}
MINUTE_NS: Final = 60_000_000_000
ROUNDS_MOST: Final = 50


@pytest.fixture
def dead() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@contextlib.contextmanager
def _drained(dead: int, *, direct: bool = False) -> Iterator[tuple[ArenaBatches, Control, Drain]]:
    """An arena with one sealed batch; the job was killed just after it had started a worker."""
    control = Control.create(1)
    try:
        control.set_state(FIRST_WORKER, PROCESS_STARTING)
        control.memory.store_u32(control._line(FIRST_WORKER) + _PID, dead)
        with small_arena(direct=direct) as arena:
            assert SealingCoordinator(arena).seal(b"x" * 40) is not None
            batches = ArenaBatches(1, arena, dict(SETTINGS))
            yield batches, control, Drain([batches], control, 1000, 0)
    finally:
        control.close()


def test_a_worker_that_is_just_starting_is_waited_for_but_not_for_ever(dead: int) -> None:
    with _drained(dead) as (_, control, drain):
        drain.turn(0)
        assert not drain.is_finished(0)
        drain.turn(MINUTE_NS // 2)
        assert drain.is_finished(MINUTE_NS // 2)
        assert "no worker is left" in drain.words(1)
        control.set_state(FIRST_WORKER, PROCESS_RUNNING)
        drain.turn(MINUTE_NS // 2)
        assert not drain.is_finished(MINUTE_NS // 2)


@pytest.mark.inside
@pytest.mark.parametrize("after", ["its word", "its id"])
def test_nothing_is_taken_from_a_worker_that_begins_to_work_after_a_look_at_its_line(
    dead: int, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _drained(dead) as (batches, control, drain):
        worker = Admission(batches.arena, 0)

        def and_then_it_works(look: Callable[[int], int]) -> Callable[[int], int]:
            def looked(what: int) -> int:
                seen = look(what)
                control.set_state(FIRST_WORKER, PROCESS_RUNNING)
                worker.take()
                return seen

            return looked

        if after == "its word":
            monkeypatch.setattr(control, "state", and_then_it_works(control.state))
        else:
            monkeypatch.setattr(drain_module, "is_alive", and_then_it_works(is_alive))
        drain.turn(0)
        held = batches.arena.batch_states.find_all(COMPRESSING)
        assert [Descriptors(batches.arena).worker(index) for index in held] == [0] * len(held)


def test_what_is_sent_from_its_slabs_is_sent_without_any_worker_and_then_all_is_over(dead: int) -> None:
    with _drained(dead, direct=True) as (batches, _, drain):
        drain.turn(MINUTE_NS // 2)
        assert not drain.is_finished(MINUTE_NS // 2), "nobody need compress it"
        [batch] = batches.follow()
        batches.make_bytes(batch)
        batches.start(batch)
        assert not drain.is_finished(MINUTE_NS // 2)
        batches.finish(batch, Outcome(0))
        batch.parts = []
        assert drain.is_finished(MINUTE_NS // 2)
        assert "lost" not in drain.words(1)


def test_a_batch_that_is_split_is_lost_without_a_worker_and_the_log_says_so(dead: int) -> None:
    with _drained(dead, direct=True) as (batches, _, drain):
        [batch] = batches.follow()
        batches.make_bytes(batch)
        batches.start(batch)
        batches.split(batch)
        drain.turn(MINUTE_NS // 2)
        assert drain.is_finished(MINUTE_NS // 2)
        assert "1 batches lost: no worker is left" in drain.words(1)


@pytest.mark.parametrize("direct", [False, True], ids=["compressing", "direct"])
def test_a_job_that_dies_before_any_store_of_a_seal_leaves_its_batch_to_the_drain(direct: bool) -> None:
    """Other batches come before and after it, in the order in which they were sealed and opened; each comes once."""
    for life in itertools.count():
        with idempotent_bench(direct=direct) as everybody:
            job, control = MortalJob(everybody.bench), everybody.bench.control
            for slot in control.workers:
                control.set_state(slot, PROCESS_RUNNING)
            assert {control.pid(slot) for slot in control.workers} == {os.getpid()}
            for partition, value in ((0, b"sealed"), (1, b"open")):
                assert job.append(partition, value)
            job.seal(0)
            # Two slabs, so that there is a store between two of one chain.
            assert job.append(0, b"dies with it" * 6)
            job.life.left = life
            try:
                job.seal(0)
                died = False
            except Killed:
                died = True
            everybody.look()
            assert everybody.network is not None
            drain = Drain([everybody.network.batches], control, 0, 0)
            everybody.bench.check_conservation()
            for _ in range(ROUNDS_MOST):
                if drain.is_finished(0):
                    break
                everybody.bench.workers[0].work()
                for node in everybody.cluster.brokers:
                    everybody.send(node)
                    everybody.process(node, (0, 0))
                    everybody.hear(node)
                drain.turn(0)
            assert drain.is_finished(0)
            assert [log.values for log in everybody.cluster.logs] == job.accepted
            assert everybody.bench.arena.slabs.count_free() == everybody.bench.arena.geometry.slab_count
            everybody.bench.check_conservation()
        if not died:
            break
    # Number, slabs, ring, state, tail; and where the slabs are said to be what is sent.
    assert life == 6 + direct
