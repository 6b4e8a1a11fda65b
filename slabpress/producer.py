"""The producer: the one class that programs use."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

from slabpress._native import LineSource, Sends
from slabpress.config import Config
from slabpress.errors import CallbackFlushError, FlushTimeoutError, SlabpressError
from slabpress.exits import close_at_exit, open_producers
from slabpress.footprints import process_lines
from slabpress.observe.statistics import Statistics
from slabpress.pipeline.columns import ArrowData, LineBuffer, arrow_source, send_arrow, send_lines
from slabpress.pipeline.coordinator import Coordinator
from slabpress.pipeline.many import send_many
from slabpress.pipeline.many_delivery import ManyDelivery
from slabpress.pipeline.preparations import check_memory, closed_error, forked_error, roles_of
from slabpress.pipeline.watch import DoneCallback
from slabpress.plan import MemoryPlan, plan_memory, plan_producer, workers_of_one
from slabpress.records import Headers, Part

logger = logging.getLogger("slabpress")
logger.addHandler(logging.NullHandler())


class Producer(Sends):
    """A Kafka producer whose memory is one fixed block, decided before the first record.

    Thread-safe. Close it, or use it in a ``with`` block; one that ends with an exception flushes for ``exit_flush_ms``
    at most, and lets that exception through. Several servers may be named as ``"host1:9092,host2:9092"`` or as a list.
    It has processes of its own; producers that are to share one set of processes are made by ``Pipeline.producer()``.

    Args:
        bootstrap_servers: brokers to ask first, as host:port.
        on_delivery: called on one background thread with the DeliveryHandle of every record once it is
            delivered or has failed. While it is slow, send() waits: reports are never queued without bound.
        settings: Kafka's names with underscores, such as ``compression_type="zstd"``, ``linger_ms=5``,
            ``buffer_memory="64MiB"``; see README.md for all.

    Attributes:
        config: the settings, complete.
        plan: every byte that this producer takes, as a MemoryPlan; one of a Pipeline: what it adds to it.

    Raises:
        ConfigError: a setting is unknown, out of range, or contradicts another.
        MemoryShortError: the planned memory is not there.
        ProcessError: a child process could not start.
        UnsupportedPlatformError: this is neither Linux nor macOS.
    """

    _pipeline: object = None  # the Pipeline it came from

    def __init__(
        self, bootstrap_servers: str | list[str], *, on_delivery: DoneCallback | None = None, **settings: Any
    ) -> None:
        self._closed = True  # until there is something to close
        config = Config.of(bootstrap_servers, **settings)
        plan = plan_memory(config)
        check_memory(plan.lines, "buffer_memory and the processes")
        coordinator = self._processes(config)
        self._open(coordinator, config, plan, on_delivery)
        coordinator.start()
        self._opened(private=True)

    @staticmethod
    def _processes(config: Config) -> Coordinator:
        workers = workers_of_one(config)
        return Coordinator(roles_of(config, workers), workers, process_lines(config, workers))

    @classmethod
    def _join(
        cls, coordinator: Coordinator, config: Config, plan: MemoryPlan, on_delivery: DoneCallback | None
    ) -> Self:
        """A producer of a Pipeline, whose processes run already."""
        producer = cls.__new__(cls)
        producer._closed = True
        producer._open(coordinator, config, plan, on_delivery)
        producer._opened(private=False)
        return producer

    def _open(
        self, coordinator: Coordinator, config: Config, plan: MemoryPlan, on_delivery: DoneCallback | None
    ) -> None:
        self._closing = threading.RLock()
        self.config = config
        self.plan = plan
        self._coordinator = coordinator
        self._session = coordinator.open(config, plan_producer(config, plan.workers), on_delivery)
        self._sender = self._session.sender
        self._send_through(self._sender.fast_lane, self._sender.send)  # send() is native

    def _opened(self, *, private: bool) -> None:
        self._private = private
        self._closed = False
        open_producers.add(self)

    def send_many(
        self,
        topic: str,
        values: Iterable[Part],
        *,
        keys: Iterable[Part] | None = None,
        headers: Iterable[Headers | None] | None = None,
        timestamps_ms: Iterable[int | None] | None = None,
        partition: int | None = None,
    ) -> ManyDelivery:
        """Accept many records in one call: the fast path.

        Args:
            topic: their topic.
            values: one value a record: bytes, bytearray, memoryview, str (UTF-8) or None. A list or a tuple is used as
                it is; of anything else, an iterator for example, 1,024 are taken at a time, and those who come beside
                them.
            keys: None, or one key a record, of the same types; None among them is a null key.
            headers: None, or one sequence of (name, value) pairs, or None, a record.
            timestamps_ms: None, or one a record: milliseconds since the epoch, or None for now.
            partition: the partition of all of them; None: each by its key, or the sticky one.

        Returns:
            One promise for all of them.

        Raises:
            RecordError: a record was refused, or there was no room; ``accepted`` on the error says how many
                records went before it and are on their way; ``unsent``, where the values came from an iterator, what
                was taken from it beyond those: go on with ``send_many(topic, **error.unsent)``, then with the iterator.
            ProducerClosedError, ForkedError, ProcessError: the producer cannot be used (any more).
            Whatever an iterator raises: what it gave before was accepted.
        """
        columns = (values, keys, headers, timestamps_ms)
        return send_many(self._sender, self._session.accumulator, topic, columns, partition, self.config.max_block_ms)

    def send_lines(
        self,
        topic: str,
        buffer: LineBuffer,
        *,
        partition: int | None = None,
        timestamp_ms: int | None = None,
        crlf: bool = False,
    ) -> ManyDelivery:
        r"""Accept every line of a buffer as the value of a record without a key, at the speed of a copy.

        Only ``\n`` ends a line, and is no part of the value. A last line without one counts; an empty line is an
        empty value. The buffer is not copied first: do not change it meanwhile.

        Args:
            topic: their topic.
            buffer: bytes, bytearray, memoryview (contiguous) or mmap.
            partition: the partition of all of them; None: one partition until its batch is full, then another.
            timestamp_ms: milliseconds since the epoch, of every record; None is now.
            crlf: leave out one ``\r`` at the end of a line.

        Returns:
            One promise for all of them.

        Raises:
            RecordError: a line was refused, or there was no room; ``accepted`` on the error says how many records
                went before it and are on their way, ``byte_offset`` where in the buffer the first line begins that
                did not: go on with ``memoryview(buffer)[error.byte_offset:]``.
            ProducerClosedError, ForkedError, ProcessError: the producer cannot be used (any more).
        """
        source = LineSource(buffer, crlf, timestamp_ms)
        return send_lines(self._sender, self._session.accumulator, topic, source, partition, self.config.max_block_ms)

    def send_arrow(
        self,
        topic: str,
        data: ArrowData,
        *,
        value: str | None = None,
        key: str | None = None,
        timestamp_ms: str | int | None = None,
        partition: int | None = None,
    ) -> ManyDelivery:
        """Accept every row of Arrow data as a record: of pyarrow, polars, DuckDB, pandas and others.

        Values and keys are columns of binary, large_binary, fixed_size_binary, binary_view, string, large_string or
        string_view; a null is a null value (a tombstone) or a null key. Rows are written from where they lie, chunk by
        chunk; slices and chunks are fine, dictionaries must be decoded first.

        Args:
            topic: their topic.
            data: an object with ``__arrow_c_array__`` or ``__arrow_c_stream__``: a table, a record batch, a data frame,
                a reader (which is used up), or a single column, which is the values.
            value: name of the column of the values; left out where data is a single column.
            key: name of the column of the keys; None: no record has one.
            timestamp_ms: name of a column of type timestamp, or int64 in milliseconds since the epoch, in which null is
                now; or a number for all; None is now.
            partition: the partition of all of them; None: each by its key as Java's producer does, or without a key
                one partition until its batch is full, then another.

        Returns:
            One promise for all of them.

        Raises:
            RecordError: a column cannot be sent, a record was refused, there was no room, or the stream failed;
                ``accepted`` on the error says how many rows were accepted and are on their way: go on with
                ``data.slice(error.accepted)``. Of a reader, the rest of the chunk is lost: send its batches one by one
                where that matters.
            ProducerClosedError, ForkedError, ProcessError: the producer cannot be used (any more).
        """
        source = arrow_source(data, value, key, timestamp_ms)
        return send_arrow(self._sender, self._session.accumulator, topic, source, partition, self.config.max_block_ms)

    def flush(self, timeout: float | None = None) -> None:
        """Send what was accepted without waiting for linger, and wait until it is resolved and reported.

        Args:
            timeout: seconds; None waits as long as delivery_timeout_ms lets records be under way.

        Raises:
            DeliveryError: records failed since the last flush and nobody has looked at that.
            FlushTimeoutError: records are still under way.
            CallbackFlushError: this is a delivery callback.
            ProducerClosedError, ForkedError, ProcessError: the producer cannot be used (any more).
        """
        self._check_usable("flush")
        self._session.watch.have_results_taken()
        self._session.flush(timeout)
        self._session.raise_unseen()

    def stats(self) -> Statistics:
        """The figures of this moment: records, tables, counters, memory; after close(), the last ones.

        Raises:
            ForkedError: this is a forked child.
        """
        if self._coordinator.is_forked:
            raise forked_error()
        return self._coordinator.statistics(self._session)

    def close(self, timeout: float | None = None) -> None:
        """Flush, end the children (unless they are a Pipeline's), and give the memory back. Twice is nothing.

        Args:
            timeout: seconds to wait for records under way; 0 abandons them. None waits until all are resolved.

        Raises:
            DeliveryError: records failed and nobody has looked at that.
            FlushTimeoutError: records were abandoned at the deadline; it counts them.
            CallbackFlushError: this is a delivery callback.
        """
        with self._closing:
            if self._closed:
                return
            if self._coordinator.is_forked:
                self._closed = True  # the parent's arena and children: a forked child touches nothing
                return
            if self._session.in_callback():
                raise CallbackFlushError("close() inside a delivery callback would wait for itself")
            # From here nothing new is accepted. It raises, with nothing changed yet, where a signal handler closes
            # a producer whose lock its own thread holds.
            self._session.refuse(closed_error)
            self._closed = True
            open_producers.discard(self)
            self._close(timeout)

    def _close(self, timeout: float | None) -> None:
        try:
            self._session.flush(timeout)
        except FlushTimeoutError as error:
            lost = self._end()
            if lost:
                raise FlushTimeoutError(
                    f"the producer was closed after {timeout} s with {lost} records not acknowledged", records=lost
                ) from error
        except BaseException:
            self._end()
            raise
        else:
            self._end()
        self._session.raise_unseen()

    def _end(self) -> int:
        """Give everything back; how many records were lost by that."""
        return self._coordinator.close() if self._private else self._coordinator.leave(self._session)

    def _check_usable(self, what: str) -> None:
        if self._sender.refusal is not None:
            raise self._sender.refusal()
        if self._session.in_callback():
            raise CallbackFlushError(f"{what}() inside a delivery callback would wait for itself")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
            return
        # The block failed: its error is the one to see, and closing must not hang behind an outage.
        try:
            self.close(self.config.exit_flush_ms / 1000)
        except SlabpressError as close_error:
            logger.warning("closing the producer after an error: %s", close_error)

    def __del__(self) -> None:
        if self._closed:
            return
        try:
            warnings.warn(f"{self!r} was not closed", ResourceWarning, source=self, stacklevel=2)
        finally:
            close_at_exit(self)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<Producer {','.join(self.config.bootstrap_servers)} {state}>"
