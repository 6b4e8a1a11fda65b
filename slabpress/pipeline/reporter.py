"""Telling the program what became of its records: handles first, then callbacks on one background thread.

That thread takes results in itself (pipeline/intake.py): whoever is woken by a result goes the whole way.

A batch keeps its descriptor until its last callback has returned, so callbacks that are slower than the
broker become back-pressure in send() and never a queue that grows (law 1).
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

from slabpress._native import DeliveryHandle, Mutex, Sleeper
from slabpress.errors import DeliveryError, DeliveryTimeoutError, SlabpressError
from slabpress.pipeline.batch import Batch
from slabpress.pipeline.outcomes import Outcome
from slabpress.pipeline.watch import DoneCallback, Watch, run_callback
from slabpress.results import DELIVERED, EXPIRED_SENT, EXPIRED_UNSENT, LOCAL_NAMES
from slabpress.shm.descriptors import Result

logger = logging.getLogger("slabpress")


def outcome_of(batch: Batch, result: Result, records: int) -> Outcome:
    """The outcome that a descriptor's result means for so many records of a batch."""
    if result.code == DELIVERED:
        return Outcome(None, result.base_offset, result.append_time_ms)
    return Outcome(error_of(batch, result, records), -1, -1)


def error_of(batch: Batch, result: Result, records: int) -> DeliveryError:
    """The error that failed records get; the text is the broker's own, or the network process's."""
    topic, partition = batch.topic.name, batch.partition
    name = LOCAL_NAMES.get(result.code) or result.text.partition(":")[0] or f"ERROR_{result.code}"
    timed_out = result.code in (EXPIRED_UNSENT, EXPIRED_SENT)
    text = result.text or name
    if result.record_index >= 0:
        text = f"{text} (record {result.record_index} of the batch's {records} is at fault)"
    kind = DeliveryTimeoutError if timed_out else DeliveryError
    return kind(
        f"{records} records for {topic}-{partition} were not delivered: {text}",
        topic=topic,
        partition=partition,
        name=name,
        code=None if result.code in LOCAL_NAMES else result.code,
        retriable=result.retriable,
        records=records,
    )


def abandoned(batch: Batch, name: str, reason: str) -> Outcome:
    """The outcome of a batch that nobody works on any more."""
    topic, partition = batch.topic.name, batch.partition
    records = batch.records_left
    text = f"{records} records for {topic}-{partition} were not delivered: {reason}"
    return Outcome(DeliveryError(text, topic=topic, partition=partition, name=name, records=records), -1, -1)


class Results(Protocol):
    """What the callback thread sleeps for, and takes in itself (pipeline/intake.py)."""

    def has_results(self) -> bool:
        """Whether there is anything to take in."""

    def take_or_tell(self) -> None:
        """Take it in: batches with callbacks come back through ``Reporter.resolve``, or in ``queue``."""


