"""Frames out of bytes that come in any pieces."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slabpress.network.framing import SMALL_BYTES, Frames, OversizedError
from slabpress.network.wire import RESPONSE_MAX_BYTES, WireError

SIZES = st.integers(0, 40) | st.integers(SMALL_BYTES - 2, SMALL_BYTES + 2) | st.integers(0, 3 * SMALL_BYTES)


def drawn(frames: Frames) -> list[bytes]:
    """All frames that are complete."""
    found = []
    while (frame := frames.next()) is not None:
        found.append(frame)
    return found


@given(sizes=st.lists(SIZES, max_size=6), pieces=st.lists(st.integers(1, 2 * SMALL_BYTES), min_size=1, max_size=6))
def test_frames_come_out_as_they_went_in_however_they_are_cut(sizes: list[int], pieces: list[int]) -> None:
    rng = random.Random(len(sizes))
    sent = [rng.randbytes(size) for size in sizes]
    stream = memoryview(b"".join(struct.pack(">i", len(frame)) + frame for frame in sent))
    frames, found, turn = Frames(), [], 0
    while stream:
        count = pieces[turn % len(pieces)]
        # The buffer is used again for what comes next.
        buffer = bytearray(stream[:count])
        frames.feed(memoryview(buffer))
        buffer[:] = bytes(len(buffer))
        found += drawn(frames)
        stream, turn = stream[count:], turn + 1
    assert found == sent


def test_a_length_byte_by_byte() -> None:
    frames, found = Frames(), []
    for byte in struct.pack(">i", 3) + b"abc" + struct.pack(">i", 0) + struct.pack(">i", 1) + b"d":
        frames.feed(memoryview(bytes([byte])))
        found += drawn(frames)
    assert found == [b"abc", b"", b"d"]


def test_the_largest_frame_is_taken_and_one_byte_more_is_not() -> None:
    frames = Frames()
    frames.feed(memoryview(struct.pack(">ii", RESPONSE_MAX_BYTES, 7) + bytes(RESPONSE_MAX_BYTES - 4)))
    assert [len(frame) for frame in drawn(frames)] == [RESPONSE_MAX_BYTES]
    frames.feed(memoryview(struct.pack(">ii", RESPONSE_MAX_BYTES + 1, 7)))
    with pytest.raises(OversizedError) as error:
        frames.next()
    assert (error.value.length, error.value.correlation_id) == (RESPONSE_MAX_BYTES + 1, 7)


def test_a_negative_length_needs_no_more_than_itself() -> None:
    frames = Frames()
    frames.feed(memoryview(struct.pack(">i", -2)))
    with pytest.raises(WireError, match="a length of -2 bytes"):
        frames.next()


def test_what_was_cleared_does_not_come_back() -> None:
    frames = Frames()
    frames.feed(memoryview(struct.pack(">i", SMALL_BYTES + 1) + b"x"))
    assert frames.next() is None
    frames.clear()
    frames.feed(memoryview(struct.pack(">i", 1) + b"y"))
    assert drawn(frames) == [b"y"]
