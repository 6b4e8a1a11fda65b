"""The topic and partition tables: how the coordinator asks for a topic and the network process answers.

An entry has two writers, each with words of its own: the coordinator writes the name and then ``wanted``; the
network process writes the partition count, the last error and then ``answers``, which counts them, so that a
waiter knows a new answer from an old one.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from slabpress.shm import layout as at
from slabpress.shm.arena import Arena
from slabpress.shm.states import TOPIC_UNUSED, TOPIC_WANTED


class TopicAnswer(NamedTuple):
    """What the network process last said of a topic: ``partitions`` is 0 until the cluster named some."""

    answers: int
    partitions: int
    error_code: int


class TopicTable:
    """The topic and partition tables of one arena."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._topics = arena.layout.topics
        self._partitions = arena.layout.partitions
        self.topic_count = arena.geometry.topic_count
        self.partition_count = arena.geometry.partition_count

    def _topic(self, index: int, field: int) -> int:
        return self._topics + index * at.TOPIC_BYTES + field

    def _partition(self, index: int, field: int) -> int:
        return self._partitions + index * at.PARTITION_BYTES + field

    def want(self, index: int, name: str) -> None:
        """Ask for a topic (coordinator): the name first, then the word that makes it readable."""
        data = name.encode()
        start = self._topic(index, at.TOPIC_NAME_AT)
        memory = self._arena.memory
        self._arena.view[start : start + len(data)] = data
        memory.store_u32(self._topic(index, at.TOPIC_NAME_LENGTH_AT), len(data))
        memory.store_u32(self._topic(index, at.TOPIC_WANTED_AT), TOPIC_WANTED)
        self._bump_wanted()

    def unwant(self, index: int) -> None:
        """Stop asking for a topic that nobody waits for: no refresh storm for what does not exist."""
        self._arena.memory.store_u32(self._topic(index, at.TOPIC_WANTED_AT), TOPIC_UNUSED)
        self._bump_wanted()

    def request_refresh(self) -> None:
        """Ask the network process for fresh metadata of everything wanted (coordinator)."""
        self._bump_wanted()

    def _bump_wanted(self) -> None:
        self._arena.memory.add_u64(at.TOPICS_WANTED_AT, 1)

    def wanted_version(self) -> int:
        """Counts the coordinator's requests: the network process looks at the table when it changed."""
        return self._arena.memory.load_u64(at.TOPICS_WANTED_AT)

    def wanted(self) -> dict[str, int]:
        """Every topic that is asked for, with its index (network process)."""
        topics: dict[str, int] = {}
        memory = self._arena.memory
        for index in range(self.topic_count):
            if memory.load_u32(self._topic(index, at.TOPIC_WANTED_AT)) == TOPIC_WANTED:
                topics[self.name(index)] = index
        return topics

    def name(self, index: int) -> str:
        """A topic's name."""
        length = self._arena.memory.load_u32(self._topic(index, at.TOPIC_NAME_LENGTH_AT))
        start = self._topic(index, at.TOPIC_NAME_AT)
        return bytes(self._arena.view[start : start + min(length, at.TOPIC_NAME_BYTES)]).decode()

    def answer(self, index: int) -> TopicAnswer:
        """The network process's last answer."""
        memory = self._arena.memory
        answers = memory.load_u32(self._topic(index, at.TOPIC_ANSWERS_AT))
        partitions, error = struct.unpack_from("<Ii", self._arena.view, self._topic(index, at.TOPIC_PARTITIONS_AT))
        return TopicAnswer(answers, partitions, error)

    def set_answer(self, index: int, partitions: int | None, error_code: int) -> None:
        """Answer for a topic (network process). ``partitions`` None keeps the count that was known."""
        memory = self._arena.memory
        if partitions is not None:
            memory.store_u32(self._topic(index, at.TOPIC_PARTITIONS_AT), partitions)
        struct.pack_into("<i", self._arena.view, self._topic(index, at.TOPIC_ERROR_AT), error_code)
        answers = self._topic(index, at.TOPIC_ANSWERS_AT)
        memory.store_u32(answers, memory.load_u32(answers) + 1)
        memory.add_u64(at.METADATA_VERSION_AT, 1)

    def metadata_version(self) -> int:
        """Counts the network process's answers."""
        return self._arena.memory.load_u64(at.METADATA_VERSION_AT)

    def set_partition(self, index: int, topic_index: int, number: int) -> None:
        """Give a topic-partition its index (coordinator, before its first batch is sealed)."""
        struct.pack_into(
            "<IIqiiI",
            self._arena.view,
            self._partition(index, at.PARTITION_TOPIC_AT),
            topic_index,
            number,
            -1,
            -1,
            0,
            at.LEADER_UNKNOWN,
        )

    def partition(self, index: int) -> tuple[int, int]:
        """(topic index, partition number) of a partition index."""
        topic, number = struct.unpack_from("<II", self._arena.view, self._partition(index, at.PARTITION_TOPIC_AT))
        return topic, number

    def set_leader(self, index: int, node: int | None) -> None:
        """Say who leads a topic-partition, None for nobody (network process)."""
        word = at.LEADER_NONE if node is None else at.LEADER_FIRST + node
        self._arena.memory.store_u32(self._partition(index, at.LEADER_AT), word)

    def is_routed(self, index: int) -> bool:
        """Whether it was ever said who leads a topic-partition."""
        return self.leader_word(index) != at.LEADER_UNKNOWN

    def leader(self, index: int) -> int | None:
        """The node id of a topic-partition's leader; None for nobody, or if that is not known."""
        word = self.leader_word(index)
        return word - at.LEADER_FIRST if word >= at.LEADER_FIRST else None

    def leader_word(self, index: int) -> int:
        """LEADER_UNKNOWN, LEADER_NONE or the leader's own: the same for all that it leads."""
        return self._arena.memory.load_u32(self._partition(index, at.LEADER_AT))
