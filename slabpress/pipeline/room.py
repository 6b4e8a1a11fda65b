"""Waiting for room, first come first served.

A thread that found no free slab or descriptor joins the line and says how many slabs it needs. Whoever leaves as
many free as those ahead of it need may go on, in line or not; so a large record is not overtaken for ever by small
ones (the fairness of Kafka's BufferPool), and where there is room for all nobody waits for a switch of threads.
A record whose leader's batches hold their share of the slabs (shm/shares.py) waits in the same line, but holds up
nobody: it needs nothing as long as that lasts.

Everything happens under the producer's lock, which a waiting thread releases, and with it the GIL.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable

from slabpress._native import Mutex


class Turn:
    """One thread's place in the line.

    Attributes:
        called: notified when there may be room.
        need: the slabs it waits for, at least 1; 0 while it is held back.
        held_back: the partition (its index) whose leader has its share, -1 for none.
    """

    __slots__ = ("called", "held_back", "need")

    def __init__(self, lock: Mutex, need: int, held_back: int = -1) -> None:
        self.held_back = held_back
        self.wants(need, held_back)
        self.called = threading.Condition(lock)  # type: ignore[arg-type] # Mutex has what a Condition needs

    def wants(self, need: int, held_back: int) -> bool:
        """Say what it waits for now; whether it waited for room before, and is held back instead."""
        steps_aside = self.held_back < 0 <= held_back
        self.need = max(1, need) if held_back < 0 else 0
        self.held_back = held_back
        return steps_aside


class RoomLine:
    """The line of threads that wait for room.

    Args:
        lock: the producer's lock; every method is called with it held.
        must_wait: whether a partition's (its index) records still must wait, as its leader has its share.

    Attributes:
        turns: who waits, first to last; only for looking whether anybody does.
    """

    def __init__(self, lock: Mutex, must_wait: Callable[[int], bool]) -> None:
        self._lock = lock
        self._must_wait = must_wait
        self.turns: deque[Turn] = deque()

    def join(self, turn: Turn) -> None:
        """Go to the end of the line."""
        self.turns.append(turn)

    def needed_before(self, turn: Turn | None) -> int:
        """The slabs that those ahead of ``turn`` wait for; None is ahead of nobody."""
        needed = 0
        for other in self.turns:
            if other is turn:
                break
            needed += other.need
        return needed

    def wait(self, turn: Turn, timeout_s: float) -> None:
        """Sleep until called or until the timeout; the caller looks for itself what has changed."""
        turn.called.wait(timeout_s)

    def leave(self, turn: Turn) -> None:
        """Leave the line, served or not, and call the next: what is left may be enough for it."""
        with contextlib.suppress(ValueError):  # a signal handler raised before this thread had joined
            self.turns.remove(turn)
        self.call_first()

    def call_first(self) -> None:
        """There may be room now: call the first in line, and of those before it who are held back no more."""
        for turn in self.turns:
            if turn.held_back < 0:
                turn.called.notify()
                return
            if not self._must_wait(turn.held_back):
                turn.called.notify()

    def call_all(self) -> None:
        """Something other than room has changed (the producer failed or closed): call everybody."""
        for turn in self.turns:
            turn.called.notify()
