"""Splitting without processes: one arena, a broker that takes batches up to a size, and each step the test's own.

The worker is the real ``Compressor`` and the network process's side the real ``ArenaBatches``; what lies between them
and real processes (queues, sockets, doorbells) has tests of its own.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from slabpress._native import NONE
from slabpress.results import DELIVERED
from slabpress.shm.arena import Arena
from slabpress.shm.control import Control
from slabpress.shm.descriptors import Descriptors, Result
from slabpress.shm.splits import Splits
from slabpress.shm.states import (
    BATCH_STATES,
    COMPRESSING,
    DONE,
    FREE,
    IN_FLIGHT,
    OPEN,
    OUTPUT_FILLING,
    OUTPUT_IN_FLIGHT,
    OUTPUT_READY,
    OUTPUT_STATES,
    OVERSIZE,
    PARTIAL,
    READY,
    SEALED,
    SLAB_COMPRESSING,
    SLAB_IN_FLIGHT,
    SLAB_READY,
    SLAB_SEALED,
    SLAB_STATES,
    STATE_MASK,
)
from slabpress.shm.topics import TopicTable
from slabpress.workers.codecs import Codec, make_codec
from slabpress.workers.compressor import Compressor
from tests.shm.faults import Life, MortalDescriptors, make_mortal_worker, mortal
from tests.shm.kit import SealingCoordinator, open_batch, publish_seal, small_geometry
from tests.support.limited_broker import TOPIC, LimitedBroker, Network

# No test needs more than some hundred.
ROUNDS_MOST: Final = 3000


class Told(NamedTuple):
    """What the coordinator was told of some of a batch's records."""

    first: int
    records: int
    result: Result


