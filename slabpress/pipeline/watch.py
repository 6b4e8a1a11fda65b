"""Who waits for a producer's batches, and which of their failures nobody has looked at."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from slabpress._native import DeliveryHandle, Waiters
from slabpress.errors import ForkedError, SlabpressError
from slabpress.pipeline.outcomes import Outcome, Piece

if TYPE_CHECKING:
    from slabpress.pipeline.batch import Batch

logger = logging.getLogger("slabpress")

DoneCallback = Callable[[DeliveryHandle], object]


class Watch(Waiters):
    """Who waits for batches of one producer, and which failures nobody has looked at.

    ``era`` counts how often flush() or close() raised what nobody had looked at: a look at an older failure
    must not hide a newer one. Only numbers are kept, so a million failures take no more room than one.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.era = 0
        self.failed_records = 0
        self.seen_records = 0
        self.first_error: SlabpressError | None = None
        self.start_callbacks: Callable[[], None] = lambda: None
        self.call_later: Callable[[DoneCallback, DeliveryHandle], None] = run_callback
        # Callbacks of records that were resolved before they could be noted in the batch: to start the callback thread
        # for the first one may take longer than the delivery.
        self.late_asked = 0
        self.late_run = 0
        self.failed_ever = 0

    def check_not_forked(self) -> None:
        """Raise ForkedError in a forked child: nobody there will ever say what became of a batch."""
        if self.forked:
            raise ForkedError("this handle's producer belongs to the process that forked this one: ask for it there")

    def have_results_taken(self) -> None:
        """Have a thread sleep for results alone, before waiting for one without ``changed``.

        The coordinator's, which takes them otherwise, has a turn to make first (279 us a send().result(), and 186 so).
        Not taken: the waiting thread itself. What a signal handler raises there, Ctrl-C for one, would lose results
        that are half taken in.
        """
        with contextlib.suppress(RuntimeError):  # too many threads, or the interpreter ends: the coordinator takes them
            self.start_callbacks()

    def wait_for(self, condition: Callable[[], bool], timeout_s: float | None) -> bool:
        """Wait until it holds; whether it did in time. The caller holds ``changed``."""
        self.waiting += 1
        try:
            return self.changed.wait_for(condition, timeout_s)
        finally:
            self.waiting -= 1

    def tell(self) -> None:
        """Have those who wait look again. The caller holds ``changed``."""
        if self.waiting:  # mostly nobody does, and notify_all would take half a microsecond to find out
            self.changed.notify_all()

    def tell_all(self) -> None:
        """``tell`` for who does not hold ``changed``."""
        with self.changed:
            self.changed.notify_all()

    def callback_raised(self, error: BaseException) -> None:
        """Log what a callback raised; the callback thread goes on, even after sys.exit() in the user's code."""
        ends = "raised" if isinstance(error, Exception) else "tried to end its thread"
        logger.error("a delivery callback %s", ends, exc_info=error)

    def count(self, batch: Batch, outcome: Outcome) -> None:
        """Take note of an outcome. The caller holds ``changed``."""
        for piece in batch.pieces or (Piece(0, batch.records, outcome),):
            if piece.outcome.error is None:
                self.count_delivered(piece.records)
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


def run_callback(callback: DoneCallback, handle: DeliveryHandle) -> None:
    """Run a user's callback; what it raises is logged."""
    try:
        callback(handle)
    except Exception:
        logger.exception("a delivery callback raised")
