"""send_lines(): the records of bytes.split(), from any buffer, and an honest place to go on from when it fails."""

from __future__ import annotations

import mmap
import tempfile
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slabpress._native import (
    ALL_APPENDED,
    PAUSED,
    STOPPED_BATCH_FULL,
    STOPPED_NO_SLAB,
    STOPPED_NOT_OPEN,
    STOPPED_TOO_LARGE,
    LineSource,
    TopicLanes,
)
from slabpress.errors import (
    BufferFullError,
    ProducerClosedError,
    RecordTooLargeError,
    RecordTypeError,
    RecordValueError,
    UnknownPartitionError,
    UnknownTopicError,
)
from slabpress.pipeline.columns import send_lines
from slabpress.shm.control import COORDINATOR, NETWORK
from tests.pipeline.instant import WATCHDOG_S, Rig, parts, until
from tests.shm.kit import bytes_of, make_writer, open_batch, small_arena
from tests.support.reference_batch import Record, encode_records

MIB = 1 << 20


def _mmap(data: bytes) -> mmap.mmap:
    mapped = mmap.mmap(-1, len(data))
    mapped[:] = data
    return mapped


BUFFERS: dict[str, Callable[[bytes], Any]] = {
    "bytes": bytes,
    "bytearray": bytearray,
    "memoryview": memoryview,
    "mmap": _mmap,
}


def _lines(data: bytes, *, crlf: bool = False) -> list[bytes]:
    """What the lines are, said slowly."""
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix(b"\r") for line in lines] if crlf else lines


def _lanes(*batches: Any) -> TopicLanes:
    lanes = TopicLanes()
    lanes.open = list(batches)
    return lanes


texts = st.lists(st.sampled_from([b"\n", b"\r", b"\r\n", b"a", b"\x00", b"0123456789" * 7]), max_size=300).map(b"".join)