class SplitBench:
    """Coordinator, workers, network process and broker of one small arena.

    Args:
        arena: the arena, with the topic TOPIC known to nobody yet.
        limit: the broker's.
        workers: how many.
        codec: the producer's compression type.

    Attributes:
        sealed: by seal number, the values of each batch that was ever sealed.
        partition_of: by seal number, where it goes.
        told: by seal number, what the coordinator was told.
        now: the time in ns at which batches are created; None for the real one.
    """

    def __init__(self, arena: Arena, limit: int, workers: int = 1, codec: str = "none") -> None:
        self.arena = arena
        self.control = Control.create(workers)
        self.broker = LimitedBroker(limit)
        self.coordinator = SealingCoordinator(arena)
        self.descriptors = Descriptors(arena)
        self.splits = Splits(arena)
        table = TopicTable(arena)
        table.want(0, TOPIC)
        for partition in range(arena.geometry.partition_count):
            table.set_partition(partition, 0, partition)
        self.codec = make_codec(codec, None, 1 << 20)
        self.workers = [self.worker(number) for number in range(workers)]
        self.networks = [Network(arena, self.broker)]
        self.sealed: dict[int, list[bytes]] = {}
        self.partition_of: dict[int, int] = {}
        self.told: defaultdict[int, list[Told]] = defaultdict(list)
        self.now: int | None = None

    @property
    def network(self) -> Network:
        """The living network process, or the last that lived."""
        return self.networks[-1]

    # The coordinator.

    def seal(self, values: Sequence[bytes], partition: int = 0) -> int | None:
        """Seal a batch of these values; its descriptor, or None while there is no room."""
        arena, stamp = self.arena, 1_700_000_000_000
        index = arena.batch_states.find(FREE)
        if index < 0:
            return None
        batch = open_batch(arena, index, partition, self.now)
        for place, value in enumerate(values):
            # Timestamps go up and down, so that each piece has a greatest of its own.
            if self.coordinator.writer.append(batch, None, value, None, stamp + place * 7 % 5) <= 0:
                arena.slabs.mark(batch.first_slab, FREE)
                arena.batch_states.store(index, FREE)
                return None
        number = publish_seal(arena, self.descriptors, batch)
        self.sealed[number] = list(values)
        self.partition_of[number] = partition
        return index

    def take_results(self) -> bool:
        """Do with results what the session does; whether there were any."""
        states = self.arena.batch_states
        partial, done = states.find_all(PARTIAL), states.find_all(DONE)
        for index in partial:
            records = self.splits.get(index).piece_records
            result = self._tell(index, records)
            self.splits.go_on(index, delivered=result.code == DELIVERED)
            states.store(index, OVERSIZE)
        for index in done:
            self._tell(index, None)
            states.store(index, FREE)
        return bool(partial or done)

    def _tell(self, index: int, records: int | None) -> Result:
        number = self.descriptors.seal_number(index)
        told, result = self.told[number], self.descriptors.result(index)
        first = told[-1].first + told[-1].records if told else 0
        told.append(Told(first, len(self.sealed[number]) - first if records is None else records, result))
        return result

    # Workers and network process.

    def worker(self, number: int, life: Life | None = None, codec: Codec | None = None) -> Compressor:
        """A worker, mortal if it has a life."""
        made = Compressor(self.arena, codec or self.codec, number, self.control)
        if life is not None:
            make_mortal_worker(made, self.arena, life)
        return made

    def heir(self, life: Life | None = None) -> Network:
        """The next network process, mortal if it has a life; it has not taken over yet."""
        arena = self.arena if life is None else mortal(self.arena, life)
        made = Network(arena, self.broker)
        if life is not None:
            made.batches._descriptors = MortalDescriptors(life, arena, self.arena)
        self.networks.append(made)
        return made

    def run(self, *, checking: bool = False) -> None:
        """Everybody does what there is to do until nobody has anything left; ``checking``: law 2 after each round."""
        for _ in range(ROUNDS_MOST):
            busy = False
            for worker in self.workers:
                busy |= worker.work()
            self.network.follow()
            for batch in self.network.heads():
                self.network.answer(batch, self.network.send(batch))
                busy = True
            busy |= self.take_results()
            if checking:
                self.check_conservation()
            if not busy:
                return
        raise AssertionError(f"there is still something to do after {ROUNDS_MOST} rounds")

    # What must hold.

    def check_told(self) -> None:
        """Every record of every batch has one result, and what was delivered is in the log where that says."""
        for number, values in self.sealed.items():
            place, log = 0, self.broker.values(self.partition_of[number])
            for first, records, result in self.told[number]:
                assert first == place, f"batch {number}: records {place} to {first} have no result, or two"
                place += records
                if result.code == DELIVERED:
                    assert log[result.base_offset : result.base_offset + records] == values[first:place]
            assert place == len(values), f"batch {number}: {place} of {len(values)} records have a result"

    def check_conservation(self, *, somebody_is_dead: bool = False) -> None:
        """Law 2: every block belongs to one batch or is free; what a dead process held may be nobody's until then."""
        arena, descriptors, states = self.arena, self.descriptors, self.arena.batch_states
        slabs: list[int] = []
        payload: list[int] = []
        for index in range(states.count):
            state, own = states.load(index), set[int]()
            if state in (OPEN, SEALED, COMPRESSING):
                slabs += arena.slabs.chain(descriptors.sealed(index).first_slab)
            if state in (COMPRESSING, READY, IN_FLIGHT):
                own.update(arena.outputs.chain(descriptors.output(index).first_output))
            if state in (COMPRESSING, READY, IN_FLIGHT, OVERSIZE, PARTIAL):
                own.update(arena.outputs.chain(self.splits.get(index).source))
            payload += own
            if not somebody_is_dead:
                self._check_states(index)
        # In a direct arena the payload's table goes on where the slabs' ends, and knows both.
        tables = [(slabs + payload, arena.payload_states)]
        if not arena.is_direct:
            tables = [(slabs, arena.slab_states), (payload, arena.output_states)]
        for held, table in tables:
            used = {block for block in range(table.count) if table.load(block) & STATE_MASK != FREE}
            assert len(set(held)) == len(held), "a block belongs to two batches"
            assert set(held) <= used, "a block that a batch holds is free"
            assert somebody_is_dead or set(held) == used, "a block is neither free nor anybody's"
        self._check_tallies()

    def _check_states(self, index: int) -> None:
        """While all live, a batch's blocks are in the state that its own says; a source is READY until its end."""
        arena, state = self.arena, self.arena.batch_states.load(index)
        expected = {
            # What an orphan's worker was about to publish may be READY in part.
            COMPRESSING: {OUTPUT_FILLING, OUTPUT_READY},
            READY: {OUTPUT_READY},
            IN_FLIGHT: {OUTPUT_IN_FLIGHT},
        }
        source = self.splits.get(index).source
        if state in expected:
            found = {
                arena.payload_states.load(block) & STATE_MASK
                for block in arena.outputs.chain(self.descriptors.output(index).first_output)
            }
            assert found <= expected[state], f"batch {index}, {BATCH_STATES[state]}, has blocks in states {found}"
        if state in (*expected, OVERSIZE, PARTIAL) and source != NONE:
            found = {arena.payload_states.load(block) for block in arena.outputs.chain(source)}
            assert found == {OUTPUT_READY}, f"the source of batch {index}, {BATCH_STATES[state]}, is in {found}"

    def _check_tallies(self) -> None:
        """Every word of the tables is one of a state that there is for it."""
        arena = self.arena
        never = (SLAB_SEALED, SLAB_COMPRESSING) if arena.is_direct else (SLAB_READY, SLAB_IN_FLIGHT)
        for table, count, names in (
            (arena.slab_states, arena.geometry.slab_count, SLAB_STATES),
            (arena.output_states, arena.geometry.output_count, OUTPUT_STATES),
        ):
            tally = table.tally(len(names))
            assert sum(tally) == count, f"{tally} of {count}"
        slabs = arena.slab_states.tally(len(SLAB_STATES))
        assert not any(slabs[state] for state in never), f"slabs in states that this arena has not: {slabs}"

    def check_all_free(self) -> None:
        """Everything was given back."""
        arena = self.arena
        assert arena.batch_states.tally(1) == [arena.geometry.batch_count]
        assert arena.slabs.count_free() == arena.geometry.slab_count
        assert arena.outputs.count_free() == arena.geometry.output_count

    def scribble_on_free_blocks(self) -> None:
        """Write over every slab and output buffer that is said to be free, as the next batches would."""
        self.coordinator.scribble_on_free_slabs()
        arena = self.arena
        free = arena.outputs.count_free()
        first = arena.outputs.claim(free, FREE)
        if first != NONE:
            for view in arena.outputs.views(first, free * arena.outputs.block_bytes):
                view[:] = b"\xff" * len(view)


@contextlib.contextmanager
def split_bench(
    limit: int,
    *,
    codec: str = "none",
    workers: int = 1,
    split_outputs: int = 0,
    slab_bytes: int = 64,
    slabs: int = 24,
    outputs: int | None = None,
    batches: int | None = None,
    partitions: int = 4,
    direct: bool = False,
) -> Iterator[SplitBench]:
    """A bench on an arena of exactly these counts (``small_geometry``), closed at the end."""
    geometry = small_geometry(slab_bytes, slabs, outputs, batches, partitions=partitions, direct=direct)
    if not direct:
        geometry = geometry._replace(split_outputs=split_outputs)
    arena = Arena.create(geometry)
    bench = SplitBench(arena, limit, workers, codec)
    try:
        yield bench
    finally:
        for network in bench.networks:
            network.end()
        bench.control.close()
        arena.close()


def numbered(count: int, size: int, start: int = 0) -> list[bytes]:
    """Values that all differ, of ``size`` bytes or a few more."""
    return [b"%d:" % number + b"x" * (size - len(b"%d:" % number)) for number in range(start, start + count)]
