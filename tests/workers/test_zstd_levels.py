"""zstd's levels 3 to 11 as records want them, beside the library's. Sizes are exact: no clock is in here."""

from __future__ import annotations

from itertools import pairwise

import pytest
import zstandard

from bench.levels import batches_of, library_parameters
from slabpress.workers.zstd_levels import OF_RECORDS, zstd_parameters

KIB = 1024
VALUE_BYTES = 3 << 20


def _size(parameters: zstandard.ZstdCompressionParameters, batches: list[bytes]) -> int:
    compressor = zstandard.ZstdCompressor(compression_params=parameters)
    return sum(len(compressor.compress(batch)) for batch in batches)


def test_levels_of_our_own_are_those_that_look_for_matches_with_hash_tables() -> None:
    assert list(OF_RECORDS) == list(range(3, 12))
    assert [zstd_parameters(level).min_match for level in range(13)] == [6, 0, 0, *[6] * 9, 0]  # 0: the library's
    assert [zstd_parameters(level).compression_level for level in (0, 3, 9, 22)] == [3, 3, 9, 22]  # 0 is read as 3


@pytest.mark.parametrize("kind", ["json-200", "json-lines"])
@pytest.mark.parametrize("batch_bytes", [16 * KIB, 256 * KIB])
def test_each_level_makes_smaller_payloads_than_the_one_below(kind: str, batch_bytes: int) -> None:
    batches = batches_of(kind, batch_bytes, VALUE_BYTES)
    sizes = [_size(zstd_parameters(level), batches) for level in OF_RECORDS]
    assert all(larger * 1.003 >= smaller for larger, smaller in pairwise(sizes)), sizes
    assert sizes[0] > 1.05 * sizes[-1]


@pytest.mark.parametrize("kind", ["json-200", "json-lines"])
def test_payloads_of_json_are_as_small_as_the_librarys(kind: str) -> None:
    batches = batches_of(kind, 960 * KIB, VALUE_BYTES)
    for level in OF_RECORDS:
        assert _size(zstd_parameters(level), batches) <= 1.01 * _size(library_parameters(level), batches), level
