"""What the network process has done in one arena, counted where everybody can read it (``producer.stats()``)."""

from __future__ import annotations

from typing import Final

from slabpress._native import Memory
from slabpress.shm.layout import CONNECTIONS_MOST_AT, NETWORK_COUNTERS, NETWORK_COUNTERS_AT

_COUNTER_AT: Final = {name: NETWORK_COUNTERS_AT + 8 * place for place, name in enumerate(NETWORK_COUNTERS)}
_REQUESTS_AT: Final = _COUNTER_AT["requests"]


class Counters:
    """The network process's counters of an arena; those of batches and records are counted where a batch ends.

    Args:
        memory: the arena's.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    def count(self, counter: str, amount: int = 1) -> None:
        """Add to a counter, by its name in ``NETWORK_COUNTERS``."""
        self._memory.add_u64(_COUNTER_AT[counter], amount)

    def count_request(self, size: int) -> None:
        """A request of so many bytes, with batches of this arena, goes out."""
        self._memory.add_all(_REQUESTS_AT, 1, size)  # request_bytes comes next

    def read(self, counter: str) -> int:
        """What a counter has come to, by this process and those before it."""
        return self._memory.load_u64(_COUNTER_AT[counter])

    def note_connections(self, now_open: int) -> None:
        """Keep the most connections that were ever open at a time."""
        if now_open > self._memory.load_u64(CONNECTIONS_MOST_AT):
            self._memory.store_u64(CONNECTIONS_MOST_AT, now_open)
