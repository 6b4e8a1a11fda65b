"""A worker's work on one batch, without processes."""

from __future__ import annotations

import pytest

from slabpress.shm.admission import DEATHS_MAX, Admission
from slabpress.shm.descriptors import CODEC_NONE, Descriptors
from slabpress.workers.codecs import make_codec
from slabpress.workers.compressor import Compressor
from tests.pipeline.instant import Parts, parts


@pytest.mark.parametrize(("deaths", "codec"), [(0, 4), (DEATHS_MAX - 1, 4), (DEATHS_MAX, CODEC_NONE)])
def test_a_batch_that_kills_worker_after_worker_is_sent_uncompressed(deaths: int, codec: int) -> None:
    with parts(compression_type="zstd") as rig:
        index = _sealed_batch(rig)
        for worker in range(deaths):
            assert Admission(rig.arena, worker).take() == index
            assert Admission(rig.arena, 99).recover(worker) == 1
        assert Compressor(rig.arena, make_codec("zstd", None, 1 << 20), 7, rig.control).work()
        assert Descriptors(rig.arena).output(index).codec == codec


def _sealed_batch(rig: Parts) -> int:
    rig.topic("t", 1)
    rig.send(b"a" * 2000)
    rig.accumulator.seal_all()
    return rig.sealed()[0]
