"""A batch as the user's process knows it, and the handles that are given out for its records.

The arena holds a batch's bytes; this object holds who is interested in it. It lives as long as its descriptor
or as long as somebody keeps a handle, whichever is longer; a dropped handle costs nothing later.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from slabpress._native import OpenBatch, RecordHandle
from slabpress.errors import ForkedError, SlabpressError

if TYPE_CHECKING:
    from slabpress.pipeline.topics import Topic


class Delivery(NamedTuple):
    """Where a record ended up.

    Attributes:
        topic: its topic.
        partition: its partition.
        offset: its offset in the partition's log; None with ``acks=0``, which asks for no answer.
        append_time_ms: the broker's time of the append where the topic keeps LogAppendTime, else None.
    """

    topic: str
    partition: int
    offset: int | None
    append_time_ms: int | None


class Outcome(NamedTuple):
    """What became of a batch: ``error`` is None if it was delivered."""

    error: SlabpressError | None
    base_offset: int
    append_time_ms: int


DoneCallback = Callable[["DeliveryHandle"], object]


class Watch:
    """Who waits for batches of one producer, and which failures nobody has looked at.

    ``era`` counts how often flush() or close() raised what nobody had looked at: a look at an older failure
    must not hide a newer one. Only numbers are kept, so a million failures take no more room than one.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.era = 0
        self.failed_records = 0
        self.seen_records = 0
        self.first_error: SlabpressError | None = None
        self.forked = False
        self.start_callbacks: Callable[[], None] = lambda: None
        self.call_later: Callable[[DoneCallback, DeliveryHandle], None] = run_callback
        self.delivered_ever = 0
        self.failed_ever = 0

    def check_not_forked(self) -> None:
        """Raise ForkedError in a forked child: nobody there will ever say what became of a batch."""
        if self.forked:
            raise ForkedError("this handle's producer belongs to the process that forked this one: ask for it there")

    def count(self, batch: Batch, outcome: Outcome) -> None:
        """Take note of an outcome. The caller holds ``changed``."""
        if outcome.error is None:
            self.delivered_ever += batch.records
        else:
            self.failed_ever += batch.records
            self._count_failure(batch, outcome.error)

    def _count_failure(self, batch: Batch, error: SlabpressError) -> None:
        batch.era = self.era
        if self.first_error is None:
            self.first_error = error
        self.failed_records += batch.records

    def count_seen(self, batch: Batch, records: int) -> None:
        """Take note that failures were looked at. The caller holds ``changed``.

        A record may have several handles; no batch counts for more than it holds, so it hides no other's failure.
        """
        if batch.era == self.era:
            new = min(records, batch.records - batch.seen)
            batch.seen += new
            self.seen_records += new

    def take_unseen(self) -> tuple[int, SlabpressError | None]:
        """How many records failed unseen since the last call that found some, and the first error."""
        with self.changed:
            unseen = self.failed_records - self.seen_records
            error = self.first_error
            self.era += 1
            self.failed_records = self.seen_records = 0
            self.first_error = None
        return unseen, error


class Batch(OpenBatch):
    """One batch, from its first record to its result.

    Attributes:
        topic: the topic it belongs to.
        created_ns: CLOCK_MONOTONIC time of its first record; linger and the delivery timeout count from it.
        seal_number: its place in the order, 0 while open.
        outcome: set once, when the broker or a deadline decided.
        finished: its callbacks have run as well, and its descriptor is free.
        era: the watch's era when it failed.
        seen: how many of its records' failures were looked at.
        callbacks: (record's index, callback) for those who asked.
    """

    __slots__ = ("callbacks", "created_ns", "era", "finished", "outcome", "seal_number", "seen", "topic", "watch")

    def __init__(self, descriptor: int, topic: Topic, partition: int, created_ns: int, watch: Watch) -> None:
        super().__init__(descriptor, partition)
        self.topic = topic
        self.created_ns = created_ns
        self.watch = watch
        self.seal_number = 0
        self.outcome: Outcome | None = None
        self.finished = False
        self.era = -1
        self.seen = 0
        self.callbacks: list[tuple[int, DoneCallback]] | None = None


