"""Decompression of what ``codecs.py`` wrote: a batch that a broker finds too large is cut up and sent again.

This is rare, so contexts are made for each call and freed. What a stream says about its own size is compared with
the size that is known and never allocated: a damaged batch is an error, not a gigabyte. The sizes held are in
``codec_memory.split_workspace_bytes``.
"""

from __future__ import annotations

from io import BytesIO
from mmap import mmap
from typing import TYPE_CHECKING

from slabpress.codec_memory import BLOCK_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# What a streaming decoder is given and gives at once: it copies what it does not use of the one, and makes room for
# the other.
_INPUT_BYTES = 16 * 1024
_OUTPUT_BYTES = 32 * 1024

_GZIP_WINDOW = 31  # 15, the largest, and +16 for a gzip header and trailer, as in ``codecs.GzipCodec``
_LZ4_HEADER_MOST = 19


def decompress(codec: int, pieces: list[memoryview], raw_bytes: int) -> bytes:
    """Decompresses one batch's payload.

    Args:
        codec: Kafka's number of the codec: 0 none, 1 gzip, 2 snappy (a raw block), 3 lz4, 4 zstd.
        pieces: The payload and nothing after it, cut anywhere. No view of it is kept.
        raw_bytes: The bytes that it must become.

    Raises:
        ValueError: The codec is unknown, the payload is damaged or cut off or has more bytes after its end, or it
            does not become ``raw_bytes`` bytes.
    """
    decoder = _DECODERS.get(codec)
    if decoder is None:
        raise ValueError(f"codec {codec} is not one of {', '.join(map(str, _DECODERS))}")
    return decoder(pieces, raw_bytes)


def scratch(length: int) -> memoryview:
    """Returns zeros in a mapping of their own, which ends with the last view of it.

    For what lives during one step of a split: the payload in one piece, the records that were cut out. In the heap,
    with sizes that vary, each leaves a hole that the next does not fit in, and the process keeps four times a batch.

    Args:
        length: Bytes.
    """
    return memoryview(mmap(-1, max(1, length)))[:length]


def _copied(pieces: list[memoryview], raw_bytes: int) -> bytes:
    _compare("none", raw_bytes, sum(map(len, pieces)))
    return b"".join(pieces)


def _gunzip(pieces: list[memoryview], raw_bytes: int) -> bytes:
    import zlib

    stream = zlib.decompressobj(_GZIP_WINDOW)

    def step(data: memoryview) -> tuple[bytes, int, bool]:
        part = stream.decompress(data, _OUTPUT_BYTES)
        return part, len(data) - len(stream.unconsumed_tail) - len(stream.unused_data), stream.eof

    try:
        return _stream("gzip", step, pieces, raw_bytes)
    except zlib.error as error:
        raise _damaged("gzip", raw_bytes, error) from error


def _unsnappy(pieces: list[memoryview], raw_bytes: int) -> bytes:
    from cramjam import DecompressionError, snappy

    payload = _joined("snappy", pieces, raw_bytes)
    try:
        _compare("snappy", raw_bytes, snappy.decompress_raw_len(payload))
        room = _room(raw_bytes)
        with room.getbuffer() as result:
            snappy.decompress_raw_into(payload, result)  # an error if it would leave any of it as it was
    except DecompressionError as error:
        raise _damaged("snappy", raw_bytes, error) from error
    return room.getvalue()


def _unlz4(pieces: list[memoryview], raw_bytes: int) -> bytes:
    from lz4 import frame

    context = frame.create_decompression_context()

    def step(data: memoryview) -> tuple[bytes, int, bool]:
        part: bytes
        part, used, ended = frame.decompress_chunk(context, data, max_length=_OUTPUT_BYTES)
        return part, used, ended

    try:
        info = frame.get_frame_info(_start_of(pieces, _LZ4_HEADER_MOST))
        _compare("lz4", raw_bytes, info["content_size"])
        if info["block_size"] != BLOCK_BYTES:  # the context would hold two blocks of up to 4 MiB
            raise ValueError(f"lz4: blocks of {BLOCK_BYTES} bytes expected, of {info['block_size']} found")
        return _stream("lz4", step, pieces, raw_bytes)
    except RuntimeError as error:
        raise _damaged("lz4", raw_bytes, error) from error


def _unzstd(pieces: list[memoryview], raw_bytes: int) -> bytes:
    """Decompresses in one call, which needs no window: a stream would hold the batch a second time."""
    from zstandard import ZstdDecompressor, ZstdError, get_frame_parameters

    payload = _joined("zstd", pieces, raw_bytes)
    try:
        _compare("zstd", raw_bytes, get_frame_parameters(payload).content_size)
        return ZstdDecompressor().decompress(payload, allow_extra_data=False)  # an error if it is not that long
    except ZstdError as error:
        raise _damaged("zstd", raw_bytes, error) from error


_DECODERS: dict[int, Callable[[list[memoryview], int], bytes]] = {
    0: _copied,
    1: _gunzip,
    2: _unsnappy,
    3: _unlz4,
    4: _unzstd,
}


def _stream(
    name: str,
    step: Callable[[memoryview], tuple[bytes, int, bool]],
    pieces: list[memoryview],
    raw_bytes: int,
) -> bytes:
    """Passes the pieces through ``step``, which says what came out, how much went in and whether the end was there.

    What a step keeps back, because its output is full, comes with the next: both formats have an end mark, which is
    read only after everything has come out.
    """
    room, found, ended = _room(raw_bytes), 0, False
    for data in _slices(pieces):
        rest = data
        while rest:
            if ended:
                raise ValueError(f"{name}: more bytes after the end of the {raw_bytes} expected")
            part, used, ended = step(rest)
            found += len(part)
            if found > raw_bytes:
                raise ValueError(f"{name}: {raw_bytes} bytes expected, at least {found} found")
            room.write(part)
            rest = rest[used:]
    if not ended:
        raise ValueError(f"{name}: {raw_bytes} bytes expected, cut off after {found}")
    _compare(name, raw_bytes, found)
    return room.getvalue()


def _slices(pieces: list[memoryview]) -> Iterator[memoryview]:
    for piece in pieces:
        for start in range(0, len(piece), _INPUT_BYTES):
            yield piece[start : start + _INPUT_BYTES]


def _room(size: int) -> BytesIO:
    """Returns a stream at its start that holds ``size`` bytes already, all the memory that it takes.

    ``getvalue`` gives away its own bytes object and copies nothing: joining parts would hold everything twice.
    """
    room = BytesIO()
    if size > 0:
        room.seek(size - 1)
        room.write(b"\0")
        room.seek(0)
    return room


def _joined(name: str, pieces: list[memoryview], raw_bytes: int) -> memoryview:
    length = sum(map(len, pieces))
    if length > raw_bytes:  # no codec writes that, as a batch never grows (law 5): the copy is bounded by the result
        raise ValueError(f"{name}: {raw_bytes} bytes expected, {length} found before decompression")
    joined, start = scratch(length), 0
    for piece in pieces:
        joined[start : start + len(piece)] = piece
        start += len(piece)
    return joined


def _start_of(pieces: list[memoryview], length: int) -> bytes:
    start = b""
    for piece in pieces:
        start += piece[: length - len(start)]
    return start


def _compare(name: str, raw_bytes: int, found: int) -> None:
    if found != raw_bytes:
        raise ValueError(f"{name}: {raw_bytes} bytes expected, {found} found")


def _damaged(name: str, raw_bytes: int, error: Exception) -> ValueError:
    return ValueError(f"{name}: damaged, {raw_bytes} bytes expected: {error}")
