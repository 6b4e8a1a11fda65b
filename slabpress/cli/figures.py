"""Figures of a running producer: what went over the wire, and the peak of its memory."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import psutil

from slabpress.shm.layout import NETWORK_COUNTERS, NETWORK_COUNTERS_AT

if TYPE_CHECKING:
    from slabpress.producer import Producer

_SAMPLE_INTERVAL_S: Final = 0.05


def network_counter(producer: Producer, name: str) -> int:
    """One of the network process's counters; the names are in ``shm.layout``. Read it before close()."""
    place = NETWORK_COUNTERS_AT + 8 * NETWORK_COUNTERS.index(name)
    return producer._coordinator.arena.memory.load_u64(place)


def wire_bytes(producer: Producer) -> int:
    """Bytes of all produce requests so far, their headers and retries included. Read it before close()."""
    return network_counter(producer, "request_bytes")


def arena_memory(producer: Producer) -> int:
    """The bytes that the system has really allocated for the arena. Read it before close()."""
    return os.fstat(producer._coordinator.arena.descriptor).st_blocks * 512


def memory_of(process: psutil.Process) -> int:
    """The bytes that a process stands for, without shared memory such as the arena.

    That is PSS, which shares out among processes what they have in common, less its shared memory: processes
    cannot all be read at one instant, and while they start, pages of the arena would be counted for several of
    them; and PSS knows no page that is allocated but not touched yet. Where there is no such figure it is USS.
    """
    try:
        text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
    except OSError:
        text = ""
    figures = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in text.splitlines()[1:]}
    if "Pss_Shmem" in figures:
        return figures["Pss"] - figures["Pss_Shmem"]
    return int(process.memory_full_info().uss)


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
        used = memory_of(self._own) - self._baseline
        for child in self._own.children():
            if child.pid not in self._others:
                with contextlib.suppress(psutil.Error):  # it has just ended
                    used += memory_of(child)
        self.peak = max(self.peak, used)
        self.samples += 1
