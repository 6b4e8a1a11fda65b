"""Runs of records that are a value and no more: the same bytes as one after the other, wherever a run has to end."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterable, Sequence
from typing import Final

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slabpress._native import (
    ALL_APPENDED,
    STOPPED_BATCH_FULL,
    STOPPED_NO_SLAB,
    STOPPED_TOO_LARGE,
    OpenBatch,
    RecordWriter,
    TopicLanes,
)
from slabpress.pipeline.columns import arrow_source
from slabpress.shm import layout as at
from slabpress.shm.arena import Arena
from slabpress.shm.descriptors import Descriptors
from tests.shm.kit import PROJECT, bytes_of, make_writer, open_batch, small_arena
from tests.support.reference_batch import Record, encode_record, encode_records, java_partition
from tests.support.strategies import nullable_payloads

STAMP: Final = 1_700_000_000_000
WATCHDOG_S: Final = 60
# Where the length of a value (64, 8192), or of a record with it, takes a byte more, and where a value is too long for a
# run.
EDGES: Final = (0, 1, 55, 56, 57, 58, 63, 64, 65, 7999, 8000, 8001, 8180, 8181, 8182, 8183, 8184, 8191, 8192, 8193)


def _lanes(batch: OpenBatch) -> TopicLanes:
    lanes = TopicLanes()
    lanes.open = [batch]
    return lanes


def _append(
    writer: RecordWriter, batch: OpenBatch, values: Sequence[bytes | None], stamp: int = STAMP
) -> tuple[int, int]:
    """Append values of one time in a call; how many were, and why it stopped."""
    source = arrow_source(pa.array(values, pa.binary()), None, None, stamp)
    assert source.next_chunk()
    why, *_ = source.append(writer, _lanes(batch), 0, 1, [])
    source.close()
    return source.taken, why


def _records(values: Iterable[bytes | None], stamp: int = STAMP) -> list[Record]:
    return [Record(None, value, (), stamp) for value in values]


def _check(arena: Arena, batch: OpenBatch, records: Sequence[Record]) -> None:
    """The batch is these records, and its descriptor says so."""
    expected = encode_records(records)
    said = Descriptors(arena).sealed(batch.descriptor)
    assert (said.records, said.raw_bytes) == (batch.records, batch.bytes) == (len(records), len(expected))
    stamps = [record.timestamp_ms for record in records]
    assert (said.base_timestamp_ms, said.max_timestamp_ms) == (stamps[0], max(stamps))
    assert bytes_of(arena, batch.first_slab, batch.bytes) == expected
    assert batch.slabs == -(-len(expected) // arena.slabs.block_bytes)


@pytest.mark.parametrize("size", EDGES)
def test_every_length_is_written_as_the_reference_writes_it(size: int) -> None:
    values = [b"v" * size] * 100  # past the offset that takes two bytes
    with small_arena(1 << 20, 2) as arena:
        batch = open_batch(arena)
        assert _append(make_writer(arena), batch, values) == (100, ALL_APPENDED)
        _check(arena, batch, _records(values))


@pytest.mark.parametrize("spare", range(-25, 26))
@pytest.mark.parametrize("size", [0, 1, 70])
def test_records_may_end_anywhere_before_a_slabs_end_and_behind_it(size: int, spare: int) -> None:
    values = [bytes([60 + place]) * size for place in range(60)]
    slab_bytes = len(encode_records(_records(values[:30]))) + spare  # 0: exactly at its end
    with small_arena(slab_bytes, 4) as arena:
        batch = open_batch(arena)
        assert _append(make_writer(arena), batch, values) == (60, ALL_APPENDED)
        _check(arena, batch, _records(values))


@pytest.mark.parametrize("before", [1, 2, 33, 63])
def test_offsets_of_one_two_and_three_bytes_are_written_as_the_reference_writes_them(before: int) -> None:
    """The offset that takes a byte more comes in the middle of a run, or begins one."""
    values = [b"%d" % place for place in range(8192 + 200)]
    with small_arena(1 << 20, 2) as arena:
        writer, batch = make_writer(arena), open_batch(arena)
        assert _append(writer, batch, values[:before]) == (before, ALL_APPENDED)
        assert _append(writer, batch, values[before:]) == (len(values) - before, ALL_APPENDED)
        _check(arena, batch, _records(values))


@pytest.mark.parametrize("bits", [0, 5, 6, 7, 12, 13, 14, 20, 27, 34, 41, 47, 48, 49, 55, 62])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_run_may_be_at_any_distance_in_time_from_its_batchs_first_record(bits: int, sign: int) -> None:
    """A distance that takes eight bytes or more is written one by one."""
    values = [b"x" * 200] * 10
    for distance in ((1 << bits) - 1, 1 << bits):
        first, then = (0, distance) if sign > 0 else (distance, 0)
        with small_arena(1 << 16, 2) as arena:
            writer, batch = make_writer(arena), open_batch(arena)
            assert _append(writer, batch, values[:1], first) == (1, ALL_APPENDED)
            assert _append(writer, batch, values, then)[1] == ALL_APPENDED
            _check(arena, batch, _records(values[:1], first) + _records(values, then))


@pytest.mark.parametrize("by_topic", [False, True])
@pytest.mark.parametrize("over", range(-30, 31))
def test_a_batch_that_fills_in_the_middle_of_a_run_has_all_that_fits_into_it(over: int, by_topic: bool) -> None:
    values = [bytes([place]) * 50 for place in range(60)]
    batch_bytes = len(encode_records(_records(values[:40]))) + over
    fits = max(count for count in range(60) if len(encode_records(_records(values[:count]))) <= batch_bytes)
    with small_arena(1 << 16, 2) as arena:
        writer, batch = make_writer(arena, 1 << 20 if by_topic else batch_bytes), open_batch(arena)
        if by_topic:
            batch.limit = batch_bytes
        assert _append(writer, batch, values) == (fits, STOPPED_BATCH_FULL)
        _check(arena, batch, _records(values[:fits]))


@pytest.mark.parametrize("largest", [30, 100, 4000])
def test_a_record_of_a_run_that_is_too_large_stops_the_call_and_the_largest_does_not(largest: int) -> None:
    beside = len(encode_records(_records([b"v" * largest] * 2))) // 2 - largest
    fits = b"v" * (largest - beside)
    assert len(encode_records(_records([b"", fits]))) - len(encode_records(_records([b""]))) == largest
    values = [b"", fits, b"x", fits, fits + b"v", b"y"]
    with small_arena(1 << 16, 2) as arena:
        writer, batch = make_writer(arena, largest_record_bytes=largest), open_batch(arena)
        assert _append(writer, batch, values) == (4, STOPPED_TOO_LARGE)
        assert writer.too_large_bytes == largest + 1
        _check(arena, batch, _records(values[:4]))


@pytest.mark.parametrize("slabs", [1, 2, 3])
def test_without_another_slab_a_run_ends_with_the_last_record_that_has_room(slabs: int) -> None:
    values = [bytes([place]) * 100 for place in range(60)]
    fits = max(count for count in range(60) if len(encode_records(_records(values[:count]))) <= 1000 * slabs)
    with small_arena(1000, slabs) as arena:
        batch = open_batch(arena)
        assert _append(make_writer(arena), batch, values) == (fits, STOPPED_NO_SLAB)
        _check(arena, batch, _records(values[:fits]))


@settings(max_examples=60)
@given(
    st.lists(st.lists(nullable_payloads(9000), min_size=1, max_size=80), min_size=1, max_size=3),
    st.lists(st.integers(STAMP - 100, STAMP + 100_000), min_size=3, max_size=3),
    st.sampled_from([64, 100, 1000, 4096, 1 << 16]),
)
def test_calls_of_any_values_one_after_the_other_are_the_references_bytes(
    calls: list[list[bytes | None]], stamps: list[int], slab_bytes: int
) -> None:
    records = [record for values, stamp in zip(calls, stamps, strict=False) for record in _records(values, stamp)]
    with small_arena(slab_bytes, max(2, len(encode_records(records)) // slab_bytes + 2)) as arena:
        writer, batch = make_writer(arena), open_batch(arena)
        for values, stamp in zip(calls, stamps, strict=False):
            assert _append(writer, batch, values, stamp)[1] == ALL_APPENDED
        _check(arena, batch, records)


LINES: Final = b"".join(b"%0100d\n" % place for place in range(1000))
BATCH_RECORDS: Final = 20_000
_WRITES_UNTIL_IT_IS_KILLED: Final = """
import itertools, sys
from slabpress._native import LineSource, TopicLanes
from slabpress.shm.arena import Arena
from slabpress.shm.states import SLAB_FREE
from tests.shm.kit import make_writer, open_batch
from tests.test_runs import BATCH_RECORDS, LINES, STAMP
arena = Arena.attach(int(sys.argv[1]))
writer, lanes, calls = make_writer(arena), TopicLanes(), itertools.count(1)
while True:
    batch = open_batch(arena)
    lanes.open = [batch]
    while batch.records < BATCH_RECORDS:
        LineSource(LINES, False, STAMP).append(writer, lanes, 0, next(calls), [])
    arena.slabs.mark(batch.first_slab, SLAB_FREE)
