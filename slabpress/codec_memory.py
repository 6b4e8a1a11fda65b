"""What each codec costs one worker in bytes, and which levels it has.

The plan is computed in the user's process, which loads no codec; so the figures stand here, and
``tests/test_codec_memory.py`` compares them with what the libraries themselves say and take.
"""

from typing import Final, NamedTuple


class LevelRange(NamedTuple):
    """The compression levels of one codec, both ends included.

    Attributes:
        minimum: The smallest level.
        maximum: The largest level.
        default: The level used when none is given.
    """

    minimum: int
    maximum: int
    default: int


LZ4_FAST_LEVEL: Final = 9
"""The level that stands for lz4's fast compressor; every other one is the high compressor (KIP-390)."""

LEVELS: Final[dict[str, LevelRange | None]] = {
    # KIP-390 (Support Compression Level) has the ranges and the defaults. None: there are no levels.
    "none": None,
    "gzip": LevelRange(1, 9, -1),  # -1 is zlib's own name for its default, which is 6
    "snappy": None,
    "lz4": LevelRange(1, 17, LZ4_FAST_LEVEL),
    "zstd": LevelRange(-131072, 22, 3),
}

BLOCK_BYTES: Final = 64 * 1024
"""The most that lz4, gzip and snappy are given at once, which is what bounds their output pieces."""

SNAPPY_BLOCK_BOUND: Final = 32 + BLOCK_BYTES + BLOCK_BYTES // 6
"""The worst case of one snappy block (``MaxCompressedLength`` in snappy.cc)."""

_KIB = 1024

# lz4, gzip and snappy gather one block from small slabs.
_GATHER_BYTES = BLOCK_BYTES

# zlib-ng's deflate state: a window of 2 << 15 bytes, 16-bit links for half as many, 1 << 16 16-bit heads, 5 << 14 of
# pending output, and the structs (345 KiB by tracemalloc). The output of one block is collected in parts of 16, 32 and
# 64 KiB, and then joined.
_GZIP_BYTES = _GATHER_BYTES + (345 + 112 + 64) * _KIB

# The library's bound for the output of one block and the bytes that it returns, plus the match tables:
# LZ4_STREAM_MINSIZE in lz4.h, LZ4_STREAMHC_MINSIZE in lz4hc.h.
_LZ4_BUFFER_BYTES = _GATHER_BYTES + (66 + 66) * _KIB
_LZ4_FAST_BYTES = 17 * _KIB
_LZ4_HIGH_BYTES = 257 * _KIB

# The output of one block, and 16384 16-bit table entries.
_SNAPPY_BYTES = _GATHER_BYTES + SNAPPY_BLOCK_BOUND + 34 * _KIB

# lz4's decoder is the largest: its context holds a block as it came and as it goes, and the library's output of
# 32 KiB is copied to be returned. A zstd context is 96 KiB (``ZstdDecompressor.memory_size()``); gzip takes 32 KiB of
# window, 10 of state and its output; snappy takes nothing.
_DECODER_BYTES = 2 * BLOCK_BYTES + 2 * 32 * _KIB

# glibc's heap grows in steps of 128 KiB (M_TOP_PAD), and what was freed in it stays in it.
_ALLOCATOR_BYTES = 128 * _KIB

