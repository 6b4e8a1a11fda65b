"""A leader's share: who gets no more, that the others do, and that no topic-partition's batches change places."""

from __future__ import annotations

import random

import pytest

from slabpress.shm import layout as at
from slabpress.shm.admission import Admission
from slabpress.shm.arena import Arena
from slabpress.shm.descriptors import Descriptors
from slabpress.shm.shares import output_shares
from slabpress.shm.splits import Splits
from slabpress.shm.states import (
    COMPRESSING,
    DONE,
    FREE,
    IN_FLIGHT,
    OVERSIZE,
    PARKED,
    PARTIAL,
    READY,
    SEALED,
)
from slabpress.shm.topics import TopicTable
from tests.shm.faults import Killed, Life, make_mortal
from tests.shm.kit import SealingCoordinator, deliver, publish_raw, small_arena, take
from tests.support.limited_broker import HEADER_BYTES
from tests.support.split_bench import numbered, split_bench

STUCK, HEALTHY = 0, 1  # partitions, each with a leader of its own
SUPERVISOR = 0xFFFE
ONE_BLOCK = b"x" * 40
TWO_BLOCKS = b"x" * 90


def _route(arena: Arena, *leaders: int | None, brokers: int = 3) -> None:
    topics = TopicTable(arena)
    for partition, leader in enumerate(leaders):
        topics.set_partition(partition, 0, partition)
        topics.set_leader(partition, leader)
    arena.memory.store_u32(at.BROKERS_AT, brokers)


def _seal(coordinator: SealingCoordinator, partition: int, value: bytes = ONE_BLOCK) -> int:
    sealed = coordinator.seal(value, partition)
    assert sealed is not None
    return sealed[0]


def _seal_all(coordinator: SealingCoordinator, partition: int, batches: int) -> list[int]:
    return [_seal(coordinator, partition) for _ in range(batches)]


def _take_all(arena: Arena, worker: Admission) -> list[int]:
    """Every batch that is admitted; each is READY and stays, as its leader takes none."""
    taken = []
    while (index := take(worker)) is not None:
        publish_raw(arena, index)
        taken.append(index)
    return taken


def test_a_stuck_leaders_batches_leave_a_fifth_of_the_output_buffers_to_the_others() -> None:
    with small_arena(slabs=64, outputs=20, batches=128) as arena:
        _route(arena, 1, 2)
        coordinator, worker = SealingCoordinator(arena), Admission(arena, 0)
        stuck = _seal_all(coordinator, STUCK, 40)
        healthy = _seal_all(coordinator, HEALTHY, 3)
        taken = _take_all(arena, worker)
        assert taken == [*stuck[:16], *healthy]
        assert [arena.batch_states.load(index) for index in stuck[16:]] == [PARKED] * 24
        assert arena.memory.load_u64(at.PARKED_AT) == 24
        assert not worker.has_work()


def test_what_was_set_aside_is_admitted_in_seal_order_when_its_leader_goes_on() -> None:
    with small_arena(slabs=64, outputs=20, batches=128) as arena:
        _route(arena, 1, 2)
        coordinator, worker = SealingCoordinator(arena), Admission(arena, 0)
        order = _seal_all(coordinator, STUCK, 40)
        waiting = _take_all(arena, worker)
        later = _seal_all(coordinator, STUCK, 4)
        taken = list(waiting)
        while waiting:
            deliver(arena, waiting.pop(0))
            assert worker.has_work() or len(taken) == 44
            new = _take_all(arena, worker)
            taken += new
            waiting += new
        assert taken == order + later
        assert arena.memory.load_u64(at.PARKED_AT) == 0
        assert arena.batch_states.tally(1) == [128]


@pytest.mark.parametrize(
    ("leaders", "brokers"), [((1, 2), 1), ((1, 1), 1)], ids=["one broker is known", "one broker leads both"]
)
def test_with_one_broker_there_is_nobody_to_leave_anything_to(leaders: tuple[int, int], brokers: int) -> None:
    with small_arena(slabs=64, outputs=20, batches=128) as arena:
        _route(arena, *leaders, brokers=brokers)
        coordinator, worker = SealingCoordinator(arena), Admission(arena, 0)
        stuck = _seal_all(coordinator, STUCK, 40)
        assert _take_all(arena, worker) == stuck[:20]


