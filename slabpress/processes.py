"""One set of processes for many producers."""

from __future__ import annotations

import atexit
import logging
import threading
import time
import warnings
import weakref
from types import TracebackType
from typing import Any, Self

from slabpress.config import MAX_MILLISECONDS, PIPELINE_SETTINGS, Config, check_names
from slabpress.errors import CallbackFlushError, SlabpressError
from slabpress.exits import close_at_exit
from slabpress.footprints import process_lines
from slabpress.observe.statistics import MemoryFigure
from slabpress.pipeline.coordinator import Coordinator
from slabpress.pipeline.preparations import check_memory, forked_error, roles_of
from slabpress.pipeline.watch import DoneCallback
from slabpress.plan import PipelinePlan, plan_producer, workers_of
from slabpress.producer import Producer

logger = logging.getLogger("slabpress")

_PRODUCER_SETTINGS = tuple(name for name in Config.__struct_fields__ if name not in PIPELINE_SETTINGS)


class Pipeline:
    """One network process and one pool of workers that several producers share.

    Each producer has its own arena, its own settings for batching, codec and delivery, its own order and its own
    errors; workers and network process go round the arenas, so that a stalled or flooded producer takes nothing from
    the others but its share. Memory is the sum of the arenas and one set of processes.

        with Pipeline("localhost:9092", workers=4) as pipeline:
            clicks = pipeline.producer(buffer_memory="16MiB", compression_type="zstd")
            audit = pipeline.producer(buffer_memory="1MiB", linger_ms=0)

    Thread-safe. Producers may come and go; one that is closed gives its memory back. A ``with`` block that ends with an
    exception flushes for the longest ``exit_flush_ms`` of its producers at most, and lets that exception through.

    Args:
        bootstrap_servers: brokers to ask first, as host:port.
        settings: those of the processes and of the connections, such as ``workers``, ``client_id``,
            ``request_timeout_ms``; see README.md for all.

    Raises:
        ConfigError: a setting is unknown, out of range, or a producer's.
        MemoryShortError: the planned memory is not there.
        ProcessError: a child process could not start.
        UnsupportedPlatformError: this is neither Linux nor macOS.
    """

    def __init__(self, bootstrap_servers: str | list[str], **settings: Any) -> None:
        self._closed = True  # until there is something to close
        check_names(settings, PIPELINE_SETTINGS)
        # Deadlines of delivery are each producer's, and are checked against request_timeout_ms there.
        checked = Config.of(bootstrap_servers, **settings, delivery_timeout_ms=MAX_MILLISECONDS)
        self._settings = {name: getattr(checked, name) for name in PIPELINE_SETTINGS}
        self._workers = self._settings["workers"] = workers_of(checked)
        lines = process_lines(checked, self._workers)
        check_memory(lines, "the processes")
        self._closing = threading.RLock()
        self._coordinator = Coordinator(roles_of(checked, self._workers), self._workers, lines)
        self._coordinator.start()
        self._producers: weakref.WeakSet[Producer] = weakref.WeakSet()
        self._closed = False
        _open_pipelines.add(self)

    def producer(self, *, on_delivery: DoneCallback | None = None, **settings: Any) -> Producer:
        """Make a producer that shares these processes.

        Args:
            on_delivery: as for ``Producer``.
            settings: the producer's own, such as ``buffer_memory``, ``compression_type``, ``acks``.

        Returns:
            The producer; ``close()`` of the pipeline closes it.

        Raises:
            ConfigError: a setting is unknown, out of range, or the pipeline's.
            MemoryShortError: the planned memory is not there.
            ProducerClosedError, ForkedError, ProcessError: the pipeline cannot be used (any more).
        """
        if self._coordinator.is_forked:
            raise forked_error()
        check_names(settings, _PRODUCER_SETTINGS)
        shared = {name: value for name, value in self._settings.items() if name != "bootstrap_servers"}
        config = Config.of(self._settings["bootstrap_servers"], **shared, **settings)
        plan = plan_producer(config, self._workers)
        check_memory(plan.lines, "one producer more")
        producer = Producer._join(self._coordinator, config, plan, on_delivery)
        producer._pipeline = self  # which must not end, unclosed and forgotten, before its producers do
        self._producers.add(producer)
        return producer

    @property
    def plan(self) -> PipelinePlan:
        """Every byte that the processes and the producers that are open now take."""
        return self._coordinator.plan()

    def memory(self) -> tuple[MemoryFigure, ...]:
        """Planned beside measured bytes: all arenas together, the control block, each process, the kernel's buffers.

        Raises:
            ForkedError: this is a forked child.
        """
        if self._coordinator.is_forked:
            raise forked_error()
        return self._coordinator.memory()

    def close(self, timeout: float | None = None) -> None:
        """Close every producer, end the processes, and give all memory back. Closing twice is nothing.

        Args:
            timeout: seconds to wait for records under way, of all producers together; 0 abandons them. None waits
                until all are resolved.

        Raises:
            DeliveryError: records failed and nobody has looked at that.
            FlushTimeoutError: records were abandoned at the deadline; it counts those of the first such producer.
            CallbackFlushError: this is a delivery callback of one of its producers.
        """
        with self._closing:
            if self._closed:
                return
            if self._coordinator.is_forked:
                self._closed = True  # the parent's children: a forked child touches nothing
                return
            if any(producer._session.in_callback() for producer in self._producers):
                raise CallbackFlushError("close() inside a delivery callback would wait for itself")
            self._closed = True
            _open_pipelines.discard(self)
            try:
                errors = self._close_producers(timeout)
            finally:
                self._coordinator.close()  # whatever a signal handler raises
        if errors:
            raise errors[0]

    def _close_producers(self, timeout: float | None) -> list[SlabpressError]:
        deadline = None if timeout is None else time.monotonic() + timeout
        errors = []
        producers = list(self._producers)
        for producer in producers:
            producer._session.seal_all()  # so that one that is stuck takes no time from the others
        for producer in producers:
            try:
                producer.close(None if deadline is None else max(0.0, deadline - time.monotonic()))
            except SlabpressError as error:
                errors.append(error)
        for unraised in errors[1:]:
            logger.error("closing a pipeline: %s", unraised)  # one can be raised, the others must not be silent
        return errors

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
            self.close(max((producer.config.exit_flush_ms for producer in self._producers), default=0) / 1000)
        except SlabpressError as close_error:
            logger.warning("closing the pipeline after an error: %s", close_error)

    def __del__(self) -> None:
        if self._closed:
            return
        try:
            warnings.warn(f"{self!r} was not closed", ResourceWarning, source=self, stacklevel=2)
        finally:
            _close_at_exit(self)

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"open, {len(self._producers)} producers"
        return f"<Pipeline {','.join(self._settings['bootstrap_servers'])} {state}>"


def _close_at_exit(pipeline: Pipeline) -> None:
    """End a pipeline that nobody closed, its producers first: they say what is lost."""
    if pipeline._coordinator.is_forked:
        return
    for producer in list(pipeline._producers):
        close_at_exit(producer)
    try:
        pipeline.close(0)
    except SlabpressError as error:
        warnings.warn(f"a pipeline that was not closed: {error}", RuntimeWarning, stacklevel=2)


_open_pipelines: weakref.WeakSet[Pipeline] = weakref.WeakSet()


@atexit.register
def _close_all_at_exit() -> None:
    for pipeline in list(_open_pipelines):
        _close_at_exit(pipeline)
