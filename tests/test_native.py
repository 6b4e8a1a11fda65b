"""The compiled kernel: records against the reference and three other decoders, blocks against a model."""

from __future__ import annotations

import gc
import struct
import sys
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from aiokafka.record.default_records import DefaultRecordBatch as AioBatch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule
from kio.records.readers import read_batch

from slabpress._native import (
    ALL_APPENDED,
    BATCH_FULL,
    NO_SLAB,
    NONE,
    STOPPED_BATCH_FULL,
    STOPPED_NO_SLAB,
    STOPPED_NOT_OPEN,
    STOPPED_TOO_LARGE,
    Blocks,
    Memory,
    ObjectSource,
    OpenBatch,
    RecordWriter,
    TopicLanes,
    Words,
    murmur2,
    partition_for_key,
)
from slabpress.errors import RecordTypeError, RecordValueError
from slabpress.shm import layout as at
from slabpress.shm.arena import Arena
from slabpress.shm.descriptors import Descriptors
from tests.shm.kit import bytes_of, make_writer, open_batch, run_python, small_arena
from tests.support import reference_batch as reference
from tests.support.reference_batch import Record, decode_records, encode_batch, encode_records
from tests.support.strategies import payloads, record_lists

SLAB_BYTES = st.sampled_from([64, 65, 100, 128, 1000, 4096])


def _kafka_python_batch(data: bytes) -> Any:
    with warnings.catch_warnings():
        # kafka-python loads its schemas by a function that Python 3.11 deprecates.
        warnings.simplefilter("ignore", DeprecationWarning)
        from kafka.record.default_records import DefaultRecordBatch
    return DefaultRecordBatch(data)


