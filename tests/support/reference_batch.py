"""A slow, plain reference of Kafka's RecordBatch v2, for tests to compare the real encoder with.

Written from the format's definition (Kafka's protocol guide, "Record Batch", and DefaultRecordBatch.java,
DefaultRecord.java), sharing no code with the package. ``decode_batch`` is stricter than a broker: it refuses
what brokers refuse and also what they silently put right or let through, as either would hide a bug of ours.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cramjam
import zstandard

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HEADER_BYTES = 61
CRC_START = 21
"""The CRC covers everything from here, the attributes, to the end."""

_HEADER = struct.Struct(">qiibIhiqqqhii")
_LENGTH_COUNTED_FROM = 12
_CODEC_BITS = 0b111
_TRANSACTIONAL_BIT = 0b10000


class BatchError(ValueError):
    """The bytes are not a batch that a producer may send."""


@dataclass(frozen=True)
class Record:
    """One record as the user knows it.

    Attributes:
        key: The key, None for a null key.
        value: The value, None for a null value.
        headers: Pairs of a key and a value that may be null.
        timestamp_ms: Milliseconds since 1970.
    """

    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    timestamp_ms: int = 0


@dataclass(frozen=True)
class BatchHeader:
    """The fields before the records, in their order."""

    base_offset: int
    batch_length: int
    partition_leader_epoch: int
    magic: int
    crc: int
    attributes: int
    last_offset_delta: int
    base_timestamp: int
    max_timestamp: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    record_count: int

    @property
    def codec_id(self) -> int:
        """0 none, 1 gzip, 2 snappy, 3 lz4, 4 zstd."""
        return self.attributes & _CODEC_BITS

    @property
    def is_transactional(self) -> bool:
        """Whether the batch belongs to a transaction."""
        return bool(self.attributes & _TRANSACTIONAL_BIT)


# --- numbers ---------------------------------------------------------------------------------------------


def encode_unsigned(value: int) -> bytes:
    """Encodes seven bits a byte, the lowest first; the high bit says that more follow."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def encode_varint(value: int) -> bytes:
    """Encodes a 32-bit number: zigzag (0, -1, 1, -2 become 0, 1, 2, 3), then seven bits a byte."""
    return _encode_zigzag(value, 32)


def encode_varlong(value: int) -> bytes:
    """Encodes a 64-bit number in the same way."""
    return _encode_zigzag(value, 64)


def _encode_zigzag(value: int, bits: int) -> bytes:
    if not -(1 << bits - 1) <= value < 1 << bits - 1:
        raise ValueError(f"{value} does not fit into {bits} bits")
    return encode_unsigned(2 * value if value >= 0 else -2 * value - 1)


class _Reader:
    """Reads a byte string from the front and refuses to read beyond its end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0

    @property
    def left(self) -> int:
        return len(self._data) - self.position

    def take(self, count: int) -> bytes:
        if not 0 <= count <= self.left:
            raise BatchError(f"{count} bytes wanted at {self.position}, {self.left} are left")
        self.position += count
        return self._data[self.position - count : self.position]

    def unsigned(self, bits: int) -> int:
        value = 0
        for shift in range(0, bits, 7):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
        else:
            raise BatchError(f"variable-length number too long before {self.position}")
        if value >= 1 << bits:
            raise BatchError(f"variable-length number beyond {bits} bits before {self.position}")
        return value

    def varint(self) -> int:
        return _from_zigzag(self.unsigned(32))

    def varlong(self) -> int:
        return _from_zigzag(self.unsigned(64))

    def nullable(self) -> bytes | None:
        length = self.varint()
        if length < -1:
            raise BatchError(f"length {length} before {self.position}")
        return None if length == -1 else self.take(length)


def _from_zigzag(value: int) -> int:
    return value // 2 if value % 2 == 0 else -(value // 2) - 1


# --- records ---------------------------------------------------------------------------------------------


def encode_record(
    offset_delta: int,
    timestamp_delta: int,
    key: bytes | None,
    value: bytes | None,
    headers: Sequence[tuple[str, bytes | None]] = (),
) -> bytes:
    """Encodes one record with its length in front."""
    parts = [b"\x00", encode_varlong(timestamp_delta), encode_varint(offset_delta)]
    parts += [_encode_nullable(key), _encode_nullable(value), encode_varint(len(headers))]
    for header_key, header_value in headers:
        parts += [_encode_nullable(header_key.encode()), _encode_nullable(header_value)]
    body = b"".join(parts)
    return encode_varint(len(body)) + body


def _encode_nullable(data: bytes | None) -> bytes:
    return encode_varint(-1) if data is None else encode_varint(len(data)) + data


def encode_records(records: Sequence[Record], base_timestamp_ms: int | None = None) -> bytes:
    """Encodes records one after the other; the base timestamp is the first one's unless given."""
    if base_timestamp_ms is None:
        base_timestamp_ms = records[0].timestamp_ms if records else 0
    return b"".join(
        encode_record(delta, record.timestamp_ms - base_timestamp_ms, record.key, record.value, record.headers)
        for delta, record in enumerate(records)
    )


