"""The job is gone: deliver what it had accepted, then end.

When the job is killed its memory is not: the arenas are mapped by the workers and by this process. Open batches are
sealed at their last complete record, which the commit word in the descriptor names; everything under way goes its usual
way, until it has a result or its delivery timeout ends; later than that nobody waits, whatever holds it up. What the
coordinator would have done on the way this process does now: it seals, recovers what dead workers held, and asks for
the next pieces of split batches. Nothing is restarted any more: without a worker left, what is not compressed is lost,
and the log says so; without this process it is lost as well, the workers end, and nobody is there to say so.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from slabpress._native import NONE
from slabpress.network.backoff import NS_PER_MS
from slabpress.network.batches import ArenaBatches
from slabpress.shm import layout as at
from slabpress.shm.admission import Admission
from slabpress.shm.arena import Arena
from slabpress.shm.control import FIRST_WORKER, Control
from slabpress.shm.descriptors import Descriptors
from slabpress.shm.handover import START_TIMEOUT_S, is_alive
from slabpress.shm.splits import Splits
from slabpress.shm.states import (
    FREE,
    IN_FLIGHT,
    OPEN,
    OVERSIZE,
    PARTIAL,
    PROCESS_STARTING,
    READY,
    SEALED,
    SLAB_READY,
    SLAB_SEALED,
    UNDER_WAY,
)

SYSLOG: Final = "syslog"
# An index no worker has: this process takes the admission lock to recover, never to compress.
_NO_WORKER: Final = 0xFFFD
_DELIVERED: Final = 0


class Drain:
    """The end of a job's arenas.

    Args:
        arenas: the arenas that there are.
        control: the control block.
        request_timeout_ms: how long the last request may be unanswered after the last delivery timeout.
        now: CLOCK_MONOTONIC in ns.
    """

    def __init__(self, arenas: Iterable[ArenaBatches], control: Control, request_timeout_ms: int, now: int) -> None:
        self._arenas = list(arenas)
        self._control = control
        longest_ms = max((arena.delivery_timeout_ms for arena in self._arenas), default=0)
        self._started_by_ns = now + round(START_TIMEOUT_S * 1e9)
        self._until_ns = now + (longest_ms + request_timeout_ms) * NS_PER_MS
        self._before = self._counts()
        self._any_worker = True
        self._sealed = sum([seal_open_batches(arena.arena) for arena in self._arenas])

    def _counts(self) -> tuple[int, int]:
        """Records that were delivered and that failed, ever."""
        counters = [arena.counters for arena in self._arenas]
        delivered = sum(each.read("records_delivered") for each in counters)
        return delivered, sum(each.read("records_failed") for each in counters)

    def turn(self, now: int) -> None:
        """Do what the coordinator would do between two looks."""
        control = self._control
        # The line of one that is just starting names the job. What the slot's former process held was recovered before;
        # doing it again would take from this one what it has begun to work on meanwhile. Its id comes before its word,
        # so the word is looked at first.
        starting = [slot for slot in control.workers if control.state(slot) == PROCESS_STARTING]
        others = [slot for slot in control.workers if slot not in starting]
        alive = [slot for slot in others if is_alive(control.pid(slot))]
        for arena in self._arenas:
            for slot in others:
                if slot not in alive:
                    Admission(arena.arena, _NO_WORKER).recover(slot - FIRST_WORKER)
            self._ask_for_pieces(arena)
        for slot in alive:
            control.wake(slot)
        self._any_worker = bool(alive) or (bool(starting) and now < self._started_by_ns)

    def _ask_for_pieces(self, arena: ArenaBatches) -> None:
        splits, descriptors = Splits(arena.arena), Descriptors(arena.arena)
        if not splits.any_ever():
            return
        for index in arena.arena.batch_states.find_all(PARTIAL):
            splits.go_on(index, delivered=descriptors.result(index).code == _DELIVERED)
            arena.arena.batch_states.store(index, OVERSIZE)

    def is_finished(self, now: int) -> bool:
        """Whether nothing is under way any more, or nobody is left to compress what is, or it has taken too long."""
        if now >= self._until_ns or self.batches_left == 0:
            return True
        return not self._any_worker and self._count(READY, IN_FLIGHT) == 0

    @property
    def batches_left(self) -> int:
        """How many batches have no result."""
        return self._count(*UNDER_WAY)

    def _count(self, *states: int) -> int:
        """How many batches are in these states."""
        arenas = [arena.arena.batch_states for arena in self._arenas]
        return sum(len(each.find_all(state)) for each in arenas for state in states)

    def words(self, job: int) -> str:
        """The one line for the log."""
        delivered, failed = (now - before for now, before in zip(self._counts(), self._before, strict=True))
        why = "their time is over" if self._any_worker else "no worker is left"
        lost = f", {self.batches_left} batches lost: {why}" if self.batches_left else ""
        return (
            f"slabpress: job {job} ended without closing its producers: {delivered} records delivered after it, "
            f"{failed} failed ({self._sealed} batches were still open){lost}"
        )


def seal_open_batches(arena: Arena) -> int:
    """Seal what a job left open, in the order in which it was opened; how many batches that were."""
    descriptors, states = Descriptors(arena), arena.batch_states
    _finish_seal(arena, descriptors)
    opened = sorted(states.find_all(OPEN), key=lambda index: descriptors.sealed(index).created_ns)
    sealed = 0
    for index in opened:
        batch = descriptors.sealed(index)
        if batch.records == 0 or batch.first_slab == NONE:
            states.store(index, FREE)
            continue
        tail = arena.seal_tail
        descriptors.set_seal_number(index, tail + 1)
        if arena.is_direct:
            descriptors.set_slabs_as_output(index)
        arena.slabs.mark(batch.first_slab, SLAB_READY if arena.is_direct else SLAB_SEALED)
        arena.seal_ring.store(tail % arena.geometry.seal_ring_entries, index)
        states.store(index, READY if arena.is_direct else SEALED)
        arena.memory.store_u64(at.SEAL_TAIL_AT, tail + 1)
        sealed += 1
    return sealed


def _finish_seal(arena: Arena, descriptors: Descriptors) -> None:
    """A job that died between the last two stores of a seal: the batch is sealed, the tail has not moved."""
    tail = arena.seal_tail
    sealed = arena.batch_states.find_all(READY if arena.is_direct else SEALED)
    if any(descriptors.seal_number(index) == tail + 1 for index in sealed):
        arena.memory.store_u64(at.SEAL_TAIL_AT, tail + 1)


def write_log(target: str, words: str) -> None:
    """Append the line to a file, or give it to syslog. There is nobody left to hear of an error."""
    try:
        if target == SYSLOG:
            import syslog

            syslog.syslog(syslog.LOG_WARNING, words)
        elif target:
            with Path(target).open("a") as file:
                file.write(words + "\n")
    except OSError:
        return
