"""Looking up topics: waiting until the network process has their metadata.

The network process answers through the arena's topic table; the coordinator's background thread takes the answers
in and notifies ``changed``. Everything happens under the producer's lock, which a waiting thread releases.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Final

from slabpress._native import Mutex
from slabpress.errors import BootstrapError, RecordTypeError, SlabpressError, UnknownPartitionError, UnknownTopicError
from slabpress.pipeline.topics import Topic, TopicRegistry, check_topic_name
from slabpress.shm.arena import Arena
from slabpress.shm.control import NETWORK, Control

logger = logging.getLogger("slabpress")

# A wake-up that was lost with a dead process costs a waiter this long, not max_block_ms (law 3).
_LOOK_AGAIN_S: Final = 1.0

# A wait for metadata that takes longer is mentioned in the log.
_PATIENCE_S: Final = 2.0

# Metadata errors that waiting does not mend, and the names of those that it may.
_FINAL_TOPIC_ERRORS: Final = {17: "INVALID_TOPIC_EXCEPTION", 29: "TOPIC_AUTHORIZATION_FAILED"}
_TOPIC_ERRORS: Final = {
    3: "UNKNOWN_TOPIC_OR_PARTITION",
    5: "LEADER_NOT_AVAILABLE",
    100: "UNKNOWN_TOPIC_ID",
    **_FINAL_TOPIC_ERRORS,
}


class TopicLookup:
    """Finds topics and partitions, waiting where their metadata is not known yet.

    Args:
        max_block_ms: how long a caller waits, for the messages; the deadline itself is the caller's.
        arena: for the network process's account of the bootstrap servers.
        control: whom to wake.
        lock: the producer's lock.
        topics: the topics in use.
        check_usable: raises when the producer was closed or broke meanwhile.

    Attributes:
        changed: notified when the metadata, or the producer's state, may have changed.
    """

    def __init__(
        self,
        max_block_ms: int,
        arena: Arena,
        control: Control,
        lock: Mutex,
        topics: TopicRegistry,
        check_usable: Callable[[], None],
    ) -> None:
        self._max_block_ms = max_block_ms
        self._arena = arena
        self._control = control
        self._topics = topics
        self._known = topics.known
        self._check_usable = check_usable
        self._lock = lock
        self.changed = threading.Condition(lock)  # type: ignore[arg-type] # Mutex has what a Condition needs

    def await_topic(self, name: str, deadline: float) -> Topic:
        """The topic, waiting until its metadata is known.

        Raises:
            UnknownTopicError, BootstrapError: it was not known until the deadline.
        """
        if type(name) is str and name in self._known:
            return self._known[name]
        check_topic_name(name)
        started, patience = time.monotonic(), _PATIENCE_S
        self._topics.want(name)
        try:
            self._control.wake(NETWORK)
            while name not in self._known:
                remaining = deadline - time.monotonic()
                if remaining <= 0 or self._topics.error_code(name) in _FINAL_TOPIC_ERRORS:
                    raise self._topic_missing(name)
                self.changed.wait(min(remaining, _LOOK_AGAIN_S))
                self._check_usable()
                self._topics.refresh()
                if time.monotonic() - started > patience:
                    # Said once: a program that seems to hang behind a wrong address should not do so in silence.
                    patience = math.inf
                    self._say_waiting(name)
        finally:
            self._topics.give_up(name, time.monotonic())
        return self._known[name]

    def _say_waiting(self, name: str) -> None:
        """Log without the lock: a logging handler may send with this very producer."""
        why = self._arena.report() or "no such topic yet"
        self._lock.release()
        try:
            logger.warning("waiting for topic %r: %s", name, why)
        finally:
            self._lock.acquire()
        self._check_usable()

    def _topic_missing(self, name: str) -> SlabpressError:
        code = self._topics.error_code(name)
        report = self._arena.report()
        waited = f"within max_block_ms={self._max_block_ms}"
        if code == 0 and report:
            return BootstrapError(f"no bootstrap server answered {waited}: {report}")
        if code in _FINAL_TOPIC_ERRORS:
            return UnknownTopicError(f"topic {name!r} cannot be used: {_FINAL_TOPIC_ERRORS[code]}")
        said = _TOPIC_ERRORS.get(code, f"error {code}") if code else "no answer"
        return UnknownTopicError(
            f"topic {name!r} is not known to the cluster {waited} (it said: {said}): create it, or allow automatic "
            "creation on the brokers"
        )

    def check_partition(self, topic: Topic, partition: int, deadline: float) -> None:
        """See that the topic has the partition, asking once for fresh metadata if it seems not to.

        Raises:
            UnknownPartitionError: it has not.
        """
        if isinstance(partition, bool) or not isinstance(partition, int):
            raise RecordTypeError(f"partition must be an int or None, not {type(partition).__name__}")
        if 0 <= partition < len(topic.open):
            return
        if partition >= 0:
            topic.pinned += 1
            try:
                self._await_answer(topic.name, deadline)
            finally:
                topic.pinned -= 1
            self._topics.refresh()  # the answer may be here before the background thread has taken it in
        if not 0 <= partition < len(topic.open):
            raise UnknownPartitionError(
                f"topic {topic.name!r} has no partition {partition}: it has {len(topic.open)}, "
                f"0 .. {len(topic.open) - 1}"
            )

    def _await_answer(self, name: str, deadline: float) -> None:
        """Ask for fresh metadata of a topic, and wait for it."""
        before = self._topics.answer(name).answers
        self._topics.request_refresh()
        self._control.wake(NETWORK)
        while self._topics.answer(name).answers == before and deadline > time.monotonic():
            self.changed.wait(deadline - time.monotonic())
            self._check_usable()