def decode_records(payload: bytes, count: int, base_timestamp: int) -> list[Record]:
    """Decodes exactly ``count`` records that fill ``payload`` exactly.

    Raises:
        BatchError: They do not, or a record is malformed. Offset deltas must be 0, 1, 2...: brokers do not
            check them in an uncompressed batch, and rewrite a compressed one.
    """
    reader = _Reader(payload)
    records = [_decode_record(reader, delta, base_timestamp) for delta in range(count)]
    if reader.left:
        raise BatchError(f"{reader.left} bytes after the last of {count} records")
    return records


def _decode_record(reader: _Reader, expected_delta: int, base_timestamp: int) -> Record:
    body = _Reader(reader.take(reader.varint()))
    attributes = body.take(1)[0]
    timestamp = base_timestamp + body.varlong()
    offset_delta = body.varint()
    key, value = body.nullable(), body.nullable()
    header_count = body.varint()
    if header_count < 0:
        raise BatchError(f"record {expected_delta} has {header_count} headers")
    headers = tuple(_decode_header(body) for _ in range(header_count))
    if attributes != 0:
        raise BatchError(f"record {expected_delta} has attributes {attributes}, all bits are unused")
    if offset_delta != expected_delta:
        raise BatchError(f"record {expected_delta} has offset delta {offset_delta}")
    if timestamp < -1:
        raise BatchError(f"record {expected_delta} has timestamp {timestamp}")
    if body.left:
        raise BatchError(f"record {expected_delta} has {body.left} bytes too many")
    return Record(key, value, headers, timestamp)


def _decode_header(body: _Reader) -> tuple[str, bytes | None]:
    key = body.nullable()
    if key is None:
        raise BatchError("a header's key is null")
    return key.decode(), body.nullable()


# --- batches ---------------------------------------------------------------------------------------------


def encode_batch(
    records: Sequence[Record],
    codec_id: int = 0,
    payload: bytes | None = None,
    *,
    base_offset: int = 0,
    partition_leader_epoch: int = -1,
    producer_id: int = -1,
    producer_epoch: int = -1,
    base_sequence: int = -1,
    is_transactional: bool = False,
) -> bytes:
    """Encodes a batch.

    Args:
        records: At least one record.
        codec_id: The codec that the attributes name.
        payload: What follows the header; None for the records, compressed by an independent library.
        base_offset: 0 when produced.
        partition_leader_epoch: -1 when produced.
        producer_id: -1 without idempotence.
        producer_epoch: -1 without idempotence.
        base_sequence: -1 without idempotence.
        is_transactional: Sets the bit of the attributes.
    """
    timestamps = [record.timestamp_ms for record in records]
    if payload is None:
        payload = _COMPRESSORS[codec_id](encode_records(records))
    attributes = codec_id | (_TRANSACTIONAL_BIT if is_transactional else 0)
    after_crc = struct.pack(
        ">hiqqqhii",
        attributes,
        len(records) - 1,
        timestamps[0],
        max(timestamps),
        producer_id,
        producer_epoch,
        base_sequence,
        len(records),
    )
    after_crc += payload
    length = 4 + 1 + 4 + len(after_crc)
    return struct.pack(">qiibI", base_offset, length, partition_leader_epoch, 2, crc32c(after_crc)) + after_crc