def _slabs_for(records: Sequence[Record], slab_bytes: int) -> int:
    return max(2, len(encode_records(records)) // slab_bytes + 2)


def _lanes(batches: Any) -> TopicLanes:
    lanes = TopicLanes()
    lanes.open = batches
    return lanes


def _many(
    writer: RecordWriter,
    batches: Sequence[OpenBatch | None],
    values: list[Any],
    keys: Any,
    headers: Any,
    stamps: Any,
    partition: int,
) -> tuple[int, int, int]:
    """How many were appended, why it stopped, and where."""
    source = ObjectSource(values, keys, headers, stamps)
    why, target, _ = source.append(writer, _lanes(batches), partition, 1, [])
    return source.taken, why, target


def _append_all(arena: Arena, records: Sequence[Record]) -> OpenBatch:
    writer, batch = make_writer(arena), open_batch(arena)
    for record in records:
        assert writer.append(batch, record.key, record.value, record.headers, record.timestamp_ms) > 0
    return batch


# --- records ------------------------------------------------------------------------------------------------


@given(record_lists(), SLAB_BYTES)
def test_records_are_the_references_bytes_whatever_the_slab_size(records: list[Record], slab_bytes: int) -> None:
    with small_arena(slab_bytes, _slabs_for(records, slab_bytes)) as arena:
        batch = _append_all(arena, records)
        data = bytes_of(arena, batch.first_slab, batch.bytes)
        assert data == encode_records(records)
        assert decode_records(data, len(records), records[0].timestamp_ms) == records
        assert (batch.records, batch.bytes) == (len(records), len(data))
        assert batch.slabs == max(1, -(-len(data) // slab_bytes)) == len(arena.slabs.chain(batch.first_slab))
        said = Descriptors(arena).sealed(0)
        assert (said.records, said.raw_bytes, said.first_slab) == (len(records), len(data), batch.first_slab)
        stamps = [record.timestamp_ms for record in records]
        assert (said.base_timestamp_ms, said.max_timestamp_ms) == (stamps[0], max(stamps))


def _plain(record: Any) -> tuple[bytes | None, bytes | None, list[tuple[str, bytes | None]], int]:
    headers = [(name, None if value is None else bytes(value)) for name, value in record.headers]
    key, value = (None if part is None else bytes(part) for part in (record.key, record.value))
    return key, value, headers, record.timestamp


@given(record_lists(max_bytes=300), st.sampled_from([64, 100]))
def test_three_other_decoders_read_the_records(records: list[Record], slab_bytes: int) -> None:
    with small_arena(slab_bytes, _slabs_for(records, slab_bytes)) as arena:
        batch = _append_all(arena, records)
        data = encode_batch(records, payload=bytes_of(arena, batch.first_slab, batch.bytes))
    expected = [(r.key, r.value, list(r.headers), r.timestamp_ms) for r in records]
    for other in (AioBatch(data), _kafka_python_batch(data)):
        assert other.validate_crc()
        assert [_plain(record) for record in other] == expected
    by_kio, size = read_batch(data, 0)
    assert size == len(data)
    # kio reads a record's time to the second.
    assert [
        (r.key, r.value, [(h.key, h.value) for h in r.headers], r.offset, int(r.timestamp.timestamp()))
        for r in by_kio.records
    ] == [
        (r.key, r.value, [(name.encode(), value) for name, value in r.headers], offset, r.timestamp_ms // 1000)
        for offset, r in enumerate(records)
    ]


@given(record_lists(max_size=40, max_bytes=200), SLAB_BYTES, st.integers(1, 4))
def test_append_many_is_a_loop_of_append(records: list[Record], slab_bytes: int, partitions: int) -> None:
    slabs = partitions * _slabs_for(records, slab_bytes)
    keys = [b"" if record.key is None else record.key for record in records]
    by_partition: list[list[Record]] = [[] for _ in range(partitions)]
    for record, key in zip(records, keys, strict=True):
        chosen = reference.java_partition(key, partitions)
        by_partition[chosen].append(Record(key, record.value, record.headers, record.timestamp_ms))
    with small_arena(slab_bytes, slabs) as arena:
        writer = make_writer(arena)
        batches = [open_batch(arena, number, number) for number in range(partitions)]
        values, headers = [r.value for r in records], [r.headers for r in records]
        stamps = [r.timestamp_ms for r in records]
        answer = _many(writer, batches, values, keys, headers, stamps, -1)
        assert answer[:2] == (len(records), ALL_APPENDED)
        for batch, expected in zip(batches, by_partition, strict=True):
            data = bytes_of(arena, batch.first_slab, batch.bytes) if expected else b""
            assert data == encode_records(expected)
            assert batch.records == len(expected)


def test_append_many_notes_each_batch_that_a_call_writes_to_once() -> None:
    with small_arena() as arena:
        writer = make_writer(arena)
        lanes = _lanes([open_batch(arena, number, number) for number in range(3)])
        touched: list[tuple[OpenBatch, int]] = []
        for values, partition, call, expected in (
            ([b"a", b"b"], 1, 1, [1]),
            ([b"a", b"b"], 1, 1, [1]),
            ([b"a", b"b"], 2, 1, [1, 2]),
            ([], 0, 1, [1, 2]),  # nothing to append: not touched
            ([b"a", b"b"], 1, 2, [1, 2, 1]),
        ):
            ObjectSource(values, None, None, None).append(writer, lanes, partition, call, touched)
            assert [batch.partition for batch, _ in touched] == expected
        assert [first for _, first in touched] == [0, 0, 4]  # where the call's own records begin


def test_a_call_goes_on_where_it_stopped_and_so_it_does_with_what_comes_next() -> None:
    with small_arena() as arena:
        writer, batch = make_writer(arena), open_batch(arena)
        source, expected = ObjectSource([b"a", b"b"], None, None, [7, 8]), []
        assert source.append(writer, _lanes([None]), 0, 1, []) == (STOPPED_NOT_OPEN, 0, False)
        assert (source.taken, source.is_done()) == (0, False)
        for taken, value in ((2, b"c"), (3, b"d"), (4, b"")):
            assert source.append(writer, _lanes([batch]), 0, 1, []) == (ALL_APPENDED, 0, False)
            assert (source.taken, source.is_done()) == (taken, True)
            source.go_on_with([value], [b"k"], [[("h", None)]], [9])
            assert not source.is_done()
            expected.append(Record(b"k", value, (("h", None),), 9))
        records = [Record(None, b"a", (), 7), Record(None, b"b", (), 8), *expected[:2]]
        assert bytes_of(arena, batch.first_slab, batch.bytes) == encode_records(records)


def test_append_many_says_where_and_why_it_stopped() -> None:
    with small_arena(64, 2) as arena:
        writer = make_writer(arena, batch_bytes=60, largest_record_bytes=200)
        batch, none_open = open_batch(arena), [None, None]
        value = b"x" * 40
        assert _many(writer, [None], [b"a"], None, None, None, 0) == (0, STOPPED_NOT_OPEN, 0)
        key = b"foobar"
        wanted = (-790332482 & 0x7FFFFFFF) % 2
        assert _many(writer, none_open, [b"a"], [key], None, None, -1) == (0, STOPPED_NOT_OPEN, wanted)
        source, lanes = ObjectSource([b"a", b"b"], [key, None], None, None), _lanes([None, None])
        lanes.open[wanted] = open_batch(arena, 2)
        lanes.sticky = 1 - wanted
        assert source.append(writer, lanes, -1, 1, []) == (STOPPED_NOT_OPEN, 1 - wanted, True)
        assert source.taken == 1
        arena.slabs.mark(lanes.open[wanted].first_slab, 0)
        assert _many(writer, [batch], [value, value], None, None, None, 0) == (1, STOPPED_BATCH_FULL, 0)
        assert batch.records == 1
        other = open_batch(arena, 1)
        assert _many(writer, [other], [b"y" * 90], None, None, None, 0) == (0, STOPPED_NO_SLAB, 0)
        assert _many(writer, [other], [b"y" * 300], None, None, None, 0) == (0, STOPPED_TOO_LARGE, 0)
        assert writer.too_large_bytes == 300 + 9
        assert other.records == 0
        with pytest.raises(IndexError, match="partition 1 of 1"):
            _many(writer, [batch], [b"a"], None, None, None, 1)


def test_what_the_lists_hold_when_a_call_goes_on_is_what_is_sent() -> None:
    """While a call waits for room anybody may change them: where their bytes lie is found anew."""
    with small_arena() as arena:
        writer, batch = make_writer(arena), open_batch(arena)
        values, keys, stamps = [b"old", b"old"], ["old", "old"], [1, 2]
        headers = [[("old", b"old")], None]
        source = ObjectSource(values, keys, headers, stamps)
        assert source.append(writer, _lanes([None]), 0, 1, [])[0] == STOPPED_NOT_OPEN
        values[0], keys[0], headers[0], stamps[0] = bytes(bytearray(b"new")), "new" + "er", [("new", b"")], 3
        assert source.append(writer, _lanes([batch]), 0, 1, [])[0] == ALL_APPENDED
        records = [Record(b"newer", b"new", (("new", b""),), 3), Record(b"old", b"old", (), 2)]
        assert bytes_of(arena, batch.first_slab, batch.bytes) == encode_records(records)
        del values[1:]
        source.go_on_with(values, None, None, None)
        values.clear()
        with pytest.raises(IndexError, match="a list of 1 entries has 0: it changed during the call"):
            source.append(writer, _lanes([batch]), 0, 1, [])


@pytest.mark.parametrize("place", [0, 1, 63, 64, 65])
@pytest.mark.parametrize(
    ("column", "bad", "kind", "words"),
    [
        ("values", 3, RecordTypeError, r"value must be bytes.* not int"),
        ("values", "\ud800", RecordValueError, "value is a str that UTF-8 cannot encode"),
        ("keys", 2.5, RecordTypeError, r"key must be bytes.* not float"),
        ("headers", [("a", 1)], RecordTypeError, "the value of header b'a' must be bytes"),
        ("headers", [(None, b"")], RecordTypeError, "a header's name must be str or bytes, not NoneType"),
        ("headers", "ab", RecordTypeError, "headers must be a sequence of"),
        ("stamps", True, RecordTypeError, "timestamp_ms must be an int"),
        ("stamps", -1, RecordValueError, "timestamp_ms is -1, outside"),
        ("stamps", 2**63, RecordValueError, "timestamp_ms is 9223372036854775808, outside"),
    ],
)
def test_all_before_a_record_that_is_refused_were_appended(
    column: str, bad: Any, kind: type[Exception], words: str, place: int
) -> None:
    columns: dict[str, list[Any]] = {
        "values": [b"%d" % n for n in range(100)],
        "keys": [f"k{n}" for n in range(100)],
        "headers": [[("h", b"%d" % n)] for n in range(100)],
        "stamps": list(range(100)),
    }
    columns[column][place] = bad
    with small_arena(1000, 20) as arena:
        writer, batch = make_writer(arena), open_batch(arena)
        source = ObjectSource(*columns.values())
        for _ in range(2):  # whoever tries again gets the same
            with pytest.raises(kind, match=words):
                source.append(writer, _lanes([batch]), 0, 1, [])
            assert (source.taken, batch.records) == (place, place)
        records = [Record(b"k%d" % n, b"%d" % n, (("h", b"%d" % n),), n) for n in range(place)]
        assert (bytes_of(arena, batch.first_slab, batch.bytes) if place else b"") == encode_records(records)


class _OtherBytes(bytes):
    pass


def _parts() -> st.SearchStrategy[Any]:
    """Every kind of key and value; twice those that lie where they are, so that there are runs of them."""
    short = st.binary(max_size=40)
    plain = short | st.text(st.characters(max_codepoint=127), max_size=40) | st.none()
    return (
        plain
        | plain
        | st.text(max_size=9).filter(_is_utf8)
        | st.one_of(*(short.map(kind) for kind in (bytearray, memoryview, _OtherBytes)))
    )


def _is_utf8(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


_HEADERS = st.none() | st.lists(st.tuples(st.just("h") | st.just("hä") | st.just(b"h"), _parts()), max_size=20)


@given(
    st.lists(st.tuples(_parts(), _parts(), _HEADERS, st.integers(0, 2**40)), min_size=1, max_size=150),
    st.sampled_from([list, tuple]),
)
def test_parts_of_all_kinds_may_be_mixed_in_one_call(records: list[Any], kind: Any) -> None:
    with small_arena(500, 800) as arena:
        writer, batch, other = make_writer(arena), open_batch(arena), open_batch(arena, 1)
        source = ObjectSource(*(kind(column) for column in zip(*records, strict=True)))
        assert source.append(writer, _lanes([batch]), 0, 1, [])[0] == ALL_APPENDED
        source.close()
        for value, key, headers, stamp in records:
            assert writer.append(other, key, value, headers, stamp) > 0
        assert bytes_of(arena, batch.first_slab, batch.bytes) == bytes_of(arena, other.first_slab, other.bytes)


def _tables(arena: Arena, batch: OpenBatch) -> list[object]:
    """Everything that readers may look at: a free block's next word belongs to its claimer alone."""
    layout = arena.layout
    used = layout.slab_nexts, layout.slab_nexts + 4 * arena.geometry.slab_count
    tables = bytes(arena.view[: used[0]]), bytes(arena.view[used[1] : layout.slabs])
    chain = arena.slabs.chain(batch.first_slab)
    data = [bytes(arena.slabs.views(batch.first_slab, batch.slabs * arena.slabs.block_bytes)[0])] if chain else []
    return [tables, chain, data, batch.records, batch.bytes, batch.slabs, batch.first_slab]


@pytest.mark.parametrize(
    ("batch_bytes", "value", "answer"),
    [(80, b"x" * 20, BATCH_FULL), (1 << 20, b"x" * 200, NO_SLAB)],
    ids=["batch full", "no slab"],
)
def test_an_append_that_is_turned_away_changes_nothing(batch_bytes: int, value: bytes, answer: int) -> None:
    with small_arena(64, 3) as arena:
        writer, batch = make_writer(arena, batch_bytes), open_batch(arena)
        assert writer.append(batch, b"k", b"y" * 60, [("a", b"b")], 5) > 0
        before = _tables(arena, batch)
        for _ in range(3):
            assert writer.append(batch, b"k", value, None, 6) == answer
            assert _tables(arena, batch) == before
        # And the next record that fits comes where it would have come without that.
        assert writer.append(batch, None, b"", None, 7) > 0
        records = [Record(b"k", b"y" * 60, (("a", b"b"),), 5), Record(None, b"", (), 7)]
        assert bytes_of(arena, batch.first_slab, batch.bytes) == encode_records(records)


def test_a_record_that_can_never_fit_says_its_size_and_changes_nothing() -> None:
    with small_arena() as arena:
        writer, batch = make_writer(arena, largest_record_bytes=100), open_batch(arena)
        before = _tables(arena, batch)
        with pytest.raises(OverflowError, match=r"^159$"):
            writer.append(batch, None, b"x" * 150, None, 0)
        assert writer.too_large_bytes == len(encode_records([Record(None, b"x" * 150)])) == 159
        assert _tables(arena, batch) == before
        assert writer.append(batch, None, b"x" * 91, None, 0) == 100


def test_a_first_record_larger_than_a_batch_is_taken_alone() -> None:
    with small_arena() as arena:
        writer, batch = make_writer(arena, batch_bytes=64), open_batch(arena)
        assert writer.append(batch, None, b"x" * 200, None, 0) == 209
        assert writer.append(batch, None, b"", None, 0) == BATCH_FULL


def test_a_batch_is_full_only_past_its_size() -> None:
    with small_arena() as arena:
        writer, batch = make_writer(arena, batch_bytes=24), open_batch(arena)
        sizes = [writer.append(batch, None, b"x", None, 0) for _ in range(4)]
        assert sizes == [8, 8, 8, BATCH_FULL]


class _Subclass(bytes):
    pass


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (b"bytes", b"bytes"),
        (bytearray(b"bytearray"), b"bytearray"),
        (memoryview(b"memoryview"), b"memoryview"),
        (memoryview(b"-slice-")[1:-1], b"slice"),
        (memoryview(struct.pack("<4H", 1, 2, 3, 4)).cast("H"), b"\1\0\2\0\3\0\4\0"),
        ("strÿ☃𝄞", "strÿ☃𝄞".encode()),
        ("", b""),
        (_Subclass(b"sub"), b"sub"),
        (None, None),
    ],
    ids=["bytes", "bytearray", "memoryview", "slice", "words", "str", "empty", "subclass", "null"],
)
def test_every_kind_of_part_is_taken(part: Any, expected: bytes | None) -> None:
    with small_arena() as arena:
        writer, batch = make_writer(arena), open_batch(arena)
        writer.append(batch, part, part, [("h", part)], 3)
        records = [Record(expected, expected, (("h", expected),), 3)]
        assert bytes_of(arena, batch.first_slab, batch.bytes) == encode_records(records)


_SURROGATE = "a\ud800"
_NO_PAIRS = "headers must be a sequence of (name, value) pairs, not "
_NO_PAIR = "a header must be a (name, value) pair, not "


@pytest.mark.parametrize(
    ("key", "value", "headers", "kind", "text"),
    [
        (3, b"", None, RecordTypeError, "key must be bytes, bytearray, memoryview or str, not int: serialize it first"),
        (
            b"",
            1.5,
            None,
            RecordTypeError,
            "value must be bytes, bytearray, memoryview or str, not float: serialize it first",
        ),
        (
            memoryview(b"abcd")[::2],
            b"",
            None,
            RecordTypeError,
            "key is a memoryview that is not contiguous: pass bytes(view)",
        ),
        (
            b"",
            _SURROGATE,
            None,
            RecordValueError,
            "value is a str that UTF-8 cannot encode (surrogates not allowed at index 1): pass bytes",
        ),
        (None, None, {"a": b"b"}, RecordTypeError, _NO_PAIRS + "dict"),
        (None, None, "ab", RecordTypeError, _NO_PAIRS + "str"),
        (None, None, b"ab", RecordTypeError, _NO_PAIRS + "bytes"),
        (None, None, 5, RecordTypeError, _NO_PAIRS + "int"),
        (None, None, [("a", b"b", 3)], RecordTypeError, _NO_PAIR + "('a', b'b', 3)"),
        (None, None, ["ab"], RecordTypeError, _NO_PAIR + "'ab'"),
        (None, None, [("a",)], RecordTypeError, _NO_PAIR + "('a',)"),
        (None, None, [(None, b"b")], RecordTypeError, "a header's name must be str or bytes, not NoneType"),
        (None, None, [(3, b"b")], RecordTypeError, "a header's name must be str or bytes, not int"),
        (
            None,
            None,
            [("a", 3)],
            RecordTypeError,
            "the value of header b'a' must be bytes, bytearray, memoryview, str or None, not int",
        ),
        (
            None,
            None,
            [(_SURROGATE, b"")],
            RecordValueError,
            "header name is a str that UTF-8 cannot encode (surrogates not allowed at index 1): pass bytes",
        ),
        (
            None,
            None,
            [("a", _SURROGATE)],
            RecordValueError,
            "header value is a str that UTF-8 cannot encode (surrogates not allowed at index 1): pass bytes",
        ),
    ],
)
def test_a_wrong_part_is_refused_and_named(
    key: Any, value: Any, headers: Any, kind: type[Exception], text: str
) -> None:
    with small_arena() as arena:
        writer, batch = make_writer(arena), open_batch(arena)
        before = _tables(arena, batch)
        with pytest.raises(kind) as caught:
            writer.append(batch, key, value, headers, None)
        assert str(caught.value) == text
        assert _tables(arena, batch) == before


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([["list", b"pair"]], (("list", b"pair"),)),
        ((("tuple", None), ("tuple", b"")), (("tuple", None), ("tuple", b""))),
        ([(b"bytes", "str")], (("bytes", b"str"),)),
        ([("é", memoryview(b"-abc-")[1:4:2])], (("é", b"ac"),)),
        ([], ()),
    ],
    ids=["lists", "same name twice", "bytes name", "strided view", "none"],
)
def test_headers_of_every_accepted_kind(headers: Any, expected: tuple[tuple[str, bytes | None], ...]) -> None:
    with small_arena() as arena:
        writer, batch = make_writer(arena), open_batch(arena)
        writer.append(batch, None, b"v", headers, 3)
        records = [Record(None, b"v", expected, 3)]
        assert bytes_of(arena, batch.first_slab, batch.bytes) == encode_records(records)


def test_headers_that_can_be_read_only_once_are_refused() -> None:
    with small_arena() as arena:
        writer, batch = make_writer(arena), open_batch(arena)
        once: Any = iter([("a", b"b")])
        with pytest.raises(RecordTypeError, match="headers must be a sequence"):
            writer.append(batch, None, b"v", once, 3)


@pytest.mark.parametrize("stamp", [True, 1.0, "1", b"1"])
def test_a_timestamp_of_a_wrong_type_is_refused(stamp: Any) -> None:
    with small_arena() as arena:
        writer, batch = make_writer(arena), open_batch(arena)
        name = type(stamp).__name__
        text = f"timestamp_ms must be an int \\(milliseconds since the epoch\\) or None, not {name}"
        with pytest.raises(RecordTypeError, match=text):
            writer.append(batch, None, b"", None, stamp)
        with pytest.raises(RecordTypeError, match=text):
            _many(writer, [batch], [b""], None, None, [stamp], 0)
        assert batch.records == 0


@pytest.mark.parametrize("stamp", [-1, 1 << 63, -(1 << 70), 1 << 200])
def test_a_timestamp_out_of_range_is_refused(stamp: int) -> None:
    with small_arena() as arena:
        writer, batch = make_writer(arena), open_batch(arena)
        with pytest.raises(RecordValueError) as caught:
            writer.append(batch, None, b"", None, stamp)
        assert str(caught.value) == f"timestamp_ms is {stamp}, outside 0 .. 2**63-1"


@given(st.lists(st.integers(0, (1 << 63) - 1), min_size=1, max_size=6))
def test_timestamps_keep_every_bit_and_the_latest_is_noted(stamps: list[int]) -> None:
    with small_arena(slabs=16) as arena:
        records = [Record(None, None, (), stamp) for stamp in stamps]
        batch = _append_all(arena, records)
        assert bytes_of(arena, batch.first_slab, batch.bytes) == encode_records(records)
        sealed = Descriptors(arena).sealed(0)
        assert (sealed.base_timestamp_ms, sealed.max_timestamp_ms) == (stamps[0], max(stamps))


def test_no_timestamp_means_now() -> None:
    with small_arena() as arena:
        writer, batch, other = make_writer(arena), open_batch(arena), open_batch(arena, 1)
        before = time.time_ns() // 1_000_000
        writer.append(batch, None, b"", None, None)
        _many(writer, [other], [b""], None, None, None, 0)
        after = time.time_ns() // 1_000_000
        assert before <= Descriptors(arena).sealed(0).base_timestamp_ms <= after
        assert before <= Descriptors(arena).sealed(1).base_timestamp_ms <= after


class _ResizableInputs:
    """Parts that can be resized only while nobody holds their buffers."""

    def __init__(self) -> None:
        self.parts = [bytearray(b"x" * 30) for _ in range(3)]

    def check_released(self) -> None:
        for part in self.parts:
            part.extend(b"y")
            part.pop()


@pytest.mark.parametrize(
    "headers", [None, [("a", 3)], [("a", b"z" * 5000)]], ids=["appended", "wrong header", "too large"]
)
def test_inputs_are_let_go_however_the_append_ends(headers: Any) -> None:
    inputs = _ResizableInputs()
    key, value, header = inputs.parts
    with small_arena(64, 4) as arena:
        writer = make_writer(arena, batch_bytes=128, largest_record_bytes=4000)
        batch = open_batch(arena)
        for _ in range(4):  # appended, batch full, and what the parameter says
            try:
                writer.append(batch, key, value, [("h", header), *(headers or ())], None)
            except (RecordTypeError, OverflowError):
                assert headers
            inputs.check_released()
        other = open_batch(arena, 1)
        big = bytearray(b"x" * 500)
        assert writer.append(other, key, big, None, None) == NO_SLAB
        big.extend(b"y")
        wrong: Any = 5
        with pytest.raises(RecordTypeError):
            writer.append(batch, key, wrong, None, None)
        with pytest.raises(RecordTypeError):
            _many(writer, [other], [b"", wrong], [key, key], None, None, 0)
        inputs.check_released()
        assert partition_for_key(key, 3) in range(3)
        inputs.check_released()


def test_a_hundred_thousand_appends_leave_no_memory_behind() -> None:
    rounds, each = 1000, 20
    key, value, header = b"key" * 5, bytearray(b"v" * 40), ("name", "välue")
    wrong: Any = 3.5
    wrong_headers: Any = [("a", 1)]
    inputs = (key, value, header, wrong)

    def work(arena: Arena, writer: RecordWriter, count: int) -> None:
        for _ in range(count):
            batch = open_batch(arena)
            for _ in range(each):
                writer.append(batch, key, value, [header], None)
                writer.append(batch, "k", None, None, 5)
            _many(writer, [batch], [value] * 60, [key] * 60, [[header]] * 60, None, -1)
            for bad_key, bad_value, bad_headers in (
                (wrong, b"", None),
                (b"", wrong, None),
                (b"", "\ud800", None),
                (b"", b"", wrong_headers),
            ):
                with pytest.raises((RecordTypeError, RecordValueError)):
                    writer.append(batch, bad_key, bad_value, bad_headers, None)
            with pytest.raises(OverflowError):
                writer.append(batch, None, b"x" * 5000, None, None)
            arena.slabs.mark(batch.first_slab, 0)

    with small_arena(256, 64) as arena:
        writer = make_writer(arena, largest_record_bytes=4000)
        work(arena, writer, 20)
        gc.collect()
        counts = [sys.getrefcount(part) for part in inputs]
        tracemalloc.start()
        try:
            work(arena, writer, 20)
            gc.collect()
            before, _ = tracemalloc.get_traced_memory()
            work(arena, writer, rounds)
            gc.collect()
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert [sys.getrefcount(part) for part in inputs] == counts
        # One byte for each hundred appends would be 1,000.
        assert after - before < rounds


_SHRINKING_KEYS = """
from slabpress._native import ObjectSource, TopicLanes
from tests.shm.kit import small_arena, make_writer, open_batch
with small_arena(64, 200) as arena:
    batch, keys = open_batch(arena), [b"k%d" % n for n in range(100)]
    class Pairs(list):
        def __iter__(self):
            keys.clear()
            return iter([("a", b"b")])
    try:
        lanes = TopicLanes()
        lanes.open = [batch]
        ObjectSource([b"v"] * 100, keys, [Pairs()] * 100, None).append(make_writer(arena), lanes, 0, 1, [])
    except IndexError:
        pass
"""
_NO_PARTITIONS = """
from slabpress._native import ObjectSource, TopicLanes
from tests.shm.kit import small_arena, make_writer
with small_arena() as arena:
    try:
        ObjectSource([b"v"], [b"k"], None, None).append(make_writer(arena), TopicLanes(), -1, 1, [])
    except (IndexError, ValueError):
        pass
"""
_FAR_OFFSET = """
from tests.shm.kit import small_arena
with small_arena() as arena:
    try:
        arena.memory.load_u64(2**63 - 5)
    except IndexError:
        pass
"""
_FAR_START = """
from tests.shm.kit import small_arena
with small_arena() as arena:
    try:
        arena.batch_states.find(77, 1 << 40)
    except IndexError:
        pass
"""
_SHORT_KEYS = """
from slabpress._native import ObjectSource, TopicLanes
from tests.shm.kit import small_arena, make_writer, open_batch
with small_arena(64, 200) as arena:
    try:
        keys = [b"k"] * 500
        source, lanes = ObjectSource([b"v"] * 500, keys, None, None), TopicLanes()
        lanes.open = [open_batch(arena)]
        del keys[:]
        source.append(make_writer(arena), lanes, 0, 1, [])
    except IndexError:
        pass
"""


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(_SHRINKING_KEYS, id="keys shrink during the call"),
        pytest.param(_SHORT_KEYS, id="keys that are gone"),
        pytest.param(_NO_PARTITIONS, id="no partitions"),
        pytest.param(_FAR_OFFSET, id="offset that overflows"),
        pytest.param(_FAR_START, id="start beyond the table"),
    ],
)
def test_no_argument_crashes_the_interpreter(code: str) -> None:
    ended = run_python(code)
    assert ended.returncode == 0, ended.stderr


