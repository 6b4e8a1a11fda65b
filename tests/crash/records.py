"""What each record is: made from its numbers alone, so that a reader can tell what every one must be.

A record belongs to a run of the job and to one of its threads, and has a number in it. Numbers come in blocks; a block
says how fast its records are sent, and whether they go one by one or in a ``send_many()`` call.
"""

from __future__ import annotations

import random
import struct
from typing import Final, NamedTuple

CODECS: Final = ("none", "gzip", "snappy", "lz4", "zstd")
THREADS: Final = 4
PARTITIONS: Final = 4
BLOCK: Final = 16
VALUE_BYTES_MIN: Final = 10
VALUE_BYTES_MAX: Final = 20_000

_START: Final = struct.Struct(">HBBI")  # run, thread, codec, number
_BLOCKS_IN_A_PHASE: Final = 32
_MASK: Final = (1 << 64) - 1
_KEYS: Final = tuple(b"key-%d" % number for number in range(64))
_NOISE: Final = random.Random(20_000).randbytes(4 << 20)
_TEXT: Final = b"".join(b'{"user":%d,"event":"click","at":%d}' % (n * 7919 % 997, n) for n in range(4000))
# Seconds between two blocks of a thread, by the phase; mostly little is sent, sometimes all that goes in.
_PAUSES_S: Final = (0.0, 0.02, 0.1, 0.2)


class Origin(NamedTuple):
    """Who sent a record, and which one it is."""

    run: int
    thread: int
    codec: int
    number: int


class Made(NamedTuple):
    """A record as it is sent."""

    codec: int
    key: bytes | None
    value: bytes
    headers: tuple[tuple[str, bytes | None], ...]


class Block(NamedTuple):
    """How a block of consecutive records is sent.

    Attributes:
        codec: that of all of them, or None where each has its own.
        pause_s: how long the thread waits after it.
    """

    codec: int | None
    pause_s: float


def _mix(*numbers: int) -> int:
    """64 bits that look random (splitmix64), the same for the same numbers."""
    mixed = 0
    for number in numbers:
        mixed = (mixed + number + 0x9E37_79B9_7F4A_7C15) & _MASK
        mixed = (mixed ^ mixed >> 30) * 0xBF58_476D_1CE4_E5B9 & _MASK
        mixed = (mixed ^ mixed >> 27) * 0x94D0_49BB_1331_11EB & _MASK
        mixed ^= mixed >> 31
    return mixed


def topic_of(codec: int) -> str:
    """The topic of everything that is sent with a codec: order holds within one producer."""
    return f"crash-{CODECS[codec]}"


def block_of(seed: int, run: int, thread: int, block: int) -> Block:
    """How a block is sent; its records are those from ``block * BLOCK`` on."""
    bits = _mix(seed, run, thread, block, 1)
    phase = _mix(seed, run, thread, block // _BLOCKS_IN_A_PHASE, 2)
    codec = (bits >> 8) % len(CODECS) if bits % 8 == 0 else None
    return Block(codec, _PAUSES_S[phase % len(_PAUSES_S)] * ((bits >> 16) % 1024 / 512))


def record_of(seed: int, run: int, thread: int, number: int) -> Made:
    """The record with a number, from 1."""
    bits = _mix(seed, run, thread, number)
    codec = block_of(seed, run, thread, number // BLOCK).codec
    if codec is None:
        codec = bits % len(CODECS)
    bits >>= 8
    key = None if bits & 1 else _KEYS[bits >> 1 & 63]
    bits >>= 8
    noisy, with_headers = bits & 3 == 0, bits >> 2 & 3 == 0
    bits >>= 4
    spread = VALUE_BYTES_MAX / VALUE_BYTES_MIN
    size = int(VALUE_BYTES_MIN * spread ** ((bits & 0xFFFF) / 0xFFFF))
    bits >>= 16
    pool = _NOISE if noisy else _TEXT
    place = bits % (len(pool) - VALUE_BYTES_MAX)
    value = _START.pack(run, thread, codec, number) + pool[place : place + size - _START.size]
    headers = (("n", b"%d" % number), ("n", None), ("größe", b"%d" % size)) if with_headers else ()
    return Made(codec, key, value, headers)


def origin_of(value: bytes | None) -> Origin | None:
    """Who sent a value, as it says itself; None if it says nothing."""
    if value is None or len(value) < _START.size:
        return None
    return Origin(*_START.unpack_from(value))