class DeliveryHandle(RecordHandle):
    """The promise of one record's delivery, in the manner of concurrent.futures.Future; thread-safe.

    Dropping it costs nothing; a failure that nobody looked at is raised by the next flush() or close().
    """

    __slots__ = ()
    _batch: Batch

    def done(self) -> bool:
        """Whether the record was delivered or has failed."""
        return self._batch.outcome is not None

    def result(self, timeout: float | None = None) -> Delivery:
        """Wait for the delivery.

        Args:
            timeout: seconds; None waits until the record is resolved, which delivery_timeout_ms bounds.

        Raises:
            DeliveryError: the record was not delivered.
            TimeoutError: it was not resolved in time.
        """
        error = self.exception(timeout)
        if error is not None:
            raise error
        batch = self._batch
        outcome = batch.outcome
        assert outcome is not None  # noqa: S101 - exception() has waited for it
        return Delivery(
            batch.topic.name,
            batch.partition,
            outcome.base_offset + self._index if outcome.base_offset >= 0 else None,
            outcome.append_time_ms if outcome.append_time_ms >= 0 else None,
        )

    def exception(self, timeout: float | None = None) -> SlabpressError | None:
        """Wait for the delivery and return its error, or None.

        Raises:
            TimeoutError: the record was not resolved in time.
        """
        batch = self._batch
        if batch.outcome is None:
            batch.watch.check_not_forked()
            with batch.watch.changed:
                if not batch.watch.changed.wait_for(self.done, timeout):
                    raise TimeoutError(
                        f"record for {batch.topic.name}-{batch.partition} not resolved within {timeout} s"
                    )
        outcome = batch.outcome
        assert outcome is not None  # noqa: S101 - wait_for says so
        if outcome.error is not None and not self._looked:
            self._looked = True
            with batch.watch.changed:
                batch.watch.count_seen(batch, 1)
        return outcome.error

    def add_done_callback(self, callback: DoneCallback) -> None:
        """Call ``callback(handle)`` on the callback thread once the record is resolved.

        Of a record that is resolved already, the callback runs at once, in this thread. An exception in it is
        logged and hurts nothing.
        """
        if not self._ask_for(callback):
            run_callback(callback, self)

    def _call_on_thread(self, callback: DoneCallback) -> None:
        """As ``add_done_callback``, but always on the callback thread, however quick the delivery was."""
        if not self._ask_for(callback):
            self._batch.watch.call_later(callback, self)

    def _ask_for(self, callback: DoneCallback) -> bool:
        """Have the callback run when the batch is resolved; False if it is resolved already."""
        batch = self._batch
        batch.watch.start_callbacks()
        with batch.watch.changed:
            if batch.outcome is not None:
                return False
            if batch.callbacks is None:
                batch.callbacks = []
            batch.callbacks.append((self._index, callback))
            return True

    def __repr__(self) -> str:
        outcome = self._batch.outcome
        state = "pending" if outcome is None else "delivered" if outcome.error is None else repr(outcome.error)
        return f"<DeliveryHandle {self._batch.topic.name}-{self._batch.partition} {state}>"


class ManyDelivery:
    """The promise of a send_many() call's delivery: its records may lie in several batches.

    Attributes:
        accepted: how many records the call accepted: all of them, or it would have raised.
    """

    __slots__ = ("_batches", "accepted")

    def __init__(self, accepted: int, batches: list[Batch]) -> None:
        self.accepted = accepted
        self._batches = batches

    def done(self) -> bool:
        """Whether every record was delivered or has failed."""
        return all(batch.outcome is not None for batch in self._batches)

    def exceptions(self, timeout: float | None = None) -> list[SlabpressError]:
        """Wait for every record; the errors of the batches that failed, empty if all were delivered.

        Raises:
            TimeoutError: they were not all resolved in time.
        """
        if not self._batches:
            return []
        watch = self._batches[0].watch
        watch.check_not_forked()
        with watch.changed:
            if not watch.changed.wait_for(self.done, timeout):
                raise TimeoutError(f"{self.accepted} records not resolved within {timeout} s")
            failed = [batch for batch in self._batches if batch.outcome and batch.outcome.error]
            # The batches may hold records of others, whose failures stay unseen.
            own = self.accepted
            for batch in failed:
                watch.count_seen(batch, min(own, batch.records))
                own -= min(own, batch.records)
        return [batch.outcome.error for batch in failed if batch.outcome and batch.outcome.error]

    def result(self, timeout: float | None = None) -> int:
        """Wait for every record; how many were delivered.

        Raises:
            DeliveryError: the first failure, if any.
            TimeoutError: they were not all resolved in time.
        """
        errors = self.exceptions(timeout)
        if errors:
            raise errors[0]
        return self.accepted


def run_callback(callback: DoneCallback, handle: DeliveryHandle) -> None:
    """Run a user's callback; what it raises is logged."""
    import logging

    try:
        callback(handle)
    except Exception:
        logging.getLogger("slabpress").exception("a delivery callback raised")
