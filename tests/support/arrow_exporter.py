"""Arrow data by hand: C structs made with ctypes that count how often each of them is released.

It follows https://arrow.apache.org/docs/format/CDataInterface.html and its PyCapsule interface, and can be told to
break them. Its one column is ``binary`` unless a test says otherwise.
"""

from __future__ import annotations

import ctypes
import struct
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

_VOID_P = ctypes.c_void_p
_I64 = ctypes.c_int64
_OF_ONE = ctypes.CFUNCTYPE(None, _VOID_P)
_GET = ctypes.CFUNCTYPE(ctypes.c_int, _VOID_P, _VOID_P)
_ERROR = ctypes.CFUNCTYPE(_VOID_P, _VOID_P)
_DESTRUCTOR = ctypes.PYFUNCTYPE(None, _VOID_P)

_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype, _new_capsule.argtypes = ctypes.py_object, (_VOID_P, ctypes.c_char_p, _VOID_P)
_capsule_pointer = ctypes.PYFUNCTYPE(_VOID_P, _VOID_P, ctypes.c_char_p)(("PyCapsule_GetPointer", ctypes.pythonapi))
_capsule_name = ctypes.PYFUNCTYPE(ctypes.c_char_p, _VOID_P)(("PyCapsule_GetName", ctypes.pythonapi))

EIO = 5
NO_ARRAY = b"no_arrow_array"


class _Schema(ctypes.Structure):
    _fields_: ClassVar = [
        ("format", ctypes.c_char_p),
        ("name", ctypes.c_char_p),
        ("metadata", ctypes.c_char_p),
        ("flags", _I64),
        ("n_children", _I64),
        ("children", _VOID_P),
        ("dictionary", _VOID_P),
        ("release", _VOID_P),
        ("private_data", _VOID_P),
    ]


class _Array(ctypes.Structure):
    _fields_: ClassVar = [
        ("length", _I64),
        ("null_count", _I64),
        ("offset", _I64),
        ("n_buffers", _I64),
        ("n_children", _I64),
        ("buffers", _VOID_P),
        ("children", _VOID_P),
        ("dictionary", _VOID_P),
        ("release", _VOID_P),
        ("private_data", _VOID_P),
    ]


class _Stream(ctypes.Structure):
    _fields_: ClassVar = [
        ("get_schema", _VOID_P),
        ("get_next", _VOID_P),
        ("get_last_error", _VOID_P),
        ("release", _VOID_P),
        ("private_data", _VOID_P),
    ]


