"""A batch as the user's process knows it, and the handles that are given out for its records.

The arena holds a batch's bytes; this object holds who is interested in it. It lives as long as its descriptor
or as long as somebody keeps a handle, whichever is longer; a dropped handle costs nothing later.
"""

from __future__ import annotations

import bisect
import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from slabpress._native import DeliveryHandle, OpenBatch
from slabpress.errors import DeliveryError, ForkedError, SlabpressError

if TYPE_CHECKING:
    from slabpress.pipeline.topics import Topic

__all__ = ["Batch", "Delivery", "DeliveryHandle", "DoneCallback", "ManyDelivery", "Outcome", "Piece", "Span", "Watch"]

logger = logging.getLogger("slabpress")


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
    """What became of a batch, or of a piece of one: ``error`` is None if it was delivered."""

    error: SlabpressError | None
    base_offset: int
    append_time_ms: int


class Piece(NamedTuple):
    """Consecutive records of a split batch that came to the same end: delivered one after the other, or failed."""

    first: int
    records: int
    outcome: Outcome

    def joined(self, records: int, outcome: Outcome) -> Piece | None:
        """This piece with those that follow it, if they came to the same end; a million failures are one piece."""
        mine, error = self.outcome, self.outcome.error
        if error is None and outcome.error is None:
            same = outcome.base_offset == mine.base_offset + self.records
            same = same and outcome.append_time_ms == mine.append_time_ms
        else:
            same = error is not None and outcome.error is not None and _is_alike(error, outcome.error)
        return self._replace(records=self.records + records) if same else None


def _is_alike(one: SlabpressError, other: SlabpressError) -> bool:
    return type(one) is type(other) and getattr(one, "name", "") == getattr(other, "name", "")


# Some consecutive records of a batch: the first, and the one after the last.
Span = tuple[int, int]
DoneCallback = Callable[["DeliveryHandle"], object]


