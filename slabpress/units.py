"""Sizes in words: "64MiB" to bytes and back."""

from __future__ import annotations

import math
import re
from typing import Final

_UNITS: Final = {
    "": 1,
    "b": 1,
    "k": 1 << 10,
    "kib": 1 << 10,
    "kb": 1000,
    "m": 1 << 20,
    "mib": 1 << 20,
    "mb": 1000**2,
    "g": 1 << 30,
    "gib": 1 << 30,
    "gb": 1000**3,
    "t": 1 << 40,
    "tib": 1 << 40,
    "tb": 1000**4,
}
_SIZE: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*")


def parse_bytes(text: str | int) -> int:
    """Bytes of a size such as ``"64MiB"``, ``"1.5 GB"``, ``"32m"`` or a plain number.

    Raises:
        ValueError: it is not a size.
    """
    if isinstance(text, int):
        return text
    match = _SIZE.fullmatch(text)
    if match is None or match[2].lower() not in _UNITS:
        raise ValueError(f"{text!r} is not a size: write a number of bytes, or one with KiB, MiB or GiB")
    number = float(match[1]) * _UNITS[match[2].lower()]
    if math.isinf(number):
        raise ValueError(f"a size of {len(match[1])} digits is more than any machine has")
    return int(number)


def format_bytes(count: int) -> str:
    """A size for people: the largest binary unit that keeps the number at or above 1."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= factor:
            number = count / factor
            return f"{number:.0f} {unit}" if number == int(number) else f"{number:.1f} {unit}"
    return f"{count} B"
