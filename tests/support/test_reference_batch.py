"""The reference encoder against other people's encoders and vectors, and its decoder against damage."""

from __future__ import annotations

import struct
import warnings
from dataclasses import replace
from typing import Any, TypedDict

import lz4.frame
import pytest
from aiokafka.partitioner import murmur2 as aio_murmur2
from aiokafka.record.default_records import DefaultRecordBatch as AioBatch
from aiokafka.record.default_records import DefaultRecordBatchBuilder as AioBuilder
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.reference_batch import (
    CRC_START,
    HEADER_BYTES,
    BatchError,
    Record,
    crc32c,
    decode_batch,
    decode_records,
    decode_snappy_block,
    decompress,
    encode_batch,
    encode_record,
    encode_records,
    encode_varint,
    encode_varlong,
    java_partition,
    murmur2,
)
from tests.support.strategies import record_lists

with warnings.catch_warnings():
    # kafka-python loads its schemas by a function that Python 3.11 deprecates.
    warnings.simplefilter("ignore", DeprecationWarning)
    from kafka.partitioner.default import murmur2 as kafka_python_murmur2
    from kafka.record.default_records import DefaultRecordBatch as KafkaPythonBatch
    from kafka.record.default_records import DefaultRecordBatchBuilder as KafkaPythonBuilder


class Identity(TypedDict):
    """What identifies an idempotent producer's batch."""

    producer_id: int
    producer_epoch: int
    base_sequence: int


IDENTITY: Identity = {"producer_id": 4711, "producer_epoch": 3, "base_sequence": 12}
SOME = [
    Record(b"k", b"value", (("trace", b"abc"), ("é", None), ("", b"")), 1_700_000_000_000),
    Record(None, None, (), 1_699_999_999_000),
    Record(b"", b"", (), 1_700_000_000_777),
]


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, "00"),
        (-1, "01"),
        (1, "02"),
        (63, "7e"),
        (-64, "7f"),
        (64, "8001"),
        (-65, "8101"),
        (8191, "fe7f"),
        (-8192, "ff7f"),
        (8192, "808001"),
        (2**31 - 1, "feffffff0f"),
        (-(2**31), "ffffffff0f"),
    ],
)
def test_varint_vectors_of_kafkas_byte_utils_test(value: int, encoded: str) -> None:
    assert encode_varint(value).hex() == encoded
    assert encode_varlong(value).hex() == encoded


@pytest.mark.parametrize(
    ("value", "encoded"), [(2**63 - 1, "feffffffffffffffff01"), (-(2**63), "ffffffffffffffffff01")]
)
def test_varlong_limits(value: int, encoded: str) -> None:
    assert encode_varlong(value).hex() == encoded
    with pytest.raises(ValueError, match="32 bits"):
        encode_varint(value)


def test_crc32c_vectors_of_rfc_3720() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43


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
    assert java_partition(key, 1000) == (expected & 0x7FFFFFFF) % 1000


@given(st.binary(max_size=80), st.integers(1, 10_000))
def test_partitions_equal_those_of_two_other_clients(key: bytes, count: int) -> None:
    assert murmur2(key) & 0xFFFFFFFF == aio_murmur2(key) & 0xFFFFFFFF
    assert murmur2(key) & 0xFFFFFFFF == kafka_python_murmur2(key) & 0xFFFFFFFF
    assert 0 <= java_partition(key, count) < count


def test_a_record_byte_by_byte() -> None:
    expected = (
        "22"  # length 17
        "00"  # attributes
        "01"  # timestamp delta -1
        "06"  # offset delta 3
        "026b"  # key
        "01"  # null value
        "04"  # two headers
        "046162" + "02ff"  # ab: ff
        "06e29883" + "01"  # a snowman: null
    )
    assert encode_record(3, -1, b"k", None, [("ab", b"\xff"), ("☃", None)]).hex() == expected


def test_a_header_byte_by_byte() -> None:
    data = encode_batch([Record(None, b"x", (), 5)], **IDENTITY)
    assert len(data) == HEADER_BYTES + 8
    assert data[:17].hex() == "0000000000000000" + "00000039" + "ffffffff" + "02"
    assert data[17:21] == crc32c(data[CRC_START:]).to_bytes(4, "big")
    assert data[21:61].hex() == (
        "0000" + "00000000" + "0000000000000005" * 2 + "0000000000001267" + "0003" + "0000000c" + "00000001"
    )
    assert data[61:].hex() == "0e" + "00" + "00" + "00" + "01" + "0278" + "00"