def test_a_batch_must_be_a_batch() -> None:
    with small_arena() as arena:
        writer = make_writer(arena)
        nothing: Any = None
        with pytest.raises(TypeError):
            writer.append(nothing, None, b"", None, None)
        text: Any = "batch"
        with pytest.raises(TypeError):
            _many(writer, [text], [b""], None, None, None, 0)
        with pytest.raises(TypeError):
            _many(writer, nothing, [b""], None, None, None, 0)


# --- partitions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_murmur2_vectors_of_kafkas_utils_test(key: bytes, expected: int) -> None:
    assert murmur2(key) == expected
    assert partition_for_key(key, 1000) == (expected & 0x7FFFFFFF) % 1000


@given(payloads(200), st.integers(1, 1 << 20))
def test_keys_go_where_java_sends_them(key: bytes, partitions: int) -> None:
    assert murmur2(key) == reference.murmur2(key)
    expected = reference.java_partition(key, partitions)
    for kind in (bytes, bytearray, memoryview):
        assert partition_for_key(kind(key), partitions) == expected


def test_a_str_key_is_hashed_as_utf8() -> None:
    assert partition_for_key("kéy", 977) == partition_for_key("kéy".encode(), 977)


@pytest.mark.parametrize("partitions", [0, -1])
def test_a_topic_has_at_least_one_partition(partitions: int) -> None:
    with pytest.raises(ValueError, match=f"partitions is {partitions}: at least 1"):
        partition_for_key(b"k", partitions)


