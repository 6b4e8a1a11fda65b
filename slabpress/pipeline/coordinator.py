"""The coordinator: the arena's owner, and the one background thread of the user's process.

    caller threads                 "slabpress" thread                       "slabpress-callbacks"
    send(): append under the       sleeps on its doorbell until the next    runs callbacks, then frees
    lock, wait in line for room    linger; seals what has lingered, takes   the batch's descriptor
                                   in results and metadata, calls the
                                   first in line, looks after the children

Law 9: nothing here is on the way of a sealed batch to the broker; when the job holds the GIL for seconds,
workers and network process go on.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import threading
import time
import weakref
from collections.abc import Callable
from typing import Final

from slabpress._native import Mutex
from slabpress.config import Config
from slabpress.cpus import memory_available_bytes
from slabpress.errors import (
    DeliveryError,
    FlushTimeoutError,
    ForkedError,
    MemoryShortError,
    ProcessError,
    ProducerClosedError,
    SlabpressError,
)
from slabpress.observe.memory import process_bytes
from slabpress.observe.statistics import RecordCounts, Statistics, read_statistics
from slabpress.pipeline.accumulator import Accumulator
from slabpress.pipeline.batch import Batch, DoneCallback, Watch
from slabpress.pipeline.reporter import Reporter, abandoned, outcome_of
from slabpress.pipeline.sender import Sender
from slabpress.pipeline.supervisor import Role, Supervisor
from slabpress.pipeline.topics import TopicRegistry
from slabpress.plan import MemoryPlan
from slabpress.shm import layout as at
from slabpress.shm.admission import Admission
from slabpress.shm.arena import Arena
from slabpress.shm.control import CONTROL_BYTES, COORDINATOR, NETWORK, Control
from slabpress.shm.descriptors import Descriptors
from slabpress.shm.states import DONE, PROCESS_RUNNING
from slabpress.shm.topics import TopicTable
from slabpress.units import format_bytes

# An index no worker has: the coordinator takes the admission lock to recover, never to compress.
_NO_WORKER: Final = 0xFFFE
_JOIN_TIMEOUT_S: Final = 10.0
_NUDGE_S: Final = 1.0

logger = logging.getLogger("slabpress")


class Coordinator:
    """One producer's arena, children and background thread.

    Args:
        config: the settings.
        plan: the memory plan that follows from them.
        roles: makes the children's roles from the arena's file descriptor.
        on_delivery: called with the handle of every record, or None.

    Raises:
        MemoryShortError: the planned memory is not there.
        ProcessError: a child could not start.
    """

    def __init__(
        self,
        config: Config,
        plan: MemoryPlan,
        roles: Callable[[int], list[Role]],
        on_delivery: DoneCallback | None,
    ) -> None:
        check_memory(plan)
        rng = random.Random()  # noqa: S311 - spreads records over partitions, protects nothing
        self.plan = plan
        self.watch = Watch()
        self.lock = Mutex()
        with contextlib.ExitStack() as undo:
            self.arena = Arena.create(plan.geometry)
            undo.callback(self.arena.close)
            self.control = Control.create(plan.workers)
            undo.callback(self.control.close)
            self._descriptors = Descriptors(self.arena)
            self._topics = TopicRegistry(TopicTable(self.arena), rng)
            self.accumulator = Accumulator(
                self.arena, plan, config.linger_ms * 1_000_000, self.control, self.watch, rng
            )
            self.sender = Sender(config, plan, self.arena, self.control, self.lock, self.accumulator, self._topics)
            self._reporter = Reporter(self.watch, on_delivery, self._release)
            admission = Admission(self.arena, _NO_WORKER)
            self._supervisor = Supervisor(self.control, roles(self.arena.descriptor), admission.recover)
            self.control.set_state(COORDINATOR, PROCESS_RUNNING)
            self._stopping = False
            self._last_statistics: Statistics | None = None
            self._next_nudge = 0.0
            self._thread = threading.Thread(target=self._run, name="slabpress", daemon=True)
            self._supervisor.start()
            undo.callback(self._supervisor.kill)
            self._thread.start()
            undo.pop_all()

    # --- the background thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._round()
                self._sleep()
        except ProcessError as error:
            self._fail(error)
        except Exception as error:  # a bug here must not leave callers waiting in silence
            logger.exception("the coordinator's thread failed")
            self._fail(ProcessError(f"slabpress failed inside: {error!r}; please report it"))

    def _round(self) -> None:
        with self.lock:
            self.accumulator.seal_lingering(time.monotonic_ns())
            done = self.accumulator.take_done()
            self._topics.drop_idle(time.monotonic())
            if self._topics.refresh():
                self.sender.lookup.changed.notify_all()
            self._nudge()
        self._resolve(done)
        self._supervisor.check()

    def _nudge(self) -> None:
        """Once a second, while anything is under way: ring whoever sleeps and may have work.

        A ring that went to a process that was stopped, or died before it passed it on, costs a second by this.
        """
        now = time.monotonic()
        if now < self._next_nudge or not self.accumulator.has_unfinished():
            return
        self._next_nudge = now + _NUDGE_S
        self.control.wake(NETWORK)
        if self.arena.seal_head != self.arena.seal_tail or self.arena.memory.load_u64(at.ORPHANS_AT):
            for slot in self.control.workers:
                self.control.wake(slot)

    def _resolve(self, done: list[Batch]) -> None:
        if done:
            self._reporter.resolve(
                [(batch, outcome_of(batch, self._descriptors.result(batch.descriptor))) for batch in done]
            )

    def _sleep(self) -> None:
        control = self.control
        control.lie_down(COORDINATOR)
        with self.lock:
            timeout = self._timeout_s()
            # A slab that was freed since the last round rang for nobody: let the first in line look.
            self.sender.line.call_first()
            # Whatever came in before "I sleep" was said rang for nobody: look once more.
            if self.arena.batch_states.find(DONE) >= 0 or self._topics.has_news() or self._stopping:
                timeout = 0.0
        try:
            control.bells[COORDINATOR].wait(timeout, self._supervisor.watched)
        finally:
            control.get_up(COORDINATOR)

    def _timeout_s(self) -> float | None:
        """Until the next linger, nudge, restart or forgotten topic is due; None while nothing is."""
        linger_ns = self.accumulator.next_linger_ns()
        due = [
            None if linger_ns is None else linger_ns / 1e9,
            self._next_nudge if self.accumulator.has_unfinished() else None,
            self._supervisor.next_restart(),
            self._topics.next_idle(),
        ]
        times = [time_s for time_s in due if time_s is not None]
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _release(self, batches: list[Batch]) -> None:
        with self.lock:
            if self.arena.descriptor < 0:
                return  # a callback that outlived close()
            for batch in batches:
                self.accumulator.release(batch)
            self.sender.line.call_first()

    def _fail(self, error: SlabpressError) -> None:
        """The pipeline cannot go on: end it; every call and every undelivered record gets the error."""
        self._refuse(lambda: type(error)(*error.args))
        self._supervisor.kill()
        self._abandon("PROCESS_ERROR", str(error))

    def refuse(self) -> None:
        """Refuse every call from now on as that of a closed producer; waiting threads get the error."""
        self._refuse(_closed)

    def _refuse(self, refusal: Callable[[], SlabpressError]) -> None:
        with self.lock:
            self.sender.refuse(refusal)
            self.sender.line.call_all()
            self.sender.lookup.changed.notify_all()

    def _abandon(self, name: str, reason: str) -> int:
        """Resolve every batch that has no result with an error; how many records that were. No child runs now."""
        with self.lock:
            left = [batch for batch in self.accumulator.unfinished() if batch.outcome is None]
        self._reporter.resolve([(batch, abandoned(batch, name, reason)) for batch in left])
        return sum(batch.records for batch in left)

    # --- what callers ask for -------------------------------------------------------------------------------

    def in_callback(self) -> bool:
        """Whether the calling thread is running a delivery callback."""
        return self._reporter.in_callback()

    def statistics(self) -> Statistics:
        """The figures of this moment; after close(), the last ones."""
        children = sum(map(process_bytes, self._supervisor.pids()))
        with self.lock:
            if self._last_statistics is not None:
                return self._last_statistics
            measured = self.arena.geometry.arena_bytes + CONTROL_BYTES + children
            with self.watch.changed:
                counts = RecordCounts(
                    self.accumulator.records_accepted(), self.watch.delivered_ever, self.watch.failed_ever
                )
            return read_statistics(self.arena, self.plan, counts, measured)

    def flush(self, timeout_s: float | None) -> None:
        """Seal everything and wait until all of it is resolved and reported.

        Raises:
            FlushTimeoutError: it was not, in time.
        """
        with self.lock:
            self.accumulator.seal_all()
            waiting = self.accumulator.unfinished()
        place = 0

        def finished() -> bool:
            nonlocal place
            while place < len(waiting) and waiting[place].finished:
                place += 1
            return place == len(waiting)

        with self.watch.changed:
            if self.watch.changed.wait_for(finished, timeout_s):
                return
            left = sum(batch.records for batch in waiting if not batch.finished)
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

    def close(self) -> int:
        """End children and threads and give the memory back; how many records were lost by that. Refuse first."""
        self._stopping = True
        with contextlib.ExitStack() as steps:  # from the last to the first, whatever one of them raises
            steps.callback(self._give_back)
            steps.callback(self._reporter.stop, _JOIN_TIMEOUT_S)
            try:
                self.control.bells[COORDINATOR].ring()
                self._thread.join(_JOIN_TIMEOUT_S)
            finally:
                self._supervisor.stop()
            self._take_results()  # those that came in while the children ended still count
            return self._abandon("PRODUCER_CLOSED", "the producer was closed before they were acknowledged")

    def _give_back(self) -> None:
        last = self.statistics()
        with self.lock:
            self._last_statistics = last
            self.arena.close()
            self.control.close()

    def _take_results(self) -> None:
        with self.lock:
            done = self.accumulator.take_done()
        self._resolve(done)

    def forked(self) -> None:
        """This process is a forked child: refuse every call, touch nothing that the parent uses."""
        self.sender.refuse(_forked)
        self.watch.forked = True

    def is_forked(self) -> bool:
        """Whether this is a forked child of the process that made the producer."""
        return self.sender.refusal is _forked


def _closed() -> SlabpressError:
    return ProducerClosedError("the producer is closed: make another one")


def _forked() -> SlabpressError:
    return ForkedError(
        "this producer belongs to the process that forked this one, and its records would be lost here: make a "
        "producer after the fork"
    )


def check_memory(plan: MemoryPlan) -> None:
    """Raise MemoryShortError if the machine or the cgroup cannot hold the plan."""
    available = memory_available_bytes()
    if available is not None and plan.total_bytes > available:
        raise MemoryShortError(
            f"the plan takes {format_bytes(plan.total_bytes)} (buffer_memory {format_bytes(plan.arena_bytes)} and "
            f"the processes), but only {format_bytes(available)} are available here: lower buffer_memory or "
            "workers, or raise the memory limit (`slabpress plan` shows every line)"
        )


_live: weakref.WeakSet[Coordinator] = weakref.WeakSet()


def watch_forks(coordinator: Coordinator) -> None:
    """Have ``forked`` called on the coordinator in every forked child."""
    _live.add(coordinator)


def _after_fork_in_child() -> None:
    for coordinator in _live:
        coordinator.forked()


os.register_at_fork(after_in_child=_after_fork_in_child)
