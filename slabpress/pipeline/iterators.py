"""send_many() of what can only be gone through: records are taken a block at a time, so that nothing grows (law 1)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Final

from slabpress.errors import RecordTypeError

# Enough to make a call of a block cheap beside its records, few enough that nobody misses their memory.
BLOCK_RECORDS: Final = 1024


class RecordIterator:
    """Values of any length, with keys, headers and timestamps beside them, block by block.

    Args:
        columns: name and iterable, or None, of each column; the first is the values.

    Attributes:
        block: what was taken last, a list or None for each column, equally long.
    """

    def __init__(self, columns: dict[str, Iterable[Any] | None]) -> None:
        self._iterators: dict[str, Iterator[Any] | None] = {
            name: None if column is None else iter(column) for name, column in columns.items()
        }
        self._failure: BaseException | None = None
        self._ended = False
        self._taken = 0
        self.block: dict[str, list[Any] | None] = {}

    def take(self) -> bool:
        """Take the next block; False after the last. It runs the user's code: not under a lock.

        Raises:
            RecordTypeError: a column has another length than the values.
            BaseException: what an iterator raised, once all that came before was taken.
        """
        failure = self._failure
        if failure is not None:
            raise failure
        if self._ended:
            return False
        taken: dict[str, list[Any] | None] = {}
        most = BLOCK_RECORDS
        for name, iterator in self._iterators.items():
            taken[name] = entries = self._take_from(iterator, most)
            if self._failure is not None and entries is not None:
                most = min(most, len(entries))  # beside those that came before the error
        least = min(len(entries) for entries in taken.values() if entries is not None)
        self.block = {name: None if entries is None else entries[:least] for name, entries in taken.items()}
        self._taken += least
        if self._failure is None:
            self._check_lengths(taken, least)
        self._ended = least < BLOCK_RECORDS
        return least > 0 or self.take()

    def unsent(self, accepted: int) -> dict[str, list[Any] | None]:
        """What was taken and not accepted, of so many accepted ones in all."""
        first = len(next(column for column in self.block.values() if column is not None)) - (self._taken - accepted)
        return {name: None if column is None else column[first:] for name, column in self.block.items()}

    def _take_from(self, iterator: Iterator[Any] | None, most: int) -> list[Any] | None:
        if iterator is None:
            return None
        entries: list[Any] = []
        try:
            entries.extend(islice(iterator, most))  # what came before an error stays
        except BaseException as failure:  # noqa: BLE001 - raised by the next ``take``
            self._failure = self._failure or failure
        return entries

    def _check_lengths(self, taken: dict[str, list[Any] | None], least: int) -> None:
        """Where one column has ended: the others must have, too."""
        for name, entries in taken.items():
            iterator = self._iterators[name]
            if least == BLOCK_RECORDS or entries is None or iterator is None:
                continue
            if len(entries) > least:
                short = next(other for other, those in taken.items() if those is not None and len(those) == least)
                self._failure = RecordTypeError(f"{short} has {self._taken} entries and {name} has more: one each")