def test_keys_of_a_wrong_type_are_refused_before_hashing() -> None:
    wrong: Any = 3
    with pytest.raises(RecordTypeError, match="key must be bytes"):
        partition_for_key(wrong, 3)
    with pytest.raises(TypeError):
        murmur2(wrong)


# --- words --------------------------------------------------------------------------------------------------

_FEW = st.integers(0, 300)


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=40)
    | st.builds(lambda before, one, after: [0] * before + [one] + [1] * after, _FEW, st.integers(0, 3), _FEW),
    st.integers(0, 40),
    st.integers(0, 3),
)
def test_words_find_what_a_list_would(values: list[int], start: int, wanted: int) -> None:
    start %= len(values)
    memory = Memory(bytearray(4 * len(values) + 8))
    words = Words(memory, 8, len(values))
    for index, value in enumerate(values):
        words.store(index, value)
    assert [words.load(index) for index in range(words.count)] == values
    order = [*range(start, len(values)), *range(start)]
    assert words.find(wanted, start) == next((index for index in order if values[index] == wanted), -1)
    assert words.find_all(wanted) == [index for index, value in enumerate(values) if value == wanted]
    assert words.has(wanted) == (wanted in values)
    assert words.tally(4) == [words.count_state(value) for value in range(4)] == [values.count(v) for v in range(4)]
    assert memory.load_u64(0) == 0  # nothing outside the table was touched


