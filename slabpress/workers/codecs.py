"""The compression codecs of a worker process.

A codec is made once per worker, imports only the library that it needs, and takes the same memory for the
first batch as for the last (``codec_memory.workspace_bytes``). No batch is gathered into one long buffer: it
goes through in the pieces in which it lies, or in blocks of 64 KiB.

Every batch is one frame (zstd, lz4), one member (gzip) or one block (snappy): Kafka reads only the first LZ4
frame, and several zstd frames broke consumers (kafka-python#2717). The output depends on the input alone, so
a batch that a dead worker left behind becomes the same bytes again.

Figures are medians for 64 KiB of JSON records, all variants interleaved in one run on one core.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from slabpress.codec_memory import BLOCK_BYTES, LZ4_FAST_LEVEL, SNAPPY_BLOCK_BOUND, level_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

NOT_SMALLER = -1  # the batch is to be sent uncompressed (law 5)

_ZLIB_NG_LEVELS = {-1: 5, 1: 2, 2: 2, 3: 2, 4: 3, 5: 4, 6: 5, 7: 6, 8: 7, 9: 7}
# One batch holds at most three at once (the chunker's, the new piece, the last), within the plan's allowance.
_ZSTD_PIECE_BYTES = 16 * 1024


class Codec(Protocol):
    """Compresses batches, one at a time.

    ``id`` is Kafka's number of the codec in a batch's attributes; ``whole_bytes`` the longest batch for ``whole``.
    """

    id: int
    whole_bytes: int

    def whole(self, chunk: memoryview, /) -> bytes | memoryview:
        """Returns the payload of a batch that lies in one piece: what ``compress`` would write, sooner.

        It may be longer than the batch. A view is good until the next call.
        """
        ...

    def compress(self, chunks: Sequence[memoryview], raw_bytes: int, out: Sequence[memoryview]) -> int:
        """Compresses the ``raw_bytes`` of ``chunks`` into ``out``, one buffer after the other.

        Together the buffers are at least ``raw_bytes`` long. Returns the bytes written, fewer than
        ``raw_bytes``, or ``NOT_SMALLER``, after which the buffers' content is undefined.
        """
        ...


def make_codec(compression_type: str, level: int | None, scratch_bytes: int) -> Codec:
    """Returns the codec for a compression type, and imports its library.

    ``scratch_bytes`` is the length of the largest batch. A type or level that does not exist is a ValueError.
    """
    resolved = level_of(compression_type, level)
    if compression_type == "gzip":
        return GzipCodec(resolved)
    if compression_type == "snappy":
        return SnappyCodec()
    if compression_type == "lz4":
        return Lz4Codec(resolved)
    if compression_type == "zstd":
        return ZstdCodec(resolved, scratch_bytes)
    return NoneCodec()


class CodecCache:
    """The codecs of one worker: producers with the same codec share one, and its workspace."""

    def __init__(self) -> None:
        self._codecs: dict[tuple[str, int | None, int], Codec] = {}

    def get(self, settings: Mapping[str, Any]) -> Codec:
        """Returns the codec for a producer's settings, made for the next power of two of its largest batch."""
        scratch_bytes = max(BLOCK_BYTES, 1 << (settings["largest_batch_bytes"] - 1).bit_length())
        key = settings["compression_type"], settings["compression_level"], scratch_bytes
        if key not in self._codecs:
            self._codecs[key] = make_codec(*key)
        return self._codecs[key]

    def keep_only(self, codecs: Iterable[Codec]) -> None:
        """Drops those that no producer uses any more."""
        kept = {id(codec) for codec in codecs}
        self._codecs = {key: codec for key, codec in self._codecs.items() if id(codec) in kept}


class NoneCodec:
    """No compression: every batch is sent as it is."""

    id = 0
    whole_bytes = BLOCK_BYTES

    def whole(self, chunk: memoryview, /) -> memoryview:
        """Returns the batch as it is."""
        return chunk

    def compress(self, chunks: Sequence[memoryview], raw_bytes: int, out: Sequence[memoryview]) -> int:  # noqa: ARG002
        """Says that the batch is to be sent as it is."""
        return NOT_SMALLER


