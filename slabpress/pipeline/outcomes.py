"""What became of records: of a batch, of a piece of one, of one record. Values only."""

from __future__ import annotations

from typing import NamedTuple

from slabpress.errors import SlabpressError


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