class Watch:
    """Who waits for batches of one producer, and which failures nobody has looked at.

    ``era`` counts how often flush() or close() raised what nobody had looked at: a look at an older failure
    must not hide a newer one. Only numbers are kept, so a million failures take no more room than one.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self._waiting = 0
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

    def wait_for(self, condition: Callable[[], bool], timeout_s: float | None) -> bool:
        """Wait until it holds; whether it did in time. The caller holds ``changed``."""
        self._waiting += 1
        try:
            return self.changed.wait_for(condition, timeout_s)
        finally:
            self._waiting -= 1

    def tell(self) -> None:
        """Have those who wait look again. The caller holds ``changed``."""
        if self._waiting:  # mostly nobody does, and notify_all would take half a microsecond to find out
            self.changed.notify_all()

    def count(self, batch: Batch, outcome: Outcome) -> None:
        """Take note of an outcome. The caller holds ``changed``."""
        if batch.pieces is None and outcome.error is None:  # nearly every batch
            self.delivered_ever += batch.records
            return
        for piece in batch.pieces or (Piece(0, batch.records, outcome),):
            if piece.outcome.error is None:
                self.delivered_ever += piece.records
            else:
                self.failed_ever += piece.records
                self._count_failure(batch, piece.records, piece.outcome.error)

    def _count_failure(self, batch: Batch, records: int, error: SlabpressError) -> None:
        batch.era = self.era
        if self.first_error is None:
            self.first_error = error
        batch.failed += records
        self.failed_records += records

    def count_seen(self, batch: Batch, records: int) -> None:
        """Take note that failures were looked at. The caller holds ``changed``.

        A record may have several handles; no batch counts for more than failed, so it hides no other's failure.
        """
        if batch.era == self.era:
            new = min(records, batch.failed - batch.seen)
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
        watch: who waits for it.
        created_ns: CLOCK_MONOTONIC time of its first record; linger and the delivery timeout count from it.
        outcome: set once, when the broker or a deadline decided; of a split batch, the first failure if there is one.
        pieces: of a split batch, what became of its records, in order; None for a whole one.
        failed: how many of its records failed.
        finished: its callbacks have run as well, and its descriptor is free.
        era: the watch's era when it failed.
        seen: how many of its records' failures were looked at.
    """

    __slots__ = ()  # all is kept, and set at first, in native code
    topic: Topic
    watch: Watch
    outcome: Outcome | None
    pieces: list[Piece] | None

    def resolve_piece(self, records: int, outcome: Outcome) -> None:
        """Take note of what became of the next records of a split batch."""
        if self.pieces is None:
            self.pieces = []
        last = self.pieces[-1] if self.pieces else None
        joined = last.joined(records, outcome) if last is not None else None
        if joined is not None:
            self.pieces[-1] = joined
            if isinstance(joined.outcome.error, DeliveryError):
                joined.outcome.error.records = joined.records  # nobody has seen it yet
        else:
            self.pieces.append(Piece(self.records_resolved, records, outcome))

    @property
    def records_left(self) -> int:
        """How many records have no outcome yet."""
        return self.records - self.records_resolved

    @property
    def records_resolved(self) -> int:
        """How many records of a split batch have an outcome."""
        return self.pieces[-1].first + self.pieces[-1].records if self.pieces else 0

    def resolve(self, outcome: Outcome) -> None:
        """Set the outcome of every record that has none yet. The caller holds the watch's condition."""
        if self.pieces is not None:
            if self.records_left:
                self.resolve_piece(self.records_left, outcome)
            outcome = next((piece.outcome for piece in self.pieces if piece.outcome.error), self.pieces[0].outcome)
        self.outcome = outcome

    def failures(self, spans: list[Span]) -> list[tuple[int, SlabpressError]]:
        """How many of these records of a resolved batch failed, with which errors."""
        if self.outcome is None or self.outcome.error is None:
            return []
        found = []
        for piece in self.pieces or (self.piece_of(0),):
            end = piece.first + piece.records
            records = sum(max(0, min(end, after) - max(piece.first, first)) for first, after in spans)
            if records and piece.outcome.error is not None:
                found.append((records, piece.outcome.error))
        return found

    def piece_of(self, index: int) -> Piece:
        """What became of a record of a resolved batch, with those around it."""
        assert self.outcome is not None  # noqa: S101 - the caller has waited for it
        if self.pieces is None:
            return Piece(0, self.records, self.outcome)
        return self.pieces[bisect.bisect_right(self.pieces, index, key=lambda piece: piece.first) - 1]

    # What its handles say; theirs are the docstrings (native/batches.pxi).

    def result_of(self, handle: DeliveryHandle, timeout: float | None) -> Delivery:
        """DeliveryHandle.result."""
        error = self.exception_of(handle, timeout)
        if error is not None:
            raise error
        first, _, outcome = self.piece_of(handle._index)
        return Delivery(
            self.topic.name,
            self.partition,
            outcome.base_offset + handle._index - first if outcome.base_offset >= 0 else None,
            outcome.append_time_ms if outcome.append_time_ms >= 0 else None,
        )

    def exception_of(self, handle: DeliveryHandle, timeout: float | None) -> SlabpressError | None:
        """DeliveryHandle.exception."""
        watch = self.watch
        if self.outcome is None:
            watch.check_not_forked()
            with watch.changed:
                if not watch.wait_for(handle.done, timeout):
                    raise TimeoutError(f"record for {self.topic.name}-{self.partition} not resolved within {timeout} s")
        error = self.piece_of(handle._index).outcome.error
        if error is not None and not handle._looked:
            handle._looked = True
            with watch.changed:
                watch.count_seen(self, 1)
        return error

    def call_when_done(self, handle: DeliveryHandle, callback: DoneCallback) -> None:
        """DeliveryHandle.add_done_callback."""
        if not self._ask_for(handle._index, callback):
            run_callback(callback, handle)

    def call_on_thread(self, handle: DeliveryHandle, callback: DoneCallback) -> None:
        """As ``call_when_done``, but always on the callback thread, however quick the delivery was."""
        if not self._ask_for(handle._index, callback):
            self.watch.call_later(callback, handle)

    def _ask_for(self, index: int, callback: DoneCallback) -> bool:
        """Have the callback run when the batch is resolved; False if it is resolved already."""
        if self.outcome is None:
            self.watch.check_not_forked()
        self.watch.start_callbacks()
        with self.watch.changed:
            if self.outcome is not None:
                return False
            self.ask(index, callback)
            return True

    def describe(self, handle: DeliveryHandle) -> str:
        """DeliveryHandle.__repr__."""
        error = None if self.outcome is None else self.piece_of(handle._index).outcome.error
        state = "pending" if self.outcome is None else "delivered" if error is None else repr(error)
        return f"<DeliveryHandle {self.topic.name}-{self.partition} {state}>"


class ManyDelivery:
    """The promise of a send_many(), send_lines() or send_arrow() call: its records may lie in several batches.

    Attributes:
        accepted: how many records the call accepted: all of them, or it would have raised.
    """

    __slots__ = ("_batches", "_spans", "accepted")

    def __init__(self, accepted: int, batches: list[Batch], spans: dict[Batch, list[Span]] | None = None) -> None:
        self.accepted = accepted
        self._batches = batches
        self._spans = spans or {}

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
            if not watch.wait_for(self.done, timeout):
                raise TimeoutError(f"{self.accepted} records not resolved within {timeout} s")
            errors: dict[int, SlabpressError] = {}
            for batch in self._batches:
                own = batch.failures(self._spans.get(batch, [(0, batch.records)]))
                # The batches may hold records of others, whose failures stay unseen.
                watch.count_seen(batch, sum(records for records, _ in own))
                errors.update({id(error): error for _, error in own})
        return list(errors.values())

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
    try:
        callback(handle)
    except Exception:
        logger.exception("a delivery callback raised")
