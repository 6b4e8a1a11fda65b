"""Decompression for a split: whatever the codecs write comes back; what is hostile is refused, and takes no memory."""

from __future__ import annotations

import gzip
import pickle
import random
import subprocess
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import cramjam
import lz4.frame
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from slabpress.codec_memory import split_workspace_bytes
from slabpress.workers.codecs import NOT_SMALLER, make_codec
from slabpress.workers.decoders import decompress, scratch
from tests.support.strategies import cut, splits

if TYPE_CHECKING:
    pass

KIB = 1024
ROOT = Path(__file__).parents[2]
LARGEST = 400_000

CODEC_IDS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
EVERY_LEVEL = [
    ("snappy", None),
    *(("gzip", level) for level in (None, *range(1, 10))),
    *(("lz4", level) for level in (None, *range(1, 18))),
    *(("zstd", level) for level in (None, -131072, -50, -5, *range(23))),
]
CODECS = {choice: make_codec(*choice, LARGEST) for choice in EVERY_LEVEL}


def words(length: int, seed: int = 1) -> bytes:
    """Text that compresses about as well as JSON."""
    source = random.Random(seed)
    vocabulary = [b'"user":%d,' % source.randrange(10**6) for _ in range(400)]
    return b"".join(source.choices(vocabulary, k=length // 10 + 1))[:length].ljust(length, b".")


def compressed(choice: tuple[str, int | None], raw: bytes) -> bytes | None:
    """What a worker sends; None if that is the batch as it is."""
    out = memoryview(bytearray(len(raw)))
    length = CODECS[choice].compress([memoryview(raw)], len(raw), [out])
    return None if length == NOT_SMALLER else bytes(out[:length])


def in_pieces(payload: bytes, length: int) -> list[memoryview]:
    return [memoryview(payload)[start : start + length] for start in range(0, len(payload), length)]


# --- everything comes back ---


@pytest.mark.parametrize("choice", EVERY_LEVEL)
@pytest.mark.parametrize("length", [100, 64 * KIB, 64 * KIB + 1, 300_000])
def test_every_codec_and_level_comes_back(choice: tuple[str, int | None], length: int) -> None:
    for raw in (words(length), words(length // 2) + random.Random(1).randbytes(length - length // 2), bytes(length)):
        payload = compressed(choice, raw)
        if payload is not None:
            for step in (16 * KIB, len(payload)):
                assert decompress(CODECS[choice].id, in_pieces(payload, step), length) == raw


@given(st.data(), st.sampled_from(EVERY_LEVEL), st.integers(1, 200_000), st.integers(0, 9))
def test_pieces_of_any_size(data: st.DataObject, choice: tuple[str, int | None], length: int, seed: int) -> None:
    raw = words(length, seed)
    payload = compressed(choice, raw)
    codec = 0 if payload is None else CODECS[choice].id
    payload = raw if payload is None else payload
    pieces = cut(memoryview(payload), data.draw(splits(len(payload)), label="pieces"))
    assert decompress(codec, pieces, length) == raw


@pytest.mark.parametrize("kind", ["gzip", "snappy", "lz4", "zstd"])
@pytest.mark.parametrize("step", [1, 3, 7, 1000])
def test_odd_pieces(kind: str, step: int) -> None:
    raw = words(20_000)
    payload = compressed((kind, None), raw)
    assert payload is not None
    assert decompress(CODEC_IDS[kind], in_pieces(payload, step), len(raw)) == raw


# The most that a streaming decoder gives at once is 32 KiB: none, one byte and everything of it left over.
@pytest.mark.parametrize("kind", ["gzip", "lz4"])
@pytest.mark.parametrize("length", [32 * KIB * whole + odd for whole in (1, 2, 3) for odd in (-1, 0, 1)])
@pytest.mark.parametrize("step", [1, 100, 100_000])
def test_results_at_the_edge_of_a_part(kind: str, length: int, step: int) -> None:
    for raw in (bytes(length), words(length)):
        payload = compressed((kind, None), raw)
        assert payload is not None
        assert decompress(CODEC_IDS[kind], in_pieces(payload, step), length) == raw


def test_what_is_not_compressed_is_copied() -> None:
    raw = words(1000)
    assert decompress(0, in_pieces(raw, 7), 1000) == raw
    assert decompress(0, [], 0) == b""


@pytest.mark.parametrize("kind", ["none", "gzip", "snappy", "lz4", "zstd"])
def test_no_view_is_kept(kind: str) -> None:
    # A worker must be able to unmap an arena, also after an error.
    raw = words(100_000)
    payload = raw if kind == "none" else compressed((kind, None), raw)
    assert payload is not None
    for length in (len(raw), len(raw) - 1):
        memory = bytearray(payload)
        pieces = cut(memoryview(memory), [5000, len(payload) - 5000])
        try:
            assert decompress(CODEC_IDS[kind], pieces, length) == raw
        except ValueError:
            assert length != len(raw)
        for piece in pieces:
            piece.release()
        memory.clear()  # a BufferError if a view is left


# --- what is not right is refused ---


@pytest.mark.parametrize("kind", ["none", "gzip", "snappy", "lz4", "zstd"])
@pytest.mark.parametrize("wrong", [-40_000, -32 * KIB, -1, 1, 32 * KIB, 100_000])
def test_a_wrong_size_is_refused_with_the_numbers(kind: str, wrong: int) -> None:
    raw = words(100_000)
    payload = raw if kind == "none" else compressed((kind, None), raw)
    assert payload is not None
    with pytest.raises(ValueError, match=rf"^{kind}: {100_000 + wrong} bytes expected, .*\d+ found$") as error:
        decompress(CODEC_IDS[kind], in_pieces(payload, 5000), 100_000 + wrong)
    if kind != "gzip" or wrong > 0:  # gzip says nowhere in front how much it will be
        assert str(error.value).endswith(" 100000 found")


@pytest.mark.parametrize("kind", ["gzip", "snappy", "lz4", "zstd"])
@pytest.mark.parametrize("step", [1000, 1 << 20])
def test_cut_off_or_followed_by_more(kind: str, step: int) -> None:
    raw = words(50_000)
    payload = compressed((kind, None), raw)
    assert payload is not None
    lengths = [*range(20), len(payload) // 2, *range(len(payload) - 10, len(payload))]
    for bad in (*(payload[:length] for length in lengths), payload + b"\0", payload + payload):
        with pytest.raises(ValueError, match=rf"^{kind}: .*50000"):
            decompress(CODEC_IDS[kind], in_pieces(bad, step), 50_000)
    with pytest.raises(ValueError, match=rf"^{kind}: "):
        decompress(CODEC_IDS[kind], [], 50_000)


@pytest.mark.parametrize("kind", ["none", "gzip", "snappy", "lz4", "zstd"])
@pytest.mark.parametrize("expected", [-1, 0, 1, 1000])
def test_a_payload_larger_than_its_result_is_refused(kind: str, expected: int) -> None:
    payload = words(100_000) if kind == "none" else compressed((kind, None), words(100_000))
    assert payload is not None
    with pytest.raises(ValueError, match=rf"^{kind}: {expected} bytes expected, .*\d+ found"):
        decompress(CODEC_IDS[kind], in_pieces(payload, 5000), expected)


def test_zlibs_own_format_is_not_gzip() -> None:
    with pytest.raises(ValueError, match=r"^gzip: damaged, 1000 bytes expected"):
        decompress(1, [memoryview(zlib.compress(bytes(1000)))], 1000)


@pytest.mark.parametrize("codec", [-1, 5, 7])
def test_unknown_codecs_are_refused(codec: int) -> None:
    with pytest.raises(ValueError, match=f"^codec {codec} is not one of 0, 1, 2, 3, 4$"):
        decompress(codec, [], 0)


@given(st.sampled_from(["gzip", "snappy", "lz4", "zstd"]), st.integers(1, 5000), st.randoms())
def test_damaged_payloads_are_errors_or_results_of_the_right_size(
    kind: str, length: int, source: random.Random
) -> None:
    payload = bytearray(compressed((kind, None), words(length)) or b"?")
    for _ in range(source.randint(1, 3)):
        place = source.randrange(len(payload))
        payload[place : place + source.randrange(3)] = source.randbytes(source.randrange(3))
        payload += b"\0" * (not payload)
    pieces = in_pieces(bytes(payload), source.choice([1, 100, 1 << 20]))
    try:
        assert len(decompress(CODEC_IDS[kind], pieces, length)) == length
    except ValueError as error:
        assert str(error).startswith(kind)  # noqa: PT017 - most examples do not raise


@given(st.sampled_from([1, 2, 3, 4]), st.binary(max_size=100), st.integers(0, 1000))
def test_any_bytes(codec: int, payload: bytes, raw_bytes: int) -> None:
    start = {1: b"\x1f\x8b\x08\0\0\0\0\0\0\xff", 2: b"", 3: b"\x04\x22\x4d\x18", 4: b"\x28\xb5\x2f\xfd"}[codec]
    for data in (payload, start + payload):
        try:
            assert len(decompress(codec, [memoryview(data)], raw_bytes)) == raw_bytes
        except ValueError:
            continue


# --- memory ---

# What a stream that claims or holds far more may take: a few times what is expected, and fixed contexts.
EXPECTED = 100_000
ALLOWED = 3 * EXPECTED + 512 * KIB
BOMB_BYTES = 32 << 20

_TAKE = """
import mmap, pathlib, pickle, sys
from slabpress.workers.decoders import decompress
def taken(name):
    lines = pathlib.Path("/proc/self/status").read_text().split("\\n")
    return next(int(line.split()[1]) << 10 for line in lines if name in line)
filled = []
for codec, payload, expected in pickle.load(sys.stdin.buffer):
    filled.append(mmap.mmap(-1, max(1, taken("VmPeak") - taken("VmSize"))))  # what was given back hides nothing
    before = taken("VmPeak")  # counts what is only reserved, too
    try:
        decompress(codec, [memoryview(payload)], expected)
        print(taken("VmPeak") - before, "came back")
    except ValueError as error:
        print(taken("VmPeak") - before, error)
"""


def zstd_frame(claimed: int, window_log: int, block: bytes) -> bytes:
    """A frame cut off after one raw block, which says what it likes about its content's size and its window."""
    head = b"\x28\xb5\x2f\xfd" + b"\xc0" + bytes([(window_log - 10) << 3]) + claimed.to_bytes(8, "little")
    return head + (len(block) << 3).to_bytes(3, "little") + block


def lz4_frame(claimed: int, raw: bytes, block_size: int = lz4.frame.BLOCKSIZE_MAX64KB) -> bytes:
    """A frame whose content size is ``claimed``; a wrong checksum of the header would be found first."""
    context = lz4.frame.create_compression_context()
    begin = lz4.frame.compress_begin(context, source_size=claimed, block_size=block_size, block_linked=False)
    blocks = lz4.frame.compress_chunk(context, raw)
    return bytes(begin + blocks)


def hostile_payloads() -> list[tuple[int, bytes]]:
    bomb = bytes(BOMB_BYTES)
    # Snappy makes nothing smaller than a twentieth, and a payload larger than its result is refused unread.
    snappy_bomb = bytes(cramjam.snappy.compress_raw(bytes(1 << 20)))
    assert snappy_bomb[:3] == b"\x80\x80\x40"
    assert len(snappy_bomb) < EXPECTED
    zstd_bomb = zstandard.ZstdCompressor().compress(bomb)
    at_4 = zstd_bomb.index(BOMB_BYTES.to_bytes(4, "little"))
    return [
        (1, gzip.compress(bomb)),
        (2, b"\xff\xff\xff\xff\x0f" + b"\0x"),
        (2, snappy_bomb),
        (2, b"\xa0\x8d\x06" + snappy_bomb[3:]),  # says EXPECTED
        (2, b"\xa0\x8d\x06" + bytes(BOMB_BYTES)),
        (3, lz4.frame.compress(bomb, block_size=lz4.frame.BLOCKSIZE_MAX64KB)),
        (3, lz4.frame.compress(bomb, block_size=lz4.frame.BLOCKSIZE_MAX64KB, store_size=False)),
        (3, lz4_frame(EXPECTED, bomb)),
        (3, lz4_frame(EXPECTED, bomb, lz4.frame.BLOCKSIZE_MAX4MB)),
        (3, lz4_frame(1 << 40, b"")),
        (3, b"\x50\x2a\x4d\x18" + EXPECTED.to_bytes(4, "little") + bytes(EXPECTED - 8)),  # a frame to be skipped
        (4, zstd_bomb),
        (4, zstd_frame(EXPECTED, 17, bytes(1 << 20))),
        (4, zstd_bomb[:at_4] + EXPECTED.to_bytes(4, "little") + zstd_bomb[at_4 + 4 :]),
        (4, zstandard.ZstdCompressor(write_content_size=False).compress(bomb)),
        (4, zstd_frame(1 << 40, 17, b"x" * 1000)),
        (4, zstd_frame(EXPECTED, 27, b"x" * 1000)),  # zstd sets up a window, no larger than the content
        (4, zstd_frame(EXPECTED, 41, b"x" * 1000)),
        (4, b"\x50\x2a\x4d\x18" + EXPECTED.to_bytes(4, "little") + bytes(EXPECTED - 8)),
    ]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_what_a_stream_claims_is_not_believed() -> None:
    raw = words(1000)
    good = [(CODEC_IDS[kind], compressed((kind, None), raw), 1000) for kind in ("gzip", "snappy", "lz4", "zstd")]
    bad = [(codec, payload, EXPECTED) for codec, payload in hostile_payloads()]
    bomb = [(1, gzip.compress(bytes(BOMB_BYTES)), BOMB_BYTES)]
    answer = subprocess.run(
        [sys.executable, "-c", _TAKE], input=pickle.dumps(good + bad + bomb), capture_output=True, check=True, cwd=ROOT
    )
    lines = [line.split(maxsplit=1) for line in answer.stdout.decode().splitlines()]
    assert [text for _, text in lines[: len(good)]] == ["came back"] * len(good)
    for taken, text in lines[len(good) : -1]:
        assert str(EXPECTED) in text or "blocks of" in text
        assert int(taken) <= ALLOWED, text
    taken, text = lines[-1]
    assert text == "came back"
    assert int(taken) >= BOMB_BYTES, "this is how a bomb is seen"


# Run in a process of its own: there the resident set moves for no other reason. What a worker does is done in full:
# batches of many sizes are decompressed, and cut in two and into all but one and one.
_MEASURE = """
import ctypes, pathlib, random, sys
from slabpress._native import cut_records
from slabpress.workers.codecs import make_codec
from slabpress.workers.decoders import decompress, scratch
from tests.support.reference_batch import encode_record
kind, largest = sys.argv[1], int(sys.argv[2])
source = random.Random(1)

def batch(size, noisy):
    records, length = [], 0
    while True:
        body = source.randbytes(int(900 * noisy)).ljust(source.randrange(900, 1000), b".")
        records.append(encode_record(len(records), 0, None, body))
        length += len(records[-1])
        if length > size:
            return b"".join(records[:-1]), len(records) - 1

def views(buffers, length):
    return [buffer[: max(0, length - 16384 * place)] for place, buffer in enumerate(buffers)]

codec = make_codec(kind, None, largest)
batches = []
for size in [4096, largest, largest, *(source.randrange(largest // 8, largest) for _ in range(20))]:
    raw, count = batch(size, 0.93 if size == largest else source.random())
    out = [memoryview(bytearray(16384)) for _ in range(-(-len(raw) // 16384))]
    payload = codec.compress([memoryview(raw)], len(raw), out)
    batches.append((codec.id, views(out, payload), len(raw), count))
    assert payload > 0
del raw, out

def split(codec_id, pieces, raw_bytes, count):
    raw = decompress(codec_id, pieces, raw_bytes)
    for first, length in ((0, count // 2), (count // 2, count), (0, 1), (1, count)):
        out = scratch(raw_bytes)
        written, _, records = cut_records(raw, first, length, 0, out)
        assert records == min(length, count - first)
        del out

split(*batches[0])  # everything lazy is loaded
trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
trim and trim(0)
status = pathlib.Path("/proc/self/status")
resident = lambda name: next(int(line.split()[1]) for line in status.read_text().split("\\n") if name in line)
pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
before = resident("VmRSS")
for round in range(20):
    source.shuffle(batches)
    for each in batches:
        split(*each)
    if round == 4:
        early = resident("VmHWM") - before
print(early, resident("VmHWM") - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("kind", ["gzip", "snappy", "lz4", "zstd"])
@pytest.mark.parametrize("largest", [64 * KIB, 1 << 20, 3 << 20])
def test_a_process_takes_what_is_planned_for_a_split(kind: str, largest: int) -> None:
    answer = subprocess.run(
        [sys.executable, "-c", _MEASURE, kind, str(largest)], capture_output=True, check=True, text=True, cwd=ROOT
    )
    early, peak = (int(word) * KIB for word in answer.stdout.split())
    planned = split_workspace_bytes(largest)
    assert peak <= planned
    assert peak <= early + 128 * KIB + largest // 8, "it does not grow with the batches split"
    if largest >= 1 << 20:
        assert planned <= 2 * peak


@pytest.mark.parametrize("kind", ["gzip", "snappy", "lz4", "zstd"])
def test_errors_leave_nothing_behind(kind: str) -> None:
    raw = words(100_000)
    payload = bytearray(compressed((kind, None), raw) or b"")
    payload[len(payload) // 2 :] = b"\xff" * (len(payload) - len(payload) // 2)
    status = Path("/proc/self/status")

    def taken() -> int:
        return next(int(line.split()[1]) for line in status.read_text().split("\n") if "VmData" in line)

    def fail(times: int) -> None:
        for _ in range(times):
            with pytest.raises(ValueError, match=kind):
                decompress(CODEC_IDS[kind], [memoryview(payload)], len(raw))

    fail(20)
    before = taken()
    fail(100)
    assert taken() - before < 100 * 16


@pytest.mark.parametrize("length", [0, 1, 5000])
def test_scratch_is_zeros_to_write_on(length: int) -> None:
    view = scratch(length)
    assert view == bytes(length)
    view[:] = b"x" * length
    assert view == b"x" * length


@pytest.mark.parametrize(
    ("codec", "libraries"), [(0, set()), (1, set()), (2, {"cramjam"}), (3, {"lz4"}), (4, {"zstandard"})]
)
def test_only_the_library_of_the_codec_is_imported(codec: int, libraries: set[str]) -> None:
    code = (
        "import contextlib, sys; from slabpress.workers.decoders import decompress\n"
        f"with contextlib.suppress(ValueError): decompress({codec}, [memoryview(b'x')], 1)\n"
        "print(*sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True, cwd=ROOT)
    assert {"cramjam", "lz4", "zstandard"} & set(answer.stdout.split()) == libraries
