"""How long to wait before the next try (KIP-580)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

NS_PER_MS: Final = 1_000_000
JITTER: Final = 0.2
_DOUBLINGS_MAX: Final = 40


class Backoff:
    """Exponential delays with jitter.

    Args:
        first_ms: the delay after the first failure.
        largest_ms: no delay is longer, but for jitter.
        random: uniform in 0 .. 1.
    """

    def __init__(self, first_ms: int, largest_ms: int, random: Callable[[], float]) -> None:
        self._first_ms = first_ms
        self._largest_ms = max(first_ms, largest_ms)
        self._random = random

    def delay_ns(self, failures: int) -> int:
        """The delay after that many failures in a row (from 1), 20 % more or less."""
        doublings = min(max(0, failures - 1), _DOUBLINGS_MAX)
        delay_ms = min(self._largest_ms, self._first_ms << doublings)
        return int(delay_ms * NS_PER_MS * (1 - JITTER + 2 * JITTER * self._random()))
