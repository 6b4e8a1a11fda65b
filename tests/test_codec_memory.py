"""The plan's figures for the codecs, against what the libraries say and what a process takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import zstandard

from slabpress.codec_memory import LEVELS, level_of, workspace_bytes
from slabpress.workers.zstd_levels import zstd_parameters

KIB = 1024
ROOT = Path(__file__).parents[1]


def _zstd_context_bytes(level: int, batch_bytes: int) -> int:
    """What the library itself counts for one streamed batch; pledging a size is enough, no data is needed."""
    compressor = zstandard.ZstdCompressor(compression_params=zstd_parameters(level))
    assert list(compressor.chunker(size=batch_bytes).compress(b"x")) == []
    return compressor.memory_size()


def _most_zstd_needs(level: int, batch_bytes: int) -> int:
    """The most for any batch up to the given size; zstd changes its tables at powers of 2."""
    sizes = {1 << log for log in range(8, batch_bytes.bit_length())} | {batch_bytes}
    return max(_zstd_context_bytes(level, size) for size in sizes)


# Up to 8 MiB: beyond, the highest levels take hundreds of megabytes.
@pytest.mark.parametrize("level", [-131072, -5, -1, 0, *range(1, 23)])
@pytest.mark.parametrize("batch_bytes", [64 * KIB, 256 * KIB, 1000 * KIB, 1024 * KIB, 8192 * KIB])
def test_zstd_table_agrees_with_the_library(level: int, batch_bytes: int) -> None:
    planned = workspace_bytes("zstd", level, batch_bytes)
    needed = _most_zstd_needs(level, batch_bytes)
    assert needed <= planned <= needed * 1.2 + 160 * KIB


@pytest.mark.parametrize("level", [3, 19])
def test_zstd_beyond_the_table(level: int) -> None:
    planned = workspace_bytes("zstd", level, 1 << 30)
    assert planned == workspace_bytes("zstd", level, 1 << 27)
    assert _zstd_context_bytes(level, 1 << 30) <= planned


def test_small_batches_are_planned_as_64_kib() -> None:
    assert workspace_bytes("zstd", 3, 1) == workspace_bytes("zstd", 3, 64 * KIB)
    assert workspace_bytes("zstd", 3, 64 * KIB) < workspace_bytes("zstd", 3, 64 * KIB + 1)


def test_zstd_level_0_means_3() -> None:
    assert workspace_bytes("zstd", 0, 1 << 20) == workspace_bytes("zstd", 3, 1 << 20)


@pytest.mark.parametrize("compression_type", ["none", "gzip", "snappy", "lz4"])
def test_the_other_codecs_do_not_depend_on_the_batch(compression_type: str) -> None:
    assert workspace_bytes(compression_type, None, 1) == workspace_bytes(compression_type, None, 1 << 30)


# Run in a process of its own: there the resident set moves for no other reason.
_MEASURE = """
import ctypes, pathlib, random, sys
from slabpress.workers import codecs
kind, level, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
noise = memoryview(bytearray(random.Random(1).randbytes(size)))
text = memoryview(bytearray((b'{"user": %d, "path": "/home"}' % 12345) * (size // 20))[:size])
mixed = memoryview(bytearray(size))
mixed[: size // 2], mixed[size // 2 :] = noise[: size // 2], text[size // 2 :]
out = [memoryview(bytearray(b"x" * 65536)) for _ in range(-(-size // 65536))]
level = None if level == -999 else level
cut = lambda data, step: [data[at : at + step] for at in range(0, size, step)]
batches = [cut(data, step) for data in (text, mixed, noise) for step in (4096, 60000, size)]
small = codecs.make_codec(kind, 1 if kind == "zstd" else None, 4096)  # everything lazy is loaded
small.compress([text[:4096]], 4096, out)
del small
trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
trim and trim(0)  # or what the small codec has given back would hide what the next one takes
status = pathlib.Path("/proc/self/status")
resident = lambda name: next(int(line.split()[1]) for line in status.read_text().split("\\n") if name in line)
pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
before = resident("VmRSS")
codec = codecs.make_codec(kind, level, size)
for batch in batches:
    codec.compress(batch, size, out)
first = resident("VmHWM")
for _ in range(20):
    for batch in batches:
        codec.compress(batch, size, out)
print(first - before, resident("VmHWM") - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("compression_type", "level", "batch_bytes"),
    [
        ("gzip", None, 1 << 20),
        ("gzip", 9, 1 << 18),
        ("snappy", None, 1 << 20),
        ("lz4", None, 1 << 20),
        ("lz4", 10, 1 << 19),
        ("zstd", None, 1 << 16),
        ("zstd", None, 1 << 20),
        ("zstd", 9, 1 << 18),
        ("zstd", 15, 1 << 18),
    ],
)
def test_a_process_takes_what_is_planned(compression_type: str, level: int | None, batch_bytes: int) -> None:
    arguments = [compression_type, str(-999 if level is None else level), str(batch_bytes)]
    answer = subprocess.run(
        [sys.executable, "-c", _MEASURE, *arguments], capture_output=True, check=True, text=True, cwd=ROOT
    )
    first, peak = (int(word) * KIB for word in answer.stdout.split())
    planned = workspace_bytes(compression_type, level, batch_bytes)
    slack = 64 * KIB  # code of the library that the small batch did not reach
    assert peak <= planned + slack
    assert peak <= first + slack


def test_no_codec_library_is_imported() -> None:
    code = "import sys, slabpress.codec_memory; print(*sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True, cwd=ROOT)
    assert not {"zstandard", "lz4", "cramjam", "zlib_ng"} & set(answer.stdout.split())


@pytest.mark.parametrize(
    ("compression_type", "level", "expected"),
    [
        ("none", None, 0),
        ("snappy", None, 0),
        ("gzip", None, -1),
        ("gzip", -1, -1),
        ("gzip", 1, 1),
        ("gzip", 9, 9),
        ("lz4", None, 9),
        ("lz4", 17, 17),
        ("zstd", None, 3),
        ("zstd", -131072, -131072),
    ],
)
def test_levels(compression_type: str, level: int | None, expected: int) -> None:
    assert level_of(compression_type, level) == expected


@pytest.mark.parametrize(
    ("compression_type", "level"),
    [
        ("gzip", 0),
        ("gzip", 10),
        ("gzip", -2),
        ("lz4", 0),
        ("lz4", 18),
        ("zstd", 23),
        ("zstd", -131073),
        ("snappy", 1),
        ("none", 1),
        ("brotli", None),
    ],
)
def test_impossible_levels_are_refused_with_the_numbers(compression_type: str, level: int | None) -> None:
    with pytest.raises(ValueError, match=str(level) if level is not None else compression_type):
        level_of(compression_type, level)
    with pytest.raises(ValueError):
        workspace_bytes(compression_type, level, 1 << 20)


def test_every_default_is_kafkas() -> None:
    assert {name: levels and levels.default for name, levels in LEVELS.items()} == {
        "none": None,
        "gzip": -1,
        "snappy": None,
        "lz4": 9,
        "zstd": 3,
    }
