"""The promise that a call with many records gives back."""

from __future__ import annotations

from slabpress.errors import SlabpressError
from slabpress.pipeline.batch import Batch
from slabpress.pipeline.outcomes import Span


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
        if not self.done():
            watch.have_results_taken()
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
