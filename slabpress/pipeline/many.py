"""send_many(): many records in one call, appended in native code from one full batch to the next."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

from slabpress._native import ALL_APPENDED, STOPPED_BATCH_FULL, STOPPED_NOT_OPEN, STOPPED_TOO_LARGE
from slabpress.errors import RecordError, RecordTypeError
from slabpress.pipeline.accumulator import Accumulator
from slabpress.pipeline.batch import Batch, ManyDelivery, Span
from slabpress.pipeline.sender import Sender
from slabpress.pipeline.topics import Topic
from slabpress.records import Headers, Part

Column = list[Any] | tuple[Any, ...]


class Many:
    """One send_many() call under way.

    Args:
        sender: where records go.
        accumulator: the open batches.
        topic: the topic.
        partition: the partition of every record; None: by key, or the sticky one.
        columns: values, keys, headers, timestamps; all but the values may be None.
    """

    def __init__(
        self,
        sender: Sender,
        accumulator: Accumulator,
        topic: Topic,
        partition: int | None,
        columns: tuple[Column, Column | None, Column | None, Column | None],
    ) -> None:
        self._sender = sender
        self._accumulator = accumulator
        self._topic = topic
        self._partition = partition
        self._values, self._keys, self._headers, self._timestamps = columns
        self._next = 0
        self._spans: dict[Batch, list[Span]] = {}
        self._opened: Batch | None = None

    def run(self, max_block_s: float) -> ManyDelivery:
        """Append everything, waiting for room where there is none, each time for as long as one send() would.

        Raises:
            RecordError: a record was refused, or there was no room; ``accepted`` says how many went before.
        """
        try:
            while self._next < len(self._values):
                self._sender.with_room(self._advance, self._topic, time.monotonic() + max_block_s)
        except RecordError as error:
            error.accepted = self._next
            raise
        finally:
            if self._opened is not None:
                self._accumulator.drop_if_empty(self._opened)  # the record that it was opened for was refused
        return ManyDelivery(self._next, list(self._spans), self._spans)

    def _advance(self) -> bool | None:
        """Append until a batch is full or there is no room: True for progress, None for no room.

        Opening a batch is no progress by itself: who opened one and then found no slab must wait in line like
        everybody else, with the empty batch released, and not come back to open it again.
        """
        before = self._next
        while True:
            why, at_partition = self._append_some()
            if why == ALL_APPENDED:
                return True
            if why == STOPPED_TOO_LARGE:
                raise self._sender.too_large(self._topic)
            if why == STOPPED_NOT_OPEN:
                if self._append_keyless() if at_partition < 0 else self._open(at_partition):
                    continue
                return self._next > before or None
            batch = self._topic.open[at_partition]
            assert batch is not None  # noqa: S101 - the writer has just looked at it
            if why == STOPPED_BATCH_FULL:
                self._accumulator.seal(batch)
                return True
            self._accumulator.drop_if_empty(batch)
            if self._partition is None and self._keys is None and self._sender.go_around(self._topic):
                continue
            return self._next > before or None

    def _open(self, partition: int) -> bool:
        sticky = self._partition is None and self._keys is None
        batch = self._sender.open_batch(self._topic, None if sticky else partition)
        self._opened = batch or self._opened
        return batch is not None

    def _append_some(self) -> tuple[int, int]:
        """One run of the native loop: why it stopped, and at which partition."""
        keyed = self._partition is None and self._keys is not None
        target = -1 if keyed else self._topic.sticky if self._partition is None else self._partition
        touched: list[tuple[Batch, int]] = []
        try:
            self._next, why, at_partition = self._accumulator.writer.append_many(
                self._topic.open,
                self._values,
                self._keys,
                self._headers,
                self._timestamps,
                self._next,
                target,
                self._accumulator.next_call(),
                touched,
            )
        except RecordError:
            self._next = self._accumulator.writer.stopped_at
            raise
        for batch, first in touched:
            self._note(batch, first)
            if first == 0:
                self._sender.ring_for_linger()
        return why, at_partition

    def _note(self, batch: Batch, first: int) -> None:
        """The batch's records from the first one on are of this call; others may write to it while this one waits."""
        spans = self._spans.setdefault(batch, [])
        if spans and spans[-1][1] == first:
            first = spans.pop()[0]
        spans.append((first, batch.records))

    def _append_keyless(self) -> bool:
        """One record without a key among keyed ones goes to the sticky partition; False for no room."""
        index = self._next
        handle = self._sender.try_append(
            self._topic,
            None,
            None,
            self._values[index],
            self._headers[index] if self._headers is not None else None,
            self._timestamps[index] if self._timestamps is not None else None,
        )
        if handle is None:
            return False
        self._note(handle._batch, handle._index)
        self._next = index + 1
        return True


def send_many(
    sender: Sender,
    accumulator: Accumulator,
    topic_name: str,
    columns: tuple[Iterable[Part], Sequence[Part] | None, Sequence[Headers | None] | None, Sequence[int | None] | None],
    partition: int | None,
    max_block_ms: int,
) -> ManyDelivery:
    """Append many records; see ``Producer.send_many``."""
    if sender.refusal is not None:
        raise sender.refusal()
    values = _column("values", columns[0])
    checked = (
        values,
        _parallel("keys", columns[1], values),
        _parallel("headers", columns[2], values),
        _parallel("timestamps_ms", columns[3], values),
    )
    deadline = time.monotonic() + max_block_ms / 1000
    with sender.lock:
        sender.check_usable()
        topic = sender.lookup.await_topic(topic_name, deadline)
        if partition is not None:
            sender.lookup.check_partition(topic, partition, deadline)
        return Many(sender, accumulator, topic, partition, checked).run(max_block_ms / 1000)


def _column(name: str, column: Iterable[Any]) -> Column:
    if isinstance(column, list | tuple):
        return column
    if isinstance(column, str | bytes | bytearray | memoryview) or not isinstance(column, Iterable):
        raise RecordTypeError(f"{name} must be a sequence with one entry a record, not {type(column).__name__}")
    return list(column)


def _parallel(name: str, column: Iterable[Any] | None, values: Column) -> Column | None:
    if column is None:
        return None
    checked = _column(name, column)
    if len(checked) != len(values):
        raise RecordTypeError(f"{name} has {len(checked)} entries for {len(values)} values: one each")
    return checked
