"""The peak of a producer's memory."""

from __future__ import annotations

import contextlib
import threading
from types import TracebackType
from typing import Final, Self

import psutil

from slabpress.observe.memory import process_bytes

_SAMPLE_INTERVAL_S: Final = 0.05


class PeakMemory:
    """Measures a producer's processes while the ``with`` block runs: this one's growth, and all its children.

    Args:
        baseline: this process's bytes before it had a producer.
        others: pids of children that are not the producer's.

    Attributes:
        peak: the most bytes seen at once, the arena apart.
        samples: how often it was measured.
    """

    def __init__(self, baseline: int, others: frozenset[int] = frozenset()) -> None:
        self._baseline = baseline
        self._others = others
        self._own = psutil.Process()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="slabpress-memory", daemon=True)
        self.peak = 0
        self.samples = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self._sample()
            if self._ended.wait(_SAMPLE_INTERVAL_S):
                return

    def _sample(self) -> None:
        used = process_bytes(self._own.pid) - self._baseline
        for child in self._own.children():
            if child.pid not in self._others:
                with contextlib.suppress(psutil.Error):  # it has just ended
                    used += process_bytes(child.pid)
        self.peak = max(self.peak, used)
        self.samples += 1
