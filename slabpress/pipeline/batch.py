"""A batch as the user's process knows it, and what it says to the handles of its records.

The arena holds a batch's bytes; this object holds who is interested in it. It lives as long as its descriptor
or as long as somebody keeps a handle, whichever is longer; a dropped handle costs nothing later.
"""

from __future__ import annotations

import bisect
from typing import TYPE_CHECKING

from slabpress._native import DeliveryHandle, OpenBatch
from slabpress.errors import DeliveryError, SlabpressError
from slabpress.pipeline.outcomes import Delivery, Outcome, Piece, Span
from slabpress.pipeline.watch import DoneCallback, Watch, run_callback

if TYPE_CHECKING:
    from slabpress.pipeline.topics import Topic


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
            watch.have_results_taken()
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
        return self.ask(index, callback)

    def describe(self, handle: DeliveryHandle) -> str:
        """DeliveryHandle.__repr__."""
        error = None if self.outcome is None else self.piece_of(handle._index).outcome.error
        state = "pending" if self.outcome is None else "delivered" if error is None else repr(error)
        return f"<DeliveryHandle {self.topic.name}-{self.partition} {state}>"
