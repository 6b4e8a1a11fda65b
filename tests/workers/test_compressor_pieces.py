"""A worker's work on a piece of a split batch: every codec from and to, deaths in the middle, what is sent raw."""

from __future__ import annotations

import contextlib
import random
from typing import Final

import pytest

from slabpress.shm import layout as at
from slabpress.shm.admission import DEATHS_MAX, Admission
from slabpress.shm.states import COMPRESSING, ORPHAN, OVERSIZE
from slabpress.workers.codecs import make_codec
from slabpress.workers.compressor import Compressor
from tests.shm.faults import Killed, Life
from tests.shm.kit import take
from tests.support.limited_broker import HEADER_BYTES, Arrival
from tests.support.split_bench import SplitBench, split_bench

SUPERVISOR: Final = 0xFFFE
IDS: Final = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
LARGEST: Final = 1 << 20
# Larger than lz4's and snappy's blocks in all, and no multiple of anything.
VALUES: Final = [b'{"n":%d,"user":%d,"text":"%s"}' % (n, n * 7919 % 97, b"click" * (n % 50)) for n in range(500)]


def refuse(bench: SplitBench) -> int:
    """Have the one READY batch refused, whatever its size; its descriptor."""
    limit, bench.broker.limit = bench.broker.limit, 0
    bench.network.follow()
    [batch] = bench.network.heads()
    bench.network.answer(batch, bench.network.send(batch))
    bench.broker.limit = limit
    assert bench.arena.batch_states.load(batch.index) == OVERSIZE
    return batch.index


@pytest.mark.parametrize("piece", IDS)
@pytest.mark.parametrize("source", IDS)
def test_pieces_of_every_codec_from_a_source_of_every_codec(source: str, piece: str) -> None:
    """The broker of the bench checks every byte: the CRC, counts, offsets, and each piece's own latest timestamp."""
    with split_bench(LARGEST, codec=source, slab_bytes=4096, slabs=40) as bench:
        bench.seal(VALUES)
        assert bench.workers[0].work()
        bench.network.follow()
        refuse(bench)
        bench.workers = [bench.worker(0, codec=make_codec(piece, None, LARGEST))]
        bench.run()
        assert bench.broker.values() == VALUES
        assert [arrival.codec for arrival in bench.broker.arrivals] == [IDS[source], IDS[piece], IDS[piece]]
        assert [arrival.records for arrival in bench.broker.arrivals] == [500, 250, 250]
        bench.check_told()
        bench.check_all_free()


def test_a_piece_that_does_not_shrink_is_sent_raw_though_its_batch_did() -> None:
    """Each piece is compressed by itself (law 5)."""
    values = [*(random.Random(n).randbytes(300) for n in range(10)), *[bytes(300)] * 10]
    with split_bench(LARGEST, codec="zstd", slab_bytes=1024, slabs=20) as bench:
        bench.seal(values)
        bench.workers[0].work()
        refuse(bench)
        bench.run()
        assert [arrival.codec for arrival in bench.broker.arrivals] == [4, 0, 4]
        assert bench.broker.values() == values
        bench.check_all_free()


def test_a_piece_gives_back_the_room_that_it_does_not_need_and_is_counted() -> None:
    with split_bench(LARGEST, codec="zstd", slab_bytes=1024, slabs=40) as bench:
        bench.seal([b"x" * 1000] * 20)
        bench.workers[0].work()
        counters = [at.WORKER_COUNTERS_AT + 8 * place for place in range(3)]
        index = refuse(bench)
        before = [bench.arena.memory.load_u64(counter) for counter in counters]
        assert bench.workers[0].work()
        output = bench.descriptors.output(index)
        assert len(bench.arena.outputs.chain(output.first_output)) == output.output_count == 1
        batches, raw_bytes, payload_bytes = (
            bench.arena.memory.load_u64(counter) - was for counter, was in zip(counters, before, strict=True)
        )
        assert (batches, payload_bytes) == (1, output.payload_bytes)
        assert raw_bytes == bench.descriptors.sealed(index).raw_bytes // 2
        bench.check_conservation()
        bench.run()
        bench.check_all_free()


# --- deaths -------------------------------------------------------------------------------------------------

LIMIT: Final = HEADER_BYTES + 60
SMALL: Final = [b"%d:" % number + b"x" * 20 for number in range(20)]


