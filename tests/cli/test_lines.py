"""Splitting a stream into lines."""

from __future__ import annotations

import io
import os
import threading

from hypothesis import given
from hypothesis import strategies as st

from slabpress.cli.lines import CHUNK_BYTES, read_blocks, split_keys, strip_returns


class Pieces(io.RawIOBase):
    """A stream whose reads give these pieces; None is a read of a pipe that has nothing yet."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = [piece for piece in pieces if piece]

    def read(self, size: int = -1, /) -> bytes:
        assert size > 0
        return self._pieces.pop(0) if self._pieces else b""


def lines_of(pieces: list[bytes], longest: int = 1 << 20) -> tuple[dict[int, bytes], list[int]]:
    """Every line by its number, and the numbers of those that were refused."""
    found: dict[int, bytes] = {}
    refused: list[int] = []
    for block in read_blocks(Pieces(pieces), longest, lambda number, _: refused.append(number)):
        assert block.lines
        found.update(enumerate(block.lines, block.first))
    return found, refused


some_pieces = st.lists(st.lists(st.sampled_from([b"a", b"\n", b"\r", b"bc"]), max_size=6).map(b"".join), max_size=8)


def split(pieces: list[bytes]) -> dict[int, bytes]:
    lines = b"".join(pieces).split(b"\n")
    if not lines[-1]:
        lines.pop()  # the newline that ended the last line
    return dict(enumerate(lines, 1))


@given(some_pieces)
def test_only_a_newline_ends_a_line_wherever_the_reads_end(pieces: list[bytes]) -> None:
    assert lines_of(pieces) == (split(pieces), [])


@given(some_pieces, st.integers(0, 4))
def test_refused_lines_are_too_long_and_no_other_line_is_lost(pieces: list[bytes], longest: int) -> None:
    found, refused = lines_of(pieces, longest)
    expected = split(pieces)
    assert all(len(expected[number]) > longest for number in refused)
    assert found == {number: line for number, line in expected.items() if number not in refused}


def test_bytes_that_python_calls_line_ends_stay_in_the_line() -> None:
    assert lines_of([b"a\rb\x0bc\x0cd\x1ce\x85\n"])[0] == {1: b"a\rb\x0bc\x0cd\x1ce\x85"}


def test_a_line_that_is_too_long_is_not_kept() -> None:
    reasons: list[str] = []
    pieces = [b"x" * CHUNK_BYTES] * 40 + [b"\nshort"]
    blocks = list(read_blocks(Pieces(pieces), CHUNK_BYTES, lambda number, why: reasons.append(f"{number}: {why}")))
    assert [(block.first, block.lines) for block in blocks] == [(2, [b"short"])]
    assert len(reasons) == 1
    assert reasons[0].startswith(f"1: the line has {40 * CHUNK_BYTES} bytes, more than the {CHUNK_BYTES}")
    assert "max_request_size" in reasons[0]


def test_a_pipe_without_data_is_waited_for_even_if_it_does_not_block() -> None:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    first_seen = threading.Event()

    def write() -> None:
        os.write(writer, b"one\n")
        first_seen.wait(10)
        os.write(writer, b"two\n")
        os.close(writer)

    thread = threading.Thread(target=write)
    thread.start()
    with io.FileIO(reader) as stream:
        seen = []
        for block in read_blocks(stream, 100, lambda *_: None):
            seen += block.lines
            first_seen.set()
    thread.join()
    assert seen == [b"one", b"two"]


def test_keys_are_split_off_at_the_first_separator() -> None:
    keys, values, missing = split_keys([b"k::a::b", b"::v", b"k::", b"none", b"", b"::"], b"::")
    assert keys == [b"k", b"", b"k", None, None, b""]
    assert values == [b"a::b", b"v", b"", b"none", b"", b""]
    assert missing == [3, 4]


def test_one_return_is_stripped() -> None:
    assert strip_returns([b"a\r", b"a\r\r", b"\r", b"a\rb", b""]) == [b"a", b"a\r", b"", b"a\rb", b""]
