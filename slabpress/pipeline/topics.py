"""The topics that the program sends to: their partitions, open batches, and where keyless records go."""

from __future__ import annotations

import random
import re
from collections import deque
from collections.abc import Callable
from typing import Final

from slabpress._native import TopicLanes
from slabpress.errors import RecordTypeError, TooManyTopicsError, TopicNameError
from slabpress.pipeline.batch import Batch
from slabpress.shm.topics import TopicAnswer, TopicTable

TOPIC_NAME_MAX: Final = 249
# A topic that did not turn up is asked for this long after its last waiter has left.
_ASKED_FOR_S: Final = 60.0
_LEGAL_NAME: Final = re.compile(r"[a-zA-Z0-9._-]+")


class Topic(TopicLanes):
    """One topic, known to the cluster.

    Attributes:
        name: its name.
        index: its entry in the arena's topic table.
        open: the open batch of each partition, or None.
        under_way: how many sealed batches of each partition have no result yet; those without any are absent.
        partition_indices: each partition's entry in the arena's partition table, once it has one.
        pinned: threads that wait with this object in their hands: it is not forgotten meanwhile.
        batch_limit: bytes of a batch beyond which the broker finds it too large, as far as is known.
        sticky: the partition that keyless records go to until its batch is sealed (KIP-480), when another is chosen
            (native/topics.pxi).
    """

    __slots__ = ("index", "name", "pinned")
    open: list[Batch | None]

    def __init__(self, name: str, index: int) -> None:
        super().__init__()
        self.name = name
        self.index = index
        self.pinned = 0

    def grow(self, partitions: int) -> None:
        """Take note of partitions that were added; Kafka never takes any away from a topic."""
        missing = partitions - len(self.open)
        if missing > 0:
            self.open.extend([None] * missing)

    def stick_around(self, has_share: Callable[[int], bool], *, may_add: bool) -> bool:
        """Choose the next partition whose leader has not its share of the arena; False if there is none.

        Args:
            has_share: tells it of a partition's index.
            may_add: a partition that has no index yet may be given one.
        """
        count = len(self.open)
        for step in range(1, count):
            partition = (self.sticky + step) % count
            index = self.partition_indices.get(partition)
            if may_add if index is None else not has_share(index):
                self.sticky = partition
                return True
        return False


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
        self._idle: dict[str, float] = {}  # until when, oldest first
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
        self._idle.pop(name, None)
        if name not in self._wanted:
            if not self._free_topics:
                self._forget_one()
            if not self._free_topics:
                raise TooManyTopicsError(
                    f"topic {name!r} is one too many: the arena has room for {self._table.topic_count} topics; "
                    "raise max_topic_partitions"
                )
            self._take_entry(name, self._free_topics[0])
        self._waiting[name] = self._waiting.get(name, 0) + 1

    def _take_entry(self, name: str, index: int) -> None:
        """All of it or nothing: a topic that a signal handler left half wanted would be asked for by nobody, ever."""
        try:
            self._asked_at[name] = self._table.answer(index).answers
            self._table.want(index, name)
            self._wanted[name] = index
            self._free_topics.popleft()
        except BaseException:
            self._asked_at.pop(name, None)
            self._wanted.pop(name, None)
            self._table.unwant(index)
            if index not in self._free_topics:
                self._free_topics.append(index)
            raise

    def give_up(self, name: str, now: float) -> None:
        """One waiter fewer. When the last leaves a topic that did not turn up, it is asked for a while longer.

        A caller that cannot wait for a round trip (a short max_block_ms) would never learn of any topic otherwise.

        Args:
            name: the topic.
            now: monotonic seconds.
        """
        self._waiting[name] -= 1
        if self._waiting[name] == 0:
            del self._waiting[name]
            if name not in self.known:
                self._idle[name] = now + _ASKED_FOR_S

    def drop_idle(self, now: float) -> None:
        """Ask no more for topics that nobody has wanted for a while: no refresh storm for what does not exist."""
        for name in [name for name, until in self._idle.items() if now >= until]:
            self._unwant(name)

    def next_idle(self) -> float | None:
        """When ``drop_idle`` has something to do, in monotonic seconds."""
        return next(iter(self._idle.values()), None)

    def _unwant(self, name: str) -> None:
        del self._idle[name]
        if name not in self.known:
            self._give_back(name)

    def _forget_one(self) -> None:
        """Make room in the table: a topic that nobody waits for, or that turned up and was never sent to."""
        while self._idle and not self._free_topics:
            self._unwant(next(iter(self._idle)))
        for name, topic in self.known.items():
            if self._free_topics:
                break
            if not topic.partition_indices and not topic.pinned and name not in self._waiting:
                del self.known[name]
                self._give_back(name)
                break

    def _give_back(self, name: str) -> None:
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

    def has_news(self) -> bool:
        """Whether ``refresh`` has something to take in."""
        return self._table.metadata_version() != self._version

    def refresh(self) -> bool:
        """Take in what the network process has learnt; whether there was anything new."""
        version = self._table.metadata_version()
        if version == self._version:
            return False
        self._version = version
        for name, index in self._wanted.items():
            answers, partitions, error_code = self._table.answer(index)
            stale = answers == self._asked_at[name] or (error_code and name not in self.known)
            if partitions == 0 or stale:
                continue  # not known yet; the count that stands there may be the entry's former topic's
            topic = self.known.get(name)
            if topic is None:
                topic = self.known[name] = Topic(name, index)
                topic.sticky = self._rng.randrange(partitions)
            topic.grow(partitions)
        return True

    def leader(self, partition_index: int) -> int | None:
        """The node id of a topic-partition's leader, as far as it has one that is known."""
        return self._table.leader(partition_index)

    def partition_index(self, topic: Topic, partition: int) -> int:
        """The topic-partition's entry in the partition table, given at first use.

        Raises:
            TooManyTopicsError: the table is full.
        """
        index = topic.partition_indices.get(partition)
        if index is None:
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

    def stick_around(self, topic: Topic, has_share: Callable[[int], bool]) -> bool:
        """Have keyless records go around leaders that have their share; False where all have it."""
        return topic.stick_around(has_share, may_add=self._next_partition < self._table.partition_count)

    def stick_to_indexed(self, topic: Topic) -> bool:
        """With the partition table full: keyless records stay with partitions that have an entry; False for none."""
        if topic.partition_indices:
            topic.sticky = self._rng.choice(list(topic.partition_indices))
        return bool(topic.partition_indices)
