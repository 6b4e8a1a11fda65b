"""Every error that slabpress raises, as one tree.

    SlabpressError
     +-- ConfigError (ValueError)            a setting is unknown, out of range, or contradicts another
     +-- UnsupportedPlatformError            this operating system cannot run slabpress
     +-- MemoryShortError (MemoryError)      the fixed memory cannot be had at construction
     +-- ProcessError                        a child process could not start, or be replaced
     +-- ProducerClosedError                 the producer was closed
     +-- ForkedError                         the producer is used in a forked child of the process that made it
     +-- CallbackFlushError                  flush() or close() inside a delivery callback
     +-- RecordError                         one record was refused; its neighbours are unharmed
     |    +-- RecordTypeError (TypeError)    a part of the record has a wrong type
     |    +-- RecordValueError (ValueError)  a part of the record has an impossible value
     |    +-- RecordTooLargeError            it can never fit
     |    +-- TopicNameError (ValueError)    Kafka allows no such topic name
     |    +-- UnknownTopicError              the cluster has no such topic (within max_block_ms)
     |    +-- UnknownPartitionError          the topic has no such partition
     |    +-- BootstrapError                 no bootstrap server answers (within max_block_ms)
     |    +-- TooManyTopicsError             the arena's topic or partition table is full
     |    +-- BufferFullError                no room within max_block_ms; retriable
     +-- DeliveryError                       an accepted record was not delivered
     |    +-- DeliveryTimeoutError           not within delivery_timeout_ms
     +-- FlushTimeoutError (TimeoutError)    flush() or close() ran out of time

``retriable`` says whether the same call may succeed later without anything being changed. Messages name the
thing, the number, the limit and what to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any


class SlabpressError(Exception):
    """The root: catch this to catch everything that slabpress raises on purpose."""

    retriable: bool = False

    def __reduce__(self) -> tuple[object, ...]:
        """Errors travel between processes (multiprocessing pickles them); some have arguments that must be named."""
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(kind: type[SlabpressError], args: tuple[object, ...], state: dict[str, object]) -> SlabpressError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class ConfigError(SlabpressError, ValueError):
    """Raised by the constructors when a setting is unknown, out of range, or contradicts another."""


class UnsupportedPlatformError(SlabpressError):
    """Raised by the constructors where the operating system lacks what the arena needs."""


class MemoryShortError(SlabpressError, MemoryError):
    """Raised by the constructors when the fixed memory cannot be had; nothing was started."""


class ProcessError(SlabpressError):
    """Raised by the constructors when a child does not start, and by every call once a dead one cannot be replaced."""


class ProducerClosedError(SlabpressError):
    """Raised by every call on a producer after close()."""


class ForkedError(SlabpressError):
    """Raised by every call on a producer in a forked child of the process that made it."""


class CallbackFlushError(SlabpressError):
    """Raised by flush() and close() inside a delivery callback: it would wait for itself (KAFKA-10790)."""


class RecordError(SlabpressError):
    """One record was refused; nothing of it was kept and the next record is welcome.

    Attributes:
        accepted: how many records of a send_many(), send_lines() or send_arrow() call were accepted before this one
            (0 for send()).
        byte_offset: where in send_lines()'s buffer the first line begins that was not accepted; None for the others.
        unsent: where send_many()'s values came from an iterator: what was taken from it and not accepted, as keyword
            arguments for another call; None for the others.
    """

    accepted: int = 0
    byte_offset: int | None = None
    unsent: dict[str, Any] | None = None


class RecordTypeError(RecordError, TypeError):
    """Raised by send() when a key, value, header, timestamp, topic or partition has a wrong type."""


class RecordValueError(RecordError, ValueError):
    """Raised by send() when a part of the record has a value that Kafka cannot carry."""


class RecordTooLargeError(RecordError):
    """Raised by send() when the record can never fit; the message carries its size and the limit."""


class TopicNameError(RecordError, ValueError):
    """Raised by send() when the topic's name is not one that Kafka allows."""


class UnknownTopicError(RecordError):
    """Raised by send() when the cluster did not know the topic within max_block_ms."""

    retriable = True


class UnknownPartitionError(RecordError):
    """Raised by send() when the topic has no such partition."""


class TooManyTopicsError(RecordError):
    """Raised by send() when the arena's tables have no entry left for another topic or topic-partition."""


class BootstrapError(RecordError):
    """Raised by send() when no bootstrap server answered within max_block_ms; lists each one's last error."""

    retriable = True


class BufferFullError(RecordError):
    """Raised by send(), send_many() and their like when the arena had no room within max_block_ms."""

    retriable = True


class DeliveryError(SlabpressError):
    """An accepted record was not delivered. Raised by handles, flush() and close(); given to callbacks.

    Attributes:
        topic: the record's topic.
        partition: the record's partition.
        code: Kafka's error code; None where the error arose on this side.
        name: Kafka's name of the code, such as NOT_ENOUGH_REPLICAS, or ours.
        retriable: whether sending the record again may succeed.
        records: how many records the error speaks of (more than 1 where flush() sums up).
    """

    def __init__(
        self,
        message: str,
        *,
        topic: str,
        partition: int,
        name: str,
        code: int | None = None,
        retriable: bool = False,
        records: int = 1,
    ) -> None:
        super().__init__(message)
        self.topic = topic
        self.partition = partition
        self.name = name
        self.code = code
        self.retriable = retriable
        self.records = records


class DeliveryTimeoutError(DeliveryError):
    """The record was not acknowledged within delivery_timeout_ms; it may or may not be in the log."""


class FlushTimeoutError(SlabpressError, TimeoutError):
    """Raised by flush(timeout) and close(timeout) when records were still under way at the deadline.

    Attributes:
        records: how many.
    """

    retriable = True

    def __init__(self, message: str, *, records: int) -> None:
        super().__init__(message)
        self.records = records
