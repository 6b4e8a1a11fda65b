"""A walk over deaths: the job, the workers and the network process, each before any of its stores, and what is left.

Everybody's code is real but for the job's, which does store by store what the accumulator does
(``tests/support/mortal_job.py``). Brokers are healthy, and know idempotent producers. What was accepted is in the logs
in the end, once and in order: while the job lives, dead children are replaced and what they held is recovered; after
it has died, the network process drains (``Drain``).
"""

from __future__ import annotations

import contextlib
import os
from typing import Final

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from slabpress.network.drain import Drain
from slabpress.shm.admission import Admission
from slabpress.shm.control import FIRST_WORKER, Control
from slabpress.shm.states import PROCESS_RUNNING
from tests.shm.faults import Killed, Life
from tests.support.idempotent_bench import IdempotentBench, idempotent_bench
from tests.support.limited_broker import HEADER_BYTES
from tests.support.mortal_job import MortalJob
from tests.support.network_life import EVER

PARTITIONS: Final = 2
WORKERS: Final = 2
SUPERVISOR: Final = 0xFFFE
PLACES: Final = st.sampled_from([0, 0, 1])
LIVES: Final = st.integers(0, 40)
# Every single record fits.
LIMITS: Final = st.sampled_from([1 << 20, HEADER_BYTES + 60, HEADER_BYTES + 60])
SIZES: Final = st.lists(st.integers(0, 30), min_size=1, max_size=8)
HEALTHY: Final = (0,) * PARTITIONS
ROUNDS_MOST: Final = 300
# Of the control block's lines: there is no way to say that somebody else is dead.
PID_AT: Final = 8


