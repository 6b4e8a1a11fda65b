"""Cutting records out of a batch, against the slow reference and a plain model; hostile bytes do no harm."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from slabpress._native import cut_records
from tests.shm.kit import run_python
from tests.support.reference_batch import (
    Record,
    decode_batch,
    decode_records,
    encode_batch,
    encode_record,
    encode_records,
    encode_varint,
)
from tests.support.strategies import record_lists, splits

if TYPE_CHECKING:
    from collections.abc import Sequence

GUARD = bytes([0xA5]) * 64
INT64_MAX = (1 << 63) - 1


def cut_with_guard(raw: bytes, first: int, count: int, base: int, room: int) -> tuple[bytes, int, int]:
    """Cuts into exactly ``room`` bytes; what is cut, the greatest timestamp, how many records."""
    memory = bytearray(GUARD + bytes(room) + GUARD)
    try:
        with memoryview(memory) as whole, whole[len(GUARD) : len(GUARD) + room] as out:
            written, latest, records = cut_records(raw, first, count, base, out)
            cut = bytes(out[:written])
    finally:
        assert memory[: len(GUARD)] == memory[len(GUARD) + room :] == GUARD
    return cut, latest, records


# --- a model that is too plain to be wrong ---


def read_number(raw: bytes, start: int, end: int, bits: int) -> tuple[int, int]:
    """One zigzag number that lies before ``end``, and where it stops."""
    value = shift = 0
    for place in range(start, end):
        value |= (raw[place] & 0x7F) << shift
        shift += 7
        if value >= 1 << bits:
            raise ValueError("too long")
        if raw[place] < 0x80:
            return (value >> 1 if value % 2 == 0 else -(value >> 1) - 1), place + 1
        if shift >= bits:
            raise ValueError("too long")
    raise ValueError("cut off")


def model(raw: bytes, first: int, count: int, base: int) -> tuple[bytes, int, int]:
    cut: list[bytes] = []
    stamps: list[int] = []
    place = number = 0
    while place < len(raw) and len(cut) < count:
        body, place = read_number(raw, place, len(raw), 32)
        end = place + body
        if body < 1 or end > len(raw):
            raise ValueError("runs over the end")
        delta, after_delta = read_number(raw, place + 1, end, 64)
        offset, rest = read_number(raw, after_delta, end, 32)
        if offset != number:
            raise ValueError("not its number")
        if number >= first:
            if not -(1 << 63) <= base + delta < 1 << 63:
                raise ValueError("no such time")
            new = raw[place:after_delta] + encode_varint(len(cut)) + raw[rest:end]
            cut.append(encode_varint(len(new)) + new)
            stamps.append(base + delta)
        place, number = end, number + 1
    if not cut:
        raise ValueError("no such record")
    return b"".join(cut), max(stamps), len(cut)


def assert_like_model(raw: bytes, first: int, count: int, base: int) -> None:
    try:
        expected = model(raw, first, count, base)
    except ValueError:
        with pytest.raises(ValueError):
            cut_with_guard(raw, first, count, base, len(raw))
        return
    assert cut_with_guard(raw, first, count, base, len(raw)) == expected
    assert len(expected[0]) <= len(raw)
    assert cut_with_guard(raw, first, count, base, len(expected[0])) == expected
    with pytest.raises(ValueError, match="left in out"):
        cut_with_guard(raw, first, count, base, len(expected[0]) - 1)


# --- what is well-formed ---


def batch_of(records: Sequence[Record]) -> tuple[bytes, int]:
    return encode_records(records), records[0].timestamp_ms


@given(record_lists(), st.data())
def test_a_cut_is_the_records_of_a_batch_of_their_own(records: list[Record], data: st.DataObject) -> None:
    raw, base = batch_of(records)
    first = data.draw(st.integers(0, len(records) - 1), label="first")
    count = data.draw(st.integers(1, len(records) + 3), label="count")
    wanted = records[first : first + count]
    cut, latest, found = cut_with_guard(raw, first, count, base, len(raw))
    assert decode_records(cut, len(wanted), base) == wanted
    assert (latest, found) == (max(record.timestamp_ms for record in wanted), len(wanted))
    assert cut == encode_records(wanted, base), "byte for byte what an encoder writes"
    assert len(cut) <= len(encode_records(records[: first + count], base)) - len(encode_records(records[:first], base))


@given(record_lists(), st.data())
def test_all_cuts_together_are_all_records(records: list[Record], data: st.DataObject) -> None:
    raw, base = batch_of(records)
    together, first, size = [], 0, 0
    for length in data.draw(splits(len(records)), label="cuts"):
        if length:
            cut, _, found = cut_with_guard(raw, first, length, base, len(raw))
            together += decode_records(cut, found, base)
            size += len(cut)
            first += found
    assert together == records
    assert size <= len(raw)


@given(record_lists())
def test_the_whole_is_itself(records: list[Record]) -> None:
    raw, base = batch_of(records)
    latest = max(record.timestamp_ms for record in records)
    assert cut_with_guard(raw, 0, len(records), base, len(raw)) == (raw, latest, len(records))
    header, decoded = decode_batch(encode_batch(records, payload=raw))
    assert (header.max_timestamp, decoded) == (latest, records)


@pytest.mark.parametrize("first", [0, 1, 62, 63, 64, 65, 8191, 8192, 8193, 9000])
@pytest.mark.parametrize("count", [1, 63, 64, 65, 8192, 8193, 20_000])
def test_where_offsets_grow_by_a_byte(first: int, count: int) -> None:
    records = [Record(None, b"%d" % number, (), 10_000 - number) for number in range(9001)]
    raw, wanted = encode_records(records), records[first : first + count]
    cut, latest, found = cut_with_guard(raw, first, count, 10_000, len(raw))
    assert cut == encode_records(wanted, 10_000)
    assert (latest, found) == (10_000 - first, len(wanted))


@pytest.mark.parametrize("length", range(40, 80))
def test_where_the_length_shrinks_by_a_byte(length: int) -> None:
    # A body of 64 bytes becomes one of 63 when its offset delta loses a byte, and then its length loses one too.
    records = [Record(None, b"x" * length)] * 65
    cut, _, _ = cut_with_guard(encode_records(records), 64, 1, 0, 200)
    assert cut == encode_records(records[:1])


def test_the_greatest_timestamp_is_of_the_cut_alone() -> None:
    records = [Record(b"k", b"v", (), stamp) for stamp in (500, 900, 100, 300, 200)]
    raw = encode_records(records)
    found = [cut_records(raw, first, 2, 500, bytearray(100))[1] for first in range(5)]
    assert found == [900, 900, 300, 300, 200]


@pytest.mark.parametrize(("base", "delta"), [(INT64_MAX, -INT64_MAX), (-INT64_MAX - 1, INT64_MAX), (-5, -3), (0, -1)])
def test_timestamps_of_all_64_bits(base: int, delta: int) -> None:
    raw = encode_record(0, delta, None, b"v")
    assert cut_records(raw, 0, 1, base, bytearray(100)) == (len(raw), base + delta, 1)


def test_any_contiguous_buffer_will_do() -> None:
    raw = encode_records([Record(b"k", b"v")] * 3)
    expected = encode_records([Record(b"k", b"v")] * 2)
    for source in (raw, bytearray(raw), memoryview(raw), memoryview(bytearray(b"xx" + raw))[2:]):
        out = bytearray(100)
        assert cut_records(source, 1, 2, 0, memoryview(out)[7:]) == (len(expected), 0, 2)
        assert out[7 : 7 + len(expected)] == expected
        out.clear()  # a BufferError if it were still held
    with pytest.raises(BufferError):
        cut_records(raw, 0, 1, 0, b"read-only")  # type: ignore[arg-type]
    with pytest.raises(BufferError):
        cut_records(memoryview(raw)[::2], 0, 1, 0, bytearray(100))


def test_buffers_are_let_go_after_an_error() -> None:
    raw, out = bytearray(b"\x80"), bytearray(9)
    with pytest.raises(ValueError):
        cut_records(raw, 0, 1, 0, out)
    raw.clear()
    out.clear()


# --- what is not ---


def padded(number: int, size: int) -> bytes:
    """A zigzag number in more bytes than it needs, which is allowed."""
    plain = encode_varint(number)
    return bytes([*(byte | 0x80 for byte in plain), *[0x80] * (size - len(plain) - 1), 0])


def test_numbers_in_more_bytes_than_they_need_do_not_grow() -> None:
    raw = b"".join(
        padded(1 + 10 + 5 + 2, 5) + b"\0" + padded(-7, 10) + padded(number, 5) + b"ab" for number in range(3)
    )
    assert_like_model(raw, 0, 3, 100)
    cut, latest, found = cut_with_guard(raw, 1, 5, 100, len(raw))
    body = b"\0" + padded(-7, 10)
    assert cut == b"".join(encode_varint(len(body) + 3) + body + encode_varint(number) + b"ab" for number in (0, 1))
    assert (latest, found) == (93, 2)


GOOD = encode_record(0, 0, None, b"v")
OVER_64_BITS = b"\xff" * 9 + b"\x02"
OVER_32_BITS = b"\x80" * 4 + b"\x10"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"\x80", "record 0: the length at byte 0 is cut off after 1 bytes"),
        (GOOD + b"\xff\xff", "record 1: the length at byte 8 is cut off after 2 bytes"),
        (b"\xff" * 9, "record 0: the length at byte 0 has more than 32 bits"),
        (b"\xff\xff\xff\xff\x10", "record 0: the length at byte 0 has more than 32 bits"),
        (b"\x00", "record 0 has a length of 0 bytes, before byte 1"),
        (b"\x01abc", "record 0 has a length of -1 bytes, before byte 1"),
        (b"\xff\xff\xff\xff\x0f", "record 0 has a length of -2147483648 bytes, before byte 5"),
        (b"\xfe\xff\xff\xff\x0f", "record 0 has a length of 2147483647 bytes, but 0 are left at byte 5"),
        (GOOD[:-1], "record 0 has a length of 7 bytes, but 6 are left at byte 1"),
        (GOOD + GOOD, "record 1 has offset delta 0, before byte 12"),
        (encode_record(1, 0, None, None), "record 0 has offset delta 1, before byte 4"),
        (encode_record(-1, 0, None, None), "record 0 has offset delta -1, before byte 4"),
        # The numbers must lie within the record, whatever follows it.
        (b"\x02\x00" + GOOD, "record 0: the timestamp delta at byte 2 is cut off after 0 bytes"),
        (b"\x06\x00\x80\x80" + GOOD, "record 0: the timestamp delta at byte 2 is cut off after 2 bytes"),
        (b"\x04\x00\x00" + GOOD, "record 0: the offset delta at byte 3 is cut off after 0 bytes"),
        (b"\x20\x00" + OVER_64_BITS + bytes(5), "record 0: the timestamp delta at byte 2 has more than 64 bits"),
        (b"\x20\x00\x00" + OVER_32_BITS + bytes(9), "record 0: the offset delta at byte 3 has more than 32 bits"),
        (encode_record(0, 93, None, None), f"record 0: timestamp {INT64_MAX - 92} \\+ 93 ms has more than 64 bits"),
        (b"", "there is no record 0: 0 bytes hold 0"),
    ],
)
def test_errors_say_where_with_numbers(raw: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        cut_with_guard(raw, 0, 2, INT64_MAX - 92, 100)


def test_a_timestamp_too_early() -> None:
    with pytest.raises(ValueError, match=f"^record 0: timestamp -{INT64_MAX} \\+ -2 ms has more than 64 bits$"):
        cut_records(encode_record(0, -2, None, None), 0, 1, -INT64_MAX, bytearray(100))


def test_impossible_questions() -> None:
    raw, out = encode_records([Record(None, b"v")] * 3), bytearray(100)
    with pytest.raises(ValueError, match=f"^there is no record 3: {len(raw)} bytes hold 3$"):
        cut_records(raw, 3, 1, 0, out)
    for first, count in ((-1, 1), (0, 0), (0, -1)):
        with pytest.raises(ValueError, match=f"^records from {first} on, {count} of them"):
            cut_records(raw, first, count, 0, out)
    assert cut_records(raw, 0, (1 << 63) - 1, 0, out)[2] == 3
    with pytest.raises(OverflowError):
        cut_records(raw, 1 << 63, 1, 0, out)


def test_too_little_room() -> None:
    raw = encode_records([Record(None, b"v" * 20)] * 3)
    each = len(raw) // 3
    with pytest.raises(ValueError, match=f"^record 2 takes {each} bytes, but {each - 1} of {2 * each - 1} are left"):
        cut_with_guard(raw, 1, 2, 0, 2 * each - 1)
    with pytest.raises(ValueError, match=f"^record 0 takes {each} bytes, but 0 of 0 are left"):
        cut_with_guard(raw, 0, 1, 0, 0)


def test_overlapping_buffers_are_refused() -> None:
    memory = memoryview(bytearray(encode_records([Record(None, b"v" * 20)] * 3)))
    half = len(memory) // 2
    for raw, out in ((memory, memory), (memory[:half], memory[half - 1 :]), (memory[half:], memory[: half + 1])):
        with pytest.raises(ValueError, match=f"^the {len(raw)} bytes of raw and the {len(out)} bytes of out overlap"):
            cut_records(raw, 0, 1, 0, out)
    third = len(memory) // 3
    assert cut_records(memory[:third], 0, 1, 0, memory[third:]) == (third, 0, 1)


def harmed(raw: bytes, source: random.Random) -> bytes:
    """A few bytes changed, lost or added, or the end cut off."""
    data = bytearray(raw)
    for _ in range(source.randint(1, 4)):
        place = source.randrange(len(data) + 1)
        kind = source.randrange(4)
        if kind == 0:
            data[place : place + 1] = bytes([source.choice([0, 1, 2, 0x7F, 0x80, 0xFF, source.randrange(256)])])
        elif kind == 1:
            del data[place : place + source.randint(1, 3)]
        elif kind == 2:
            data[place:place] = source.choice([b"\x80", b"\xff" * 5, b"\xff" * 10, source.randbytes(3)])
        else:
            del data[place:]
    return bytes(data)


hostile = st.builds(lambda records, source: harmed(encode_records(records), source), record_lists(6, 100), st.randoms())
places = st.integers(0, 7)
bases = st.sampled_from([0, -1, 1 << 40, INT64_MAX, -INT64_MAX - 1])


@given(hostile | st.binary(max_size=60), places, st.integers(1, 8), bases)
@example(b"", 0, 1, 0)
def test_hostile_bytes_are_refused_or_cut_as_the_model_does(raw: bytes, first: int, count: int, base: int) -> None:
    assert_like_model(raw, first, count, base)


# Both buffers end where a page begins that may not be touched: one byte too far ends the process.
_AT_THE_EDGE = """
import ctypes, mmap, random
from slabpress._native import cut_records
from tests.support.reference_batch import Record, encode_records
from tests.test_split import harmed

