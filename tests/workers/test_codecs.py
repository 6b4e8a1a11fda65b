"""The workers' codecs: every batch comes back, by another decoder, whatever the blocks it was cut into."""

from __future__ import annotations

import gzip
import random
import subprocess
import sys
import tracemalloc
import warnings
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import cramjam
import lz4.frame
import pytest
import zstandard
from aiokafka.codec import gzip_decode, lz4_decode, snappy_decode, zstd_decode
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.data import json_lines
from slabpress.codec_memory import BLOCK_BYTES
from slabpress.workers.codecs import NOT_SMALLER, make_codec
from tests.support.reference_batch import (
    Record,
    decode_batch,
    decode_snappy_block,
    decompress,
    encode_batch,
    encode_records,
)
from tests.support.strategies import cut, record_lists, splits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from slabpress.workers.codecs import Codec

LARGEST = 400_000
GUARD = 64
GUARD_BYTE = 0xA5

EVERY_CODEC = [
    ("gzip", None),
    ("gzip", 1),
    ("gzip", 9),
    ("snappy", None),
    ("lz4", None),
    ("lz4", 1),
    ("lz4", 8),
    ("lz4", 17),
    ("zstd", None),
    ("zstd", -131072),
    ("zstd", -5),
    ("zstd", 0),
    ("zstd", 1),
    ("zstd", 12),
    ("zstd", 22),
]
USEFUL_CODECS = [choice for choice in EVERY_CODEC if choice != ("zstd", -131072)]
"""The lowest level of zstd skips so far ahead that it finds nothing even in zeros."""

CODECS = {choice: make_codec(*choice, LARGEST) for choice in EVERY_CODEC}
"""One object for all examples: each batch also shows that the one before left nothing behind."""

codec_choices = st.sampled_from(EVERY_CODEC)


def _gunzip(payload: bytes) -> bytes:
    assert bytes(cramjam.gzip.decompress(payload)) == gzip.decompress(payload)
    return gzip_decode(payload)  # type: ignore[no-any-return]


def _kafka_python_unsnappy(payload: bytes) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # kafka-python's own import uses a deprecated function
        from kafka.codec import snappy_decode as decode
    data: bytes = decode(payload)
    return data


def _unsnappy(payload: bytes) -> bytes:
    data: bytes = snappy_decode(payload)
    assert decode_snappy_block(payload) == data
    assert _kafka_python_unsnappy(payload) == data
    return data


def _unlz4(payload: bytes) -> bytes:
    data: bytes = lz4_decode(payload)
    assert lz4.frame.decompress(payload) == data
    return data


def _unzstd(payload: bytes) -> bytes:
    data: bytes = zstd_decode(payload)
    assert zstandard.ZstdDecompressor().decompress(payload) == data
    return data


DECODERS: dict[int, Callable[[bytes], bytes]] = {1: _gunzip, 2: _unsnappy, 3: _unlz4, 4: _unzstd}