def test_partitions_without_a_leader_have_one_share_and_those_not_routed_yet_have_no_limit() -> None:
    with small_arena(slabs=64, outputs=20, batches=128, partitions=4) as arena:
        _route(arena, None, None)
        TopicTable(arena).set_partition(2, 0, 2)
        coordinator, worker = SealingCoordinator(arena), Admission(arena, 0)
        without = [_seal(coordinator, number % 2) for number in range(30)]
        unknown = _seal_all(coordinator, 2, 4)
        assert _take_all(arena, worker) == [*without[:16], *unknown]


def test_slabs_are_shared_alike_and_one_that_holds_none_always_gets_some() -> None:
    with small_arena(slabs=20, outputs=20, batches=128) as arena:
        _route(arena, 1, 2)
        coordinator, shares = SealingCoordinator(arena), arena.slab_shares
        for _ in range(16):
            assert not shares.over(STUCK)
            _seal(coordinator, STUCK)
        assert shares.over(STUCK)
        assert not shares.over(HEALTHY)
        assert coordinator.seal(ONE_BLOCK, STUCK) is None
        assert coordinator.writer.held_back == STUCK
        assert coordinator.seal(ONE_BLOCK * 5, HEALTHY) is not None
        assert coordinator.writer.held_back == -1
        assert coordinator.seal(ONE_BLOCK, HEALTHY) is None, "what it holds is more than four times nothing"


def test_who_holds_nothing_may_take_the_last(  # a record that needs all of the arena must fit once all is free
) -> None:
    with small_arena(slabs=20, outputs=20, batches=128) as arena:
        _route(arena, 1, 2)
        coordinator, shares = SealingCoordinator(arena), arena.slab_shares
        while arena.slabs.count_free() > 1:
            arena.slabs.claim(1, 1)
        assert not shares.over(HEALTHY)
        _seal(coordinator, HEALTHY)
        assert shares.over(HEALTHY)


def test_an_old_count_makes_nobody_wait() -> None:
    """Counting is paid for once in many decisions; only a verdict against a leader is always of this moment."""
    with small_arena(slabs=256, outputs=256, batches=512) as arena:
        _route(arena, 1, 2)
        coordinator, shares = SealingCoordinator(arena), arena.slab_shares
        stuck = [_seal(coordinator, STUCK) for _ in range(203)]
        assert not shares.over(STUCK)
        stuck += [_seal(coordinator, STUCK) for _ in range(2)]
        assert any(shares.over(STUCK) for _ in range(10))
        for index in stuck[:150]:
            first = Descriptors(arena).sealed(index).first_slab
            arena.slabs.mark(first, 0)
            arena.batch_states.store(index, FREE)
        assert not shares.over(STUCK)


def test_more_leaders_than_are_counted_apart_share_the_last_count() -> None:
    with small_arena(slabs=200, outputs=200, batches=400, partitions=100) as arena:
        _route(arena, *range(100))
        coordinator, shares = SealingCoordinator(arena), arena.slab_shares
        number = 0
        while coordinator.seal(ONE_BLOCK, number % 100) is not None:
            number += 1
        assert coordinator.writer.held_back == number % 100 >= 63
        assert not shares.over(0)
        assert shares.over(99)


def test_a_partition_that_is_none_is_an_error() -> None:
    with small_arena() as arena, pytest.raises(IndexError, match="partition 4 of 4"):
        arena.output_shares.over(4)


@pytest.mark.inside
def test_room_that_comes_while_batches_are_set_aside_lets_no_later_one_pass() -> None:
    with small_arena(slabs=64, outputs=20, batches=128) as arena:
        _route(arena, 1, 2)
        coordinator = SealingCoordinator(arena)
        waiting: list[int] = []

        class WhileTheNetworkProcessFrees(Admission):
            def _park(self, index: int) -> None:
                super()._park(index)
                while waiting:
                    deliver(arena, waiting.pop())

        worker = WhileTheNetworkProcessFrees(arena, 0)
        order = _seal_all(coordinator, STUCK, 19)
        for _ in range(16):
            index = take(worker)
            assert index is not None
            publish_raw(arena, index)
            waiting.append(index)
        assert take(worker) is None, "all are set aside by the count that was made for the first"
        assert not waiting
        assert _take_all(arena, worker) == order[16:]