def test_tally_counts_states_whoever_owns_them() -> None:
    words = Words(Memory(bytearray(12)), 0, 3)
    words.store(0, 2 | 7 << 8)
    words.store(1, 2)
    words.store(2, 9)
    assert words.tally(3) == [0, 0, 2]
    assert words.count_state(2) == 2


def test_words_outside_a_table_are_refused() -> None:
    memory = Memory(bytearray(16))
    words = Words(memory, 4, 2)
    for index in (-1, 2, 1 << 40):
        with pytest.raises(IndexError, match=f"word {index} of 2"):
            words.load(index)
        with pytest.raises(IndexError, match=f"word {index} of 2"):
            words.store(index, 1)
    with pytest.raises(OverflowError):
        words.store(0, 1 << 32)
    with pytest.raises(OverflowError):
        words.store(0, -1)
    for offset, count in ((4, 4), (-4, 1), (0, -1)):
        with pytest.raises(IndexError, match="outside the arena of 16 bytes"):
            Words(memory, offset, count)


def test_memory_reads_back_what_was_stored_and_no_neighbour_changes() -> None:
    buffer = bytearray(b"\xaa" * 32)
    memory = Memory(buffer)
    memory.store_u32(4, 0x01020304)
    memory.store_u64(16, 0x1112131415161718)
    memory.add_u64(16, 1)
    assert memory.load_u32(4) == 0x01020304
    assert memory.load_u64(16) == 0x1112131415161719
    assert buffer == b"\xaa" * 4 + b"\4\3\2\1" + b"\xaa" * 8 + b"\x19\x17\x16\x15\x14\x13\x12\x11" + b"\xaa" * 8
    memory.add_u64(16, (1 << 64) - 1)
    assert memory.load_u64(16) == 0x1112131415161718  # counters go round
    memory.add_all(16, 2, 3)
    assert [memory.load_u64(16), memory.load_u64(24)] == [0x111213141516171A, 0xAAAA_AAAA_AAAA_AAAA + 3]
    assert memory.fenced_u32(4) == 0x01020304
    with pytest.raises(IndexError):
        memory.add_all(24, 1, 2)
    with memory.view_of(4, 4) as view:
        view[:] = b"abcd"
    assert buffer[4:8] == b"abcd"


