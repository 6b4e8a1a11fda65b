"""The control block: one page shared by the coordinator, the network process and the workers.

    line 0            stopping word, count of changes to the set of arenas (coordinator)
    line 1 + slot     one line for each process, written by that process alone: state, sleeping, pid, how much it has
                      heard of arenas that come and go, and how many it has mapped

Slots: 0 the coordinator, 1 the network process, 2.. the workers. It belongs to the set of processes, not to an
arena: several arenas may be served by one set.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import Final

from slabpress._native import Alarm, Memory, Ringer, Watch
from slabpress.shm.doorbell import Doorbell
from slabpress.shm.layout import LINE_BYTES, PAGE_BYTES, WORKERS_MAX, align
from slabpress.shm.segment import create_segment, map_segment

COORDINATOR: Final = 0
NETWORK: Final = 1
FIRST_WORKER: Final = 2

_STOPPING_AT: Final = 0
_CHANGES_AT: Final = 4
_STATE: Final = 0
_SLEEPING: Final = 4
_PID: Final = 8
_HEARD: Final = 16
_MAPPED: Final = 20
CONTROL_BYTES: Final = align((1 + FIRST_WORKER + WORKERS_MAX) * LINE_BYTES, PAGE_BYTES)


class Control:
    """One process's mapping of the control block, and everybody's doorbells.

    Args:
        descriptor: the control block's file descriptor, taken over.
        bells: one doorbell a slot.

    Attributes:
        alarm: when the coordinator gets up by itself; of the job alone.
    """

    def __init__(self, descriptor: int, bells: list[Doorbell]) -> None:
        self.descriptor = descriptor
        self.bells = bells
        self.alarm = Alarm(*bells[COORDINATOR].descriptors)
        self._sleeping_at = [self._line(slot) + _SLEEPING for slot in range(len(bells))]
        self._mapping = map_segment(descriptor, CONTROL_BYTES)
        self.memory = Memory(self._mapping)
        self._ringers = [self.ringer((slot,)) for slot in range(len(bells))]
        self._worker_ringer = self.ringer(self.workers)

    @classmethod
    def create(cls, workers: int) -> Control:
        """A new control block with doorbells for ``workers`` workers."""
        with contextlib.ExitStack() as undo:
            bells = []
            for _ in range(FIRST_WORKER + workers):
                bell = Doorbell.create()
                undo.callback(bell.close)
                bells.append(bell)
            descriptor = create_segment("control", CONTROL_BYTES)
            undo.callback(os.close, descriptor)
            control = cls(descriptor, bells)
            undo.pop_all()
        return control

    @property
    def workers(self) -> range:
        """The workers' slots."""
        return range(FIRST_WORKER, len(self.bells))

    @staticmethod
    def _line(slot: int) -> int:
        return (1 + slot) * LINE_BYTES

    def state(self, slot: int) -> int:
        """A process's own word about its life (PROCESS_*)."""
        return self.memory.load_u32(self._line(slot) + _STATE)

    def set_state(self, slot: int, state: int) -> None:
        """Write this process's word."""
        self.memory.store_u32(self._line(slot) + _PID, os.getpid())
        self.memory.store_u32(self._line(slot) + _STATE, state)

    def pid(self, slot: int) -> int:
        """The id of the process that last wrote its word; 0 before there was one."""
        return self.memory.load_u32(self._line(slot) + _PID)

    @property
    def stopping(self) -> bool:
        """The coordinator asked everybody to end."""
        return self.memory.load_u32(_STOPPING_AT) != 0

    def stop(self) -> None:
        """Ask everybody to end (coordinator), and wake them to hear it."""
        self.memory.store_u32(_STOPPING_AT, 1)
        for bell in self.bells[NETWORK:]:
            bell.ring()

    def watch(self, slot: int) -> Watch:
        """What a process looks at before it sleeps. Its orders are ``stopping`` and ``changes``, in one word."""
        return Watch(self.memory, _STOPPING_AT, self._line(slot) + _SLEEPING)

    def changes(self) -> int:
        """Counts what was said to the children about arenas: a child looks at its channel when it has changed."""
        return self.memory.load_u32(_CHANGES_AT)

    def count_change(self) -> None:
        """Something was said to the children (coordinator, after it was said)."""
        self.memory.store_u32(_CHANGES_AT, (self.changes() + 1) & 0xFFFF_FFFF)

    def heard(self, slot: int) -> int:
        """How many lines of its channel the process has acted on."""
        return self.memory.load_u32(self._line(slot) + _HEARD)

    def mapped(self, slot: int) -> int:
        """How many arenas the process has mapped."""
        return self.memory.load_u32(self._line(slot) + _MAPPED)

    def set_heard(self, slot: int, heard: int, mapped: int) -> None:
        """Say so, what is mapped first: who sees what was heard sees what it has led to."""
        self.memory.store_u32(self._line(slot) + _MAPPED, mapped)
        self.memory.store_u32(self._line(slot) + _HEARD, heard)

    def is_sleeping(self, slot: int) -> bool:
        """Whether the process said that it sleeps."""
        return self.memory.load_u32(self._line(slot) + _SLEEPING) != 0

    def lie_down(self, slot: int) -> None:
        """Say "I sleep" for this process; look for work once more after this, before waiting."""
        self.memory.store_u32(self._line(slot) + _SLEEPING, 1)
        self.memory.fence()

    def get_up(self, slot: int) -> None:
        """Say "I am awake" for this process (or, supervising, for a dead one)."""
        self.memory.store_u32(self._line(slot) + _SLEEPING, 0)

    def wake(self, slot: int) -> None:
        """Ring a process that sleeps. Call it after publishing what it should see."""
        self._ringers[slot].ring()

    def ringer(self, slots: Sequence[int]) -> Ringer:
        """What rings the first of these processes that sleeps, in one native step."""
        return Ringer(
            self.memory,
            [self._sleeping_at[slot] for slot in slots],
            [self.bells[slot].write_descriptor for slot in slots],
        )

    def sleeping_worker(self) -> int | None:
        """The first worker that sleeps, if any. Call it after publishing what it should see."""
        for slot in self.workers:
            if self.memory.fenced_u32(self._sleeping_at[slot]):
                return slot
        return None

    def wake_one_worker(self) -> None:
        """Ring the first worker that sleeps, if any: whoever wakes rings the next while there is work for both."""
        self._worker_ringer.ring()

    def close(self) -> None:
        """Unmap and close every descriptor of this process."""
        if self.descriptor < 0:
            return
        self.memory.release()
        self._mapping.close()
        os.close(self.descriptor)
        self.descriptor = -1
        for bell in self.bells:
            bell.close()