"""


@pytest.mark.timeout(WATCHDOG_S)
def test_whoever_looks_finds_whole_records_and_so_does_who_comes_after_a_killed_writer() -> None:
    """What is committed at any moment is complete, though the records of a run are committed together."""
    values = LINES.split(b"\n")[:-1]
    encoded = [encode_record(place, 0, None, values[place % len(values)], ()) for place in range(BATCH_RECORDS)]
    ends, looked = [0, *itertools.accumulate(map(len, encoded))], set[int]()
    with (
        small_arena(4096, 1000) as arena,
        subprocess.Popen(
            [sys.executable, "-c", _WRITES_UNTIL_IT_IS_KILLED, str(arena.descriptor)],
            pass_fds=[arena.descriptor],
            cwd=PROJECT,
        ) as child,
    ):
        try:
            while len(looked) < 100 and child.poll() is None:
                commit = arena.memory.load_u64(arena.layout.descriptors + at.COMMIT_AT)
                assert commit >> 32 == ends[commit & 0xFFFFFFFF]
                looked.add(commit)
        finally:
            child.kill()
            child.wait(WATCHDOG_S)
        assert len(looked) == 100
        said = Descriptors(arena).sealed(0)
        assert said.raw_bytes == ends[said.records]
        found = bytes_of(arena, said.first_slab, said.raw_bytes) if said.records else b""
        assert found == b"".join(encoded[: said.records])


def test_keys_go_by_the_partitions_that_there_are_when_a_call_goes_on() -> None:
    """A topic may have got more of them while the call waited."""
    keys = [b"key %d" % place for place in range(20)]
    table = pa.table({"key": pa.array([*keys, None], pa.binary()), "value": pa.array([b"v"] * 21, pa.binary())})
    with small_arena(1 << 12, 8) as arena:
        writer, source = make_writer(arena), arrow_source(table, "value", "key", STAMP)
        batches = [open_batch(arena, number, number) for number in range(4)]
        lanes = _lanes(batches[0])
        batches[0].limit = 60  # full after a few
        assert source.next_chunk()
        assert source.append(writer, lanes, -1, 1, [])[:2] == (STOPPED_BATCH_FULL, 0)
        before = batches[0].records
        assert 0 < before < 20
        batches[0].limit = 1 << 20
        lanes.open, lanes.sticky = batches, 2
        assert source.append(writer, lanes, -1, 1, [])[0] == ALL_APPENDED
        wanted = [java_partition(key, 4) for key in keys[before:]] + [2]
        counts = [wanted.count(number) for number in range(4)]
        assert [batch.records for batch in batches] == [before + counts[0], *counts[1:]]
        source.close()
