"""send_many() and its like: many records in one call, appended in native code from one full batch to the next."""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import partial
from typing import Any, Final, Protocol

from slabpress._native import (
    ALL_APPENDED,
    PAUSED,
    STOPPED_BATCH_FULL,
    STOPPED_NOT_OPEN,
    STOPPED_TOO_LARGE,
    ObjectSource,
    OpenBatches,
    RecordWriter,
)
from slabpress.errors import RecordError, RecordTypeError
from slabpress.pipeline.accumulator import Accumulator
from slabpress.pipeline.batch import Batch
from slabpress.pipeline.iterators import RecordIterator
from slabpress.pipeline.many_delivery import ManyDelivery
from slabpress.pipeline.outcomes import Span
from slabpress.pipeline.sender import Sender
from slabpress.pipeline.topics import Topic
from slabpress.records import Headers, Part

Column = list[Any] | tuple[Any, ...]
_COLUMNS: Final = (list, tuple)
_BESIDE: Final = ("keys", "headers", "timestamps_ms")


class RecordSource(Protocol):
    """Where the records of a call come from: objects, lines or Arrow data, all in native code."""

    @property
    def taken(self) -> int:
        """How many records were appended."""

    def is_done(self) -> bool:
        """Whether all were."""

    def append(
        self,
        writer: RecordWriter,
        topic: Topic,
        partition: int,
        call: int,
        touched: list[tuple[Batch, int]],
        batches: OpenBatches | None,
    ) -> tuple[int, int, bool]:
        """Append until something stops it: what, at which partition, and whether that is the sticky one."""


class Many:
    """One call under way.

    Args:
        sender: where records go.
        accumulator: the open batches.
        topic_name: the topic.
        partition: the partition of every record; None: by key, or the sticky one.
        source: the records.
    """

    def __init__(
        self, sender: Sender, accumulator: Accumulator, topic_name: str, partition: int | None, source: RecordSource
    ) -> None:
        self._sender = sender
        self._accumulator = accumulator
        self._topic_name = topic_name
        self._partition = partition
        self._source = source
        self._spans: dict[Batch, list[Span]] = {}
        self._opened: Batch | None = None

    def run(self, max_block_ms: int) -> None:
        """Append what the source has, waiting for room where there is none, each time for as long as a send() would.

        Raises:
            RecordError: a record was refused, or there was no room; ``accepted`` says how many went before.
        """
        sender = self._sender
        sender.check_usable()  # before the lock as well: in a forked child it may be held for ever
        deadline = time.monotonic() + max_block_ms / 1000
        try:
            with sender.lock:
                sender.check_usable()
                topic = sender.lookup.await_topic(self._topic_name, deadline)
                if self._partition is not None:
                    sender.lookup.check_partition(topic, self._partition, deadline)
                self._append_all(topic, max_block_ms / 1000)
        except RecordError as error:
            error.accepted = self._source.taken
            raise

    def delivery(self) -> ManyDelivery:
        """The promise of what was appended."""
        return ManyDelivery(self._source.taken, list(self._spans), self._spans)

    def _append_all(self, topic: Topic, max_block_s: float) -> None:
        try:
            while not self._source.is_done():
                self._sender.with_room(partial(self._advance, topic), topic, time.monotonic() + max_block_s)
        finally:
            if self._opened is not None:
                self._accumulator.drop_if_empty(self._opened)  # the record that it was opened for was refused
                self._opened = None

    def _advance(self, topic: Topic) -> bool | None:
        """Append until there is no room, or a batch is full while others wait: True for progress, None for no room.

        Opening a batch is no progress by itself: who opened one and then found no slab must wait in line like
        everybody else, with the empty batch released, and not come back to open it again.
        """
        before = self._source.taken
        while True:
            why, at_partition, sticky = self._append_some(topic)
            if why in (ALL_APPENDED, PAUSED):
                return True
            if why == STOPPED_TOO_LARGE:
                self._opened = topic.open[at_partition]
                raise self._sender.too_large(topic)
            if why == STOPPED_NOT_OPEN:
                batch = self._sender.open_batch(topic, None if sticky else at_partition)
                if batch is not None:
                    self._opened = batch
                    continue
                return self._source.taken > before or None
            batch = topic.open[at_partition]
            assert batch is not None  # noqa: S101 - the writer has just looked at it
            if why == STOPPED_BATCH_FULL:
                self._accumulator.seal(batch)
                if self._sender.line.turns:
                    return True  # this thread stands in line no more, or makes room for those who do
                continue
            self._accumulator.drop_if_empty(batch)
            if sticky and self._sender.go_around(topic):
                continue
            return self._source.taken > before or None

    def _append_some(self, topic: Topic) -> tuple[int, int, bool]:
        """One run of the native loop: why it stopped, at which partition, and whether that is the sticky one.

        It goes on from one full batch to the next by itself, unless others wait in line.
        """
        touched: list[tuple[Batch, int]] = []
        why = -1
        try:
            why, at_partition, sticky = self._source.append(
                self._accumulator.writer,
                topic,
                -1 if self._partition is None else self._partition,
                self._accumulator.next_call(),
                touched,
                None if self._sender.line.turns else self._accumulator.open_batches,
            )
            return why, at_partition, sticky
        finally:  # a record that is refused leaves those before it on their way
            for batch, first in touched:
                self._note(batch, first)
                if first == 0:
                    self._sender.let_linger(batch, may_seal=why == ALL_APPENDED and not batch.closed)

    def _note(self, batch: Batch, first: int) -> None:
        """The batch's records from the first one on are of this call; others may write to it while this one waits."""
        spans = self._spans.setdefault(batch, [])
        if spans and spans[-1][1] == first:
            first = spans.pop()[0]
        spans.append((first, batch.records))


