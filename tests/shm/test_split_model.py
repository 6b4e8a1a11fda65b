"""Splitting against a model: random seals, limits, steps of every process and deaths between any two of their stores.

The workers, their admission and the network process's side of the arena are the real ones. After every step law 2
holds; in the end every record has exactly one result, and lies where that says.
"""

from __future__ import annotations

import contextlib
from typing import Final

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from slabpress.network.partition import Batch
from slabpress.network.wire import ProduceResult
from slabpress.results import DELIVERED
from slabpress.shm import layout as at
from slabpress.shm.admission import Admission
from slabpress.shm.states import COMPRESSING, ORPHAN, OVERSIZE, SEALED
from tests.shm.faults import Killed, Life
from tests.shm.kit import finish, take
from tests.support.limited_broker import HEADER_BYTES, Network
from tests.support.split_bench import split_bench

SUPERVISOR: Final = 0xFFFE
WORKERS: Final = 3
PARTITIONS: Final = 3
BLOCK: Final = 64
# One piece of any batch of several records; such a batch is never larger (slabpress/plan.py).
SPLIT_OUTPUTS: Final = 3
OUTPUTS: Final = 9
# From "not even an empty record" to "whatever comes".
LIMITS: Final = st.sampled_from([HEADER_BYTES + most for most in (5, 25, 50, 100, 1000)])
STEPS: Final = st.sampled_from(["taken", "made", "sent", "answered", "told"])
SIZES: Final = st.lists(st.integers(0, 50), min_size=1, max_size=18) | st.lists(
    st.integers(100, (OUTPUTS - SPLIT_OUTPUTS) * BLOCK - 20), min_size=1, max_size=1
)


