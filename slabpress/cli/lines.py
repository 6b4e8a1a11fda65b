"""Lines of a stream in blocks: bounded memory, whatever the stream holds."""

from __future__ import annotations

import io
import select
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

# A block is what one read gives: some thousand lines of a file, what there is of a pipe.
CHUNK_BYTES: Final = 256 * 1024


class Block(NamedTuple):
    """Consecutive lines, without their newlines, and the number of the first (from 1)."""

    first: int
    lines: list[bytes]


def read_blocks(stream: io.RawIOBase, longest: int, refuse: Callable[[int, str], None]) -> Iterator[Block]:
    r"""Every line of a stream. Only ``\n`` ends a line; a last line without one counts.

    Args:
        stream: an unbuffered binary stream, so that lines of a slow pipe are seen when they come.
        longest: a line of more bytes that goes over several reads is not kept in memory but refused; a shorter
            one, or one that a single read gave, is for the producer to judge.
        refuse: called with the number of such a line, and the reason.
    """
    number, held = 1, 0
    pieces: list[bytes] = []  # of the line that is not complete yet; empty once it is too long
    for chunk in _chunks(stream):
        lines = chunk.split(b"\n")
        rest = lines.pop()
        if lines:
            if held + len(lines[0]) > longest:
                refuse(number, _too_long(held + len(lines[0]), longest))
                number += 1
                del lines[0]
            elif pieces:
                lines[0] = b"".join((*pieces, lines[0]))
            pieces, held = [], 0
            if lines:
                yield Block(number, lines)
                number += len(lines)
        held += len(rest)
        if held > longest:
            pieces.clear()
        elif rest:
            pieces.append(rest)
    if held > longest:
        refuse(number, _too_long(held, longest))
    elif held:
        yield Block(number, [b"".join(pieces)])


def _chunks(stream: io.RawIOBase) -> Iterator[bytes]:
    while (chunk := stream.read(CHUNK_BYTES)) != b"":
        if chunk is None:  # somebody made the pipe non-blocking, and it has nothing yet
            select.select([stream], [], [])
        else:
            yield chunk


def _too_long(size: int, longest: int) -> str:
    return (
        f"the line has {size} bytes, more than the {longest} that a record can have: raise max_request_size "
        "(--option max_request_size=SIZE) and, if need be, buffer_memory"
    )


def strip_returns(lines: list[bytes]) -> list[bytes]:
    """The lines without one carriage return at their end."""
    return [line.removesuffix(b"\r") for line in lines]


def split_keys(lines: list[bytes], separator: bytes) -> tuple[list[bytes | None], list[bytes], list[int]]:
    """Keys, values, and the places of the lines that have no separator: there the key is None."""
    parts = [line.partition(separator) for line in lines]
    missing = [place for place, part in enumerate(parts) if not part[1]]
    keys: list[bytes | None] = [part[0] for part in parts]
    values = [part[2] for part in parts]
    for place in missing:
        keys[place], values[place] = None, lines[place]
    return keys, values, missing
