"""Arrow's C structs: each is released once, however a call ends, and broken ones are refused and not followed."""

from __future__ import annotations

import gc
import struct
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from slabpress._native import ArrowSource
from slabpress.errors import BufferFullError, RecordError, RecordTooLargeError, RecordTypeError, RecordValueError
from slabpress.pipeline.columns import is_in_memory
from tests.pipeline.instant import WATCHDOG_S, Rig
from tests.support.arrow_exporter import EIO, NO_ARRAY, Exporter

ENDS: dict[str, tuple[Callable[[Exporter], Any], dict[str, Any], type[Exception] | None, str]] = {
    "an array": (lambda e: e.array(e.new_schema(), e.new_array([b"a", b"b"])), {}, None, ""),
    "an empty array": (lambda e: e.array(e.new_schema(), e.new_array([])), {}, None, ""),
    "columns": (
        lambda e: e.array(e.new_schema(columns=[b"k", b"v"]), e.new_array([b"a", b"b"], 2)),
        {"value": "v", "key": "k"},
        None,
        "",
    ),
    "a stream": (lambda e: e.stream([[b"a"], [], [b"b", b"c"]]), {}, None, ""),
    "an empty stream": (lambda e: e.stream([]), {}, None, ""),
    "no such column": (
        lambda e: e.array(e.new_schema(columns=[b"v"]), e.new_array([b"a"], 1)),
        {"value": "w"},
        RecordTypeError,
        "is the name of no column",
    ),
    "a wrong type": (lambda e: e.stream([[b"a"]], arrow_format=b"i"), {}, RecordTypeError, "is int32"),
    "a wrong timestamp": (lambda e: e.stream([[b"a"]]), {"timestamp_ms": -1}, RecordValueError, "timestamp_ms is -1"),
    "no schema": (lambda e: e.stream([], schema_error=EIO), {}, RecordValueError, "has no schema: disk"),
    "a failure": (lambda e: e.stream([[b"a", b"b"], EIO]), {}, RecordValueError, "failed after 2 records: disk"),
    "a silent failure": (
        lambda e: e.stream([[b"a"], EIO], error=None),
        {},
        RecordValueError,
        "failed after 1 records: Input/output error",
    ),
    "a row too large": (lambda e: e.stream([[b"a"], [b"x" * 60_000, b"b"], [b"c"]]), {}, RecordTooLargeError, "takes"),
    "no room": (lambda e: e.stream([[b"x" * 900] * 50] * 4), {}, BufferFullError, "no room"),
    "another capsule": (
        lambda e: e.array(e.new_schema(), e.new_array([b"a"]), (b"arrow_schema", NO_ARRAY)),
        {},
        ValueError,
        "incorrect name",
    ),
    "a lie about columns": (
        lambda e: e.array(e.new_schema(columns=[b"v"]), e.new_array([b"a"], 1, n_children=0)),
        {"value": "v"},
        RecordValueError,
        "broken: 0 columns where 1 were announced",
    ),
    "a lie about length": (
        lambda e: e.array(e.new_schema(columns=[b"v"]), e.new_array([b"a"], 1, length=2)),
        {"value": "v"},
        RecordValueError,
        "broken: column 'v' has 1 rows of 2 and 3 buffers of 3",
    ),
    "a length below zero": (
        lambda e: e.array(e.new_schema(), e.new_array([b"a"], length=-1)),
        {},
        RecordValueError,
        "broken: ",
    ),
    "too few buffers": (
        lambda e: e.array(e.new_schema(), e.new_array([b"a"], n_buffers=2)),
        {},
        RecordValueError,
        "broken: column '' has 1 rows of 1 and 2 buffers of 3",
    ),
    "offsets that go back": (
        lambda e: e.array(e.new_schema(), e.raw_array(2, [None, struct.pack("3i", 0, 5, 3), b"abcde"])),
        {},
        RecordValueError,
        "broken: row 1 of a chunk has a length below zero",
    ),
    "a view of no buffer": (
        lambda e: e.array(
            e.new_schema(b"vz"), e.raw_array(1, [None, struct.pack("i4sii", 20, b"abcd", 1, 0), b"x" * 20, b"\x14" * 8])
        ),
        {},
        RecordValueError,
        "lies in no buffer",
    ),
}


@pytest.mark.parametrize("name", ENDS)
def test_every_struct_is_released_once_however_the_call_ends(name: str) -> None:
    make, columns, error, says = ENDS[name]
    exporter = Exporter()
    with Rig({"t": 1}, max_block_ms=50) as rig:
        if error is BufferFullError:
            rig.send("t", b"first").result(WATCHDOG_S)
            rig.thread.hold()
        data = make(exporter)
        if error is None:
            many = rig.producer.send_arrow("t", data, **columns)
            assert exporter.released == exporter.made, "at once, not when the data goes"
            many.result(WATCHDOG_S)
            assert b"".join(value or b"" for value in rig.pipeline.values("t", 0)) in (b"", b"ab", b"abc")
        else:
            with pytest.raises(error, match=says) as caught:
                rig.producer.send_arrow("t", data, **columns)
            if name not in ("another capsule", "a wrong timestamp"):  # of which nothing was taken
                assert exporter.released == exporter.made, "at once, though the error's frames hold everything"
            del data, caught
            gc.collect()
        assert exporter.released == exporter.made
        assert exporter.made
        rig.thread.resume()
        rig.flush()