class SplitsAgainstAModel(RuleBasedStateMachine):
    """Who holds what is read from the states; what becomes of the records, from what was sealed."""

    direct = False

    def __init__(self) -> None:
        super().__init__()
        self._open = contextlib.ExitStack()
        self.bench = self._open.enter_context(
            split_bench(
                HEADER_BYTES + 50,
                workers=WORKERS,
                split_outputs=SPLIT_OUTPUTS,
                slab_bytes=BLOCK,
                slabs=12 if not self.direct else 12 + OUTPUTS - SPLIT_OUTPUTS,
                outputs=OUTPUTS if not self.direct else SPLIT_OUTPUTS,
                partitions=PARTITIONS,
                direct=self.direct,
            )
        )
        self.held: dict[int, int] = {}
        self.dead: set[int] = set()
        self.on_the_wire: list[tuple[Batch, ProduceResult]] = []
        self.network_died = self.network_is_dead = False

    def teardown(self) -> None:
        try:
            self._drain()
        finally:
            self.on_the_wire.clear()
            self._open.close()

    def _drain(self) -> None:
        """Everybody lives and works until nothing is left: nothing waits for ever."""
        for worker in [*self.held]:
            self.finish(worker)
        while self.dead:
            self.bury()
        if self.network_is_dead:
            self.succeed()
        for _ in range(len(self.on_the_wire)):
            self.answer(0)
        self.bench.run()
        self.bench.check_told()
        self.bench.check_all_free()
        delivered = sum(
            told.records for batch in self.bench.told.values() for told in batch if told.result.code == DELIVERED
        )
        in_log = sum(len(log) for log in self.bench.broker.logs.values())
        # Without idempotence what was under way at a network process's death may be appended twice, or fail after it
        # was appended.
        assert in_log == delivered or (self.network_died and in_log > delivered)
        for partition in range(PARTITIONS):
            self._check_order(partition)

    def _check_order(self, partition: int) -> None:
        """The log has the delivered records in the order of their seals, but for those that came again."""
        expected = [
            value
            for number, values in sorted(self.bench.sealed.items())
            for told in self.bench.told[number]
            for value in values[told.first : told.first + told.records]
            if self.bench.partition_of[number] == partition and told.result.code == DELIVERED
        ]
        delivered = set(expected)
        assert [value for value in dict.fromkeys(self.bench.broker.values(partition)) if value in delivered] == expected

    # The coordinator and the broker.

    @initialize(batches=st.lists(SIZES, min_size=2, max_size=5), limit=LIMITS)
    def begin(self, batches: list[list[int]], limit: int) -> None:
        self.bench.broker.limit = limit
        for place, sizes in enumerate(batches):
            self.seal(sizes, place % PARTITIONS)

    @rule(sizes=SIZES, partition=st.integers(0, PARTITIONS - 1))
    def seal(self, sizes: list[int], partition: int) -> None:
        number = self.bench.arena.seal_tail + 1
        while len(sizes) > 1 and sum(sizes) + 14 * len(sizes) > SPLIT_OUTPUTS * BLOCK:
            sizes = sizes[:-1]
        values = [b"%d.%d:" % (number, place) + b"x" * size for place, size in enumerate(sizes)]
        self.bench.seal(values, partition)

    @rule(limit=LIMITS)
    def set_limit(self, limit: int) -> None:
        self.bench.broker.limit = limit

    # Hypothesis leaves out some rules in each example. These are four, so that in nearly all of them work is done.
    @rule()
    def work_a_little(self) -> None:
        self._work(1, "told")

    @rule(last=STEPS)
    def work_in_part(self, last: str) -> None:
        self._work(1, last)

    @rule(rounds=st.integers(1, 4), last=STEPS)
    def work(self, rounds: int, last: str) -> None:
        self._work(rounds, last)

    @rule(rounds=st.integers(1, 12))
    def work_much(self, rounds: int) -> None:
        self._work(rounds, "made")

    def _work(self, rounds: int, last: str) -> None:
        """Whoever lives goes on, and stops somewhere."""
        for left in reversed(range(rounds)):
            stop = "" if left else last
            for worker in set(range(WORKERS)) - set(self.held) - self.dead:
                self.take(worker)
            if stop == "taken":
                return
            for worker in [*self.held]:
                self.finish(worker)
            if stop == "made" or self.network_is_dead:
                return
            for batch in self._sendable(self.bench.network):
                self.on_the_wire.append((batch, self.bench.network.send(batch)))
            if stop == "sent":
                return
            while self.on_the_wire:
                self.answer(0)
            if stop != "answered":
                self.bench.take_results()

    # The workers.

    def _expected(self) -> int | None:
        """Who is next, read from the states: orphans, then pieces, then the rest, each in the order of their seals."""
        bench, states = self.bench, self.bench.arena.batch_states
        number, free = bench.descriptors.seal_number, bench.arena.outputs.count_free()
        compressing = states.find_all(COMPRESSING)
        orphans = [index for index in compressing if bench.descriptors.worker(index) == ORPHAN]
        if orphans:
            return min(orphans, key=number)
        for state, leave in ((OVERSIZE, 0), (SEALED, SPLIT_OUTPUTS)):
            first = min(states.find_all(state), key=number, default=None)
            if first is not None and free >= -(-bench.descriptors.sealed(first).raw_bytes // BLOCK) + leave:
                return first
        return None

    def _has_loose_ends(self) -> bool:
        """Whether an admitter died before it had counted orphans or moved the head: the next holder puts that right."""
        arena, states = self.bench.arena, self.bench.arena.batch_states
        orphans = sum(self.bench.descriptors.worker(index) == ORPHAN for index in states.find_all(COMPRESSING))
        head, index = arena.seal_head, arena.sealed_at(arena.seal_head)
        is_sealed = states.load(index) == SEALED and self.bench.descriptors.seal_number(index) == head + 1
        head_is_right = arena.is_direct or head == arena.seal_tail or is_sealed
        return arena.memory.load_u64(at.ORPHANS_AT) != orphans or not head_is_right

    def take(self, worker: int) -> None:
        admission, loose = self.bench.workers[worker].admission, self._has_loose_ends()
        expected, said = self._expected(), admission.has_work()
        taken = take(admission)
        if loose and taken is None:
            assert not self._has_loose_ends()
            expected, said, loose = self._expected(), admission.has_work(), False
            taken = take(admission)
        assert taken == expected
        assert loose or said == (taken is not None), "a worker would sleep beside its work, or not sleep without any"
        if taken is not None:
            self.held[worker] = taken

    def finish(self, worker: int, life: Life | None = None) -> None:
        compressor, index = self.bench.worker(worker, life), self.held.pop(worker)
        finish(compressor, index)

    @precondition(lambda self: len(self.held) + len(self.dead) < WORKERS)
    @rule(life=st.integers(0, 12))
    def die_while_taking(self, life: int) -> None:
        worker = min(set(range(WORKERS)) - set(self.held) - self.dead)
        with contextlib.suppress(Killed):
            self.bench.worker(worker, Life(life)).admission.take()
        self.dead.add(worker)

    @precondition(lambda self: self.held)
    @rule(life=st.integers(0, 20))
    def die_while_finishing(self, life: int) -> None:
        worker = min(self.held)
        with contextlib.suppress(Killed):
            self.finish(worker, Life(life))
        self.dead.add(worker)

    @precondition(lambda self: self.dead)
    @rule()
    def bury(self) -> None:
        worker = min(self.dead)
        Admission(self.bench.arena, SUPERVISOR).recover(worker)
        self.dead.discard(worker)
        self.bench.scribble_on_free_blocks()

    # The network process.

    def _sendable(self, network: Network) -> list[Batch]:
        network.follow()
        busy = {batch.index for batch, _ in self.on_the_wire}
        return [batch for batch in network.heads() if batch.index not in busy]

    @precondition(lambda self: not self.network_is_dead and self.on_the_wire)
    @rule(which=st.integers(0, PARTITIONS - 1))
    def answer(self, which: int) -> None:
        batch, result = self.on_the_wire.pop(which % len(self.on_the_wire))
        self.bench.network.answer(batch, result)
        self.bench.scribble_on_free_blocks()

    @precondition(lambda self: not self.network_is_dead and self._sendable(self.bench.network))
    @rule()
    def expire(self) -> None:
        self.bench.network.expire(self._sendable(self.bench.network)[0])
        self.bench.scribble_on_free_blocks()

    @precondition(lambda self: not self.network_is_dead)
    @rule(life=st.integers(0, 30), what=st.sampled_from(["take over", "send", "answer", "expire"]), soon=st.booleans())
    def network_dies(self, life: int, what: str, soon: bool) -> None:
        """What is on the wire is taken over by a process that dies as well, in the middle of what it does."""
        self.on_the_wire.clear()
        self.network_died = self.network_is_dead = True
        self._live_and_die(life, what)
        if soon:
            self.every_block_has_one_owner()
            self.succeed()

    def _live_and_die(self, life: int, what: str) -> None:
        dying = self.bench.heir(Life(life))
        with contextlib.suppress(Killed):
            dying.batches.take_over()
            heads = self._sendable(dying)
            if what == "take over" or not heads:
                return
            if what == "expire":
                dying.expire(heads[0])
                return
            result = dying.send(heads[0])
            if what == "answer":
                dying.answer(heads[0], result)

    @precondition(lambda self: self.network_is_dead)
    @rule()
    def succeed(self) -> None:
        self.bench.heir().batches.take_over()
        self.network_is_dead = False
        self.bench.scribble_on_free_blocks()

    @invariant()
    def every_block_has_one_owner(self) -> None:
        self.bench.check_conservation(somebody_is_dead=bool(self.dead) or self.network_is_dead)


class SplitsInADirectArena(SplitsAgainstAModel):
    """Batches are sent from their slabs, and workers make pieces only."""

    direct = True


SplitsAgainstAModel.TestCase.settings = settings(max_examples=250, stateful_step_count=30)
SplitsInADirectArena.TestCase.settings = settings(max_examples=250, stateful_step_count=30)
TestSplitsAgainstAModel = SplitsAgainstAModel.TestCase
TestSplitsInADirectArena = SplitsInADirectArena.TestCase