class Output:
    """Output buffers in one stretch of memory, with a guard after each."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self._memory = memoryview(bytearray([GUARD_BYTE]) * (sum(lengths) + GUARD * len(lengths)))
        padded = cut(self._memory, [length + GUARD for length in lengths])
        self.buffers = [view[:length] for view, length in zip(padded, lengths, strict=True)]
        self._guards = [view[length:] for view, length in zip(padded, lengths, strict=True)]

    def content(self, length: int) -> bytes:
        return b"".join(self.buffers)[:length]

    def assert_guarded(self) -> None:
        assert all(guard == bytes([GUARD_BYTE]) * GUARD for guard in self._guards)


def words(length: int, seed: int = 1) -> bytes:
    """Text that compresses about as well as JSON."""
    source = random.Random(seed)
    vocabulary = [b'"user":%d,' % source.randrange(10**6) for _ in range(400)]
    return b"".join(source.choices(vocabulary, k=length // 10 + 1))[:length].ljust(length, b".")


def noise(length: int, seed: int = 1) -> bytes:
    """Bytes that no codec makes smaller."""
    return random.Random(seed).randbytes(length)


def compressed(codec: Codec, data: bytes, slab: int = BLOCK_BYTES, block: int = BLOCK_BYTES) -> bytes | None:
    """Compresses through slabs and output buffers of the given sizes; None if it does not pay."""
    view = memoryview(data)
    chunks = [view[start : start + slab] for start in range(0, len(data), slab)]
    output = Output([block] * -(-len(data) // block))
    length = codec.compress(chunks, len(data), output.buffers)
    output.assert_guarded()
    assert length == NOT_SMALLER or 0 < length < len(data)
    return None if length == NOT_SMALLER else output.content(length)


@st.composite
def raw_bytes(draw: st.DrawFn) -> bytes:
    """From one byte to several blocks, from empty words to noise, also mixed."""
    length = draw(
        st.integers(1, 300) | st.sampled_from([BLOCK_BYTES + d for d in (-1, 0, 1)]) | st.integers(1, 200_000)
    )
    seed = draw(st.integers(0, 9))
    share = draw(st.sampled_from([0, 0, 0.1, 0.9, 1]))
    noisy = int(length * share)
    return words(length - noisy, seed) + noise(noisy, seed)


@settings(deadline=None, max_examples=300)
@given(st.data(), codec_choices, raw_bytes())
def test_every_batch_comes_back_however_it_is_cut(
    data: st.DataObject, choice: tuple[str, int | None], raw: bytes
) -> None:
    chunks = cut(memoryview(raw), data.draw(splits(len(raw)), label="slabs"))
    spare = data.draw(st.integers(0, 70_000), label="spare room")
    output = Output(data.draw(splits(len(raw) + spare), label="output buffers"))
    codec = CODECS[choice]
    length = codec.compress(chunks, len(raw), output.buffers)
    output.assert_guarded()
    if length != NOT_SMALLER:
        assert 0 < length < len(raw)
        payload = output.content(length)
        assert decompress(codec.id, payload) == raw
        if len(raw) < 70_000:
            assert DECODERS[codec.id](payload) == raw


@pytest.mark.parametrize("choice", EVERY_CODEC)
@pytest.mark.parametrize("kind", [words, noise])
@pytest.mark.parametrize("room", [[0], [5, 0], [0, 0, 3000, 0]])
@pytest.mark.timeout(20)
def test_empty_output_buffers_are_passed_over(
    choice: tuple[str, int | None], kind: Callable[[int], bytes], room: list[int]
) -> None:
    # One byte more than a zstd block: zstd holds a whole block's output, and takes no input until it has room.
    # With an empty buffer, python-zstandard's stream_reader asked again and again, and never returned.
    raw = kind(128 * 1024 + 1)
    output = Output([*room, len(raw), 0])
    codec = CODECS[choice]
    length = codec.compress([memoryview(raw)], len(raw), output.buffers)
    output.assert_guarded()
    expected = compressed(codec, raw)
    assert (None if length == NOT_SMALLER else output.content(length)) == expected


@settings(deadline=None, max_examples=60)
@given(codec_choices, raw_bytes(), st.integers(1, 9000), st.integers(5000, 70_000))
def test_the_output_depends_on_the_bytes_alone(
    choice: tuple[str, int | None], raw: bytes, slab: int, block: int
) -> None:
    # A batch that a killed worker left behind is compressed again by another one.
    fresh = make_codec(*choice, LARGEST)
    assert compressed(CODECS[choice], raw, slab, block) == compressed(fresh, raw, len(raw), len(raw))


@settings(deadline=None, max_examples=100)
@given(codec_choices, raw_bytes())
def test_a_batch_in_one_piece_becomes_the_same_bytes_in_one_call(choice: tuple[str, int | None], raw: bytes) -> None:
    codec = CODECS[choice]
    assert codec.whole_bytes == BLOCK_BYTES
    raw = raw[: codec.whole_bytes]
    payload = bytes(codec.whole(memoryview(raw)))
    assert (payload if len(payload) < len(raw) else None) == compressed(codec, raw, slab=1000)


@settings(deadline=None, max_examples=60)
@given(codec_choices, record_lists())
def test_real_records_in_a_whole_batch(choice: tuple[str, int | None], records: list[Record]) -> None:
    codec = CODECS[choice]
    payload = compressed(codec, encode_records(records), slab=4096)
    if payload is not None:
        header, decoded = decode_batch(encode_batch(records, codec.id, payload))
        assert (header.codec_id, decoded) == (codec.id, records)


@pytest.mark.parametrize("choice", USEFUL_CODECS)
@pytest.mark.parametrize("length", [1, 2, 17, 4096, BLOCK_BYTES, BLOCK_BYTES + 1, 300_000])
def test_noise_is_left_alone_and_the_next_batch_is_not_harmed(choice: tuple[str, int | None], length: int) -> None:
    codec = CODECS[choice]
    good = words(100_000)
    before = compressed(codec, good)
    assert before is not None
    for block in (length, 4096, 1000):
        assert compressed(codec, noise(length), block=block) is None
        assert compressed(codec, good) == before


@pytest.mark.parametrize("choice", EVERY_CODEC)
def test_what_starts_well_and_does_not_pay_at_last(choice: tuple[str, int | None]) -> None:
    # Snappy's and lz4's first parts are smaller than what they stand for; the growth comes later.
    codec = CODECS[choice]
    for words_length in (20, 40, 60, 100, 200):
        raw = words(words_length) + noise(200_000)
        payload = compressed(codec, raw)
        if payload is not None:
            assert decompress(codec.id, payload) == raw


def test_none_leaves_everything_alone() -> None:
    codec = make_codec("none", None, LARGEST)
    assert codec.id == 0
    assert compressed(codec, words(1000)) is None
    assert bytes(codec.whole(memoryview(words(1000)))) == words(1000)


def test_ids_are_kafkas() -> None:
    ids = {name: make_codec(name, None, LARGEST).id for name in ("none", "gzip", "snappy", "lz4", "zstd")}
    assert ids == {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}


@pytest.mark.parametrize("choice", [("brotli", None), ("snappy", 1), ("lz4", 18), ("zstd", 23), ("gzip", 0)])
def test_unknown_codecs_and_levels_are_refused(choice: tuple[str, int | None]) -> None:
    with pytest.raises(ValueError, match=choice[0]):
        make_codec(*choice, LARGEST)


# --- what each format must look like ---


def payload_of(compression_type: str, level: int | None, raw: bytes) -> bytes:
    payload = compressed(CODECS[compression_type, level], raw)
    assert payload is not None
    return payload


@pytest.mark.parametrize("level", [None, 1, 8, 17])
@pytest.mark.parametrize("length", [1000, BLOCK_BYTES, 200_000])
def test_lz4_frames_are_what_kafka_reads(level: int | None, length: int) -> None:
    payload = payload_of("lz4", level, words(length))
    flags, descriptor = payload[4], payload[5]
    assert payload[:4] == b"\x04\x22\x4d\x18"
    assert flags >> 6 == 1, "version"
    assert flags & 0x20, "blocks are independent, also if there is only one"
    assert flags & 0x08, "the content size is there"
    assert not flags & 0x17, "no checksums, no reserved bit, no dictionary"
    assert descriptor == 0x40, "blocks of 64 KiB"
    assert int.from_bytes(payload[6:14], "little") == length
    assert payload[-4:] == bytes(4), "the end mark"


def test_lz4_levels_are_javas() -> None:
    raw = words(200_000)
    sizes = {level: len(payload_of("lz4", level, raw)) for level in (None, 1, 8, 17)}
    assert sizes[None] > sizes[1] > sizes[8] >= sizes[17], "9, the default, is the fast compressor"

    def of_level(level: int) -> bytes | None:
        return compressed(make_codec("lz4", level, LARGEST), raw)

    assert of_level(9) == of_level(9) != of_level(8)
    assert of_level(1) == of_level(2) == of_level(3) != of_level(4)
    assert of_level(11) != of_level(12) == of_level(13) == of_level(17)
    fast = lz4.frame.compress(raw, compression_level=0, block_linked=False, block_size=4)
    assert payload_of("lz4", None, raw) == fast


@pytest.mark.parametrize("level", [None, -5, 1, 12, 22])
@pytest.mark.parametrize("length", [1000, BLOCK_BYTES, 300_000])
def test_zstd_frames_are_what_consumers_read(level: int | None, length: int) -> None:
    payload = payload_of("zstd", level, words(length, 3))
    parameters = zstandard.get_frame_parameters(payload)
    assert parameters.content_size == length
    assert parameters.window_size <= 1 << 27
    assert not parameters.has_checksum
    assert parameters.dict_id == 0


def test_zstd_window_of_the_highest_level_is_bounded() -> None:
    # The window is in the frame's first bytes, so the frame need not be finished.
    compressor = zstandard.ZstdCompressor(level=22, write_checksum=False)
    chunker = compressor.chunker(size=1 << 31)
    head = b"".join([*chunker.compress(b"x"), *chunker.flush()])  # type: ignore[no-untyped-call]
    assert zstandard.get_frame_parameters(head).window_size == 1 << 27


def test_zstd_refuses_more_than_planned() -> None:
    codec = make_codec("zstd", None, 1000)
    assert codec.whole_bytes == 1000
    with pytest.raises(ValueError, match="1001 bytes is larger than the 1000 planned"):
        codec.compress([memoryview(bytes(1001))], 1001, [memoryview(bytearray(1001))])


@pytest.mark.parametrize("level", [None, 1, 9])
def test_gzip_is_one_member_without_a_clock(level: int | None) -> None:
    payload = payload_of("gzip", level, words(200_000))
    assert payload[:4] == b"\x1f\x8b\x08\x00"
    assert payload[4:8] == bytes(4), "no modification time: the same input gives the same bytes"
    assert decompress(1, payload) == words(200_000)


@pytest.mark.parametrize("level", range(1, 10))
def test_a_gzip_level_makes_of_records_at_most_a_twentieth_more_than_zlibs_own(level: int) -> None:
    raw = b"".join(json_lines(1300))
    payload = compressed(make_codec("gzip", level, LARGEST), raw)
    assert payload is not None
    assert len(payload) <= len(zlib.compress(raw, level, 31)) * 1.05
    if level == 6:
        assert payload == payload_of("gzip", None, raw)


@pytest.mark.parametrize("length", [100, BLOCK_BYTES - 1, BLOCK_BYTES, 4 * BLOCK_BYTES, 300_000])
@pytest.mark.parametrize("slab", [4096, 60_000, BLOCK_BYTES, 1 << 20])
def test_snappy_parts_are_the_very_block_of_one_call(length: int, slab: int) -> None:
    raw = words(length)
    assert compressed(CODECS["snappy", None], raw, slab) == bytes(cramjam.snappy.compress_raw(raw))


def test_snappy_is_never_taken_for_a_xerial_stream() -> None:
    # The length whose varint begins as xerial's header does; the next byte would have to be a copy.
    length = 0x02 | 0x53 << 7
    payload = payload_of("snappy", None, words(length))
    assert payload[:2] == b"\x82S"
    assert payload[2] & 3 == 0
    assert decompress(2, payload) == words(length)


# --- memory ---


@pytest.mark.parametrize("choice", EVERY_CODEC)
def test_nothing_grows_over_batches(choice: tuple[str, int | None]) -> None:
    codec = make_codec(*choice, LARGEST)
    batches = [memoryview(words(9000)), memoryview(noise(9000)), memoryview(words(5000) + noise(3000))]
    chunks = [cut(raw, [len(raw) // 2, 0, len(raw) - len(raw) // 2]) for raw in batches]
    out = [memoryview(bytearray(4096)) for _ in range(3)]

    def run(count: int) -> None:
        for index in range(count):
            parts = chunks[index % 3]
            codec.compress(parts, sum(map(len, parts)), out)

    tracemalloc.start()
    try:
        run(30)
        before = tracemalloc.get_traced_memory()[0]
        run(2000)
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert after - before < 2000 * 8  # less than the smallest object a batch


@pytest.mark.parametrize("choice", EVERY_CODEC)
def test_no_view_is_kept(choice: tuple[str, int | None]) -> None:
    # A worker must be able to unmap an arena.
    codec = CODECS[choice]
    for raw in (words(100_000), noise(100_000)):
        slab, block = bytearray(raw), bytearray(100_000)
        views = [memoryview(slab), memoryview(block)]
        codec.compress(views[:1], len(raw), views[1:])
        for view in views:
            view.release()
        slab.clear()  # a BufferError if a view is left
        block.clear()


@pytest.mark.parametrize("choice", EVERY_CODEC)
def test_no_view_is_leaked_if_it_does_not_pay(choice: tuple[str, int | None]) -> None:
    # The output is full before the last 5 bytes of the slab are taken; stream_reader leaked the slab's view.
    for length in (128 * 1024 + 5, 256 * 1024 + 5):
        slab = memoryview(noise(length))
        references = sys.getrefcount(slab)
        assert CODECS[choice].compress([slab], length, [memoryview(bytearray(length))]) == NOT_SMALLER
        assert sys.getrefcount(slab) == references


@pytest.mark.parametrize(
    ("compression_type", "libraries"),
    [("none", set()), ("gzip", {"zlib_ng"}), ("snappy", {"cramjam"}), ("lz4", {"lz4"}), ("zstd", {"zstandard"})],
)
def test_only_the_library_of_the_codec_is_imported(compression_type: str, libraries: set[str]) -> None:
    code = (
        "import sys; from slabpress.workers.codecs import make_codec;"
        f"make_codec({compression_type!r}, None, 9); print(*sys.modules)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert {"cramjam", "lz4", "zlib_ng", "zstandard"} & set(answer.stdout.split()) == libraries