class Reporter:
    """Resolves batches: sets outcomes, wakes waiters, runs callbacks, gives descriptors back.

    Args:
        watch: what handles wait on.
        on_delivery: called with the handle of every record, or None.
        release: gives batches' descriptors back to the arena.
        results: where there may be more to report.
        sleeper: what the callback thread sleeps on.

    Attributes:
        calls_all: every record has a callback, the producer's.
        queue: what it has to report, first to last; None is its end.
    """

    def __init__(
        self,
        watch: Watch,
        on_delivery: DoneCallback | None,
        release: Callable[[list[Batch]], None],
        results: Results,
        sleeper: Sleeper,
    ) -> None:
        self._watch = watch
        self._on_delivery = on_delivery
        self.calls_all = on_delivery is not None
        self._release = release
        self._results = results
        self._sleeper = sleeper
        self._is_asleep = False
        self.queue: deque[Batch | tuple[DoneCallback, DeliveryHandle] | None] = deque()
        self._thread: threading.Thread | None = None
        self._ended = False
        self._starting = Mutex()  # a signal handler may wait for a result, in a thread that is just about to
        watch.start_callbacks = self.start
        watch.call_later = self._call_later
        if on_delivery is not None:
            self.start()

    def start(self) -> None:
        """Start the callback thread, in the thread that first asks for a callback or waits for a result.

        Not when the first one is due: at interpreter exit Python 3.12 starts no threads any more.
        """
        if self._watch.forked:
            return  # it would sleep on the parent's word, and be woken in its thread's place
        with self._starting:
            if self._thread is not None or self._ended:  # it would sleep on a word that is gone
                return
            may_run = [True]
            self._thread = threading.Thread(target=self._run, args=(may_run,), name="slabpress-callbacks", daemon=True)
            try:
                self._thread.start()
            except BaseException:  # there are too many threads; or a signal handler raises, and it may run already
                with contextlib.suppress(IndexError):
                    may_run.pop()
                    self._thread = None
                raise
            self._watch.has_thread = True

    def resolve(self, outcomes: list[tuple[Batch, Outcome]]) -> None:
        """Set the batches' outcomes; those with callbacks go to the callback thread, the rest are finished."""
        quiet: list[Batch] = []
        with self._watch.lock:
            for batch, outcome in outcomes:
                batch.resolve(outcome)
                self._watch.count(batch, outcome)
                if batch.callbacks_asked == 0 and not self.calls_all:
                    quiet.append(batch)
                else:
                    self._put(batch)
            self._watch.tell()
        self._wake()  # of what was settled before something went wrong nobody has told yet
        if quiet:
            self._finish(quiet)

    def tell_of_settled(self) -> None:
        """Tell of batches that were settled natively: who waits, and the callback thread, of those in its queue."""
        if self._watch.waiting:
            self._watch.tell_all()
        self._wake()

    def in_callback(self) -> bool:
        """Whether the caller is a delivery callback."""
        return threading.current_thread() is self._thread

    def stop(self, timeout_s: float | None) -> bool:
        """End the callback thread after what is queued; whether it ended in time. It is not started any more."""
        with self._watch.lock:
            self._ended = True
        # One that is being started runs after this, or was given up. Where a signal handler closes, in the thread that
        # is just starting it, that cannot be waited for: it finds that it is to end before anything else.
        with contextlib.suppress(RuntimeError), self._starting:
            pass
        if self._thread is None:
            return True
        self._put(None)
        try:
            self._thread.join(timeout_s)
        except RuntimeError:  # it has not started
            return False
        return not self._thread.is_alive()

    def _call_later(self, callback: DoneCallback, handle: DeliveryHandle) -> None:
        """Run a callback of a record that is resolved already; here, where the callback thread was ended meanwhile."""
        with self._watch.lock:
            if not self._ended:
                self._put((callback, handle))
                # Only now: of one that is counted and not queued, as a signal handler raised, flush() would never hear.
                self._watch.late_asked += 1
                return
        run_callback(callback, handle)

    # --- the callback thread ------------------------------------------------------------------------------------

    def _put(self, item: Batch | tuple[DoneCallback, DeliveryHandle] | None) -> None:
        """Queue something for the callback thread; of its own results it is not asleep."""
        self.queue.append(item)
        self._wake()

    def _wake(self) -> None:
        if self.queue and self._is_asleep:
            self._sleeper.call()

    def _run(self, may_run: list[bool]) -> None:
        try:
            may_run.pop()
        except IndexError:
            return  # whoever started it was interrupted, and another is started for the next who asks
        while True:
            self._sleep()
            self._results.take_or_tell()
            while self.queue:
                item = self.queue.popleft()
                if item is None:
                    return
                if not self._report(item):
                    return

    def _sleep(self) -> None:
        """Sleep until there is something queued, or results."""
        if self.queue:
            return  # not even to look whether there are results: of a producer that is closed the word is gone
        self._is_asleep = True
        self._sleeper.lie_down()
        if not self.queue and not self._results.has_results():
            self._sleeper.wait()
        self._is_asleep = False
        self._sleeper.get_up()

    def _report(self, item: Batch | tuple[DoneCallback, DeliveryHandle]) -> bool:
        """Run callbacks; False if one has forked, and this is the child: nothing of the arena is its own."""
        if isinstance(item, tuple):
            run_guarded(*item)
            if self._watch.forked:
                return False
            with self._watch.lock:
                self._watch.late_run += 1
                self._watch.late_asked = max(self._watch.late_asked, self._watch.late_run)
                self._watch.tell()
            return True
        try:
            self._call_back(item)
        finally:
            if not self._watch.forked:
                self._finish([item])
        return not self._watch.forked

    def _call_back(self, batch: Batch) -> None:
        error: SlabpressError | None = batch.outcome.error if batch.outcome else None
        batch.run_asked()
        if self._on_delivery is not None:
            batch.run_for_all(self._on_delivery)
            if error is not None and not self._watch.forked:
                with self._watch.lock:
                    self._watch.count_seen(batch, batch.failed)
        batch.drop_callbacks()

    def _finish(self, batches: list[Batch]) -> None:
        self._release(batches)
        with self._watch.lock:
            for batch in batches:
                batch.finished = True
            self._watch.tell()


def run_guarded(callback: DoneCallback, handle: DeliveryHandle) -> None:
    """Run a callback on the callback thread, which nothing may end: not even sys.exit() in the user's code."""
    try:
        run_callback(callback, handle)
    except BaseException:
        logger.exception("a delivery callback tried to end its thread")