def _build(builder_class: Any, records: list[Record], codec_id: int = 0) -> bytes:
    builder = builder_class(magic=2, compression_type=codec_id, is_transactional=0, batch_size=1 << 30, **IDENTITY)
    for offset, record in enumerate(records):
        headers = list(record.headers)
        assert builder.append(offset, record.timestamp_ms, record.key, record.value, headers) is not None
    return bytes(builder.build())


@settings(deadline=None)
@given(record_lists())
def test_bytes_equal_aiokafkas(records: list[Record]) -> None:
    assert encode_batch(records, **IDENTITY) == _build(AioBuilder, records)


@settings(deadline=None)
@given(record_lists())
def test_bytes_equal_kafka_pythons(records: list[Record]) -> None:
    # kafka-python writes leader epoch 0, which lies outside the CRC.
    expected = encode_batch(records, partition_leader_epoch=0, **IDENTITY)
    assert _build(KafkaPythonBuilder, records) == expected


def _as_record(record: Any) -> Record:
    headers = tuple((key, None if value is None else bytes(value)) for key, value in record.headers)
    key, value = (None if part is None else bytes(part) for part in (record.key, record.value))
    return Record(key, value, headers, record.timestamp)


@settings(deadline=None, max_examples=30)
@given(record_lists(), st.sampled_from([0, 1, 2, 3, 4]))
def test_aiokafka_reads_every_codec(records: list[Record], codec_id: int) -> None:
    data = encode_batch(records, codec_id, **IDENTITY)
    batch = AioBatch(data)
    assert batch.validate_crc()
    assert [_as_record(record) for record in batch] == records


@settings(deadline=None, max_examples=30)
@given(record_lists(), st.sampled_from([0, 1, 3, 4]))  # its snappy needs another package
def test_kafka_python_reads_every_codec(records: list[Record], codec_id: int) -> None:
    batch = KafkaPythonBatch(encode_batch(records, codec_id, **IDENTITY))
    assert batch.validate_crc()
    assert [_as_record(record) for record in batch] == records


@settings(deadline=None)
@given(record_lists(), st.sampled_from([0, 1, 2, 3, 4]), st.booleans())
def test_what_is_encoded_is_decoded(records: list[Record], codec_id: int, transactional: bool) -> None:
    data = encode_batch(records, codec_id, is_transactional=transactional, **IDENTITY)
    header, decoded = decode_batch(data)
    assert decoded == records
    assert (header.codec_id, header.is_transactional) == (codec_id, transactional)
    assert header.record_count == len(records)
    assert header.base_timestamp == records[0].timestamp_ms


@pytest.mark.parametrize("codec_id", [1, 2, 3, 4])
def test_batches_of_aiokafka_are_decoded(codec_id: int) -> None:
    # Enough to make compression pay; aiokafka's snappy is the xerial stream.
    records = [replace(record, headers=()) for record in SOME * 30]
    records = [replace(record, value=b"some words " * 40) for record in records]
    header, decoded = decode_batch(_build(AioBuilder, records, codec_id))
    assert decoded == records
    assert header.codec_id == codec_id


# --- damage ---


def _resealed(data: bytes) -> bytes:
    """The batch with a right length and CRC, so that what is wrong with it is found behind them."""
    length = struct.pack(">i", len(data) - 12)
    return data[:8] + length + data[12:17] + crc32c(data[21:]).to_bytes(4, "big") + data[21:]