@pytest.mark.parametrize(("offset", "size"), [(-1, 4), (29, 4), (25, 8), (32, 1)])
def test_memory_outside_the_arena_is_refused(offset: int, size: int) -> None:
    memory = Memory(bytearray(32))
    calls: list[Callable[[], object]] = [lambda: memory.view_of(offset, size)]
    if size == 4:
        calls += [lambda: memory.load_u32(offset), lambda: memory.store_u32(offset, 1)]
    if size == 8:
        calls += [lambda: memory.load_u64(offset), lambda: memory.store_u64(offset, 1)]
    for call in calls:
        with pytest.raises(IndexError, match=f"offset {offset} \\+ {size} is outside the arena of 32 bytes"):
            call()


def test_memory_needs_a_writable_buffer() -> None:
    read_only: Any = b"bytes"
    with pytest.raises(BufferError):
        Memory(read_only)


def test_everything_on_released_memory_raises_and_nothing_crashes() -> None:
    with small_arena() as arena:
        writer, batch = make_writer(arena), open_batch(arena)
        writer.append(batch, b"k", b"v", None, None)
        memory, slabs, words = arena.memory, arena.slabs, arena.batch_states
        arena.close()
        assert memory.size == 0
        memory.release()
        for call in _calls_on_memory(memory, slabs, words, writer, batch):
            with pytest.raises(ValueError, match="the arena was released"):
                call()
        assert batch.records == 1
        arena.close()