class _BlockCodec(ABC):
    """A codec that is given blocks of 64 KiB, and whose output is copied out part by part."""

    whole_bytes = BLOCK_BYTES

    def __init__(self) -> None:
        self._gathered = memoryview(bytearray(BLOCK_BYTES))

    def compress(self, chunks: Sequence[memoryview], raw_bytes: int, out: Sequence[memoryview]) -> int:
        """Compresses one batch, see ``Codec.compress``."""
        if len(chunks) == 1 and raw_bytes <= self.whole_bytes:
            return _fill_with(out, self.whole(chunks[0]), raw_bytes)
        blocks = _blocks(chunks, raw_bytes, self._gathered)
        return _fill(out, self._parts(blocks, raw_bytes), raw_bytes)

    def whole(self, chunk: memoryview, /) -> bytes | memoryview:
        """Returns the payload of a batch of one block, see ``Codec.whole``."""
        return b"".join(self._parts(iter((chunk,)), len(chunk)))

    @abstractmethod
    def _parts(self, blocks: Iterator[memoryview], raw_bytes: int) -> Iterator[bytes | memoryview]: ...


class GzipCodec(_BlockCodec):
    """One RFC 1952 member, by zlib-ng.

    The levels are Java's, which are zlib's, and mean what those make of a batch: each is the fastest of zlib-ng's
    whose output was at most 3% larger than that of zlib's own level, in each of 16, 64 and 256 KiB of three kinds of
    records (JSON of 200 bytes, CSV of flights, JSON logs with words; 3.5% of bare lines of JSON). At the default,
    zlib's 6, that is 1.7 to 3.7 times as fast, for -5 to +2.6% in size.

    Python's wrapper has no reset, so each batch makes and frees a deflate state. Not taken: cramjam.gzip, whose levels
    are others and which is slower; isal, which is faster still, but whose best is as large as zlib's level 2.
    """

    id = 1

    def __init__(self, level: int) -> None:
        from zlib_ng import zlib_ng

        super().__init__()
        # 31 is the largest window, 15, with a gzip header and trailer instead of zlib's (+16).
        self._new_stream = partial(zlib_ng.compressobj, _ZLIB_NG_LEVELS[level], zlib_ng.DEFLATED, 31)

    def _parts(self, blocks: Iterator[memoryview], raw_bytes: int) -> Iterator[bytes]:  # noqa: ARG002
        stream = self._new_stream()
        yield from map(stream.compress, blocks)
        yield stream.flush()


class SnappyCodec(_BlockCodec):
    """One raw snappy block, made of 64 KiB parts.

    A raw block is a length and then elements that refer backwards, and snappy starts afresh every 64 KiB. So
    parts compressed apart, without their own lengths, make the very block that one call would make. Not
    taken: Java's xerial stream of 32 KiB blocks (97 us too, 4% larger). Java, librdkafka, kafka-python and
    aiokafka read both; no raw block looks like a xerial header, whose third byte would refer to before the
    start.
    """

    id = 2

    def __init__(self) -> None:
        from cramjam import snappy

        super().__init__()
        self._compress_into = snappy.compress_raw_into
        self._compressed = memoryview(bytearray(SNAPPY_BLOCK_BOUND))

    def whole(self, chunk: memoryview, /) -> memoryview:
        """Returns the payload of a batch of one block, see ``Codec.whole``."""
        return self._compressed[: self._compress_into(chunk, self._compressed)]

    def _parts(self, blocks: Iterator[memoryview], raw_bytes: int) -> Iterator[bytes | memoryview]:
        yield _unsigned_varint(raw_bytes)
        for block in blocks:
            end = self._compress_into(block, self._compressed)
            yield self._compressed[len(_unsigned_varint(len(block))) : end]


class Lz4Codec(_BlockCodec):
    """One LZ4 frame of independent 64 KiB blocks, as Java writes it, with the content size.

    Kafka refuses linked blocks, the library's default. The levels are KIP-390's as Java reads them: 9, the
    default, is the *fast* compressor (0 in liblz4), although every other level is the high compressor.
    liblz4's high levels in frames are 3 to 12, so 1 and 2 become 3, and 13 to 17 become 12.

    Not taken: ``lz4.frame.compress``, or ``cramjam.lz4.compress_block_into`` in a frame of our own: as fast
    (96, 96 and 94 us), but they want the batch in one piece. Blocks of 256 KiB are 6% smaller at high levels,
    but 30% slower, and make every consumer's buffer four times as large.
    """

    id = 3

    def __init__(self, level: int) -> None:
        from lz4 import frame

        super().__init__()
        self._frame, self._context = frame, frame.create_compression_context()
        settings = {
            "compression_level": 0 if level == LZ4_FAST_LEVEL else min(max(level, 3), 12),
            "block_size": frame.BLOCKSIZE_MAX64KB,
            "block_linked": False,
        }
        self._settings_of_one = settings | {"store_size": True}
        # Each block comes whole, which spares the library's own gathering.
        self._settings = settings | {"auto_flush": True}

    def whole(self, chunk: memoryview, /) -> bytes:
        """Returns the payload of a batch of one block, see ``Codec.whole``."""
        payload: bytes = self._frame.compress(chunk, **self._settings_of_one)
        return payload

    def _parts(self, blocks: Iterator[memoryview], raw_bytes: int) -> Iterator[bytes]:
        # Beginning a frame also abandons one that was left unfinished.
        yield self._frame.compress_begin(self._context, source_size=raw_bytes, **self._settings)
        yield from map(partial(self._frame.compress_chunk, self._context), blocks)
        yield self._frame.compress_flush(self._context)