@settings(max_examples=150)
@given(texts, st.booleans(), st.sampled_from(sorted(BUFFERS)), st.sampled_from([64, 65, 100, 4096]))
def test_every_line_is_a_record_as_the_reference_writes_it(data: bytes, crlf: bool, kind: str, slab_bytes: int) -> None:
    if kind == "mmap" and not data:
        return  # there is no empty mapping
    expected = encode_records([Record(None, line, (), 7) for line in _lines(data, crlf=crlf)])
    with small_arena(slab_bytes, max(2, len(expected) // slab_bytes + 2)) as arena:
        writer, batch = make_writer(arena), open_batch(arena)
        source = LineSource(BUFFERS[kind](data), crlf, 7)
        assert source.append(writer, _lanes(batch), 0, 1, [])[0] == ALL_APPENDED
        assert source.is_done()
        assert (source.taken, source.offset) == (batch.records, len(data))
        assert bytes_of(arena, batch.first_slab, batch.bytes) == expected
        source.close()


@settings(max_examples=25)
@given(texts, st.integers(1, 4), st.none() | st.just(0))
def test_lines_arrive_once_and_in_order(data: bytes, partitions: int, partition: int | None) -> None:
    with Rig({"t": partitions}) as rig:
        many = rig.producer.send_lines("t", data, partition=partition, timestamp_ms=9)
        assert many.result(WATCHDOG_S) == many.accepted == len(_lines(data))
        found = [record for batch in rig.pipeline.batches for record in batch.records]
        assert [record.value for record in found] == _lines(data), "one batch after the other was open"
        assert {(record.key, record.headers, record.timestamp_ms) for record in found} <= {(None, (), 9)}
        assert {batch.partition for batch in rig.pipeline.batches} <= set(
            range(partitions) if partition is None else [0]
        )
        rig.flush()
        rig.check_all_free()


def test_more_than_the_arena_holds_goes_through_in_one_call_and_round_the_partitions() -> None:
    data = b"".join(b"%6d %s\n" % (number, b"x" * (number % 50)) for number in range(20_000))
    with Rig({"t": 3}) as rig:
        assert len(data) > 4 * rig.producer.config.buffer_memory
        assert rig.producer.send_lines("t", data).result(WATCHDOG_S) == 20_000
        found = [rig.pipeline.values("t", partition) for partition in range(3)]
        assert all(found), "the sticky partition changes with every full batch"
        for values in found:
            assert values == sorted(values, key=lambda value: int(str(value, "ascii").split()[0]) if value else -1)
        assert sorted(value for values in found for value in values if value) == sorted(_lines(data))


def test_with_a_full_partition_table_lines_stay_on_the_partitions_that_have_an_entry() -> None:
    with Rig({"t": 9}, max_topic_partitions=2) as rig:
        assert rig.producer.send_lines("t", b"line\n" * 30_000).result(WATCHDOG_S) == 30_000
        assert len({batch.partition for batch in rig.pipeline.batches}) == 2


def test_a_file_is_sent_through_its_mapping() -> None:
    with tempfile.TemporaryFile() as file, Rig({"t": 1}) as rig:
        file.write(b"one\ntwo\r\n\nlast")
        file.flush()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            rig.producer.send_lines("t", mapped, crlf=True).result(WATCHDOG_S)
        assert rig.pipeline.values("t", 0) == [b"one", b"two", b"", b"last"]


def test_a_run_ends_now_and_then_so_that_others_get_the_interpreter() -> None:
    data = b"x" * 99 + b"\n"
    with small_arena(65536, 50) as arena:
        writer, lanes = make_writer(arena), _lanes(open_batch(arena))
        source = LineSource(data * 25_000, False, None)
        reasons, before = [], 0
        touched: list[Any] = []
        while not source.is_done():
            reasons.append(source.append(writer, lanes, 0, 1, touched)[0])
            assert source.offset == 100 * source.taken
            assert (source.taken - before) * 108 < MIB + 200
            before = source.taken
        assert reasons == [PAUSED, PAUSED, ALL_APPENDED]
        assert touched == [(lanes.open[0], 0)], "once a call"
        source.close()


def test_the_loop_says_why_it_stopped_and_goes_on_from_there() -> None:
    with small_arena(64, 2) as arena:
        writer = make_writer(arena, batch_bytes=60, largest_record_bytes=200)
        source = LineSource(b"x" * 40 + b"\n" + b"y" * 40 + b"\n" + b"z" * 80 + b"\n" + b"q" * 300, False, None)
        batch, other = open_batch(arena), open_batch(arena, 1)
        assert source.append(writer, _lanes(None, batch), 0, 1, []) == (STOPPED_NOT_OPEN, 0, False)
        assert source.append(writer, _lanes(None, batch), -1, 1, []) == (STOPPED_NOT_OPEN, 0, True)
        assert (source.taken, source.offset) == (0, 0)
        assert source.append(writer, _lanes(None, batch), 1, 1, []) == (STOPPED_BATCH_FULL, 1, False)
        assert (source.taken, source.offset) == (1, 41)
        touched: list[Any] = []
        assert source.append(writer, _lanes(other), 0, 2, touched) == (STOPPED_BATCH_FULL, 0, False)
        assert touched == [(other, 0)]
        arena.slabs.mark(batch.first_slab, 0)
        third = open_batch(arena, 2)
        assert source.append(writer, _lanes(third), 0, 3, []) == (STOPPED_NO_SLAB, 0, False)
        arena.slabs.mark(other.first_slab, 0)
        assert source.append(writer, _lanes(third), 0, 3, []) == (STOPPED_TOO_LARGE, 0, False)
        assert (source.taken, source.offset) == (3, 41 + 41 + 81)
        with pytest.raises(IndexError, match="partition 1 of 1"):
            source.append(writer, _lanes(third), 1, 3, [])
        with pytest.raises(IndexError, match="partition 0 of 0"):
            source.append(writer, _lanes(), -1, 3, [])
        source.close()
        assert source.append(writer, _lanes(third), 0, 3, [])[0] == ALL_APPENDED, "there are no more lines"


def test_without_room_the_error_says_where_to_go_on() -> None:
    data = b"".join(b"%5d%s\n" % (number, b"x" * (number % 700)) for number in range(500))
    with Rig({"t": 1}, max_block_ms=300) as rig:
        rig.send("t", b"first").result(WATCHDOG_S)
        rig.thread.hold()
        with pytest.raises(BufferFullError) as caught:
            rig.producer.send_lines("t", data)
        accepted, offset = caught.value.accepted, caught.value.byte_offset
        assert offset is not None
        assert 20 < accepted < 500
        assert data[:offset].count(b"\n") == accepted
        rig.thread.resume()
        rig.flush()
        assert rig.pipeline.values("t", 0)[1:] == _lines(data[:offset])
        rig.producer.send_lines("t", memoryview(data)[offset:]).result(WATCHDOG_S)
        assert rig.pipeline.values("t", 0)[1:] == _lines(data)
        rig.flush()
        rig.check_all_free()


def test_a_line_that_is_too_large_stops_the_call_and_those_before_it_are_on_their_way() -> None:
    data = b"good\n" * 217 + b"x" * 40_000 + b"\nlater\n"
    with Rig({"t": 1}, max_request_size=20_000) as rig:
        with pytest.raises(RecordTooLargeError, match=r"takes 400\d\d bytes encoded") as caught:
            rig.producer.send_lines("t", data)
        assert (caught.value.accepted, caught.value.byte_offset) == (217, 217 * 5)
        rig.flush()
        assert rig.pipeline.values("t", 0) == [b"good"] * 217
        rig.check_all_free()


@pytest.mark.parametrize(
    ("buffer", "says"),
    [
        ("text", "buffer must be bytes, bytearray, memoryview or mmap, not str: encode it first"),
        (7, "buffer must be bytes, bytearray, memoryview or mmap, not int"),
        ([b"a"], "buffer must be bytes, bytearray, memoryview or mmap, not list"),
        (memoryview(b"abcdef")[::2], "buffer is a memoryview that is not contiguous: pass bytes(view)"),
    ],
)
def test_what_is_no_buffer_is_refused(buffer: Any, says: str) -> None:
    with Rig() as rig:
        with pytest.raises(RecordTypeError) as caught:
            rig.producer.send_lines("t", buffer)
        assert str(caught.value) == says


def test_a_wrong_timestamp_topic_or_partition_leaves_the_buffer_alone() -> None:
    data = bytearray(b"a\nb\n")
    with Rig(max_block_ms=50) as rig:
        with pytest.raises(RecordValueError, match="timestamp_ms is -1"):
            rig.producer.send_lines("t", data, timestamp_ms=-1)
        with pytest.raises(UnknownTopicError) as caught:
            rig.producer.send_lines("nowhere", data)
        assert (caught.value.accepted, caught.value.byte_offset) == (0, 0)
        with pytest.raises(UnknownPartitionError):
            rig.producer.send_lines("t", data, partition=17)
        data += b"it can be resized: nobody holds it"
        rig.close()
        with pytest.raises(ProducerClosedError):
            rig.producer.send_lines("t", data)
        data += b"again"


def test_the_buffer_is_held_while_a_call_waits_for_room_and_not_after_it() -> None:
    data = bytearray(b"x" * 500 + b"\n") * 300
    with Rig({"t": 1}) as rig:
        rig.send("t", b"first").result(WATCHDOG_S)
        rig.thread.hold()
        thread = threading.Thread(target=lambda: rig.producer.send_lines("t", data))
        thread.start()
        until(lambda: len(rig.sender.line.turns) == 1)
        with pytest.raises(BufferError):
            data.clear()
        rig.thread.resume()
        thread.join(WATCHDOG_S)
        assert not thread.is_alive()
        data.clear()
        rig.flush()


def test_the_first_line_of_a_batch_rings_the_coordinator_whose_linger_timer_is_off() -> None:
    with parts(linger_ms=5) as rig:
        rig.topic("t", 1)
        bell = rig.control.bells[COORDINATOR].fileno()
        rig.control.lie_down(COORDINATOR)
        source = LineSource(b"good\n" + b"x" * 60_000, False, None)
        with pytest.raises(RecordTooLargeError):
            send_lines(rig.sender, rig.accumulator, "t", source, None, 0)
        assert rig.control.bells[NETWORK].wait(0, [bell]) == [bell]