def before_a_fence(pages):
    size = pages * mmap.PAGESIZE
    memory = mmap.mmap(-1, size + mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(start + size), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    return memoryview(memory)[:size]

source = random.Random(7)
raw_area, out_area = before_a_fence(2), before_a_fence(2)
cuts = errors = 0
for _ in range(40_000):
    records = [Record(source.choice([None, b"key"]), source.randbytes(source.randrange(90)), (), source.randrange(9))]
    raw = encode_records(records * source.randint(1, 80), 4)[: len(raw_area)]
    if source.randrange(3):
        raw = harmed(raw, source)[: len(raw_area)]
    first, count = source.randrange(80), source.randint(1, 80)
    room = source.choice([len(raw), source.randrange(len(raw) + 1), 0])
    raw_view, out_view = raw_area[len(raw_area) - len(raw) :], out_area[len(out_area) - room :]
    raw_view[:] = raw
    try:
        written, _, _ = cut_records(raw_view, first, count, 4, out_view)
        assert written <= room
        cuts += 1
    except ValueError:
        errors += 1
print(cuts, errors)
"""


def test_no_byte_beyond_the_buffers_is_touched() -> None:
    answer = run_python(_AT_THE_EDGE)
    assert answer.returncode == 0, answer.stderr
    cuts, errors = map(int, answer.stdout.split())
    assert min(cuts, errors) > 4000