@pytest.mark.inside
def test_a_leader_that_moves_between_two_looks_lets_no_later_batch_pass() -> None:
    with small_arena(slabs=64, outputs=20, batches=128) as arena:
        _route(arena, 1, 2)
        coordinator = SealingCoordinator(arena)

        class WhileTheLeaderMoves(Admission):
            def _next_parked(self) -> int | None:
                parked = super()._next_parked()
                TopicTable(arena).set_leader(STUCK, None)
                while waiting:
                    deliver(arena, waiting.pop())
                return parked

        order = _seal_all(coordinator, STUCK, 20)
        waiting = _take_all(arena, Admission(arena, 0))
        order = order[len(waiting) :] + _seal_all(coordinator, STUCK, 2)
        worker = WhileTheLeaderMoves(arena, 1)
        assert take(worker) is None, "what was set aside has been looked at"
        assert _take_all(arena, worker) == order


def test_a_piece_of_a_split_batch_holds_no_slabs_of_its_leaders_share() -> None:
    with small_arena(slabs=64, outputs=20, batches=128) as arena:
        _route(arena, 1, 2)
        coordinator, worker = SealingCoordinator(arena), Admission(arena, 0)
        index = _seal(coordinator, STUCK, TWO_BLOCKS)
        assert take(worker) == index
        assert arena.slab_shares.held_by_leader(STUCK, 1 << COMPRESSING) == 2
        publish_raw(arena, index)
        output = Descriptors(arena).output(index)
        Splits(arena).begin(index, output.first_output, output.payload_bytes, 0, 2)
        arena.batch_states.store(index, OVERSIZE)
        assert take(worker) == index
        assert arena.batch_states.load(index) == COMPRESSING
        assert arena.slab_shares.held_by_leader(STUCK, 1 << COMPRESSING) == 0


# --- direct arenas: slabs are what is sent ------------------------------------------------------------------


def test_what_waits_to_be_sent_from_its_slabs_is_its_leaders_share_until_it_has_its_result() -> None:
    with small_arena(slabs=20, outputs=4, batches=128, direct=True) as arena:
        _route(arena, 1, 2)
        coordinator, shares = SealingCoordinator(arena), arena.slab_shares
        order = _seal_all(coordinator, STUCK, 16)
        assert [arena.batch_states.load(index) for index in order] == [READY] * 16
        assert shares.held_by_leader(STUCK, 1 << READY) == 16
        assert coordinator.seal(ONE_BLOCK, STUCK) is None
        assert coordinator.writer.held_back == STUCK
        # It is sent, and put back; or split, and sent in pieces.
        for state in (IN_FLIGHT, READY, IN_FLIGHT, OVERSIZE, COMPRESSING, PARTIAL):
            for index in order:
                arena.batch_states.store(index, state)
            assert shares.over(STUCK)
            assert not shares.over(HEALTHY)
        assert coordinator.seal(ONE_BLOCK, HEALTHY) is not None
        for index in order[:8]:
            deliver(arena, index)
        assert not shares.over(STUCK)
        assert coordinator.seal(ONE_BLOCK, STUCK) is not None


def test_the_source_of_a_split_batch_is_its_leaders_share_of_the_slabs_until_the_last_piece() -> None:
    with split_bench(HEADER_BYTES + 60, slabs=20, outputs=4, direct=True) as bench:
        TopicTable(bench.arena).set_leader(0, 1)
        assert bench.seal(numbered(6, 20)) is not None
        held = bench.arena.geometry.slab_count - bench.arena.slabs.count_free()
        seen = set()
        while not bench.told or sum(told.records for told in bench.told[1]) < 6:
            bench.network.follow()
            for batch in bench.network.heads():
                bench.network.answer(batch, bench.network.send(batch))
            state = bench.arena.batch_states.load(0)
            seen.add(state)
            if state != DONE:
                assert bench.arena.slab_shares.held_by_leader(0, 1 << state) == held
                assert bench.arena.slabs.count_free() == bench.arena.geometry.slab_count - held
            bench.take_results()
            bench.workers[0].work()
        assert seen == {OVERSIZE, PARTIAL, DONE}
        bench.check_all_free()