def _calls_on_memory(
    memory: Memory, slabs: Blocks, words: Words, writer: RecordWriter, batch: OpenBatch
) -> Iterator[Callable[[], object]]:
    yield lambda: memory.load_u32(0)
    yield lambda: memory.store_u32(0, 1)
    yield lambda: memory.load_u64(0)
    yield lambda: memory.store_u64(0, 1)
    yield lambda: memory.add_u64(0, 1)
    yield lambda: memory.add_all(0, 1)
    yield lambda: memory.fenced_u32(0)
    yield lambda: memory.view_of(0, 1)
    yield lambda: words.load(0)
    yield lambda: words.store(0, 1)
    yield lambda: words.find(1)
    yield lambda: words.find_all(1)
    yield lambda: words.tally(2)
    yield lambda: slabs.claim(1, 1)
    yield lambda: slabs.mark(0, 1)
    yield lambda: slabs.trim(0, 1)
    yield lambda: slabs.chain(0)
    yield lambda: slabs.views(0, 1)
    yield lambda: slabs.runs(0)
    yield lambda: slabs.count_free()
    yield lambda: writer.append(batch, b"k", b"v", None, None)
    yield lambda: _many(writer, [batch], [b"v"], None, None, None, 0)
    yield lambda: Words(memory, 0, 1)
    yield lambda: Blocks(memory, 0, 0, 0, 1, 8, 0)


# --- blocks -------------------------------------------------------------------------------------------------

BLOCKS, BLOCK_BYTES, FREE = 9, 24, 0


