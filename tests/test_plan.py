"""The memory plan: every byte, computed before anything starts, whatever the settings."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slabpress.codec_memory import workspace_bytes
from slabpress.config import Config
from slabpress.errors import ConfigError
from slabpress.plan import MemoryPlan, plan_memory, workers_of
from slabpress.shm.control import CONTROL_BYTES
from slabpress.shm.layout import layout_of


def _plan(**settings: Any) -> MemoryPlan:
    return plan_memory(Config.of("a:1", **({"workers": 2} | settings)))


def _check_sums(plan: MemoryPlan, buffer_memory: int) -> None:
    assert plan.total_bytes == sum(line.units * line.bytes_each for line in plan.lines)
    arena = [line.total_bytes for line in plan.lines if line.name.startswith("arena")]
    assert sum(arena) == buffer_memory == plan.arena_bytes == plan.geometry.arena_bytes
    assert layout_of(plan.geometry).end <= buffer_memory


_SMALLEST = 32 * 1024


@given(
    st.integers(_SMALLEST, 1 << 34),
    st.sampled_from([0, 1024, 1088, 4096, 65536]),
    st.sampled_from([0, 1, 3, 100]),
    st.sampled_from(["none", "gzip", "snappy", "lz4", "zstd"]),
    st.integers(1, 64),
)
def test_the_lines_are_all_there_is_and_the_arenas_are_buffer_memory_exactly(
    buffer_memory: int, slab_size: int, partitions: int, codec: str, workers: int
) -> None:
    settings: dict[str, Any] = {
        "buffer_memory": buffer_memory,
        "slab_size": slab_size,
        "max_topic_partitions": partitions,
        "compression_type": codec,
        "workers": workers,
    }
    try:
        plan = _plan(**settings)
    except ConfigError:
        assert buffer_memory < 64 * 1024 + 8 * max(slab_size, 4096)
        return
    _check_sums(plan, buffer_memory)
    lines = {line.name: line for line in plan.lines}
    assert lines["control block"].total_bytes == CONTROL_BYTES
    assert lines["worker process"].units == lines["codec workspace"].units == plan.workers == workers
    assert lines["codec workspace"].bytes_each == workspace_bytes(codec, None, plan.largest_batch_bytes)


@given(st.integers(64 * 1024, 1 << 32), st.sampled_from([0, 1024, 4096]), st.integers(0, 1 << 26))
def test_a_batch_and_a_record_never_exceed_the_slabs(buffer_memory: int, slab_size: int, batch_size: int) -> None:
    batch_size = min(batch_size, buffer_memory // 4)
    plan = _plan(buffer_memory=buffer_memory, slab_size=slab_size, batch_size=batch_size, compression_type="lz4")
    slabs = plan.geometry.slab_bytes * plan.geometry.slab_count
    assert 0 < plan.batch_bytes <= slabs
    assert 0 < plan.largest_record_bytes <= min(slabs, 1 << 20)
    assert plan.largest_batch_bytes == max(plan.batch_bytes, plan.largest_record_bytes)
    outputs = plan.geometry.output_bytes * plan.geometry.output_count
    half = plan.geometry.output_count // 2 * plan.geometry.output_bytes
    assert plan.batch_bytes == batch_size or batch_size == 0 or batch_size > min(slabs, half)
    reserve = plan.geometry.output_bytes * plan.geometry.split_outputs
    assert reserve >= plan.batch_bytes, "a piece of the largest batch of several records finds its room"
    assert outputs - reserve >= plan.largest_batch_bytes, "law 6: the largest batch finds its room uncompressed"


@given(st.integers(64 * 1024, 1 << 32), st.sampled_from([0, 1024, 4096]), st.integers(0, 1 << 26))
def test_without_compression_all_but_the_room_for_one_piece_is_slabs(
    buffer_memory: int, slab_size: int, batch_size: int
) -> None:
    batch_size = min(batch_size, buffer_memory // 4)
    plan = _plan(buffer_memory=buffer_memory, slab_size=slab_size, batch_size=batch_size)
    geometry = plan.geometry
    _check_sums(plan, buffer_memory)
    slabs = geometry.slab_bytes * geometry.slab_count
    assert geometry.is_direct
    assert geometry.slab_count >= 3 * geometry.output_count
    assert geometry.split_outputs == geometry.output_count
    assert 0 < plan.batch_bytes <= geometry.output_count * geometry.output_bytes, "a piece finds its room"
    room = geometry.output_count * geometry.output_bytes
    assert plan.batch_bytes == batch_size or batch_size == 0 or batch_size > room == plan.batch_bytes
    assert plan.largest_record_bytes == min(slabs, 1 << 20)
    sizes = {"buffer_memory": buffer_memory, "slab_size": slab_size, "batch_size": batch_size}
    compressing = _plan(**sizes, compression_type="lz4").geometry
    blocks = geometry.slab_count + geometry.output_count
    assert (blocks, geometry.batch_count) == (2 * compressing.slab_count, blocks)


@pytest.mark.parametrize("mib", [1, 32, 64, 1024])
def test_most_of_an_arena_is_for_records(mib: int) -> None:
    plan = _plan(buffer_memory=mib << 20, compression_type="lz4")
    geometry = plan.geometry
    _check_sums(plan, mib << 20)
    data = geometry.slab_bytes * geometry.slab_count + geometry.output_bytes * geometry.output_count
    tables = (mib << 20) - data
    assert tables <= (mib << 20) * (0.25 if mib == 1 else 0.125)
    assert geometry.slab_count == geometry.output_count >= 64
    assert geometry.slab_bytes == geometry.output_bytes
    assert 4096 <= geometry.slab_bytes <= 65536
    assert geometry.slab_bytes & (geometry.slab_bytes - 1) == 0
    assert plan.batch_bytes >= 4 * geometry.slab_bytes
    assert geometry.partition_count >= 128
    assert geometry.topic_count >= 32


@pytest.mark.parametrize(
    ("mib", "slab_bytes", "partitions", "topics", "batch_bytes", "largest_record"),
    [
        (1, 4096, 128, 64, None, None),
        (32, 16384, 2048, 1024, 960 * 1024, 1 << 20),
        (64, 32768, 4096, 2048, 960 * 1024, 1 << 20),
    ],
)
def test_the_sizes_that_follow_from_buffer_memory(
    mib: int, slab_bytes: int, partitions: int, topics: int, batch_bytes: int | None, largest_record: int | None
) -> None:
    plan = _plan(buffer_memory=mib << 20, compression_type="lz4", workers=2)
    geometry = plan.geometry
    found = geometry.slab_bytes, geometry.partition_count, geometry.topic_count
    assert found == (slab_bytes, partitions, topics)
    slab_area = geometry.slab_bytes * geometry.slab_count
    eighth = slab_area // 8 // slab_bytes * slab_bytes
    assert plan.batch_bytes == (eighth if batch_bytes is None else batch_bytes)
    reserve = geometry.output_bytes * geometry.split_outputs
    assert plan.largest_record_bytes == (slab_area - reserve if largest_record is None else largest_record)


@pytest.mark.parametrize(("workers", "slabs"), [(2, 30), (8, 30), (16, 15), (64, 3)])
def test_with_many_workers_batches_are_smaller_so_that_each_finds_some(workers: int, slabs: int) -> None:
    plan = _plan(buffer_memory="64MiB", compression_type="lz4", workers=workers)
    assert plan.batch_bytes == slabs * plan.geometry.slab_bytes


@pytest.mark.parametrize(
    ("batch_size", "slab_bytes"),
    [(0, 32), ("1MiB", 32), (32768, 32), (32767, 32), (16385, 32), (16384, 16), (9000, 16), (8192, 8), (1, 8)],
)
def test_slabs_are_not_larger_than_batches_are_set_to_be(batch_size: int | str, slab_bytes: int) -> None:
    for codec in ("none", "lz4"):
        plan = _plan(buffer_memory="64MiB", compression_type=codec, batch_size=batch_size)
        assert plan.geometry.slab_bytes == plan.geometry.output_bytes == slab_bytes * 1024


def test_an_arena_too_small_says_how_many_bytes_would_do() -> None:
    with pytest.raises(ConfigError) as caught:
        _plan(buffer_memory=20_000, compression_type="lz4")
    text = str(caught.value)
    needed = int(text.split("too small: ")[1].split()[0])
    assert text == (
        f"buffer_memory is 20000 bytes, too small: {needed} bytes are the least for slabs of 4096 bytes; raise it or "
        "lower slab_size"
    )
    assert _plan(buffer_memory=needed, compression_type="lz4").geometry.slab_count == 2
    assert _plan(buffer_memory=needed).geometry.slab_count == 3


def test_automatic_workers_are_the_usable_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slabpress.plan.usable_cpus", lambda: 5)
    for given_workers in (0, "auto"):
        assert _plan(workers=given_workers, compression_type="lz4").workers == 5
        assert _plan(workers=given_workers).workers == 1, "only batches that are too large need one"
        assert workers_of(Config.of("a:1", workers=given_workers)) == 5, "a pipeline does not know its producers yet"
    assert _plan(workers=3).workers == 3


def test_the_plan_is_a_table_for_people() -> None:
    plan = _plan(compression_type="zstd", compression_level=5)
    rows = plan.table().splitlines()
    assert rows[0].split() == ["what", "units", "each", "bytes"]
    assert len(rows) == len(plan.lines) + 2
    for line, row in zip(plan.lines, rows[1:], strict=False):
        assert row.startswith(line.name)
        assert row.endswith(line.note)
    assert "zstd:5" in plan.table()
    assert rows[-1].startswith("total")
    assert all(row == row.rstrip() for row in rows)


def test_the_plan_is_plain_data() -> None:
    plan = _plan()
    data = json.loads(json.dumps(plan.as_dict()))
    assert data["total_bytes"] == plan.total_bytes == sum(line["total_bytes"] for line in data["lines"])
    assert data["geometry"] == plan.geometry._asdict()
    assert (data["workers"], data["batch_bytes"]) == (plan.workers, plan.batch_bytes)
