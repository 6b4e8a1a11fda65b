"""The topics that the program sends to: their partitions, open batches, and where keyless records go."""

from __future__ import annotations

import random
import re
from collections import deque
from typing import Final

from slabpress._native import TopicLanes
from slabpress.errors import RecordTypeError, TooManyTopicsError, TopicNameError
from slabpress.pipeline.batch import Batch
from slabpress.shm.topics import TopicAnswer, TopicTable

TOPIC_NAME_MAX: Final = 249
_LEGAL_NAME: Final = re.compile(r"[a-zA-Z0-9._-]+")


class Topic(TopicLanes):
    """One topic, known to the cluster.

    Attributes:
        name: its name.
        index: its entry in the arena's topic table.
        open: the open batch of each partition, or None.
        sticky: the partition that keyless records go to until its batch is sealed (KIP-480).
    """

    __slots__ = ("index", "name", "partition_indices")
    open: list[Batch | None]

    def __init__(self, name: str, index: int) -> None:
        super().__init__()
        self.name = name
        self.index = index
        self.partition_indices: list[int] = []

    def grow(self, partitions: int) -> None:
        """Take note of partitions that were added; Kafka never takes any away from a topic."""
        missing = partitions - len(self.open)
        if missing > 0:
            self.open.extend([None] * missing)
            self.partition_indices.extend([-1] * missing)

    def stick_elsewhere(self, rng: random.Random) -> None:
        """Choose another partition for keyless records, at random."""
        count = len(self.open)
        if count > 1:
            step = rng.randrange(1, count)
            self.sticky = (self.sticky + step) % count


def check_topic_name(name: object) -> None:
    """Raise TopicNameError unless Kafka allows this name (org.apache.kafka.common.internals.Topic)."""
    if not isinstance(name, str):
        raise RecordTypeError(f"topic must be a str, not {type(name).__name__}")
    if not name or len(name) > TOPIC_NAME_MAX or name in (".", "..") or not _LEGAL_NAME.fullmatch(name):
        shown = name if len(name) <= TOPIC_NAME_MAX else f"{name[:40]}... ({len(name)} characters)"
        raise TopicNameError(
            f"topic {shown!r} is not a name that Kafka allows: 1 to {TOPIC_NAME_MAX} of a-z, A-Z, 0-9, '.', '_' "
            "and '-', but not '.' or '..'"
        )


class TopicRegistry:
    """Every topic in use, with its entries in the arena's tables. The caller holds the producer's lock."""

    def __init__(self, table: TopicTable, rng: random.Random) -> None:
        self._table = table
        self._rng = rng
        self.known: dict[str, Topic] = {}
        self._wanted: dict[str, int] = {}
        self._waiting: dict[str, int] = {}
        self._asked_at: dict[str, int] = {}
        # First in, first out: an answer that is still under way for an entry's former topic finds it unused.
        self._free_topics = deque(range(table.topic_count))
        self._next_partition = 0
        self._version = 0

    def want(self, name: str) -> None:
        """Ask the network process for a topic, for one more waiter; ``give_up`` takes it back.

        Raises:
            TooManyTopicsError: the table is full.
        """
        if name not in self._wanted:
            if not self._free_topics:
                raise TooManyTopicsError(
                    f"topic {name!r} is one too many: the arena has room for {self._table.topic_count} topics; "
                    "raise max_topic_partitions"
                )
            index = self._free_topics.popleft()
            self._wanted[name] = index
            self._asked_at[name] = self._table.answer(index).answers
            self._table.want(index, name)
        self._waiting[name] = self._waiting.get(name, 0) + 1

    def give_up(self, name: str) -> None:
        """One waiter fewer; when the last leaves a topic that did not turn up, nobody asks for it any more."""
        self._waiting[name] -= 1
        if self._waiting[name] == 0:
            del self._waiting[name]
            if name not in self.known:
                index = self._wanted.pop(name)
                del self._asked_at[name]
                self._table.unwant(index)
                self._free_topics.append(index)

    def error_code(self, name: str) -> int:
        """Kafka's error code in the last answer for a topic that is wanted; 0 before there is an answer."""
        answer = self.answer(name)
        return answer.error_code if answer.answers != self._asked_at[name] else 0

    def answer(self, name: str) -> TopicAnswer:
        """The network process's last word on a topic that is wanted."""
        return self._table.answer(self._wanted[name])

    def request_refresh(self) -> None:
        """Ask for fresh metadata."""
        self._table.request_refresh()

    def refresh(self) -> bool:
        """Take in what the network process has learnt; whether there was anything new."""
        version = self._table.metadata_version()
        if version == self._version:
            return False
        self._version = version
        for name, index in self._wanted.items():
            answers, partitions, _ = self._table.answer(index)
            if partitions == 0 or answers == self._asked_at[name]:
                continue  # not known yet; what stands there may be about the entry's former topic
            topic = self.known.get(name)
            if topic is None:
                topic = self.known[name] = Topic(name, index)
                topic.sticky = self._rng.randrange(partitions)
            topic.grow(partitions)
        return True

    def partition_index(self, topic: Topic, partition: int) -> int:
        """The topic-partition's entry in the partition table, given at first use.

        Raises:
            TooManyTopicsError: the table is full.
        """
        index = topic.partition_indices[partition]
        if index < 0:
            index = self._next_partition
            if index >= self._table.partition_count:
                raise TooManyTopicsError(
                    f"topic-partition {topic.name}-{partition} is one too many: the arena has room for "
                    f"{self._table.partition_count}; raise max_topic_partitions"
                )
            self._next_partition = index + 1
            self._table.set_partition(index, topic.index, partition)
            topic.partition_indices[partition] = index
        return index
