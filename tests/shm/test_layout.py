"""The arena's shape: no two things share a byte, whatever the geometry."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slabpress.shm import layout as at
from slabpress.shm.layout import Geometry, align, layout_of, plan_geometry

_COUNTS = st.integers(1, 5000)
_GEOMETRIES = st.builds(
    Geometry,
    st.just(0),
    st.integers(1, 300).map(lambda number: 64 * number),
    _COUNTS,
    st.integers(1, 300).map(lambda number: 64 * number),
    _COUNTS,
    _COUNTS,
    _COUNTS,
    _COUNTS,
)


def _tables(geometry: Geometry) -> list[tuple[str, int, int]]:
    layout = layout_of(geometry)
    sizes = {
        "seal_ring": 4 * geometry.seal_ring_entries,
        "batch_states": 4 * geometry.batch_count,
        "slab_states": 4 * geometry.slab_count,
        "slab_nexts": 4 * geometry.slab_count,
        "output_states": 4 * geometry.output_count,
        "output_nexts": 4 * geometry.output_count,
        "descriptors": at.DESCRIPTOR_BYTES * geometry.batch_count,
        "topics": at.TOPIC_BYTES * geometry.topic_count,
        "partitions": at.PARTITION_BYTES * geometry.partition_count,
        "slabs": geometry.slab_bytes * geometry.slab_count,
        "outputs": geometry.output_bytes * geometry.output_count,
    }
    offsets = layout._asdict()
    assert offsets.keys() == sizes.keys() | {"end"}
    return sorted(((name, offsets[name], size) for name, size in sizes.items()), key=lambda table: table[1])


@given(_GEOMETRIES)
def test_tables_follow_each_other_without_overlap(geometry: Geometry) -> None:
    tables = [("header", 0, at.HEADER_BYTES), *_tables(geometry)]
    for (name, start, size), (following, next_start, _) in itertools.pairwise(tables):
        assert start + size <= next_start, f"{name} overlaps {following}"
    _, start, size = tables[-1]
    assert start + size == layout_of(geometry).end


@given(_GEOMETRIES)
def test_words_and_blocks_are_aligned(geometry: Geometry) -> None:
    layout = layout_of(geometry)
    assert layout.slabs % at.PAGE_BYTES == 0
    for name, start, _ in _tables(geometry):
        # What belongs to output buffers begins where what belongs to slabs ends: to who sends both are one table.
        goes_on = name in ("output_states", "output_nexts")
        assert start % (4 if goes_on else 8 if name in ("slabs", "outputs") else at.LINE_BYTES) == 0, name
    assert layout.output_states == layout.slab_states + 4 * geometry.slab_count
    assert layout.output_nexts == layout.slab_nexts + 4 * geometry.slab_count
    assert layout.outputs == layout.slabs + geometry.slab_bytes * geometry.slab_count


@given(st.integers(0, 1 << 26), st.integers(16, 1024).map(lambda number: 64 * number), _COUNTS, _COUNTS)
def test_a_planned_geometry_fits_and_no_larger_one_would(
    arena_bytes: int, slab_bytes: int, topics: int, partitions: int
) -> None:
    try:
        geometry = plan_geometry(arena_bytes, slab_bytes, topics, partitions)
    except ValueError as error:
        text = str(error)
    else:
        text = ""
    if text:
        needed = int(text.split()[0])
        assert needed > arena_bytes
        assert text == f"{needed} bytes are the least for slabs of {slab_bytes} bytes"
        assert plan_geometry(needed, slab_bytes, topics, partitions).slab_count == 2
        return
    assert geometry.arena_bytes == arena_bytes
    assert layout_of(geometry).end <= arena_bytes
    assert geometry.slab_count == geometry.output_count >= 2
    assert geometry.batch_count == geometry.seal_ring_entries == 2 * geometry.slab_count
    more = geometry.slab_count + 1
    larger = geometry._replace(slab_count=more, output_count=more, batch_count=2 * more)
    assert layout_of(larger).end > arena_bytes


_U64_OF_A_DESCRIPTOR = ("COMMIT_AT", "BASE_TIMESTAMP_AT", "MAX_TIMESTAMP_AT", "CREATED_AT", "SEAL_NUMBER_AT")
_U64_OF_THE_HEADER = (
    "MAGIC_AT",
    "SEAL_TAIL_AT",
    "ROOM_WANTED_AT",
    "TOPICS_WANTED_AT",
    "SEAL_HEAD_AT",
    "ORPHANS_AT",
    "METADATA_VERSION_AT",
    "REPORT_LENGTH_AT",
    "COORDINATOR_COUNTERS_AT",
    "NETWORK_COUNTERS_AT",
    "WORKER_COUNTERS_AT",
    "PROMISES_AT",
)


@pytest.mark.parametrize("name", [*_U64_OF_THE_HEADER, *_U64_OF_A_DESCRIPTOR])
def test_every_u64_has_an_offset_of_a_multiple_of_8(name: str) -> None:
    assert getattr(at, name) % 8 == 0


def test_descriptors_keep_the_alignment_of_their_u64_words() -> None:
    assert at.DESCRIPTOR_BYTES % 8 == 0


def test_the_other_entries_keep_the_alignment_of_their_words() -> None:
    assert at.TOPIC_BYTES % 4 == 0
    assert at.PARTITION_BYTES % 8 == 0
    assert at.PRODUCER_ID_AT % 8 == 0


def test_writers_of_the_header_have_cache_lines_of_their_own() -> None:
    geometry_end = at.GEOMETRY_AT + 8 * len(Geometry._fields)
    counters = 8 * len(at.COORDINATOR_COUNTERS), 8 * len(at.NETWORK_COUNTERS), 8 * len(at.WORKER_COUNTERS)
    writers = [
        (at.MAGIC_AT, geometry_end),
        (at.SEAL_TAIL_AT, at.TOPICS_WANTED_AT + 8),
        (at.SEAL_HEAD_AT, at.ORPHANS_AT + 8),
        (at.METADATA_VERSION_AT, at.REPORT_LENGTH_AT + 8),
        (at.COORDINATOR_COUNTERS_AT, at.COORDINATOR_COUNTERS_AT + counters[0]),
        (at.NETWORK_COUNTERS_AT, at.NETWORK_COUNTERS_AT + counters[1]),
        (at.WORKER_COUNTERS_AT, at.WORKER_COUNTERS_AT + at.WORKERS_MAX * at.LINE_BYTES),
        (at.REPORT_AT, at.REPORT_AT + at.REPORT_BYTES),
        (at.ATTACHED_AT, at.ATTACHED_AT + 4 * at.ATTACHED_SLOTS),
        (at.PROMISES_AT, at.PROMISES_AT + 8 * at.WORKERS_MAX),
    ]
    for (_, end), (start, _) in itertools.pairwise(writers):
        assert align(end, at.LINE_BYTES) <= start
    assert counters[2] <= at.LINE_BYTES
    assert writers[-1][1] <= at.HEADER_BYTES


def test_fields_of_entries_do_not_overlap() -> None:
    descriptor = [
        (at.COMMIT_AT, 8),
        (at.BASE_TIMESTAMP_AT, 8),
        (at.MAX_TIMESTAMP_AT, 8),
        (at.CREATED_AT, 8),
        (at.SEAL_NUMBER_AT, 8),
        (at.PARTITION_INDEX_AT, 4),
        (at.FIRST_SLAB_AT, 4),
        (at.SLAB_COUNT_AT, 4),
        (at.FIRST_OUTPUT_AT, 4),
        (at.OUTPUT_COUNT_AT, 4),
        (at.PAYLOAD_BYTES_AT, 4),
        (at.CODEC_AT, 4),
        (at.WORKER_AT, 4),
        (at.ATTEMPTS_AT, 4),
        (at.RESULT_CODE_AT, 4),
        (at.RECORD_ERROR_INDEX_AT, 4),
        (at.RETRIABLE_AT, 4),
        (at.BASE_OFFSET_AT, 8),
        (at.APPEND_TIME_AT, 8),
        (at.TEXT_LENGTH_AT, 4),
        (at.BATCH_HEADER_AT, at.BATCH_HEADER_BYTES),
        (at.TEXT_AT, at.TEXT_BYTES),
        (at.DESCRIPTOR_BYTES, 0),
    ]
    topic = [
        (at.TOPIC_WANTED_AT, 4),
        (at.TOPIC_NAME_LENGTH_AT, 4),
        (at.TOPIC_PARTITIONS_AT, 4),
        (at.TOPIC_ERROR_AT, 4),
        (at.TOPIC_ANSWERS_AT, 4),
        (at.TOPIC_NAME_AT, 249),
        (at.TOPIC_BYTES, 0),
    ]
    partition = [
        (at.PARTITION_TOPIC_AT, 4),
        (at.PARTITION_NUMBER_AT, 4),
        (at.PRODUCER_ID_AT, 8),
        (at.PRODUCER_EPOCH_AT, 4),
        (at.NEXT_SEQUENCE_AT, 4),
        (at.PARTITION_BYTES, 0),
    ]
    for fields in (descriptor, topic, partition):
        for (start, size), (following, _) in itertools.pairwise(sorted(fields)):
            assert start + size <= following
        assert max(fields)[1] == 0, "the entry ends after its last field"
