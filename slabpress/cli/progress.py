"""One line on the terminal that is drawn again and again; nothing at all where there is no terminal."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Final, NamedTuple, Self, TextIO

_INTERVAL_S: Final = 0.25
_SAMPLES: Final = 9  # the rate shown is that of the last two seconds
_CLEAR: Final = "\r\x1b[K"


class Count(NamedTuple):
    """What was handed to the producer so far."""

    records: int
    octets: int


class ProgressLine:
    """Shows records, rec/s and MB/s while the ``with`` block runs, and the figures of all of it at the end.

    Args:
        stream: where to draw, if it is a terminal.
        count: says how far things are; called on a thread of its own.
        clock: monotonic seconds.
    """

    def __init__(self, stream: TextIO, count: Callable[[], Count], clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._count = count
        self._clock = clock
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="slabpress-progress", daemon=True)
        self._terminal = stream.isatty()
        self._samples: deque[tuple[float, Count]] = deque(maxlen=_SAMPLES)
        self._first = (clock(), Count(0, 0))

    def __enter__(self) -> Self:
        self._first = (self._clock(), Count(0, 0))
        if self._terminal:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._terminal:
            self._ended.set()
            self._thread.join()
            self._write(f"{_CLEAR}{self._text(self._first)}\n")

    def say(self, line: str) -> None:
        """Write a line that stays, above the one that is drawn."""
        with self._lock:
            self._write(f"{_CLEAR if self._terminal else ''}{line}\n")

    def _run(self) -> None:
        self._samples.append(self._first)
        while not self._ended.wait(_INTERVAL_S):
            with self._lock:
                self._write(_CLEAR + self._text(self._samples[0]))
            self._samples.append((self._clock(), self._count()))

    def _text(self, since: tuple[float, Count]) -> str:
        count = self._count()
        seconds = max(self._clock() - since[0], 1e-9)
        text = (
            f"{count.records:,} records  {(count.records - since[1].records) / seconds:,.0f} rec/s  "
            f"{(count.octets - since[1].octets) / seconds / 1e6:,.1f} MB/s"
        )
        return text[: max(1, self._columns() - 1)]

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or 80
        except (OSError, ValueError):
            return 80

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
