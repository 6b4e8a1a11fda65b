"""What a job has sent, in a file that outlives it: each thread of it writes how far it is, with one store.

    line of a thread:  attempted, accepted, time of the last acceptance in ns

``attempted`` is stored before a call, ``accepted`` after it has returned: everything up to ``accepted`` must be in the
log exactly once, and what lies between the two may be, once.
"""

from __future__ import annotations

import mmap
import time
from pathlib import Path
from typing import Final, NamedTuple

from tests.crash.records import THREADS

_WORDS: Final = 8
_FILE_BYTES: Final = 4096
_ATTEMPTED, _ACCEPTED, _AT_NS = range(3)


class Claim(NamedTuple):
    """What must be, and what may be, in the log of one thread's records: numbers from 1."""

    accepted: int
    attempted: int
    at_ns: int = 0


class Line:
    """One thread's line of a tally.

    Args:
        words: the file as words. A store of one is one instruction, which no signal splits.
        thread: the thread's number.
    """

    def __init__(self, words: memoryview, thread: int) -> None:
        self._words = words
        self._start = thread * _WORDS

    def attempt(self, number: int) -> None:
        """The records up to this number are about to be sent."""
        self._words[self._start + _ATTEMPTED] = number

    def accept(self, number: int) -> None:
        """They were accepted."""
        self._words[self._start + _ACCEPTED] = number
        self._words[self._start + _AT_NS] = time.time_ns()

    @property
    def claim(self) -> Claim:
        """How far the thread is."""
        words, start = self._words, self._start
        return Claim(words[start + _ACCEPTED], words[start + _ATTEMPTED], words[start + _AT_NS])


class Tally:
    """The file of one run of the job; the rig makes it, the job opens it."""

    def __init__(self, path: Path, *, new: bool = False) -> None:
        if new:
            path.write_bytes(bytes(_FILE_BYTES))
        with path.open("r+b") as file:
            self._mapping = mmap.mmap(file.fileno(), _FILE_BYTES)
        self._words = memoryview(self._mapping).cast("Q")
        self.lines = [Line(self._words, thread) for thread in range(THREADS)]

    @property
    def claims(self) -> list[Claim]:
        """How far each thread is."""
        return [line.claim for line in self.lines]

    @property
    def accepted(self) -> int:
        """How many records were accepted in all."""
        return sum(claim.accepted for claim in self.claims)

    def close(self) -> None:
        """Unmap the file."""
        self._words.release()
        self._mapping.close()