@pytest.mark.parametrize(("stuck", "expected"), [(16, 3), (4, 7)], ids=["with its share", "with less"])
def test_what_is_held_within_the_shares_is_that_of_leaders_that_may_have_more(stuck: int, expected: int) -> None:
    with small_arena(slabs=24, outputs=4, batches=128, direct=True) as arena:
        _route(arena, 1, 2)
        coordinator = SealingCoordinator(arena)
        _seal_all(coordinator, STUCK, stuck)
        _seal_all(coordinator, HEALTHY, 3)
        assert arena.slab_shares.held_within(1 << READY) == expected
        assert arena.slab_shares.held_within(1 << IN_FLIGHT) == 0


class Walk:
    """Three workers with counts of their own, leaders that move, batches that are delivered in any order."""

    def __init__(self, arena: Arena, seed: int) -> None:
        self._rng = random.Random(seed)
        self._arena = arena
        self._coordinator, self._descriptors = SealingCoordinator(arena), Descriptors(arena)
        self._workers = [Admission(arena, number) for number in range(3)]
        for worker in self._workers:
            worker._shares = output_shares(arena)
        self._ready: list[int] = []
        self.sealed: dict[int, list[int]] = {partition: [] for partition in range(4)}
        self.admitted: dict[int, list[int]] = {partition: [] for partition in range(4)}

    def step(self) -> None:
        step = self._rng.choices((self._seal, self._take, self._deliver, self._move), (40, 35, 20, 5))[0]
        step()

    def _seal(self) -> None:
        partition = self._rng.choice((0, 0, 0, 1, 2, 3))
        made = self._coordinator.seal(self._rng.choice((ONE_BLOCK, TWO_BLOCKS)), partition)
        if made is not None:
            self.sealed[partition].append(self._descriptors.seal_number(made[0]))

    def _take(self) -> None:
        index = take(self._rng.choice(self._workers))
        if index is not None:
            partition = self._descriptors.sealed(index).partition_index
            self.admitted[partition].append(self._descriptors.seal_number(index))
            publish_raw(self._arena, index)
            self._ready.append(index)

    def _deliver(self) -> None:
        if self._ready:
            deliver(self._arena, self._ready.pop(self._rng.randrange(len(self._ready))))

    def _move(self) -> None:
        TopicTable(self._arena).set_leader(self._rng.randrange(4), self._rng.choice((None, 1, 2, 3)))

    def finish(self) -> None:
        while self._ready or any(worker.has_work() for worker in self._workers):
            self._take()
            self._deliver()


@pytest.mark.parametrize("seed", range(20))
def test_however_room_comes_and_goes_each_partitions_batches_are_admitted_in_seal_order(seed: int) -> None:
    with small_arena(slabs=64, outputs=24, batches=128, partitions=4) as arena:
        _route(arena, 1, 2, 3, 1)
        walk = Walk(arena, seed)
        for _ in range(1500):
            walk.step()
        walk.finish()
        assert walk.admitted == walk.sealed, "every batch that was sealed, in its order"
        assert arena.batch_states.tally(1) == [128]


def test_a_death_at_any_store_loses_no_batch_that_is_set_aside() -> None:
    deaths = 0
    while True:
        with small_arena(slabs=64, outputs=10, batches=128) as arena:
            _route(arena, 1, 2)
            coordinator, heir = SealingCoordinator(arena), Admission(arena, 1)
            order = _seal_all(coordinator, STUCK, 12)
            waiting = _take_all(arena, heir)
            order += _seal_all(coordinator, STUCK, 3)
            others = _seal_all(coordinator, HEALTHY, 2)
            deliver(arena, waiting.pop(0))
            deliver(arena, waiting.pop(0))
            dying, life = Admission(arena, 0), Life(deaths)
            make_mortal(dying, arena, life)
            died = False
            try:
                for _ in range(6):
                    index = take(dying)
                    if index is not None:
                        arena.batch_states.store(index, COMPRESSING)
            except Killed:
                died = True
            Admission(arena, SUPERVISOR).recover(0)
            taken: list[int] = []
            while (new := _take_all(arena, heir)) or waiting:
                taken += new
                waiting += new
                if waiting:
                    deliver(arena, waiting.pop(0))
            assert sorted(taken) == sorted([*order[8:], *others])
            assert [index for index in taken if index in order] == [index for index in order if index in taken]
            assert arena.batch_states.tally(1) == [128]
            assert arena.outputs.count_free() == 10
            assert not arena.batch_states.find_all(SEALED)
            assert not arena.batch_states.find_all(READY)
        if not died:
            return
        deaths += 1
