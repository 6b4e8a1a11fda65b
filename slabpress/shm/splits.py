"""Batches that the broker found too large: sent again in pieces, within the arena and in order.

    IN_FLIGHT --too large--> OVERSIZE            the payload stays where it is, as the source of the pieces
    OVERSIZE --admission---> COMPRESSING         a worker decompresses the source and compresses the next piece of it
    COMPRESSING -> READY -> IN_FLIGHT            like any batch
    IN_FLIGHT --too large--> OVERSIZE            half as many records; a single record that is too large fails alone
    IN_FLIGHT --result-----> PARTIAL             the coordinator takes in the piece's result, and asks for the next
    PARTIAL ---------------> OVERSIZE
    IN_FLIGHT --last result-> DONE

A split batch keeps its descriptor, its place in the order and its records' sequence, and holds no more than its
source and one piece; so nothing grows with the number of pieces (law 1), and a successor of a process that died finds
everything in the descriptor. Not taken: a descriptor for each piece (there may be none free, and law 4 would need a
second order), and cutting in the network process (it would have to compress).

Between two pieces such a batch waits for the coordinator, unlike any other (law 9): its descriptor has room for one
result. A topic whose batches are too large gets smaller ones from then on (pipeline/accumulator.py).
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from slabpress._native import NONE
from slabpress.shm import layout as at
from slabpress.shm.arena import Arena

_SOURCE: Final = struct.Struct("<II")  # bytes, codec
_COURSE: Final = struct.Struct("<IIII")  # first, wanted, ceiling, refused bytes
_PIECE: Final = struct.Struct("<IqI")  # records, max timestamp, first
_ALL: Final = struct.Struct("<IIIIIIIIqI")
# What a whole batch has there.
UNSPLIT: Final = _ALL.pack(NONE, *(0,) * 9)
# Above any count of records.
_NO_CEILING: Final = 0xFFFF_FFFF


class Split(NamedTuple):
    """How far the splitting of a batch is.

    Attributes:
        source: first output buffer of the refused payload; NONE for a batch that is not split.
        source_bytes, source_codec: the payload's length and codec.
        first: the first record that has no result yet.
        wanted: how many records the next piece is to have.
        ceiling: how many were too many.
        refused_bytes: the length of the last payload that was too large.
        piece_records, piece_max_timestamp_ms, piece_first: what the piece in the output buffers has, and begins with.
    """

    source: int
    source_bytes: int
    source_codec: int
    first: int
    wanted: int
    ceiling: int
    refused_bytes: int
    piece_records: int
    piece_max_timestamp_ms: int
    piece_first: int = 0

    @property
    def is_split(self) -> bool:
        """Whether the batch is sent in pieces."""
        return self.source != NONE


_WHOLE: Final = Split(NONE, *(0,) * 9)


class Splits:
    """The splitting fields of one arena's descriptors."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._base = arena.layout.descriptors

    def _at(self, index: int, field: int) -> int:
        return self._base + index * at.DESCRIPTOR_BYTES + field

    def get(self, index: int) -> Split:
        """Read the fields; of a batch of an arena that never split any, those of a whole one."""
        if not self.any_ever():
            return _WHOLE
        return Split(*_ALL.unpack_from(self._arena.view, self._at(index, at.SPLIT_SOURCE_AT)))

    def any_ever(self) -> bool:
        """Whether a batch of this arena was ever too large: until then nobody looks for any."""
        return self._arena.memory.load_u64(at.SPLITS_AT) != 0

    def begin(self, index: int, source: int, source_bytes: int, source_codec: int, records: int) -> None:
        """The whole batch is too large (network process): its payload becomes the source. ``source`` is stored last."""
        view = self._arena.view
        _SOURCE.pack_into(view, self._at(index, at.SPLIT_SOURCE_BYTES_AT), source_bytes, source_codec)
        _COURSE.pack_into(view, self._at(index, at.SPLIT_FIRST_AT), 0, records // 2, records, source_bytes)
        # Its slabs were freed long ago and may be another batch's; they are its leader's share no more. In a direct
        # arena they are the source, and are freed as such.
        self._arena.memory.store_u32(self._at(index, at.FIRST_SLAB_AT), NONE)
        if not self._arena.is_direct:
            self._arena.memory.store_u32(self._at(index, at.SLAB_COUNT_AT), 0)
        # Before the source: a successor finds the batch by its source, and workers look for it only after this.
        self._arena.memory.add_u64(at.SPLITS_AT, 1)
        self._arena.memory.store_u32(self._at(index, at.SPLIT_SOURCE_AT), source)

    def halve(self, index: int, records: int, payload_bytes: int) -> None:
        """A piece of so many records and bytes is too large (network process)."""
        course = self.get(index).first, records // 2, records, payload_bytes
        _COURSE.pack_into(self._arena.view, self._at(index, at.SPLIT_FIRST_AT), *course)
        self._arena.memory.add_u64(at.SPLITS_AT, 1)

    def set_piece(self, index: int, records: int, max_timestamp_ms: int) -> None:
        """What the piece in the output buffers has, from the first record without a result on (worker)."""
        first = self.get(index).first
        _PIECE.pack_into(self._arena.view, self._at(index, at.PIECE_RECORDS_AT), records, max_timestamp_ms, first)

    def go_on(self, index: int, *, delivered: bool) -> None:
        """Ask for the piece after the one that has its result (coordinator, while PARTIAL).

        After a success the next piece is twice as large, as long as that stays below what was too large. After a
        single record that was, nothing is known of the others: they start from one and double.

        Doing it again changes nothing: whoever drains for a job that died may find it done.
        """
        split = self.get(index)
        records = split.piece_records
        if delivered:
            ceiling = split.ceiling
            wanted = 2 * records if 2 * records < ceiling else records
        else:
            ceiling, wanted = _NO_CEILING, records
        course = split.piece_first + records, wanted, ceiling, split.refused_bytes
        _COURSE.pack_into(self._arena.view, self._at(index, at.SPLIT_FIRST_AT), *course)

    def drop_source(self, index: int) -> None:
        """The batch has its result (network process); its source's buffers are about to be freed."""
        self._arena.memory.store_u32(self._at(index, at.SPLIT_SOURCE_AT), NONE)
