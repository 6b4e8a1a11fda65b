"""An open-loop pacer: records are due at ticks of a fixed clock, however long their predecessors took.

Latency counts from the tick at which a record was due, not from the moment at which the sender got round to it: a
``send`` that stands still for 10 ms makes the records behind it late too, and a clock that starts with each call would
hide that (coordinated omission). Between ticks the pacer sleeps, so it takes no core from what is measured; what its
own wake-up costs (about 60 us, the kernel's timer slack) is in every side's latency alike and is told apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable, MutableSequence
from typing import Final, NamedTuple

NS_PER_S: Final = 1_000_000_000
TICK_NS: Final = 1_000_000


class Schedule(NamedTuple):
    """When records are due: at every tick as many as the rate has brought since the last.

    Attributes:
        rate: records a second.
        seconds: how long; the last tick is not after it.
        tick_ns: nanoseconds between ticks.
    """

    rate: int
    seconds: float
    tick_ns: int = TICK_NS

    @property
    def ticks(self) -> int:
        """How many ticks there are."""
        return int(self.seconds * NS_PER_S) // self.tick_ns

    def due_before(self, tick: int) -> int:
        """How many records are due before this tick; exact, so that no rounding adds up."""
        return tick * self.tick_ns * self.rate // NS_PER_S

    @property
    def records(self) -> int:
        """How many records are due in all."""
        return self.due_before(self.ticks)

    def due_ns(self, first_tick_ns: int) -> list[int]:
        """The time at which each record is due, if the first tick is then."""
        return [
            first_tick_ns + tick * self.tick_ns
            for tick in range(self.ticks)
            for _ in range(self.due_before(tick), self.due_before(tick + 1))
        ]


def pace(schedule: Schedule, send: Callable[[int], object], called_ns: MutableSequence[int]) -> int:
    """Call ``send(number)`` for each record at its tick, or as soon after it as may be; the time of the first tick.

    Args:
        schedule: when records are due.
        send: is given the record's number, from 0.
        called_ns: takes the time of each call; an ``array`` that is long enough.
    """
    now, sleep = time.perf_counter_ns, time.sleep
    begin = now() + schedule.tick_ns
    for tick in range(schedule.ticks):
        wait_ns = begin + tick * schedule.tick_ns - now()
        if wait_ns > 0:
            sleep(wait_ns / NS_PER_S)
        for number in range(schedule.due_before(tick), schedule.due_before(tick + 1)):
            called_ns[number] = now()
            send(number)
    return begin