class ZstdCodec:
    """One zstd frame with the content size, without a checksum (the batch has its CRC).

    The chunker takes the slabs one by one and gives pieces of 16 KiB, which are copied out. Not taken:

    - ``stream_reader().readinto``, which writes straight into the output buffers and so spares a copy: no
      faster (181 us both; 75 and 77 at level -5, 1,113 and 1,125 for 256 KiB). In python-zstandard 0.25 it
      never returns from an empty buffer while zstd holds a compressed block, and when abandoned within a slab
      it leaks the slab's view, so that the arena could not be unmapped. The chunker always has room of its
      own, so each of its steps takes input, gives output or ends; and it releases its input when dropped.
    - ``compressobj``: as fast, but takes a buffer of 128 KiB for every batch.
    - ``compress`` of a gathered batch: as fast, but needs that on top of a context that is no smaller.
    - cramjam, which makes a context for every batch: 20% slower, 8% for 256 KiB.

    zstd chooses its tables by the level (``zstd_levels``) and the size of each batch. No level's window is beyond
    2**27, which is the most that consumers accept.
    """

    id = 4

    def __init__(self, level: int, scratch_bytes: int) -> None:
        from zstandard import ZstdCompressor

        from slabpress.workers.zstd_levels import zstd_parameters

        self._compressor = ZstdCompressor(compression_params=zstd_parameters(level))
        self._largest = scratch_bytes
        self.whole_bytes = min(BLOCK_BYTES, scratch_bytes)
        self.whole = self._compressor.compress  # without a frame of ours

    def compress(self, chunks: Sequence[memoryview], raw_bytes: int, out: Sequence[memoryview]) -> int:
        """Compresses one batch, see ``Codec.compress``."""
        if raw_bytes > self._largest:  # the context would grow beyond its line in the plan
            raise ValueError(f"batch of {raw_bytes} bytes is larger than the {self._largest} planned")
        if len(chunks) == 1 and raw_bytes <= self.whole_bytes:
            return _fill_with(out, self.whole(chunks[0]), raw_bytes)
        return _fill(out, self._parts(chunks, raw_bytes), raw_bytes)

    def _parts(self, chunks: Sequence[memoryview], raw_bytes: int) -> Iterator[bytes]:
        # Making a chunker also abandons a frame that was left unfinished.
        chunker = self._compressor.chunker(size=raw_bytes, chunk_size=_ZSTD_PIECE_BYTES)
        for chunk in chunks:
            yield from chunker.compress(chunk)
        yield from chunker.finish()  # type: ignore[no-untyped-call]


def _fill(out: Sequence[memoryview], parts: Iterable[bytes | memoryview], raw_bytes: int) -> int:
    """Copies parts into the buffers as they are made, and stops as soon as compression does not pay."""
    buffers = iter(out)
    room = memoryview(b"")
    used = total = 0
    for part in parts:
        size = len(part)
        total += size
        if total >= raw_bytes:
            return NOT_SMALLER
        done = 0
        while done < size:
            if used == len(room):
                room, used = next(buffers), 0
            step = min(len(room) - used, size - done)
            room[used : used + step] = part if step == size else memoryview(part)[done : done + step]
            used += step
            done += step
    return total


def _fill_with(out: Sequence[memoryview], payload: bytes | memoryview, raw_bytes: int) -> int:
    """Copies a whole payload, which mostly fits into the first buffer."""
    size = len(payload)
    if size >= raw_bytes or size > len(out[0]):
        return _fill(out, (payload,), raw_bytes)
    out[0][:size] = payload
    return size


def _blocks(chunks: Sequence[memoryview], raw_bytes: int, gathered: memoryview) -> Iterator[memoryview]:
    """Joins chunks to full blocks (the last may be shorter), copying only what does not lie together."""
    pending, wanted, left = 0, min(BLOCK_BYTES, raw_bytes), raw_bytes
    for chunk in chunks:
        start, size = 0, len(chunk)
        while start < size:
            step = min(wanted - pending, size - start)
            part = chunk if step == size else chunk[start : start + step]
            start += step
            if step < wanted:
                gathered[pending : pending + step] = part
                part = gathered[:wanted]
            pending += step
            if pending == wanted:
                yield part
                left -= wanted
                pending, wanted = 0, min(BLOCK_BYTES, left)


def _unsigned_varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
