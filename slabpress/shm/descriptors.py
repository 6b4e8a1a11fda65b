"""Reading and writing batch descriptors: what each role tells the next one about a batch.

A descriptor's fields are plain memory; the batch's state word publishes them (written before its release
store, read after its acquire load), so each group of fields is read and written as one struct.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from slabpress._native import NONE
from slabpress.shm import layout as at
from slabpress.shm.arena import Arena
from slabpress.shm.splits import UNSPLIT

_SEAL = struct.Struct("<Qqqq")  # commit, base timestamp, max timestamp, created
_OUTPUT = struct.Struct("<IIII")  # first output, output count, payload bytes, codec
# COMMIT, BASE_TIMESTAMP and MAX_TIMESTAMP; then the four of _OUTPUT.
_CONTENT = struct.Struct(f"<Qqq{at.FIRST_OUTPUT_AT - at.CREATED_AT}xIIII")
_ADMITTED = struct.Struct(f"<IIII{at.WORKER_AT - at.CODEC_AT - 4}xI")  # those four, the worker
_RESULT = struct.Struct("<iiIIqq")  # code, record index, retriable, text length, base offset, append time
_ORIGIN = struct.Struct("<II")  # partition index, first slab
_IDENTITY = struct.Struct("<qii")  # producer id, epoch, sequence

CODEC_NONE: Final = 0

_RECORDS_MASK = 0xFFFF_FFFF


def _blank() -> bytes:
    """How the descriptor of an empty batch begins: all that precedes the header, but for two fields."""
    fields = bytearray(at.BATCH_HEADER_AT)
    for field in (at.FIRST_SLAB_AT, at.FIRST_OUTPUT_AT):
        struct.pack_into("<I", fields, field, NONE)
    fields[at.SPLIT_SOURCE_AT : at.SPLIT_SOURCE_AT + len(UNSPLIT)] = UNSPLIT
    _IDENTITY.pack_into(fields, at.BATCH_PRODUCER_ID_AT, -1, -1, -1)
    return bytes(fields)


BLANK: Final = _blank()


class Sealed(NamedTuple):
    """What the coordinator said of a batch when it sealed it."""

    records: int
    raw_bytes: int
    base_timestamp_ms: int
    max_timestamp_ms: int
    created_ns: int
    partition_index: int
    first_slab: int


class Output(NamedTuple):
    """What the worker made of it: where its bytes are, how many, and in which codec."""

    first_output: int
    output_count: int
    payload_bytes: int
    codec: int


class Content(NamedTuple):
    """``Sealed`` and ``Output`` of a batch that is READY, as far as its sending needs them, read at once."""

    records: int
    base_timestamp_ms: int
    max_timestamp_ms: int
    output: Output


class Result(NamedTuple):
    """What the broker (or a deadline) made of it. ``code`` 0 is success; see slabpress/results.py."""

    code: int
    record_index: int
    base_offset: int
    append_time_ms: int
    retriable: bool
    text: str


class Descriptors:
    """The descriptor table of one arena."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._base = arena.layout.descriptors

    def _at(self, index: int, field: int) -> int:
        return self._base + index * at.DESCRIPTOR_BYTES + field

    def open(self, index: int, partition_index: int, created_ns: int) -> None:
        """Prepare a descriptor for an empty batch, as the coordinator's ``OpeningPoint`` does."""
        view = self._arena.view
        view[self._at(index, 0) : self._at(index, len(BLANK))] = BLANK
        struct.pack_into("<q", view, self._at(index, at.CREATED_AT), created_ns)
        struct.pack_into("<I", view, self._at(index, at.PARTITION_INDEX_AT), partition_index)

    def set_seal_number(self, index: int, number: int) -> None:
        """Give the batch its place in the order, from 1 (coordinator, before SEALED)."""
        self._arena.memory.store_u64(self._at(index, at.SEAL_NUMBER_AT), number)

    def seal_number(self, index: int) -> int:
        """The batch's place in the order; 0 before it is sealed."""
        return self._arena.memory.load_u64(self._at(index, at.SEAL_NUMBER_AT))

    def sealed(self, index: int) -> Sealed:
        """The coordinator's side of a descriptor."""
        view = self._arena.view
        commit, base, newest, created = _SEAL.unpack_from(view, self._at(index, at.COMMIT_AT))
        partition, slab = _ORIGIN.unpack_from(view, self._at(index, at.PARTITION_INDEX_AT))
        return Sealed(commit & _RECORDS_MASK, commit >> 32, base, newest, created, partition, slab)

    def set_output(self, index: int, output: tuple[int, int, int, int]) -> None:
        """Record where the batch's compressed bytes are (admission, then the worker): the fields of ``Output``."""
        _OUTPUT.pack_into(self._arena.view, self._at(index, at.FIRST_OUTPUT_AT), *output)

    def set_slabs_as_output(self, index: int) -> None:
        """Record that the batch is sent from its slabs, as they are (direct arena; before READY)."""
        memory, sealed = self._arena.memory, self.sealed(index)
        count = memory.load_u32(self._at(index, at.SLAB_COUNT_AT))
        self.set_output(index, Output(sealed.first_slab, count, sealed.raw_bytes, CODEC_NONE))

    def output(self, index: int) -> Output:
        """The worker's side of a descriptor."""
        return Output(*_OUTPUT.unpack_from(self._arena.view, self._at(index, at.FIRST_OUTPUT_AT)))

    def content(self, index: int) -> Content:
        """What a READY batch holds, and where."""
        commit, base, newest, *output = _CONTENT.unpack_from(self._arena.view, self._at(index, at.COMMIT_AT))
        return Content(commit & _RECORDS_MASK, base, newest, Output._make(output))

    def set_admitted(self, index: int, first_output: int, output_count: int, worker: int) -> None:
        """Record who compresses the batch, and into which output buffers (admission lock held)."""
        view, start = self._arena.view, self._base + index * at.DESCRIPTOR_BYTES
        _ADMITTED.pack_into(view, start + at.FIRST_OUTPUT_AT, first_output, output_count, 0, 0, worker)

    def set_worker(self, index: int, worker: int) -> None:
        """Record who compresses the batch (admission lock held)."""
        self._arena.memory.store_u32(self._at(index, at.WORKER_AT), worker)

    def worker(self, index: int) -> int:
        """Who compresses the batch, or ORPHAN."""
        return self._arena.memory.load_u32(self._at(index, at.WORKER_AT))

    def deaths(self, index: int) -> int:
        """How many workers died while they compressed the batch."""
        return self._arena.memory.load_u32(self._at(index, at.DEATHS_AT))

    def count_death(self, index: int) -> None:
        """A worker died while it compressed the batch (supervisor, admission lock held)."""
        self._arena.memory.store_u32(self._at(index, at.DEATHS_AT), self.deaths(index) + 1)

    def attempts(self, index: int) -> int:
        """How often the batch was sent."""
        return self._arena.memory.load_u32(self._at(index, at.ATTEMPTS_AT))

    def set_attempts(self, index: int, attempts: int) -> None:
        """Record how often the batch was sent (network process, before the send)."""
        self._arena.memory.store_u32(self._at(index, at.ATTEMPTS_AT), attempts)

    def header(self, index: int) -> memoryview:
        """The 61 bytes of the batch header, writable by the network process; drop the view before close."""
        start = self._at(index, at.BATCH_HEADER_AT)
        return self._arena.view[start : start + at.BATCH_HEADER_BYTES]

    def set_result(self, index: int, result: Result) -> None:
        """Record the outcome, its text cut to what fits (network process, before DONE)."""
        text = result.text.encode()[: at.TEXT_BYTES]
        view = self._arena.view
        _RESULT.pack_into(
            view,
            self._at(index, at.RESULT_CODE_AT),
            result.code,
            result.record_index,
            int(result.retriable),
            len(text),
            result.base_offset,
            result.append_time_ms,
        )
        start = self._at(index, at.TEXT_AT)
        view[start : start + len(text)] = text

    def result(self, index: int) -> Result:
        """The outcome of a DONE batch."""
        view = self._arena.view
        code, record, retriable, length, offset, append_time = _RESULT.unpack_from(
            view, self._at(index, at.RESULT_CODE_AT)
        )
        text = ""
        if length:  # of a batch that was delivered there is none
            start = self._at(index, at.TEXT_AT)
            text = bytes(view[start : start + min(length, at.TEXT_BYTES)]).decode(errors="ignore")
        return Result(code, record, offset, append_time, bool(retriable), text)