def decode_batch(data: bytes, *, produced: bool = True) -> tuple[BatchHeader, list[Record]]:
    """Decodes one batch and checks everything about it.

    Args:
        data: Exactly one batch.
        produced: Whether it comes from a producer; False for one that a broker has given an offset.

    Raises:
        BatchError: Something is wrong.
    """
    if len(data) < HEADER_BYTES:
        raise BatchError(f"{len(data)} bytes are fewer than a header's {HEADER_BYTES}")
    header = BatchHeader(*_HEADER.unpack_from(data))
    _check_envelope(header, data)
    _check_header(header)
    if produced and header.base_offset != 0:
        raise BatchError(f"base offset {header.base_offset} in a produced batch")
    payload = decompress(header.codec_id, data[HEADER_BYTES:])
    records = decode_records(payload, header.record_count, header.base_timestamp)
    latest = max(record.timestamp_ms for record in records)
    if header.max_timestamp != latest:
        raise BatchError(f"maxTimestamp {header.max_timestamp}, but the latest record has {latest}")
    return header, records


def _check_envelope(header: BatchHeader, data: bytes) -> None:
    if header.magic != 2:
        raise BatchError(f"magic {header.magic}")
    if header.batch_length != len(data) - _LENGTH_COUNTED_FROM:
        raise BatchError(f"length {header.batch_length} for {len(data) - _LENGTH_COUNTED_FROM} bytes")
    crc = crc32c(data[CRC_START:])
    if header.crc != crc:
        raise BatchError(f"CRC {header.crc:#010x}, but the content has {crc:#010x}")


def _check_header(header: BatchHeader) -> None:
    if header.attributes & ~(_CODEC_BITS | _TRANSACTIONAL_BIT):
        raise BatchError(f"attributes {header.attributes:#x}: a bit that producers leave 0")
    if header.codec_id not in _DECOMPRESSORS:
        raise BatchError(f"codec {header.codec_id}")
    if header.record_count < 1:
        raise BatchError(f"{header.record_count} records")
    if header.last_offset_delta != header.record_count - 1:
        raise BatchError(f"lastOffsetDelta {header.last_offset_delta} for {header.record_count} records")
    identity = (header.producer_id, header.producer_epoch, header.base_sequence)
    if identity != (-1, -1, -1) and min(identity) < 0:
        raise BatchError(f"producer id, epoch and sequence {identity}: all or none")


def _make_crc_table() -> list[int]:
    table = []
    for byte in range(256):
        remainder = byte
        for _ in range(8):
            remainder = remainder >> 1 ^ (0x82F63B78 if remainder & 1 else 0)
        table.append(remainder)
    return table


_CRC_TABLE = _make_crc_table()


def crc32c(data: bytes) -> int:
    """Returns the CRC-32C: Castagnoli's polynomial 0x1EDC6F41, here with its bits reversed."""
    remainder = 0xFFFFFFFF
    for byte in data:
        remainder = remainder >> 8 ^ _CRC_TABLE[(remainder ^ byte) & 0xFF]
    return remainder ^ 0xFFFFFFFF


# --- compression -----------------------------------------------------------------------------------------


def decompress(codec_id: int, payload: bytes) -> bytes:
    """Decompresses what a consumer accepts, and nothing else.

    Raises:
        BatchError: Malformed, truncated, followed by more bytes, or not as Kafka wants it.
    """
    try:
        return _DECOMPRESSORS[codec_id](payload)
    except (zlib.error, cramjam.DecompressionError, zstandard.ZstdError, IndexError, struct.error) as error:
        raise BatchError(f"codec {codec_id}: {error}") from error


def _gunzip(payload: bytes) -> bytes:
    stream = zlib.decompressobj(31)
    data = stream.decompress(payload)
    if not stream.eof or stream.unused_data:
        raise BatchError("not exactly one gzip member")
    return data


_XERIAL_MAGIC = b"\x82SNAPPY\x00"


def _unsnappy(payload: bytes) -> bytes:
    if not payload.startswith(_XERIAL_MAGIC):
        return decode_snappy_block(payload)
    reader = _Reader(payload)
    reader.take(16)
    data = bytearray()
    while reader.left:
        (length,) = struct.unpack(">i", reader.take(4))
        data += decode_snappy_block(reader.take(length))
    return bytes(data)


