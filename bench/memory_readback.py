"""What became of the accepted records: read back with an independent consumer, confluent-kafka's."""

from __future__ import annotations

from typing import NamedTuple

from confluent_kafka import Consumer, TopicPartition

from bench.memory_messages import first_message, read_stamp, stamped
from tests.support.kafka import Record, read_back

ANSWER_TIMEOUT_S = 20
READ_TIMEOUT_S = 300


class Verdict(NamedTuple):
    """What the topic holds of what was accepted.

    Attributes:
        read: records in the topic.
        lost: accepted records that are not there.
        doubled: records that had been read before.
        reordered: records behind a later one of the same producer in the same topic-partition.
        foreign: records that no producer sent like that.
    """

    read: int
    lost: int
    doubled: int
    reordered: int
    foreign: int

    @property
    def broken(self) -> bool:
        """Whether anything is wrong."""
        return any(self[1:])


class Reader:
    """Reads records one by one and keeps count.

    Args:
        accepted: how many records each producer's send() took; they were numbered from 0.
        messages: the distinct messages.
    """

    def __init__(self, accepted: list[int], messages: list[bytes]) -> None:
        self._messages = messages
        self._seen = [bytearray(count) for count in accepted]
        self._last: dict[tuple[int, int], int] = {}
        self._read = self._doubled = self._reordered = self._foreign = 0

    def take(self, record: Record) -> None:
        """Look at one record."""
        self._read += 1
        place = self._place(record.value)
        if place is None:
            self._foreign += 1
            return
        producer, sequence = place
        if self._seen[producer][sequence]:
            self._doubled += 1
            return
        self._seen[producer][sequence] = 1
        lane = (producer, record.partition)
        if sequence < self._last.get(lane, -1):
            self._reordered += 1
        else:
            self._last[lane] = sequence

    def verdict(self) -> Verdict:
        """What it came to."""
        lost = sum(seen.count(0) for seen in self._seen)
        return Verdict(self._read, lost, self._doubled, self._reordered, self._foreign)

    def _place(self, value: bytes | None) -> tuple[int, int] | None:
        """Which producer sent it as its how-manieth record, if the value is to the byte what it sent."""
        if value is None:
            return None
        try:
            producer, sequence = read_stamp(value)
        except ValueError:
            return None
        if producer >= len(self._seen) or sequence >= len(self._seen[producer]):
            return None
        message = self._messages[(first_message(producer, len(self._seen)) + sequence) % len(self._messages)]
        return (producer, sequence) if value == stamped(producer, sequence, message) else None


def verify(servers: str, topic: str, accepted: list[int], messages: list[bytes]) -> Verdict:
    """Read a topic to its end and compare it with what was accepted."""
    reader = Reader(accepted, messages)
    for record in read_back(servers, topic, timeout_s=READ_TIMEOUT_S):
        reader.take(record)
    return reader.verdict()


def stored_records(servers: str, topic: str, partitions: int) -> int:
    """How many records the topic holds."""
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "bench-memory", "log_level": 2})
    try:
        places = [TopicPartition(topic, partition) for partition in range(partitions)]
        marks = [consumer.get_watermark_offsets(place, timeout=ANSWER_TIMEOUT_S) for place in places]
    finally:
        consumer.close()
    return sum([int(mark[1]) for mark in marks])
