"""Hypothesis strategies for records and for the ways in which memory is cut into blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import strategies as st

from tests.support.reference_batch import Record

if TYPE_CHECKING:
    from collections.abc import Sequence

LATEST_MS = 1 << 47
"""Beyond the year 6000: timestamps stay far from what differences of 64 bits could overflow."""

# Keys and values: mostly short, sometimes where a length's encoding grows by a byte (64, 8192), sometimes
# longer than a slab. Large ones repeat a short pattern, so that Hypothesis need not draw every byte.
_LENGTH_EDGES = (63, 64, 65, 8191, 8192, 8193)


def _stretched(pattern: bytes, length: int) -> bytes:
    return (pattern * (length // len(pattern) + 1))[:length]


def payloads(max_bytes: int = 100_000) -> st.SearchStrategy[bytes]:
    """Byte strings from empty to ``max_bytes``."""
    edges = [length for length in _LENGTH_EDGES if length <= max_bytes]
    lengths = st.sampled_from(edges) | st.integers(0, max_bytes) if edges else st.integers(0, max_bytes)
    long = st.builds(_stretched, st.binary(min_size=1, max_size=16), lengths)
    return st.binary(max_size=min(40, max_bytes)) | long


def nullable_payloads(max_bytes: int = 100_000) -> st.SearchStrategy[bytes | None]:
    """Byte strings or null."""
    return st.none() | payloads(max_bytes)


def header_lists() -> st.SearchStrategy[tuple[tuple[str, bytes | None], ...]]:
    """No header, some headers, the same key twice; keys in any script and empty, values null and empty."""
    keys = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(["", "trace", "é", "☃"])
    pairs = st.tuples(keys, nullable_payloads(300))
    return st.just(()) | st.lists(pairs, max_size=70).map(tuple)


def timestamps() -> st.SearchStrategy[int]:
    """Any instant from 1970 on; in a batch, later records may be earlier than the first (negative deltas)."""
    return st.integers(0, LATEST_MS) | st.integers(1_700_000_000_000, 1_700_000_100_000)


def records(max_bytes: int = 100_000) -> st.SearchStrategy[Record]:
    """Records whose key and value are each up to ``max_bytes`` long."""
    return st.builds(
        Record,
        key=nullable_payloads(max_bytes),
        value=nullable_payloads(max_bytes),
        headers=header_lists(),
        timestamp_ms=timestamps(),
    )


def record_lists(max_size: int = 20, max_bytes: int = 2_000) -> st.SearchStrategy[list[Record]]:
    """The records of one batch, at least one."""
    return st.lists(records(max_bytes), min_size=1, max_size=max_size)


@st.composite
def splits(draw: st.DrawFn, total: int, max_parts: int = 8) -> list[int]:
    """Lengths, some perhaps 0, that add up to ``total``."""
    cuts = sorted(draw(st.lists(st.integers(0, total), max_size=max_parts - 1)))
    return [end - start for start, end in zip([0, *cuts], [*cuts, total], strict=True)]


def cut(data: memoryview, lengths: Sequence[int]) -> list[memoryview]:
    """Cuts a view into consecutive views of the given lengths."""
    views, start = [], 0
    for length in lengths:
        views.append(data[start : start + length])
        start += length
    return views