def _patched(position: int, layout: str, *values: int) -> bytes:
    data = bytearray(encode_batch(SOME, **IDENTITY))
    struct.pack_into(layout, data, position, *values)
    return _resealed(bytes(data))


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (encode_batch(SOME)[:60], "fewer than a header"),
        (encode_batch(SOME) + b"\x00", "length"),
        (encode_batch(SOME)[:-1], "length"),
        (_patched(16, ">b", 1), "magic 1"),
        (_patched(0, ">q", 7), "base offset 7"),
        (_patched(21, ">h", 5), "codec 5"),
        (_patched(21, ">h", 0x08), "attributes"),
        (_patched(21, ">h", 0x20), "attributes"),
        (_patched(21, ">h", 0x40), "attributes"),
        (_patched(23, ">i", 3), "lastOffsetDelta"),
        (_patched(23, ">i", -1), "lastOffsetDelta"),
        (_patched(57, ">i", 0), "0 records"),
        (_patched(35, ">q", 1_700_000_000_778), "maxTimestamp"),
        (_patched(53, ">i", -1), "all or none"),
        (_patched(23, ">i", 1)[:57] + struct.pack(">i", 2) + _patched(23, ">i", 1)[61:], "CRC"),
        (encode_batch(SOME, 0, encode_records(SOME) + b"\x00"), "after the last"),
        (encode_batch(SOME, 0, encode_records(SOME[:2])), "left"),
        (encode_batch(SOME, 0, encode_records(SOME)[:-1]), "left"),
        (encode_batch(SOME, 1, encode_records(SOME)), "codec 1"),
        (encode_batch(SOME, 2, encode_records(SOME)), "snappy"),
        (encode_batch(SOME, 3, encode_records(SOME)), "LZ4"),
        (encode_batch(SOME, 4, encode_records(SOME)), "codec 4"),
    ],
)
def test_damage_is_refused(data: bytes, complaint: str) -> None:
    with pytest.raises(BatchError, match=complaint):
        decode_batch(data)


def test_a_broker_may_have_given_the_batch_an_offset() -> None:
    assert decode_batch(_patched(0, ">q", 7), produced=False)[0].base_offset == 7


def test_every_single_bit_is_covered() -> None:
    data = encode_batch(SOME, **IDENTITY)
    free = range(12, 16)  # the leader epoch, which brokers overwrite
    for position in set(range(len(data))) - set(free):
        damaged = bytearray(data)
        damaged[position] ^= 0x10
        with pytest.raises(BatchError):
            decode_batch(bytes(damaged))


@pytest.mark.parametrize(
    ("payload", "complaint"),
    [
        (encode_record(1, 0, None, None), "offset delta 1"),
        (encode_record(0, -7, None, None), "timestamp -2"),
        (b"\x0e\x01\x00\x00\x01\x01\x00\x00", "attributes 1"),
        (b"\x0e\x00\x00\x00\x01\x01\x00\x00", "1 bytes too many"),
        (b"\x0c\x00\x00\x00\x01\x01\x01", "-1 headers"),
        (b"\x0c\x00\x00\x00\x03\x01\x00", "length -2"),
        (b"\x10\x00\x00\x00\x01\x01\x02\x01\x01", "key is null"),
        (b"\x8c\x80\x80\x80\x80\x00\x00\x00\x00\x01\x01\x00", "too long"),
        (b"\xff\xff\xff\xff\x7f\x00", "beyond 32 bits"),
        (b"\x01", "-1 bytes wanted"),
        (b"", "0 are left"),
    ],
)
def test_malformed_records_are_refused(payload: bytes, complaint: str) -> None:
    with pytest.raises(BatchError, match=complaint):
        decode_records(payload, 1, 5)


@pytest.mark.parametrize("codec_id", [1, 3, 4])
def test_a_second_frame_is_refused(codec_id: int) -> None:
    frame = encode_batch(SOME, codec_id)[HEADER_BYTES:]
    assert decompress(codec_id, frame) == encode_records(SOME)
    with pytest.raises(BatchError, match="not exactly one"):
        decompress(codec_id, frame + frame)
    with pytest.raises(BatchError):
        decompress(codec_id, frame[:-1])


def test_linked_lz4_blocks_are_refused() -> None:
    with pytest.raises(BatchError, match="independent"):
        decompress(3, lz4.frame.compress(bytes(100_000), block_linked=True))


def test_snappy_elements() -> None:
    # The length 14, a literal, an overlapping copy with a one-byte offset, one with a two-byte offset.
    assert decode_snappy_block(b"\x0e\x08abc" + b"\x09\x03" + b"\x12\x08\x00") == b"abcabcabc" + b"bcabc"
    with pytest.raises(BatchError, match="back"):
        decode_snappy_block(b"\x04\x12\x01\x00")
    with pytest.raises(BatchError, match="promises"):
        decode_snappy_block(b"\x04\x08abc")