class Deaths(RuleBasedStateMachine):
    """Steps of everybody in any order, any of whom may die in the middle."""

    direct = False

    def __init__(self) -> None:
        super().__init__()
        self._open = contextlib.ExitStack()
        self.all: IdempotentBench
        self.job: MortalJob
        self.drain: Drain | None = None
        self.dead: set[int] = set()
        self.records = 0

    @initialize(batch_bytes=LIMITS)
    def begin(self, batch_bytes: int) -> None:
        bench = idempotent_bench(batch_bytes=batch_bytes, partitions=PARTITIONS, workers=WORKERS, direct=self.direct)
        self.all = self._open.enter_context(bench)
        self.job = MortalJob(self.all.bench)
        for slot in self.all.bench.control.workers:
            self.all.bench.control.set_state(slot, PROCESS_RUNNING)
        assert {self.all.bench.control.pid(slot) for slot in self.all.bench.control.workers} == {os.getpid()}

    def teardown(self) -> None:
        try:
            if self.records:
                self._finish()
        finally:
            self._open.close()

    # The job.

    @precondition(lambda self: self.drain is None)
    @rule(partition=PLACES, sizes=SIZES, sealed=st.booleans())
    def accept(self, partition: int, sizes: list[int], sealed: bool) -> None:
        for size in sizes:
            self.records += 1
            self.job.append(partition, b"%d:" % self.records + b"x" * size)
        if sealed:
            self.job.seal(partition)

    @precondition(lambda self: self.drain is None)
    @rule(partition=PLACES)
    def seal(self, partition: int) -> None:
        self.job.seal(partition)

    @precondition(lambda self: self.drain is None)
    @rule()
    def take_results(self) -> None:
        self.job.take_results()

    @precondition(lambda self: self.drain is None and self.records)
    @rule(life=st.integers(0, 8), partition=PLACES, sizes=SIZES, last=st.sampled_from(["take results", "seal"]))
    def the_job_dies(self, life: int, partition: int, sizes: list[int], last: str) -> None:
        """It dies in the middle of what it does last, or after it."""
        if last == "take results":
            # Let there be some, of pieces if there is a limit.
            self.bury()
            self._go_well(6)
            self.accept(partition, [20] * 5, sealed=True)
            self._go_well(len(sizes))
        else:
            self.accept(partition, sizes, sealed=False)
        self.job.life.left = life if last == "seal" else life // 4
        with contextlib.suppress(Killed):
            if last == "take results":
                self.job.take_results()
            else:
                self.job.seal(partition)
        self._job_has_died()

    def _go_well(self, rounds: int) -> None:
        for each in range(rounds):
            self.all.succeed()
            self.work(each % WORKERS)
            self.network(1)

    def _job_has_died(self) -> None:
        """Whoever dies from now on is not replaced: the network process lives, and one of the workers."""
        self.all.succeed()
        assert self.all.network is not None
        self.all.network.life.left = EVER
        if len(self.dead) == WORKERS:
            self.bury()
        self.drain = Drain([self.all.network.batches], self.all.bench.control, 0, 0)

    # The children.

    @rule(worker=st.integers(0, WORKERS - 1))
    def work(self, worker: int) -> None:
        if worker not in self.dead:
            self.all.bench.workers[worker].work()

    @precondition(lambda self: self.records)
    @rule(worker=st.integers(0, WORKERS - 1), life=LIVES, buried=st.booleans())
    def worker_dies(self, worker: int, life: int, buried: bool) -> None:
        if worker in self.dead or (self.drain is not None and len(self.dead) == WORKERS - 1):
            return  # the last one that a drain has lives
        try:
            self.all.bench.worker(worker, Life(life)).work()
        except Killed:
            self.dead.add(worker)
        if buried:
            self.bury()

    @precondition(lambda self: self.dead)
    @rule()
    def bury(self) -> None:
        """The dead workers' batches are recovered, and others take their places."""
        if self.drain is not None:
            self._drain()
            return
        for worker in self.dead:
            Admission(self.all.bench.arena, SUPERVISOR).recover(worker)
        self.dead.clear()

    def _drain(self) -> None:
        """What the network process does for a job that is gone; dead workers have no process."""
        assert self.drain is not None
        for worker in self.dead:
            self.all.bench.control.memory.store_u32(Control._line(FIRST_WORKER + worker) + PID_AT, 0)
        self.drain.turn(0)

    @rule(rounds=st.integers(1, 3))
    def network(self, rounds: int) -> None:
        for _ in range(rounds):
            for node in self.all.cluster.brokers:
                self.all.send(node)
                self.all.process(node, HEALTHY)
                self.all.hear(node)
        if self.drain is not None:
            self._drain()

    @rule(heard=st.booleans())
    def send(self, heard: bool) -> None:
        for node in self.all.cluster.brokers:
            self.all.send(node)
            if heard:
                self.all.process(node, HEALTHY)

    @precondition(lambda self: self.records and self.drain is None and self.all.network is not None)
    @rule(life=LIVES)
    def doom_the_network(self, life: int) -> None:
        assert self.all.network is not None
        self.all.network.life.left = life

    @precondition(lambda self: self.records and self.drain is None and self.all.network is None)
    @rule(life=LIVES | st.just(EVER))
    def succeed(self, life: int) -> None:
        self.all.succeed(life)

    # The end.

    def _finish(self) -> None:
        """Nobody dies any more, until everything is delivered."""
        self.job.life.left = EVER
        for partition in range(PARTITIONS):
            if self.drain is None:
                self.job.seal(partition)
        for _ in range(ROUNDS_MOST):
            self.all.succeed()
            self.bury()
            if self.drain is None:
                self.job.take_results()
            for worker in range(WORKERS):
                self.work(worker)
            self.network(1)
            if not self.all.batches_under_way:
                break
            self.all.pass_time(1)
        if self.drain is None:
            self.job.take_results()
            self.all.bench.check_all_free()
            assert self.job.failed == 0
        else:
            assert self.drain.is_finished(0)
        found = [log.values for log in self.all.cluster.logs]
        assert found == self.job.accepted

    @invariant()
    def no_block_has_two_owners(self) -> None:
        if self.records:
            self.all.bench.check_conservation(somebody_is_dead=True)


class DeathsInADirectArena(Deaths):
    """Batches are sent from their slabs: those that the job has sealed, and those that the drain seals for it."""

    direct = True


Deaths.TestCase.settings = settings(max_examples=120, stateful_step_count=40)
DeathsInADirectArena.TestCase.settings = settings(max_examples=120, stateful_step_count=40)
TestDeaths = Deaths.TestCase
TestDeathsInADirectArena = DeathsInADirectArena.TestCase