_ZSTD_FIRST_LOG = 16  # the first column below: batches up to 64 KiB
# KiB of a streaming compression context, by ``ZstdCompressor.memory_size()`` of zstd 1.5.7 (1.5.6 needs no
# more). Row 0 is every negative level, row n is level n. A column is the largest batch, 64 KiB doubling to
# 128 MiB, and holds the most that any batch up to that size takes: zstd's tables differ by the input's size. Levels
# 3 to 11 have tables of our own (workers/zstd_levels.py).
# fmt: off
_ZSTD_KIB: Final = (
    (474, 906, 1050, 1306, 1306, 1306, 1306, 1306, 1306, 1306, 1306, 1306),
    (490, 922, 1082, 1338, 1338, 1338, 1338, 1338, 1338, 1338, 1338, 1338),
    (586, 1018, 1146, 1530, 2042, 2042, 2042, 2042, 2042, 2042, 2042, 2042),
    (842, 1274, 1402, 1658, 2170, 3194, 3194, 3194, 3194, 3194, 3194, 3194),
    (1226, 1658, 1786, 2042, 2554, 3578, 3578, 3578, 3578, 3578, 3578, 3578),
    (1098, 2170, 2298, 2554, 3066, 4090, 4090, 4090, 4090, 4090, 4090, 4090),
    (1098, 2170, 2298, 2554, 3066, 4090, 4090, 4090, 4090, 4090, 4090, 4090),
    (1098, 2170, 2298, 2554, 3066, 4090, 4090, 4090, 4090, 4090, 4090, 4090),
    (1098, 2170, 2298, 2554, 3066, 4090, 4090, 4090, 4090, 4090, 4090, 4090),
    (1098, 2170, 2298, 2554, 3066, 4090, 6138, 6138, 6138, 6138, 6138, 6138),
    (1098, 2170, 2298, 2554, 3066, 4090, 6138, 6138, 6138, 6138, 6138, 6138),
    (1098, 2170, 2298, 2554, 3066, 4090, 6138, 6138, 6138, 6138, 6138, 6138),
    (1482, 2426, 5114, 6394, 12026, 23290, 45818, 45818, 45818, 45818, 45818, 45818),
    (1628, 2572, 4236, 9466, 18170, 35578, 37626, 37626, 37626, 37626, 37626, 37626),
    (1942, 3201, 4865, 9466, 18170, 35578, 54010, 54010, 54010, 54010, 54010, 54010),
    (1942, 3201, 4865, 9466, 18170, 35578, 70394, 70394, 70394, 70394, 70394, 70394),
    (1942, 3201, 5889, 9612, 18316, 35724, 37772, 37772, 37772, 37772, 37772, 37772),
    (1942, 3201, 5889, 9612, 18316, 35724, 54156, 58252, 58252, 58252, 58252, 58252),
    (1942, 3201, 5889, 10241, 18945, 36353, 54785, 58881, 58881, 58881, 58881, 58881),
    (1942, 3201, 5889, 10241, 18945, 36353, 54785, 91649, 91649, 91649, 91649, 91649),
    (1942, 3201, 5889, 10241, 18945, 36353, 71169, 108033, 181761, 198145, 198145, 198145),
    (1942, 3201, 5889, 10241, 18945, 36353, 71169, 140801, 214529, 361985, 394753, 394753),
    (1942, 3201, 5889, 10241, 18945, 36353, 71169, 140801, 280065, 427521, 722433, 853585),
)
# fmt: on


def level_of(compression_type: str, level: int | None) -> int:
    """Returns the level to use, the codec's default for None and 0 for a codec without levels.

    Raises:
        ValueError: The compression type is unknown, has no levels, or has no such level.
    """
    if compression_type not in LEVELS:
        raise ValueError(f"compression_type {compression_type!r} is not one of {', '.join(sorted(LEVELS))}")
    levels = LEVELS[compression_type]
    if levels is None:
        if level is not None:
            raise ValueError(f"compression_type {compression_type!r} has no levels, but level {level} was given")
        return 0
    if level is None or level == levels.default:
        return levels.default
    if not levels.minimum <= level <= levels.maximum:
        raise ValueError(
            f"{compression_type} level {level} is outside {levels.minimum}..{levels.maximum} (default {levels.default})"
        )
    return level


def workspace_bytes(compression_type: str, level: int | None, scratch_bytes: int) -> int:
    """Returns the most bytes that one worker's codec holds at any moment, input and output buffers apart.

    Only zstd's figure depends on the batch: the other codecs pass the batch through in 64 KiB blocks.

    Args:
        compression_type: One of the keys of ``LEVELS``.
        level: The compression level, None for the default.
        scratch_bytes: The records of the largest batch, in bytes.
    """
    resolved = level_of(compression_type, level)
    if compression_type == "none":
        return 0
    if compression_type == "gzip":
        return _ALLOCATOR_BYTES + _GZIP_BYTES
    if compression_type == "snappy":
        return _ALLOCATOR_BYTES + _SNAPPY_BYTES
    if compression_type == "lz4":
        tables = _LZ4_FAST_BYTES if resolved == LZ4_FAST_LEVEL else _LZ4_HIGH_BYTES
        return _ALLOCATOR_BYTES + _LZ4_BUFFER_BYTES + tables
    return _ALLOCATOR_BYTES + _zstd_context_bytes(resolved, scratch_bytes)


def split_workspace_bytes(largest_batch_bytes: int) -> int:
    """Returns the most bytes that one worker holds while it splits a batch, besides its codec's workspace.

    Three times a batch: the compressed payload in one piece (zstd and snappy want it so), the records as they were,
    and what is cut out of them. None is larger than the batch. The first is gone before the last is made: up to twice
    a batch is in use at once, and the rest is what the heap keeps when batches of many sizes come and go. It grows by
    one step more than that now and then: 64 KiB above the sum were seen once, with batches of 1 MiB in gzip.

    Args:
        largest_batch_bytes: The records of the largest batch, in bytes.
    """
    return 2 * _ALLOCATOR_BYTES + _DECODER_BYTES + 3 * largest_batch_bytes


def _zstd_context_bytes(level: int, batch_bytes: int) -> int:
    """Returns the table's entry; beyond 128 MiB nothing grows, as the window is at most 2**27."""
    row = _ZSTD_KIB[max(level, 0) if level else 3]  # zstd reads level 0 as its default, 3
    column = (batch_bytes - 1).bit_length() - _ZSTD_FIRST_LOG
    return row[min(max(column, 0), len(row) - 1)] * _KIB