def work_and_die(worker: Compressor) -> bool:
    """Whether it died before its work was done."""
    with contextlib.suppress(Killed):
        worker.work()
        return False
    return True


def bury(bench: SplitBench, worker: int) -> None:
    """What the coordinator does; and everything that is free is somebody else's at once."""
    Admission(bench.arena, SUPERVISOR).recover(worker)
    bench.coordinator.scribble_on_free_slabs()
    bench.scribble_on_free_blocks()
    bench.check_conservation()


def undisturbed(codec: str) -> list[Arrival]:
    with split_bench(LIMIT, codec=codec, workers=2, slabs=40) as bench:
        bench.seal(SMALL)
        bench.run()
        return bench.broker.arrivals


@pytest.mark.parametrize("codec", ["none", "zstd"])
@pytest.mark.parametrize("pieces_before", [0, 4])
@pytest.mark.parametrize("adopted", [False, True], ids=["admitted", "adopted"])
def test_a_worker_that_dies_before_any_of_its_changes_leaves_a_piece_that_another_finishes(
    codec: str, pieces_before: int, adopted: bool
) -> None:
    """What is sent is what would have been sent anyway; but after a second death it is sent raw."""
    usual, died, life = undisturbed(codec), True, 0
    while died:
        with split_bench(LIMIT, codec=codec, workers=2, slabs=40) as bench:
            bench.seal(SMALL)
            for _ in range(pieces_before + 1):
                bench.take_results()
                bench.workers[1].work()
                bench.network.follow()
                [batch] = bench.network.heads()
                bench.network.answer(batch, bench.network.send(batch))
            bench.take_results()
            if adopted:
                assert bench.workers[1].admission.take() is not None
                bury(bench, 1)
            died = work_and_die(bench.worker(0, Life(life)))
            bench.check_conservation(somebody_is_dead=True)
            bench.network.follow()
            bury(bench, 0)
            bench.workers = bench.workers[1:]
            bench.run(checking=True)
            bench.check_told()
            bench.check_all_free()
            assert bench.broker.values() == SMALL
            if bench.descriptors.deaths(0) < DEATHS_MAX:
                assert bench.broker.arrivals == usual, f"died before change {life}"
        life += 1
    assert life > 8


@pytest.mark.parametrize("deaths", [DEATHS_MAX - 1, DEATHS_MAX])
def test_a_split_batch_that_kills_worker_after_worker_is_sent_uncompressed(deaths: int) -> None:
    with split_bench(HEADER_BYTES + 3000, codec="zstd", workers=9, slab_bytes=1024, slabs=40) as bench:
        bench.seal([b"y" * 500] * 16)
        bench.workers[8].work()
        index = refuse(bench)
        for number in range(deaths):
            # Each death is of a worker that had a piece half made.
            assert take(bench.workers[number].admission) == index
            bury(bench, number)
            assert (bench.arena.batch_states.load(index), bench.descriptors.worker(index)) == (COMPRESSING, ORPHAN)
        assert bench.descriptors.deaths(index) == deaths
        bench.workers = bench.workers[8:]
        bench.run()
        pieces = bench.broker.arrivals[1:]
        assert {arrival.codec for arrival in pieces} == ({0} if deaths == DEATHS_MAX else {4})
        assert bench.broker.values() == [b"y" * 500] * 16
        # Sent raw it is larger, and so in more pieces.
        assert [arrival.records for arrival in pieces] == ([8, 4, 4, 4, 4] if deaths == DEATHS_MAX else [8, 8])
        bench.check_all_free()


def test_a_worker_that_dies_after_a_piece_is_made_costs_the_batch_nothing() -> None:
    with split_bench(LIMIT, codec="zstd", workers=2, slabs=40) as bench:
        bench.seal(SMALL)
        bench.workers[1].work()
        index = refuse(bench)
        dying = bench.workers[0]
        assert take(dying.admission) == index
        dying._compress(dying.admission.point.task(index))
        made = bench.descriptors.output(index)
        bury(bench, 0)
        assert bench.descriptors.deaths(index) == 0
        assert bench.workers[1].work()
        assert bench.descriptors.output(index)[1:] == made[1:]
        bench.run()
        assert bench.broker.values() == SMALL
