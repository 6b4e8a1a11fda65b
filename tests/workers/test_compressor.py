"""A worker's work on one batch, without processes."""

from __future__ import annotations

import pytest

from slabpress.shm import layout as at
from slabpress.shm.admission import DEATHS_MAX, Admission
from slabpress.shm.control import COORDINATOR, NETWORK
from slabpress.shm.descriptors import CODEC_NONE, Descriptors
from slabpress.workers.codecs import make_codec
from slabpress.workers.compressor import Compressor
from tests.pipeline.instant import Parts, parts
from tests.shm.kit import take


@pytest.mark.parametrize(("deaths", "codec"), [(0, 4), (DEATHS_MAX - 1, 4), (DEATHS_MAX, CODEC_NONE)])
def test_a_batch_that_kills_worker_after_worker_is_sent_uncompressed(deaths: int, codec: int) -> None:
    with parts(compression_type="zstd") as rig:
        index = _sealed_batch(rig)
        for worker in range(deaths):
            assert take(Admission(rig.arena, worker)) == index
            assert Admission(rig.arena, 99).recover(worker) == 1
        assert Compressor(rig.arena, make_codec("zstd", None, 1 << 20), 7, rig.control).work()
        assert Descriptors(rig.arena).output(index).codec == codec


@pytest.mark.parametrize(("wanted", "rung"), [(0, False), (1, True), (1000, False)])
def test_the_coordinator_is_rung_for_as_much_room_as_it_wants(wanted: int, rung: bool) -> None:
    with parts(compression_type="lz4") as rig:
        _sealed_batch(rig)
        rig.arena.memory.store_u64(at.ROOM_WANTED_AT, wanted)
        for slot in (COORDINATOR, NETWORK):
            rig.control.lie_down(slot)
            rig.control.bells[slot].drain()  # what sending the record rang for is not the question
        assert Compressor(rig.arena, make_codec("lz4", None, 1 << 20), 0, rig.control).work()
        bell = rig.control.bells[COORDINATOR].fileno()
        assert rig.control.bells[NETWORK].wait(0, [bell]) == ([bell] if rung else [])


def _sealed_batch(rig: Parts) -> int:
    rig.topic("t", 1)
    rig.send(b"a" * 2000)
    rig.accumulator.seal_all()
    return rig.sealed()[0]