def decode_snappy_block(block: bytes) -> bytes:
    """Decodes a raw snappy block (google/snappy, format_description.txt)."""
    reader = _Reader(block)
    length = reader.unsigned(32)
    data = bytearray()
    while reader.left:
        tag = reader.take(1)[0]
        kind, rest = tag & 3, tag >> 2
        if kind == 0:
            extra = max(rest - 59, 0)
            size = int.from_bytes(reader.take(extra), "little") if extra else rest
            data += reader.take(size + 1)
            continue
        if kind == 1:
            size, offset = (rest & 7) + 4, rest >> 3 << 8 | reader.take(1)[0]
        else:
            size, offset = rest + 1, int.from_bytes(reader.take(2 if kind == 2 else 4), "little")
        if not 0 < offset <= len(data):
            raise BatchError(f"snappy refers {offset} bytes back after {len(data)}")
        for _ in range(size):  # byte by byte, as a copy may overlap itself
            data.append(data[-offset])
    if len(data) != length:
        raise BatchError(f"snappy block of {len(data)} bytes promises {length}")
    return bytes(data)


def _unlz4(payload: bytes) -> bytes:
    if payload[:4] != b"\x04\x22\x4d\x18":
        raise BatchError("no LZ4 frame")
    flags, block_descriptor = payload[4], payload[5]
    if flags >> 6 != 1 or not flags & 0x20 or flags & 0x03:
        raise BatchError(f"LZ4 flags {flags:#x}: version 1, independent blocks and no dictionary are wanted")
    if block_descriptor & 0x8F or block_descriptor >> 4 < 4:
        raise BatchError(f"LZ4 block descriptor {block_descriptor:#x}")
    if _lz4_frame_end(payload, flags) != len(payload):
        raise BatchError("not exactly one LZ4 frame")
    return bytes(cramjam.lz4.decompress(payload))


def _lz4_frame_end(payload: bytes, flags: int) -> int:
    position = 7 + (8 if flags & 0x08 else 0)
    while True:
        (size,) = struct.unpack_from("<I", payload, position)
        position += 4
        if size == 0:
            return position + (4 if flags & 0x04 else 0)
        position += (size & 0x7FFFFFFF) + (4 if flags & 0x10 else 0)


def _unzstd(payload: bytes) -> bytes:
    parameters = zstandard.get_frame_parameters(payload)
    if parameters.window_size > 1 << 27:
        raise BatchError(f"zstd window of {parameters.window_size} bytes, consumers accept 2**27")
    stream = zstandard.ZstdDecompressor().decompressobj()
    data = stream.decompress(payload)
    if not stream.eof or stream.unused_data:
        raise BatchError("not exactly one zstd frame")
    return data


_DECOMPRESSORS: dict[int, Callable[[bytes], bytes]] = {
    0: bytes,
    1: _gunzip,
    2: _unsnappy,
    3: _unlz4,
    4: _unzstd,
}


def _lz4(data: bytes) -> bytes:
    compressor = cramjam.lz4.Compressor(level=1, content_checksum=False, block_linked=False)
    compressor.compress(data)
    return bytes(compressor.finish())


_COMPRESSORS: dict[int, Callable[[bytes], bytes]] = {
    0: bytes,
    1: lambda data: gzip.compress(data, mtime=0),
    2: lambda data: bytes(cramjam.snappy.compress_raw(data)),
    3: _lz4,
    4: lambda data: bytes(cramjam.zstd.compress(data)),
}


# --- partitions ------------------------------------------------------------------------------------------


def murmur2(data: bytes) -> int:
    """Returns MurmurHash2 with Kafka's seed, as the signed 32-bit number that Java has (Utils.murmur2)."""
    multiplier, mask = 0x5BD1E995, 0xFFFFFFFF
    state = 0x9747B28C ^ len(data)
    whole = len(data) // 4 * 4
    for start in range(0, whole, 4):
        word = int.from_bytes(data[start : start + 4], "little") * multiplier & mask
        word = (word ^ word >> 24) * multiplier & mask
        state = state * multiplier & mask ^ word
    if whole < len(data):
        state = (state ^ int.from_bytes(data[whole:], "little")) * multiplier & mask
    state = (state ^ state >> 13) * multiplier & mask
    state ^= state >> 15
    return state - (1 << 32) if state >= 1 << 31 else state


def java_partition(key: bytes, partition_count: int) -> int:
    """Returns the partition that Java's default partitioner gives a key (BuiltInPartitioner)."""
    return (murmur2(key) & 0x7FFFFFFF) % partition_count