@pytest.mark.parametrize("what", ["array", "stream"])
def test_data_that_was_used_up_is_refused(what: str) -> None:
    exporter = Exporter()
    data = exporter.array(exporter.new_schema(), exporter.new_array([b"a"])) if what == "array" else exporter.stream([])
    with Rig({"t": 1}) as rig:
        rig.producer.send_arrow("t", data).result(WATCHDOG_S)
        with pytest.raises(RecordValueError, match=f"the Arrow {what} was released already"):
            rig.producer.send_arrow("t", data)
    assert exporter.released == exporter.made


def test_a_view_that_is_null_is_not_followed() -> None:
    exporter = Exporter()
    views = struct.pack("i4sii", 20, b"abcd", 77, 0) + struct.pack("i12s", 2, b"ok")
    array = exporter.raw_array(2, [b"\x02", views, b"\x00" * 8])
    array.null_count = 1
    with Rig({"t": 1}) as rig:
        rig.producer.send_arrow("t", exporter.array(exporter.new_schema(b"vz"), array)).result(WATCHDOG_S)
        assert rig.pipeline.values("t", 0) == [None, b"ok"]


def test_what_lies_under_a_row_that_is_null_is_not_looked_at() -> None:
    exporter = Exporter()
    rows = exporter.new_array([b""] * 2, 2, b"\x02", null_count=1)
    views = [None, struct.pack("i4sii", 20, b"abcd", 77, 0) + struct.pack("i12s", 2, b"ok"), b"\x00" * 8]
    for child in exporter.children(rows):
        exporter.fill_raw(child, 2, views)
    data = exporter.array(exporter.new_schema(b"vu", columns=[b"k", b"v"]), rows)
    with Rig({"t": 1}) as rig:
        rig.producer.send_arrow("t", data, value="v", key="k").result(WATCHDOG_S)
        found = [(record.key, record.value) for batch in rig.pipeline.batches for record in batch.records]
        assert found == [(None, None), (b"ok", b"ok")]


def test_what_the_sender_of_the_data_held_is_free_after_the_call() -> None:
    gc.collect()
    before = pa.total_allocated_bytes()
    with Rig({"t": 1}) as rig:
        for data in (pa.array([b"x" * 100] * 1000), pa.table({"v": [b"x" * 100] * 1000})):
            held = pa.total_allocated_bytes() - before
            assert held > 100_000
            value = "v" if isinstance(data, pa.Table) else None
            rig.producer.send_arrow("t", data, value=value).result(WATCHDOG_S)
        del data
        gc.collect()
        assert pa.total_allocated_bytes() == before


def test_what_an_exporter_raises_goes_to_the_caller() -> None:
    class Broken:
        def __arrow_c_stream__(self, requested_schema: object = None, /) -> object:
            raise KeyError("nothing here")

    with Rig() as rig:
        with pytest.raises(KeyError, match="nothing here"):
            rig.producer.send_arrow("t", Broken())
        assert not issubclass(KeyError, RecordError)


def test_a_stream_is_asked_without_the_interpreter_unless_it_lies_in_memory() -> None:
    exporter = Exporter()
    assert not _next_chunk(exporter.stream_that_tells_who_has_the_interpreter(of_schema=False), in_memory=False)
    for of_schema in (False, True):
        data = exporter.stream_that_tells_who_has_the_interpreter(of_schema=of_schema)
        with pytest.raises(RecordValueError, match="Operation not permitted"):  # which is error 1
            _next_chunk(data, in_memory=True)
    with Rig({"t": 1}) as rig:
        data = exporter.stream_that_tells_who_has_the_interpreter(of_schema=False)
        assert rig.producer.send_arrow("t", data).accepted == 0, "asked without: it is nobody's that is known"


def _next_chunk(data: Any, *, in_memory: bool) -> bool:
    source = ArrowSource(data, None, in_memory)
    try:
        source.choose(0, -1, -1)
        return source.next_chunk()
    finally:
        source.close()


def test_only_pyarrows_own_tables_and_columns_are_known_to_lie_in_memory() -> None:
    table = pa.table({"v": [b"a"]})
    assert is_in_memory(table)
    assert is_in_memory(table["v"])
    for other in (table.to_reader(), Exporter().stream([]), table.to_pydict(), None):
        assert not is_in_memory(other)