class BlocksAgainstAModel(RuleBasedStateMachine):
    """Chains of blocks against a dict of lists: no block is ever lost, free twice, or in two chains."""

    chains: Bundle[int] = Bundle("chains")

    def __init__(self) -> None:
        super().__init__()
        self.memory = Memory(bytearray(8 * BLOCKS + BLOCKS * BLOCK_BYTES))
        self.words = Words(self.memory, 0, BLOCKS)
        self.blocks = Blocks(self.memory, 0, 4 * BLOCKS, 8 * BLOCKS, BLOCKS, BLOCK_BYTES, FREE)
        self.model: dict[int, tuple[list[int], int]] = {}

    @rule(target=chains, wanted=st.integers(-1, BLOCKS + 1), state=st.integers(1, 1 << 30))
    def claim(self, wanted: int, state: int) -> Any:
        free = BLOCKS - sum(len(chain) for chain, _ in self.model.values())
        first = self.blocks.claim(wanted, state)
        if wanted < 1 or wanted > free:
            assert first == NONE
            return multiple()
        chain = self.blocks.chain(first)
        used = {index for others, _ in self.model.values() for index in others}
        assert chain == [index for index in range(BLOCKS) if index not in used][:wanted], "not the lowest ones"
        self.model[first] = (chain, state)
        return first

    @rule(first=chains, state=st.integers(1, 1 << 30))
    def mark(self, first: int, state: int) -> None:
        if first in self.model:
            self.blocks.mark(first, state)
            self.model[first] = (self.model[first][0], state)

    @rule(first=chains)
    def free(self, first: int) -> None:
        if first in self.model:
            self.blocks.mark(first, FREE)
            del self.model[first]

    @rule(first=chains, keep=st.integers(0, BLOCKS + 1))
    def trim(self, first: int, keep: int) -> None:
        if first not in self.model:
            return
        chain, state = self.model[first]
        if 1 <= keep <= len(chain):
            assert self.blocks.trim(first, keep) == len(chain) - keep
            self.model[first] = (chain[:keep], state)
        else:
            with pytest.raises(ValueError, match=r"keep 0 blocks|has fewer than \d+ blocks"):
                self.blocks.trim(first, keep)

    @rule(first=chains, length=st.integers(0, (BLOCKS + 1) * BLOCK_BYTES))
    def views(self, first: int, length: int) -> None:
        if first not in self.model:
            return
        chain, _ = self.model[first]
        if length > len(chain) * BLOCK_BYTES:
            with pytest.raises(ValueError, match="bytes short"):
                self.blocks.views(first, length)
            return
        views = self.blocks.views(first, length)
        assert sum(len(view) for view in views) == length
        for place, view in enumerate(views):
            view[:1] = bytes([place + 1])
            assert self.memory.view_of(8 * BLOCKS + chain[place] * BLOCK_BYTES, 1)[0] == place + 1

    @rule(first=chains, length=st.none() | st.integers(0, (BLOCKS + 1) * BLOCK_BYTES))
    def runs(self, first: int, length: int | None) -> None:
        if first not in self.model:
            return
        chain, _ = self.model[first]
        if length is not None and length > len(chain) * BLOCK_BYTES:
            with pytest.raises(ValueError, match="leaves the table"):
                self.blocks.runs(first, length)
            return
        expected = self.blocks.views(first, len(chain) * BLOCK_BYTES if length is None else length)
        for place, view in enumerate(expected):
            view[:] = bytes([place + 1]) * len(view)
        runs = self.blocks.runs(first, length)
        assert b"".join(runs) == b"".join(expected)
        used = chain[: len(expected)]
        assert len(runs) == sum(block != before + 1 for before, block in zip([NONE, *used], used, strict=False))

    @rule()
    def mark_nothing(self) -> None:
        self.blocks.mark(NONE, 1)
        assert self.blocks.chain(NONE) == []
        assert self.blocks.views(NONE, 0) == []
        assert self.blocks.runs(NONE) == []

    @invariant()
    def every_block_is_in_one_place(self) -> None:
        expected = [FREE] * BLOCKS
        for first, (chain, state) in self.model.items():
            assert self.blocks.chain(first) == chain
            for block in chain:
                assert expected[block] == FREE, "a block is in two chains"
                expected[block] = state
        assert [self.words.load(block) for block in range(BLOCKS)] == expected
        assert self.blocks.count_free() == expected.count(FREE)


TestBlocksAgainstAModel = BlocksAgainstAModel.TestCase


def test_blocks_refuse_chains_that_leave_their_table() -> None:
    memory = Memory(bytearray(8 * 3 + 3 * 8))
    blocks = Blocks(memory, 0, 12, 24, 3, 8, 0)
    nexts = Words(memory, 12, 3)
    for index, following in enumerate((1, 0, 77)):  # 0 and 1 form a ring, 2 points outside
        nexts.store(index, following)
    for first in (0, 2):
        with pytest.raises(ValueError, match=f"chain from block {first} leaves the table of 3 blocks"):
            blocks.chain(first)
        with pytest.raises(ValueError, match=f"chain from block {first} leaves the table of 3 blocks"):
            blocks.runs(first)
        with pytest.raises(ValueError, match=f"chain from block {first} leaves the table of 3 blocks"):
            blocks.mark(first, 1)
    with pytest.raises(ValueError, match="bytes short"):
        blocks.views(2, 9)
    with pytest.raises(IndexError):
        Blocks(memory, 0, 12, 24, 4, 8, 0)


def test_the_lowest_free_block_is_claimed_so_that_few_are_used_while_consumers_keep_up() -> None:
    memory = Memory(bytearray(8 * 4 + 4 * 8))
    blocks = Blocks(memory, 0, 16, 32, 4, 8, 0)
    for _ in range(3):
        assert [blocks.claim(1, 1) for _ in range(4)] == [0, 1, 2, 3]
        assert blocks.claim(1, 1) == NONE
        for index, others in ((2, 0), (0, 2)):
            blocks.mark(index, 0)
            assert blocks.claim(1, 1) == index
            assert blocks.chain(others) == [others]
        for index in range(4):
            blocks.mark(index, 0)


@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 150)), max_size=60))
def test_interleaved_batches_never_share_a_slab(appends: list[tuple[int, int]]) -> None:
    with small_arena(64, 40) as arena:
        writer = make_writer(arena)
        batches = [open_batch(arena, number, number) for number in range(4)]
        written: list[list[Record]] = [[] for _ in batches]
        for number, size in appends:
            record = Record(None, bytes([number]) * size, (), 9)
            if writer.append(batches[number], None, record.value, None, 9) > 0:
                written[number].append(record)
        taken: list[int] = []
        for batch, records in zip(batches, written, strict=True):
            chain = arena.slabs.chain(batch.first_slab)
            taken += chain
            if records:
                assert bytes_of(arena, batch.first_slab, batch.bytes) == encode_records(records)
        assert len(set(taken)) == len(taken)
        assert arena.slabs.count_free() == 40 - len(taken)
        assert arena.layout.topics - arena.layout.descriptors >= at.DESCRIPTOR_BYTES * 4