def send_many(
    sender: Sender,
    accumulator: Accumulator,
    topic_name: str,
    columns: tuple[Iterable[Part], Iterable[Part] | None, Iterable[Headers | None] | None, Iterable[int | None] | None],
    partition: int | None,
    max_block_ms: int,
) -> ManyDelivery:
    """Append many records; see ``Producer.send_many``."""
    sender.check_usable()
    values, keys, headers, timestamps_ms = columns
    iterator = None
    if isinstance(values, _COLUMNS):
        source = ObjectSource(
            values,
            _parallel("keys", keys, values),
            _parallel("headers", headers, values),
            _parallel("timestamps_ms", timestamps_ms, values),
        )
    else:
        by_name: dict[str, Iterable[Any] | None] = {"values": _iterable("values", values)}
        for name, column in zip(_BESIDE, columns[1:], strict=True):
            by_name[name] = None if column is None else _iterable(name, column)
        iterator = RecordIterator(by_name)
        source = ObjectSource([], None, None, None)
    many = Many(sender, accumulator, topic_name, partition, source)
    try:
        if iterator is None:
            many.run(max_block_ms)
        else:
            _run_blocks(many, source, iterator, max_block_ms)
        return many.delivery()
    finally:
        source.close()


def _run_blocks(many: Many, source: ObjectSource, iterator: RecordIterator, max_block_ms: int) -> None:
    """Append block after block. The iterators run without the producer's lock: they may send, and take their time."""
    try:
        while iterator.take():
            block = iterator.block
            source.go_on_with(block["values"] or [], *(block[name] for name in _BESIDE))
            many.run(max_block_ms)
        if source.taken == 0:
            many.run(max_block_ms)  # whatever is wrong with the topic is said for no records as well
    except RecordError as error:
        error.accepted = source.taken
        error.unsent = iterator.unsent(source.taken)
        raise


def _iterable(name: str, column: Iterable[Any]) -> Iterable[Any]:
    """A column that has one entry a record."""
    if isinstance(column, str | bytes | bytearray | memoryview) or not isinstance(column, Iterable):
        raise RecordTypeError(f"{name} must be a sequence with one entry a record, not {type(column).__name__}")
    return column


def _parallel(name: str, column: Iterable[Any] | None, values: Column) -> Column | None:
    if column is None:
        return None
    checked = column if isinstance(column, _COLUMNS) else list(_iterable(name, column))
    if len(checked) != len(values):
        raise RecordTypeError(f"{name} has {len(checked)} entries for {len(values)} values: one each")
    return checked
