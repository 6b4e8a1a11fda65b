"""One producer within the coordinator: its arena, its lock, its open batches, and what became of its records.

The callers' threads append under the session's lock; the coordinator's background thread comes by whenever something
is due (``turn``), and asks when to come again (``rest``).
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Final

from slabpress._native import Mutex
from slabpress.config import Config
from slabpress.errors import DeliveryError, FlushTimeoutError, SlabpressError
from slabpress.observe.statistics import MemoryFigure, RecordCounts, Statistics, read_statistics
from slabpress.pipeline.accumulator import NUDGE_NS, Accumulator
from slabpress.pipeline.intake import Intake
from slabpress.pipeline.pressure import Pressure
from slabpress.pipeline.sender import Sender
from slabpress.pipeline.topics import TopicRegistry
from slabpress.pipeline.watch import DoneCallback, Watch
from slabpress.plan import MemoryPlan
from slabpress.shm import layout as at
from slabpress.shm.admission import DEATHS_MAX, Admission
from slabpress.shm.arena import Arena
from slabpress.shm.control import NETWORK, Control
from slabpress.shm.descriptors import Descriptors
from slabpress.shm.splits import Splits
from slabpress.shm.topics import TopicTable

_NUDGE_S: Final = NUDGE_NS / 1e9
# An index no worker has: the coordinator takes the admission lock to recover, never to compress.
_NO_WORKER: Final = 0xFFFE

logger = logging.getLogger("slabpress")


class Session:
    """One producer's side of its arena.

    Args:
        number: the arena's number in this set of processes.
        config: the producer's settings.
        plan: the memory plan that follows from them.
        control: whom to wake.
        on_delivery: called with the handle of every record, or None.

    Attributes:
        lock: the producer's lock: guards accumulator, topics, line, and the arena's mapping.
        let_go: set once no child has the arena mapped any more; looked at after the session has left.

    Raises:
        MemoryShortError: the planned memory is not there.
    """

    def __init__(
        self, number: int, config: Config, plan: MemoryPlan, control: Control, on_delivery: DoneCallback | None
    ) -> None:
        rng = random.Random()  # noqa: S311 - spreads records over partitions, protects nothing
        self.number = number
        self.config = config
        self.plan = plan
        self.watch = Watch()
        self.lock = Mutex()
        self.let_go = threading.Event()
        self.arena = Arena.create(plan.geometry)
        try:
            self._control = control
            self._descriptors = Descriptors(self.arena)
            self._splits = Splits(self.arena)
            self._topics = TopicRegistry(TopicTable(self.arena), rng)
            self.accumulator = Accumulator(self.arena, plan, config.linger_ms * 1_000_000, control, self.watch, rng)
            pressure = Pressure(self.arena, self.accumulator)
            self.sender = Sender(config, plan, self.arena, control, self.lock, self.accumulator, pressure, self._topics)
            self._intake = Intake(
                self.arena, control, self.lock, self.accumulator, pressure, self.sender.line, self.watch, on_delivery
            )
        except BaseException:
            self.arena.close()
            raise
        self._next_nudge = 0.0
        self._sealed_at_nudge = 0
        self._connections_most = 0
        self._connections_said = False
        self._last_statistics: Statistics | None = None

    # --- for the coordinator's background thread --------------------------------------------------------------

    def turn(self) -> None:
        """Do what is due: seal what has lingered, take in results and metadata."""
        if self._intake.failure is not None:
            raise self._intake.failure
        with self.lock:
            if self.is_closed:
                return
            self.accumulator.seal_lingering(time.monotonic_ns())
            self._topics.drop_idle(time.monotonic())
            if self._topics.refresh():
                self.sender.lookup.changed.notify_all()
            self._nudge()
            has_results = self.accumulator.has_results()
        self._say_connections()
        if has_results:  # mostly the callback thread has been quicker, where there is one
            self._intake.take()

    def rest(self) -> float | None:
        """When ``turn`` is due by itself, in monotonic seconds; 0 at once, None not at all. Call it lying down."""
        with self.lock:
            if self.is_closed:
                return None
            # A slab that was freed since the last turn rang for nobody: let the first in line look.
            self._intake.call_first()
            # Whatever came in before "I sleep" was said rang for nobody: look once more.
            if self.accumulator.has_results() or self._topics.has_news():
                return 0.0
            linger_ns = self.accumulator.next_linger_ns()
            due = [
                None if linger_ns is None else linger_ns / 1e9,
                self._next_nudge if self._was_active() else None,
                self._topics.next_idle(),
            ]
        return min((time_s for time_s in due if time_s is not None), default=None)

    def _was_active(self) -> bool:
        """Whether anything is under way, or was since the last nudge.

        The second half keeps a timer while records come one by one, so that none of them has to ring for one.
        """
        return self.arena.seal_tail != self._sealed_at_nudge or self.accumulator.has_unfinished()

    def _nudge(self) -> None:
        """Once a second, while anything is under way: ring whoever sleeps and may have work.

        A ring that went to a process that was stopped, or died before it passed it on, costs a second by this.
        """
        now = time.monotonic()
        if now < self._next_nudge or not self._was_active():
            return
        self._next_nudge = now + _NUDGE_S
        self._sealed_at_nudge = self.arena.seal_tail
        self._connections_most = self.arena.memory.load_u64(at.CONNECTIONS_MOST_AT)
        self._control.wake(NETWORK)
        sealed = not self.arena.is_direct and self.arena.seal_head != self.arena.seal_tail
        waits = sealed or self._splits.any_ever()
        if waits or any(map(self.arena.memory.load_u64, (at.ORPHANS_AT, at.PARKED_AT))):
            for slot in self._control.workers:
                self._control.wake(slot)

    def _say_connections(self) -> None:
        """Say once that there are more connections than the plan counts. Without the lock: a handler may send."""
        most, planned = self._connections_most, self.config.planned_brokers
        if most > planned and not self._connections_said:
            self._connections_said = True
            text = "the network process has had %s connections at a time, the plan counts %s: set planned_brokers=%s"
            logger.warning(text, most, planned, most)

    def detach_dead(self, slot: int) -> None:
        """The process of a slot has died, and with it its mapping."""
        with self.lock:
            if not self.is_closed:
                self.arena.set_attached(slot, attached=False)

    def recover(self, worker: int) -> bool:
        """A worker has died: another takes over its batches, one that is deadly without compressing it.

        Returns:
            False if somebody holds the admission lock: come again.
        """
        admission, topics = Admission(self.arena, _NO_WORKER), TopicTable(self.arena)
        deadly = admission.deadly(worker)
        if admission.recover(worker) is None:
            return False
        for index in deadly:
            batch = self._descriptors.sealed(index)
            topic, partition = topics.partition(batch.partition_index)
            logger.warning(
                "%s workers in a row have died while they compressed the same batch (%s records of topic %r, partition "
                "%s, %s bytes): it is sent uncompressed. If nothing else kills them, try another compression_type "
                "than %r",
                *(DEATHS_MAX, batch.records, topics.name(topic), partition, batch.raw_bytes),
                self.config.compression_type,
            )
        return True

    def attached(self) -> list[int]:
        """The slots of the children that say that they have the arena mapped."""
        with self.lock:
            return [] if self.is_closed else self.arena.attached(len(self._control.bells))

    def seal_all(self) -> None:
        """Let nothing linger."""
        with self.lock:
            if not self.is_closed:
                self.accumulator.seal_all()

    # --- the end ------------------------------------------------------------------------------------------------

    def refuse(self, refusal: Callable[[], SlabpressError]) -> None:
        """Refuse every call from now on with this error; waiting threads get it."""
        with self.lock:
            self.sender.refuse(refusal)
            self.sender.line.call_all()
            self.sender.lookup.changed.notify_all()

    def fail(self, error: SlabpressError) -> None:
        """The processes are gone: every call and every undelivered record gets the error."""
        self.refuse(lambda: type(error)(*error.args))
        self.abandon("PROCESS_ERROR", str(error))

    def take_results(self) -> None:
        """Take in what has come in by now."""
        self._intake.take()

    def abandon(self, name: str, reason: str) -> int:
        """Resolve every batch that has no result with an error; how many records that were.

        No child works on the arena any more.
        """
        return self._intake.abandon(name, reason)

    def stop_callbacks(self, timeout_s: float) -> bool:
        """End the callback thread after what is queued; whether it ended in time."""
        return self._intake.reporter.stop(timeout_s)

    def give_back(self, memory: tuple[MemoryFigure, ...]) -> None:
        """Unmap the arena; ``memory`` goes into the last statistics."""
        last = self.statistics(memory)
        with self.lock:
            self._last_statistics = last
            self.arena.close()

    @property
    def is_closed(self) -> bool:
        """Whether the arena was given back."""
        return self.arena.descriptor < 0

    # --- what callers ask for -------------------------------------------------------------------------------

    def in_callback(self) -> bool:
        """Whether the calling thread is running one of this producer's delivery callbacks."""
        return self._intake.reporter.in_callback()

    def statistics(self, memory: tuple[MemoryFigure, ...]) -> Statistics:
        """The figures of this moment; after the arena was given back, the last ones."""
        with self.lock:
            if self._last_statistics is not None:
                return self._last_statistics
            with self.watch.changed:
                counts = RecordCounts(
                    self.accumulator.records_accepted(), self.watch.delivered_ever, self.watch.failed_ever
                )
            return read_statistics(self.arena, self.plan, counts, memory)

    def flush(self, timeout_s: float | None) -> None:
        """Seal everything and wait until all of it is resolved and reported.

        Raises:
            FlushTimeoutError: it was not, in time.
        """
        with self.lock:
            if self.is_closed:
                return
            self.accumulator.seal_all()
            waiting = self.accumulator.unfinished()
        watch, place, late = self.watch, 0, self.watch.late_asked

        def finished() -> bool:
            nonlocal place
            while place < len(waiting) and waiting[place].finished:
                place += 1
            return place == len(waiting) and watch.late_run >= late

        with watch.changed:
            if watch.wait_for(finished, timeout_s):
                return
            left = sum(batch.records for batch in waiting if not batch.finished) + max(0, late - watch.late_run)
        raise FlushTimeoutError(f"{left} records were still under way after {timeout_s} s", records=left)

    def raise_unseen(self) -> None:
        """Raise the failures that nobody has looked at, if there are any.

        Raises:
            DeliveryError: the first of them, its ``records`` saying how many there are.
        """
        unseen, error = self.watch.take_unseen()
        if unseen <= 0 or error is None:
            return
        if not isinstance(error, DeliveryError):
            raise error
        raise type(error)(
            f"{unseen} records were not delivered; the first error: {error}",
            topic=error.topic,
            partition=error.partition,
            name=error.name,
            code=error.code,
            retriable=error.retriable,
            records=unseen,
        ) from error
