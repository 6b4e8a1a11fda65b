"""send_arrow(): every row where send() would put it, whatever the columns' layout, and a clear word where not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slabpress.errors import (
    BufferFullError,
    ProducerClosedError,
    RecordError,
    RecordTooLargeError,
    RecordTypeError,
    RecordValueError,
)
from tests.pipeline.instant import WATCHDOG_S, Rig
from tests.support.reference_batch import java_partition

Row = tuple[Any, Any]
BINARY = [pa.binary(), pa.large_binary(), pa.binary_view()]
TEXT = [pa.string(), pa.large_string(), pa.string_view()]


def _bytes(value: Any) -> bytes | None:
    return value.encode() if isinstance(value, str) else value


def _check_rows(rig: Rig, rows: list[tuple[bytes | None, bytes | None]]) -> None:
    """Every row has arrived: with a key where Java puts it and in order, without one anywhere and once."""
    partitions = rig.pipeline.topics["t"]
    expected = defaultdict(list)
    for key, value in rows:
        if key is not None:
            expected[java_partition(key, partitions)].append((key, value))
    keyless = []
    for partition in range(partitions):
        records = [r for batch in rig.pipeline.batches if batch.partition == partition for r in batch.records]
        assert [(r.key, r.value) for r in records if r.key is not None] == expected[partition]
        keyless += [r.value for r in records if r.key is None]
    by_value = [(value is not None, value) for value in keyless]
    assert sorted(by_value) == sorted((value is not None, value) for key, value in rows if key is None)


keys = st.none() | st.text(max_size=20)
values = st.none() | st.text(max_size=30) | st.integers(1, 1500).map(lambda size: "x" * size)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(keys, values), max_size=200),
    st.sampled_from(BINARY + TEXT),
    st.sampled_from(BINARY + TEXT),
    st.integers(1, 4),
    st.data(),
)
def test_rows_arrive_where_send_would_put_them_however_they_are_chunked_and_sliced(
    rows: list[Row], key_type: Any, value_type: Any, partitions: int, data: st.DataObject
) -> None:
    columns = [
        pa.array([_bytes(row[place]) for row in rows], pa.binary()).cast(kind)
        if kind in BINARY
        else pa.array([row[place] for row in rows], kind)
        for place, kind in ((0, key_type), (1, value_type))
    ]
    batch = pa.record_batch(columns, names=["k", "v"])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=4)))
    pieces = [batch.slice(start, end - start) for start, end in zip([0, *cuts], [*cuts, len(rows)], strict=True)]
    with Rig({"t": partitions}) as rig:
        many = rig.producer.send_arrow("t", pa.Table.from_batches(pieces), value="v", key="k")
        assert many.result(WATCHDOG_S) == many.accepted == len(rows)
        _check_rows(rig, [(_bytes(key), _bytes(value)) for key, value in rows])
        rig.flush()
        rig.check_all_free()


ROWS = ["", "a", None, "twelve bytes", "thirteen byte", "x" * 3000, None] * 20


@pytest.mark.parametrize("kind", BINARY + TEXT, ids=str)
@pytest.mark.parametrize("role", ["value", "key"])
def test_every_layout_of_bytes_is_read(kind: Any, role: str) -> None:
    expected = [_bytes(row) for row in ROWS]
    column = pa.array(expected, kind) if kind in BINARY else pa.array(ROWS, kind)
    with Rig({"t": 1}) as rig:
        many = rig.producer.send_arrow("t", pa.table({"value": column, "key": column}), value=role, key="key")
        assert many.result(WATCHDOG_S) == len(ROWS)
        _check_rows(rig, list(zip(expected, expected, strict=True)))


def test_bytes_of_one_size_and_nothing_but_nulls_are_columns_too() -> None:
    fixed = pa.array([b"abc", None, b"def"], pa.binary(3))
    with Rig({"t": 1}) as rig:
        rig.producer.send_arrow("t", pa.table({"k": fixed, "v": pa.nulls(3)}), value="v", key="k").result(WATCHDOG_S)
        rig.producer.send_arrow("t", fixed.slice(1)).result(WATCHDOG_S)
        found = [(record.key, record.value) for batch in rig.pipeline.batches for record in batch.records]
        assert found == [(b"abc", None), (None, None), (b"def", None), (None, None), (None, b"def")]


def test_a_single_column_is_the_values() -> None:
    chunked = pa.chunked_array([["a", "b"], [], ["c"]])
    with Rig({"t": 1}) as rig:
        assert rig.producer.send_arrow("t", chunked).result(WATCHDOG_S) == 3
        assert rig.producer.send_arrow("t", pa.array([b"1", b"2", b"3"]).slice(1, 1)).result(WATCHDOG_S) == 1
        assert rig.producer.send_arrow("t", pa.array([], pa.string())).result(WATCHDOG_S) == 0
        assert rig.pipeline.values("t", 0) == [b"a", b"b", b"c", b"2"]


@pytest.mark.parametrize("start", [0, 1, 7, 8, 9, 70])
def test_a_sliced_array_of_structs_counts_from_its_own_offset_and_a_null_row_is_all_null(start: int) -> None:
    rows = [None if number % 5 == 3 else {"k": f"{number}", "v": f"v{number}"} for number in range(100)]
    kind = pa.struct([("k", pa.string()), ("v", pa.string_view())])
    array = pa.array(rows, kind).slice(start, 30)
    assert array.offset == start
    with Rig({"t": 3}) as rig:
        assert rig.producer.send_arrow("t", array, value="v", key="k").result(WATCHDOG_S) == 30
        wanted = rows[start : start + 30]
        _check_rows(rig, [(_bytes(row and row["k"]), _bytes(row and row["v"])) for row in wanted])


def test_a_partition_is_for_all_rows_whatever_their_keys() -> None:
    table = pa.table({"k": ["a", None, "b"], "v": ["1", "2", "3"]})
    with Rig({"t": 3}) as rig:
        rig.producer.send_arrow("t", table, value="v", key="k", partition=2).result(WATCHDOG_S)
        assert rig.pipeline.values("t", 2) == [b"1", b"2", b"3"]


def test_rows_without_a_key_go_from_one_sticky_partition_to_the_next_like_other_records_without_one() -> None:
    keys = [None if number % 3 else b"key" for number in range(6000)]
    table = pa.table({"k": pa.array(keys, pa.binary()), "v": [b"%d" % number for number in range(6000)]})
    with Rig({"t": 4}) as rig:
        assert rig.producer.send_arrow("t", table, value="v", key="k").result(WATCHDOG_S) == 6000
        _check_rows(rig, [(key, b"%d" % number) for number, key in enumerate(keys)])
        where = {b.partition for b in rig.pipeline.batches if any(record.key is None for record in b.records)}
        assert len(where) > 1


def test_more_than_the_arena_holds_goes_through_in_one_call() -> None:
    rows = [(b"%d" % (number % 50), b"%6d" % number) for number in range(20_000)]
    table = pa.table({"k": [key for key, _ in rows], "v": [value for _, value in rows]})
    with Rig({"t": 5}) as rig:
        assert rig.producer.send_arrow("t", table, value="v", key="k").result(WATCHDOG_S) == len(rows)
        _check_rows(rig, list(rows))
        rig.flush()
        rig.check_all_free()


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([5, 1_700_000_000_123], pa.int64()), [5, 1_700_000_000_123]),
        (pa.array([5, 1_700_000_000], pa.timestamp("s")), [5000, 1_700_000_000_000]),
        (pa.array([5, 1_700_000_000_123], pa.timestamp("ms", tz="Europe/Paris")), [5, 1_700_000_000_123]),
        (pa.array([5999, 1_700_000_000_123_999], pa.timestamp("us")), [5, 1_700_000_000_123]),
        (pa.array([5_999_999, 1_700_000_000_123_999_999], pa.timestamp("ns", tz="UTC")), [5, 1_700_000_000_123]),
        (pa.array([1, 2, 3], pa.int64()).slice(1), [2, 3]),
    ],
)
def test_timestamps_come_from_a_column(column: Any, expected: list[int]) -> None:
    with Rig({"t": 1}) as rig:
        table = pa.table({"v": ["a", "b"], "at": column})
        rig.producer.send_arrow("t", table, value="v", timestamp_ms="at").result(WATCHDOG_S)
        assert [r.timestamp_ms for batch in rig.pipeline.batches for r in batch.records] == expected


def test_a_null_timestamp_is_now_and_a_number_is_for_all() -> None:
    table = pa.table({"v": ["a", "b"], "at": pa.array([None, 7], pa.int64())})
    with Rig({"t": 1}) as rig:
        before = rig.send("t", b"")
        rig.producer.send_arrow("t", table, value="v", timestamp_ms="at").result(WATCHDOG_S)
        rig.producer.send_arrow("t", table, value="v", timestamp_ms=9).result(WATCHDOG_S)
        assert before.result(WATCHDOG_S).offset == 0
        stamps = [r.timestamp_ms for batch in rig.pipeline.batches for r in batch.records]
        assert stamps[1] >= stamps[0]
        assert stamps[2:] == [7, 9, 9]


@pytest.mark.parametrize(
    ("kind", "bad"), [(pa.int64(), -3), (pa.timestamp("us"), -1), (pa.timestamp("s"), 2**63 // 1000 + 1)]
)
def test_a_timestamp_that_kafka_cannot_carry_stops_the_call_at_its_row(kind: Any, bad: int) -> None:
    stamps = pa.array([7] * 300 + [bad] + [7] * 5, pa.int64()).cast(kind)
    table = pa.table({"v": [b"%d" % number for number in range(306)], "at": stamps})
    with Rig({"t": 1}) as rig:
        with pytest.raises(RecordValueError, match=f"timestamp_ms column 'at' has {bad} for record 300") as caught:
            rig.producer.send_arrow("t", table, value="v", timestamp_ms="at")
        assert caught.value.accepted == 300
        rig.flush()
        assert rig.pipeline.values("t", 0) == [b"%d" % number for number in range(300)]


TABLE = pa.table({"k": ["a"], "v": ["b"], "n": [1], "d": pa.array(["x"]).dictionary_encode(), "t": [[1]]})
WANTED = (
    "and must be binary, large_binary, fixed_size_binary, binary_view, string, large_string or string_view: cast it"
)


@pytest.mark.parametrize(
    ("data", "columns", "says"),
    [
        (7, {}, "data must be Arrow data, with __arrow_c_array__ or __arrow_c_stream__ .*, not int"),
        (TABLE, {}, "value must name the column of the records' values; data has 5 columns: 'k', 'v', 'n', 'd', 't'$"),
        (TABLE, {"value": "w"}, "value='w' is the name of no column; data has 5 columns: 'k', "),
        (TABLE, {"value": "v", "key": "w"}, "key='w' is the name of no column"),
        (TABLE, {"value": "v", "timestamp_ms": "w"}, "timestamp_ms='w' is the name of no column"),
        (TABLE, {"value": "n"}, f"value column 'n' is int64, {WANTED}"),
        (TABLE, {"value": "v", "key": "t"}, f"key column 't' is list, {WANTED}"),
        (TABLE, {"value": "v", "key": "d"}, "key column 'd' is dictionary-encoded: pass it decoded"),
        (
            TABLE,
            {"value": "v", "timestamp_ms": "k"},
            r"timestamp_ms column 'k' is string, and must be int64 \(milliseconds since the epoch\) or timestamp",
        ),
        (pa.array([1.5]), {}, f"the value column is double, {WANTED}"),
        (pa.array(["a"]), {"key": "k"}, "key='k' names a column, but data is one column"),
        (pa.array(["a"]), {"value": "v"}, "data is one column, not a table with a column 'v': leave value out"),
        (pa.table([["a"], ["b"]], names=["v", "v"]), {"value": "v"}, "is the name of more than one column"),
        (pa.table([[1]] * 30, names=[f"c{n}" for n in range(30)]), {"value": "x"}, r"'c19', \.\.\.$"),
        (pa.array([1], pa.decimal128(5)), {}, "the value column is 'd:5,0', as Arrow's C interface calls it"),
    ],
)
def test_columns_that_cannot_be_sent_are_named_with_their_type_and_what_is_accepted(
    data: Any, columns: dict[str, str], says: str
) -> None:
    with Rig() as rig:
        with pytest.raises(RecordTypeError, match=says) as caught:
            rig.producer.send_arrow("t", data, **columns)  # type: ignore[arg-type] # some are wrong
        assert caught.value.accepted == 0


def test_without_room_the_error_says_from_which_row_to_go_on() -> None:
    rows = [(b"%d" % (number % 7), b"%5d" % number + b"x" * (number % 700)) for number in range(500)]
    batch = pa.record_batch({"k": [key for key, _ in rows], "v": [value for _, value in rows]})
    table = pa.Table.from_batches([batch.slice(0, 11), batch.slice(11, 200), batch.slice(211)])
    with Rig({"t": 3}, max_block_ms=300) as rig:
        rig.send("t", None, key=b"first").result(WATCHDOG_S)
        rig.thread.hold()
        with pytest.raises(BufferFullError) as caught:
            rig.producer.send_arrow("t", table, value="v", key="k")
        accepted = caught.value.accepted
        assert 11 < accepted < 500
        rig.thread.resume()
        rig.flush()
        _check_rows(rig, [(b"first", None), *rows[:accepted]])
        rig.producer.send_arrow("t", table.slice(accepted), value="v", key="k").result(WATCHDOG_S)
        _check_rows(rig, [(b"first", None), *rows])
        rig.flush()
        rig.check_all_free()


def test_a_row_that_is_too_large_stops_the_call_and_those_before_it_are_on_their_way() -> None:
    column = pa.chunked_array([[b"good"] * 100, [b"good"] * 17 + [b"x" * 40_000, b"later"]])
    with Rig({"t": 1}, max_request_size=20_000) as rig:
        with pytest.raises(RecordTooLargeError, match=r"takes 400\d\d bytes encoded") as caught:
            rig.producer.send_arrow("t", column)
        assert caught.value.accepted == 117
        rig.flush()
        assert rig.pipeline.values("t", 0) == [b"good"] * 117


def test_a_reader_may_use_the_producer_that_reads_it() -> None:
    schema = pa.schema([("v", pa.string())])
    with Rig({"t": 1}) as rig:

        def batches() -> Iterator[Any]:
            for number in range(3):
                rig.send("t", b"by the reader %d" % number)
                yield pa.record_batch([pa.array([f"row {number}"])], schema=schema)

        reader = pa.RecordBatchReader.from_batches(schema, batches())
        assert rig.producer.send_arrow("t", reader, value="v").result(WATCHDOG_S) == 3
        expected = [text for number in range(3) for text in (b"by the reader %d" % number, b"row %d" % number)]
        assert rig.pipeline.values("t", 0) == expected


def test_what_a_reader_raises_is_in_the_error_with_what_was_accepted_before() -> None:
    schema = pa.schema([("v", pa.string())])

    def batches() -> Iterator[Any]:
        yield pa.record_batch([pa.array(["a", "b"])], schema=schema)
        raise OSError("the disk is gone")

    with Rig({"t": 1}) as rig:
        reader = pa.RecordBatchReader.from_batches(schema, batches())
        with pytest.raises(RecordValueError, match=r"failed after 2 records: .*the disk is gone") as caught:
            rig.producer.send_arrow("t", reader, value="v")
        assert caught.value.accepted == 2
        rig.flush()
        assert rig.pipeline.values("t", 0) == [b"a", b"b"]


def test_a_closed_producer_refuses() -> None:
    with Rig() as rig:
        rig.close()
        with pytest.raises(ProducerClosedError):
            rig.producer.send_arrow("t", pa.array(["a"]))


def test_an_error_of_the_call_is_a_record_error() -> None:
    assert issubclass(BufferFullError, RecordError)
    assert RecordError("x").byte_offset is None
