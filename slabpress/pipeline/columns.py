"""send_lines() and send_arrow(): records straight from memory that is laid out already, none of them an object."""

from __future__ import annotations

import sys
from mmap import mmap
from typing import Final, Protocol, TypeAlias

from slabpress._native import ArrowSource, LineSource
from slabpress.errors import RecordError, RecordTypeError
from slabpress.pipeline.accumulator import Accumulator
from slabpress.pipeline.many import Many
from slabpress.pipeline.many_delivery import ManyDelivery
from slabpress.pipeline.sender import Sender

LineBuffer: TypeAlias = bytes | bytearray | memoryview | mmap


class ArrowArrayData(Protocol):
    """What holds Arrow data as one array: an array, a record batch."""

    def __arrow_c_array__(self, requested_schema: object = None, /) -> tuple[object, object]:
        """Its schema and the array, as capsules."""


class ArrowStreamData(Protocol):
    """What holds Arrow data in chunks: a table, a data frame, a reader."""

    def __arrow_c_stream__(self, requested_schema: object = None, /) -> object:
        """The stream, as a capsule."""


ArrowData: TypeAlias = ArrowArrayData | ArrowStreamData

# Of the format strings of https://arrow.apache.org/docs/format/CDataInterface.html those that are used, and those that
# are met most often where they cannot be.
_BYTES: Final = {
    "n": "null",
    "z": "binary",
    "Z": "large_binary",
    "vz": "binary_view",
    "u": "string",
    "U": "large_string",
    "vu": "string_view",
}
_TIMES: Final = {"l": "int64", "tss": "timestamp[s]", "tsm": "timestamp[ms]", "tsu": "timestamp[us]"} | {
    "tsn": "timestamp[ns]"
}
_OTHERS: Final = {
    "b": "bool",
    "c": "int8",
    "C": "uint8",
    "s": "int16",
    "S": "uint16",
    "i": "int32",
    "I": "uint32",
    "L": "uint64",
    "e": "float16",
    "f": "float",
    "g": "double",
    "tdD": "date32",
    "tdm": "date64",
    "+s": "struct",
    "+l": "list",
    "+L": "large_list",
    "+m": "map",
    "+r": "run_end_encoded",
}
_BYTES_WANTED: Final = (
    "binary, large_binary, fixed_size_binary, binary_view, string, large_string or string_view: cast it"
)
_TIME_WANTED: Final = "int64 (milliseconds since the epoch) or timestamp: cast it"


def send_lines(
    sender: Sender,
    accumulator: Accumulator,
    topic_name: str,
    source: LineSource,
    partition: int | None,
    max_block_ms: int,
) -> ManyDelivery:
    """Append every line of a buffer; see ``Producer.send_lines``."""
    many = Many(sender, accumulator, topic_name, partition, source)
    try:
        many.run(max_block_ms)
        return many.delivery()
    except RecordError as error:
        error.byte_offset = source.offset
        raise
    finally:
        source.close()


def send_arrow(
    sender: Sender,
    accumulator: Accumulator,
    topic_name: str,
    source: ArrowSource,
    partition: int | None,
    max_block_ms: int,
) -> ManyDelivery:
    """Append every row of Arrow data; see ``Producer.send_arrow``.

    The next chunk is fetched without the producer's lock: that may take long, and run code that sends.
    """
    many = Many(sender, accumulator, topic_name, partition, source)
    try:
        sender.check_usable()
        while source.next_chunk():
            many.run(max_block_ms)
        return many.delivery()
    except RecordError as error:
        error.accepted = source.taken
        raise
    finally:
        source.close()


def arrow_source(data: ArrowData, value: str | None, key: str | None, timestamp_ms: str | int | None) -> ArrowSource:
    """The rows of Arrow data, their columns found and looked at.

    Raises:
        RecordTypeError: it is no Arrow data, has no such column, or a column's type is not one that can be sent.
        RecordValueError: the data was used up, or is broken.
    """
    if not hasattr(data, "__arrow_c_array__") and not hasattr(data, "__arrow_c_stream__"):
        raise RecordTypeError(
            f"data must be Arrow data, with __arrow_c_array__ or __arrow_c_stream__ (a table, a data frame, a record "
            f"batch, an array), not {type(data).__name__}"
        )
    of_all = timestamp_ms if not isinstance(timestamp_ms, str) else None
    source = ArrowSource(data, of_all, is_in_memory(data))
    try:
        of_each = timestamp_ms if isinstance(timestamp_ms, str) else None
        source.choose(
            _place("value", value, source, _BYTES, _BYTES_WANTED) if source.is_struct else _only(source, value),
            -1 if key is None else _place("key", key, source, _BYTES, _BYTES_WANTED),
            -1 if of_each is None else _place("timestamp_ms", of_each, source, _TIMES, _TIME_WANTED),
        )
    except BaseException:
        source.close()
        raise
    return source


def is_in_memory(data: object) -> bool:
    """Whether the data's stream hands out what lies in memory, and no more: a table, or a column, of pyarrow's own.

    Of no other stream is that known: a reader may read a file, or wait for a thread that needs the interpreter; nor of
    types derived from these, which may export what they like.
    """
    pyarrow = sys.modules.get("pyarrow")  # not imported: who has a table has done so
    return pyarrow is not None and type(data) in (
        getattr(pyarrow, "Table", None),
        getattr(pyarrow, "ChunkedArray", None),
    )


def _only(source: ArrowSource, value: str | None) -> int:
    """Data that is one column: it is the values, by whatever name it has."""
    if value is not None and value != source.fields[0][0]:
        raise RecordTypeError(f"data is one column, not a table with a column {value!r}: leave value out")
    _check_type("value", 0, source, _BYTES, _BYTES_WANTED)
    return 0


def _place(role: str, name: str | None, source: ArrowSource, accepted: dict[str, str], wanted: str) -> int:
    """Which column has a name."""
    names = [field[0] for field in source.fields]
    if not source.is_struct:
        raise RecordTypeError(f"{role}={name!r} names a column, but data is one column: pass a table or a record batch")
    if names.count(name or "") != 1 or name is None:
        there = f"data has {len(names)} columns: {', '.join(map(repr, names[:20]))}{', ...' if len(names) > 20 else ''}"
        if name is None:
            raise RecordTypeError(f"{role} must name the column of the records' {role}s; {there}")
        what = "is the name of no column" if name not in names else "is the name of more than one column"
        raise RecordTypeError(f"{role}={name!r} {what}; {there}")
    place = names.index(name)
    _check_type(role, place, source, accepted, wanted)
    return place


def _check_type(role: str, place: int, source: ArrowSource, accepted: dict[str, str], wanted: str) -> None:
    name, arrow_format, is_dictionary = source.fields[place]
    kind = arrow_format.partition(":")[0]
    column = f"{role} column {name!r}" if name else f"the {role} column"
    if is_dictionary:
        raise RecordTypeError(f"{column} is dictionary-encoded: pass it decoded (pyarrow: dictionary_decode(), cast())")
    if kind not in accepted and not (kind == "w" and accepted is _BYTES):
        shown = (_BYTES | _TIMES | _OTHERS).get(kind, f"{arrow_format!r}, as Arrow's C interface calls it")
        raise RecordTypeError(f"{column} is {shown}, and must be {wanted}")