class Exporter:
    """Makes arrays and streams, and remembers everything that it made.

    Attributes:
        made: how many structs of each kind were given out.
        released: how many times the release callback of each kind was called.
    """

    def __init__(self) -> None:
        self.made: Counter[str] = Counter()
        self.released: Counter[str] = Counter()
        self._kept: list[Any] = []
        self._buffers: list[list[Any]] = []
        self._release = {
            kind: self._keep(_OF_ONE(lambda at, kind=kind, of=of: self._released(kind, of, at)))
            for kind, of in (("schema", _Schema), ("array", _Array), ("stream", _Stream))
        }
        self._destructor = self._keep(_DESTRUCTOR(self._destroy))

    def _keep(self, thing: Any) -> Any:
        self._kept.append(thing)
        return thing

    def _address(self, thing: Any) -> int | None:
        return ctypes.cast(self._keep(thing), _VOID_P).value

    def _released(self, kind: str, of: Any, at: int) -> None:
        made = of.from_address(at)
        assert made.release, "a struct that was released is released again"
        made.release = None
        self.released[kind] += 1
        if kind == "array":
            self._scribble(made)

    def _scribble(self, made: _Array) -> None:
        """Whoever reads what was released reads nonsense."""
        for buffer in self._buffers[made.private_data - 1]:
            ctypes.memset(buffer, 0xA5, len(buffer))
        for child in self.children(made):
            self._scribble(child)

    def _destroy(self, capsule: int) -> None:
        """As an exporter's capsules do: release what nobody has taken."""
        name = _capsule_name(capsule)
        kind = {
            b"arrow_schema": "schema",
            b"arrow_array": "array",
            NO_ARRAY: "array",
            b"arrow_array_stream": "stream",
        }.get(name)
        if kind is not None:
            at = _capsule_pointer(capsule, name)
            of: Any = {"schema": _Schema, "array": _Array, "stream": _Stream}[kind]
            if of.from_address(at).release:
                self._released(kind, of, at)

    def _capsule(self, made: Any, name: bytes) -> object:
        return _new_capsule(ctypes.addressof(self._keep(made)), self._keep(name), self._address(self._destructor))

    def fill_schema(self, made: _Schema, arrow_format: bytes = b"z", columns: Sequence[bytes] = ()) -> _Schema:
        """Make it the schema of one column, or of a struct of binary columns with these names."""
        self.made["schema"] += 1
        made.format, made.name = self._keep(arrow_format), b""
        made.release = self._address(self._release["schema"])
        if columns:
            made.format = b"+s"
            children = (ctypes.c_void_p * len(columns))()
            for place, name in enumerate(columns):
                child = self._keep(_Schema(format=arrow_format, name=self._keep(name)))
                children[place] = ctypes.addressof(child)
            made.n_children, made.children = len(columns), self._address(children)
        return made

    def fill_array(
        self, made: _Array, values: Sequence[bytes], columns: int = 0, validity: bytes | None = None, **fields: Any
    ) -> _Array:
        """Make it an array of binary values, or of structs with that many equal columns; ``fields`` may lie."""
        self.made["array"] += 1
        if columns:
            children = (ctypes.c_void_p * columns)()
            for place in range(columns):
                children[place] = ctypes.addressof(self._fill(self._keep(_Array()), values))
            self.fill_raw(made, len(values), [validity])
            made.n_children, made.children = columns, self._address(children)
        else:
            self._fill(made, values)
        made.release = self._address(self._release["array"])
        for name, value in fields.items():
            setattr(made, name, value)
        return made

    def _fill(self, made: _Array, values: Sequence[bytes]) -> _Array:
        ends = [0]
        for value in values:
            ends.append(ends[-1] + len(value))
        return self.fill_raw(made, len(values), [None, struct.pack(f"{len(ends)}i", *ends), b"".join(values) or None])

    def fill_raw(self, made: _Array, length: int, buffers: Sequence[bytes | None]) -> _Array:
        """Make it an array of these buffers."""
        table = (ctypes.c_void_p * len(buffers))()
        own = [ctypes.create_string_buffer(buffer, len(buffer)) if buffer else None for buffer in buffers]
        for place, buffer in enumerate(own):
            table[place] = self._address(buffer) if buffer is not None else None
        self._buffers.append([buffer for buffer in own if buffer is not None])
        made.private_data = len(self._buffers)
        made.length, made.n_buffers, made.buffers = length, len(buffers), self._address(table)
        return made

    @staticmethod
    def children(made: _Array) -> list[_Array]:
        """The columns of an array of structs."""
        if not made.n_children:
            return []
        table = (ctypes.c_void_p * made.n_children).from_address(made.children)
        return [_Array.from_address(at) for at in table]

    def array(
        self, schema: _Schema, array: _Array, names: tuple[bytes, bytes] = (b"arrow_schema", b"arrow_array")
    ) -> Any:
        """An object with ``__arrow_c_array__``."""
        capsules = self._capsule(schema, names[0]), self._capsule(array, names[1])
        return _WithArray(capsules)

    def stream(
        self, chunks: Sequence[Any], *, schema_error: int = 0, arrow_format: bytes = b"z", error: bytes | None = b"disk"
    ) -> Any:
        """An object with ``__arrow_c_stream__`` that gives these chunks: lists of values, or a number that fails."""
        waiting = list(chunks)

        def get_schema(_: int, out: int) -> int:
            if not schema_error:
                self.fill_schema(_Schema.from_address(out), arrow_format)
            return schema_error

        def get_next(_: int, out: int) -> int:
            made = _Array.from_address(out)
            ctypes.memset(out, 0, ctypes.sizeof(_Array))
            chunk = waiting.pop(0) if waiting else None
            if isinstance(chunk, int):
                made.release = 0xDEAD  # nobody may look at what a failed call left behind
                return chunk
            if chunk is not None:
                self.fill_array(made, chunk)
            return 0

        text = self._address(ctypes.create_string_buffer(error)) if error is not None else None
        made = _Stream()
        self.made["stream"] += 1
        made.get_schema = self._address(_GET(get_schema))
        made.get_next = self._address(_GET(get_next))
        made.get_last_error = self._address(_ERROR(lambda _: text))
        made.release = self._address(self._release["stream"])
        return _WithStream(self._capsule(made, b"arrow_array_stream"))

    def stream_that_tells_who_has_the_interpreter(self, *, of_schema: bool) -> Any:
        """A stream whose schema, or whose first chunk, is error 1 if it is asked for with the interpreter held."""
        data = self.stream([], error=None)
        made = _Stream.from_address(_capsule_pointer(id(data.capsule), b"arrow_array_stream"))
        is_held = self._address(ctypes.pythonapi.PyGILState_Check)
        if of_schema:
            made.get_schema = is_held
        else:
            made.get_next = is_held
        return data

    def new_schema(self, arrow_format: bytes = b"z", columns: Sequence[bytes] = ()) -> _Schema:
        """A schema."""
        return self.fill_schema(_Schema(), arrow_format, columns)

    def new_array(
        self, values: Sequence[bytes], columns: int = 0, validity: bytes | None = None, **fields: Any
    ) -> _Array:
        """An array."""
        return self.fill_array(_Array(), values, columns, validity, **fields)

    def raw_array(self, length: int, buffers: Sequence[bytes | None]) -> _Array:
        """An array of any buffers."""
        made = self.fill_array(_Array(), [])
        return self.fill_raw(made, length, buffers)


class _WithArray:
    def __init__(self, capsules: tuple[object, object]) -> None:
        self._capsules: Any = capsules

    def __arrow_c_array__(self, requested_schema: object = None, /) -> tuple[object, object]:
        capsules: tuple[object, object] = self._capsules
        return capsules


class _WithStream:
    def __init__(self, capsule: object) -> None:
        self.capsule = capsule

    def __arrow_c_stream__(self, requested_schema: object = None, /) -> object:
        return self.capsule
