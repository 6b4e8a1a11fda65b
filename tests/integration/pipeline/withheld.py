"""A broker that reads and answers requests when the test allows it: all else waits on the connection meanwhile."""

from __future__ import annotations

import threading
from typing import NamedTuple

from tests.integration.pipeline.looks import WATCHDOG_S
from tests.network.fake_broker import PRODUCE, Asked, FakeBroker


class Arrived(NamedTuple):
    """A batch that has come."""

    topic: str
    partition: int


class WithheldBroker(FakeBroker):
    """A fake broker that answers a Produce request, and reads the next, when it is allowed to.

    Args:
        topics: partition count of each topic.

    Attributes:
        allowed: one permit an answer.
    """

    def __init__(self, topics: dict[str, int]) -> None:
        self.allowed = threading.Semaphore(0)
        super().__init__(topics)
        self.hooks[PRODUCE] = self._answer_when_allowed

    def _answer_when_allowed(self, asked: Asked) -> bytes | None:
        assert self.allowed.acquire(timeout=WATCHDOG_S)
        return None if asked.body.acks == 0 else self.produce_answer(asked)

    def allow(self, answers: int = 1) -> None:
        """Answer so many requests, those that are still to come included."""
        self.allowed.release(answers)

    def close(self) -> None:
        """End every thread, also those that wait."""
        self.allow(1000)
        super().close()

    def requests(self) -> list[list[Arrived]]:
        """What was in each Produce request so far."""
        bodies = [asked.body for asked in self.produced()]
        return [
            sorted(Arrived(topic.name, part.index) for topic in body.topic_data for part in topic.partition_data)
            for body in bodies
        ]

    def partitions(self) -> list[list[int]]:
        """The partitions in each Produce request so far."""
        return [[batch.partition for batch in request] for request in self.requests()]
